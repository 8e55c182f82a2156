"""Sharding rules, which map each axis of a parameter to mesh axes. One set of rules applies to stored parameters, and another
set applies to parameters while a layer is computed."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

Params = dict[str, Any]
Array = jax.Array | np.ndarray  # data classes hold NumPy arrays outside of compiled programs

# Logical axis -> mesh axes. A missing axis raises KeyError instead of being replicated. The long axis of an adapter (lora.py)
# takes both mesh axes, because its other axis is short. "scale" is the axis of size 1 in the scales of int8 weights (int8.py).
SHARDING_RULES = {
    "layers": None, "vocab": "tensor", "embed": "fsdp", "heads": "tensor", "mlp": "tensor", "norm": None, "rank": None,
    "scale": None,
    "adapter of embed": ("fsdp", "tensor"), "adapter of heads": ("tensor", "fsdp"), "adapter of mlp": ("tensor", "fsdp"),
}  # fmt: skip
# Rules for weights while a layer is computed. The rows of activations are split over fsdp then, so weights must not be.
RULES_IN_USE = SHARDING_RULES | {
    "embed": None, "adapter of embed": None, "adapter of heads": "tensor", "adapter of mlp": "tensor"
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ParameterInfo:
    """Shape, logical axes (names that `SHARDING_RULES` maps to mesh axes) and initialization of a parameter. It is not a
    pytree, so that `jax.tree` functions treat it as a leaf."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    stddev: float | None  # None: ones (norm scales); 0: zeros (biases)

    @property
    def is_matrix(self) -> bool:
        return bool(self.stddev)


def abstract_table(table: dict[str, Any], dtype: str, mesh: Mesh) -> Params:
    """Returns a copy of `table`, a nested dict, in which a `jax.ShapeDtypeStruct` with its sharding on `mesh` replaces every
    `ParameterInfo`. Raises KeyError if a logical axis is missing in `SHARDING_RULES`."""

    def place(info: ParameterInfo):
        return jax.ShapeDtypeStruct(info.shape, dtype, sharding=NamedSharding(mesh, partition(info.axes)))

    return jax.tree.map(place, table)


def partition(axes: tuple[str, ...], rules=SHARDING_RULES) -> P:
    """Returns the `PartitionSpec` of an array with the logical axes `axes`, according to `rules`."""
    return P(*(rules[axis] for axis in axes))


def constrain(x: jax.Array, spec: P) -> jax.Array:
    return x if jax.sharding.get_abstract_mesh().empty else jax.lax.with_sharding_constraint(x, spec)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gathered(w: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """Gathers a weight with the logical axes `axes` inside jit, according to `RULES_IN_USE`. Without this function, XLA's
    partitioner would exchange the activations, which are larger. Cast the weight to the compute dtype first, so that fewer
    bytes are sent. The gradient of the weight is reduced and scattered in one step."""
    return constrain(w, partition(axes, RULES_IN_USE))


def _gathered_backward(axes, _, gradient):
    return (constrain(gradient, partition(axes)),)


gathered.defvjp(lambda w, axes: (gathered(w, axes), None), _gathered_backward)


def all_gather(x: jax.Array, axis: str) -> jax.Array:
    """Joins the parts of an array that the devices along the mesh axis `axis` hold, [n, ...] -> [n * size, ...]. Runs inside
    `jax.shard_map`.

    If several processes run on CPUs, the gradient is computed by an all-reduce instead of a reduce-scatter. The reason is a bug
    in Gloo, the library for collectives on CPUs: its reduce-scatter overwrites a buffer from which it is still sending, so that
    sums are sometimes wrong (jax-ml/jax#40830)."""
    if jax.default_backend() != "cpu" or not jax.distributed.is_initialized():
        return jax.lax.all_gather(x, axis, tiled=True)
    parts = jnp.zeros((jax.lax.axis_size(axis), *x.shape), x.dtype)
    return jax.lax.psum(parts.at[jax.lax.axis_index(axis)].set(x), axis).reshape(-1, *x.shape[1:])


def adapter_axes(part: str, row_axis: str, column_axis: str) -> tuple[str, str]:
    """Returns the logical axes of matrix "a" or "b" of an adapter for a weight with axes `row_axis` and `column_axis`."""
    return (f"adapter of {row_axis}", "rank") if part == "a" else ("rank", f"adapter of {column_axis}")


def shard_bytes(tree: Any) -> int:
    """Returns the number of bytes that one device holds for a tree of sharded arrays, given their shapes and shardings."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))
