"""Confidence intervals and tests of a comparison. The unit of the statistics is the supervised stage, because runs that start
from the same stage are not independent. The runs of a stage are averaged, and Student's t distribution is applied to the means
of the stages. A bootstrap over five stages would give intervals that are too narrow: they would contain the true value in 83 to
85 % of cases instead of 95 %. The intervals describe the results for new stages, but for the same test problems."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import stdtr, stdtrit  # distribution of t, and its inverse; scipy.stats is slow to import

CONFIDENCE = 0.95
MOST_STAGES = 10_000  # that `stages_to_decide` tries


def stage_means(values: np.ndarray, counted: np.ndarray | None = None) -> np.ndarray:
    """Returns the mean for each stage, float64 [stages]. `values` are float [stages, runs, n]. `counted`, bool [stages, n],
    selects the values to average. NaN values are left out. If no values of a stage remain, its mean is NaN."""
    values = values if counted is None else np.where(counted[:, None], values, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # means of nothing
        return np.nanmean(values.astype(float), axis=(1, 2))


def mean_with_interval(means: np.ndarray) -> dict[str, Any]:
    """Returns the mean of `means` and its 95 % confidence interval. `means`, float [stages], are the means of the stages.
    Stages without a mean (NaN) are left out. The interval is None if fewer than two stages have a mean. The mean is None if no
    stage has one."""
    means = means[~np.isnan(means)]
    mean = float(means.mean()) if means.size else None
    if len(means) < 2:
        return {"mean": mean, "interval95": None}
    half = stdtrit(len(means) - 1, (1 + CONFIDENCE) / 2) * means.std(ddof=1) / math.sqrt(len(means))
    return {"mean": mean, "interval95": [float(mean - half), float(mean + half)]}


def p_value(means: np.ndarray, margin: float = 0.0) -> float | None:
    """Returns the p-value of the two-sided t test whose null hypothesis is that the mean over stages equals `margin`. `means`,
    float [stages], are the means of the stages. Stages without a mean (NaN) are left out. Returns None if fewer than two stages
    have a mean, or if the means do not vary."""
    means = means[~np.isnan(means)]
    if len(means) < 2 or means.std(ddof=1) <= 1e-12:
        return None
    t = (means.mean() - margin) / (means.std(ddof=1) / math.sqrt(len(means)))
    return float(2 * stdtr(len(means) - 1, -abs(t)))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Returns p-values that are corrected for the number of tests (Holm 1979). A p-value of None, from a test without a result,
    stays None. Such a test is included in the number of tests."""
    order = sorted((p, number) for number, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, number) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(p_values) - rank)))
        corrected[number] = highest
    return corrected


def stages_to_decide(means: np.ndarray, margin: float = 0.0) -> int | None:
    """Returns the smallest number of stages at which the confidence interval would no longer contain `margin`, if the mean and
    the standard deviation of `means` stayed the same. `means`, float [stages], are the means of the stages. Stages without a
    mean (NaN) are left out. Returns None if fewer than two stages have a mean, if the means do not vary, if their mean equals
    `margin`, or if more than `MOST_STAGES` stages would be needed."""
    means = means[~np.isnan(means)]
    spread = means.std(ddof=1) if len(means) > 1 else 0.0
    distance = abs(means.mean() - margin) if means.size else 0.0
    if spread <= 1e-12 or distance <= 1e-12:
        return None
    number = np.arange(2, MOST_STAGES + 1)
    enough = stdtrit(number - 1, (1 + CONFIDENCE) / 2) * spread / np.sqrt(number) < distance
    return int(number[enough][0]) if enough.any() else None
