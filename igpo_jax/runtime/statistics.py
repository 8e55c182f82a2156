"""Confidence intervals and paired tests of accuracies.

`correct` is float [problems, completions per problem]: 1 for a correct completion, 0 for a wrong one, and NaN for a completion
without a verdict, which does not count. Arrays of bool are accepted."""

import math
from typing import Any

import numpy as np

from igpo_jax.runtime.checks import require

RESAMPLES = 10_000  # number of resamples for a bootstrap interval, and of random sign flips for a permutation test
SIGNS_AT_ONCE = 1 << 24  # limits the memory for problems that are many


def problem_means(correct: np.ndarray) -> np.ndarray:
    """Returns the mean of the verdicts on each problem, float64 [problems]; NaN for a problem without any verdict."""
    graded = ~np.isnan(correct)
    number = graded.sum(axis=1)
    means = np.where(graded, correct, 0).sum(axis=1) / np.maximum(number, 1)
    return np.where(number > 0, means, np.nan)


def accuracy_interval(correct: np.ndarray) -> list[float]:
    """Returns the 95 % confidence interval of the mean over problems. It is Wilson's interval if there is one completion per
    problem, otherwise a bootstrap interval over problems. Problems without a verdict are left out. At least one
    problem must have a verdict."""
    means = problem_means(correct)
    means = means[~np.isnan(means)]
    return bootstrap_interval(means) if correct.shape[1] > 1 else wilson(float(means.mean()), len(means))


def bootstrap_interval(values: np.ndarray) -> list[float]:
    """Returns the 95 % confidence interval of the mean of `values`, float [n], from `RESAMPLES` bootstrap resamples with a
    fixed seed."""
    draw, n = np.random.default_rng(0), len(values)
    means = np.array([values[draw.integers(n, size=n)].mean() for _ in range(RESAMPLES)])
    return np.quantile(means, [0.025, 0.975]).tolist()


def wilson(share: float, problems: int) -> list[float]:
    """Returns Wilson's 95 % confidence interval of a share that was measured on the given number of problems."""
    z, n = 1.96, problems
    center, spread = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = ((center + sign * spread) / (1 + z * z / n) for sign in (-1, 1))
    return [max(min(low, share), 0.0), min(max(high, share), 1.0)]  # rounding may exclude the share


def paired(one: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    """Compares two evaluations of the same problems, both given as `correct`. Uses the problems with a verdict in both. Returns
    their number, the number of problems left out, the two means over problems, the difference other - one with its 95 %
    confidence interval and p-value, and the numbers of problems on which `other` is better and worse. Raises ValueError if no
    problem has a verdict in both."""
    before, after = problem_means(one), problem_means(other)
    both = ~np.isnan(before - after)
    require(both.any(), "no problem has a verdict in both evaluations")
    before, after = before[both], after[both]
    difference = after - before
    gained, lost = int((difference > 0).sum()), int((difference < 0).sum())
    means = {"one": float(before.mean()), "other": float(after.mean()), "difference": float(difference.mean())}
    p_value = mcnemar(gained, lost) if one.shape[1] == 1 else sign_flip(difference)
    counts = {"problems": len(difference), "left_out": int((~both).sum()), "better": gained, "worse": lost}
    return {**means, "interval95": bootstrap_interval(difference), "p_value": p_value, **counts}


def mcnemar(gained: int, lost: int) -> float:
    """Returns the exact two-sided p-value of McNemar's test. The arguments are the numbers of problems that became correct and
    that became wrong. Integers are exact but slow for many problems; then this function sums the binomial distribution downwards
    from its largest term, until the terms vanish."""
    n, most = gained + lost, min(gained, lost)
    if n <= 1000:
        return min(1.0, 2 * sum(math.comb(n, k) for k in range(most + 1)) / 2**n)
    largest = math.exp(math.lgamma(n + 1) - math.lgamma(most + 1) - math.lgamma(n - most + 1) - n * math.log(2))
    k = np.arange(most, max(most - 10 * math.isqrt(n) - 50, 0), -1)
    return min(1.0, 2 * largest * (1 + float(np.cumprod(k / (n - k + 1)).sum())))


def sign_flip(difference: np.ndarray) -> float:
    """Returns the two-sided p-value of a permutation test that randomly flips signs of the differences, float [problems]."""
    draw, observed, larger = np.random.default_rng(0), abs(difference.sum()) - 1e-12, 0
    at_once = min(max(SIGNS_AT_ONCE // len(difference), 1), RESAMPLES)
    for begin in range(0, RESAMPLES, at_once):
        shape = min(at_once, RESAMPLES - begin), len(difference)
        signs = draw.integers(0, 2, shape, dtype=np.int8) * 2 - 1
        larger += int((np.abs(signs @ difference) >= observed).sum())
    return (larger + 1) / (RESAMPLES + 1)
