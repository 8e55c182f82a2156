"""Training state and optimizer."""
