"""LLaDA's bidirectional transformer, written as pure functions on parameters that are stacked over layers.

Shapes use these letters: b rows, t positions, d width, n query heads, k key/value heads, h head size, f MLP width, v
vocabulary. The parameters are a nested dict. `parameter_table` alone defines their shapes, logical axes and initializers, and
`init`, `abstract` and `shardings` are derived from it."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from igpo_jax.model import int8
from igpo_jax.model.attention import PLATFORMS, KVCache, Rope, RopeScaling, Window, attend, attend_window, rope_table, rotate
from igpo_jax.model.int8 import Int8Matrix, Weight
from igpo_jax.model.sharding import Array, ParameterInfo, Params, abstract_table, adapter_axes, constrain
from igpo_jax.runtime.checks import MOST_IDS
from igpo_jax.runtime.mesh import BATCH, batch_size_divisor, shard_rows

MOST_NUMBERS = 1 << 44  # in a matrix of all layers; XLA ends the process if a product of sizes overflows

OutSlice = tuple[Any, int] | None  # first position, int or int32 [], and number of positions; None: all positions
AUTO = "auto"  # value of `ModelConfig.attention`
FEW_LAYERS = 4  # see `_is_unrolled`
KEY_VALUES = P(BATCH, "tensor")  # partition of one layer's keys or values
SUM = "sum over tensor"  # name for the policy of recomputation
SUMMED_OVER_TENSOR = ("attention_out", "down")  # matrices whose rows are split over the mesh axis tensor


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Configuration of the network's shape and numerics. It is hashable, so it can be a static argument of jitted functions."""

    vocab_size: int
    mask_id: int
    eos_id: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    mlp_width: int
    rope_theta: float = 500_000.0
    rope_scaling: RopeScaling | None = None
    norm_epsilon: float = 1e-5
    tied_head: bool = False
    head_dim: int | None = None  # None: width / heads
    qkv_bias: bool = False  # of the projections to queries, keys and values
    qk_norm: bool = False  # RMSNorm of every query and key head, before the rotary embedding
    shift: bool = False  # position i predicts token i + 1, as in autoregressive models
    eot_id: int | None = None  # end of a turn, if the vocabulary has one
    # Ranges (first, end) of the ids that, like MASK, are never drawn, see `tokenizers.ids_never_drawn`. () without a tokenizer.
    never_drawn: tuple[tuple[int, int], ...] = ()
    param_dtype: str = "float32"
    base_dtype: str = ""  # of frozen matrices under adapters: "int8" (see int8.py), or "" for param_dtype
    compute_dtype: str = "float32"
    remat: str = "none"  # what the backward pass recomputes. none: nothing; dots: all but products with weights; full: layers
    attention: str = "xla"  # xla | cudnn | splash, see attention.py; or auto, which `fitting.fit_to_devices` replaces
    head_chunk: int = 1024  # positions whose logits exist at a time in `logprobs.token_scores`; 0: all positions

    def __post_init__(self):
        for name in ("width", "layers", "heads", "kv_heads", "mlp_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.vocab_size > MOST_IDS:
            raise ValueError(f"vocab_size={self.vocab_size}; at most {MOST_IDS} ids are possible")
        # Beyond these limits, angles and norms overflow in float32, or are all equal.
        for name, least, most in (("rope_theta", 1, 1e15), ("norm_epsilon", 1e-30, 1)):
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name}={getattr(self, name)} must be from {least} to {most}")
        numbers = max(
            self.layers * self.width * max(self.width, self.query_width, self.mlp_width), self.vocab_size * self.width
        )
        if numbers > MOST_NUMBERS:
            raise ValueError(
                f"layers, width, mlp_width or vocab_size: a matrix of all layers has {numbers:.3g} numbers; at most {MOST_NUMBERS:.3g}"
            )
        if self.head_chunk < 0:
            raise ValueError(f"head_chunk={self.head_chunk} must not be negative")
        if self.head_dim is None and self.width % self.heads:
            raise ValueError(f"width={self.width} must divide into heads={self.heads} heads of even size")
        if self.head_size < 1 or self.head_size % 2:
            raise ValueError(f"the size of a head, {self.head_size} (width / heads, or head_dim), must be even")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}")
        for name in ("param_dtype", "compute_dtype"):
            if getattr(self, name) not in ("float32", "bfloat16"):
                raise ValueError(f"{name}={getattr(self, name)!r} is not 'float32' or 'bfloat16'")
        if self.base_dtype not in ("", "int8"):
            raise ValueError(f"base_dtype={self.base_dtype!r} is not '' or 'int8'")
        if self.remat not in ("none", "full", "dots"):
            raise ValueError(f"remat={self.remat!r} is not none, full or dots")
        if self.attention not in (AUTO, *PLATFORMS):
            raise ValueError(f"attention={self.attention!r} is not {', '.join((AUTO, *PLATFORMS))}")

    @property
    def head_size(self) -> int:
        return self.head_dim or self.width // self.heads

    @property
    def query_width(self) -> int:
        return self.heads * self.head_size

    @property
    def excluded(self) -> int:
        """Number of token ids in `never_drawn`."""
        return sum(end - first for first, end in self.never_drawn)


