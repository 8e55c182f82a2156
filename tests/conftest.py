"""Eight virtual CPU devices for every test, and meshes over them."""

import math
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"

import jax
import pytest
from jax.sharding import AxisType, Mesh


def make_test_mesh(shape: tuple[int, int, int]) -> Mesh:
    return jax.make_mesh(
        shape, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[: math.prod(shape)]
    )


@pytest.fixture
def mesh_of():
    """shape -> a mesh over the first devices."""
    return make_test_mesh


@pytest.fixture
def mesh():
    """The mesh of one device."""
    return make_test_mesh((1, 1, 1))
