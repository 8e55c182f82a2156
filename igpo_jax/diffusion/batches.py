"""Samples completions for many prompts in batches. The batches have only a few different shapes, because the sampler is
compiled once for each shape."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import flax
import jax
import numpy as np
from jax.sharding import Mesh

from igpo_jax.data.pipeline import PromptBatch, cut_to_bucket, take_rows
from igpo_jax.diffusion.sampler import Sample, completion_keys, sample
from igpo_jax.diffusion.unmasking import DecodeConfig
from igpo_jax.model.sharding import Params
from igpo_jax.model.transformer import ModelConfig
from igpo_jax.runtime.mesh import batch_size_divisor, shard_batch, to_host


@flax.struct.dataclass
class Requests:
    """Requests for completions, one per row, as host arrays. The noise for sampling a completion depends only on the PRNG key,
    the attempt, the id of the problem, and `draw`, which is the index of the completion among those of the problem."""

    tokens: np.ndarray  # int32 [n, p], prompts padded on the left
    prompt_mask: np.ndarray  # bool [n, p]
    canvas: np.ndarray  # int32 [n, l], MASK or a hint token
    problem_id: np.ndarray  # uint32 [n]
    draw: np.ndarray  # uint32 [n]

    @classmethod
    def blank(cls, prompts: PromptBatch, draw: np.ndarray, model: ModelConfig, decode: DecodeConfig) -> "Requests":
        """Returns one request per prompt, without hints: every canvas position is MASK."""
        # A view that repeats one number and takes no memory; only the rows of a batch are copied.
        canvas = np.broadcast_to(np.int32(model.mask_id), (len(draw), decode.completion_length))
        return cls(prompts.tokens, prompts.prompt_mask, canvas, prompts.problem_id, draw)

    def placed(self, key: jax.Array, attempt: int, mesh: Mesh) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Returns the array arguments of a sampler, in the order of the sampler's parameters: prompts, prompt mask, canvas, and
        one PRNG key per row. All except the keys are sharded over `mesh`."""
        keys = completion_keys(key, self.problem_id, self.draw, attempt)
        return (*shard_batch((self.tokens, self.prompt_mask, self.canvas), mesh), keys)


@dataclasses.dataclass(frozen=True)
class Batching:
    """Rules for splitting the rows of `Requests` into batches."""

    mesh: Mesh
    size: int  # rows per batch, a multiple of data * fsdp; fewer if there are fewer rows in total
    buckets: Sequence[int]  # a batch's prompts are padded to the smallest of these lengths that holds them
    shortest_first: bool = True  # sorts by prompt length, so that few batches are long; False keeps the given order
    fill: bool = True  # fills a smaller last batch with repeated rows, so that it needs no separately compiled program


def complete(
    params: Params,
    requests: Requests,
    key: jax.Array,
    model: ModelConfig,
    decode: DecodeConfig,
    batching: Batching,
    attempt: int = 0,
    sampler: Callable[..., Sample] | None = None,
) -> Iterator[tuple[np.ndarray, Sample]]:
    """Samples completions batch by batch, and yields the result of each batch. Must run under `jax.set_mesh(batching.mesh)`.
    The caller may stop after any batch.

    The result of a batch consists of the indices of its rows in `requests`, int [m], and a `Sample` on the host with the
    completions of these rows, in the same order. If rows are repeated to fill the batch, the repeated rows also count in the
    evaluations and FLOPs of the `Sample`. Different values of `attempt` give different noise for the same `key`, see
    `completion_keys`. `sampler` is a function with the arguments of `sample`. Its default is `sample`."""
    total = len(requests.tokens)
    order = np.argsort(requests.prompt_mask.sum(axis=1), kind="stable") if batching.shortest_first else np.arange(total)
    divisor = batch_size_divisor(batching.mesh)
    size = min(batching.size, max(1, -(-total // divisor)) * divisor)  # a larger batch would only add copies of rows
    for begin in range(0, total, size):
        rows = order[begin : begin + size]
        filled = np.pad(rows, (0, size - len(rows)), mode="edge") if batching.fill else rows
        batch = cut_to_bucket(take_rows(requests, filled), batching.buckets)
        run: Callable[..., Sample] = sampler or sample
        done = run(params, *batch.placed(key, attempt, batching.mesh), model, decode)
        tokens, unmask_step = to_host((done.tokens, done.unmask_step))
        yield rows, dataclasses.replace(done, tokens=tokens[: len(rows)], unmask_step=unmask_step[: len(rows)])