def parameter_table(cfg: ModelConfig) -> dict[str, Any]:
    """Returns a nested dict with the `ParameterInfo` of every parameter (docs/method.md section 3). Matrices are [in, out]."""
    layers, width, kv_width, scale = cfg.layers, cfg.width, cfg.kv_heads * cfg.head_size, 1 / math.sqrt(cfg.width)
    # Residual branches start small, so that the stream's variance does not grow with depth.
    out_scale = 1 / math.sqrt(2 * layers)

    def matrix(rows, columns, axes, stddev):
        return ParameterInfo((layers, rows, columns), ("layers", *axes), stddev)

    table: dict[str, Any] = {
        "embedding": ParameterInfo((cfg.vocab_size, width), ("vocab", "embed"), scale if cfg.tied_head else 1.0),
        "blocks": {
            "attention_norm": ParameterInfo((layers, width), ("layers", "norm"), None),
            "query": matrix(width, cfg.query_width, ("embed", "heads"), scale),
            "key": matrix(width, kv_width, ("embed", "heads"), scale),
            "value": matrix(width, kv_width, ("embed", "heads"), scale),
            "attention_out": matrix(cfg.query_width, width, ("heads", "embed"), out_scale * (1 / math.sqrt(cfg.query_width))),
            "mlp_norm": ParameterInfo((layers, width), ("layers", "norm"), None),
            "gate": matrix(width, cfg.mlp_width, ("embed", "mlp"), scale),
            "up": matrix(width, cfg.mlp_width, ("embed", "mlp"), scale),
            "down": matrix(cfg.mlp_width, width, ("mlp", "embed"), out_scale / math.sqrt(cfg.mlp_width)),
        },
        "final_norm": ParameterInfo((width,), ("norm",), None),
    }
    if cfg.qkv_bias:
        for name, columns in (("query", cfg.query_width), ("key", kv_width), ("value", kv_width)):
            table["blocks"][f"{name}_bias"] = ParameterInfo((layers, columns), ("layers", "heads"), 0.0)
    if cfg.qk_norm:
        for name in ("query", "key"):
            table["blocks"][f"{name}_norm"] = ParameterInfo((layers, cfg.head_size), ("layers", "norm"), None)
    if not cfg.tied_head:
        table["head"] = ParameterInfo((width, cfg.vocab_size), ("embed", "vocab"), scale)
    return table


def init(key: jax.Array, cfg: ModelConfig) -> Params:
    """Returns random parameters. To create them sharded, use `jax.jit` with `out_shardings=shardings(cfg, mesh)`."""
    infos, treedef = jax.tree.flatten(parameter_table(cfg))

    def initialize(key, info):
        if info.stddev is None:
            return jnp.ones(info.shape, cfg.param_dtype)
        return (info.stddev * jax.random.normal(key, info.shape)).astype(cfg.param_dtype)

    return jax.tree.unflatten(treedef, map(initialize, jax.random.split(key, len(infos)), infos))


