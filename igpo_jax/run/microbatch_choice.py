"""Choice of rl.microbatches: the number of parts of a batch that scores and updates compute one after the other.

More parts need less memory, and pad short prompts less, because every part has its own prompt bucket (rl/microbatches.py). But on
a mesh, the weights are gathered for every part."""

import dataclasses

import numpy as np
from jax.sharding import Mesh

from igpo_jax.config import Config
from igpo_jax.data.buckets import bucket_of, rollout_batches
from igpo_jax.model import transformer
from igpo_jax.model.attention import LARGEST_SCORES
from igpo_jax.model.sharding import shard_bytes
from igpo_jax.model.transformer import ModelConfig, forward_flops
from igpo_jax.run.layout import TOLERANCE, USABLE, chip_of, fitting_lengths, held_bytes
from igpo_jax.runtime.mesh import batch_size_divisor
from igpo_jax.training.policy import Policy, in_compute_dtype


def with_microbatches(config: Config, model: ModelConfig, mesh: Mesh, lengths: np.ndarray | None = None) -> Config:
    """Replaces rl.microbatches=0 by the number for which an iteration's scores and updates are estimated to be fastest, among
    those that fit into memory. `lengths`, int [n], are the prompt lengths of the RL problems; None: the largest bucket."""
    rl, rows = config.rl, batch_size_divisor(mesh)
    if rl.microbatches:
        return config
    numbers = [n for n in range(1, rl.prompts + 1) if rl.prompts % (n * rows) == 0] or [1]
    limit = USABLE * chip_of(mesh).memory_gib * 2**30
    seconds = {
        n: training_seconds(config, model, mesh, n, lengths) for n in numbers if update_bytes(config, model, mesh, n) <= limit
    }
    # A part more costs time that no estimate contains.
    best = min((n for n in seconds if seconds[n] <= (1 + TOLERANCE) * min(seconds.values())), default=numbers[-1])
    return dataclasses.replace(config, rl=dataclasses.replace(rl, microbatches=best))


def training_seconds(config: Config, model: ModelConfig, mesh: Mesh, number: int, lengths: np.ndarray | None) -> float:
    """Estimates the seconds of an iteration's scores and updates in `number` parts, at the chip's published peak rates."""
    buckets, steps = config.data.prompt_buckets, config.objective.inner_steps
    padded = [
        bucket_of(part.max(), buckets) for part in rollout_batches(fitting_lengths(lengths, buckets), config.rl.prompts, number)
    ]
    again = model.remat == "full"
    # The backward pass has twice the products of the forward pass, or as many if the weights have no gradients.
    update = (2 if config.lora else 3) + again
    mean = 0.0
    for size in buckets:
        share = padded.count(size) / len(padded)
        one = part_seconds(config, model, mesh, number, size, update, gathers=2 + again)
        mean += share * (steps * one + part_seconds(config, model, mesh, number, size, products=2, gathers=2))
    return number * mean


def part_seconds(
    config: Config, model: ModelConfig, mesh: Mesh, number: int, prompt_length: int, products: int, gathers: int
) -> float:
    """Estimates the seconds of one of `number` parts that takes `products` times the products of a forward pass, and gathers all
    weights `gathers` times."""
    chip, shared, size = chip_of(mesh), mesh.shape["tensor"], 2 if model.compute_dtype == "bfloat16" else 4
    positions, rows = prompt_length + config.sampler.completion_length, _rows(config, mesh, number)
    flops = products * rows * forward_flops(model, positions, config.sampler.completion_length) / shared
    weights = shard_bytes(transformer.abstract(in_compute_dtype(model), mesh)) * mesh.shape["fsdp"]
    moved = gathers * (2 * weights + model.layers * rows * positions * size * (16 * model.width + 6 * model.mlp_width / shared))
    received = gathers * weights * (1 - 1 / mesh.shape["fsdp"])
    received += products * 4 * model.layers * rows * positions * model.width * 4 * (1 - 1 / shared)
    return max(flops / chip.flops, moved / chip.hbm) + received / chip.link


def update_bytes(config: Config, model: ModelConfig, mesh: Mesh, number: int) -> float:
    """Estimates the bytes that a device holds during an update in `number` parts whose prompts fill the largest bucket."""
    length, shared, size = config.sampler.completion_length, mesh.shape["tensor"], 2 if model.compute_dtype == "bfloat16" else 4
    rows, positions = _rows(config, mesh, number), config.data.prompt_buckets[-1] + length
    inside = 4 * model.width + (3 * model.mlp_width + 2 * model.kv_heads * model.head_size) / shared
    layer = rows * positions * (2 * model.width + 2 * inside) * size  # activations of one layer and their gradients
    scores = 2 * min(rows * model.heads / shared * positions**2 * (4 + size), 2 * LARGEST_SCORES) * (model.attention == "xla")
    kept = model.layers * rows * positions * (model.width + (0 if model.remat == "full" else inside)) * size
    logits = 3 * 4 * min(model.head_chunk or rows * length, rows * length) * model.vocab_size / shared
    gradients = shard_bytes(Policy(model, config.lora).abstract(mesh)) * (2 if number > 1 else 1)
    matrices = model.width * (2 * model.width + 3 * model.mlp_width) * 2 + model.vocab_size * model.width
    gathered = size / shared * matrices * (mesh.shape["fsdp"] > 1)
    return held_bytes(config, model, mesh, mesh) + kept + max(layer + scores, logits) + gradients + gathered


def _rows(config: Config, mesh: Mesh, number: int) -> float:
    """Returns the rows of a part that a device computes."""
    return config.rl.prompts / number / batch_size_divisor(mesh) * config.objective.rows_per_prompt(config.rl.group_size)
