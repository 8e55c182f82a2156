"""Reads and writes LoRA adapters in PEFT's format."""

import json
import math
import os
import pathlib
import re
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from igpo_jax.families import ILLADA, LLADA, Family
from igpo_jax.model.lora import ALL_LINEAR, LoraConfig, adapter_table
from igpo_jax.model.sharding import Params
from igpo_jax.model.transformer import ModelConfig
from igpo_jax.runtime.buckets import local_file
from igpo_jax.runtime.files import atomic_write, first_line, read_json, require_stored
from igpo_jax.weights.finite import check_finite
from igpo_jax.weights.huggingface import MAX_SIZE

ADAPTER_CONFIG, ADAPTER_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # PEFT's wrapper around the model
# Every key of adapter_config.json is in one of the next three tables, or must be off (null, false or empty).
READ = (
    "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "layers_to_transform", "target_modules",
    "exclude_modules",
)  # fmt: skip
# Keys that change the function that the tensors compute, or the base weights -> accepted values.
FIXED = {
    "peft_type": ("LORA",), "bias": ("none",), "use_dora": (False, None), "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []), "lora_bias": (False, None), "use_qalora": (False, None),
    "alora_invocation_tokens": (None,), "layer_replication": (None, []), "trainable_token_indices": (None, []),
    "target_parameters": (None, []), "megatron_config": (None,), "use_bdlora": (None, False), "arrow_config": (None,),
    "kasa_config": (None,), "monteclora_config": (None,), "velora_config": (None,),
    # The others, such as pissa, olora, corda, loftq and lora_ga, subtract the initial adapter from the base weights.
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva", "mica"),
}  # fmt: skip
# Keys that change neither of the two: they describe the file, affect only training, or belong to a key of FIXED.
HARMLESS = (
    "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type", "lora_dropout",
    "corda_config", "ensure_weight_tying", "eva_config", "layers_pattern", "loftq_config", "lora_ga_config", "megatron_core",
    "qalora_group_size", "runtime_config",
)  # fmt: skip


def _module(family: Family, target: str) -> str:
    """Returns the name of a module in the base model, with {} in place of the number of the layer. `target` is this project's
    name of the module, such as "query"."""
    return family.tensors["blocks", target].removesuffix(".weight")


def _tensor_name(target: str, layer: int, part: str, family: Family = LLADA) -> str:
    return f"{PREFIX}{_module(family, target).format(layer)}.lora_{part.upper()}.weight"


