"""Grading of completions, from text to a verdict, without JAX."""
