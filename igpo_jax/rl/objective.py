"""The GRPO objective of IGPO: advantages, ratios, clipping, KL (igpo_method.md 5; paper Eq. 2, 3 and 5)."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from igpo_jax.model.transformer import ModelConfig, Params, head_matrix
from igpo_jax.model.vocabulary import HEAD, token_scores
from igpo_jax.rl.likelihood import GroupBatch, Scores, hidden_states
from igpo_jax.runtime.mesh import BATCH

MAX_LOG_RATIO = 20.0  # exp stays finite; how many were clipped is logged


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """Switches of igpo_method.md section 9; the defaults are PAPER."""

    estimator: str = "mean_field"  # mean_field | masked, see likelihood.py
    inner_steps: int = 4  # mu: updates per rollout
    ratio: str = "sequence"  # sequence | token
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_coefficient: float = 0.01  # beta
    entropy_keep: float = 0.2  # tau: share of hint tokens that is trained on
    normalize_advantages: bool = False  # divide by the group's standard deviation
    # What counts are tokens up to the first EOS, but for filtered hints, and all completions weigh the same; REF: True, and
    # then tokens after EOS count, filtered ones count in the sequence's ratio, and completions weigh by their tokens.
    released: bool = False

    def __post_init__(self):
        if self.estimator not in ("mean_field", "masked"):
            raise ValueError(f"objective.estimator={self.estimator!r} is neither 'mean_field' nor 'masked'")
        if self.ratio not in ("sequence", "token"):
            raise ValueError(f"objective.ratio={self.ratio!r} is neither 'sequence' nor 'token'")
        if not 0 <= self.entropy_keep <= 1:
            raise ValueError(f"objective.entropy_keep={self.entropy_keep} must lie in [0, 1]")
        if self.inner_steps < 1:
            raise ValueError(f"objective.inner_steps={self.inner_steps} must be at least 1")
        if not (0 <= self.clip_low < 1 and self.clip_high >= 0 and 0 <= self.kl_coefficient < math.inf):  # nor NaN
            raise ValueError("objective.clip_low must lie in [0, 1), clip_high and kl_coefficient must not be negative")


def advantages(rewards: jax.Array, normalize: bool) -> jax.Array:
    """r - mean of the group, float32 [n, g]; `normalize` also divides by the group's standard deviation."""
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    if normalize:
        centred = centred / (rewards.std(axis=1, keepdims=True) + 1e-6)
    return centred


def policy_terms(
    new: jax.Array,
    old: jax.Array,
    reference: jax.Array,
    advantages: jax.Array,
    in_loss: jax.Array,
    cfg: ObjectiveConfig,
    scored: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss and statistics of every row (completion).

    Only tokens in the loss mask enter: a hint token that the entropy filter drops has no gradient, neither through
    the sequence's ratio nor through the KL. With cfg.released it has one through the ratio, and a completion weighs by
    its tokens, relative to the mean of its group (igpo_method.md 5.5).

    Args:
        new, old, reference: float32 [..., l], log-probabilities.
        advantages: float32 [...], the last axis a group. in_loss: bool [..., l].
        scored: bool [..., l], tokens that have log-probabilities; only cfg.released needs them.

    Returns:
        The loss of each row, [...], and means over its tokens, [...] each.
    """

    def token_mean(values, of=in_loss):
        return jnp.sum(values, axis=-1, where=of) / jnp.maximum(of.sum(axis=-1), 1)

    log_ratio = new - old
    if cfg.ratio == "sequence":
        of_sequence = token_mean(log_ratio, scored if cfg.released else in_loss)
        log_ratio = jnp.broadcast_to(of_sequence[..., None], new.shape)
    ratio = jnp.exp(jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO))
    advantage = advantages[..., None]
    clipped = jnp.clip(ratio, 1 - cfg.clip_low, 1 + cfg.clip_high)
    surrogate = jnp.minimum(ratio * advantage, clipped * advantage)

    to_reference = jnp.clip(reference - new, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    kl = jnp.exp(to_reference) - to_reference - 1

    loss = token_mean(cfg.kl_coefficient * kl - surrogate)
    if cfg.released:
        tokens = in_loss.sum(axis=-1)
        loss = loss * tokens / jnp.maximum(tokens.mean(axis=-1, keepdims=True), 1)
    overflow = (jnp.abs(log_ratio) > MAX_LOG_RATIO) | (jnp.abs(reference - new) > MAX_LOG_RATIO)
    statistics = {
        "policy/kl": token_mean(kl),
        "policy/ratio_mean": token_mean(ratio),
        "policy/clip_fraction": token_mean((surrogate < ratio * advantage).astype(jnp.float32)),
        "policy/overflow": jnp.sum(overflow, axis=-1, where=in_loss).astype(jnp.float32),
    }
    return loss, statistics


def loss_and_statistics(
    params: Params, batch: GroupBatch, scores: Scores, cfg: ModelConfig, objective: ObjectiveConfig, mesh: Mesh
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The objective's mean over all completions of the batch, and the means of its statistics.

    The network runs under automatic sharding; head, log-probabilities, ratios and reduction run under `shard_map`,
    prompts over (data, fsdp) and the vocabulary over tensor, so the value does not depend on the number of devices.

    Args:
        scores: of one inner step, arrays [n, g, l].
    """
    rows = batch.advantages.size
    per_row = P(BATCH)

    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(per_row, HEAD, *[per_row] * 6),
        out_specs=P(),
    )
    def sharded_loss(hidden, head, completions, old, reference, advantages, in_loss, scored):
        new, _ = token_scores(hidden, head, completions, cfg.head_chunk)
        loss, statistics = policy_terms(new, old, reference, advantages, in_loss, objective, scored)
        return jax.tree.map(lambda x: jax.lax.psum(jnp.sum(x), BATCH) / rows, (loss, statistics))

    hidden = hidden_states(params, batch, scores.masked, objective.estimator, cfg)
    return sharded_loss(
        hidden,
        head_matrix(params, cfg),
        batch.completions,
        scores.old,
        scores.reference,
        batch.advantages,
        scores.in_loss,
        scores.masked,
    )
