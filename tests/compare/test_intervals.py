"""Student's t over stages: coverage by simulation, Holm's correction and the number of stages by their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from igpo_jax.compare.intervals import holm, mean_with_interval, p_value, stage_means, stages_to_decide


@pytest.mark.parametrize("shape", ["normal", "skewed"])
def test_intervals_of_five_stages_with_two_runs_hold_the_truth_as_often_as_they_say(shape):
    """Simulates effects of stages, of RL seeds and of problems on the chance to solve each of 50 problems in two arms."""
    draw, held = np.random.default_rng(0), []
    problems = draw.normal(0, 0.1, 50)
    for _ in range(2000):
        effect = draw.normal(0, 0.1, (5, 1, 1)) if shape == "normal" else 0.3 * (draw.beta(4, 2, (5, 1, 1)) - 4 / 6)
        chance = 0.5 + effect + draw.normal(0, 0.04, (5, 2, 1)) + problems
        better, worse = draw.uniform(size=(5, 2, 50)) < chance, draw.uniform(size=(5, 2, 50)) < 0.3
        low, high = mean_with_interval(stage_means(better.astype(float) - worse))["interval95"]
        held.append(low <= 0.2 + problems.mean() <= high)
    assert 0.93 <= np.mean(held) <= 0.97


def test_means_of_stages_count_what_is_counted():
    values = np.array([[[1.0, 0, 5]], [[1, np.nan, 7]]])
    assert stage_means(values, np.array([[True, True, False]] * 2)).tolist() == [0.5, 1.0]
    assert np.isnan(stage_means(values, np.zeros((2, 3), bool))).all()


def test_too_few_stages_have_no_interval():
    assert mean_with_interval(np.array([0.5, np.nan])) == {"mean": 0.5, "interval95": None}
    assert mean_with_interval(np.array([np.nan])) == {"mean": None, "interval95": None}
    assert p_value(np.array([0.5])) is p_value(np.array([0.5, 0.5])) is stages_to_decide(np.array([0.5])) is None


# A margin at the end of the interval has p = 0.05.
@given(st.lists(st.floats(-1, 1), min_size=2, max_size=8).filter(lambda values: np.std(values) > 1e-3))
def test_the_interval_holds_the_margins_that_the_test_does_not_reject(values):
    means = np.array(values)
    low, high = mean_with_interval(means)["interval95"]
    assert p_value(means, low) == pytest.approx(0.05) == p_value(means, high)
    assert p_value(means, 0.1) == pytest.approx(stats.ttest_1samp(means, 0.1).pvalue)


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])  # the example of the definition
    assert holm([0.5, None, 0.01]) == [1.0, None, pytest.approx(0.03)]
    assert holm([]) == []


def test_the_number_of_stages_that_would_decide():
    means = np.array([0.3, -0.2, 0.25, -0.1, 0.15])
    number = stages_to_decide(means)
    spread, mean = means.std(ddof=1), means.mean()
    half = [stats.t.ppf(0.975, n - 1) * spread / np.sqrt(n) for n in (number - 1, number)]
    assert half[1] < mean <= half[0] and number > 5
    assert stages_to_decide(means, margin=mean) is None
