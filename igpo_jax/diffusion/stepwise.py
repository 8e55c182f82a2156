"""Runs the sampler of sampler.py one denoising step at a time, for viewers that show the progress of sampling. Both
samplers give the same tokens, but this one is slower, because the host reads the canvas after every step."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from igpo_jax.diffusion.denoise import HINT, Block, DecodeState, DenoiseCarry, initial_state
from igpo_jax.diffusion.sampler import Sample, block_flops, canonical_sharding, refresh_interval
from igpo_jax.diffusion.unmasking import DecodeConfig, exclude_ids
from igpo_jax.model.sharding import Array, Params
from igpo_jax.model.transformer import KVCache, ModelConfig
from igpo_jax.runtime.mesh import to_host

ALTERNATIVES = 5  # number of likeliest tokens reported for every position


@dataclasses.dataclass(frozen=True)
class Step:
    """Canvases of a batch on the host, either before the first denoising step or after a step. `probability`, `likeliest` and
    `likelihood` are computed from the logits of this step in the active block. These three fields are empty before the first
    step."""

    number: int  # the scheduled step, as in `unmask_step`; `HINT` before the first
    tokens: np.ndarray  # int32 [b, l]
    unmask_step: np.ndarray  # int32 [b, l]
    start: int  # the active block's first position
    probability: np.ndarray  # float32 [b, k], probability of the drawn token
    likeliest: np.ndarray  # int32 [b, k, n], the likeliest tokens
    likelihood: np.ndarray  # float32 [b, k, n], their probabilities


def sample_stepwise(
    params: Params,
    prompt: Array,
    prompt_mask: Array,
    canvas: Array,
    row_keys: Array,
    cfg: ModelConfig,
    decode: DecodeConfig,
    watch: Callable[[Step], None],
) -> Sample:
    """Samples like `sampler.sample`, with the same arguments, and calls `watch` before the first step and after every step.
    `watch` may raise an exception to stop sampling."""
    state = canonical_sharding(initial_state(prompt, prompt_mask, canvas, row_keys, cfg, decode))
    nothing = np.zeros((len(canvas), 0))
    tokens, unmask_step = to_host((state.tokens, state.unmask_step))
    watch(Step(HINT, tokens, unmask_step, 0, nothing, nothing, nothing))
    every, length = refresh_interval(decode), prompt.shape[1] + decode.completion_length
    evaluations, flops = 0, 0
    for block in range(decode.blocks):
        start, cache = block * decode.block_length, None
        masks_at_entry = _masks(to_host(state.tokens), start, cfg, decode)
        if not masks_at_entry.any():
            state = canonical_sharding(_skip_block(state, np.int32(block), cfg, decode))
        for step in range(decode.steps_per_block if masks_at_entry.any() else 0):
            cache = None if step % every == 0 else cache
            flops += len(canvas) * block_flops(int(cache is None), int(cache is not None), block, length, cfg, decode)
            evaluations += 1
            state, cache, found = advance(params, state, masks_at_entry, cache, np.int32(block), np.int32(step), cfg, decode)
            state = canonical_sharding(state)
            tokens, unmask_step, *found = to_host((state.tokens, state.unmask_step, *found))
            watch(Step(block * decode.steps_per_block + step, tokens, unmask_step, start, *found))
            if not _masks(tokens, start, cfg, decode).any():
                break
        if to_host(state.ended).all():
            break
    return Sample(state.tokens, state.unmask_step, evaluations, evaluations * len(canvas), flops)


@functools.partial(jax.jit, static_argnames=("cfg", "decode"))
def advance(
    params: Params,
    state: DecodeState,
    masks_at_entry: Array,
    cache: KVCache | None,
    number: Array,
    step: Array,
    cfg: ModelConfig,
    decode: DecodeConfig,
) -> tuple[DecodeState, KVCache | None, tuple[jax.Array, jax.Array, jax.Array]]:
    """Runs one denoising step of one block. Returns the new state, the cached keys and values, and the fields `probability`,
    `likeliest` and `likelihood` of `Step`.

    Args:
        masks_at_entry: number of masked positions in the block before its first step, int32 [b].
        cache: keys and values from an earlier step, or None to run the network on whole rows.
        number, step: index of the block and index of the step within the block, both int32 []."""
    block = Block.begin(params, state, number, cfg, decode).replace(masks_at_entry=masks_at_entry)
    if cache is None:
        logits, cache = block.full_forward(state.tokens)
    else:
        logits = block.cached_forward(state.tokens, cache)
    carry, info = block.denoise_step(DenoiseCarry.start(state).replace(step=step), logits)
    if decode.logits_eos_inf:
        logits = logits.at[..., cfg.eos_id].set(-jnp.inf)
    probabilities = jax.nn.softmax(exclude_ids(logits, cfg))
    probability = jnp.take_along_axis(probabilities, info.drawn[..., None], axis=-1)[..., 0]
    likelihood, likeliest = jax.lax.top_k(probabilities, min(ALTERNATIVES, cfg.vocab_size))
    # `finish` also runs while the block still has masked positions. It then ends only rows whose block is already all EOS.
    return block.finish(carry.tokens, carry.unmask_step), cache, (probability, likeliest, likelihood)


def compiled_programs() -> int:
    """Returns the number of programs that `sample_stepwise` has compiled, one or more for each `DecodeConfig` and each length
    of the prompts, and that JAX still keeps in memory."""
    programs: Any = (initial_state, advance, _skip_block)
    return sum(program._cache_size() for program in programs)


def _masks(tokens: np.ndarray, start: int, cfg: ModelConfig, decode: DecodeConfig) -> np.ndarray:
    """Counts the masked positions of each row in the block that begins at `start`, int32 [rows]."""
    return (tokens[:, start : start + decode.block_length] == cfg.mask_id).sum(axis=1, dtype=np.int32)


@functools.partial(jax.jit, static_argnames=("cfg", "decode"))
def _skip_block(state: DecodeState, number: Array, cfg: ModelConfig, decode: DecodeConfig) -> DecodeState:
    """Returns the sampler's state after a block without masked positions."""
    return Block.begin({}, state, number, cfg, decode).finish(state.tokens, state.unmask_step)
