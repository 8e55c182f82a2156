"""Training state and optimizer, shared by supervised training and RL."""

import dataclasses
import math
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from igpo_jax.model.sharding import Params
from igpo_jax.runtime.checks import not_negative, positive, require
from igpo_jax.runtime.mesh import replicated, split_rows
from igpo_jax.training.policy import Policy


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Configuration of AdamW with gradient clipping by global norm. A linear warm-up precedes the learning-rate schedule."""

    learning_rate: float  # the highest, after the warm-up
    warmup_steps: int = 50  # updates in which the learning rate rises linearly
    schedule: str = "constant"  # constant | cosine (to 5 % of the peak at the stage's last update) | linear (to 0)
    b1: float = 0.9  # decay of the mean of the gradients, the first moment
    b2: float = 0.99  # decay of the mean of their squares, the second moment
    weight_decay: float = 0.1  # of AdamW, times the learning rate
    max_grad_norm: float = 0.2  # gradients with a larger global norm are scaled down to it
    first_moment_dtype: str = "float32"  # float32 | bfloat16, which saves two bytes per parameter

    def __post_init__(self):
        if self.schedule not in ("constant", "cosine", "linear"):
            raise ValueError(f"schedule={self.schedule!r} is none of constant, cosine, linear")
        for name, problem in (
            ("learning_rate", positive(self.learning_rate)),
            ("max_grad_norm", "" if self.max_grad_norm == math.inf else positive(self.max_grad_norm)),
            ("weight_decay", not_negative(self.weight_decay)),
        ):
            require(not problem, f"{name}={getattr(self, name)}{problem}")
        if not (0 <= self.b1 < 1 and 0 <= self.b2 < 1 and self.warmup_steps >= 0):  # also rejects NaN
            raise ValueError(f"b1={self.b1} and b2={self.b2} must lie in [0, 1), warmup_steps not be negative")
        if self.first_moment_dtype not in ("float32", "bfloat16"):
            raise ValueError(f"first_moment_dtype={self.first_moment_dtype!r} is not 'float32' or 'bfloat16'")

    def learning_rate_at(self, updates: int) -> optax.Schedule:
        """Returns the learning-rate schedule of a training stage with `updates` updates."""
        warmup = optax.linear_schedule(self.learning_rate / max(self.warmup_steps, 1), self.learning_rate, self.warmup_steps)
        decay = max(updates - self.warmup_steps, 1)
        if self.schedule == "cosine":
            rest = optax.cosine_decay_schedule(self.learning_rate, decay, alpha=0.05)
        elif self.schedule == "linear":
            rest = optax.linear_schedule(self.learning_rate, 0.0, decay)
        else:
            rest = optax.constant_schedule(self.learning_rate)
        return optax.join_schedules([warmup, rest], [self.warmup_steps])


@flax.struct.dataclass
class TrainState:
    """Arrays that an update changes: step number, trained parameters and optimizer state."""

    step: jax.Array  # i32[], updates of this stage so far, including skipped ones
    params: Params  # trained parameters in float32: all of the network's, or adapters
    opt_state: optax.OptState

    @classmethod
    def abstract(cls, optimizer: optax.GradientTransformation, policy: Policy, mesh: Mesh) -> "TrainState":
        """Returns a `TrainState` that holds `jax.ShapeDtypeStruct` instead of arrays. Optimizer moments are sharded like their
        parameters, and scalars are replicated."""
        params = policy.abstract(mesh)

        def placed(leaf, sharding):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        opt_state = optax.tree.map_params(
            optimizer,
            lambda leaf, param: placed(leaf, param.sharding),
            jax.eval_shape(optimizer.init, params),
            params,
            transform_non_params=lambda leaf: placed(leaf, replicated(mesh)),
        )
        step: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh))
        return cls(step, params, opt_state)


def make_optimizer(cfg: OptimizerConfig, updates: int, policy: Policy) -> optax.GradientTransformation:
    """Returns the Optax optimizer of a training stage with `updates` updates."""
    rate, mask = cfg.learning_rate_at(updates), policy.decay_mask()
    adamw = optax.adamw(rate, b1=cfg.b1, b2=cfg.b2, weight_decay=cfg.weight_decay, mask=mask, mu_dtype=cfg.first_moment_dtype)
    return optax.chain(optax.clip_by_global_norm(cfg.max_grad_norm), adamw)


def state_shardings(optimizer: optax.GradientTransformation, policy: Policy, mesh: Mesh) -> TrainState:
    """Returns a `TrainState` that contains the `NamedSharding` of every array instead of the array."""
    return jax.tree.map(lambda leaf: leaf.sharding, TrainState.abstract(optimizer, policy, mesh))


def create_state(params: Params, optimizer: optax.GradientTransformation, policy: Policy, mesh: Mesh) -> TrainState:
    """Returns the initial training state. The state holds a copy of `params`, because updates donate the state while the caller
    still needs `params`."""

    def create(params):
        return TrainState(step=jnp.int32(0), params=jax.tree.map(jnp.copy, params), opt_state=optimizer.init(params))

    return jax.jit(create, out_shardings=state_shardings(optimizer, policy, mesh))(params)


def apply_gradients(
    state: TrainState, loss: jax.Array, gradients: Params, optimizer: optax.GradientTransformation
) -> tuple[TrainState, jax.Array, jax.Array]:
    """Applies one update. If the loss or the gradient norm is not finite, only the step number and the learning-rate schedule
    advance. Returns the new state, the gradient norm before clipping, and a bool for each parameter array, which is True if the
    norm of the array's gradient is finite."""
    norm = optax.tree.norm(gradients)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    good = ~is_skipped(loss, norm)
    params, opt_state = jax.tree.map(
        lambda new, old: jnp.where(good, new, old), (params, opt_state), (state.params, state.opt_state)
    )
    step = state.step + 1
    if optax.tree.get_all_with_path(opt_state, "ScaleByScheduleState"):
        opt_state = optax.tree.set(opt_state, ScaleByScheduleState=optax.ScaleByScheduleState(count=step))
    finite = jnp.stack([jnp.isfinite(optax.tree.norm(leaf)) for leaf in jax.tree.leaves(gradients)])
    return TrainState(step=step, params=params, opt_state=opt_state), norm, finite


def is_skipped(loss, norm):
    """Returns whether an update is skipped because its loss or gradient norm is not finite. Accepts device and host arrays."""
    return ~(abs(loss) + norm < math.inf)


def accumulate_gradients(value_and_grad, params: Params, batch, microbatches: int):
    """Returns the results of `value_and_grad`, averaged over microbatches. The microbatches are computed one after the other to
    save memory.

    Args:
        value_and_grad: function (params, part of the batch) -> ((loss, statistics), gradients). Each result is a mean over this
            part of the batch.
        batch: pytree of arrays whose first axes have the same size, a multiple of `microbatches`."""
    if microbatches == 1:
        return value_and_grad(params, batch)
    parts = split_rows(batch, microbatches)
    shapes = jax.eval_shape(value_and_grad, params, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = jax.lax.scan(
        lambda total, part: (jax.tree.map(jnp.add, total, value_and_grad(params, part)), None), zeros, parts
    )
    return jax.tree.map(lambda x: x / microbatches, total)
