"""Chooses how completions are sampled: how the weights are distributed over the devices (the layout), and how many completions
are sampled at a time.

Training shards the weights over the mesh axis fsdp and gathers them for every forward pass. Sampling computes many forward
passes with the same weights. If memory allows it, the weights are therefore copied once per rollout to another mesh of the same
devices, in which the axis fsdp has size 1. With the layout "replicated", every device holds a complete copy. With the layout
"tensor", each copy is sharded along the axis tensor over a few neighboring devices. With the layout "train", no copy is made,
and sampling uses the mesh of training."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from igpo_jax.config import Config
from igpo_jax.data.buckets import bucket_of, rollout_batches
from igpo_jax.diffusion.sampler import refresh_interval
from igpo_jax.diffusion.unmasking import DecodeConfig
from igpo_jax.model import transformer
from igpo_jax.model.attention import LARGEST_SCORES
from igpo_jax.model.fitting import ASSUMED_GIB, attention_conflict
from igpo_jax.model.lora import LoraConfig, check_model_divides, require_multiples
from igpo_jax.model.sharding import shard_bytes
from igpo_jax.model.transformer import ModelConfig, forward_flops
from igpo_jax.runtime.checks import require
from igpo_jax.runtime.chips import CHIPS, Chip
from igpo_jax.runtime.mesh import AXES, batch_size_divisor
from igpo_jax.training.policy import Policy, in_compute_dtype
from igpo_jax.training.state import TrainState, make_optimizer

# Share of the memory that estimates may fill, and the share for chips with less than `SMALL` GiB. Compiled programs need up
# to 1.3 GiB more than estimated.
USABLE, USABLE_OF_SMALL, SMALL = 0.85, 0.82, 24
UNKNOWN = Chip(ASSUMED_GIB, flops=1e11, hbm=1e10, link=1e10, network=1e9)  # a CPU, or a chip that `CHIPS` does not list
TOLERANCE = 0.05  # fewer chunks are taken if they are estimated to be slower by at most this share
MOST_ROWS = 512  # largest evaluation.batch_size that is chosen


class Load(NamedTuple):
    """Size and sampler settings of a batch of completions that are sampled together."""

    decode: DecodeConfig
    rows: int
    positions: int  # of each row: prompt and completion


class Choice(NamedTuple):
    """One way to sample: a layout and a number of chunks per rollout, with the estimated time and memory."""

    layout: str  # train | replicated | tensor
    mesh: Mesh
    chunks: int  # rl.rollout_chunks
    seconds: float  # of a rollout; without an RL stage, of a batch of test problems
    memory: float  # bytes that a device holds at most


def row_lengths(config: Config) -> list[int]:
    """Returns the lengths in tokens of the sequences that a run computes, one for each prompt bucket. A sequence is a padded
    prompt and its completion."""
    return [size + config.sampler.completion_length for size in config.data.prompt_buckets]


def check_divisibility(config: Config, model: ModelConfig, mesh) -> None:
    """Checks that every size that is split over devices is divisible by the number of parts, and that the attention
    implementation runs on these devices. If a check fails, raises a ValueError that names the conflicting configuration
    keys."""
    sft, rl = config.sft, config.rl
    sizes = {"evaluation.batch_size": config.evaluation.batch_size}
    if sft.enabled:
        sizes["sft.batch_size / sft.microbatches"] = sft.batch_size // sft.microbatches
    if rl.iterations:
        sizes["rl.prompts / rl.microbatches"] = rl.prompts // (rl.microbatches or 1)
        sizes["rl.prompts * rl.group_size / rl.rollout_chunks"] = rl.prompts // (rl.rollout_chunks or 1) * rl.group_size
    rows = batch_size_divisor(mesh)
    require_multiples([(name, size, "mesh.data * mesh.fsdp", rows) for name, size in sizes.items()])
    check_model_divides(model, mesh, config.lora)
    conflict = attention_conflict(model.attention, model, mesh.devices.flat[0], row_lengths(config))
    require(not conflict, f"model.attention={model.attention!r} {conflict}; xla can compute all models on all devices")


def with_layout(config: Config, model: ModelConfig, mesh: Mesh, lengths: np.ndarray | None = None) -> tuple[Config, Mesh]:
    """Returns the configuration, with all automatic settings of sampling replaced by chosen values, and the mesh for sampling.
    The automatic settings are sampler.layout="auto", rl.rollout_chunks=0 and evaluation.batch_size=0. The chosen values fit
    into memory, and a rollout is estimated to be fastest with them. Fewer chunks are preferred if they are at most slightly
    slower (`TOLERANCE`). If nothing fits, the values that need the least memory are chosen. The result depends only on the
    arguments and on the kind of the devices, so all hosts get the same result. Raises ValueError if sampler.layout is
    impossible on these devices.

    Args:
        lengths: prompt lengths of the RL problems in tokens, int [n]. None means that all prompts fill the largest bucket."""
    choices = list(sampling_choices(config, model, mesh, lengths))
    if not choices:
        rows = "the rows of a chunk (rl.prompts / rl.rollout_chunks * rl.group_size)"
        shared = f"the {mesh.devices.size} devices and the network's heads must divide evenly into copies, and {rows} over them"
        raise ValueError(f"sampler.layout={config.sampler.layout!r} is impossible: {shared}; use auto")
    limit = usable_bytes(mesh)
    fitting = [choice for choice in choices if choice.memory <= limit]
    # If nothing fits, the one that needs least memory is tried.
    fastest = min(fitting or choices, key=lambda choice: choice.seconds if fitting else choice.memory)
    # A chunk more costs time that no estimate contains, such as starting its programs.
    almost = [choice for choice in fitting if choice.seconds <= (1 + TOLERANCE) * fastest.seconds]
    best = min(almost, key=lambda choice: (choice.chunks, choice.seconds), default=fastest)
    divisor = math.lcm(batch_size_divisor(mesh), batch_size_divisor(best.mesh))
    size = config.evaluation.batch_size
    if not size:
        held = held_bytes(config, model, mesh, best.mesh)
        size = rows_that_fit(model, best.mesh, config.evaluation.decode, config.data.prompt_buckets[-1], held)
        size = min(size, config.evaluation.problems)
    changed = dataclasses.replace(
        config,
        sampler=dataclasses.replace(config.sampler, layout=best.layout),
        rl=dataclasses.replace(config.rl, rollout_chunks=best.chunks),
        evaluation=dataclasses.replace(config.evaluation, batch_size=-(-size // divisor) * divisor),  # the last batch is filled
    )
    return changed, best.mesh


def rows_that_fit(model: ModelConfig, mesh: Mesh, decode: DecodeConfig, prompt_length: int, held: int) -> int:
    """Returns the largest batch size with which sampling is estimated to fit into memory if each device already holds `held`
    bytes. The size is a power of two times `batch_size_divisor(mesh)`, and at most `MOST_ROWS`. If no size fits, returns
    `batch_size_divisor(mesh)`."""
    free, divisor = usable_bytes(mesh) - held, batch_size_divisor(mesh)
    sizes = [divisor << power for power in range(MOST_ROWS.bit_length()) if divisor << power <= MOST_ROWS]
    loads = (Load(decode, size, prompt_length + decode.completion_length) for size in sizes)
    return max((load.rows for load in loads if temporary_bytes(model, mesh, load) <= free), default=divisor)


def sampling_choices(config: Config, model: ModelConfig, mesh: Mesh, lengths: np.ndarray | None) -> Iterator[Choice]:
    """Yields every possible combination of a layout and a number of chunks. Leaves out a combination if the completions of a
    chunk cannot be divided evenly over the copies of the weights. `lengths` are the prompt lengths of the RL problems, see
    `with_layout`. The configuration must have passed `check_divisibility`."""
    rl, evaluated = config.rl, config.evaluation.batch_size
    numbers = [n for n in range(1, rl.prompts + 1) if rl.prompts % n == 0 and rl.rollout_chunks in (0, n)]
    if rl.iterations:
        loads_of = {chunks: rollout_loads(config, chunks, lengths) for chunks in numbers}
    else:
        loads_of = {numbers[0]: [(_evaluated(config, evaluated or 1), 1.0)]}
    for name, other in sampling_meshes(config.sampler.layout, config.lora, model, mesh):
        held = held_bytes(config, model, mesh, other)
        for chunks, work in loads_of.items():
            if rl.iterations and work[0][0].rows % batch_size_divisor(other):
                continue
            loads = [load for load, _ in work] + ([_evaluated(config, evaluated)] if evaluated else [])
            memory = held + max(temporary_bytes(model, other, load) for load in loads)
            seconds = sum(times * sampling_seconds(model, other, load) for load, times in work)
            yield Choice(name, other, chunks, seconds, memory)


def mesh_for_sampling(model: ModelConfig, lora: LoraConfig | None, mesh: Mesh, load: Load) -> Mesh:
    """Returns the mesh on which the batch `load` is estimated to be sampled fastest. The weights are on `mesh`, and will not be
    trained. One candidate is `mesh` itself, which needs no copy of the weights. The other candidates are the meshes whose
    devices have enough free memory for a second copy of the weights."""

    def held(other: Mesh) -> int:
        return shard_bytes(Policy(model, lora).abstract_for_sampling(other)) * (1 if other is mesh else 2)

    limit = usable_bytes(mesh)
    meshes = [other for _, other in sampling_meshes("auto", lora, model, mesh)]
    fitting = [other for other in meshes if held(other) + temporary_bytes(model, other, load) <= limit]
    return min(fitting, key=lambda other: sampling_seconds(model, other, load), default=mesh)


def sampling_meshes(wanted: str, lora: LoraConfig | None, model: ModelConfig, mesh: Mesh) -> Iterator[tuple[str, Mesh]]:
    """Yields the name and the mesh of every layout that `wanted`, a value of sampler.layout, permits. All meshes contain the
    same devices in the same order. With the layout "tensor", devices that share a copy of the weights are always in the same
    TPU slice or, if they are GPUs, on the same host."""
    number = mesh.devices.size
    if wanted in ("auto", "train"):
        yield "train", mesh
    for shared in (size for size in range(1, number + 1) if number % size == 0):
        name, devices = "tensor" if shared > 1 else "replicated", mesh.devices.reshape(-1, 1, shared)
        is_near = all(len({_unit(device) for device in group}) == 1 for group in devices.reshape(-1, shared))
        if wanted not in ("auto", name) or not is_near or (wanted == "auto" and devices.shape == mesh.devices.shape):
            continue
        other = Mesh(devices, AXES, axis_types=mesh.axis_types)
        try:
            check_model_divides(model, other, lora)
        except ValueError:
            continue
        yield name, other


def _unit(device: Any) -> int:
    """Returns a number that is equal for devices with fast links between them. For a TPU, this is the slice index, and for
    another device the process index."""
    return (getattr(device, "slice_index", None) or 0) if device.platform == "tpu" else device.process_index


def chip_of(mesh: Mesh) -> Chip:
    """Returns the published memory size and peak rates of a mesh's devices, or `UNKNOWN` if `CHIPS` does not list them."""
    return CHIPS.get(mesh.devices.flat[0].device_kind, UNKNOWN)


