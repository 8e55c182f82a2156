"""Evaluation of models on benchmarks, and comparison of evaluations."""
