"""Reads and writes the folder of a training run (configuration, checkpoints, logs and results), and chooses the settings of the
run that depend on the devices."""
