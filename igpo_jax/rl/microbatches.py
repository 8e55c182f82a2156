"""Microbatches of prompts with similar lengths: parts of a batch that scores and updates compute one after the other."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from igpo_jax.data.pipeline import take_rows
from igpo_jax.rl.likelihood import GroupBatch, Views

Result = TypeVar("Result")


class Microbatches(NamedTuple):
    """Rules for splitting the prompts of a batch."""

    number: int = 1  # a divisor of the number of prompts
    buckets: tuple[int, ...] = ()  # lengths to which the prompts of a microbatch are padded, if there are several


def sort_by_length(groups: GroupBatch, number: int) -> GroupBatch:
    """Orders the prompts of a batch on the host, so that each of the `number` parts that `split_rows` makes of them holds prompts
    of similar length."""
    order = np.argsort(groups.prompt_mask.sum(axis=1), kind="stable")
    return take_rows(groups, order.reshape(number, -1).T.reshape(-1))


def at_bucket(function: Callable[[GroupBatch, Views], Result], batch: GroupBatch, views: Views, parts: Microbatches) -> Result:
    """Returns the result of function(batch, views), computed for prompts that are padded to the smallest bucket that holds them.
    Neither the values nor the shapes of this result may depend on padding. Each bucket is a branch of the compiled program."""
    length = batch.prompt.shape[1]
    lengths = [size for size in parts.buckets if size < length and parts.number > 1] + [length]

    def branch(size: int):
        return lambda batch, views: function(*_last_positions(batch, views, size))

    longest = jnp.max(jnp.sum(batch.prompt_mask, axis=1))
    return jax.lax.switch(jnp.searchsorted(jnp.array(lengths), longest), [branch(size) for size in lengths], batch, views)


def _last_positions(batch: GroupBatch, views: Views, size: int) -> tuple[GroupBatch, Views]:
    """Keeps the last `size` positions of the prompts; padding is on the left."""
    batch = dataclasses.replace(batch, prompt=batch.prompt[:, -size:], prompt_mask=batch.prompt_mask[:, -size:])
    return batch, dataclasses.replace(views, prompt_masked=views.prompt_masked[..., -size:])
