"""Chooses what depends on the memory that updates need: rl.microbatches, and whether the copy of frozen parameters for sampling
stays in memory. A batch is split into microbatches to save memory. If there are several prompt buckets, microbatches also save
time, because each one has prompts of similar length and its own bucket. Log-probabilities and gradients are computed for one
microbatch after the other."""

import dataclasses

import numpy as np
from jax.sharding import Mesh

from igpo_jax.config import Config
from igpo_jax.data.buckets import bucket_of, rollout_batches
from igpo_jax.model import transformer
from igpo_jax.model.attention import LARGEST_SCORES
from igpo_jax.model.sharding import shard_bytes
from igpo_jax.model.transformer import ModelConfig, forward_flops
from igpo_jax.run.layout import TOLERANCE, chip_of, fitting_lengths, held_bytes, usable_bytes
from igpo_jax.runtime.mesh import batch_size_divisor
from igpo_jax.training.policy import Policy, in_compute_dtype

# A batch that fits as a whole is split only if this saves at least this share of the time, because programs are then compiled for
# every bucket.
WORTHWHILE = 0.15


def parts_of(config: Config) -> int:
    """Returns the number of parts into which `rl.parts.split_by_length` splits a batch: the microbatches, if there are several
    prompt buckets. With one bucket, a single program computes all microbatches."""
    return config.rl.microbatches if len(config.data.prompt_buckets) > 1 else 1


def with_microbatches(config: Config, model: ModelConfig, mesh: Mesh, lengths: np.ndarray | None = None) -> Config:
    """Returns the configuration with rl.microbatches replaced if it is 0. The chosen value is the number of microbatches with
    which scores and updates are estimated to be fastest among those that fit into memory. Fewer microbatches are preferred if
    they are at most slightly slower (`TOLERANCE`), and a single one if it is not much slower (`WORTHWHILE`). If no number makes
    the update fit, it is the number that needs the least memory. With more microbatches, prompts need less padding if there are
    several prompt buckets. On a mesh that shards the weights, however, the weights are gathered again for every microbatch.
    `lengths` are the prompt lengths of the RL problems in tokens, int [n]. None means that all prompts fill the largest bucket."""
    rl, rows = config.rl, batch_size_divisor(mesh)
    if rl.microbatches:
        return config
    numbers = [n for n in range(1, rl.prompts + 1) if rl.prompts % (n * rows) == 0] or [1]
    limit = usable_bytes(mesh)
    needed = {n: update_bytes(config, model, mesh, n) for n in numbers}
    seconds = {n: training_seconds(config, model, mesh, n, lengths) for n in numbers if needed[n] <= limit}
    almost = (n for n in seconds if seconds[n] <= (1 + TOLERANCE) * min(seconds.values()))
    number = min(almost, default=min(numbers, key=needed.__getitem__))
    if 1 in seconds and seconds[number] > (1 - WORTHWHILE) * seconds[1]:
        number = 1
    return dataclasses.replace(config, rl=dataclasses.replace(rl, microbatches=number))


def base_copy_stays(config: Config, model: ModelConfig, mesh: Mesh, sampling: Mesh) -> bool:
    """Returns whether the RL stage copies the frozen parameters under adapters to the mesh of sampling only once, and keeps the
    copy. This is the case if updates are estimated to fit into memory beside the copy. Otherwise, all parameters are copied
    before each rollout and evaluation, and the copy is freed. Without adapters, and if `sampling` equals `mesh`, the mesh of
    training, nothing can be kept. The configuration must come from `with_layout` and `with_microbatches`."""
    if config.lora is None or sampling == mesh or not config.rl.iterations:
        return False
    copied = shard_bytes(Policy(model, config.lora).abstract_base(sampling))
    return update_bytes(config, model, mesh, config.rl.microbatches) + copied <= usable_bytes(mesh)


def training_seconds(config: Config, model: ModelConfig, mesh: Mesh, number: int, lengths: np.ndarray | None) -> float:
    """Returns the estimated seconds of an iteration's scores and updates with `number` microbatches. Assumes the chip's published
    peak rates, and that communication does not overlap with computation. `lengths` are those of `with_microbatches`."""
    buckets, again = config.data.prompt_buckets, int(model.remat == "full")
    drawn = rollout_batches(fitting_lengths(lengths, buckets), config.rl.prompts, number if len(buckets) > 1 else 1)
    padded = [bucket_of(part.max(), buckets) for part in drawn]
    # A backward pass has twice the products of a forward pass, or as many if the weights have no gradients.
    steps, products = config.objective.inner_steps, (2 if config.lora else 3) + again
    rows, length, chip = _rows(config, mesh, number), config.sampler.completion_length, chip_of(mesh)
    weights = shard_bytes(transformer.abstract(in_compute_dtype(model), mesh)) * mesh.shape["fsdp"]
    passes, gathers = 2 + steps * products, 2 + steps * (2 + again)

    def part_seconds(bucket: int) -> float:
        flops = passes * rows * forward_flops(model, bucket + length, length) / mesh.shape["tensor"]
        return max(flops / chip.flops, 2 * gathers * weights / chip.hbm)

    computing = sum(padded.count(bucket) / len(padded) * part_seconds(bucket) for bucket in set(padded))
    return number * (computing + gathers * weights * (1 - 1 / mesh.shape["fsdp"]) / chip.link)


def training_share(config: Config, model: ModelConfig, mesh: Mesh, lengths: np.ndarray | None) -> float:
    """Returns the estimated time of scores and updates, as a share of their time if all prompts filled the largest bucket."""
    number = config.rl.microbatches
    return training_seconds(config, model, mesh, number, lengths) / training_seconds(config, model, mesh, number, None)


def _rows(config: Config, mesh: Mesh, number: int) -> float:
    """Returns how many sequences of one of `number` microbatches the network processes on each device."""
    return config.rl.prompts / number / batch_size_divisor(mesh) * config.objective.rows_per_prompt(config.rl.group_size)


def update_bytes(config: Config, model: ModelConfig, mesh: Mesh, number: int) -> float:
    """Returns the estimated memory in bytes that a device needs for an update with `number` microbatches. Assumes that all
    prompts are padded to the largest prompt bucket."""
    length, shared, size = config.sampler.completion_length, mesh.shape["tensor"], 2 if model.compute_dtype == "bfloat16" else 4
    rows = _rows(config, mesh, number)
    positions = config.data.prompt_buckets[-1] + length
    inside = 2 * model.width + 2 * model.query_width + (3 * model.mlp_width + 2 * model.kv_heads * model.head_size) / shared
    layer = rows * positions * (2 * model.width + 2 * inside) * size  # activations of one layer and their gradients
    scores = 2 * min(rows * model.heads / shared * positions**2 * (4 + size), 2 * LARGEST_SCORES) * (model.attention == "xla")
    kept = model.layers * rows * positions * (model.width + (0 if model.remat == "full" else inside)) * size
    logits = 3 * 4 * min(model.head_chunk or rows * length, rows * length) * model.vocab_size / shared
    gradients = shard_bytes(Policy(model, config.lora).abstract(mesh)) * (2 if number > 1 else 1)
    matrices = model.width * (2 * model.query_width + 3 * model.mlp_width) * 2 + model.vocab_size * model.width
    gathered = size / shared * matrices * (mesh.shape["fsdp"] > 1)
    return held_bytes(config, model, mesh, mesh) + kept + max(layer + scores, logits) + gradients + gathered