def usable_bytes(mesh: Mesh) -> float:
    """Returns the largest estimate of a device's memory use, in bytes, that is assumed to fit into its memory."""
    memory = chip_of(mesh).memory_gib
    return (USABLE_OF_SMALL if memory < SMALL else USABLE) * memory * 2**30


def _evaluated(config: Config, rows: int) -> Load:
    return Load(config.evaluation.decode, rows, config.data.prompt_buckets[-1] + config.evaluation.completion_length)


def rollout_loads(config: Config, chunks: int, lengths: np.ndarray | None) -> list[tuple[Load, float]]:
    """Returns a list of (load, number of batches) with one entry for each prompt bucket. The load describes a batch whose
    prompts are padded to this bucket. The number is the average number of such batches in a rollout. Second attempts are not
    counted. `lengths` are the prompt lengths of the RL problems, see `with_layout`."""
    rl, buckets = config.rl, config.data.prompt_buckets
    drawn = rollout_batches(fitting_lengths(lengths, buckets), rl.prompts, chunks)
    padded = [bucket_of(batch.max(), buckets) for batch in drawn]
    rows, length = rl.prompts // chunks * rl.group_size, config.sampler.completion_length
    return [(Load(config.sampler.decode, rows, size + length), chunks * padded.count(size) / len(padded)) for size in buckets]


