"""Low-rank adapters (LoRA), kept in a second pytree beside the frozen parameters.

An adapter adds (alpha / rank) A B to a matrix W. Initially A, [in, rank], is random and B, [rank, out], is zero, so that
training starts from the frozen model. There is no dropout, because with dropout the policy ratio would differ from 1 before the
first update (docs/method.md sections 10 and 12)."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from igpo_jax.model import transformer
from igpo_jax.model.sharding import ParameterInfo, Params, adapter_axes
from igpo_jax.model.transformer import ModelConfig
from igpo_jax.runtime.checks import positive, require

ALL_LINEAR = ("query", "key", "value", "attention_out", "gate", "up", "down")
REFERENCE_CODE_TARGETS = ("query", "key", "value", "up")  # of the released code's seven targets, only these take effect


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Configuration of low-rank adapters: the rank, the scale and the matrices to adapt. It is hashable, so it can be a static
    argument of jitted functions."""

    rank: int  # of the adapters; 0 in a configuration: no adapters, all parameters are trained
    alpha: float  # adapters are scaled by alpha / rank
    # Adapted matrices, some of query, key, value, attention_out, gate, up, down
    targets: tuple[str, ...] = ALL_LINEAR

    def __post_init__(self):
        object.__setattr__(self, "targets", tuple(self.targets))  # config files give lists
        require(self.rank >= 1, f"lora.rank={self.rank} must be at least 1")
        require(not positive(self.alpha), f"lora.alpha={self.alpha}{positive(self.alpha)}")
        if not self.targets or len(set(self.targets)) < len(self.targets) or not set(self.targets) <= set(ALL_LINEAR):
            raise ValueError(f"lora.targets={self.targets!r} must be some of {', '.join(ALL_LINEAR)}, each once")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def adapter_table(cfg: ModelConfig, lora: LoraConfig) -> dict[str, dict[str, ParameterInfo]]:
    """Returns a `ParameterInfo` for each adapter matrix, as {target: {"a": [layers, in, rank], "b": [layers, rank, out]}}."""
    blocks = transformer.parameter_table(cfg)["blocks"]
    table = {}
    for target in lora.targets:
        (layers, rows, columns), axes = blocks[target].shape, blocks[target].axes[1:]
        table[target] = {
            "a": ParameterInfo((layers, rows, lora.rank), ("layers", *adapter_axes("a", *axes)), 1 / math.sqrt(rows)),
            "b": ParameterInfo((layers, lora.rank, columns), ("layers", *adapter_axes("b", *axes)), 0.0),
        }
    return table


def init(key: jax.Array, cfg: ModelConfig, lora: LoraConfig) -> Params:
    """Returns initial adapters in float32: A is uniform in [-1/sqrt(in), 1/sqrt(in)), as in the PEFT library, and B is zero."""
    adapters = {}
    for number, (target, infos) in enumerate(adapter_table(cfg, lora).items()):
        a, b = infos["a"], infos["b"]
        uniform = jax.random.uniform(jax.random.fold_in(key, number), a.shape, minval=-1.0)
        adapters[target] = {"a": (a.stddev or 0.0) * uniform, "b": jnp.zeros(b.shape)}
    return adapters


def abstract(cfg: ModelConfig, lora: LoraConfig, mesh: Mesh) -> Params:
    """Returns a `jax.ShapeDtypeStruct` for each adapter matrix. The mesh axes fsdp and tensor split the matrix's long axis, but
    not its rank axis."""
    return transformer.abstract_table(adapter_table(cfg, lora), "float32", mesh)


def shardings(cfg: ModelConfig, lora: LoraConfig, mesh: Mesh) -> Params:
    """Returns the `NamedSharding` of each adapter matrix on `mesh`."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract(cfg, lora, mesh))


def attach(base: Params, adapters: Params, lora: LoraConfig) -> Params:
    """Combines `base`, which is not copied, and the scaled adapters into parameters for `transformer.forward`. The result is
    differentiable with respect to `adapters`."""
    scaled = {target: {"a": adapter["a"], "b": adapter["b"] * lora.scale} for target, adapter in adapters.items()}
    return base | {"blocks": base["blocks"] | {"adapters": scaled}}


def merge(base: Params, adapters: Params, lora: LoraConfig) -> Params:
    """Returns `base` with scale * A B added to the adapted matrices, which keep their dtype. In bfloat16, rounding removes most
    of a small change."""
    blocks = {target: merge_matrix(base["blocks"][target], adapter, lora)[0] for target, adapter in adapters.items()}
    return base | {"blocks": base["blocks"] | blocks}


@functools.partial(jax.jit, static_argnames=("lora", "dtype"))
def merge_matrix(w: jax.Array, adapter: Params, lora: LoraConfig, dtype: str | None = None) -> tuple[jax.Array, jax.Array]:
    """Adds scale * A B to one adapted matrix W of all layers. Returns the sum in `dtype` (by default the dtype of W), and the
    share of the change that rounding loses. This share is the norm of the rounding error divided by the norm of the change. The
    sum is computed in float32, layer by layer, and then rounded. In bfloat16, changes that are smaller than half the spacing of
    numbers disappear. `w` is [n, in, out] for n layers, and `adapter` is {"a": [n, in, r], "b": [n, r, out]} for rank r."""

    def merged(layer):
        w, a, b = layer
        change = lora.scale * jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
        exact = w.astype(jnp.float32) + change
        rounded = exact.astype(dtype or w.dtype)
        return rounded, jnp.sum((rounded.astype(jnp.float32) - exact) ** 2), jnp.sum(change**2)

    value, error, change = jax.lax.map(merged, (w, adapter["a"], adapter["b"]))
    return value, jnp.sqrt(error.sum() / jnp.maximum(change.sum(), jnp.finfo(jnp.float32).tiny))


def check_model_divides(model: ModelConfig, mesh, lora: LoraConfig | None = None) -> None:
    """Raises ValueError if an axis of a parameter or an adapter cannot be split evenly over the mesh. The message names the
    size of the axis and the number of parts."""
    tensor, fsdp = mesh.shape["tensor"], mesh.shape["fsdp"]
    checks = [
        ("model.width", model.width, "mesh.fsdp", fsdp),
        ("model.heads", model.heads, "mesh.tensor", tensor),
        ("model.kv_heads", model.kv_heads, "mesh.tensor", tensor),
        ("model.mlp_width", model.mlp_width, "mesh.tensor", tensor),
        ("the vocabulary", model.vocab_size, "mesh.tensor", tensor),
    ]
    if lora is not None:
        keys = model.kv_heads * model.head_size
        widths = {"model.width": model.width, "the width of queries": model.query_width, "the width of keys": keys}
        widths["model.mlp_width"] = model.mlp_width
        checks += [(name, size, "mesh.fsdp * mesh.tensor", fsdp * tensor) for name, size in widths.items()]
    require_multiples(checks)


def require_multiples(checks: list[tuple[str, int, str, int]]) -> None:
    for name, size, axes, devices in checks:
        if size % devices:
            raise ValueError(f"{name} = {size} is not a multiple of {axes} = {devices}")
