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
    """Reads a JSON file that maps prompt lengths in tokens to numbers of prompts: {"93": 2} means two prompts of 93 tokens.
    Returns the lengths of all prompts, int64 [n], in ascending order. Raises ValueError if the file does not have this form, or
    does not describe 1 to 10**7 prompts of 1 to 10**6 tokens each. Also raises ValueError if a length has leading zeros,
    because the file could then give this length twice."""
    values = read_json(file)
    form = f'{file} is not the number of prompts of each length, such as {{"93": 2}}; inspect_data --lengths writes it'
    require(isinstance(values, dict) and bool(values), form)
    require(
        all(key.isascii() and key.isdecimal() and type(number) is int and 0 <= number for key, number in values.items()), form
    )
    for key in values:
        wrong = f"{file}: {key[:20]!r} is no length of a prompt; write a number of at least 1 without leading zeros"
        require(not key.startswith("0"), wrong)
    # Python's integers do not overflow.
    most = f"{file}: at most 10**7 prompts of 10**6 tokens"
    require(0 < sum(values.values()) <= 10**7 and max(map(len, values)) <= 7 and max(map(int, values)) <= 10**6, most)
    lengths, numbers = np.array(list(values), np.int64), np.array(list(values.values()), np.int64)
    return np.sort(np.repeat(lengths, numbers))


def bucket_of(length: int, buckets: Sequence[int]) -> int:
    """Returns the smallest bucket (padded length) that holds a prompt of `length` tokens. `buckets` must be in ascending order,
    and the last bucket must be at least `length`."""
    return next(size for size in buckets if size >= length)


def rollout_batches(lengths: np.ndarray, prompts: int, chunks: int, draws: int = 200, seed: int = 0) -> list[np.ndarray]:
    """Draws the prompts of `draws` rollouts at random from `lengths`. Returns one array of prompt lengths for each chunk of
    each rollout. A rollout has `prompts` prompts. It samples completions in `chunks` chunks, the shortest prompts first
    (`rl.rollout.RolloutConfig.prompts_at_once`). If `chunks` is 0, this function uses `USUAL_CHUNKS`, whereas a real run
    chooses the number of chunks for its devices (run/layout.py)."""
    random, size = np.random.default_rng(seed), min(prompts, len(lengths))
    drawn = (np.sort(random.choice(lengths, size, replace=False)) for _ in range(draws))
    return [chunk for rollout in drawn for chunk in np.array_split(rollout, chunks or USUAL_CHUNKS) if len(chunk)]


def best_buckets(batches: Iterable[np.ndarray], number: int, largest: int, multiple: int = 1) -> tuple[int, ...]:
    """Returns the buckets (padded prompt lengths) for which the given batches have the least padding, in ascending order. There
    are at most `number` buckets. The last bucket is `largest`, and the others are multiples of `multiple`. More buckets save
    time only in long runs, because the sampler is compiled for every bucket.

    The choice is exact, by dynamic programming. Let c_1 < ... < c_m be the possible buckets. Let n(i, j) be the number of rows
    in the batches that fit c_j but not c_i, and n(0, j) the number of rows in all batches that fit c_j. Let f(k, j) be the
    fewest token positions of the batches that fit c_j, with at most k buckets, the last of which is c_j:

        f(1, j) = c_j * n(0, j)
        f(k, j) = min(f(k - 1, j), min_{i < j} (f(k - 1, i) + c_j * n(i, j)))

    Args:
        batches: one array of prompt lengths per batch. A batch is padded to the smallest bucket that holds its longest prompt.
            A batch is ignored if its longest prompt is longer than `largest`."""
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
    """Returns the share of all computed token positions (of prompts and completions) that are padding in front of prompts.
    Ignores batches whose longest prompt does not fit the last bucket."""
    used = computed = 0
    for batch in batches:
        if batch.max() <= buckets[-1]:
            used += int(batch.sum()) + len(batch) * completion_length
            computed += len(batch) * (bucket_of(batch.max(), buckets) + completion_length)
    return 1 - used / computed if computed else 0.0
