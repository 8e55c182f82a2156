"""Data: problems to batches of token arrays."""
