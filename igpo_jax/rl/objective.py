"""GRPO objective of IGPO: advantages, loss mask, ratios, clipping and KL (docs/method.md sections 9-11; paper Eq. 2, 3, 5)."""

import dataclasses
import functools
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from igpo_jax.model.logprobs import HEAD
from igpo_jax.model.sharding import Array, Params
from igpo_jax.model.transformer import ModelConfig, head_matrix
from igpo_jax.rl.likelihood import GroupBatch, LikelihoodConfig, Views, hidden_states, view_scores, views_of
from igpo_jax.runtime.checks import checked, not_negative, one_of, require, within
from igpo_jax.runtime.mesh import BATCH, join_rows, split_rows

MAX_LOG_RATIO = 20.0  # keeps exp finite; the number of clipped log-ratios is logged


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig(LikelihoodConfig):
    """Configuration of the RL objective. Defaults follow the paper; docs/method.md section 15 lists the options."""

    # "clipped": min(ratio * A, clip(ratio) * A) for the advantage A. "wd1" (arXiv 2507.08838): no ratio, but the
    # log-likelihood weighted by softmax(A) - softmax(-A) over the group.
    loss: str = checked("clipped", one_of("clipped", "wd1"))
    ratio: str = checked("sequence", one_of("sequence", "token"))
    # epsilon: the ratio is clipped to [1 - clip_low, 1 + clip_high]
    clip_low: float = checked(0.2, lambda value: "" if 0 <= value < 1 else " must be within [0, 1)")
    clip_high: float = checked(0.2, not_negative)  # DAPO (arXiv 2503.14476): 0.28
    kl: str = checked("k3", one_of("k1", "k2", "k3"))  # estimator of the KL to the reference from one sample
    kl_coefficient: float = checked(0.01, not_negative)  # beta
    entropy_keep: float = checked(0.2, within(0, 1))  # tau: share of hint tokens that are trained on; 0: none
    # Weight of a supervised loss, -log pi of hint tokens, in completions with a positive advantage.
    hint_supervision: float = checked(0.0, not_negative)
    # Loss of a completion. "completion": mean over its tokens. "canvas": sum over its tokens, divided by the length of the
    # canvas (Dr. GRPO, arXiv 2503.20783), so that a token has the same weight in short and long completions.
    normalization: str = checked("completion", one_of("completion", "canvas"))
    normalize_advantages: bool = False  # divide by the group's standard deviation
    # False: the loss uses the tokens up to the first EOS, without the hints that the entropy filter drops, and all completions
    # have equal weights. True, as in the reference code: the loss also uses tokens after EOS, the sequence ratio also uses the
    # dropped hints, and completions are weighted by their number of tokens.
    reference_code: bool = False

    def __post_init__(self):
        super().__post_init__()
        require(
            self.loss == "clipped" or self.ratio == "sequence",
            f"objective.loss={self.loss!r} has no ratio; objective.ratio={self.ratio!r} would do nothing",
        )
        require(
            self.normalization == "completion" or (self.ratio == "token" and not self.normalize_advantages),
            "objective.normalization='canvas' is for sums over tokens, objective.ratio='token', without "
            "objective.normalize_advantages",
        )
        switches = self.loss, self.kl, self.normalization, self.hint_supervision
        works = self.estimator in ("mean_field", "masked") and switches == ("clipped", "k3", "completion", 0)
        require(
            works or not self.reference_code,
            "objective.reference_code=True has estimators mean_field and masked, the clipped loss, k3, the mean over a "
            "completion and no hint_supervision",
        )


def advantages(rewards: np.ndarray, graded: np.ndarray, normalize: bool) -> np.ndarray:
    """Returns the advantages, float32 [n, g], of completions with the given rewards, float32 [n, g]. The advantage is the reward
    minus the mean reward of the group. If `normalize` is True, this difference is divided by the standard deviation of the
    rewards in the group. Both statistics are over the completions that `graded`, bool [n, g], marks; others get advantage 0."""

    def group_mean(values):
        number = np.maximum(graded.sum(axis=1, keepdims=True, dtype=values.dtype), 1)
        return np.where(graded, values, 0).sum(axis=1, keepdims=True) / number

    centered = np.where(graded, rewards - group_mean(rewards), 0)
    if normalize:
        centered = centered / (np.sqrt(group_mean(centered**2)) + 1e-6)
    return centered