def fitting_lengths(lengths: np.ndarray | None, buckets: Sequence[int]) -> np.ndarray:
    """Returns the prompt lengths that fit the largest bucket, or only the largest bucket if there are none."""
    fitting = np.zeros(0) if lengths is None else lengths[lengths <= buckets[-1]]
    return fitting if fitting.size else np.array(buckets[-1:])


def held_bytes(config: Config, model: ModelConfig, mesh: Mesh, sampling: Mesh) -> int:
    """Returns how many bytes on each device are occupied by the arrays that stay in memory: the training state, the frozen
    parameters, the parameters of the reference policy, and the parameters for sampling. `mesh` is the mesh of training, and
    `sampling` is the mesh of sampling."""
    policy, stage = Policy(model, config.lora), config.rl if config.rl.iterations else config.sft
    state = TrainState.abstract(make_optimizer(stage.optimizer, 1, policy), policy, mesh)
    base = policy.abstract_base(mesh)
    # The reference of an RL stage has its own copy if there are no adapters.
    reference = policy.abstract_for_sampling(mesh) if base is None and config.rl.iterations else None
    copied = policy.abstract_for_sampling(sampling) if sampling != mesh or policy.makes_copy() else None
    return shard_bytes((state, base, reference, copied))


def temporary_bytes(model: ModelConfig, mesh: Mesh, load: Load) -> float:
    """Returns the estimated memory in bytes that a device needs to sample one batch of completions. The parameters are not
    included."""
    decode, shared = load.decode, mesh.shape["tensor"]
    layer = model.width * (2 * model.query_width + 3 * model.mlp_width)
    number = 2 if model.compute_dtype == "bfloat16" else 4
    rows = load.rows / batch_size_divisor(mesh) * (2 if decode.cfg_scale > 0 else 1)
    keys = model.kv_heads * model.head_size
    stream = (
        rows * load.positions * (4 * model.width + 2 * model.query_width + (3 * model.mlp_width + 2 * keys) / shared) * number
    )
    scores = rows * model.heads / shared * load.positions**2 * (4 + number) * (model.attention == "xla")
    scores = min(scores, 2 * LARGEST_SCORES)
    logits = 3 * 4 * rows * decode.block_length * model.vocab_size / shared
    gathered = number / shared * (2 * layer + model.vocab_size * model.width) * (mesh.shape["fsdp"] > 1)
    if decode.cache == "none":
        return max(stream + scores, logits) + gathered
    cache = 2 * number * model.layers * rows * load.positions * keys / shared
    # An upper limit for LLaDA-8B compiled for v5e, v6e, v5p and H100 with 8 to 32 rows on a device. While the keys and values are
    # computed again, a device holds up to 1.6 times their size.
    return max(1.75 * cache + stream / 2 + scores, cache + logits) + gathered


