"""Marks tests that compile for GPUs without one."""

import importlib.util

import pytest


def needs_gpu_compiler(test):
    installed = importlib.util.find_spec("jax_cuda12_plugin") is not None
    reason = 'the GPU compiler is not installed (extra "plan-gpu")'
    return pytest.mark.gpu_compile(pytest.mark.skipif(not installed, reason=reason)(test))
