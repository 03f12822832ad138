"""MLflow, the second place where a study can be read: mirror.py repeats the ledger there, in a thread of its own."""
