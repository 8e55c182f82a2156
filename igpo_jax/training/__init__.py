"""Training state, optimizer and policy."""
