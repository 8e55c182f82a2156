"""Batches of token arrays from problems."""
