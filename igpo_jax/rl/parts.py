"""Parts of a batch that hold prompts of similar length, so that little computation is spent on padding. Log-probabilities and
gradients of one part after the other are computed by a program for the part's prompt bucket, and the gradients are added."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from igpo_jax.data.buckets import bucket_of
from igpo_jax.data.pipeline import take_rows
from igpo_jax.model.sharding import Params
from igpo_jax.rl.likelihood import GroupBatch
from igpo_jax.rl.objective import LogProbs, ObjectiveConfig, loss_and_statistics
from igpo_jax.rl.update import make_update
from igpo_jax.runtime.mesh import shard_batch
from igpo_jax.training.policy import Policy
from igpo_jax.training.state import TrainState, apply_gradients, state_shardings


def split_by_length(groups: GroupBatch, number: int, buckets: Sequence[int], mesh: Mesh) -> list[GroupBatch]:
    """Splits a batch on the host into `number` parts of equally many prompts with similar lengths, and moves the parts to
    `mesh`. The prompts of a part are padded to the smallest bucket that holds them. One part is the unchanged batch."""
    if number == 1:
        return [shard_batch(groups, mesh)]
    lengths = np.sum(groups.prompt_mask, axis=1)
    parts = []
    for rows in np.split(np.argsort(lengths, kind="stable"), number):
        part, size = take_rows(groups, rows), bucket_of(int(lengths[rows].max()), buckets)
        part = part.replace(prompt=part.prompt[:, -size:], prompt_mask=part.prompt_mask[:, -size:])
        parts.append(shard_batch(part, mesh))
    return parts


class PartPrograms(NamedTuple):
    """Compiled functions for an update whose batch is split into parts, see `make_update_of_parts`."""

    zeros: Callable  # () -> sum of no gradients
    # (sum, trained parameters, part, its log-probabilities, inner_step, base_params) -> (sum, statistics of the part). Donates
    # the sum. Compiled once for each prompt bucket that occurs.
    add_gradients: Callable
    apply: Callable  # (state, sum, statistics of all parts) -> (state, statistics of the batch). Donates the state.


def part_programs(
    optimizer: optax.GradientTransformation, policy: Policy, objective: ObjectiveConfig, mesh: Mesh
) -> PartPrograms:
    abstract = policy.abstract(mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)

    def zeros():
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract)

    def add_gradients(total: Params, params: Params, batch: GroupBatch, logprobs: LogProbs, inner_step, base_params):
        logprobs = jax.tree.map(lambda x: x[inner_step % x.shape[0]], logprobs)

        def part_loss(trained):
            assembled = policy.assemble(trained, base_params)
            return loss_and_statistics(assembled, batch, logprobs, policy.model, objective, mesh)

        (loss, statistics), gradients = jax.value_and_grad(part_loss, has_aux=True)(params)
        return jax.tree.map(jnp.add, total, gradients), {**statistics, "policy/loss": loss}

    def apply(state: TrainState, total: Params, statistics: list[dict]):
        means = jax.tree.map(lambda *values: sum(values) / len(values), *statistics)
        gradients = jax.tree.map(lambda x: x / len(statistics), total)
        state, norm, finite = apply_gradients(state, means["policy/loss"], gradients, optimizer)
        return state, {**means, "policy/grad_norm": norm, "finite_gradients": finite}

    return PartPrograms(
        jax.jit(zeros, out_shardings=shardings),
        jax.jit(add_gradients, donate_argnums=0, out_shardings=(shardings, None)),
        jax.jit(apply, donate_argnums=0, out_shardings=(state_shardings(optimizer, policy, mesh), None)),
    )


def make_update_of_parts(
    optimizer: optax.GradientTransformation,
    policy: Policy,
    objective: ObjectiveConfig,
    mesh: Mesh,
    parts: int,
    microbatches: int,
) -> Callable:
    """Returns a function like that of `make_update`, for batches from `split_by_length`: (state, batches, list of their
    log-probabilities, inner_step, base_params) -> (state, statistics). The gradients of several parts are added on the mesh.
    One part is updated by the program of `make_update`, with `microbatches` microbatches of the same padded length."""
    if parts == 1:
        update = make_update(optimizer, policy, objective, mesh, microbatches)
        return lambda state, batches, logprobs, inner_step, base: update(state, *batches, *logprobs, inner_step, base)
    programs = part_programs(optimizer, policy, objective, mesh)

    def update_of_parts(state, batches, logprobs, inner_step, base_params=None):
        total, statistics = programs.zeros(), []
        for batch, scores in zip(batches, logprobs, strict=True):
            total, found = programs.add_gradients(total, state.params, batch, scores, inner_step, base_params)
            statistics.append(found)
        return programs.apply(state, total, statistics)

    return update_of_parts
