"""Frozen weights in int8: symmetric quantization with one float32 scale per output channel of each matrix.

Norm scales and biases keep their dtype, and the adapters (lora.py) keep float32. A matrix product casts the int8 values to the
compute dtype, which represents them exactly. It then multiplies the float32 product by the scales, so a dequantized matrix is
never stored."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from igpo_jax.model.sharding import RULES_IN_USE, Array, ParameterInfo, Params, constrain, gathered, partition

LARGEST = 127  # -128 is not used, so that the range is symmetric
EMBEDDING = ("vocab", "embed")  # logical axes of the embedding, which has a scale per token


class Int8Matrix(NamedTuple):
    """A quantized matrix, which is the product `values * scale`, or a stack of such matrices with one per layer. The fields
    hold arrays, or the shapes, shardings or logical axes of these arrays."""

    values: Any  # int8 [..., in, out]; the embedding: int8 [v, d]
    scale: Any  # float32 [..., 1, out]; the embedding: float32 [v, 1]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def T(self) -> "Int8Matrix":
        return Int8Matrix(self.values.T, self.scale.T)


Weight = jax.Array | Int8Matrix


def is_int8(w: Any) -> bool:
    return isinstance(w, Int8Matrix)


def quantize(w: jax.Array, axis: int) -> Int8Matrix:
    """Quantizes a matrix, [in, out], or the stacked matrices of all layers, [n, in, out], one after the other. `axis`, -2 or
    -1, is the axis that matrix products sum over. Each entry changes by at most half of the scale of its channel. If a channel
    contains NaN or infinite values, matrix products give NaN for this channel."""

    def one(w):
        w = w.astype(jnp.float32)
        # The smallest normal number, because CPUs and accelerators treat smaller ones as 0.
        scale = jnp.maximum(jnp.abs(w).max(axis=axis, keepdims=True) / LARGEST, jnp.finfo(jnp.float32).tiny)
        return Int8Matrix(jnp.round(w / scale).astype(jnp.int8), scale)

    return one(w) if w.ndim == 2 else jax.lax.map(one, w)


def dequantize(w: Int8Matrix) -> jax.Array:
    """Returns the matrix `values * scale` in float32."""
    return w.values * w.scale


def matmul(x: jax.Array, w: Weight) -> jax.Array:
    """Multiplies x, [..., i], by w, [i, o]. The operands have the dtype of x, and the result is float32."""
    values = w.values if isinstance(w, Int8Matrix) else w
    y = jnp.matmul(x, values.astype(x.dtype), preferred_element_type=jnp.float32)
    return y * w.scale if isinstance(w, Int8Matrix) else y


def take_rows(w: Weight, rows: Array) -> jax.Array:
    """Returns the given rows of the embedding matrix, [..., d], in the matrix's dtype, or in float32 if the matrix is
    quantized."""
    return w.values[rows] * w.scale[rows] if isinstance(w, Int8Matrix) else w[rows]


def summed_axis(axes: tuple[str, ...]) -> int:
    """Returns the axis that the matrix product sums over, given the logical axes of a matrix. All entries along this axis share
    one scale."""
    return -1 if axes == EMBEDDING else -2


def axes_of(axes: tuple[str, ...]) -> Int8Matrix:
    """Returns the logical axes of the values and of the scales as an `Int8Matrix`, given the logical axes `axes` of the
    matrix."""
    summed = len(axes) + summed_axis(axes)
    return Int8Matrix(axes, tuple("scale" if number == summed else axis for number, axis in enumerate(axes)))


def partition_of(w: Weight, axes: tuple[str, ...]) -> P | Int8Matrix:
    """Returns the `PartitionSpec` of a stored weight with the logical axes `axes`, for `jax.shard_map`."""
    return Int8Matrix(*map(partition, axes_of(axes))) if isinstance(w, Int8Matrix) else partition(axes)


def in_use(w: Weight, axes: tuple[str, ...], dtype: jnp.dtype) -> Weight:
    """Casts a weight to `dtype` and gathers it over the mesh, according to `RULES_IN_USE`. A quantized weight is not cast, but
    gathered in int8, and has no gradient."""
    if not isinstance(w, Int8Matrix):
        return gathered(w.astype(dtype), axes)
    return Int8Matrix(*(constrain(x, partition(part, RULES_IN_USE)) for x, part in zip(w, axes_of(axes), strict=True)))


def abstract_table(table: dict[str, Any], dtype: str, mesh: Mesh) -> Params:
    """Returns a copy of `table`, a nested dict, in which a `jax.ShapeDtypeStruct` with its sharding on `mesh` replaces every
    `ParameterInfo`. For a matrix, an `Int8Matrix` of two such structs replaces it. `dtype` is the dtype of the other
    parameters."""

    def leaf(shape, dtype, axes):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, partition(axes)))

    def place(info: ParameterInfo):
        if not info.is_matrix:
            return leaf(info.shape, dtype, info.axes)
        axes, scales = axes_of(info.axes), list(info.shape)
        scales[summed_axis(info.axes)] = 1
        return Int8Matrix(leaf(info.shape, jnp.int8, axes.values), leaf(tuple(scales), jnp.float32, axes.scale))

    return jax.tree.map(place, table)