def export_peft(
    adapters: Params, lora: LoraConfig, folder: str | os.PathLike, base_model: str = "", family: Family = LLADA
) -> None:
    """Writes LoRA adapters in PEFT's format, and creates `folder` if needed. `adapters` is {target: {"a": float32 [n, in, r],
    "b": float32 [n, r, out]}} for n layers and rank r. `base_model` is the name or path of the base model, which PEFT's
    AutoPeftModel loads. `family` is the base model's family, which determines the names of the tensors."""
    folder = pathlib.Path(folder)
    container = _module(family, "query").partition(".{}.")[0].rpartition(".")[2]
    modules = "|".join(re.escape(_module(family, target).partition(".{}.")[2]) for target in adapters)
    tensors = {
        _tensor_name(target, layer, part, family): np.ascontiguousarray(matrix.T)
        for target, parts in adapters.items()
        for part, stack in parts.items()
        for layer, matrix in enumerate(np.asarray(stack, np.float32))
    }
    config = {
        "peft_type": "LORA", "task_type": None, "base_model_name_or_path": base_model,
        "r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": 0.0, "bias": "none",
        # A regular expression, because ff_out in a list would also match the language model's head.
        "target_modules": rf".*\.{container}\.\d+\.({modules})",
        "fan_in_fan_out": False, "inference_mode": True, "modules_to_save": None,
        "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False, "use_dora": False,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    # save_file would ignore the umask and write a file that only its owner can read.
    atomic_write(folder / ADAPTER_FILE, safetensors.numpy.save(tensors, metadata={"format": "pt"}))
    atomic_write(folder / ADAPTER_CONFIG, json.dumps(config, indent=2))


def import_peft(folder: str | os.PathLike, cfg: ModelConfig, allow_nonfinite: bool = False) -> tuple[LoraConfig, Params]:
    """Reads adapters that PEFT or `export_peft` wrote, as float32 host arrays. Ignores dropout, which affects training only.
    Raises ValueError if a setting is unsupported or unknown, or if a tensor is missing, is unexpected or has the wrong shape.
    Also raises ValueError for NaN or infinite values, but only logs a warning if `allow_nonfinite` is True."""
    settings, weights = (local_file(f"{folder}/{name}") for name in (ADAPTER_CONFIG, ADAPTER_FILE))
    config = read_json(settings)
    rank, alpha = _read_settings(settings, config, cfg.layers)
    tensors = _read_tensors(weights)
    present = {one: [name for name in ALL_LINEAR if _tensor_name(name, 0, "a", one) in tensors] for one in (LLADA, ILLADA)}
    family = max(present, key=lambda one: len(present[one]))  # all others have ILLADA's names
    targets = tuple(present[family])
    if not targets:
        examples = " or ".join(_tensor_name("query", 0, "a", one) for one in present)
        raise ValueError(f"{weights} has no adapters of known modules, such as {examples}")
    names = [_module(family, target).format(layer) for target in targets for layer in range(cfg.layers)]
    _check_targets(settings, config, names)
    lora = LoraConfig(rank, alpha, targets)
    adapters: Params = {target: {} for target in targets}
    for target, infos in adapter_table(cfg, lora).items():
        for part, info in infos.items():
            shape, layers = info.shape[:0:-1], []
            for layer in range(cfg.layers):
                name = _tensor_name(target, layer, part, family)
                if name not in tensors:
                    raise ValueError(f"{weights} lacks {name}")
                tensor = tensors.pop(name)
                if tensor.shape != shape:
                    raise ValueError(f"{weights}: {name} has shape {tensor.shape}, the model asks for {shape}")
                place = f"{weights}, tensor {name}"
                with np.errstate(over="ignore"):  # an overflow is infinite
                    values = tensor.T.astype(np.float32)
                    check_finite(values, place, allow_nonfinite)
                    if part == "b":
                        scaled = values * np.float32(lora.scale)
                        check_finite(scaled, f"{place} times the scale {lora.scale:g}", allow_nonfinite)
                layers.append(values)
            adapters[target][part] = np.stack(layers)
    for name in sorted(tensors):
        raise ValueError(f"{weights} has {_shown(name)}, for which the model has no place")
    return lora, adapters


def _shown(value: Any) -> str:
    """Returns the `repr` of a value from a file, cut to 100 characters, for use in a message."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _read_settings(file: pathlib.Path, config: dict[str, Any], layers: int) -> tuple[int, float]:
    """Returns the rank r and the value alpha of an adapter. The scale of the adapter is alpha / r. Raises ValueError if a key
    may change the adapter in an unsupported way."""
    for key, value in config.items():
        place = f"{file}: {_shown(key)[1:-1]}={_shown(value)}"  # the key may have line breaks
        off = "null, false or an empty value"
        if key in FIXED:
            if value not in FIXED[key]:
                raise ValueError(f"{place} is not supported; only {' or '.join(map(repr, FIXED[key]))} is")
        elif key not in READ and key not in HARMLESS and value:
            raise ValueError(f"{place} is not known and may change what the adapter computes; only {off} is accepted")
    rank: Any = config.get("r")
    alpha: Any = config.get("lora_alpha")
    if type(rank) is not int or type(alpha) not in (int, float) or not (1 <= rank <= MAX_SIZE and 0 < alpha <= MAX_SIZE):
        wanted = f"r={_shown(rank)} must be an integer, lora_alpha={_shown(alpha)} a number, both positive"
        raise ValueError(f"{file}: {wanted}")
    for key, default in (("rank_pattern", rank), ("alpha_pattern", alpha)):
        pattern = config.get(key) or {}
        if not isinstance(pattern, dict) or any(value != default for value in pattern.values()):
            raise ValueError(f"{file}: {key}={_shown(pattern)} is not supported; only {{}} is, or {default} for all modules")
    transformed = config.get("layers_to_transform")
    listed = {n for n in transformed if isinstance(n, int | float)} if isinstance(transformed, list) else set()  # a list may be long
    if transformed not in (None, []) and not listed.issuperset(range(layers)):
        raise ValueError(
            f"{file}: layers_to_transform={_shown(transformed)} is not supported; only None is, or all {layers} layers"
        )
    if config.get("use_rslora") not in (None, False, True):
        raise ValueError(f"{file}: use_rslora={_shown(config['use_rslora'])} is not supported; only False or True is")
    return rank, float(alpha * math.sqrt(rank) if config.get("use_rslora") else alpha)  # rsLoRA's scale is alpha / sqrt(rank)


def _check_targets(file: pathlib.Path, config: dict[str, Any], modules: list[str]) -> None:
    """Raises ValueError if, according to adapter_config.json, PEFT would not use the tensors of one of the `modules`. Checks
    only lists of module names. Regular expressions are not evaluated."""
    for key, used in (("target_modules", True), ("exclude_modules", False)):
        names = config.get(key)
        if not isinstance(names, list):
            continue
        known = {name for name in names if isinstance(name, str)}
        for module in modules:
            parts = module.split(".")
            listed = any(".".join(parts[start:]) in known for start in range(len(parts)))
            if listed != used:
                raise ValueError(f"{file}: {key}={_shown(names)} leaves out {module}, which {ADAPTER_FILE} has tensors for")


def _read_tensors(file: pathlib.Path) -> dict[str, np.ndarray]:
    if not file.is_file():
        raise ValueError(f"{file} is missing")
    require_stored(file)
    try:
        tensors = safetensors.numpy.load_file(file)
    except (safetensors.SafetensorError, OSError, LookupError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {first_line(error)}") from None  # AttributeError: dtypes such as F8_E4M3
    for name, tensor in tensors.items():
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise ValueError(f"{file}: {_shown(name)} has dtype {tensor.dtype}, and quantized adapters are not supported")
    return tensors
