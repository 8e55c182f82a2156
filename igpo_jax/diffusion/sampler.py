"""The reverse process: block-wise remasking, one compiled loop (igpo_method.md 2.2, llada.md 6).

A hint is a canvas position that is already filled. It is written over the canvas again after every step, so it cannot
change, and inpainting needs no sampler of its own.
"""

import dataclasses
import functools
import math

import flax
import jax
import jax.numpy as jnp

from igpo_jax.model.transformer import ModelConfig, Params, forward, unembed
from igpo_jax.runtime.mesh import shard_rows

HINT = -1  # in `Sample.written_at`: filled from the start


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """How completions are decoded; the same type serves rollouts and evaluation."""

    completion_length: int
    block_length: int
    steps: int  # denoising steps for the whole completion
    temperature: float = 0.0
    cfg_scale: float = 0.0  # classifier-free guidance; 0 is none
    remasking: str = "low_confidence"  # low_confidence | random
    logits_eos_inf: bool = False  # EOS is never drawn
    confidence_eos_eot_inf: bool = False  # EOS and end of turn are written last

    def __post_init__(self):
        if self.completion_length < 1 or self.block_length < 1:
            raise ValueError(
                f"completion_length={self.completion_length} and block_length={self.block_length} must be at least 1"
            )
        if self.completion_length % self.block_length:
            raise ValueError(
                f"completion_length={self.completion_length} is not a multiple of block_length={self.block_length}"
            )
        if self.steps < 1 or self.steps % self.blocks:
            raise ValueError(
                f"steps={self.steps} is not a multiple of the number of blocks, completion_length // block_length = "
                f"{self.blocks}"
            )
        if self.remasking not in ("low_confidence", "random"):
            raise ValueError(f"remasking={self.remasking!r} is neither 'low_confidence' nor 'random'")
        if not (0 <= self.temperature < math.inf and 0 <= self.cfg_scale < math.inf):  # NaN is refused, too
            raise ValueError(f"temperature={self.temperature} and cfg_scale={self.cfg_scale} must not be negative")

    @property
    def blocks(self) -> int:
        return self.completion_length // self.block_length


@flax.struct.dataclass
class Sample:
    """Completions and how they came about.

    tokens: int32 [b, l]. written_at: int32 [b, l], the scheduled step that wrote each token, `HINT` where it was given.
    evaluations: int32 [], the number of steps that were run; each is one network evaluation (two with guidance).
    """

    tokens: jax.Array
    written_at: jax.Array
    evaluations: jax.Array


def completion_keys(key: jax.Array, problem_id: jax.Array, completion: jax.Array, attempt: int) -> jax.Array:
    """One key per row from (problem, completion index, attempt); never from the slot in the batch.

    Args:
        key: of the iteration.
        problem_id, completion: uint32 [b].
        attempt: tells apart what the keys are for, such as the first try and the try with hints.
    """
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    by_problem = fold(jax.random.fold_in(key, attempt), problem_id)
    return jax.vmap(jax.random.fold_in)(by_problem, completion)


def transfer_count(masks: jax.Array, step: jax.Array, steps: int) -> jax.Array:
    """How many tokens a row writes in step `step` of `steps` of a block that had `masks` masks: the remainder goes to
    the first steps (igpo_method.md 2.2)."""
    return masks // steps + (step < masks % steps)


def gumbel_noise(keys: jax.Array, vocab_size: int) -> jax.Array:
    """float32 [b, k, v] from one key per position, [b, k]."""
    draw = functools.partial(jax.random.gumbel, shape=(vocab_size,), dtype=jnp.float32, mode="high")
    return jax.vmap(jax.vmap(draw))(keys)


def propose(
    logits: jax.Array, gumbel: jax.Array | None, uniform: jax.Array | None, cfg: ModelConfig, decode: DecodeConfig
) -> tuple[jax.Array, jax.Array]:
    """A token for every position, and how much it deserves to be written now (llada.md 6.3, 6.5, 6.6).

    The token is a draw from softmax(logits / temperature): logits + T * gumbel has the same argmax as the reference's
    exp(logits) / (-log u)^T, without its overflow. The confidence is the token's log-probability under the clean logits.

    Args:
        logits: float32 [b, k, v], after guidance.
        gumbel: float32 [b, k, v]; None at temperature 0.
        uniform: float32 [b, k], the confidences of random remasking; None otherwise.

    Returns:
        Tokens int32 [b, k] and confidences float32 [b, k].
    """
    if decode.logits_eos_inf:
        logits = logits.at[..., cfg.eos_id].set(-jnp.inf)
    noisy = logits if gumbel is None else logits + decode.temperature * gumbel
    drawn = jnp.argmax(noisy, axis=-1).astype(jnp.int32)
    if uniform is not None:
        return drawn, uniform
    if decode.confidence_eos_eot_inf:
        for token in (cfg.eos_id, cfg.eot_id):
            if token is not None:
                logits = logits.at[..., token].set(-jnp.inf)
    chosen = jnp.take_along_axis(logits, drawn[..., None], axis=-1)[..., 0]
    return drawn, chosen - jax.nn.logsumexp(logits, axis=-1)


