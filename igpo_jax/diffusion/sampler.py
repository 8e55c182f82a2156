"""The reverse process: block-wise remasking, one compiled loop per block (igpo_method.md 2.2, llada.md 6).

A hint is a canvas position that is already filled. Only masks are ever written, so it cannot change, and inpainting needs no
sampler of its own. What one step writes is in unmasking.py.
"""

import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from igpo_jax.diffusion.unmasking import DecodeConfig, gumbel_noise, propose, to_write
from igpo_jax.model.sharding import Params
from igpo_jax.model.transformer import ModelConfig, Window, forward, forward_flops, prefill, unembed
from igpo_jax.runtime.mesh import BATCH, batch_size_divisor, shard_rows

HINT = -1  # in `Sample.unmask_step`: filled from the start


@flax.struct.dataclass
class Sample:
    """Completions and how they came about.

    tokens: int32 [b, l]. unmask_step: int32 [b, l], the scheduled step that wrote each token, `HINT` where it was given.
    evaluations: the number of steps that were run; each is one network evaluation (two with guidance) of a batch.
    rows_evaluated: the same, summed over the rows of those batches; at most b * steps.
    flops: of the matrix products of all of that, see `forward_flops`.
    """

    tokens: jax.Array
    unmask_step: jax.Array
    evaluations: int
    rows_evaluated: int
    flops: int


@jax.jit
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


@flax.struct.dataclass
class DecodeState:
    """Completions on their way; everything has the leading axis b.

    prompt int32 [b, p], valid bool [b, p]; canvas int32 [b, l], as it was given; keys [b]; tokens, unmask_step int32 [b, l],
    as of `Sample`; ended bool [b]: nothing is left to write; slot int32 [b]: which row of the batch this is.
    """

    prompt: jax.Array
    prompt_mask: jax.Array
    canvas: jax.Array
    keys: jax.Array
    tokens: jax.Array
    unmask_step: jax.Array
    ended: jax.Array
    slot: jax.Array


def sample(
    params: Params,
    prompt: jax.Array,
    prompt_mask: jax.Array,
    canvas: jax.Array,
    row_keys: jax.Array,
    cfg: ModelConfig,
    decode: DecodeConfig,
) -> Sample:
    """Fills the masks of a canvas block by block, from left to right.

    Each step draws a token for every masked position of the active block, writes some of them (`to_write`; by default those
    whose tokens are likeliest) and leaves the others masked. MASK is never drawn. A row whose block came out as EOS only is
    ended: its remaining masks become EOS.

    A block is one compiled program; between blocks the host learns how many rows go on, and moves them into a smaller
    batch where one of a few sizes holds them. Tokens do not depend on it, but for what rounding does to near ties.

    Args:
        params: of the network.
        prompt, prompt_mask: int32 and bool [b, p], padded on the left.
        canvas: int32 [b, l]: MASK, or a hint token.
        row_keys: PRNG keys [b], see `completion_keys`. The noise of a step belongs to (row key, position, step).
        cfg, decode: static.
    """
    rows = canonical_sharding(initial_state(prompt, prompt_mask, canvas, row_keys, cfg, decode))
    sizes, length = _batch_sizes(len(canvas)), prompt.shape[1] + decode.completion_length
    done = Sample(rows.tokens, rows.unmask_step, 0, 0, 0)
    for block in range(decode.blocks):
        size = len(rows.tokens)
        rows, counts = denoise_block(params, rows, np.int32(block), cfg, decode)
        rows, full, partial, live = canonical_sharding(rows), int(counts.full), int(counts.partial), int(counts.live)
        done = done.replace(
            evaluations=done.evaluations + full + partial,
            rows_evaluated=done.rows_evaluated + (full + partial) * size,
            flops=done.flops + size * block_flops(full, partial, block, length, cfg, decode),
        )
        smaller = min(number for number in sizes if number >= live)
        if live == 0 or block == decode.blocks - 1 or smaller < size:
            tokens, unmask_step = _put_back(done.tokens, done.unmask_step, rows)
            done = done.replace(tokens=tokens, unmask_step=unmask_step)
        if live == 0:
            break
        if smaller < size:
            rows = canonical_sharding(_take_live(rows, smaller))
    return done


def block_flops(full: int, partial: int, block: int, length: int, cfg: ModelConfig, decode: DecodeConfig) -> int:
    """Of one row in one block: `full` evaluations of all `length` positions, `partial` ones of a window."""
    window = next((size for size in _windows(decode) if size >= decode.completion_length - block * decode.block_length), 0)
    whole = forward_flops(cfg, length, decode.block_length)
    part = forward_flops(cfg, decode.block_length if decode.cache == "dual" else window, decode.block_length, length)
    return (full * whole + partial * part) * (2 if decode.cfg_scale > 0 else 1)


