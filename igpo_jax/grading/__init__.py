"""Grading of completions. Does not import JAX."""
