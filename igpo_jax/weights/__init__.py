"""Weights: Hugging Face folders, model folders, adapters."""
