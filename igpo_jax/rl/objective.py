"""The GRPO objective of IGPO: advantages, ratios, clipping, KL (igpo_method.md 5; paper Eq. 2, 3 and 5)."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from igpo_jax.model.logprobs import HEAD
from igpo_jax.model.sharding import Params
from igpo_jax.model.transformer import ModelConfig, head_matrix
from igpo_jax.rl.likelihood import ROW_VIEWS, GroupBatch, LogProbs, hidden_states, view_scores
from igpo_jax.runtime.mesh import BATCH

MAX_LOG_RATIO = 20.0  # exp stays finite; how many were clipped is logged


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """Switches of igpo_method.md section 9, and what others do; the defaults are PAPER."""

    # mean_field | prompt_masked | masked | elbo | quadrature | coupled | trace, and how many views the last four take of a
    # row: see likelihood.py.
    estimator: str = "mean_field"
    samples: int = 1
    # SPG: the share of an upper bound in the score of a completion with a negative advantage, and its power (beta).
    upper_weight: float = 0.0
    upper_power: float = 1.0
    inner_steps: int = 4  # mu: updates per rollout
    # clipped: min(ratio A, clip(ratio) A). wd1 (arXiv 2507.08838): no ratio, the log-likelihood with the weight
    # softmax(A) - softmax(-A) of the group.
    loss: str = "clipped"
    ratio: str = "sequence"  # sequence | token
    clip_low: float = 0.2
    clip_high: float = 0.2  # DAPO (arXiv 2503.14476): 0.28
    kl: str = "k3"  # k1 | k2 | k3, estimators of the KL to the reference from one sample
    kl_coefficient: float = 0.01  # beta
    entropy_keep: float = 0.2  # tau: share of hint tokens that is trained on; 0: none
    hint_supervision: float = 0.0  # weight of -log pi of the hints of completions with a positive advantage
    # Tokens of a completion are averaged over their number (completion), or over the canvas (canvas; Dr. GRPO, arXiv
    # 2503.20783), so that a token weighs the same in a short and a long completion.
    normalization: str = "completion"
    normalize_advantages: bool = False  # divide by the group's standard deviation
    # What counts are tokens up to the first EOS, but for filtered hints, and all completions weigh the same; REF: True, and
    # then tokens after EOS count, filtered ones count in the sequence's ratio, and completions weigh by their tokens.
    reference_code: bool = False

    def __post_init__(self):
        def require(condition: bool, message: str):
            if not condition:
                raise ValueError(message)

        for name, values in (
            ("estimator", ("mean_field", "prompt_masked", *ROW_VIEWS, "trace")),
            ("loss", ("clipped", "wd1")),
            ("ratio", ("sequence", "token")),
            ("kl", ("k1", "k2", "k3")),
            ("normalization", ("completion", "canvas")),
        ):
            value = getattr(self, name)
            require(value in values, f"objective.{name}={value!r} is none of {', '.join(values)}")
        require(0 <= self.entropy_keep <= 1, f"objective.entropy_keep={self.entropy_keep} must lie in [0, 1]")
        require(self.inner_steps >= 1, f"objective.inner_steps={self.inner_steps} must be at least 1")
        require(
            0 <= self.clip_low < 1 and self.clip_high >= 0 and 0 <= self.kl_coefficient < math.inf,  # nor NaN
            "objective.clip_low must lie in [0, 1), clip_high and kl_coefficient must not be negative",
        )
        require(
            0 <= self.hint_supervision < math.inf and 0 <= self.upper_weight <= 1 and 1 <= self.upper_power < math.inf,
            "objective.hint_supervision must not be negative, upper_weight lie in [0, 1], upper_power be at least 1",
        )
        several = self.estimator not in ("mean_field", "prompt_masked", "masked")
        require(
            self.samples == 1 or (several and self.samples > 1),
            f"objective.samples={self.samples} and objective.estimator={self.estimator!r}: mean_field, prompt_masked and "
            "masked take one",
        )
        require(
            self.estimator != "coupled" or self.samples % 2 == 0,
            f"objective.samples={self.samples} and objective.estimator='coupled': masks come in pairs",
        )
        require(
            not self.upper_weight or (several and self.estimator != "trace" and self.samples > 1),
            f"objective.upper_weight={self.upper_weight} needs objective.estimator elbo, quadrature or coupled, and more than "
            "one of objective.samples",
        )
        require(
            self.upper_weight > 0 or self.upper_power == 1,
            f"objective.upper_power={self.upper_power} does nothing without objective.upper_weight; leave it out",
        )
        require(
            self.loss == "clipped" or self.ratio == "sequence",
            f"objective.loss={self.loss!r} has no ratio; objective.ratio={self.ratio!r} would do nothing",
        )
        require(
            self.normalization == "completion" or (self.ratio == "token" and not self.normalize_advantages),
            "objective.normalization='canvas' is for sums over tokens, objective.ratio='token', without "
            "objective.normalize_advantages",
        )
        require(
            not self.reference_code
            or (self.estimator in ("mean_field", "masked"), self.loss, self.kl, self.normalization, self.hint_supervision)
            == (True, "clipped", "k3", "completion", 0),
            "objective.reference_code=True has estimators mean_field and masked, the clipped loss, k3, the mean over a completion "
            "and no hint_supervision",
        )


def advantages(rewards: jax.Array, normalize: bool) -> jax.Array:
    """r - mean of the group, float32 [n, g]; `normalize` also divides by the group's standard deviation."""
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    if normalize:
        centred = centred / (rewards.std(axis=1, keepdims=True) + 1e-6)
    return centred


