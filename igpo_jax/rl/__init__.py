"""The RL algorithm: rollouts, hints, likelihood estimators, objective and update."""
