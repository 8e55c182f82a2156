"""Schedules of the optimizer."""

import numpy as np
import pytest

from igpo_jax.training.state import OptimizerConfig


@pytest.mark.parametrize("schedule, middle, end", [("constant", 1, 1), ("cosine", 0.525, 0.05), ("linear", 0.5, 0)])
def test_warm_up_and_then_the_schedule(schedule, middle, end):
    rate = OptimizerConfig(learning_rate=2e-3, warmup_steps=10, schedule=schedule).learning_rate_at(110)
    expected = [0.1, 0.5, 1, middle, end]  # relative to the peak; the first update already has a rate above 0
    np.testing.assert_allclose([rate(step) / 2e-3 for step in (0, 40 / 9, 10, 60, 110)], expected, atol=1e-6)
