"""Accuracy of a policy on held-out problems."""

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
        batch = take_rows(prompts, rows)
        keys = completion_keys(jax.random.key(0), batch.problem_id, np.zeros(batch_size, np.uint32), 0)
        canvas = np.full((batch_size, decode.completion_length), model.mask_id, np.int32)
        arrays = put_rows((batch.tokens, batch.valid, canvas), mesh)
        completions.append(fetch(sample(params, *arrays, keys, model, decode).tokens))
        pause()
    return np.concatenate(completions)[:total]
