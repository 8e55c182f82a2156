"""A run's folder: configuration, checkpoints, logs and results."""
