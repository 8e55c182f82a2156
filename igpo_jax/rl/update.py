"""One update of the policy: computes the objective and its gradients, and applies the gradients with an Optax optimizer."""

from collections.abc import Callable

import jax
import optax
from jax.sharding import Mesh

from igpo_jax.model.sharding import Params
from igpo_jax.rl.likelihood import GroupBatch
from igpo_jax.rl.objective import LogProbs, ObjectiveConfig, loss_and_statistics
from igpo_jax.training.policy import Policy
from igpo_jax.training.state import TrainState, accumulate_gradients, apply_gradients, state_shardings


def make_update(
    optimizer: optax.GradientTransformation,
    policy: Policy,
    objective: ObjectiveConfig,
    mesh: Mesh,
    microbatches: int = 1,
) -> Callable:
    """Returns a compiled function that updates the policy: (state, batch, logprobs, inner_step, base_params) -> (state,
    statistics).

    The function donates `state`. The number of prompts in the batch must be a multiple of `microbatches`. `inner_step`, int32
    [], is the index of the inner update. `base_params` are the frozen parameters under the adapters in `state`, or None if
    there are no adapters. If the loss or a gradient is not finite, `apply_gradients` skips the update."""

    def update(
        state: TrainState, batch: GroupBatch, logprobs: LogProbs, inner_step: jax.Array, base_params: Params | None = None
    ):
        logprobs = jax.tree.map(lambda x: x[inner_step % x.shape[0]], logprobs)

        def part_loss(trained, part):
            return loss_and_statistics(policy.assemble(trained, base_params), *part, policy.model, objective, mesh)

        (loss, statistics), gradients = accumulate_gradients(
            jax.value_and_grad(part_loss, has_aux=True), state.params, (batch, logprobs), microbatches
        )
        state, norm, finite = apply_gradients(state, loss, gradients, optimizer)
        return state, {**statistics, "policy/loss": loss, "policy/grad_norm": norm, "finite_gradients": finite}

    return jax.jit(update, donate_argnums=0, out_shardings=(state_shardings(optimizer, policy, mesh), None))
