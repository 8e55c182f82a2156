"""Prompt buckets: the choice against all choices, and the padding against a count of positions."""

import itertools
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igpo_jax.data.buckets import DEFAULT_LENGTHS, best_buckets, padding_share, read_lengths, rollout_batches
from run_configs import config_of

ROOT = pathlib.Path(__file__).parents[2]
BATCHES = st.lists(st.lists(st.integers(1, 20), min_size=1, max_size=4).map(np.array), max_size=12)


def positions(batches, buckets) -> int:
    return sum(len(batch) * next(size for size in buckets if size >= batch.max()) for batch in batches)


@pytest.mark.slow
@given(BATCHES, st.integers(1, 4), st.sampled_from([1, 3]), st.sampled_from([20, 24]))
def test_no_choice_of_buckets_has_less_padding(batches, number, multiple, largest):
    found = best_buckets(batches, number, largest, multiple)
    assert len(found) <= number and found[-1] == largest and list(found) == sorted(set(found))
    assert all(size % multiple == 0 for size in found[:-1])
    below = range(multiple, largest, multiple)
    others = [(*chosen, largest) for k in range(number) for chosen in itertools.combinations(below, k)]
    assert positions(batches, found) == min(positions(batches, buckets) for buckets in others)


def test_batches_that_fit_no_bucket_are_left_out():
    batches = [np.array([3, 5]), np.array([9])]
    assert best_buckets(batches, 2, 8) == (5, 8)
    assert padding_share(batches, (5, 8), 10) == pytest.approx(2 / 30)
    assert padding_share(batches[1:], (5, 8), 10) == 0


@pytest.mark.parametrize("key", ["093", "0", "00"])
def test_a_length_that_is_zero_or_given_in_two_ways_is_named(key, tmp_path):
    file = tmp_path / "lengths.json"
    file.write_text('{"93": 2, "10": 1}')
    assert read_lengths(file).tolist() == [10, 93, 93]
    file.write_text(f'{{"93": 2, "{key}": 3}}')
    with pytest.raises(ValueError, match=f"lengths.json: '{key}' is no length of a prompt"):
        read_lengths(file)


def test_padding_is_that_of_all_positions():
    batches = [np.array([2, 4]), np.array([7, 8, 8])]
    assert padding_share(batches, (4, 8), 4) == pytest.approx((2 + 1) / (2 * 8 + 3 * 12))
    assert padding_share(batches, (10,), 4) == pytest.approx(1 - (6 + 23 + 5 * 4) / (5 * 14))


@pytest.mark.parametrize("prompts, chunks", [(6, 3), (7, 2), (50, 4)])
def test_rollouts_are_sorted_and_have_distinct_prompts(prompts, chunks):
    lengths = np.arange(1, 21)
    batches = rollout_batches(lengths, prompts, chunks, draws=5, seed=1)
    drawn = np.concatenate(batches).reshape(5, -1)
    assert drawn.shape[1] == min(prompts, 20) and len(batches) == 5 * chunks
    assert (np.diff(drawn, axis=1) > 0).all()
    assert len({tuple(rollout) for rollout in drawn.tolist()}) > 1 or prompts > 20


def test_the_buckets_of_math_are_the_best_for_the_recorded_lengths():
    config = config_of(ROOT / "configs" / "math.py")
    present = config.data.prompt_buckets
    lengths = read_lengths(DEFAULT_LENGTHS)
    batches = rollout_batches(lengths[lengths <= present[-1]], config.rl.prompts, config.rl.rollout_chunks)
    assert present == best_buckets(batches, len(present), present[-1], 128)
    length = config.sampler.completion_length
    assert padding_share(batches, present, length) < 0.18 < 0.59 < padding_share(batches, present[-1:], length)
