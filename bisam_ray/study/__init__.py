"""What many runs are: a search, a comparison, and the record of both."""
