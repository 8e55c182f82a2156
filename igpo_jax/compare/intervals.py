"""Confidence intervals and tests of a comparison. Runs that start from the same supervised stage resemble each other, so the
unit of the statistics is the stage: the runs of a stage are averaged, and Student's t distribution is applied to the means of
the stages. A bootstrap over five stages would give intervals that are too narrow: they hold the truth in 83 to 85 % of cases
instead of 95 %. The intervals are about new stages and the same test problems."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import stdtr, stdtrit  # distribution of t, and its inverse; scipy.stats is slow to import

CONFIDENCE = 0.95
MOST_STAGES = 10_000  # that `stages_to_decide` tries


def stage_means(values: np.ndarray, counted: np.ndarray | None = None) -> np.ndarray:
    """Returns the mean of `values`, float [stages, runs, n], for each stage, float64 [stages]. `counted`, bool [stages, n], selects
    the values to average. NaN is ignored, and is the result for a stage that has nothing else."""
    values = values if counted is None else np.where(counted[:, None], values, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # means of nothing
        return np.nanmean(values.astype(float), axis=(1, 2))


def mean_with_interval(means: np.ndarray) -> dict[str, Any]:
    """Returns the mean of the stages' means, float [stages], and its 95 % confidence interval. Stages without a mean (NaN) are left
    out. The interval is None if fewer than two stages are left, and the mean is None if none is left."""
    means = means[~np.isnan(means)]
    mean = float(means.mean()) if means.size else None
    if len(means) < 2:
        return {"mean": mean, "interval95": None}
    half = stdtrit(len(means) - 1, (1 + CONFIDENCE) / 2) * means.std(ddof=1) / math.sqrt(len(means))
    return {"mean": mean, "interval95": [float(mean - half), float(mean + half)]}


def p_value(means: np.ndarray, margin: float = 0.0) -> float | None:
    """Returns the p-value of the two-sided t test that the mean of the stages' means, float [stages], is `margin`. Returns None if
    the means do not vary, or if there are fewer than two."""
    means = means[~np.isnan(means)]
    if len(means) < 2 or means.std(ddof=1) <= 1e-12:
        return None
    t = (means.mean() - margin) / (means.std(ddof=1) / math.sqrt(len(means)))
    return float(2 * stdtr(len(means) - 1, -abs(t)))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Returns p-values that are corrected for the number of tests (Holm 1979). None, for a test that decides nothing, stays None and
    counts as a test."""
    order = sorted((p, number) for number, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, number) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(p_values) - rank)))
        corrected[number] = highest
    return corrected


def stages_to_decide(means: np.ndarray, margin: float = 0.0) -> int | None:
    """Returns how many stages it would take until the confidence interval no longer holds `margin`, if mean and spread of the
    stages' means, float [stages], stayed as they are. Returns None if they do not vary or if it would take more than
    `MOST_STAGES`."""
    means = means[~np.isnan(means)]
    spread = means.std(ddof=1) if len(means) > 1 else 0.0
    distance = abs(means.mean() - margin) if means.size else 0.0
    if spread <= 1e-12 or distance <= 1e-12:
        return None
    number = np.arange(2, MOST_STAGES + 1)
    enough = stdtrit(number - 1, (1 + CONFIDENCE) / 2) * spread / np.sqrt(number) < distance
    return int(number[enough][0]) if enough.any() else None
