"""The supervised and the RL stage."""
