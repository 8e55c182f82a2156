"""Code for the folder of a run: configuration, checkpoints, logs and results."""
