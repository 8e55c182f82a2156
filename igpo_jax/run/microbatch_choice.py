"""Chooses what depends on the memory that updates need: rl.microbatches, and whether the copy of frozen parameters for sampling
stays in memory. A batch is split into microbatches to save memory. Log-probabilities and gradients are computed for one
microbatch after the other."""

import dataclasses

from jax.sharding import Mesh

from igpo_jax.config import Config
from igpo_jax.model.attention import LARGEST_SCORES
from igpo_jax.model.sharding import shard_bytes
from igpo_jax.model.transformer import ModelConfig
from igpo_jax.run.layout import held_bytes, usable_bytes
from igpo_jax.runtime.mesh import batch_size_divisor
from igpo_jax.training.policy import Policy


def with_microbatches(config: Config, model: ModelConfig, mesh: Mesh) -> Config:
    """Returns the configuration with rl.microbatches replaced if it is 0. The chosen value is the smallest number of
    microbatches with which an update is estimated to fit into memory. If no number makes the update fit, it is the number that
    needs the least memory. Fewer microbatches are faster on a mesh that shards the weights, because the weights are gathered
    again for every microbatch."""
    rl, rows = config.rl, batch_size_divisor(mesh)
    if rl.microbatches:
        return config
    numbers = [n for n in range(1, rl.prompts + 1) if rl.prompts % (n * rows) == 0] or [1]
    limit = usable_bytes(mesh)
    needed = {n: update_bytes(config, model, mesh, n) for n in numbers}
    number = next((n for n in numbers if needed[n] <= limit), min(numbers, key=needed.__getitem__))
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


def update_bytes(config: Config, model: ModelConfig, mesh: Mesh, number: int) -> float:
    """Returns the estimated memory in bytes that a device needs for an update with `number` microbatches. Assumes that all
    prompts are padded to the largest prompt bucket."""
    length, shared, size = config.sampler.completion_length, mesh.shape["tensor"], 2 if model.compute_dtype == "bfloat16" else 4
    rows = config.rl.prompts / number / batch_size_divisor(mesh) * config.objective.rows_per_prompt(config.rl.group_size)
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
