"""IGPO in JAX: reinforcement learning of masked-diffusion language models with inpainted hints (arXiv 2509.10396)."""

from igpo_jax.inference import Completion, DiffusionLM, Score, load

__version__ = "0.1.0"
__all__ = ["Completion", "DiffusionLM", "Score", "load"]
