"""Evaluation on benchmarks: protocols, completions with verdicts, results, comparisons."""