def group_weights(advantages: jax.Array) -> jax.Array:
    """wd1's weights softmax(A) - softmax(-A), float32 [..., g]; 0 where all are equal. Scaled by g, so that a mean over rows is
    the paper's sum."""
    plus, minus = jax.nn.softmax(advantages, axis=-1), jax.nn.softmax(-advantages, axis=-1)
    return (plus - minus) * advantages.shape[-1]


def kl_estimate(new: jax.Array, reference: jax.Array, kind: str) -> jax.Array:
    """Of KL(new || reference) from one sample, with the log-ratio d = log reference - log new: k1 = -d, unbiased; k2 = d^2 / 2;
    k3 = e^d - d - 1, unbiased and never negative (Schulman 2020)."""
    to_reference = jnp.clip(reference - new, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    if kind == "k1":
        return -to_reference
    return to_reference**2 / 2 if kind == "k2" else jnp.exp(to_reference) - to_reference - 1


def policy_terms(
    new: jax.Array,
    old: jax.Array,
    reference: jax.Array,
    advantages: jax.Array,
    loss_mask: jax.Array,
    cfg: ObjectiveConfig,
    scored: jax.Array | None = None,
    hint: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss and statistics of every row (completion).

    Only tokens in the loss mask enter: a hint token that the entropy filter drops has no gradient, neither through
    the sequence's ratio nor through the KL. With cfg.reference_code it has one through the ratio, and a completion weighs by
    its tokens, relative to the mean of its group (igpo_method.md 5.5).

    Args:
        new, old, reference: float32 [..., l], scores of `likelihood.combine`.
        advantages: float32 [...], the last axis a group. loss_mask: bool [..., l].
        scored: bool [..., l], tokens that have log-probabilities; only cfg.reference_code needs them.
        hint: bool [..., l], hints up to the first EOS; only cfg.hint_supervision needs them.

    Returns:
        The loss of each row, [...], and means over its tokens, [...] each.
    """

    def token_mean(values, of=loss_mask):
        return jnp.sum(values, axis=-1, where=of) / jnp.maximum(of.sum(axis=-1), 1)

    def reduced(values):
        if cfg.normalization == "canvas":
            return jnp.sum(values, axis=-1, where=loss_mask) / new.shape[-1]
        return token_mean(values)

    log_ratio = new - old
    if cfg.ratio == "sequence":
        of_sequence = token_mean(log_ratio, scored if cfg.reference_code else loss_mask)
        log_ratio = jnp.broadcast_to(of_sequence[..., None], new.shape)
    ratio = jnp.exp(jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO))
    if cfg.loss == "wd1":
        surrogate = group_weights(advantages)[..., None] * new
        clip_fraction = jnp.zeros_like(advantages)
    else:
        advantage = advantages[..., None]
        clipped = jnp.clip(ratio, 1 - cfg.clip_low, 1 + cfg.clip_high)
        surrogate = jnp.minimum(ratio * advantage, clipped * advantage)
        clip_fraction = token_mean((surrogate < ratio * advantage).astype(jnp.float32))

    kl = kl_estimate(new, reference, cfg.kl)
    loss = reduced(cfg.kl_coefficient * kl - surrogate)
    if cfg.hint_supervision:
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
    """The objective's mean over all completions of the batch, and the means of its statistics.

    The network runs under automatic sharding; head, log-probabilities, ratios and reduction run under `shard_map`,
    prompts over (data, fsdp) and the vocabulary over tensor, so the value does not depend on the number of devices.

    Args:
        logprobs: of one inner step, without the leading axis.
    """
    rows = batch.advantages.size
    per_row = P(BATCH)

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(per_row, HEAD, per_row, per_row), out_specs=P()
    )
    def sharded_loss(hidden, head, batch, logprobs):
        new, _ = view_scores(hidden, head, batch, logprobs.views.weight, objective, cfg.head_chunk)
        scored = logprobs.views.scored
        loss, statistics = policy_terms(
            new,
            logprobs.old,
            logprobs.reference,
            batch.advantages,
            logprobs.loss_mask,
            objective,
            scored,
            batch.hint & batch.loss_mask & scored,
        )
        return jax.tree.map(lambda x: jax.lax.psum(jnp.sum(x), BATCH) / rows, (loss, statistics))

    hidden = hidden_states(params, batch, logprobs.views, cfg)
    return sharded_loss(hidden, head_matrix(params, cfg), batch, logprobs)
