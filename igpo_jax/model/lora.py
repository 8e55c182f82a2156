"""Low-rank adapters (LoRA) as a second pytree beside frozen parameters, and their files in PEFT's format.

W + (alpha / rank) A B, with A [in, rank] random and B [rank, out] zero at first, so that training starts at the base.
There is no dropout: with it the policy ratio would differ from 1 before the first update (igpo_method.md 5).
"""

import dataclasses
import functools
import json
import math
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jax.sharding import Mesh

from igpo_jax.model import transformer
from igpo_jax.model.transformer import ModelConfig, ParameterInfo, Params
from igpo_jax.runtime.files import read_json, write_whole
from igpo_jax.weights.huggingface import LLADA, MOST

ALL_LINEAR = ("query", "key", "value", "attention_out", "gate", "up", "down")
REF_TARGETS = ("query", "key", "value", "up")  # what the released code reaches of the seven that it lists


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which matrices of the blocks have adapters, and of what size; hashable."""

    rank: int
    alpha: float
    targets: tuple[str, ...] = ALL_LINEAR

    def __post_init__(self):
        object.__setattr__(self, "targets", tuple(self.targets))  # config files give lists
        if self.rank < 1 or not 0 < self.alpha < math.inf:  # nor NaN
            raise ValueError(f"lora.rank={self.rank} must be at least 1, lora.alpha={self.alpha} positive")
        if not self.targets or len(set(self.targets)) < len(self.targets) or not set(self.targets) <= set(ALL_LINEAR):
            raise ValueError(f"lora.targets={self.targets!r} must be some of {', '.join(ALL_LINEAR)}, each once")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def adapter_table(cfg: ModelConfig, lora: LoraConfig) -> dict[str, dict[str, ParameterInfo]]:
    """The nested dict of `ParameterInfo`, same structure as the adapters: {target: {"a": [n, in, r], "b": [n, r, out]}}."""
    blocks = transformer.parameter_table(cfg)["blocks"]
    table = {}
    for target in lora.targets:
        layers, rows, columns = blocks[target].shape

        def info(part, shape, stddev, axes=blocks[target].axes[1:]):
            return ParameterInfo(shape, ("layers", *transformer.adapter_axes(part, *axes)), stddev)

        table[target] = {
            "a": info("a", (layers, rows, lora.rank), 1 / math.sqrt(rows)),
            "b": info("b", (layers, lora.rank, columns), 0.0),
        }
    return table


def init(key: jax.Array, cfg: ModelConfig, lora: LoraConfig) -> Params:
    """Adapters that change nothing yet: A uniform within 1 / sqrt(in), as PEFT draws it, B zero. float32."""
    adapters = {}
    for number, (target, infos) in enumerate(adapter_table(cfg, lora).items()):
        a, b = infos["a"], infos["b"]
        uniform = jax.random.uniform(jax.random.fold_in(key, number), a.shape, minval=-1.0)
        adapters[target] = {"a": a.stddev * uniform, "b": jnp.zeros(b.shape)}
    return adapters


def abstract(cfg: ModelConfig, lora: LoraConfig, mesh: Mesh) -> Params:
    """`jax.ShapeDtypeStruct` of every adapter, with its sharding on `mesh`: spread over fsdp and tensor, the rank whole."""
    return transformer.abstract_table(adapter_table(cfg, lora), "float32", mesh)


def shardings(cfg: ModelConfig, lora: LoraConfig, mesh: Mesh) -> Params:
    """`NamedSharding` of every adapter."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract(cfg, lora, mesh))


def attach(base: Params, adapters: Params, lora: LoraConfig) -> Params:
    """Parameters for `transformer.forward`: the base, not copied, with adapters beside its matrices. Differentiable."""
    scaled = {target: {"a": of["a"], "b": of["b"] * lora.scale} for target, of in adapters.items()}
    return base | {"blocks": base["blocks"] | {"adapters": scaled}}


def merge(base: Params, adapters: Params, lora: LoraConfig) -> Params:
    """W + scale * A B in the base's dtype. In bfloat16 most of a small change is lost, see `merge_matrix`."""
    blocks = {target: merge_matrix(base["blocks"][target], of, lora)[0] for target, of in adapters.items()}
    return base | {"blocks": base["blocks"] | blocks}


@functools.partial(jax.jit, static_argnames=("lora", "dtype"))
def merge_matrix(w: jax.Array, adapter: Params, lora: LoraConfig, dtype: str | None = None) -> tuple[jax.Array, jax.Array]:
    """W + scale * A B of one target, added up in float32, layer by layer; and the share of the change that rounding to
    `dtype` loses: the error's norm over the change's. A change below half the spacing of bfloat16 numbers disappears.

    Args:
        w: [n, in, out]. adapter: {"a": [n, in, r], "b": [n, r, out]}. dtype: by default that of w.
    """

    def merged(layer):
        w, a, b = layer
        change = lora.scale * jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
        exact = w.astype(jnp.float32) + change
        rounded = exact.astype(dtype or w.dtype)
        return rounded, jnp.sum((rounded.astype(jnp.float32) - exact) ** 2), jnp.sum(change**2)

    value, error, change = jax.lax.map(merged, (w, adapter["a"], adapter["b"]))
    return value, jnp.sqrt(error.sum() / jnp.maximum(change.sum(), jnp.finfo(jnp.float32).tiny))


