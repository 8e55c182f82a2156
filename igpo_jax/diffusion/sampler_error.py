"""How far a sampler with a cache is from the exact one, on the canvases that it meets itself."""

import functools
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from igpo_jax.diffusion.sampler import (
    DecodeState,
    active_of,
    block_network,
    canonical_sharding,
    end_block,
    initial_state,
    write_step,
)
from igpo_jax.diffusion.unmasking import DecodeConfig
from igpo_jax.model.sharding import Params
from igpo_jax.model.transformer import ModelConfig
from igpo_jax.runtime.mesh import to_host

PROBED = 8  # completions, at least, on which training measures it


@flax.struct.dataclass
class StepErrors:
    """Sums over the rows that have not ended, float32 [steps of a block] each.

    kl: KL(exact, cached) of the logits, in nats, of all masked positions of the block. masked: how many those were.
    changed: tokens that were written and that exact logits and the same noise would have drawn otherwise. written: how many.
    """

    kl: jax.Array
    masked: jax.Array
    changed: jax.Array
    written: jax.Array


def sampler_error(
    params: Params,
    prompt: jax.Array,
    prompt_mask: jax.Array,
    canvas: jax.Array,
    row_keys: jax.Array,
    cfg: ModelConfig,
    decode: DecodeConfig,
) -> dict[str, Any]:
    """Samples, and computes in every step the exact logits of the same canvas, too.

    Args:
        as of `sampler.sample`; decode has a cache.

    Returns:
        kl: mean over masked positions and steps, nats. kl_by_step: the same by the step of a block, None where no row came
        to it. changed: share of the written tokens that exact logits would have drawn otherwise.
    """
    rows, total = canonical_sharding(initial_state(prompt, prompt_mask, canvas, row_keys, cfg, decode)), None
    for block in range(decode.blocks):
        rows, errors = block_errors(params, rows, np.int32(block), cfg, decode)
        rows = canonical_sharding(rows)
        errors = jax.tree.map(np.float64, to_host(errors))
        total = errors if total is None else jax.tree.map(np.add, total, errors)
    by_step = [float(kl / n) if n else None for kl, n in zip(total.kl, total.masked, strict=True)]
    return {
        "kl": float(total.kl.sum() / max(total.masked.sum(), 1)),
        "kl_by_step": by_step,
        "changed": float(total.changed.sum() / max(total.written.sum(), 1)),
    }


@functools.partial(jax.jit, static_argnames=("cfg", "decode"))
def block_errors(
    params: Params, rows: DecodeState, block: jax.Array, cfg: ModelConfig, decode: DecodeConfig
) -> tuple[DecodeState, StepErrors]:
    """All steps of one block, as `sampler.denoise_block`."""
    length, steps = decode.block_length, decode.steps_per_block
    every, start = decode.refresh or steps, block * length
    full_forward, cached_forward = block_network(params, rows, start, cfg, decode)
    masks_at_entry = (active_of(rows.tokens, start, length) == cfg.mask_id).sum(axis=1)
    live = ~rows.ended[:, None]

    def denoise(carry):
        step, current, unmask_step, remembered, errors = carry
        exact, fresh = full_forward(current)
        renewed = step % every == 0
        remembered = jax.tree.map(lambda new, old: jnp.where(renewed, new, old), fresh, remembered)
        cached = jnp.where(renewed, exact, cached_forward(current, remembered))
        masked = live & (active_of(current, start, length) == cfg.mask_id)

        advance = functools.partial(write_step, rows, masks_at_entry, block, step, cfg=cfg, decode=decode)
        following, unmask_step, drawn, chosen = advance(cached, current, unmask_step)
        _, _, drawn_exactly, _ = advance(exact, current, unmask_step)
        chosen = chosen & live
        found = StepErrors(
            jnp.sum(divergence(exact, cached), where=masked),
            masked.sum(),
            (chosen & (drawn != drawn_exactly)).sum(),
            chosen.sum(),
        )
        errors = jax.tree.map(lambda sums, new: sums.at[step].add(new), errors, found)
        return step + 1, following, unmask_step, remembered, errors

    def unfinished(carry):
        return (carry[0] < steps) & jnp.any(active_of(carry[1], start, length) == cfg.mask_id)

    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(full_forward, rows.tokens)[1])
    errors = StepErrors(*jnp.zeros((4, steps)))
    carry = (jnp.int32(0), rows.tokens, rows.unmask_step, nothing, errors)
    _, current, unmask_step, _, errors = jax.lax.while_loop(unfinished, denoise, carry)
    return end_block(rows, current, unmask_step, block, cfg, decode), errors


def divergence(exact: jax.Array, other: jax.Array) -> jax.Array:
    """KL(exact, other) of two arrays of logits [..., v], in nats, [...]; what has no chance in both is left out."""
    p, q = jax.nn.log_softmax(exact), jax.nn.log_softmax(other)
    return jnp.sum(jnp.exp(p) * (p - q), axis=-1, where=p > -jnp.inf)
