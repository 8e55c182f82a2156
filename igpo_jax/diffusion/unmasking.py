"""Rules of a denoising step: how it draws a token for every masked position of a block, and which of these tokens it writes
(docs/method.md section 5)."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from igpo_jax.model.sharding import Array
from igpo_jax.model.transformer import ModelConfig
from igpo_jax.runtime.checks import MOST_TOKENS, at_least, check_fields, checked, not_negative, one_of, positive, require

REMASKINGS = ("low_confidence", "position_first", "entropy", "margin", "random")
BY_COUNT = ("schedule", "timestep")
COMMITS = (*BY_COUNT, "threshold", "factor")
CACHES = ("none", "prefix", "dual")


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """Configuration of the sampler in rollouts and evaluations."""

    completion_length: int  # tokens of a completion, including EOS after its text
    block_length: int  # tokens; blocks are denoised one after the other, from left to right
    steps: int  # largest number of denoising steps for a completion
    temperature: float = checked(0.0, not_negative)  # with which tokens are drawn; 0: the likeliest tokens
    cfg_scale: float = checked(0.0, not_negative)  # scale of classifier-free guidance; 0 turns it off
    # Positions written first. "low_confidence": those whose drawn token has the highest probability. "position_first": those
    # whose likeliest token has the highest probability, even if another token is drawn. "entropy": those with the lowest
    # entropy. "margin": those whose two likeliest tokens differ most in probability. "random": random ones.
    remasking: str = checked("low_confidence", one_of(*REMASKINGS))
    logits_eos_inf: bool = False  # EOS is never drawn
    confidence_eos_eot_inf: bool = False  # EOS and end of turn are written last
    # Tokens written per step. "schedule": the same number in every step. "timestep": Dream's numbers, see `timestep_shares`.
    # "threshold": all with a probability above `threshold`. "factor": the n likeliest, for the largest n with
    # (n + 1) * (1 - probability of the nth) < `factor`. If these are too few to finish within `steps`, more tokens are
    # written, which `fallback` selects.
    commit: str = checked("schedule", one_of(*COMMITS))
    threshold: float = checked(0.9, lambda value: "" if 0 < value <= 1 else " must be within (0, 1]")  # see `commit`
    factor: float = checked(1.0, positive)  # see `commit`
    # Positions that are written in addition if `commit` selects too few
    fallback: str = checked("leftmost", one_of("leftmost", "most_confident"))
    # Positions whose keys and values are reused from the last full evaluation. "none": no positions. "prefix": all left of the
    # block. "dual": all outside of the block. Full evaluations run at the start of each block. If `refresh` is not 0, they also
    # run after every `refresh` steps.
    cache: str = checked("none", one_of(*CACHES))
    refresh: int = checked(0, at_least(0))  # steps between full evaluations, see `cache`
    # Tokens are drawn only from the likeliest ones: the fewest whose probabilities sum to more than `top_p`. 1: from all tokens
    top_p: float = checked(1.0, lambda value: "" if 0 < value <= 1 else " must be within (0, 1]")
    top_k: int = checked(0, at_least(0))  # of the tokens that `top_p` leaves, only so many are drawn from; 0: all of them
    tempered_confidence: bool = False  # confidence is that of the distribution after `temperature`, `top_p` and `top_k`
    alg_temp: float = checked(0.0, not_negative)  # above 0: positions are drawn from softmax(confidence / alg_temp)

    def __post_init__(self):
        check_fields(self)
        for field in dataclasses.fields(self):
            if field.type is float:  # a float in a JSON file may look like an integer, which JAX would make an int32
                object.__setattr__(self, field.name, float(getattr(self, field.name)))
        length, block = self.completion_length, self.block_length
        require(length >= 1 and block >= 1, f"completion_length={length} and block_length={block} must be at least 1")
        for name, value in (("completion_length", length), ("steps", self.steps)):
            require(value <= MOST_TOKENS, f"{name}={value} must be at most {MOST_TOKENS}")
        require(length % block == 0, f"completion_length={length} is not a multiple of block_length={block}")
        require(
            self.steps >= 1 and self.steps % self.blocks == 0,
            f"steps={self.steps} is not a multiple of the number of blocks, completion_length // block_length = {self.blocks}",
        )
        require(
            self.commit in BY_COUNT or self.remasking in ("low_confidence", "position_first"),
            f"commit={self.commit} compares probabilities, which remasking={self.remasking} does not use; use low_confidence or "
            "position_first",
        )
        require(not self.alg_temp or self.commit in BY_COUNT, f"alg_temp={self.alg_temp} needs commit=schedule or timestep")

    @property
    def blocks(self) -> int:
        return self.completion_length // self.block_length

    @property
    def steps_per_block(self) -> int:
        return self.steps // self.blocks


def exact_sampler(decode: DecodeConfig) -> DecodeConfig:
    """Returns a copy of `decode` without approximations: no cache, and a fixed schedule for the number of tokens per step."""
    commit = decode.commit if decode.commit == "timestep" else "schedule"
    return dataclasses.replace(decode, cache="none", commit=commit)


def gumbel_noise(keys: jax.Array, vocab_size: int) -> jax.Array:
    """Draws Gumbel noise, float32 [rows, positions, vocabulary], from `keys`, [rows, positions], one PRNG key per position."""
    draw = functools.partial(jax.random.gumbel, shape=(vocab_size,), dtype=jnp.float32, mode="high")
    return jax.vmap(jax.vmap(draw))(keys)


def exclude_ids(logits: jax.Array, cfg: ModelConfig) -> jax.Array:
    """Returns `logits`, [..., v], with the value -inf for the token ids in `cfg.never_drawn`."""
    if not cfg.never_drawn:
        return logits
    excluded = np.zeros(cfg.vocab_size, bool)
    for first, end in cfg.never_drawn:
        excluded[first:end] = True
    return jnp.where(excluded, -jnp.inf, logits)


def truncate(logits: jax.Array, decode: DecodeConfig) -> jax.Array:
    """Returns `logits`, [..., v], with the value -inf for the tokens that `decode.top_p` and `decode.top_k` exclude. The token
    at which the cumulative probability first exceeds `top_p` is kept, as in Dream's sampler."""
    if decode.top_p < 1:
        total = jnp.cumsum(jax.nn.softmax(-jnp.sort(-logits, axis=-1), axis=-1), axis=-1)
        kept = 1 + (total[..., :-1] <= decode.top_p).sum(axis=-1, keepdims=True)  # the token that crosses top_p is the last one
        logits = jnp.where(rank_descending(logits) < kept, logits, -jnp.inf)
    if 0 < decode.top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, decode.top_k)[0][..., -1:]
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    return logits


