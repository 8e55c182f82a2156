"""Settings of the network that depend on the devices: the back end of attention, and the number of positions whose logits are
in memory at the same time."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from jax.sharding import Mesh

from igpo_jax.model.attention import LANES, PLATFORMS
from igpo_jax.model.transformer import AUTO, ModelConfig
from igpo_jax.runtime.chips import BFLOAT16_MAJOR, CHIPS, cuda_major

LEAST_CHUNK, MOST_CHUNK = 128, 16384  # limits of head_chunk
ASSUMED_GIB = 16  # memory of a CPU, or of a device that `CHIPS` does not list
# Largest head size for which `auto` takes a kernel. With 256, splash exceeds the vector memory of a TPU v5p.
MOST_HEAD = 128


def fit_to_devices(model: ModelConfig, mesh: Mesh, row_lengths: Sequence[int] | None) -> ModelConfig:
    """Returns a copy of the model configuration in which attention="auto" and head_chunk=0 are replaced by values that suit the
    devices. These values depend on the kind of the devices, but on no other property of the devices, so all hosts get the same
    values.

    Args:
        row_lengths: the lengths, in positions, of all rows that training and evaluation will compute. If it is None, rows may
            have any length, and no gradients are computed."""
    attention = _attention(model, mesh.devices.flat[0], row_lengths) if model.attention == AUTO else model.attention
    return dataclasses.replace(model, attention=attention, head_chunk=model.head_chunk or _head_chunk(model, mesh))


def attention_conflict(attention: str, model: ModelConfig, device: Any, row_lengths: Sequence[int] | None) -> str:
    """Returns the reason why the back end `attention` cannot compute the attention of a model on a device, or "" if it can.
    `device` is a `jax.Device`. `row_lengths` holds the lengths of all rows in positions, or is None if rows may have any
    length. The requirements of the back end cudnn come from JAX's cuDNN binding and from NVIDIA's support matrix
    (docs.nvidia.com/deeplearning/cudnn/frontend/latest/operations/Attention.html)."""
    platforms, size = PLATFORMS[attention], model.head_size
    if device.platform not in platforms:
        return f"runs on {' and '.join(platforms)}, not on {device.platform}"
    head, rows = "the head size (model.width / model.heads)", "rows (data.prompt_buckets + sampler.completion_length)"
    if attention == "cudnn":
        most = 256 if cuda_major(device) == 9 else 128
        if model.compute_dtype != "bfloat16":
            return f"computes in bfloat16, not in model.compute_dtype={model.compute_dtype}"
        if cuda_major(device) < BFLOAT16_MAJOR:
            capability = getattr(device, "compute_capability", "none")
            return f"needs an NVIDIA GPU of compute capability 8.0 or later; {device.device_kind} has {capability}"
        if size % 8 or size > most:
            return f"needs {head} to be a multiple of 8 up to {most}, not {size}"
        odd = [length for length in row_lengths or () if length % 2]
        return f"needs {rows} of an even length, not of {odd[0]} positions" if odd else ""
    if attention == "splash":
        if size % LANES:
            return f"needs {head} to be a multiple of {LANES}, not {size}"
        if row_lengths is None:
            return "needs rows of known lengths"
        others = [length for length in row_lengths if length % LANES]
        return f"needs {rows} whose length is a multiple of {LANES}, not of {others[0]} positions" if others else ""
    return ""


def _attention(model: ModelConfig, device: Any, row_lengths: Sequence[int] | None) -> str:
    kernels = ("cudnn", "splash") if model.head_size <= MOST_HEAD else ()
    return next((name for name in kernels if not attention_conflict(name, model, device, row_lengths)), "xla")


def _head_chunk(model: ModelConfig, mesh: Mesh) -> int:
    """Returns the number of positions per chunk when logits are computed in chunks. The result is the largest power of two for
    which the float32 logits, exponentials and gradients of a chunk take at most a sixteenth of a device's memory, but at least
    128 and at most 16384. The device's memory is the published size for its kind, or `ASSUMED_GIB` if that size is unknown."""
    chip = CHIPS.get(mesh.devices.flat[0].device_kind)
    memory = (chip.memory_gib if chip else ASSUMED_GIB) * 2**30 / 16
    positions = memory / (3 * 4 * model.vocab_size / mesh.shape["tensor"])
    return 2 ** int(math.log2(min(max(positions, LEAST_CHUNK), MOST_CHUNK)))
