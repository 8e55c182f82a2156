"""What depends on the devices that a run gets: whether its sizes divide over the mesh, and the size of the head's chunks."""

import dataclasses
import math

from igpo_jax.config import Settings
from igpo_jax.model.attention import LANES, PLATFORMS
from igpo_jax.model.lora import LoraConfig
from igpo_jax.model.transformer import ModelConfig
from igpo_jax.runtime.chips import CHIPS
from igpo_jax.runtime.mesh import batch_size_divisor

LEAST_CHUNK, MOST_CHUNK = 128, 16384  # of head_chunk
ASSUMED_GIB = 16  # the memory of a device that `CHIPS` does not list, and of a CPU


def check_divisibility(settings: Settings, model: ModelConfig, mesh) -> None:
    """Everything that is spread over devices divides evenly.

    Raises:
        ValueError: names the two config keys that do not fit together.
    """
    sft, rl = settings.sft, settings.rl
    sizes = {"evaluation.batch_size": settings.evaluation.batch_size}
    if sft.updates:
        sizes["sft.batch_size / sft.microbatches"] = sft.batch_size // sft.microbatches
    if rl.iterations:
        sizes["rl.prompts / rl.microbatches"] = rl.prompts // rl.microbatches
        sizes["rl.prompts * rl.group_size / rl.rollout_slices"] = rl.prompts // rl.rollout_slices * rl.group_size
    rows = batch_size_divisor(mesh)
    _require_multiples([(name, size, "mesh.data * mesh.fsdp", rows) for name, size in sizes.items()])
    check_model_divides(model, mesh, settings.lora)
    platform, possible = mesh.devices.flat[0].platform, PLATFORMS[model.attention]
    if platform not in possible:
        raise ValueError(f"model.attention={model.attention!r} runs on {' and '.join(possible)}, not on {platform}")
    if model.attention == "splash":
        length = settings.rollout_decode.completion_length
        sizes = [(f"a prompt bucket + {length}", size + length) for size in settings.data.prompt_buckets]
        sizes.append(("the head size", model.head_size))
        _require_multiples([(name, size, "the lanes of model.attention='splash'", LANES) for name, size in sizes])


def check_model_divides(model: ModelConfig, mesh, lora: LoraConfig | None = None) -> None:
    """The parameters, and adapters of them, divide evenly over the mesh.

    Raises:
        ValueError: names the two sizes that do not fit together.
    """
    tensor, fsdp = mesh.shape["tensor"], mesh.shape["fsdp"]
    checks = [
        ("model.width", model.width, "mesh.fsdp", fsdp),
        ("model.heads", model.heads, "mesh.tensor", tensor),
        ("model.kv_heads", model.kv_heads, "mesh.tensor", tensor),
        ("model.mlp_width", model.mlp_width, "mesh.tensor", tensor),
        ("the vocabulary", model.vocab_size, "mesh.tensor", tensor),
    ]
    if lora is not None:
        widths = {"model.width": model.width, "the width of keys": model.kv_heads * model.head_size}
        widths["model.mlp_width"] = model.mlp_width
        checks += [(name, size, "mesh.fsdp * mesh.tensor", fsdp * tensor) for name, size in widths.items()]
    _require_multiples(checks)


def _require_multiples(checks: list[tuple[str, int, str, int]]) -> None:
    for name, size, axes, devices in checks:
        if size % devices:
            raise ValueError(f"{name} = {size} is not a multiple of {axes} = {devices}")


def sized_for(model: ModelConfig, mesh) -> ModelConfig:
    """head_chunk=0 becomes a power of two from 128 to 16384: so many positions that their logits, exponentials and gradients in
    float32 take a sixteenth of a device's memory: the published figure, or `ASSUMED_GIB`, the same on all hosts."""
    if model.head_chunk:
        return model
    chip = CHIPS.get(mesh.devices.flat[0].device_kind)
    memory = (chip.memory_gib if chip else ASSUMED_GIB) * 2**30 / 16
    positions = memory / (3 * 4 * model.vocab_size / mesh.shape["tensor"])
    chunk = 2 ** int(math.log2(min(max(positions, LEAST_CHUNK), MOST_CHUNK)))
    return dataclasses.replace(model, head_chunk=chunk)
