"""The transformer, adapters, log-probabilities, sharding."""
