"""Sharding rules: mesh axes over which every parameter is split, at rest and in use."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

Params = dict[str, Any]
Array = jax.Array | np.ndarray  # structs hold host arrays outside of compiled programs, device arrays inside

# Logical axis -> mesh axes. A missing axis is an error, not silently replicated.
SHARDING_RULES = {
    "layers": None,
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "mlp": "tensor",
    "norm": None,
    "rank": None,
    # Adapters (lora.py): their other axis is short, so these take both mesh axes.
    "adapter of embed": ("fsdp", "tensor"),
    "adapter of heads": ("tensor", "fsdp"),
    "adapter of mlp": ("tensor", "fsdp"),
}

# Exceptions while a layer is computed: rows are split over fsdp then, so weights must not be.
RULES_IN_USE = SHARDING_RULES | {
    "embed": None,
    "adapter of embed": None,
    "adapter of heads": "tensor",
    "adapter of mlp": "tensor",
}


@dataclasses.dataclass(frozen=True)
class ParameterInfo:
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    stddev: float | None  # None: ones (norm scales)


def abstract_table(table: dict[str, Any], dtype: str, mesh: Mesh) -> Params:
    """`jax.ShapeDtypeStruct` of every entry of a table. Raises KeyError for a logical axis that `SHARDING_RULES` lacks."""

    def place(info: ParameterInfo):
        return jax.ShapeDtypeStruct(info.shape, dtype, sharding=NamedSharding(mesh, partition(info.axes)))

    return jax.tree.map(place, table, is_leaf=lambda x: isinstance(x, ParameterInfo))


def partition(axes: tuple[str, ...], rules=SHARDING_RULES) -> P:
    """PartitionSpec of an array with these logical axes."""
    return P(*(rules[axis] for axis in axes))


def constrain(x: jax.Array, spec: P) -> jax.Array:
    return x if jax.sharding.get_abstract_mesh().empty else jax.lax.with_sharding_constraint(x, spec)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gathered(w: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """Gathers a weight with these logical axes inside jit, by `RULES_IN_USE`. The partitioner alone would exchange activations,
    which are larger. Cast before, to send fewer bytes. Gradients are reduced and scattered in one step."""
    return constrain(w, partition(axes, RULES_IN_USE))


def _gathered_forward(w, axes):
    return gathered(w, axes), None


def _gathered_backward(axes, _, gradient):
    return (constrain(gradient, partition(axes)),)


gathered.defvjp(_gathered_forward, _gathered_backward)


def adapter_axes(part: str, row_axis: str, column_axis: str) -> tuple[str, str]:
    """Logical axes of part "a" or "b" of the adapter of a matrix with these axes."""
    return (f"adapter of {row_axis}", "rank") if part == "a" else ("rank", f"adapter of {column_axis}")
