"""Eight virtual CPU devices for every test, meshes over them, and one cache of compiled programs for all processes."""

import atexit
import gc
import math
import os
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling these tiny programs costs far more than running them: LLVM need not try hard.
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # pytest's own workers and the processes that tests start inherit it
    compiled = tempfile.TemporaryDirectory(prefix="igpo-tests-compiled-")
    atexit.register(compiled.cleanup)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import jax
import pytest
from jax.sharding import AxisType, Mesh


def make_test_mesh(shape: tuple[int, int, int]) -> Mesh:
    return jax.make_mesh(
        shape, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[: math.prod(shape)]
    )


@pytest.fixture(autouse=True, scope="module")
def programs_are_forgotten():
    """Every compiled program holds memory maps, of which Linux gives a process 65,530: all tests together need more."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def mesh_of():
    """shape -> a mesh over the first devices."""
    return make_test_mesh


@pytest.fixture
def mesh():
    """The mesh of one device."""
    return make_test_mesh((1, 1, 1))
