"""Grading of completions: answer extraction and equivalence."""
