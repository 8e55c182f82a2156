"""IGPO in JAX: reinforcement learning of masked-diffusion language models with inpainted hints (arXiv 2509.10396)."""
__version__ = "0.1.0"
