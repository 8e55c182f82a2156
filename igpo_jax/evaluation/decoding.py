"""Completions of held-out problems."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from igpo_jax.data.pipeline import PromptBatch, take_rows
from igpo_jax.diffusion.sampler import DecodeConfig, completion_keys, sample
from igpo_jax.model.transformer import ModelConfig, Params
from igpo_jax.runtime.mesh import fetch, put_rows


def decode_completions(
    params: Params,
    prompts: PromptBatch,
    model: ModelConfig,
    decode: DecodeConfig,
    batch_size: int,
    mesh: Mesh,
    pause: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """One completion per prompt, int32 [n, l]. Batches have one size; the last is filled up with repeats.

    Args:
        prompts: host arrays, any number of rows.
        batch_size: a multiple of data * fsdp.
        pause: called after every batch, on all processes; may raise.
    """
    total = len(prompts.tokens)
    completions = []
    for begin in range(0, total, batch_size):
        rows = np.minimum(np.arange(begin, begin + batch_size), total - 1)
        batch, draws = take_rows(prompts, rows), np.zeros(batch_size, np.uint32)
        completions.append(denoise(params, batch, draws, 0, model, decode, mesh)[0])
        pause()
    return np.concatenate(completions)[:total]


def denoise(params, batch: PromptBatch, draws: np.ndarray, seed: int, model: ModelConfig, decode: DecodeConfig, mesh: Mesh):
    """tokens and written_at of a batch; the noise belongs to (seed, problem, draw)."""
    keys = completion_keys(jax.random.key(seed), batch.problem_id, draws, 0)
    canvas = np.full((len(draws), decode.completion_length), model.mask_id, np.int32)
    arrays = put_rows((batch.tokens, batch.valid, canvas), mesh)
    done = sample(params, *arrays, keys, model, decode)
    return fetch((done.tokens, done.written_at))