def most_confident(confidence: jax.Array, masked: jax.Array, count: jax.Array) -> jax.Array:
    """The `count` masked positions of every row with the highest confidence, all of them where there are fewer.

    Args:
        confidence: float32 [b, k]; -inf is the lowest, and still above what is not masked. masked: bool [b, k].
        count: int32 [b].
    """
    lowest = jnp.finfo(confidence.dtype).min
    ranked = rank_descending(jnp.where(masked, jnp.maximum(confidence, lowest), -jnp.inf))
    return masked & (ranked < count[:, None])


def rank_descending(values: jax.Array) -> jax.Array:
    """Rank of every value in its row, 0 for the largest; the lowest index wins ties."""
    return jnp.argsort(jnp.argsort(-values, axis=-1, stable=True), axis=-1)


@functools.partial(jax.jit, static_argnames=("cfg", "decode"))
def sample(
    params: Params,
    prompt: jax.Array,
    valid: jax.Array,
    canvas: jax.Array,
    row_keys: jax.Array,
    cfg: ModelConfig,
    decode: DecodeConfig,
) -> Sample:
    """Fills the masks of a canvas block by block, from left to right.

    Each step draws a token for every masked position of the active block, writes the most confident draws (softmax
    probability of the drawn token under the clean logits, or at random) and leaves the others masked. MASK is never
    drawn. A row whose block came out as EOS only is ended: its remaining masks become EOS.

    Args:
        params: of the network.
        prompt, valid: int32 and bool [b, p], padded on the left.
        canvas: int32 [b, l]: MASK, or a hint token.
        row_keys: PRNG keys [b], see `completion_keys`. The noise of a step belongs to (row key, position, step).
        cfg, decode: static.
    """
    rows, prompt_length = prompt.shape
    block, steps_per_block = decode.block_length, decode.steps // decode.blocks
    given = canvas != cfg.mask_id
    valid = jnp.concatenate([valid, jnp.ones(canvas.shape, bool)], axis=1)
    position_keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(
        row_keys, jnp.arange(decode.completion_length)
    )

    def block_logits(current, start):
        """float32 [b, block, v]; the head sees the active block only."""

        def logits_of(prompt, current, valid):
            tokens = shard_rows(jnp.concatenate([prompt, current], axis=1))
            hidden = forward(params, tokens, valid, cfg)
            active = jax.lax.dynamic_slice_in_dim(hidden, prompt_length + start, block, axis=1)
            return unembed(params, active, cfg)

        if decode.cfg_scale > 0:
            conditional, unconditional = jnp.split(
                logits_of(
                    jnp.concatenate([prompt, jnp.full_like(prompt, cfg.mask_id)]),
                    jnp.concatenate([current, jnp.where(given, cfg.mask_id, current)]),
                    jnp.concatenate([valid, valid]),
                ),
                2,
            )
            logits = unconditional + (decode.cfg_scale + 1) * (conditional - unconditional)
        else:
            logits = logits_of(prompt, current, valid)
        return logits.at[..., cfg.mask_id].set(-jnp.inf)

    def denoise(carry):
        step, current, written_at, masks_at_entry, ended = carry
        start = step // steps_per_block * block
        step_in_block = step % steps_per_block
        active = jax.lax.dynamic_slice_in_dim(current, start, block, axis=1)
        masked = active == cfg.mask_id
        masks_at_entry = jnp.where(step_in_block == 0, masked.sum(axis=1), masks_at_entry)

        logits = block_logits(current, start)
        with jax.named_scope("draw"):
            keys = jax.lax.dynamic_slice_in_dim(position_keys, start, block, axis=1)
            keys = jax.vmap(jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, step))))(keys)
            gumbel = gumbel_noise(keys[..., 0], logits.shape[-1]) if decode.temperature > 0 else None
            uniform = jax.vmap(jax.vmap(jax.random.uniform))(keys[..., 1]) if decode.remasking == "random" else None
            drawn, confidence = propose(logits, gumbel, uniform, cfg, decode)
            write = most_confident(confidence, masked, transfer_count(masks_at_entry, step_in_block, steps_per_block))
        block_is_full = step_in_block == steps_per_block - 1
        active = jnp.where(write, drawn, active)
        ended |= block_is_full & jnp.all(active == cfg.eos_id, axis=1)

        current = jax.lax.dynamic_update_slice_in_dim(current, active, start, axis=1)
        current = jnp.where(ended[:, None] & (current == cfg.mask_id), cfg.eos_id, current)
        current = jnp.where(given, canvas, current)
        written_at = jnp.where((written_at == decode.steps) & (current != cfg.mask_id), step, written_at)
        return step + 1, current, written_at, masks_at_entry, ended

    def unfinished(carry):
        step, *_, ended = carry
        return (step < decode.steps) & ~jnp.all(ended)

    start = (
        jnp.int32(0),
        canvas,
        jnp.where(given, HINT, decode.steps),
        jnp.zeros(rows, jnp.int32),
        jnp.zeros(rows, bool),
    )
    step, tokens, written_at, _, _ = jax.lax.while_loop(unfinished, denoise, start)
    return Sample(tokens=tokens, written_at=written_at, evaluations=step)