def abstract(cfg: ModelConfig, mesh: Mesh) -> Params:
    """Returns a `jax.ShapeDtypeStruct` for every parameter of the network, with its sharding on `mesh`."""
    return abstract_table(parameter_table(cfg), cfg.param_dtype, mesh)


def abstract_base(cfg: ModelConfig, mesh: Mesh) -> Params:
    """Returns the shapes, dtypes and shardings of the network's parameters when they are frozen under adapters. Matrices then
    have the dtype `cfg.base_dtype`, if it is set."""
    table = parameter_table(cfg)
    return int8.abstract_table(table, cfg.param_dtype, mesh) if cfg.base_dtype else abstract(cfg, mesh)


def shardings(cfg: ModelConfig, mesh: Mesh) -> Params:
    """Returns the `NamedSharding` of every parameter of the network on `mesh`."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract(cfg, mesh))


def weight_decay_mask(cfg: ModelConfig) -> Params:
    """Returns AdamW's weight-decay mask: True for matrices, False for norm scales and biases, even if they are stacked over
    layers."""
    return jax.tree.map(lambda info: info.is_matrix, parameter_table(cfg))


def forward(
    params: Params,
    tokens: Array,
    attention_mask: Array,
    cfg: ModelConfig,
    out_slice: OutSlice = None,
    window: Window | None = None,
) -> jax.Array:
    """Runs the transformer and returns its hidden states after the final norm, [b, t, d] in the compute dtype. `unembed` turns
    hidden states into logits. There is no causal mask, and the result at index i predicts token i (docs/method.md section 3).
    If `cfg.shift` is True, the result at index i is the hidden state of position i - 1, or of position 0 if i = 0.

    Args:
        tokens: input tokens, int32 [b, t] for b rows and t positions.
        attention_mask: bool [b, t], False for left padding, which no position attends to. Alternatively bool [b, t, t], True if
            the query (first t) may attend to the key (second t). Positions count from the start of the padded row, but padding
            does not change the result, because rotary embeddings are relative.
        out_slice: the positions whose hidden states are returned. If `cfg.shift` is True, it must not begin at 0.
        window: if given, `tokens` hold only a window of each row, and `window.cache` holds the keys and values of whole rows.
            `attention_mask` covers whole rows, and `out_slice` counts from the start of the window. Do not use the hidden
            states of positions before `window.fresh_from`: their keys and values come from the cache and may be outdated."""
    return _run_layers(params, tokens, attention_mask, cfg, out_slice, window)[0]


def prefill(
    params: Params, tokens: Array, attention_mask: Array, cfg: ModelConfig, out_slice: OutSlice = None
) -> tuple[jax.Array, KVCache]:
    """Runs `forward` on whole rows. Returns the hidden states, and the attention keys and values of all positions."""
    return _run_layers(params, tokens, attention_mask, cfg, out_slice, return_cache=True)


def _run_layers(
    params: Params,
    tokens: Array,
    attention_mask: Array,
    cfg: ModelConfig,
    out_slice: OutSlice,
    window: Window | None = None,
    return_cache: bool = False,
) -> tuple[jax.Array, Any]:
    positions = jnp.arange(tokens.shape[1])
    if cfg.shift and out_slice is not None:
        out_slice = (out_slice[0] - 1, out_slice[1])
    if window is not None:
        positions = window.start + positions
        cfg = dataclasses.replace(cfg, attention="xla")  # the kernels need whole rows, and a window has few scores
    rope, unrolled = rope_table(positions, cfg.head_size, cfg.rope_theta, cfg.rope_scaling), _is_unrolled(cfg)

    def step(x, layer, out_slice=None):
        weights, cached = layer
        layer_window = None if window is None else window.replace(cache=cached)
        x, kv = _block(x, weights, attention_mask, rope, cfg, out_slice, layer_window)
        return shard_rows(x), jax.tree.map(lambda y: constrain(y, KEY_VALUES), kv) if return_cache else None

    def with_remat(step):
        if cfg.remat == "none":
            return step
        policies = jax.checkpoint_policies
        products = policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names(SUM)
        policy = {"full": policies.nothing_saveable, "dots": policies.save_from_both_policies(*products)}[cfg.remat]
        return jax.checkpoint(step, policy=policy, prevent_cse=unrolled)

    x = embed(params["embedding"], tokens, jnp.dtype(cfg.compute_dtype))
    layers = params["blocks"], None if window is None else window.cache
    if unrolled:
        caches = []
        for number in range(cfg.layers):
            run_layer = with_remat(functools.partial(step, out_slice=out_slice if number == cfg.layers - 1 else None))
            x, kv = run_layer(x, jax.tree.map(lambda w, number=number: w[number], layers))
            caches.append(kv)
        cache = jax.tree.map(lambda *kv: jnp.stack(kv), *caches)
    else:
        x, cache = jax.lax.scan(with_remat(step), x, layers)
        x = _only(x, out_slice)
    if cfg.shift and out_slice is None:
        x = jnp.concatenate([x[:, :1], x[:, :-1]], axis=1)
    return rms_norm(x, params["final_norm"], cfg.norm_epsilon), cache


def _is_unrolled(cfg: ModelConfig) -> bool:
    """Returns whether the layers are unrolled instead of scanned. If they are unrolled, the last layer computes only the
    requested output positions, which saves a quarter of an update's time on a CPU."""
    return cfg.layers <= FEW_LAYERS and cfg.attention == "xla"


