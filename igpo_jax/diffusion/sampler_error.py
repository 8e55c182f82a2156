"""Measures the error of a sampler that caches keys and values. Compares the logits of this sampler with exact logits, which are
computed without a cache for the same canvases."""

import functools
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from igpo_jax.diffusion.denoise import Block, DecodeState, DenoiseCarry, initial_state
from igpo_jax.diffusion.sampler import canonical_sharding, refresh_interval
from igpo_jax.diffusion.unmasking import DecodeConfig
from igpo_jax.model.sharding import Array, Params
from igpo_jax.model.transformer import KVCache, ModelConfig
from igpo_jax.runtime.mesh import to_host

PROBED = 8  # minimum number of completions on which training measures the error


@flax.struct.dataclass
class StepErrors:
    """Errors of a cached sampler for each step of a block, float32 [steps], summed over the rows that have not ended."""

    kl: Array  # KL(exact, cached), in nats, summed over the masked positions of the block
    masked: Array  # number of masked positions
    changed: Array  # number of written tokens that differ from the tokens drawn from exact logits with the same noise
    written: Array  # number of written tokens


@flax.struct.dataclass
class ProbeCarry:
    denoise: DenoiseCarry
    cache: KVCache
    errors: StepErrors


def sampler_error(
    params: Params, prompt: Array, prompt_mask: Array, canvas: Array, row_keys: Array, cfg: ModelConfig, decode: DecodeConfig
) -> dict[str, Any]:
    """Samples with a cache, and also computes the exact logits of each step. The arguments are those of `sampler.sample`.

    Returns:
        A dict: `kl` is the mean of KL(exact, cached) over masked positions and steps, in nats. `kl_by_step` is this mean for
        each step of a block, or None for a step that no row reached. `changed` is the share of the written tokens that would
        differ if they were drawn from exact logits."""
    state = canonical_sharding(initial_state(prompt, prompt_mask, canvas, row_keys, cfg, decode))
    total = StepErrors(*np.zeros((4, decode.steps_per_block)))
    for number in range(decode.blocks):
        state, errors = block_errors(params, state, np.int32(number), cfg, decode)
        state = canonical_sharding(state)
        total = jax.tree.map(lambda sums, new: sums + np.float64(new), total, to_host(errors))
    by_step = [float(kl / n) if n else None for kl, n in zip(total.kl, total.masked, strict=True)]
    return {
        "kl": float(total.kl.sum() / max(total.masked.sum(), 1)),
        "kl_by_step": by_step,
        "changed": float(total.changed.sum() / max(total.written.sum(), 1)),
    }


@functools.partial(jax.jit, static_argnames=("cfg", "decode"))
def block_errors(
    params: Params, state: DecodeState, number: Array, cfg: ModelConfig, decode: DecodeConfig
) -> tuple[DecodeState, StepErrors]:
    """Runs the denoising steps of one block like `sampler.denoise_block`. Returns the new state and the errors of each step."""
    steps, every = decode.steps_per_block, refresh_interval(decode)
    block = Block.begin(params, state, number, cfg, decode)
    live = ~state.ended[:, None]

    def run_step(carry: ProbeCarry) -> ProbeCarry:
        before = carry.denoise
        exact, fresh = block.full_forward(before.tokens)
        renewed = before.step % every == 0
        cache = jax.tree.map(lambda new, old: jnp.where(renewed, new, old), fresh, carry.cache)
        cached = jnp.where(renewed, exact, block.cached_forward(before.tokens, cache))
        masked = live & (block.active(before.tokens) == cfg.mask_id)

        after, info = block.denoise_step(before, cached)
        _, exact_info = block.denoise_step(before, exact)
        written = info.written & live
        found = StepErrors(
            jnp.sum(divergence(exact, cached), where=masked),
            masked.sum(),
            (written & (info.drawn != exact_info.drawn)).sum(),
            written.sum(),
        )
        errors = jax.tree.map(lambda sums, new: sums.at[before.step].add(new), carry.errors, found)
        return ProbeCarry(after, cache, errors)

    def unfinished(carry: ProbeCarry) -> Array:
        return (carry.denoise.step < steps) & block.unfinished(carry.denoise.tokens)

    no_cache = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(block.full_forward, state.tokens)[1])
    start = ProbeCarry(DenoiseCarry.start(state), no_cache, StepErrors(*jnp.zeros((4, steps))))
    carry = jax.lax.while_loop(unfinished, run_step, start)
    return block.finish(carry.denoise.tokens, carry.denoise.unmask_step), carry.errors


def divergence(exact: jax.Array, other: jax.Array) -> jax.Array:
    """Computes the divergence KL(exact || other), [...] in nats, from two arrays of logits, [..., v]. Leaves out tokens whose
    probability in `exact` is 0."""
    p, q = jax.nn.log_softmax(exact), jax.nn.log_softmax(other)
    return jnp.sum(jnp.exp(p) * (p - q), axis=-1, where=p > -jnp.inf)
