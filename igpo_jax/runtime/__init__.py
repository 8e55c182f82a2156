"""Utilities for devices, processes, files, signals and statistics, independent of any run."""
