"""Device mesh with the axes (data, fsdp, tensor), and arrays sharded over it. Rows of a batch are sharded over (data, fsdp)."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from igpo_jax.runtime.checks import require
from igpo_jax.runtime.chips import find_devices

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")


def make_mesh(data: int = 1, fsdp: int = -1, tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh over all devices. The size of one axis may be -1, which means that this axis gets the remaining devices.
    The axis `data` is divided among TPU slices, so that only gradient sums cross the slower network between slices. Raises
    ValueError if two axes are -1, if the product of the sizes is not the number of devices, or if `data` is not a multiple of
    the number of slices."""
    devices = find_devices() if devices is None else devices
    sizes, number = [data, fsdp, tensor], len(devices)
    named = ", ".join(f"mesh.{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    valid = sizes.count(-1) <= 1 and all(size > 0 or size == -1 for size in sizes)
    require(valid, f"{named}: sizes are positive, and at most one may be -1 (the rest)")
    if -1 in sizes:
        sizes[sizes.index(-1)] = number // -math.prod(sizes)
    require(math.prod(sizes) == number, f"{named} does not multiply to the {number} devices present")
    slices = slice_count(devices)
    require(sizes[0] % slices == 0, f"{named}: the devices are {slices} slices; mesh.data must be a multiple of {slices}")
    if slices > 1:
        within = (sizes[0] // slices, sizes[1], sizes[2])
        placed = mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1), devices=devices)
    else:
        placed = mesh_utils.create_device_mesh(sizes, devices=devices)
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * 3)


def slice_count(devices: Sequence[jax.Device]) -> int:
    """Returns the number of TPU slices (groups of directly linked devices), or 1 for other devices."""
    return len({getattr(device, "slice_index", None) or 0 for device in devices if device.platform == "tpu"}) or 1


def batch_size_divisor(mesh: Mesh | AbstractMesh) -> int:
    """Returns the number of shards into which the rows of a batch are split. Batch sizes must be multiples of this number."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def shard_rows(x: jax.Array) -> jax.Array:
    """Inside jit, constrains the leading axis of an array to be sharded over the mesh axes (data, fsdp). Returns the array
    unchanged if no mesh is set."""
    return x if jax.sharding.get_abstract_mesh().empty else jax.lax.with_sharding_constraint(x, P(BATCH))


def split_rows(tree, parts: int):
    """Splits each array in a pytree along its first axis, [n, ...] -> [parts, n / parts, ...]. Each part takes every `parts`-th
    row, so that all devices work on each part."""
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), tree)


def join_rows(tree):
    """Inverts `split_rows`: joins the parts of each array in a pytree, [parts, n / parts, ...] -> [n, ...]."""
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]), tree)


def shard_batch(tree, mesh: Mesh):
    """Moves host arrays [n, ...] to devices with their rows sharded. The arrays must be equal on every process."""
    sharding = NamedSharding(mesh, P(BATCH))
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]), tree)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def to_host(tree):
    """Copies device arrays to host arrays. Every process gets the complete arrays."""

    def gather(x):
        is_local = not isinstance(x, jax.Array) or x.is_fully_addressable
        return np.asarray(x) if is_local else multihost_utils.process_allgather(x, tiled=True)

    return jax.tree.map(gather, tree)
