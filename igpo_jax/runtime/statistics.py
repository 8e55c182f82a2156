"""Confidence intervals and paired tests of accuracies.

The argument `correct` of the functions is float [problems, completions per problem]. Its elements are 1 for a correct
completion, 0 for a wrong one, and NaN for a completion without a verdict. Completions without a verdict are left out. Arrays of
bool are accepted."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from igpo_jax.runtime.checks import require

RESAMPLES = 10_000  # number of resamples for a bootstrap interval, and of random sign flips for a permutation test
# If there are more values than this, drawing each would take many seconds. Equal values are then drawn together, which gives
# the same distribution.
MANY = 20_000
FEW = 1000  # up to this number of problems, binomial coefficients are summed as integers
AT_ONCE = 1 << 22  # random numbers that are held at once


def problem_means(correct: np.ndarray) -> np.ndarray:
    """Returns the mean of the verdicts on each problem, float64 [problems]. The mean is NaN for a problem without any
    verdict."""
    graded = ~np.isnan(correct)
    number = graded.sum(axis=1)
    means = np.where(graded, correct, 0).sum(axis=1) / np.maximum(number, 1)
    return np.where(number > 0, means, np.nan)


def accuracy_interval(correct: np.ndarray) -> list[float]:
    """Returns the 95 % confidence interval of the mean over problems, see `mean_interval`. Problems without a verdict are left
    out. At least one problem must have a verdict."""
    means = problem_means(correct)
    return mean_interval(means[~np.isnan(means)], correct.shape[1])


def mean_interval(means: np.ndarray, draws: int) -> list[float]:
    """Returns the 95 % confidence interval of an accuracy. `means`, float [problems], are the shares of right completions of
    each problem, out of at most `draws`. This is Wilson's interval if there is one completion per problem, or if all problems
    have the same mean, because the bootstrap would give an interval of width zero. Otherwise, it is a bootstrap interval over
    problems."""
    if draws > 1 and np.ptp(means) > 0:
        return bootstrap_interval(means)
    return wilson(float(means.mean()), len(means))


def bootstrap_interval(values: np.ndarray) -> list[float]:
    """Returns the 95 % confidence interval of the mean of `values`, float [n], from `RESAMPLES` bootstrap resamples with a
    fixed seed."""
    draw, n = np.random.default_rng(0), len(values)
    if n > MANY:
        distinct, counts = np.unique(values, return_counts=True)
        parts = [draw.multinomial(n, counts / n, size) @ distinct / n for size in resample_chunks(len(distinct))]
        means = np.concatenate(parts)
    else:
        means = np.array([values[draw.integers(n, size=n)].mean() for _ in range(RESAMPLES)])
    return np.quantile(means, [0.025, 0.975]).tolist()


def resample_chunks(n: int, rows_in_all: int = RESAMPLES) -> list[int]:
    """Returns the number of rows in each chunk when `rows_in_all` rows of n random numbers are drawn in chunks. A chunk has
    about `AT_ONCE` numbers. Drawing in chunks gives the same numbers as drawing all rows at once. For this purpose, the number
    of rows is a multiple of 4, because NumPy draws 4 int8 numbers from one random word."""
    rows = max(4, AT_ONCE // max(n, 1) // 4 * 4)
    return [min(rows, rows_in_all - begin) for begin in range(0, rows_in_all, rows)]


def wilson(share: float, problems: int) -> list[float]:
    """Returns Wilson's 95 % confidence interval for the proportion `share`, which was measured on `problems` problems."""
    z, n = 1.96, problems
    center, spread = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = ((center + sign * spread) / (1 + z * z / n) for sign in (-1, 1))
    return [max(min(low, share), 0.0), min(max(high, share), 1.0)]  # rounding may exclude the share


def paired(one: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    """Compares two evaluations of the same problems. `one` and `other` have the form of `correct`, see the docstring of this
    module. Only problems with a verdict in both evaluations are compared.

    Returns a dict with the number of compared problems, the number of problems left out, the two means over problems, the
    difference `other` - `one` with its 95 % confidence interval and p-value, and the numbers of problems on which `other` is
    better and worse. Raises ValueError if no problem has a verdict in both evaluations."""
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
    """Returns the two-sided p-value of the exact McNemar test. `gained` is the number of problems that became correct, and
    `lost` is the number of problems that became wrong. The relative error of the result is below 1e-9 for up to 100,000
    problems, and below 1e-6 for up to 10 million."""
    n, few = gained + lost, min(gained, lost)
    if n <= FEW:
        return min(1.0, 2 * (sum(math.comb(n, k) for k in range(few + 1)) / 2**n)) if n else 1.0
    # The sum of n choose k over k <= few is its last and largest term times a sum of products of the ratios of its terms. Exact
    # integers would take minutes for 40,000 problems, because each has n bits.
    largest = math.lgamma(n + 1) - math.lgamma(few + 1) - math.lgamma(n - few + 1) - n * math.log(2)
    total = product = 1.0
    for begin in range(0, few, AT_ONCE):
        k = np.arange(few - begin, max(few - begin - AT_ONCE, 0), -1, dtype=np.float64)
        products = product * np.cumprod(k / (n - k + 1))
        total, product = total + float(products.sum()), float(products[-1])
        if product < 1e-20:  # the ratios descend, so the rest does not change the sum
            break
    return min(1.0, 2 * total * math.exp(largest))


def sign_flip(difference: np.ndarray) -> float:
    """Returns the two-sided p-value of a permutation test that randomly flips the signs of `difference`, float [problems]."""
    draw, limit, larger = np.random.default_rng(0), abs(difference.sum()) - 1e-12, 0
    sizes, counts = np.unique(np.abs(difference), return_counts=True)
    together = len(difference) > MANY
    for rows in resample_chunks(len(sizes) if together else len(difference)):
        if together:
            sums = (2 * draw.binomial(counts, 0.5, (rows, len(sizes))) - counts) @ sizes
        else:
            sums = (draw.integers(0, 2, (rows, len(difference)), dtype=np.int8) * 2 - 1) @ difference
        larger += int((np.abs(sums) >= limit).sum())
    return (larger + 1) / (RESAMPLES + 1)


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f}%"


def interval_text(interval: Sequence[float]) -> str:
    """Returns the text of a 95 % confidence interval, given as two shares."""
    return f"95% interval {100 * interval[0]:.1f} to {100 * interval[1]:.1f}"