@flax.struct.dataclass
class LogProbs:
    """Token scores under the old and the reference policy. They stay fixed during the inner updates. The leading axis e of the
    arrays is the inner step. Its size is 1 if all inner steps have the same views."""

    old: Array  # f32[e, n, g, l]
    reference: Array  # f32[e, n, g, l]
    views: Views
    loss_mask: Array  # bool[e, n, g, l], the tokens that ratio, loss and KL use
    entropy: Array  # f32[e, n, g, l], entropy of the old policy, mean over views

    @classmethod
    def abstract(cls, mesh: Mesh, batch: GroupBatch, cfg: LikelihoodConfig) -> "LogProbs":
        """Returns `LogProbs` that hold `jax.ShapeDtypeStruct` (shape, dtype, sharding on `mesh`) instead of arrays."""
        views = Views.abstract(mesh, batch, cfg)
        flag: Any = views.scored
        score: Any = jax.ShapeDtypeStruct(flag.shape, jnp.float32, sharding=flag.sharding)
        return cls(old=score, reference=score, views=views, loss_mask=flag, entropy=score)


@functools.partial(jax.jit, static_argnames=("cfg", "objective", "mesh", "microbatches"))
def compute_logprobs(
    params: Params,
    reference: Params,
    batch: GroupBatch,
    key: Array,
    cfg: ModelConfig,
    objective: ObjectiveConfig,
    mesh: Mesh,
    microbatches: int = 1,
) -> LogProbs:
    """Computes token scores under the old and the reference policy, and the loss mask after the entropy filter. `params` are
    the parameters of the policy that sampled the rollout, `reference` are the parameters of the policy in the KL term, and
    `key` is the iteration's PRNG key. The batch is computed in `microbatches` parts, one after the other, to save memory."""
    per_row = P(BATCH)

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(per_row, HEAD, per_row, per_row), out_specs=(per_row, per_row))
    def sharded_scores(hidden, head, batch, weight):
        return view_scores(hidden, head, batch, weight, objective, cfg.head_chunk)

    def score_part(part):
        batch, views = part

        def under(params):
            return sharded_scores(hidden_states(params, batch, views, cfg), head_matrix(params, cfg), batch, views.weight)

        old, entropy = under(params)
        counts = batch.loss_mask & views.scored
        kept = entropy_filter(entropy, batch.hint & counts, objective.entropy_keep)
        return LogProbs(old, under(reference)[0], views, counts & (~batch.hint | kept), entropy)

    def score_one(views):
        if microbatches == 1:
            return score_part((batch, views))
        return join_rows(jax.lax.map(score_part, split_rows((batch, views), microbatches)))

    return jax.lax.map(score_one, views_of(key, batch, objective))


def entropy_filter(entropy: Array, candidates: Array, keep: float) -> Array:
    """Selects the candidates with the highest entropy in each row. `candidates` is bool [..., l], and `entropy` float32 [...,
    l]. Of h candidates in a row, max(1, floor(keep * h)) are selected, or none if `keep` is 0 (docs/method.md section 11)."""
    number = candidates.sum(axis=-1, keepdims=True)
    kept = jnp.maximum(int(keep > 0), jnp.floor(keep * number + 1e-6).astype(jnp.int32))
    order = jnp.argsort(jnp.argsort(-jnp.where(candidates, entropy, -jnp.inf), axis=-1, stable=True), axis=-1)
    return candidates & (order < kept)


def group_weights(advantages: Array, used: Array) -> jax.Array:
    """Returns the weights softmax(A) - softmax(-A) of the wd1 loss, float32 [..., g], for a group's advantages A. The weights
    are 0 if all advantages are equal. They are multiplied by g, so that a mean over completions equals the sum in wd1. `used`,
    bool [..., g], marks the completions that the softmax is over; the others get weight 0."""
    plus, minus = (jax.nn.softmax(sign * advantages, axis=-1, where=used) for sign in (1, -1))
    return (plus - minus) * advantages.shape[-1]


