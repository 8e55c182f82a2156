"""Completions of held-out problems."""

from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from igpo_jax.data.pipeline import PromptBatch, cut_to_bucket, take_rows
from igpo_jax.diffusion.sampler import Sample, completion_keys, sample
from igpo_jax.diffusion.unmasking import DecodeConfig
from igpo_jax.model.sharding import Params
from igpo_jax.model.transformer import ModelConfig
from igpo_jax.runtime.mesh import shard_batch, to_host


def decode_completions(
    params: Params,
    prompts: PromptBatch,
    model: ModelConfig,
    decode: DecodeConfig,
    batch_size: int,
    buckets: Sequence[int],
    mesh: Mesh,
    check_preemption: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """One completion per prompt, int32 [n, l]. Batches have one size, and the shortest prompts come first; the last is
    filled up with repeats.

    Args:
        prompts: host arrays, any number of rows.
        buckets: a batch's prompts are padded to the smallest that holds them.
        batch_size: a multiple of data * fsdp.
        check_preemption: called after every batch, on all processes; may raise.
    """
    total, draws = len(prompts.tokens), np.zeros(batch_size, np.uint32)
    order = np.argsort(prompts.prompt_mask.sum(axis=1), kind="stable")
    completions = np.zeros((total, decode.completion_length), np.int32)
    for begin in range(0, total, batch_size):
        rows = order[np.minimum(np.arange(begin, begin + batch_size), total - 1)]
        batch = cut_to_bucket(take_rows(prompts, rows), buckets)
        completions[rows] = denoise(params, batch, draws, 0, model, decode, mesh).tokens
        check_preemption()
    return completions


def denoise(
    params, batch: PromptBatch, draws: np.ndarray, seed: int, model: ModelConfig, decode: DecodeConfig, mesh: Mesh
) -> Sample:
    """Completions of a batch, on the host; the noise belongs to (seed, problem, draw)."""
    keys, canvas = noise_and_canvas(batch, draws, seed, model, decode)
    done = sample(params, *shard_batch((batch.tokens, batch.prompt_mask, canvas), mesh), keys, model, decode)
    tokens, unmask_step = to_host((done.tokens, done.unmask_step))
    return done.replace(tokens=tokens, unmask_step=unmask_step)


def noise_and_canvas(batch: PromptBatch, draws: np.ndarray, seed: int, model: ModelConfig, decode: DecodeConfig):
    """A key for every row, and int32 [b, l] masks."""
    keys = completion_keys(jax.random.key(seed), batch.problem_id, draws, 0)
    return keys, np.full((len(draws), decode.completion_length), model.mask_id, np.int32)
