"""The sampler of sampler.py one step at a time, for whoever wants to watch. The same tokens, more slowly: after every step the
host learns what was written."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from igpo_jax.diffusion.sampler import (
    HINT,
    DecodeState,
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

ALTERNATIVES = 5  # of every position


@dataclasses.dataclass(frozen=True)
class Step:
    """Canvases after a denoising step, on the host.

    number: the scheduled step, as in `unmask_step`; `HINT` before the first. tokens, unmask_step: int32 [b, l], as of `Sample`.
    start: where the active block begins. Of its positions, with the logits of this step: probability: float32 [b, k], of the
    token that was drawn. likeliest: int32 [b, k, n], the likeliest tokens; likelihood: float32 [b, k, n], their probabilities.
    Empty before the first step.
    """

    number: int
    tokens: np.ndarray
    unmask_step: np.ndarray
    start: int
    probability: np.ndarray
    likeliest: np.ndarray
    likelihood: np.ndarray


def sample_stepwise(
    params: Params,
    prompt: jax.Array,
    prompt_mask: jax.Array,
    canvas: jax.Array,
    row_keys: jax.Array,
    cfg: ModelConfig,
    decode: DecodeConfig,
    watch: Callable[[Step], None],
) -> DecodeState:
    """What `sampler.sample` does, with the same arguments.

    Args:
        watch: is called before the first step and after every one; what it raises ends the work.

    Returns:
        Rows, in their order, with tokens and unmask_step as of `Sample`.
    """
    rows = canonical_sharding(initial_state(prompt, prompt_mask, canvas, row_keys, cfg, decode))
    nothing = np.zeros((len(canvas), 0))
    watch(Step(HINT, *to_host((rows.tokens, rows.unmask_step)), 0, nothing, nothing, nothing))
    every = 1 if decode.cache == "none" else decode.refresh or decode.steps_per_block
    for block in range(decode.blocks):
        start, remembered = block * decode.block_length, None
        masks_at_entry = _masks(to_host(rows.tokens), start, cfg, decode)
        if not masks_at_entry.any():
            rows = canonical_sharding(_end_block(rows, rows.tokens, rows.unmask_step, np.int32(block), cfg, decode))
        for step in range(decode.steps_per_block if masks_at_entry.any() else 0):
            remembered = None if step % every == 0 else remembered
            rows, remembered, found = advance(
                params, rows, masks_at_entry, remembered, np.int32(block), np.int32(step), cfg, decode
            )
            rows = canonical_sharding(rows)
            tokens, unmask_step, *found = to_host((rows.tokens, rows.unmask_step, *found))
            watch(Step(block * decode.steps_per_block + step, tokens, unmask_step, start, *found))
            if not _masks(tokens, start, cfg, decode).any():
                break
        if to_host(rows.ended).all():
            break
    return rows


@functools.partial(jax.jit, static_argnames=("cfg", "decode"))
def advance(
    params: Params,
    rows: DecodeState,
    masks_at_entry: jax.Array,
    remembered,
    block: jax.Array,
    step: jax.Array,
    cfg: ModelConfig,
    decode: DecodeConfig,
):
    """One step of one block.

    Args:
        masks_at_entry: int32 [b], of the block. remembered: keys and values of an earlier step; None evaluates whole rows.
        block, step: int32 [], the step of the block.

    Returns:
        The rows after it, what a cache remembers, and probability, likeliest and likelihood as of `Step`.
    """
    full_forward, cached_forward = block_network(params, rows, block * decode.block_length, cfg, decode)
    if remembered is None:
        logits, remembered = full_forward(rows.tokens)
    else:
        logits = cached_forward(rows.tokens, remembered)
    tokens, unmask_step, drawn, _ = write_step(
        rows, masks_at_entry, block, step, logits, rows.tokens, rows.unmask_step, cfg, decode
    )
    if decode.logits_eos_inf:
        logits = logits.at[..., cfg.eos_id].set(-jnp.inf)
    probabilities = jax.nn.softmax(logits)
    probability = jnp.take_along_axis(probabilities, drawn[..., None], axis=-1)[..., 0]
    likelihood, likeliest = jax.lax.top_k(probabilities, min(ALTERNATIVES, cfg.vocab_size))
    # Of a block that is not done this ends nothing but rows of which it is all EOS already.
    rows = end_block(rows, tokens, unmask_step, block, cfg, decode)
    return rows, remembered, (probability, likeliest, likelihood)


def _masks(tokens: np.ndarray, start: int, cfg: ModelConfig, decode: DecodeConfig) -> np.ndarray:
    """int32 [b], how many a block has."""
    return (tokens[:, start : start + decode.block_length] == cfg.mask_id).sum(axis=1, dtype=np.int32)


_end_block = jax.jit(end_block, static_argnames=("cfg", "decode"))
