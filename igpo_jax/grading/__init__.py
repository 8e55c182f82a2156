"""Grading: text to verdict, without JAX."""
