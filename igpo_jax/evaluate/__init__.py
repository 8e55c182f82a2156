"""Evaluation: protocols, completions with their verdicts, the numbers that follow, and comparisons."""
