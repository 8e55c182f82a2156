"""Masked diffusion: the corruption process, the supervised loss and the samplers."""
