"""The reverse process: block-wise remasking, one compiled loop per block (igpo_method.md 2.2, llada.md 6).

A hint is a canvas position that is already filled. Only masks are ever written, so it cannot change, and inpainting needs no
sampler of its own.
"""

import dataclasses
import functools
import math

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from igpo_jax.model.transformer import ModelConfig, Params, forward, unembed
from igpo_jax.runtime.mesh import BATCH, batch_size_divisor, shard_rows

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
    evaluations: the number of steps that were run; each is one network evaluation (two with guidance) of a batch.
    rows_evaluated: the same, summed over the rows of those batches; at most b * steps.
    """

    tokens: jax.Array
    written_at: jax.Array
    evaluations: int
    rows_evaluated: int


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


@flax.struct.dataclass
class Rows:
    """Completions on their way; everything has the leading axis b.

    prompt int32 [b, p], valid bool [b, p]; canvas int32 [b, l], as it was given; keys [b]; tokens, written_at int32 [b, l],
    as of `Sample`; ended bool [b]: nothing is left to write; slot int32 [b]: which row of the batch this is.
    """

    prompt: jax.Array
    valid: jax.Array
    canvas: jax.Array
    keys: jax.Array
    tokens: jax.Array
    written_at: jax.Array
    ended: jax.Array
    slot: jax.Array


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

    A block is one compiled program; between blocks the host learns how many rows go on, and moves them into a smaller
    batch where one of a few sizes holds them. Tokens do not depend on it, but for what rounding does to near ties.

    Args:
        params: of the network.
        prompt, valid: int32 and bool [b, p], padded on the left.
        canvas: int32 [b, l]: MASK, or a hint token.
        row_keys: PRNG keys [b], see `completion_keys`. The noise of a step belongs to (row key, position, step).
        cfg, decode: static.
    """
    rows = _spread(begin_rows(prompt, valid, canvas, row_keys, cfg, decode))
    sizes = _batch_sizes(len(canvas))
    tokens, written_at, evaluations, rows_evaluated = rows.tokens, rows.written_at, 0, 0
    for block in range(decode.blocks):
        size = len(rows.tokens)
        rows, steps, live = denoise_block(params, rows, np.int32(block), cfg, decode)
        rows, steps, live = _spread(rows), int(steps), int(live)
        evaluations, rows_evaluated = evaluations + steps, rows_evaluated + steps * size
        smaller = min(number for number in sizes if number >= live)
        if live == 0 or block == decode.blocks - 1 or smaller < size:
            tokens, written_at = _put_back(tokens, written_at, rows)
        if live == 0:
            break
        if smaller < size:
            rows = _spread(_take_live(rows, smaller))
    return Sample(tokens, written_at, evaluations, rows_evaluated)


def _spread(rows: Rows) -> Rows:
    """The same where they lie, over (data, fsdp) by name: what compilers leave lies there under several names, and each would
    be another program. Several processes cannot rename, and compile once more."""
    sharding = rows.tokens.sharding
    if not isinstance(sharding, NamedSharding) or not sharding.is_fully_addressable:
        return rows
    return jax.device_put(rows, NamedSharding(sharding.mesh, P(BATCH)))


