"""Estimates of the memory and time that a training run needs, made by compiling its programs."""
