"""The network: transformer, low-rank adapters, log-probabilities and sharding."""