def propose(
    logits: jax.Array, gumbel: jax.Array | None, uniform: jax.Array | None, cfg: ModelConfig, decode: DecodeConfig
) -> tuple[jax.Array, jax.Array]:
    """Draws a token for every position, int32 [b, k], and computes the token's confidence, float32 [b, k].

    The token is drawn from softmax(logits / T) with temperature T, as the argmax of logits + T * gumbel. The reference code
    takes the argmax of exp(logits) / (-log u)^T with uniform random u. This argmax is the same, but the expression can
    overflow. The ids in `cfg.never_drawn` are not drawn. `decode.remasking` selects the confidence: "low_confidence" is the
    log-probability of the drawn token, "position_first" is the log-probability of the likeliest token, "entropy" is the
    negative entropy, "margin" is the difference of the two highest probabilities, and "random" is a random number. These values
    are computed without the noise. Their softmax includes the ids in `cfg.never_drawn`, like the softmax in the
    log-probabilities of completions, unless `decode.tempered_confidence` is True.

    Args:
        logits: logits after classifier-free guidance, float32 [b, k, v] for b rows, k positions and v vocabulary entries.
        gumbel: Gumbel noise, float32 [b, k, v], or None at temperature 0.
        uniform: random confidences, float32 [b, k], if `decode.remasking` is "random", otherwise not used."""
    if decode.logits_eos_inf:
        logits = logits.at[..., cfg.eos_id].set(-jnp.inf)
    drawable = exclude_ids(logits, cfg)
    tempered = drawable
    if decode.top_p < 1 or decode.top_k or decode.tempered_confidence:
        tempered = truncate(drawable / decode.temperature if decode.temperature > 0 else drawable, decode)
        drawable = jnp.where(tempered == -jnp.inf, -jnp.inf, drawable)
    noisy = drawable if gumbel is None else drawable + decode.temperature * gumbel
    drawn = jnp.argmax(noisy, axis=-1).astype(jnp.int32)
    if decode.remasking == "random" and uniform is not None:
        return drawn, uniform
    logits = tempered if decode.tempered_confidence else logits
    judged = drawn if decode.remasking == "low_confidence" else jnp.argmax(drawable, axis=-1)
    ends = jnp.zeros(drawn.shape, bool)
    if decode.confidence_eos_eot_inf:
        for token in (cfg.eos_id, cfg.eot_id):
            if token is not None:
                logits = logits.at[..., token].set(-jnp.inf)
                ends |= drawn == token
    log_total = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, judged[..., None], axis=-1)[..., 0]
    if decode.remasking == "margin":
        first, second = jnp.moveaxis(jax.lax.top_k(jax.nn.softmax(logits, axis=-1), 2)[0], -1, 0)
        return drawn, jnp.where(ends | (chosen == -jnp.inf), -jnp.inf, first - second)
    if decode.remasking != "entropy":
        return drawn, jnp.where(ends, -jnp.inf, chosen - log_total)
    probabilities = jnp.exp(logits - log_total[..., None])
    mean_logit = jnp.sum(probabilities * logits, axis=-1, where=probabilities > 0)
    return drawn, jnp.where(ends | (chosen == -jnp.inf), -jnp.inf, mean_logit - log_total)