def _batch_sizes(rows: int) -> list[int]:
    """What rows that go on are moved into: all, a half, a quarter or an eighth, as far as devices share them evenly."""
    mesh = jax.sharding.get_abstract_mesh()
    divisor = 1 if mesh.empty else batch_size_divisor(mesh)
    return [rows // part for part in (1, 2, 4, 8) if part == 1 or rows % (part * divisor) == 0]


@functools.partial(jax.jit, static_argnames=("cfg", "decode"))
def begin_rows(prompt, valid, canvas, row_keys, cfg: ModelConfig, decode: DecodeConfig) -> Rows:
    """Before the first block; arguments as of `sample`."""
    number = len(canvas)
    written_at = jnp.where(canvas != cfg.mask_id, jnp.int32(HINT), jnp.int32(decode.steps))
    rows = Rows(prompt, valid, canvas, row_keys, canvas, written_at, jnp.zeros(number, bool), jnp.arange(number))
    return jax.tree.map(shard_rows, rows)


@functools.partial(jax.jit, static_argnames="size")
def _take_live(rows: Rows, size: int) -> Rows:
    """The rows that have not ended, and as many others as fill the batch."""
    order = jnp.argsort(rows.ended, stable=True)[:size]
    return jax.tree.map(lambda x: shard_rows(x[order]), rows)


@jax.jit
def _put_back(tokens: jax.Array, written_at: jax.Array, rows: Rows) -> tuple[jax.Array, jax.Array]:
    return shard_rows(tokens.at[rows.slot].set(rows.tokens)), shard_rows(written_at.at[rows.slot].set(rows.written_at))


@functools.partial(jax.jit, static_argnames=("cfg", "decode"))
def denoise_block(
    params: Params, rows: Rows, block: jax.Array, cfg: ModelConfig, decode: DecodeConfig
) -> tuple[Rows, jax.Array, jax.Array]:
    """All steps of one block, fewer where its last mask is written earlier, as hints make it.

    Args:
        block: int32 [], which one.

    Returns:
        The rows, how many steps were run, and how many rows have not ended, int32 [] both.
    """
    prompt, canvas = rows.prompt, rows.canvas
    length, steps_per_block = decode.block_length, decode.steps // decode.blocks
    start, first_step = block * length, block * steps_per_block
    given, prompt_length = canvas != cfg.mask_id, prompt.shape[1]
    valid = jnp.concatenate([rows.valid, jnp.ones(canvas.shape, bool)], axis=1)
    positions = start + jnp.arange(length)
    position_keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(rows.keys, positions)

    def active_of(current):
        return jax.lax.dynamic_slice_in_dim(current, start, length, axis=1)

    def block_logits(current):
        """float32 [b, block, v]; the head sees the active block only."""

        def logits_of(prompt, current, valid):
            tokens = shard_rows(jnp.concatenate([prompt, current], axis=1))
            hidden = forward(params, tokens, valid, cfg)
            active = jax.lax.dynamic_slice_in_dim(hidden, prompt_length + start, length, axis=1)
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

    masks_at_entry = (active_of(rows.tokens) == cfg.mask_id).sum(axis=1)

    def denoise(carry):
        step, current, written_at = carry
        active = active_of(current)
        logits = block_logits(current)
        with jax.named_scope("draw"):
            keys = jax.vmap(jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, first_step + step))))
            keys = keys(position_keys)
            gumbel = gumbel_noise(keys[..., 0], logits.shape[-1]) if decode.temperature > 0 else None
            uniform = jax.vmap(jax.vmap(jax.random.uniform))(keys[..., 1]) if decode.remasking == "random" else None
            drawn, confidence = propose(logits, gumbel, uniform, cfg, decode)
            count = transfer_count(masks_at_entry, step, steps_per_block)
            write = most_confident(confidence, active == cfg.mask_id, count)
        written = jnp.where(write, first_step + step, active_of(written_at))
        active = jnp.where(write, drawn, active)
        return (
            step + 1,
            jax.lax.dynamic_update_slice_in_dim(current, active, start, axis=1),
            jax.lax.dynamic_update_slice_in_dim(written_at, written, start, axis=1),
        )

    def unfinished(carry):
        step, current, _ = carry
        return (step < steps_per_block) & jnp.any(active_of(current) == cfg.mask_id)

    steps, current, written_at = jax.lax.while_loop(unfinished, denoise, (jnp.int32(0), rows.tokens, rows.written_at))
    ended = rows.ended | jnp.all(active_of(current) == cfg.eos_id, axis=1)
    rest = ended[:, None] & (current == cfg.mask_id)
    rows = rows.replace(
        tokens=jnp.where(rest, cfg.eos_id, current),
        written_at=jnp.where(rest, first_step + steps_per_block - 1, written_at),
        ended=ended,
    )
    return jax.tree.map(shard_rows, rows), steps, jnp.sum(~ended)