def _only(x: Any, out_slice: OutSlice, axis: int = 1) -> Any:
    return x if out_slice is None else jax.lax.dynamic_slice_in_dim(x, *out_slice, axis=axis)


def embed(table: Weight, tokens: Array, dtype: jnp.dtype) -> jax.Array:
    """Looks up tokens, int32 [b, t], in the embedding matrix [v, d], and returns their embeddings, [b, t, d], in `dtype`. On a
    mesh, every device holds only some columns of the matrix. It looks up these columns for the tokens of all devices along the
    mesh axis fsdp. An all-to-all exchange then gives each device all columns for its own tokens, so only activations are sent.
    Without this code, XLA's partitioner would gather the whole matrix on every device."""

    def local(table, tokens):
        tokens = jax.lax.all_gather(tokens, "fsdp", tiled=True)
        index = tokens - jax.lax.axis_index("tensor") * table.shape[0]
        here = (index >= 0) & (index < table.shape[0])
        x = jnp.where(here[..., None], int8.take_rows(table, jnp.clip(index, 0, table.shape[0] - 1)), 0).astype(dtype)
        x = jax.lax.psum(x, "tensor")  # one device has the row, the others add zeros
        return jax.lax.all_to_all(x, "fsdp", split_axis=0, concat_axis=2, tiled=True)

    mesh, rows = jax.sharding.get_abstract_mesh(), tokens.shape[0]
    if mesh.empty:
        return int8.take_rows(table, tokens).astype(dtype)
    tokens = jnp.pad(tokens, ((0, -rows % batch_size_divisor(mesh)), (0, 0)))
    specs = (int8.partition_of(table, ("vocab", "embed")), P(BATCH))
    return jax.shard_map(local, in_specs=specs, out_specs=P(BATCH))(table, tokens)[:rows]


def unembed(params: Params, hidden: jax.Array, cfg: ModelConfig) -> jax.Array:
    """Computes logits, float32 [..., v], from hidden states, [..., d], with operands in the compute dtype and float32 sums."""
    return project_to_vocabulary(hidden, int8.in_use(head_matrix(params, cfg), ("embed", "vocab"), hidden.dtype))


def head_matrix(params: Params, cfg: ModelConfig) -> Weight:
    """Returns the matrix [d, v] that turns hidden states into logits. If embeddings are tied, it is the transposed
    embedding."""
    return params["embedding"].T if cfg.tied_head else params["head"]


