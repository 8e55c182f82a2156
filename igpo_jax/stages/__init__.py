"""The two stages of a run."""
