"""Reads and writes LoRA adapters of LLaDA's modules in PEFT's format."""

import json
import math
import os
import pathlib
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from igpo_jax.model.lora import ALL_LINEAR, LoraConfig, adapter_table
from igpo_jax.model.sharding import Params
from igpo_jax.model.transformer import ModelConfig
from igpo_jax.runtime.files import atomic_write, first_line, read_json
from igpo_jax.weights.huggingface import MAX_SIZE, TENSORS

ADAPTER_CONFIG, ADAPTER_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # PEFT's wrapper around the model
# Settings that change the computation -> supported values.
FIXED = {
    "peft_type": ("LORA",), "bias": ("none",), "use_dora": (False, None), "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []), "rank_pattern": ({}, None), "alpha_pattern": ({}, None), "layers_to_transform": (None,),
}  # fmt: skip


def _tensor_name(target: str, layer: int, part: str) -> str:
    return f"{PREFIX}{TENSORS['blocks', target][0].format(layer)}.lora_{part.upper()}.weight"


def export_peft(adapters: Params, lora: LoraConfig, folder: str | os.PathLike, base_model: str = "") -> None:
    """Writes LoRA adapters in PEFT's format, and creates `folder` if needed. `adapters` is {target: {"a": float32 [n, in, r],
    "b": float32 [n, r, out]}} for n layers and rank r. `base_model` is the name or path of the base model, which PEFT's
    AutoPeftModel loads."""
    folder = pathlib.Path(folder)
    modules = "|".join(TENSORS["blocks", target][0].rpartition(".")[2] for target in adapters)
    tensors = {
        _tensor_name(target, layer, part): np.ascontiguousarray(matrix.T)
        for target, parts in adapters.items()
        for part, stack in parts.items()
        for layer, matrix in enumerate(np.asarray(stack, np.float32))
    }
    config = {
        "peft_type": "LORA", "task_type": None, "base_model_name_or_path": base_model,
        "r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": 0.0, "bias": "none",
        # A regular expression, because ff_out in a list would also match the language model's head.
        "target_modules": rf".*\.blocks\.\d+\.({modules})",
        "fan_in_fan_out": False, "inference_mode": True, "modules_to_save": None,
        "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False, "use_dora": False,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(tensors, folder / ADAPTER_FILE, metadata={"format": "pt"})
    atomic_write(folder / ADAPTER_CONFIG, json.dumps(config, indent=2))


def import_peft(folder: str | os.PathLike, cfg: ModelConfig) -> tuple[LoraConfig, Params]:
    """Reads adapters that PEFT or `export_peft` wrote, as float32 host arrays. Ignores dropout, which affects training only.
    Raises ValueError if a setting is unsupported, or if a tensor is missing, is unexpected, or has the wrong shape."""
    folder = pathlib.Path(folder)
    config = read_json(folder / ADAPTER_CONFIG)
    for key, allowed in FIXED.items():
        if config.get(key, allowed[0]) not in allowed:
            raise ValueError(f"{folder / ADAPTER_CONFIG}: {key}={config[key]!r} is not supported; only {allowed[0]!r} is")
    rank: Any = config.get("r")
    alpha: Any = config.get("lora_alpha")
    if type(rank) is not int or type(alpha) not in (int, float) or not (1 <= rank <= MAX_SIZE and 0 < alpha <= MAX_SIZE):
        wanted = f"r={rank!r} must be an integer, lora_alpha={alpha!r} a number, both positive"
        raise ValueError(f"{folder / ADAPTER_CONFIG}: {wanted}")
    if config.get("use_rslora"):
        alpha = alpha * math.sqrt(rank)  # rsLoRA divides alpha by the root of the rank
    tensors = _read_tensors(folder / ADAPTER_FILE)
    targets = tuple(target for target in ALL_LINEAR if _tensor_name(target, 0, "a") in tensors)
    if not targets:
        raise ValueError(f"{folder / ADAPTER_FILE} has no adapters of LLaDA's modules, such as {_tensor_name('query', 0, 'a')}")
    lora = LoraConfig(rank, float(alpha), targets)
    adapters: Params = {target: {} for target in targets}
    for target, infos in adapter_table(cfg, lora).items():
        for part, info in infos.items():
            shape, layers = info.shape[:0:-1], []
            for layer in range(cfg.layers):
                name = _tensor_name(target, layer, part)
                if name not in tensors:
                    raise ValueError(f"{folder / ADAPTER_FILE} lacks {name}")
                tensor = tensors.pop(name)
                if tensor.shape != shape:
                    raise ValueError(f"{folder / ADAPTER_FILE}: {name} has shape {tensor.shape}, the model asks for {shape}")
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
        raise ValueError(f"{file} cannot be read: {first_line(error)}") from None