def project_to_vocabulary(hidden: jax.Array, head: Weight) -> jax.Array:
    """Multiplies hidden states, [..., d], by the output matrix `head`, [d, v], and returns logits, float32 [..., v]."""
    return int8.matmul(hidden, head)


def forward_flops(cfg: ModelConfig, positions: int, logits: int, attended: int | None = None) -> int:
    """Returns the FLOPs of the matrix products in a forward pass of one row, including the logits. A multiply-add counts as two
    FLOPs. `positions` is the number of computed positions, `logits` is the number of positions with logits, and `attended` is
    the number of keys per query (by default `positions`)."""
    keys = 2 * cfg.width * cfg.kv_heads * cfg.head_size
    others = 2 * cfg.width * cfg.query_width + 3 * cfg.width * cfg.mlp_width
    others += 2 * (positions if attended is None else attended) * cfg.query_width  # scores, and the weighted sum of values
    in_last = logits if _is_unrolled(cfg) else positions
    layers = cfg.layers * positions * keys + ((cfg.layers - 1) * positions + in_last) * others
    return 2 * (layers + logits * cfg.width * cfg.vocab_size)


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    """Applies RMSNorm with float32 statistics. Casts to x's dtype before scaling, as LLaDA does (docs/method.md section 3)."""
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + epsilon)
    return normed.astype(x.dtype) * scale.astype(x.dtype)


def _block(
    x: jax.Array, layer: Params, attention_mask: Array, rope: Rope, cfg: ModelConfig, out_slice: OutSlice, window: Window | None
) -> tuple[jax.Array, KVCache]:
    """Runs one transformer layer. Returns its output at the positions `out_slice`, and its keys and values at all positions."""
    layer = _for_use(layer, cfg, x.dtype)
    with jax.named_scope("attention"):
        h = rms_norm(x, layer["attention_norm"], cfg.norm_epsilon)
        a, kv = _attention(h, layer, attention_mask, rope, cfg, out_slice, window)
        x = _only(x, out_slice) + a
    with jax.named_scope("mlp"):
        h = rms_norm(x, layer["mlp_norm"], cfg.norm_epsilon)
        x = x + _linear(jax.nn.silu(_linear(h, layer, "gate")) * _linear(h, layer, "up"), layer, "down")
    return checkpoint_name(x, "block"), kv


def _attention(
    h: jax.Array, layer: Params, attention_mask: Array, rope: Rope, cfg: ModelConfig, out_slice: OutSlice, window: Window | None
) -> tuple[jax.Array, KVCache]:
    def heads(x, name, number):
        y = _linear(x, layer, name)
        y = y + layer[f"{name}_bias"] if cfg.qkv_bias else y
        y = y.reshape(*x.shape[:2], number, cfg.head_size)
        return rms_norm(y, layer[f"{name}_norm"], cfg.norm_epsilon) if cfg.qk_norm and name != "value" else y

    k, v = rotate(heads(h, "key", cfg.kv_heads), *rope), heads(h, "value", cfg.kv_heads)
    kv = KVCache(k.swapaxes(1, 2), v.swapaxes(1, 2))
    if out_slice is not None:
        h, rope = _only(h, out_slice), (_only(rope[0], out_slice, axis=0), _only(rope[1], out_slice, axis=0))
        attention_mask = attention_mask if attention_mask.ndim == 2 else _only(attention_mask, out_slice)
    q = rotate(heads(h, "query", cfg.heads), *rope)
    if window is None:
        a = attend(q, k, v, attention_mask, cfg.attention)
    else:
        a = attend_window(q, kv, window, attention_mask)
    return _linear(a.reshape(*h.shape[:2], cfg.query_width), layer, "attention_out"), kv


