"""A run: its folder, checkpoints, logs and results."""
