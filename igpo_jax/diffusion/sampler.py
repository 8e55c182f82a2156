"""The reverse process: block-wise remasking, one compiled loop per block (docs/method.md section 5).

A hint is a canvas position that is already filled. Steps write masks only, so hints cannot change, and inpainting needs no
sampler of its own. denoise.py has the single step.
"""

import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from igpo_jax.diffusion.denoise import HINT as HINT
from igpo_jax.diffusion.denoise import Block, DecodeState, DenoiseCarry, initial_state, window_sizes
from igpo_jax.diffusion.unmasking import DecodeConfig
from igpo_jax.model.sharding import Array, Params
from igpo_jax.model.transformer import ModelConfig, forward_flops
from igpo_jax.runtime.mesh import BATCH, batch_size_divisor, shard_rows


@flax.struct.dataclass
class Sample:
    """Completions, and the work of sampling them."""

    tokens: Array  # int32 [b, l]
    unmask_step: Array  # int32 [b, l], the scheduled step that wrote each token, `HINT` for hints
    evaluations: int  # steps that ran; each is one network evaluation (two with guidance) of a batch
    rows_evaluated: int  # evaluations summed over the rows of their batches; at most b * steps
    flops: int  # of matrix products, see `forward_flops`


@jax.jit
def completion_keys(key: jax.Array, problem_id: Array, completion: Array, attempt: int) -> jax.Array:
    """Returns one PRNG key per row, [b], derived from the iteration's key, the problem and the completion index, uint32 [b], so
    that it does not depend on the row's place in the batch. `attempt` separates several uses of the iteration's key."""
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    by_problem = fold(jax.random.fold_in(key, attempt), problem_id)
    return jax.vmap(jax.random.fold_in)(by_problem, completion)


def sample(
    params: Params, prompt: Array, prompt_mask: Array, canvas: Array, row_keys: Array, cfg: ModelConfig, decode: DecodeConfig
) -> Sample:
    """Fills the masks of a canvas block by block, from left to right.

    Each step draws a token for every masked position of the active block, writes some of them (`to_write`; by default the
    likeliest) and leaves the others masked. MASK is never drawn. A row whose block is all EOS has ended: its remaining masks
    become EOS. A block is one compiled program. Between blocks the host reads the number of rows that have not ended, and moves
    them into a smaller batch if one of a few sizes holds them. Tokens do not depend on this, unless rounding decides near ties.

    Args:
        prompt, prompt_mask: int32 and bool [b, p], padded on the left.
        canvas: int32 [b, l], MASK or a hint token.
        row_keys: PRNG keys [b], see `completion_keys`. Noise depends on (row key, position, step).
    """
    state = canonical_sharding(initial_state(prompt, prompt_mask, canvas, row_keys, cfg, decode))
    sizes, length = _batch_sizes(len(canvas)), prompt.shape[1] + decode.completion_length
    tokens, unmask_step, evaluations, rows_evaluated, flops = state.tokens, state.unmask_step, 0, 0, 0
    for block in range(decode.blocks):
        size = len(state.tokens)
        state, counts = denoise_block(params, state, np.int32(block), cfg, decode)
        state, (full, partial, live) = canonical_sharding(state), map(int, counts)
        evaluations += full + partial
        rows_evaluated += (full + partial) * size
        flops += size * block_flops(full, partial, block, length, cfg, decode)
        smaller = min(number for number in sizes if number >= live)
        if live == 0 or block == decode.blocks - 1 or smaller < size:
            tokens, unmask_step = _put_back(tokens, unmask_step, state)
        if live == 0:
            break
        if smaller < size:
            state = canonical_sharding(_take_live(state, smaller))
    return Sample(tokens, unmask_step, evaluations, rows_evaluated, flops)


def block_flops(full: int, partial: int, block: int, length: int, cfg: ModelConfig, decode: DecodeConfig) -> int:
    """FLOPs of one row in one block: `full` evaluations of all `length` positions and `partial` evaluations of a window."""
    rest = decode.completion_length - block * decode.block_length
    window = decode.block_length if decode.cache == "dual" else next(size for size in window_sizes(decode) if size >= rest)
    full_flops = forward_flops(cfg, length, decode.block_length)
    window_flops = forward_flops(cfg, window, decode.block_length, length)
    return (full * full_flops + partial * window_flops) * (2 if decode.cfg_scale > 0 else 1)


