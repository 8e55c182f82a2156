"""Bidirectional attention, with three back ends that `attend` can call. Their results agree at all positions except padding.
The back end xla runs everywhere. cudnn is NVIDIA's fused kernel. splash is JAX's TPU kernel, which never stores the matrix of
scores."""

from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from jax.sharding import PartitionSpec as P

from igpo_jax.model.sharding import Array
from igpo_jax.runtime.mesh import BATCH

Rope = tuple[jax.Array, jax.Array]  # sin and cos of the rotary angles, float32 [t, 1, h/2]
PLATFORMS = {"xla": ("cpu", "gpu", "tpu"), "cudnn": ("gpu",), "splash": ("tpu",)}
LANES = 128  # splash: the number of positions and the head size must be multiples of this
MASKED_SCORE = -1e30  # finite, so that a fully masked row is not NaN
LARGEST_SCORES = 2**28  # xla: most bytes of float32 scores that a device holds at a time, if no gradients are computed
LARGEST_BLOCK = 1024  # splash: most positions on each side of a block of scores, so that it fits into the vector memory


@flax.struct.dataclass
class KVCache:
    """Attention keys and values of all positions of each row. The rotary embedding has already been applied to the keys. The
    cache of a single layer has no layer axis. The head axis comes before the position axis. With the opposite order, matrix
    products on CPUs and GPUs would first copy all keys and values."""

    k: jax.Array  # [layers, b, k, t, h]
    v: jax.Array  # [layers, b, k, t, h]


@flax.struct.dataclass
class Window:
    """A window of consecutive positions in all rows of a batch, with cached keys and values for the other positions."""

    cache: KVCache
    start: Array  # int32 [], the window's first position in the row
    fresh_from: Array  # int32 [], position in the row; window positions before it also use the cache