def transfer_count(masks: Array, step: Array, steps: int) -> Array:
    """Returns how many tokens the denoising step with index `step` writes in a block. The block has `masks` masked positions
    before its first step, and it has `steps` steps. The tokens are divided evenly among the steps. If there is a remainder, the
    first steps write one more token each."""
    return masks // steps + (step < masks % steps)


@functools.cache
def timestep_shares(steps: int) -> np.ndarray:
    """Returns the share of the masked tokens that each denoising step writes in Dream's sampler, float32 [steps]. The times of
    the steps fall linearly from 1 to 0.001. A step from time t to s writes the share 1 - s / t, rounded down to whole tokens.
    The last step writes all remaining tokens."""
    times = np.linspace(1, 1e-3, steps + 1, dtype=np.float32)
    shares = 1 - times[1:] / times[:-1]
    shares[-1] = 1
    return shares


def most_confident(confidence: jax.Array, masked: jax.Array, count: Array) -> jax.Array:
    """Selects the masked positions with the highest confidence in each row, and returns them as a mask, bool [b, k].
    `confidence` is float32 [b, k], and `count`, int32 [b], is the number of positions to select in each row. If a row has fewer
    masked positions, all of them are selected. Masked positions with confidence -inf still rank above unmasked positions."""
    lowest = jnp.finfo(confidence.dtype).min
    ranked = rank_descending(jnp.where(masked, jnp.maximum(confidence, lowest), -jnp.inf))
    return masked & (ranked < count[:, None])


def rank_descending(values: jax.Array) -> jax.Array:
    """Returns the rank of every value in its row. The largest value has rank 0. Of equal values, the first in the row ranks
    first."""
    return jnp.argsort(jnp.argsort(-values, axis=-1, stable=True), axis=-1)


def to_write(
    confidence: jax.Array,
    masked: jax.Array,
    masks_at_entry: Array,
    step: Array,
    decode: DecodeConfig,
    uniform: jax.Array | None = None,
) -> jax.Array:
    """Selects the positions of a block that a denoising step writes, bool [b, k] for b rows and k positions.

    The parallel rules (`decode.commit` is "threshold" or "factor") come from Fast-dLLM (arXiv 2505.22618). If they select
    fewer positions than are needed to finish the block within its steps, other masked positions are added: the leftmost ones or
    the most confident ones, depending on `decode.fallback`. The ForkGRPO authors report that RL collapses with most_confident.

    Args:
        confidence: confidence of each position, float32 [b, k]. If `decode.commit` is "threshold" or "factor", the values must
            be log-probabilities. Otherwise only their order matters, unless `decode.alg_temp` is above 0.
        masked: True for masked positions, bool [b, k].
        masks_at_entry: number of masked positions in the block before its first step, int32 [b].
        step: index of the step within the block, int32 [].
        uniform: random numbers, float32 [b, k], if `decode.alg_temp` is above 0, otherwise not used."""
    if decode.commit in BY_COUNT:
        count = transfer_count(masks_at_entry, step, decode.steps_per_block)
        if decode.commit == "timestep":
            share = jnp.asarray(timestep_shares(decode.steps_per_block))[step]
            count = (masked.sum(axis=1).astype(jnp.float32) * share).astype(jnp.int32)
        if uniform is not None and decode.alg_temp > 0:
            if decode.remasking in ("low_confidence", "position_first"):  # Dream takes the probability, not its logarithm
                confidence = jnp.where(confidence == -jnp.inf, -jnp.inf, jnp.exp(confidence))
            # The positions with the highest noisy values are a draw without replacement.
            confidence = confidence / decode.alg_temp - jnp.log(-jnp.log(jnp.clip(uniform, 1e-20, 1 - 1e-7)))
        return most_confident(confidence, masked, count)
    if decode.commit == "threshold":
        likely = masked & (confidence > math.log(decode.threshold))
    else:
        rank = rank_descending(jnp.where(masked, confidence, -jnp.inf))
        passing = (rank + 2) * -jnp.expm1(confidence) < decode.factor
        first_failing = jnp.min(jnp.where(masked & ~passing, rank, masked.shape[1]), axis=1, keepdims=True)
        likely = masked & (rank < first_failing)
    due = -(-masked.sum(axis=1) // (decode.steps_per_block - step))
    others = confidence
    if decode.fallback == "leftmost":  # but positions with confidence -inf are still written last
        others = jnp.where(confidence == -jnp.inf, -jnp.inf, -jnp.arange(masked.shape[1], dtype=confidence.dtype))
    return most_confident(jnp.where(likely, jnp.inf, others), masked, jnp.maximum(likely.sum(axis=1), due))
