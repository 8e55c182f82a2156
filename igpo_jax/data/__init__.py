"""Data pipeline: from problems to batches of token arrays."""