def attend(q: jax.Array, k: jax.Array, v: jax.Array, attention_mask: Array, implementation: str) -> jax.Array:
    """Computes attention, softmax(q k^T / sqrt(h)) v, [b, t, n, h] in q's dtype, for b rows, t positions and n query heads of
    size h. Scores and softmax are float32. The results at padding positions are meaningless.

    Args:
        q: queries, [b, t, n, h].
        k, v: keys and values with m heads, [b, t, m, h]; n is a multiple of m.
        attention_mask: bool [b, t], True for positions that may be attended to. The back ends xla and cudnn also accept bool
            [b, t, t], True if the query (first t) may attend to the key (second t).
        implementation: name of the back end (xla, cudnn or splash)."""
    if implementation not in PLATFORMS:
        raise ValueError(f"attention={implementation!r} is not {', '.join(PLATFORMS)}; `fitting.fit_to_devices` replaces auto")
    if implementation == "splash":
        return splash_attention(q, k, v, attention_mask)
    (b, t, n, h), kv_heads = q.shape, k.shape[2]
    mask = attention_mask[:, None, None, :] if attention_mask.ndim == 2 else attention_mask[:, None]
    if implementation == "cudnn":  # cudnn requires a mask row for every query
        mask = jnp.broadcast_to(mask, (*mask.shape[:2], t, mask.shape[-1]))
        return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")
    if n == kv_heads:
        return _dense_attention(q, k, v, mask)
    # Query heads that share a key head become further queries of that head.
    q = q.reshape(b, t, kv_heads, -1, h).swapaxes(2, 3).reshape(b, -1, kv_heads, h)
    mask = mask if attention_mask.ndim == 2 else jnp.repeat(mask, n // kv_heads, axis=2)
    return _dense_attention(q, k, v, mask).reshape(b, t, -1, kv_heads, h).swapaxes(2, 3).reshape(b, t, n, h)


def attend_window(q: jax.Array, fresh: KVCache, window: Window, attention_mask: Array) -> jax.Array:
    """Computes attention from the queries in a window to all positions of their rows, [b, q, n, h] in q's dtype. Window
    positions at or after `window.fresh_from` use the keys and values in `fresh`, and all other positions use the cached keys
    and values. The result is the same as if the fresh keys and values were written into the cache, and the back end xla were
    called. Writing them would copy the whole cache in every layer. This function instead computes one softmax over the scores
    of the cached and of the fresh keys.

    Args:
        q: queries, [b, q, n, h].
        fresh: keys and values of the w positions of the window, [b, k, w, h]; n is a multiple of k.
        window: the window; its cache is that of one layer, [b, k, t, h].
        attention_mask: bool [b, t] or [b, q, t], as in `attend`."""
    (b, t, n, h), (_, kv_heads, size, _) = q.shape, fresh.k.shape
    shared = n // kv_heads  # query heads that share a key head; they become further queries of that head, as in `attend`
    queries = q.reshape(b, t, kv_heads, shared, h).swapaxes(1, 2).reshape(b, kv_heads, t * shared, h)
    mask = attention_mask[:, None, None] if attention_mask.ndim == 2 else jnp.repeat(attention_mask[:, None], shared, axis=2)
    position = jnp.arange(mask.shape[-1])
    replaced = (position >= jnp.maximum(window.start, window.fresh_from)) & (position < window.start + size)
    in_window = jax.lax.dynamic_slice_in_dim(mask & replaced, window.start, size, axis=-1)

    def scores(k, mask):
        products = jnp.einsum("bkqh,bkth->bkqt", queries, k, preferred_element_type=jnp.float32)
        return jnp.where(mask, products * h**-0.5, MASKED_SCORE)

    def weighted(p, v):
        return jnp.einsum("bkqt,bkth->bkqh", p.astype(v.dtype), v, preferred_element_type=jnp.float32)

    old, new = scores(window.cache.k, mask & ~replaced), scores(fresh.k, in_window)
    largest = jnp.maximum(old.max(-1, keepdims=True), new.max(-1, keepdims=True))
    old, new = jnp.exp(old - largest), jnp.exp(new - largest)
    total = old.sum(-1, keepdims=True) + new.sum(-1, keepdims=True)
    a = ((weighted(old, window.cache.v) + weighted(new, fresh.v)) / total).astype(q.dtype)
    return a.reshape(b, kv_heads, t, shared, h).swapaxes(1, 2).reshape(q.shape)


@jax.custom_vjp
def _dense_attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Computes attention, [b, t, n, h], of queries [b, t, n, h] to keys and values [b, s, n, h]. The mask is bool [b, 1, 1, s]
    or bool [b, 1, t, s]. The gradients use stored probabilities and the formulas of FlashAttention (arXiv 2205.14135, appendix
    B.2). Automatic differentiation would store and transpose more [t, s] matrices, and would take a fifth longer for a small
    model on a CPU. Gradients are meaningless for a query that may attend to no key. If no gradients are computed, JAX's own
    attention runs instead, because it moves fewer bytes on TPUs. If the scores of all queries would exceed `LARGEST_SCORES`
    bytes, the queries are processed in chunks. Even a few rows of thousands of tokens have gigabytes of scores."""
    b, t, n, h = q.shape
    chunks = _query_chunks(b, t, n, k.shape[1])
    if chunks == 1:
        return jax.nn.dot_product_attention(q, k, v, mask=mask)
    size = -(-t // chunks)

    def split(x, axis):  # puts chunks first; the last chunk is filled up with zeros
        padding = [(0, size * chunks - t if number == axis else 0) for number in range(x.ndim)]
        x = jnp.pad(x, padding)
        return jnp.moveaxis(x.reshape(*x.shape[:axis], chunks, size, *x.shape[axis + 1 :]), axis, 0)

    def of_chunk(chunk):
        queries, rows_of_mask = chunk
        return jax.nn.dot_product_attention(queries, k, v, mask=mask if rows_of_mask is None else rows_of_mask)

    a = jax.lax.map(of_chunk, (split(q, 1), None if mask.shape[2] == 1 else split(mask, 2)))
    return jnp.moveaxis(a, 0, 1).reshape(b, size * chunks, n, h)[:, :t]


def _query_chunks(rows: int, queries: int, heads: int, keys: int) -> int:
    """Returns the smallest number of chunks of queries for which the scores of one chunk take at most `LARGEST_SCORES` bytes on
    each device. The mesh splits rows and heads, but not queries."""
    mesh = jax.sharding.get_abstract_mesh()
    of_query = 4 * rows * heads * keys / (1 if mesh.empty else mesh.size)
    return -(-queries // min(queries, max(1, int(LARGEST_SCORES / of_query))))


def _dense_attention_forward(q, k, v, mask):
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    scores = jnp.einsum("bnth,bnsh->bnts", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    p = jax.nn.softmax(jnp.where(mask, scores, MASKED_SCORE)).astype(v.dtype)
    a = jnp.einsum("bnts,bnsh->bnth", p, v, preferred_element_type=jnp.float32)
    # In bfloat16 p does not sum to exactly 1; without the division, gradients of a row's scores would not sum to 0.
    mean_v = a / p.sum(-1, keepdims=True, dtype=jnp.float32)
    return a.astype(v.dtype).swapaxes(1, 2), (q, k, v, p, mean_v)


def _dense_attention_backward(kept, da):
    q, k, v, p, mean_v = kept
    da = da.swapaxes(1, 2)
    dp = jnp.einsum("bnth,bnsh->bnts", da, v, preferred_element_type=jnp.float32)
    mean_dp = (da * mean_v).sum(-1, keepdims=True)
    ds = (p * (dp - mean_dp) * q.shape[-1] ** -0.5).astype(q.dtype)
    dq = jnp.einsum("bnts,bnsh->bnth", ds, k)
    # Transposes the narrow operand and the result, because XLA's CPU backend would copy a transposed [t, s] matrix.
    dk, dv = (jnp.einsum("bnht,bnts->bnhs", x.swapaxes(2, 3), y) for x, y in ((q, ds), (da, p)))
    return dq.swapaxes(1, 2), dk.transpose(0, 3, 1, 2), dv.transpose(0, 3, 1, 2), None


_dense_attention.defvjp(_dense_attention_forward, _dense_attention_backward)


def splash_attention(q: jax.Array, k: jax.Array, v: jax.Array, attention_mask: Array, interpret: bool = False) -> jax.Array:
    """Computes the same attention as `attend` with JAX's splash kernel for TPUs. `shard_map` splits the rows over the mesh axes
    data and fsdp, and the heads over the axis tensor. Padding and tokens form two segments that do not attend to each other.
    `interpret` runs the kernel on any platform, but slowly. Raises ValueError if `attention_mask` has three axes, or if the
    number of positions or the head size is not a multiple of `LANES`."""
    if attention_mask.ndim != 2:
        raise ValueError(f"attention=splash takes which positions are padding, [b, t], not a mask {attention_mask.shape}")
    t, h = q.shape[1], q.shape[-1]
    if t % LANES or h % LANES:
        raise ValueError(f"attention=splash needs positions = {t} and head size = {h} to be multiples of {LANES}")
    block = max(size for size in range(LANES, min(t, LARGEST_BLOCK) + 1, LANES) if t % size == 0)

    def local(q, k, v, attention_mask):
        mask = splash_mask.MultiHeadMask([splash_mask.FullMask((t, t))] * q.shape[2])
        sizes = splash.BlockSizes(*[block] * 8)
        kernel = splash.make_splash_mha(mask, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret)
        segment = attention_mask.astype(jnp.int32)
        q, k, v = (jnp.swapaxes(x, 1, 2) for x in ((q.astype(jnp.float32) * h**-0.5).astype(q.dtype), k, v))
        a = jax.vmap(kernel)(q, k, v, splash.SegmentIds(segment, segment))
        return jnp.swapaxes(a, 1, 2)

    if jax.sharding.get_abstract_mesh().empty:
        return local(q, k, v, attention_mask)
    heads = P(BATCH, None, "tensor")
    # check_vma: pallas calls do not declare the axes over which their results vary.
    sharded = jax.shard_map(local, in_specs=(heads, heads, heads, P(BATCH)), out_specs=heads, check_vma=False)
    return sharded(q, k, v, attention_mask)


class RopeScaling(NamedTuple):
    """Scaling of the rotary angles in Llama 3.1 and later: slow rotations become slower by `factor`."""

    factor: float
    low: float  # rotations over `original` positions; slower ones are scaled by the whole factor
    high: float  # faster ones are not scaled, and between `low` and `high` the scale is interpolated
    original: int  # positions


def rope_table(positions: Array, head_size: int, theta: float, scaling: RopeScaling | None = None) -> Rope:
    """Returns the sines and cosines of the rotary angles at t positions, both float32 [t, 1, h/2] for head size h."""
    exponents = jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size
    speeds = theta**-exponents  # radians per position
    if scaling:
        rotations = scaling.original * speeds / (2 * jnp.pi)
        unscaled = jnp.clip((rotations - scaling.low) / (scaling.high - scaling.low), 0, 1)
        speeds = speeds * (unscaled + (1 - unscaled) / scaling.factor)
    angles = positions.astype(jnp.float32)[:, None] * speeds
    return jnp.sin(angles)[:, None, :], jnp.cos(angles)[:, None, :]


def rotate(x: jax.Array, sin: jax.Array, cos: jax.Array) -> jax.Array:
    """Applies the rotary embedding in float32, and casts back to the dtype of x. Each entry in the first half of a head is
    paired with the corresponding entry in the second half."""
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
