"""From problems to batches of token arrays."""
