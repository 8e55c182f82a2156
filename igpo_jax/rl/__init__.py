"""The way of one batch: rollout -> likelihood -> objective -> step."""
