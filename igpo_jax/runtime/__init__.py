"""Devices, processes, files, signals and statistics; independent of runs."""
