"""GRPO objective of IGPO: advantages, loss mask, ratios, clipping and KL (docs/method.md sections 9-11; paper Eq. 2, 3, 5)."""

import dataclasses
import functools
import math
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from igpo_jax.model.logprobs import head_partition
from igpo_jax.model.sharding import Array, Params
from igpo_jax.model.transformer import ModelConfig, head_matrix
from igpo_jax.rl.likelihood import GroupBatch, LikelihoodConfig, Views, combine, hidden_states, view_scores, views_of
from igpo_jax.runtime.checks import checked, not_negative, one_of, require, within
from igpo_jax.runtime.mesh import BATCH, join_rows, split_rows

MAX_LOG_RATIO = 20.0  # nats, keeps exp(log-ratio) finite; policy/overflow counts the tokens beyond it
# Nats. k3 continues linearly above this gap to the reference, so that its gradient is at most e^5, which is about the size of an
# advantage after multiplication by beta = 0.01.
MAX_K3_GAP = 5.0
ROUNDING = 1e-6  # relative difference up to which float32 rewards are equal
ADVANTAGE_EPSILON = 1e-4  # added to the standard deviation, as in TRL


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig(LikelihoodConfig):
    """Configuration of the RL objective. Defaults follow the paper; docs/method.md section 15 lists the options."""

    # "clipped": min(ratio * A, clip(ratio) * A) for the advantage A. "wd1" (arXiv 2507.08838): no ratio, but the
    # log-likelihood, a sum over tokens, weighted by softmax(A) - softmax(-A) over the group.
    loss: str = checked("clipped", one_of("clipped", "wd1"))
    ratio: str = checked("sequence", one_of("sequence", "token"))  # probability ratio of each completion, or of each token
    # epsilon: the ratio is clipped to [1 - clip_low, 1 + clip_high]
    clip_low: float = checked(0.2, lambda value: "" if 0 <= value < 1 else " must be within [0, 1)")
    clip_high: float = checked(0.2, not_negative)  # see `clip_low`; DAPO (arXiv 2503.14476): 0.28
    # Estimator of the KL to the reference from one sample, see `kl_estimate`. "k1" has no useful gradient and is only logged.
    kl: str = checked("k3", one_of("k1", "k2", "k3", "k3_corrected"))
    kl_coefficient: float = checked(0.01, not_negative)  # beta: weight of the KL in the loss
    entropy_keep: float = checked(0.2, within(0, 1))  # tau: share of hint tokens that are trained on; 0: none
    # Weight of a supervised loss, -log pi of hint tokens, in completions with a positive advantage.
    hint_supervision: float = checked(0.0, not_negative)
    # Loss of a completion. "completion": mean over its tokens. "canvas": sum over its tokens, divided by the length of the
    # canvas (Dr. GRPO, arXiv 2503.20783), so that a token has the same weight in short and long completions.
    normalization: str = checked("completion", one_of("completion", "canvas"))
    normalize_advantages: bool = False  # divide advantages by the standard deviation of the group's rewards
    # False: the loss uses the tokens up to the first EOS, without the hints that the entropy filter drops, and all completions
    # have equal weights. True, as in the reference code: the loss also uses tokens after EOS, the sequence ratio uses all tokens
    # of the canvas, and completions are weighted by their number of tokens.
    reference_code: bool = False

    def __post_init__(self):
        super().__post_init__()
        require(
            self.loss == "clipped" or self.ratio == "sequence",
            f"objective.loss={self.loss!r} has no ratio; objective.ratio={self.ratio!r} would do nothing",
        )
        require(
            self.ratio == "sequence" or not self.upper_weight,
            f"objective.ratio='token' with objective.upper_weight={self.upper_weight}: the upper bound is the logarithm of a sum "
            "over views, so a token has no ratio per view; use objective.ratio='sequence' or objective.upper_weight=0",
        )
        require(
            self.kl != "k1" or not self.kl_coefficient,
            f"objective.kl='k1' with objective.kl_coefficient={self.kl_coefficient}: the gradient of k1 is 0 on average, so it is "
            "no penalty; use objective.kl k2, k3 or k3_corrected, or objective.kl_coefficient=0 to only log k1",
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


def equal_rewards(rewards: np.ndarray, graded: np.ndarray) -> np.ndarray:
    """Returns a mask, bool [n], that is True for the groups whose rewards are all equal up to rounding. Such groups give no
    learning signal. `rewards` is float32 [n, g]. Completions that are False in `graded`, bool [n, g], are ignored."""
    least = np.min(rewards, axis=1, where=graded, initial=np.inf)
    most = np.max(rewards, axis=1, where=graded, initial=-np.inf)
    return most - least <= ROUNDING * np.max(np.abs(rewards), axis=1, where=graded, initial=0)


def advantages(rewards: np.ndarray, graded: np.ndarray, normalize: bool) -> np.ndarray:
    """Returns the advantages of completions, float32 [n, g], given their rewards, float32 [n, g]. The advantage is the reward
    minus the mean reward of the group. If `normalize` is True, this difference is divided by the standard deviation of the
    group's rewards plus `ADVANTAGE_EPSILON`. The mean and the standard deviation cover only the completions that are True in
    `graded`, bool [n, g]. All other completions get advantage 0. If `equal_rewards` is True for a group, all its advantages are
    0, because the differences between its rewards are rounding errors."""

    def group_mean(values):
        number = np.maximum(graded.sum(axis=1, keepdims=True, dtype=values.dtype), 1)
        return np.where(graded, values, 0).sum(axis=1, keepdims=True) / number

    differs = graded & ~equal_rewards(rewards, graded)[:, None]
    centered = np.where(differs, rewards - group_mean(rewards), 0)
    if normalize:
        centered = centered / (np.sqrt(group_mean(centered**2)) + ADVANTAGE_EPSILON)
    return centered


@flax.struct.dataclass
class LogProbs:
    """Log-probabilities of the completions' tokens under the old and the reference policy, in each of the k views. These values
    stay fixed during the inner updates. The leading axis e of the arrays is the index of the inner update. Its size is 1 if all
    inner updates have the same views."""

    old: Array  # f32[e, n, k, g, l]
    reference: Array  # f32[e, n, k, g, l]
    views: Views
    loss_mask: Array  # bool[e, n, g, l], the tokens that ratio, loss and KL use
    entropy: Array  # f32[e, n, g, l], entropy of the old policy, mean over views

    @classmethod
    def abstract(cls, mesh: Mesh, batch: GroupBatch, cfg: LikelihoodConfig) -> "LogProbs":
        """Returns `LogProbs` that hold `jax.ShapeDtypeStruct` (shape, dtype, sharding on `mesh`) instead of arrays."""
        views = Views.abstract(mesh, batch, cfg)
        per_view: Any = views.weight
        flag: Any = views.scored
        entropy: Any = jax.ShapeDtypeStruct(flag.shape, jnp.float32, sharding=flag.sharding)
        return cls(old=per_view, reference=per_view, views=views, loss_mask=flag, entropy=entropy)


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
    """Computes log-probabilities under the old and the reference policy, and the loss mask. Of the hint tokens, the loss mask
    contains only those that `entropy_filter` selects. `params` are the parameters of the policy that sampled the rollout, and
    `reference` are the parameters of the policy in the KL term. `key` is the PRNG key of the iteration. To save memory, the
    batch is split into `microbatches` parts, which are computed one after the other."""
    per_row, head = P(BATCH), head_partition(head_matrix(params, cfg))

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(per_row, head, per_row, per_row), out_specs=(per_row, per_row))
    def sharded_scores(hidden, head, batch, weight):
        return view_scores(hidden, head, batch.completions, weight, cfg.head_chunk)

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
    """Selects the candidate tokens with the highest entropy in each completion, and returns them as a mask, bool [..., l].
    `candidates` is bool [..., l], and `entropy` is float32 [..., l]. Of h candidates in a completion, max(1, floor(keep * h))
    are selected. If `keep` is 0, none is selected (docs/method.md section 11)."""
    number = candidates.sum(axis=-1, keepdims=True)
    kept = jnp.maximum(int(keep > 0), jnp.floor(keep * number + 1e-6).astype(jnp.int32))
    order = jnp.argsort(jnp.argsort(-jnp.where(candidates, entropy, -jnp.inf), axis=-1, stable=True), axis=-1)
    return candidates & (order < kept)