def kl_estimate(new: Array, reference: Array, kind: str) -> jax.Array:
    """Estimates KL(new || reference) from one sample with the log-ratio d = log reference - log new. The estimators are k1 = -d
    (unbiased), k2 = d^2 / 2, and k3 = e^d - d - 1 (unbiased and never negative, Schulman 2020). All estimates are 0 before the
    first update of the RL stage, because the new, old and reference policies are still the same network with the same views
    (docs/method.md section 10)."""
    to_reference = jnp.clip(reference - new, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    if kind == "k1":
        return -to_reference
    return to_reference**2 / 2 if kind == "k2" else jnp.exp(to_reference) - to_reference - 1


def policy_terms(
    new: Array,
    old: Array,
    reference: Array,
    advantages: Array,
    loss_mask: Array,
    cfg: ObjectiveConfig,
    scored: Array | None = None,
    hint: Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes the loss and the statistics of every completion.

    Tokens outside the loss mask, such as hint tokens that the entropy filter drops, get no gradient, with two exceptions. With
    cfg.hint_supervision, hint tokens of completions with a positive advantage get the gradient of the supervised loss. With
    cfg.reference_code, scored tokens get a gradient through the sequence ratio, and the loss of a completion is multiplied by
    its number of tokens in the loss mask, divided by the mean of this number in the group (docs/method.md section 10).

    Args:
        new, old, reference: token scores under the three policies, see `likelihood.combine`, float32 [..., l].
        advantages: advantages of the completions, float32 [...]; the last axis runs over a group.
        loss_mask: mask of the tokens that ratio, loss and KL use, bool [..., l].
        scored: mask of the tokens for which a likelihood is estimated, bool [..., l]; needed with cfg.reference_code.
        hint: mask of the hint tokens up to the first EOS, bool [..., l]; needed with cfg.hint_supervision.

    Returns:
        The loss and a dict of statistics, each float32 [...]. The statistics are means over the tokens of a completion, except
        policy/overflow, which counts the tokens whose log-ratio was clipped."""

    def token_mean(values, mask=loss_mask):
        return jnp.sum(values, axis=-1, where=mask) / jnp.maximum(mask.sum(axis=-1), 1)

    def reduced(values):
        if cfg.normalization == "canvas":
            return jnp.sum(values, axis=-1, where=loss_mask) / new.shape[-1]
        return token_mean(values)

    log_ratio = new - old
    if cfg.ratio == "sequence":
        sequence_mean = token_mean(log_ratio, scored if cfg.reference_code else loss_mask)
        log_ratio = jnp.broadcast_to(sequence_mean[..., None], new.shape)
    ratio = jnp.exp(jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO))
    if cfg.loss == "wd1":
        has_no_verdict = ~loss_mask.any(axis=-1) & (advantages == 0)  # see `rollout`
        surrogate = group_weights(advantages, ~has_no_verdict)[..., None] * new
        clip_fraction = jnp.zeros_like(advantages)
    else:
        advantage = advantages[..., None]
        clipped = jnp.clip(ratio, 1 - cfg.clip_low, 1 + cfg.clip_high)
        surrogate = jnp.minimum(ratio * advantage, clipped * advantage)
        clip_fraction = token_mean((surrogate < ratio * advantage).astype(jnp.float32))

    kl = kl_estimate(new, reference, cfg.kl)
    loss = reduced(cfg.kl_coefficient * kl - surrogate)
    if cfg.hint_supervision:
        assert hint is not None
        loss -= cfg.hint_supervision * token_mean(new, hint & (advantages > 0)[..., None])
    if cfg.reference_code:
        tokens = loss_mask.sum(axis=-1)
        loss = loss * tokens / jnp.maximum(tokens.mean(axis=-1, keepdims=True), 1)
    overflow = (jnp.abs(log_ratio) > MAX_LOG_RATIO) | (jnp.abs(reference - new) > MAX_LOG_RATIO)
    statistics = {
        "policy/kl": token_mean(kl),
        "policy/ratio_mean": token_mean(ratio),
        "policy/clip_fraction": clip_fraction,
        "policy/overflow": jnp.sum(overflow, axis=-1, where=loss_mask).astype(jnp.float32),
    }
    return loss, statistics


def loss_and_statistics(
    params: Params, batch: GroupBatch, logprobs: LogProbs, cfg: ModelConfig, objective: ObjectiveConfig, mesh: Mesh
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the loss and the statistics, averaged over all completions of the batch.

    The transformer runs under automatic sharding. The product with the output matrix, the log-probabilities, the ratios and the
    sums over completions are computed under `shard_map`, with prompts split over the mesh axes `data` and `fsdp` and the
    vocabulary over the mesh axis `tensor`. The result does not depend on the number of devices.

    Args:
        logprobs: one update's slice of the result of `compute_logprobs`."""
    rows = batch.advantages.size
    per_row = P(BATCH)

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(per_row, HEAD, per_row, per_row), out_specs=P())
    def sharded_loss(hidden, head, batch, logprobs):
        new, _ = view_scores(hidden, head, batch, logprobs.views.weight, objective, cfg.head_chunk)
        scored = logprobs.views.scored
        fixed = logprobs.old, logprobs.reference, batch.advantages, logprobs.loss_mask
        loss, statistics = policy_terms(new, *fixed, objective, scored, batch.hint & batch.loss_mask & scored)
        return jax.tree.map(lambda x: jax.lax.psum(jnp.sum(x), BATCH) / rows, (loss, statistics))

    hidden = hidden_states(params, batch, logprobs.views, cfg)
    return sharded_loss(hidden, head_matrix(params, cfg), batch, logprobs)