def sampling_seconds(model: ModelConfig, mesh: Mesh, load: Load) -> float:
    """Returns the estimated seconds that it takes to sample one batch of completions. Assumes the chip's published peak rates,
    and that communication does not overlap with computation."""
    decode, every = load.decode, refresh_interval(load.decode)
    full = -(-decode.steps_per_block // every)
    window = decode.block_length if decode.cache == "dual" else decode.completion_length // 2
    whole = evaluation_seconds(model, mesh, load, load.positions)
    cached = evaluation_seconds(model, mesh, load, window) if full < decode.steps_per_block else 0.0
    return decode.blocks * (full * whole + (decode.steps_per_block - full) * cached)


def evaluation_seconds(model: ModelConfig, mesh: Mesh, load: Load, positions: int) -> float:
    """Returns the estimated seconds of one forward pass of the network over `positions` token positions of each completion in a
    batch."""
    chip, shared, number = chip_of(mesh), mesh.shape["tensor"], 2 if model.compute_dtype == "bfloat16" else 4
    rows = load.rows / batch_size_divisor(mesh) * (2 if load.decode.cfg_scale > 0 else 1)
    flops = rows * forward_flops(model, positions, load.decode.block_length, load.positions) / shared
    used = shard_bytes(transformer.abstract(in_compute_dtype(model), mesh)) * mesh.shape["fsdp"]
    stream, cached = rows * positions * model.width * number, positions < load.positions
    # Gathered weights are written before they are read. Programs for GPUs copy the weights of a layer, too.
    copied = mesh.shape["fsdp"] > 1 or mesh.devices.flat[0].platform == "gpu"
    moved = (1 + copied) * used + model.layers * stream * (16 + 6 * model.mlp_width / model.width / shared)
    moved += 2 * number * model.layers * rows * load.positions * model.kv_heads * model.head_size / shared * cached
    # Weights are gathered over fsdp. Over tensor, two sums in each layer are exchanged, each first in shares, then as a whole.
    received = used * (1 - 1 / mesh.shape["fsdp"]) + 4 * model.layers * stream * (1 - 1 / shared)
    near = len({_unit(device) for device in mesh.devices[0].flat}) == 1
    return max(flops / chip.flops, moved / chip.hbm) + received / (chip.link if near else chip.network)
