"""IGPO in JAX: reinforcement learning for masked diffusion language models with inpainted hints (arXiv 2509.10396)."""

__version__ = "0.1.0"
__all__ = ["Completion", "DiffusionLM", "Score", "grade", "load"]


def __dir__() -> list[str]:
    """Returns the names of this module and of the Python API, so that completion in IPython also shows names that `__getattr__`
    has not imported yet."""
    return sorted({*globals(), *__all__})


def __getattr__(name: str):
    """Imports the Python API when it is first used, so that processes that only grade completions do not import jax."""
    if name == "grade":
        from igpo_jax.grading import grade

        return grade
    if name in __all__:
        from igpo_jax import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
