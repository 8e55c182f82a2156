"""Comparison of RL training methods: trains the runs, collects their results, and writes a report."""
