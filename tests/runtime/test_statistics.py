"""Intervals, pass@k and paired tests against enumeration and simulation."""

import itertools
import math
import time
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igpo_jax.evaluate.benchmark import correct_of, pass_at_k, summary
from igpo_jax.runtime.statistics import RESAMPLES, accuracy_interval, mcnemar, paired, problem_means, sign_flip, wilson


@given(st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(case):
    draws, correct, k = case
    subsets = list(itertools.combinations([True] * correct + [False] * (draws - correct), k))
    assert pass_at_k(draws, correct, k) == pytest.approx(np.mean([any(subset) for subset in subsets]))


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilsons_interval_holds_the_share_and_lies_within_0_and_1(case):
    right, problems = case
    low, high = wilson(right / problems, problems)
    assert 0 <= low <= right / problems <= high <= 1 and high - low < 1


def test_wilsons_interval_has_the_published_numbers():
    assert wilson(0.5, 100) == pytest.approx([0.4038, 0.5962], abs=1e-4)
    assert wilson(0.0, 10) == pytest.approx([0.0, 0.2775], abs=1e-3)


@pytest.mark.parametrize("gained, lost", [(0, 0), (1, 0), (5, 5), (8, 1), (3, 9)])
def test_mcnemar_counts_coins(gained, lost):
    n = gained + lost
    outcomes = [sum(coins) for coins in itertools.product((0, 1), repeat=n)]
    extreme = [abs(heads - n / 2) >= abs(gained - n / 2) for heads in outcomes]
    assert mcnemar(gained, lost) == pytest.approx(np.mean(extreme) if n else 1.0)


@pytest.mark.parametrize("gained, lost", [(40, 61), (500, 500), (500, 501), (700, 1300), (2000, 1)])
def test_mcnemar_agrees_with_exact_integers(gained, lost):
    n = gained + lost
    exact = min(1, Fraction(2 * sum(math.comb(n, k) for k in range(min(gained, lost) + 1)), 2**n))
    assert mcnemar(gained, lost) == pytest.approx(float(exact), rel=1e-9, abs=0)


def test_large_numbers_of_problems_take_little_time_and_memory():
    begin = time.monotonic()
    assert mcnemar(5 * 10**6, 5 * 10**6) == 1.0 and mcnemar(0, 10**7) == 0.0
    # The normal distribution with a correction for continuity
    assert mcnemar(300_000, 299_000) == pytest.approx(math.erfc(999 / math.sqrt(2 * 599_000)), rel=0.01)
    difference = np.random.default_rng(0).choice([-1, -0.5, 0, 0.5, 1.0], 10**6)
    tracemalloc.start()
    found = paired(np.stack([np.zeros(10**6)] * 2, 1), np.stack([difference, difference], 1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.monotonic() - begin < 60
    error = difference.std() / 1000
    assert peak < 1 << 29
    assert found["p_value"] == pytest.approx(math.erfc(abs(difference.mean()) / error / math.sqrt(2)), abs=0.02)
    assert found["interval95"] == pytest.approx(
        [difference.mean() - 1.96 * error, difference.mean() + 1.96 * error], abs=error / 10
    )


@pytest.mark.parametrize("problems", [1, 3, 7, 501])
def test_chunks_of_random_numbers_are_those_of_one_draw(problems):
    difference = np.random.default_rng(1).integers(-4, 5, problems) / 4 + 0.02
    signs = np.random.default_rng(0).integers(0, 2, (RESAMPLES, problems), dtype=np.int8) * 2 - 1
    larger = (np.abs(signs @ difference) >= abs(difference.sum()) - 1e-12).sum()
    assert sign_flip(difference) == (larger + 1) / (RESAMPLES + 1)


def test_sign_flips_agree_with_enumeration():
    difference = np.array([0.5, 0.25, -0.25, 0.75, 0.5, 0.0])
    sums = [np.dot(signs, difference) for signs in itertools.product((1, -1), repeat=6)]
    exact = np.mean(np.abs(sums) >= abs(difference.sum()) - 1e-12)
    assert sign_flip(difference) == pytest.approx(exact, abs=0.02)


def rows(correct, **fields):
    completion = {"text": "", "extracted_answer": "5", "outcome": "ok", "steps": 4} | fields
    return [
        {"id": str(i), "completions": [completion | {"correct": bool(c), "reward": float(c)} for c in draws]}
        for i, draws in enumerate(correct)
    ]


def test_a_summary_of_several_draws():
    correct = np.array([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]], bool)
    found = summary(rows(correct))
    assert found["pass@1"] == found["avg@4"] == 7 / 16
    assert found["pass@2"] == pytest.approx(np.mean([5 / 6, 0, 1, 0.5])) and found["pass@4"] == 0.75
    assert found["of_each_draw"] == [0.75, 0.5, 0.25, 0.25]
    low, high = found["interval95"]
    assert low < 7 / 16 < high and "pass@8" not in found
    assert (found["problems"], found["draws"], found["timeout"], found["error"], found["without_answer"]) == (4, 4, 0, 0, 0.0)


def test_a_summary_counts_what_went_wrong():
    found = summary(rows(np.zeros((3, 1)), outcome="timeout", extracted_answer=None))
    assert found["timeout"] == found["ungraded"] == 3 and found["without_answer"] == 1.0 and "avg@1" not in found
    assert found["pass@1"] is found["interval95"] is found["reward"] is None


def with_outcomes(correct, outcomes):
    """Returns rows; an outcome other than "ok" makes a completion neither correct nor wrong."""
    made = rows(correct)
    for row, wanted in zip(made, outcomes, strict=True):
        for completion, outcome in zip(row["completions"], wanted, strict=True):
            completion |= {"outcome": outcome} | ({} if outcome == "ok" else {"correct": False, "reward": 0.0})
    return made


def test_a_summary_is_over_the_completions_with_a_verdict():
    correct = np.array([[1, 1, 0], [0, 1, 0], [1, 1, 1]])
    outcomes = [["ok"] * 3, ["ok", "timeout", "error"], ["error"] * 3]
    found = summary(with_outcomes(correct, outcomes))
    assert (found["problems"], found["ungraded"], found["timeout"], found["error"]) == (3, 5, 1, 4)
    assert found["pass@1"] == pytest.approx((2 / 3 + 0) / 2)  # the last problem has no verdict
    assert found["pass@2"] == 1.0 and found["pass@3"] == 1.0  # only the first problem has two or three
    assert found["of_each_draw"] == [0.5, 1.0, 0.0] and found["reward"] == 0.5
    found = summary(with_outcomes([[1], [0], [1], [0]], [["ok"], ["ok"], ["ok"], ["timeout"]]))
    assert found["pass@1"] == pytest.approx(2 / 3) and found["interval95"] == wilson(2 / 3, 3)


def test_rows_of_evaluations_without_outcomes_are_read():
    made = rows([[1], [0]])
    for row in made:
        del row["completions"][0]["outcome"]
    assert correct_of(made).tolist() == [[1.0], [0.0]]


def test_problems_are_paired_if_both_evaluations_have_a_verdict():
    one = np.array([[1, 0], [np.nan, 1], [np.nan, np.nan], [0, 0]])
    other = np.array([[1, 1], [0, 1], [1, 1], [np.nan, np.nan]])
    found = paired(one, other)
    assert (found["problems"], found["left_out"], found["better"], found["worse"]) == (2, 2, 1, 1)
    assert (found["one"], found["other"], found["difference"]) == (0.75, 0.75, 0.0)
    with pytest.raises(ValueError, match="no problem has a verdict in both"):
        paired(one[2:], other[2:])


@given(st.integers(1, 30), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_with_all_verdicts_the_means_are_plain(problems, draws, seed):
    correct = np.random.default_rng(seed).uniform(size=(problems, draws)) < 0.5
    assert problem_means(correct).tobytes() == correct.mean(axis=1).tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_equal_means_of_several_draws_have_the_interval_of_single_draws(value):
    correct = np.tile([1.0, 0.0] if value == 0.5 else [value, value], (40, 1))
    assert accuracy_interval(correct) == wilson(value, 40)
    low, high = accuracy_interval(correct)
    assert high - low > 0.08


def test_the_bootstrap_covers_as_often_as_it_says():
    draw, held = np.random.default_rng(0), 0
    for _ in range(60):
        chances = draw.beta(1, 1, 100)
        low, high = accuracy_interval(draw.uniform(size=(100, 4)) < chances[:, None])
        held += low <= 0.5 <= high
    assert held >= 52  # of 60; 57 are expected, and fewer than 52 have probability 1/300


def planted(problems, points, draws=1, seed=0):
    """Returns two evaluations; the second is right `points` % more often, on problems that the first got wrong."""
    draw = np.random.default_rng(seed)
    one = draw.uniform(size=(problems, draws)) < 0.6
    other, wrong = one.copy(), np.flatnonzero(~one.any(axis=1))
    other[wrong[: round(problems * points / 100)]] = True
    return one, other


def test_a_planted_change_of_three_points_is_found():
    found = paired(*planted(1319, 3))
    assert found["difference"] == pytest.approx(0.03, abs=0.001) and found["p_value"] < 1e-6
    assert found["interval95"][0] > 0.015 and (found["better"], found["worse"]) == (40, 0)
    several = paired(*planted(500, 3, draws=2))
    assert several["p_value"] < 0.01 and several["difference"] == pytest.approx(0.03, abs=0.001)


@pytest.mark.slow
def test_no_change_is_not_found():
    one, _ = planted(500, 0)
    assert paired(one, one)["p_value"] == 1.0
    values = [paired(planted(100, 0, seed=s)[0], planted(100, 0, seed=1000 + s)[0])["p_value"] for s in range(40)]
    assert np.mean(np.array(values) < 0.05) <= 0.12 and math.isclose(np.median(values), 0.5, abs_tol=0.25)