def group_weights(advantages: Array, used: Array) -> jax.Array:
    """Returns the weights of completions in the wd1 loss, float32 [..., g]. The weights are g * (softmax(A) - softmax(-A)),
    where A are the advantages of a group. The factor g makes a mean over completions equal to the sum over completions in wd1.
    If all advantages are equal, the weights are 0. The softmax covers only the completions that are True in `used`, bool [...,
    g]. All other completions get weight 0."""
    plus, minus = (jax.nn.softmax(sign * advantages, axis=-1, where=used) for sign in (1, -1))
    return (plus - minus) * advantages.shape[-1]


def kl_estimate(new: Array, old: Array, reference: Array, kind: str) -> Array:
    """Estimates KL(new || reference) from the log-probabilities of a token that the old policy sampled. With
    d = log reference - log new and rho = p_new / p_old, the estimators are:

    - k1 = -d. Averaged over samples of the new policy, its gradient is 0.
    - k2 = d^2 / 2. Its gradient is -d * grad log p_new. Averaged over samples of the new policy, this is the gradient of KL(new
      || reference).
    - k3 = e^d - d - 1 (Schulman 2020; used in the paper). Averaged over samples of the new policy, its value is KL(new ||
      reference), but its gradient is that of KL(reference || new). For d > `MAX_K3_GAP`, the estimator continues linearly.
    - k3_corrected = rho * k3 (DeepSeek-V3.2, arXiv 2512.02556). Its gradient is -rho * d * grad log p_new. Averaged over
      samples of the old policy, both its value and its gradient are those of KL(new || reference).

    All estimates are 0 if the new, the old and the reference policy are equal, which is the case before the first update of the
    RL stage."""
    gap = reference - new
    if kind == "k1":
        return -gap
    if kind == "k2":
        return gap**2 / 2
    if kind == "k3":
        far = gap > MAX_K3_GAP
        near = jnp.where(far, MAX_K3_GAP, gap)
        beyond = jnp.where(far, math.expm1(MAX_K3_GAP) * (gap - MAX_K3_GAP), 0.0)
        return jnp.exp(near) - near - 1 + beyond
    ratio = bounded_exp(jax.lax.stop_gradient(new) - old)
    value = bounded_exp(reference - old) - ratio * (gap + 1)
    # With a constant rho, rho k2 has the same gradient as rho k3, without subtracting large numbers.
    same_gradient = ratio * gap**2 / 2
    return same_gradient + jax.lax.stop_gradient(value - same_gradient)


