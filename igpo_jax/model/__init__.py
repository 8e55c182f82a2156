"""The network: parameters, forward pass, checkpoint formats."""
