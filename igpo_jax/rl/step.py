"""One update of the policy: objective -> gradients -> optax -> state."""

import functools

import jax
import optax
from jax.sharding import Mesh

from igpo_jax.model.transformer import ModelConfig
from igpo_jax.rl.likelihood import GroupBatch, Scores
from igpo_jax.rl.objective import ObjectiveConfig, loss_and_statistics
from igpo_jax.training import TrainState, accumulate_gradients, apply_gradients


@functools.partial(
    jax.jit,
    static_argnames=("optimizer", "cfg", "objective", "mesh", "microbatches"),
    donate_argnames="state",
)
def update(
    state: TrainState,
    batch: GroupBatch,
    scores: Scores,
    inner_step: jax.Array,
    optimizer: optax.GradientTransformation,
    cfg: ModelConfig,
    objective: ObjectiveConfig,
    mesh: Mesh,
    microbatches: int = 1,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One of the mu inner updates on a rollout.

    Args:
        state: donated.
        batch, scores: of the rollout; the number of prompts is a multiple of `microbatches`.
        inner_step: int32 [], which of the inner steps this is.
        optimizer, cfg, objective, mesh, microbatches: static.
    """
    of_this_step = inner_step % scores.old.shape[0]
    scores = jax.tree.map(lambda x: x[of_this_step], scores)

    def objective_of(params, part):
        return loss_and_statistics(params, *part, cfg, objective, mesh)

    (loss, statistics), gradients = accumulate_gradients(
        jax.value_and_grad(objective_of, has_aux=True), state.params, (batch, scores), microbatches
    )
    state, norm = apply_gradients(state, gradients, optimizer)
    return state, {**statistics, "policy/loss": loss, "policy/grad_norm": norm}