def kl_is_bounded(new: Array, old: Array, reference: Array, kind: str) -> Array:
    """Returns a bool array that is True for the tokens whose KL estimate is limited by `kl_estimate`, because a ratio of
    probabilities is too large."""
    if kind == "k3":
        return reference - new > MAX_K3_GAP
    corrected = kind == "k3_corrected"
    return corrected & ((jnp.abs(new - old) > MAX_LOG_RATIO) | (jnp.abs(reference - old) > MAX_LOG_RATIO))


def bounded_exp(log_ratio: Array) -> jax.Array:
    return jnp.exp(jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO))


def token_mean(values: Array, mask: Array) -> jax.Array:
    """Returns the mean of `values` over the tokens that are True in `mask`, bool [..., l], as float32 [...]. An empty mask
    gives 0."""
    return jnp.sum(values, axis=-1, where=mask) / jnp.maximum(mask.sum(axis=-1), 1)


def log_ratios(
    new: Array, old: Array, weight: Array, advantages: Array, loss_mask: Array, cfg: ObjectiveConfig
) -> tuple[Array, Array]:
    """Returns the log-ratios of the new to the old policy, and weights for summing the clipped objective of a token over views.
    With cfg.ratio="token", each token has one log-ratio in each view, and both arrays are float32 [..., k, g, l]. With
    cfg.ratio="sequence", all tokens and views of a completion share one log-ratio. This log-ratio is repeated for every token,
    with weight 1, and both arrays are float32 [..., 1, g, l]. `new`, `old` and `weight` are float32 [..., k, g, l],
    `advantages` is float32 [..., g], and `loss_mask` is bool [..., g, l], see `policy_terms`."""
    if cfg.ratio == "token":
        return jnp.where(weight > 0, new - old, 0.0), weight
    if cfg.reference_code:  # averages over all tokens, also over those that are not masked in a view
        mean = token_mean(jnp.sum(new - old, axis=-3), jnp.ones_like(loss_mask))
    else:
        change = combine(new, weight, advantages, cfg) - combine(old, weight, advantages, cfg)
        mean = token_mean(change, loss_mask)
    once = jnp.ones_like(weight[..., :1, :, :])
    return once * mean[..., None, :, None], once


