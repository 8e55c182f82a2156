"""Masked diffusion: corruption, the supervised loss, samplers."""