def canonical_sharding(state: DecodeState) -> DecodeState:
    """Normalizes equivalent shardings, which would otherwise trigger recompilation, to (data, fsdp) by name. Arrays of several
    processes cannot be renamed, so these compile once more."""
    sharding = getattr(state.tokens, "sharding", None)
    if not isinstance(sharding, NamedSharding) or not sharding.is_fully_addressable:
        return state
    return jax.device_put(state, NamedSharding(sharding.mesh, P(BATCH)))


def _batch_sizes(rows: int) -> list[int]:
    """Batch sizes for rows that have not ended: all, a half, a quarter or an eighth, if these divide over the devices."""
    mesh = jax.sharding.get_abstract_mesh()
    divisor = 1 if mesh.empty else batch_size_divisor(mesh)
    return [rows // part for part in (1, 2, 4, 8) if part == 1 or rows % (part * divisor) == 0]


@functools.partial(jax.jit, static_argnames="size")
def _take_live(state: DecodeState, size: int) -> DecodeState:
    """Takes the rows that have not ended, and ended ones to fill the batch."""
    order = jnp.argsort(state.ended, stable=True)[:size]
    return jax.tree.map(lambda x: shard_rows(x[order]), state)


@jax.jit
def _put_back(tokens: jax.Array, unmask_step: jax.Array, state: DecodeState) -> tuple[jax.Array, jax.Array]:
    return (
        shard_rows(tokens.at[state.slot].set(state.tokens)),
        shard_rows(unmask_step.at[state.slot].set(state.unmask_step)),
    )


@flax.struct.dataclass
class BlockCarry:
    """Values that a full evaluation and its cached steps change. Loop bodies increment the counters, so that plan/hlo_cost.py
    can read the number of iterations from the compiled program."""

    full: jax.Array  # int32 [], evaluations of whole rows
    partial: jax.Array  # int32 [], evaluations of windows
    tokens: Array  # int32 [b, l]
    unmask_step: Array  # int32 [b, l]


@functools.partial(jax.jit, static_argnames=("cfg", "decode"))
def denoise_block(
    params: Params, state: DecodeState, number: Array, cfg: ModelConfig, decode: DecodeConfig
) -> tuple[DecodeState, tuple[jax.Array, jax.Array, jax.Array]]:
    """Runs the steps of block `number`, int32 [], until its last mask is written. Returns the state and counts, int32 [] each:
    evaluations of whole rows, evaluations of windows, and rows that have not ended."""
    steps, every = decode.steps_per_block, refresh_interval(decode)
    block = Block.begin(params, state, number, cfg, decode)

    def run_full(carry: BlockCarry) -> BlockCarry:
        """Runs one full evaluation and the steps that reuse its keys and values."""
        first = carry.full * every
        logits, cache = block.full_forward(carry.tokens)
        after, _ = block.denoise_step(DenoiseCarry(carry.tokens, carry.unmask_step, jnp.int32(0)), logits, first)
        if every == 1:
            return BlockCarry(carry.full + 1, carry.partial, after.tokens, after.unmask_step)

        def run_cached(carry: DenoiseCarry) -> DenoiseCarry:
            assert cache is not None
            return block.denoise_step(carry, block.cached_forward(carry.tokens, cache), first)[0]

        def cache_serves(carry: DenoiseCarry) -> Array:
            return (carry.step < every) & (first + carry.step < steps) & block.unfinished(carry.tokens)

        after = jax.lax.while_loop(cache_serves, run_cached, after.replace(step=jnp.int32(1)))
        return BlockCarry(carry.full + 1, carry.partial + after.step - 1, after.tokens, after.unmask_step)

    def unfinished(carry: BlockCarry) -> Array:
        return (carry.full < -(-steps // every)) & block.unfinished(carry.tokens)

    start = BlockCarry(jnp.int32(0), jnp.int32(0), state.tokens, state.unmask_step)
    carry = jax.lax.while_loop(unfinished, run_full, start)
    state = block.finish(carry.tokens, carry.unmask_step)
    return state, (carry.full, carry.partial, jnp.sum(~state.ended))


def refresh_interval(decode: DecodeConfig) -> int:
    """Number of steps from one full evaluation to the next."""
    return 1 if decode.cache == "none" else decode.refresh or decode.steps_per_block