def _windows(decode: DecodeConfig) -> list[int]:
    """Positions at the end of a completion that are computed anew with cache=prefix, ascending: a few sizes, so that there is
    one program for all blocks."""
    sizes, blocks = [], decode.blocks
    while not sizes or sizes[-1] > decode.block_length:
        sizes.append(blocks * decode.block_length)
        blocks = -(-blocks // 2)
    return sizes[::-1]


def canonical_sharding(rows: DecodeState) -> DecodeState:
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
def initial_state(prompt, prompt_mask, canvas, row_keys, cfg: ModelConfig, decode: DecodeConfig) -> DecodeState:
    """Before the first block; arguments as of `sample`."""
    number = len(canvas)
    unmask_step = jnp.where(canvas != cfg.mask_id, jnp.int32(HINT), jnp.int32(decode.steps))
    rows = DecodeState(prompt, prompt_mask, canvas, row_keys, canvas, unmask_step, jnp.zeros(number, bool), jnp.arange(number))
    return jax.tree.map(shard_rows, rows)


@functools.partial(jax.jit, static_argnames="size")
def _take_live(rows: DecodeState, size: int) -> DecodeState:
    """The rows that have not ended, and as many others as fill the batch."""
    order = jnp.argsort(rows.ended, stable=True)[:size]
    return jax.tree.map(lambda x: shard_rows(x[order]), rows)


@jax.jit
def _put_back(tokens: jax.Array, unmask_step: jax.Array, rows: DecodeState) -> tuple[jax.Array, jax.Array]:
    return shard_rows(tokens.at[rows.slot].set(rows.tokens)), shard_rows(unmask_step.at[rows.slot].set(rows.unmask_step))


@flax.struct.dataclass
class Counts:
    """Of one block, int32 [] each. full, partial: evaluations of whole rows and of windows. live: rows that have not ended."""

    full: jax.Array
    partial: jax.Array
    live: jax.Array


@functools.partial(jax.jit, static_argnames=("cfg", "decode"))
def denoise_block(
    params: Params, rows: DecodeState, block: jax.Array, cfg: ModelConfig, decode: DecodeConfig
) -> tuple[DecodeState, Counts]:
    """All steps of one block, fewer where its last mask is written earlier, as hints make it.

    Args:
        block: int32 [], which one.
    """
    length, steps = decode.block_length, decode.steps_per_block
    every = 1 if decode.cache == "none" else decode.refresh or steps
    start = block * length
    full_forward, cached_forward = block_network(params, rows, start, cfg, decode)
    masks_at_entry = (active_of(rows.tokens, start, length) == cfg.mask_id).sum(axis=1)

    def write(step, logits, current, unmask_step):
        return write_step(rows, masks_at_entry, block, step, logits, current, unmask_step, cfg, decode)[:2]

    def unfinished(current):
        return jnp.any(active_of(current, start, length) == cfg.mask_id)

    def evaluate_whole(carry):
        """One full evaluation, and the steps that reuse its keys and values."""
        full, partial, current, unmask_step = carry
        first = full * every
        logits, remembered = full_forward(current)
        current, unmask_step = write(first, logits, current, unmask_step)
        if every == 1:
            return full + 1, partial, current, unmask_step

        def evaluate_window(carry):
            age, current, unmask_step = carry
            return age + 1, *write(first + age, cached_forward(current, remembered), current, unmask_step)

        def go_on(carry):
            age, current, _ = carry
            return (age < every) & (first + age < steps) & unfinished(current)

        age, current, unmask_step = jax.lax.while_loop(go_on, evaluate_window, (jnp.int32(1), current, unmask_step))
        return full + 1, partial + age - 1, current, unmask_step

    def go_on(carry):
        full, _, current, _ = carry
        return (full < -(-steps // every)) & unfinished(current)

    carry = (jnp.int32(0), jnp.int32(0), rows.tokens, rows.unmask_step)
    full, partial, current, unmask_step = jax.lax.while_loop(go_on, evaluate_whole, carry)
    rows = end_block(rows, current, unmask_step, block, cfg, decode)
    return rows, Counts(full, partial, jnp.sum(~rows.ended))


def end_block(
    rows: DecodeState, current: jax.Array, unmask_step: jax.Array, block: jax.Array, cfg: ModelConfig, decode: DecodeConfig
) -> DecodeState:
    """With the tokens of a block; those of which it is all EOS have ended, and what they have left becomes EOS."""
    length, steps = decode.block_length, decode.steps_per_block
    ended = rows.ended | jnp.all(active_of(current, block * length, length) == cfg.eos_id, axis=1)
    rest = ended[:, None] & (current == cfg.mask_id)
    rows = rows.replace(
        tokens=jnp.where(rest, cfg.eos_id, current),
        unmask_step=jnp.where(rest, block * steps + steps - 1, unmask_step),
        ended=ended,
    )
    return jax.tree.map(shard_rows, rows)


def active_of(x: jax.Array, start: jax.Array, length: int) -> jax.Array:
    """The active block of [b, l]."""
    return jax.lax.dynamic_slice_in_dim(x, start, length, axis=1)


def write_step(
    rows: DecodeState,
    masks_at_entry: jax.Array,
    block: jax.Array,
    step: jax.Array,
    logits: jax.Array,
    current: jax.Array,
    unmask_step: jax.Array,
    cfg: ModelConfig,
    decode: DecodeConfig,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """One step from logits to tokens.

    Args:
        rows: their keys count. masks_at_entry: int32 [b], of the block. block, step: int32 [], the step of the block.
        logits: float32 [b, k, v] of the block's positions. current, unmask_step: int32 [b, l].

    Returns:
        current and unmask_step afterwards; what was drawn for the block, int32 [b, k], and what of it was written, bool.
    """
    start, length = block * decode.block_length, decode.block_length
    positions, scheduled = start + jnp.arange(length), block * decode.steps_per_block + step
    active = active_of(current, start, length)

    def keys_of(row_key, position):
        return jax.random.split(jax.random.fold_in(jax.random.fold_in(row_key, position), scheduled))

    with jax.named_scope("draw"):
        keys = jax.vmap(jax.vmap(keys_of, (None, 0)), (0, None))(rows.keys, positions)
        gumbel = gumbel_noise(keys[..., 0], logits.shape[-1]) if decode.temperature > 0 else None
        uniform = jax.vmap(jax.vmap(jax.random.uniform))(keys[..., 1]) if decode.remasking == "random" else None
        drawn, confidence = propose(logits, gumbel, uniform, cfg, decode)
        chosen = to_write(confidence, active == cfg.mask_id, masks_at_entry, step, decode)
    update = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=1)
    current = update(current, jnp.where(chosen, drawn, active))
    unmask_step = update(unmask_step, jnp.where(chosen, scheduled, active_of(unmask_step, start, length)))
    return current, unmask_step, drawn, chosen


def block_network(params: Params, rows: DecodeState, start: jax.Array, cfg: ModelConfig, decode: DecodeConfig):
    """Two functions, from whole rows and from a window, to the logits of the block that begins at `start`, float32 [b, k, v]:
    `full_forward(current)` also gives the keys and values of all positions where there is a cache, `cached_forward(current, those)` takes
    them. The head sees the block only, MASK has no logit, and with guidance the others are guided (llada.md 6.4)."""
    prompt, canvas, guided = rows.prompt, rows.canvas, decode.cfg_scale > 0
    prompt_length, length = prompt.shape[1], decode.completion_length
    first = prompt_length + start
    attention_mask = jnp.concatenate([rows.prompt_mask, jnp.ones(canvas.shape, bool)], axis=1)
    attention_mask = jnp.concatenate([attention_mask, attention_mask]) if guided else attention_mask

    def tokens_of(current):
        tokens = jnp.concatenate([prompt, current], axis=1)
        if guided:
            without = [jnp.full_like(prompt, cfg.mask_id), jnp.where(canvas != cfg.mask_id, cfg.mask_id, current)]
            tokens = jnp.concatenate([tokens, jnp.concatenate(without, axis=1)])
        return shard_rows(tokens)

    def logits_of(hidden):
        logits = unembed(params, hidden, cfg)
        if guided:
            conditional, unconditional = jnp.split(logits, 2)
            logits = unconditional + (decode.cfg_scale + 1) * (conditional - unconditional)
        return logits.at[..., cfg.mask_id].set(-jnp.inf)

    def full_forward(current):
        out_slice = first, decode.block_length
        if decode.cache == "none":
            return logits_of(forward(params, tokens_of(current), attention_mask, cfg, out_slice)), None
        hidden, remembered = prefill(params, tokens_of(current), attention_mask, cfg, out_slice)
        return logits_of(hidden), remembered

    def cached_forward(current, remembered):
        tokens = tokens_of(current)

        def from_window(begin, size):
            part = shard_rows(jax.lax.dynamic_slice_in_dim(tokens, begin, size, axis=1))
            out_slice = first - begin, decode.block_length
            return logits_of(forward(params, part, attention_mask, cfg, out_slice, Window(remembered, begin, first)))

        if decode.cache == "dual":
            return from_window(first, decode.block_length)
        sizes = _windows(decode)
        enough = jnp.array(sizes) >= length - start
        at_end = [functools.partial(from_window, prompt_length + length - size, size) for size in sizes]
        return jax.lax.switch(jnp.argmax(enough), at_end)

    return full_forward, cached_forward
