"""What a run is: one configuration in, one stream of epoch records out."""
