"""Marks tests that compile for GPUs and need no GPU."""

import importlib.util

import pytest


def needs_gpu_compiler(test):
    """Marks a test that compiles for GPUs. Ignores a warning: JAX caches such programs, but cannot read them without a GPU."""
    installed = importlib.util.find_spec("jax_cuda12_plugin") is not None
    reason = 'the GPU compiler is not installed (extra "plan-gpu")'
    test = pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache entry")(test)
    return pytest.mark.gpu_compile(pytest.mark.skipif(not installed, reason=reason)(test))