def policy_terms(
    new: Array,
    old: Array,
    reference: Array,
    weight: Array,
    advantages: Array,
    loss_mask: Array,
    cfg: ObjectiveConfig,
    hint: Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes the loss and the statistics of every completion from the log-probabilities of its l tokens in k views.

    Token ratios and KL estimates are computed in each view, and then summed over the views with the weights, because they are
    in general not linear in the log-probabilities. The sequence ratio, the wd1 loss and cfg.hint_supervision use the token
    scores that `combine` returns.

    Tokens outside the loss mask, such as hint tokens that the entropy filter drops, get no gradient, with two exceptions. With
    cfg.hint_supervision, hint tokens of completions with a positive advantage get the gradient of the supervised loss. With
    cfg.reference_code, all tokens get a gradient through the sequence ratio. The loss of a completion is then also multiplied
    by c / m, where c is the number of its tokens in the loss mask, and m is the mean of c over the group (docs/method.md
    section 10).

    Args:
        new, old, reference: log-probabilities under the three policies, float32 [..., k, g, l].
        weight: weights of the tokens in the views, float32 [..., k, g, l]. Log-probabilities with weight 0 are not used, except
            by the sequence ratio of cfg.reference_code.
        advantages: advantages of the g completions of a group, float32 [..., g].
        loss_mask: mask of the tokens that ratio, loss and KL use, bool [..., g, l].
        hint: mask of the hint tokens up to the first EOS, bool [..., g, l]; needed with cfg.hint_supervision.

    Returns:
        The loss and a dict of statistics, each float32 [..., g]. policy/overflow is the number of tokens whose ratio or KL
        estimate was limited. policy/hint/... and policy/generated/..., present if `hint` is given, are sums over the hint
        tokens and over the other tokens in the loss mask, see `means_over_parts`. The other statistics are means over the
        tokens of a completion in the loss mask. policy/ratio_mean and policy/clip_fraction are weighted means over tokens and
        views, with the weights that `log_ratios` returns."""
    log_ratio, share = log_ratios(new, old, weight, advantages, loss_mask, cfg)
    new, old, reference = (jnp.where(weight > 0, x, 0.0) for x in (new, old, reference))
    kl = jnp.sum(weight * kl_estimate(new, old, reference, cfg.kl), axis=-3)
    score, tokens = combine(new, weight, advantages, cfg), loss_mask.sum(axis=-1)

    ratio, advantage = bounded_exp(log_ratio), advantages[..., None, :, None]
    clipped = jnp.clip(ratio, 1 - cfg.clip_low, 1 + cfg.clip_high)
    terms = jnp.minimum(ratio * advantage, clipped * advantage)
    surrogate, is_clipped = jnp.sum(share * terms, axis=-3), terms < ratio * advantage
    if cfg.loss == "wd1":
        has_no_verdict = (tokens == 0) & (advantages == 0)  # see `rollout`
        # The mean over the completion below makes this a sum over its tokens, as in the code of the authors of wd1.
        surrogate = (group_weights(advantages, ~has_no_verdict) * tokens)[..., None] * score
        is_clipped = jnp.zeros_like(is_clipped)

    loss = cfg.kl_coefficient * kl - surrogate
    if cfg.normalization == "canvas":
        loss = jnp.sum(loss, axis=-1, where=loss_mask) / loss_mask.shape[-1]
    else:
        loss = token_mean(loss, loss_mask)
    if cfg.hint_supervision:
        assert hint is not None
        loss -= cfg.hint_supervision * token_mean(score, hint & (advantages > 0)[..., None])
    if cfg.reference_code:
        loss = loss * tokens / jnp.maximum(tokens.mean(axis=-1, keepdims=True), 1)

    def ratio_mean(values):
        total, number = (jnp.sum(jnp.sum(x, axis=-3), axis=-1, where=loss_mask) for x in (share * values, share))
        return total / jnp.where(number > 0, number, 1)

    bounded = jnp.any(jnp.abs(log_ratio) > MAX_LOG_RATIO, axis=-3)
    bounded |= jnp.any(kl_is_bounded(new, old, reference, cfg.kl), axis=-3)
    statistics = {
        "policy/kl": token_mean(kl, loss_mask),
        "policy/ratio_mean": ratio_mean(ratio),
        "policy/clip_fraction": ratio_mean(is_clipped),
        "policy/overflow": jnp.sum(bounded, axis=-1, where=loss_mask).astype(jnp.float32),
    }
    if hint is not None:
        per_token = {"tokens": jnp.ones_like(kl), "kl": kl, "weight": jnp.sum(share, axis=-3)}
        per_token |= {"ratio_mean": jnp.sum(share * ratio, axis=-3), "clip_fraction": jnp.sum(share * is_clipped, axis=-3)}
        statistics |= sums_over_parts(per_token, hint, loss_mask)
    return loss, statistics


def sums_over_parts(per_token: dict[str, jax.Array], hint: Array, loss_mask: Array) -> dict[str, jax.Array]:
    """Sums statistics of tokens over the hint tokens in the loss mask, and separately over the other tokens in the loss mask.
    `per_token` maps names to values, float32 [..., g, l]. `hint` and `loss_mask` are bool [..., g, l]. Returns a dict of sums,
    float32 [..., g], with the keys policy/hint/NAME and policy/generated/NAME for each name."""
    parts = {"hint": loss_mask & hint, "generated": loss_mask & ~hint}
    return {
        f"policy/{name}/{key}": jnp.sum(values, axis=-1, where=part)
        for name, part in parts.items()
        for key, values in per_token.items()
    }


def means_over_parts(statistics: dict[str, float]) -> dict[str, float]:
    """Returns the statistics with means over hint tokens and over generated tokens in place of sums. `statistics` contains the
    sums of `sums_over_parts`, averaged over completions. The mean policy/hint/kl is its sum divided by policy/hint/tokens. The
    means policy/hint/ratio_mean and policy/hint/clip_fraction are their sums divided by policy/hint/weight. The means
    policy/generated/... of generated tokens are computed in the same way. A mean is left out if its divisor is 0 or missing."""
    means = {name: value for name, value in statistics.items() if name.count("/") == 1}
    for part in ("policy/hint", "policy/generated"):
        for name, by in ("kl", "tokens"), ("ratio_mean", "weight"), ("clip_fraction", "weight"):
            if number := statistics.get(f"{part}/{by}"):
                means[f"{part}/{name}"] = statistics[f"{part}/{name}"] / number
    return means


def loss_and_statistics(
    params: Params, batch: GroupBatch, logprobs: LogProbs, cfg: ModelConfig, objective: ObjectiveConfig, mesh: Mesh
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the loss and the statistics, averaged over all completions of the batch.

    The transformer runs under automatic sharding. The product with the output matrix, the log-probabilities, the ratios and the
    sums over completions are computed under `shard_map`, with prompts split over the mesh axes `data` and `fsdp` and the
    vocabulary over the mesh axis `tensor`. The result does not depend on the number of devices.

    Args:
        logprobs: log-probabilities and loss mask for one inner update, without the leading axis e, see `compute_logprobs`."""
    rows, head = batch.advantages.size, head_matrix(params, cfg)
    per_row, specs = P(BATCH), head_partition(head)

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(per_row, specs, per_row, per_row), out_specs=P())
    def sharded_loss(hidden, head, batch, logprobs):
        views = logprobs.views
        new, _ = view_scores(hidden, head, batch.completions, views.weight, cfg.head_chunk)
        fixed = logprobs.old, logprobs.reference, views.weight, batch.advantages, logprobs.loss_mask
        loss, statistics = policy_terms(new, *fixed, objective, batch.hint & batch.loss_mask & views.scored)
        return jax.tree.map(lambda x: jax.lax.psum(jnp.sum(x), BATCH) / rows, (loss, statistics))

    hidden = hidden_states(params, batch, logprobs.views, cfg)
    return sharded_loss(hidden, head, batch, logprobs)
