"""The sampler (reverse process), which fills masked tokens block by block (docs/method.md section 5). Each block runs in one
compiled loop.

Hints are completion tokens that are filled in before sampling. Denoising steps write only masked positions, so hints never
change, and inpainting needs no separate sampler. The code of a single denoising step is in denoise.py."""

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
    """Sampled completions of a batch, with the number of network evaluations and the FLOPs that were needed to sample them."""

    tokens: Array  # int32 [b, l]
    unmask_step: Array  # int32 [b, l], the scheduled step that wrote each token, `HINT` for hints
    evaluations: int  # steps that ran; each runs the network once on a batch (with guidance, on twice the rows)
    rows_evaluated: int  # sum of the batch sizes of all evaluations, without the factor 2 of guidance; at most b * steps
    flops: int  # FLOPs of matrix products, see `forward_flops`


@jax.jit
def completion_keys(key: jax.Array, problem_id: Array, completion: Array, attempt: int) -> jax.Array:
    """Returns one PRNG key per row. Each key is derived from the key of the iteration, the id of the problem, and the index of
    the completion. The ids and indices are uint32 [rows]. The key does not depend on the row's place in the batch. Different
    values of `attempt` give different keys, so that the key of the iteration can be used several times."""
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    by_problem = fold(jax.random.fold_in(key, attempt), problem_id)
    return jax.vmap(jax.random.fold_in)(by_problem, completion)


def sample(
    params: Params, prompt: Array, prompt_mask: Array, canvas: Array, row_keys: Array, cfg: ModelConfig, decode: DecodeConfig
) -> Sample:
    """Samples completions: fills the masked positions of the canvas block by block, from left to right.

    Each step draws a token for every masked position of the active block, writes some of them (by default the likeliest, see
    `to_write`) and leaves the others masked. MASK itself and the ids in `cfg.never_drawn` are never drawn. A row whose block
    contains only EOS has ended, and its remaining MASK tokens become EOS. Each block runs in one compiled program. Between
    blocks, the host reads how many rows have not ended. If these rows fit into one of a few smaller batch sizes, the next block
    runs on that smaller batch. The tokens do not depend on the batch size, unless rounding decides between nearly equal values.

    Args:
        prompt, prompt_mask: prompts padded on the left and their mask, int32 and bool [b, p].
        canvas: positions of the completions, each MASK or a hint token, int32 [b, l].
        row_keys: PRNG keys [b] from `completion_keys`. The noise depends on the row's key, the position and the step."""
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
    """Returns the FLOPs of sampling one block of one row. The sampler runs `full` forward passes over all `length` positions of
    the row, and `partial` forward passes over only a window of the row. The window contains the positions that a step with a
    cache recomputes."""
    rest = decode.completion_length - block * decode.block_length
    window = decode.block_length if decode.cache == "dual" else next(size for size in window_sizes(decode) if size >= rest)
    window += int(cfg.shift)
    full_flops = forward_flops(cfg, length, decode.block_length)
    window_flops = forward_flops(cfg, window, decode.block_length, length + window)  # cached keys, and those of the window
    return (full * full_flops + partial * window_flops) * (2 if decode.cfg_scale > 0 else 1)


def canonical_sharding(state: DecodeState) -> DecodeState:
    """Returns the state with all its arrays sharded over the mesh axes (data, fsdp) by the same `NamedSharding`. This avoids
    recompilation, because JAX compiles a program again for an equivalent sharding that is written differently. Arrays that span
    several processes keep their sharding. Programs for such arrays are therefore compiled a second time."""
    sharding = getattr(state.tokens, "sharding", None)
    if not isinstance(sharding, NamedSharding) or not sharding.is_fully_addressable:
        return state
    return jax.device_put(state, NamedSharding(sharding.mesh, P(BATCH)))


def _batch_sizes(rows: int) -> list[int]:
    """Returns the batch sizes that the sampler can use. These are `rows`, and a half, a quarter and an eighth of `rows`.
    Fractions that cannot be divided evenly over the devices are left out."""
    mesh = jax.sharding.get_abstract_mesh()
    divisor = 1 if mesh.empty else batch_size_divisor(mesh)
    return [rows // part for part in (1, 2, 4, 8) if part == 1 or rows % (part * divisor) == 0]


@functools.partial(jax.jit, static_argnames="size")
def _take_live(state: DecodeState, size: int) -> DecodeState:
    """Returns the state with only `size` rows: all rows that have not ended, and enough ended rows to fill the batch."""
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
    """State of the loop that denoises a block. Each iteration first runs the network on all positions of the rows. It then runs
    the steps that reuse the keys and values from this forward pass. The loop bodies increment the counters, so that
    plan/hlo_cost.py can read the number of iterations from the program."""

    full: jax.Array  # int32 [], evaluations of whole rows
    partial: jax.Array  # int32 [], evaluations of windows
    tokens: Array  # int32 [b, l]
    unmask_step: Array  # int32 [b, l]


@functools.partial(jax.jit, static_argnames=("cfg", "decode"))
def denoise_block(
    params: Params, state: DecodeState, number: Array, cfg: ModelConfig, decode: DecodeConfig
) -> tuple[DecodeState, tuple[jax.Array, jax.Array, jax.Array]]:
    """Runs the denoising steps of block `number`, int32 [], until the block has no masked positions. Returns the new state and
    three counts, int32 []. These are the number of forward passes over all positions, the number of forward passes over only a
    window of positions, and the number of rows that have not ended."""
    steps, every = decode.steps_per_block, refresh_interval(decode)
    block = Block.begin(params, state, number, cfg, decode)

    def run_full(carry: BlockCarry) -> BlockCarry:
        """Runs the network once on all positions of the rows, and then runs the steps that reuse the resulting keys and
        values."""
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
    """Returns the number of denoising steps per forward pass over all positions. The first of these steps runs that forward
    pass, and the other steps use the cache."""
    return 1 if decode.cache == "none" else decode.refresh or decode.steps_per_block
