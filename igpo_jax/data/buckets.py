"""Chooses prompt buckets (the lengths to which prompts are padded) such that little computation is spent on padding."""

import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from igpo_jax.runtime.checks import require
from igpo_jax.runtime.files import read_json

# Prompts of GSM8K's and MATH's training sets, counted by benchmarks/prompt_lengths.py
DEFAULT_LENGTHS = pathlib.Path(__file__).with_name("prompt_lengths.json")
USUAL_CHUNKS = 8


def read_lengths(file: pathlib.Path) -> np.ndarray:
    """Reads a JSON file with the number of prompts of each length in tokens, {"93": 2, ...}. Returns the lengths of all
    prompts, int64 [n], in ascending order. Raises ValueError if the file does not have this form."""
    values = read_json(file)
    form = f'{file} is not the number of prompts of each length, such as {{"93": 2}}; inspect_data --lengths writes it'
    require(isinstance(values, dict) and bool(values), form)
    require(
        all(key.isascii() and key.isdecimal() and type(number) is int and 0 <= number for key, number in values.items()), form
    )
    # Python's integers do not overflow.
    most = f"{file}: at most 10**7 prompts of 10**6 tokens"
    require(0 < sum(values.values()) <= 10**7 and max(map(int, values)) <= 10**6, most)
    lengths, numbers = np.array(list(values), np.int64), np.array(list(values.values()), np.int64)
    return np.sort(np.repeat(lengths, numbers))


def bucket_of(length: int, buckets: Sequence[int]) -> int:
    """Returns the smallest bucket that holds a prompt of `length` tokens. `buckets` must be in ascending order, and the last
    bucket must hold the prompt."""
    return next(size for size in buckets if size >= length)


def rollout_batches(lengths: np.ndarray, prompts: int, chunks: int, draws: int = 200, seed: int = 0) -> list[np.ndarray]:
    """Draws the prompts of `draws` rollouts at random from `lengths`, and returns the prompt lengths of every chunk. A rollout
    samples `prompts` prompts in `chunks` chunks, the shortest prompts first (`rl.rollout.RolloutConfig.prompts_at_once`). If
    `chunks` is 0, a real run chooses the number for its devices (run/layout.py), and this function uses `USUAL_CHUNKS`."""
    random, size = np.random.default_rng(seed), min(prompts, len(lengths))
    drawn = (np.sort(random.choice(lengths, size, replace=False)) for _ in range(draws))
    return [chunk for rollout in drawn for chunk in np.array_split(rollout, chunks or USUAL_CHUNKS) if len(chunk)]


def best_buckets(batches: Iterable[np.ndarray], number: int, largest: int, multiple: int = 1) -> tuple[int, ...]:
    """Returns the buckets for which batches have the least padding: at most `number` lengths in ascending order. The last one
    is `largest`, and the others are multiples of `multiple`.

    The sampler is compiled for every bucket, so more buckets save time only in long runs. The choice is exact. Let c_1 < ... <
    c_m be the possible buckets, and f(k, j) the fewest positions of the batches that fit c_j with k buckets, the last of which
    is c_j. f(k, j) is the minimum over i < j of f(k - 1, i) + c_j * (number of rows in the batches that fit c_j but not c_i).

    Args:
        batches: prompt lengths of each batch, which is padded to the smallest bucket that holds its longest prompt. A batch
            that fits no bucket is ignored."""
    pairs = [(int(batch.max()), len(batch)) for batch in batches if batch.max() <= largest]
    longest, rows = (np.array(column) for column in zip(*pairs, strict=True)) if pairs else (np.zeros(0), np.zeros(0))
    ends = sorted({*(min(-(-int(length) // multiple) * multiple, largest) for length in longest), largest})
    below = np.array([0, *(rows[longest <= end].sum() for end in ends)])  # rows of the batches that fit each length
    # buckets[j] and cost[j] are the best choice of k buckets whose last one is ends[j].
    cost = [end * int(below[j + 1]) for j, end in enumerate(ends)]
    buckets: list[tuple[int, ...]] = [(end,) for end in ends]
    for _ in range(number - 1):
        options = [
            [(cost[j], buckets[j])] + [(cost[i] + end * int(below[j + 1] - below[i + 1]), (*buckets[i], end)) for i in range(j)]
            for j, end in enumerate(ends)
        ]
        cost, buckets = map(list, zip(*(min(choices, key=lambda choice: choice[0]) for choices in options), strict=True))
    return buckets[-1]


def padding_share(batches: Iterable[np.ndarray], buckets: Sequence[int], completion_length: int) -> float:
    """Returns the share of the computed positions that are padding in front of prompts. Leaves out batches that fit no
    bucket."""
    used = computed = 0
    for batch in batches:
        if batch.max() <= buckets[-1]:
            used += int(batch.sum()) + len(batch) * completion_length
            computed += len(batch) * (bucket_of(batch.max(), buckets) + completion_length)
    return 1 - used / computed if computed else 0.0