# PEFT's files

PREFIX = "base_model.model."  # of PEFT's wrapper around the model
ADAPTER_CONFIG, ADAPTER_FILE = "adapter_config.json", "adapter_model.safetensors"


def _module(target: str) -> str:
    """LLaDA's name of a matrix in its block."""
    return LLADA["blocks", target].rpartition(".")[2]


def _tensor_name(target: str, layer: int, part: str) -> str:
    name = LLADA["blocks", target].format(layer)
    return f"{PREFIX}{name}.lora_{part.upper()}.weight"


def export_peft(adapters: Params, lora: LoraConfig, folder: str | os.PathLike, base_model: str = "") -> None:
    """Writes adapters as PEFT does, for the modules of LLaDA.

    Args:
        adapters: float32; every process calls this, the first one writes.
        folder: is made.
        base_model: the name or path of the base, for PEFT's AutoPeftModel.
    """
    folder = pathlib.Path(folder)
    tensors = {}
    for target, of in adapters.items():
        for part in ("a", "b"):
            for layer, matrix in enumerate(np.asarray(of[part], np.float32)):
                tensors[_tensor_name(target, layer, part)] = np.ascontiguousarray(matrix.T)
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base_model,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        # A regular expression: in a list, ff_out would also mean the language model's head, which has the same name.
        "target_modules": rf".*\.blocks\.\d+\.({'|'.join(_module(target) for target in adapters)})",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_rslora": False,
        "use_dora": False,
    }
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(tensors, folder / ADAPTER_FILE, metadata={"format": "pt"})
    write_whole(folder / ADAPTER_CONFIG, json.dumps(config, indent=2))


def import_peft(folder: str | os.PathLike, cfg: ModelConfig) -> tuple[LoraConfig, Params]:
    """Adapters of a folder that PEFT or `export_peft` wrote, float32 host arrays. Dropout is training's affair.

    Raises:
        ValueError: names the setting that is not supported, or the tensor that is missing, not wanted or mis-shaped.
    """
    folder = pathlib.Path(folder)
    config = read_json(folder / ADAPTER_CONFIG)
    for key, allowed in (
        ("peft_type", ("LORA",)),
        ("bias", ("none",)),
        ("use_dora", (False, None)),
        ("fan_in_fan_out", (False, None)),
        ("modules_to_save", (None, [])),
        ("rank_pattern", ({}, None)),
        ("alpha_pattern", ({}, None)),
        ("layers_to_transform", (None,)),
    ):
        if config.get(key, allowed[0]) not in allowed:
            raise ValueError(
                f"{folder / ADAPTER_CONFIG}: {key}={config[key]!r} is not supported; only {allowed[0]!r} is"
            )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    numbers = type(rank) is int and type(alpha) in (int, float)
    if not numbers or not (1 <= rank <= MOST and 0 < alpha <= MOST):
        raise ValueError(f"{folder / ADAPTER_CONFIG}: r={rank!r} must be an integer, lora_alpha={alpha!r} a number, both positive")
    if config.get("use_rslora"):
        alpha = alpha * math.sqrt(rank)  # it divides by the root of the rank
    tensors = _read_tensors(folder / ADAPTER_FILE)
    targets = tuple(target for target in ALL_LINEAR if _tensor_name(target, 0, "a") in tensors)
    if not targets:
        raise ValueError(
            f"{folder / ADAPTER_FILE} has no adapters of LLaDA's modules, such as {_tensor_name('query', 0, 'a')}"
        )
    lora = LoraConfig(rank, float(alpha), targets)
    adapters: Params = {}
    for target, infos in adapter_table(cfg, lora).items():
        adapters[target] = {}
        for part, info in infos.items():
            shape, layers = info.shape[:0:-1], []
            for layer in range(cfg.layers):
                name = _tensor_name(target, layer, part)
                if name not in tensors:
                    raise ValueError(f"{folder / ADAPTER_FILE} lacks {name}")
                tensor = tensors.pop(name)
                if tensor.shape != shape:
                    raise ValueError(
                        f"{folder / ADAPTER_FILE}: {name} has shape {tensor.shape}, the model asks for {shape}"
                    )
                layers.append(tensor.T.astype(np.float32))
            adapters[target][part] = np.stack(layers)
    for name in sorted(tensors):
        raise ValueError(f"{folder / ADAPTER_FILE} has {name!r}, for which the model has no place")
    return lora, adapters


def _read_tensors(file: pathlib.Path) -> dict[str, np.ndarray]:
    if not file.is_file():
        raise ValueError(f"{file} is missing")
    try:
        return safetensors.numpy.load_file(file)
    except (safetensors.SafetensorError, OSError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {str(error).splitlines()[0][:300]}") from None
