"""Comparison of RL training methods: the runs to train, their results, and a report."""