def _for_use(layer: Params, cfg: ModelConfig, dtype: jnp.dtype) -> Params:
    """Casts the weights and adapters of one layer to `dtype`, and gathers them over the mesh. Int8 matrices are gathered, but
    not cast."""
    table = parameter_table(cfg)["blocks"]

    def ready(path, w):
        target, *part = (key.key for key in path if key.key != "adapters")
        axes = table[target].axes[1:]
        return int8.in_use(w, adapter_axes(*part, *axes) if part else axes, dtype)

    return jax.tree.map_with_path(ready, layer, is_leaf=int8.is_int8)


def _linear(x: jax.Array, layer: Params, name: str) -> jax.Array:
    """Multiplies x, [b, t, i], by the layer's matrix `name`, [i, o]. If the matrix has an adapter (lora.py), adds the product
    of x and the adapter. The axes b and t of x are merged first, because XLA's CPU backend computes the weight gradient far
    more slowly with two batch axes."""
    rows = x.reshape(-1, x.shape[-1])
    weight, adapter = layer[name], layer.get("adapters", {}).get(name)
    if adapter is None and not isinstance(weight, Int8Matrix):
        y = rows @ weight
    elif name in SUMMED_OVER_TENSOR and (shares := _shares_of_sum(x.dtype)) > 1:
        y = _sum_of_rounded(rows, weight, adapter, shares)
    else:
        # Rounds once, after the sum of both products: the adapter's part is small at first, and a rounded product would
        # absorb it.
        y = _float32_product(rows, weight, adapter).astype(x.dtype)
    return y.reshape(*x.shape[:-1], -1)


def _shares_of_sum(dtype: jnp.dtype) -> int:
    """Returns the number of devices on the mesh axis tensor, or 1 if sums over this axis must not be rounded to `dtype`."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty or dtype != jnp.bfloat16 else mesh.shape["tensor"]


def _sum_of_rounded(x: jax.Array, weight: Weight, adapter: Params | None, shares: int) -> jax.Array:
    """Multiplies x, [m, i], by a matrix, [i, o], and by its adapter, if there is one. Returns the sum of the products in the
    dtype of x. The rows of the matrix are split over the `shares` devices of the mesh axis tensor. Every device rounds its
    share of the sum to the dtype of x before the devices exchange their shares, which halves the bytes. For x @ w, XLA itself
    rounds before the exchange, but not for products with a float32 result."""

    def split(w):
        return w.reshape(shares, -1, w.shape[-1])

    def product(x, w, a):
        w = weight._replace(values=w) if isinstance(weight, Int8Matrix) else w
        return _float32_product(x, w, adapter and {"a": a, "b": adapter["b"]})

    w = split(weight.values if isinstance(weight, Int8Matrix) else weight)
    a = adapter and split(adapter["a"])
    parts = jax.vmap(product, (1, 0, 0))(x.reshape(len(x), shares, -1), w, a).astype(x.dtype)
    # jnp.sum would convert to float32.
    total = jax.lax.reduce(constrain(parts, P("tensor", BATCH)), jnp.zeros((), x.dtype), jax.lax.add, (0,))
    return checkpoint_name(total, SUM)


def _float32_product(x: jax.Array, weight: Weight, adapter: Params | None) -> jax.Array:
    """Multiplies x, [m, i], by a matrix, [i, o], and by its adapter, if there is one. Returns the sum of the products in
    float32."""
    y = _product(x, weight)
    return y if adapter is None else y + _product(x @ adapter["a"], adapter["b"])


@jax.custom_vjp
def _product(x: jax.Array, w: Weight) -> jax.Array:
    """Multiplies x, [m, i], by w, [i, o], with a float32 result. The gradients have the dtype of x, as they do for x @ w. The
    backward pass casts an int8 matrix again instead of keeping the cast copy, and returns no gradient for the matrix."""
    return int8.matmul(x, w)


def _product_backward(operands, gradient):
    x, w = operands
    if isinstance(w, Int8Matrix):
        return (gradient * w.scale).astype(x.dtype) @ w.values.T.astype(x.dtype), None
    gradient = gradient.astype(x.dtype)
    return gradient @ w.T, x.T @ gradient


_product.defvjp(lambda x, w: (_product(x, w), (x, w)), _product_backward)
