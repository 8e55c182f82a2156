"""Training state, optimizer and the policy."""
