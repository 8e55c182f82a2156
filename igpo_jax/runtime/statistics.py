"""Accuracies: confidence intervals and paired tests."""

import math
from typing import Any

import numpy as np

RESAMPLES = 10_000  # of bootstrap and permutation tests


def accuracy_interval(correct: np.ndarray) -> list[float]:
    """Returns the 95 % interval of the mean of bool[problems, draws]: Wilson's for one draw, else a bootstrap over problems."""
    if correct.shape[1] == 1:
        return wilson(float(correct.mean()), len(correct))
    means = bootstrap(correct.mean(axis=1))
    return np.quantile(means, [0.025, 0.975]).tolist()


def bootstrap(values: np.ndarray) -> np.ndarray:
    """Returns the means of `RESAMPLES` resamples, f64[RESAMPLES]; deterministic."""
    draw, n = np.random.default_rng(0), len(values)
    return np.array([values[draw.integers(n, size=n)].mean() for _ in range(RESAMPLES)])


def wilson(share: float, problems: int) -> list[float]:
    """Returns Wilson's 95 % interval of a share measured on this number of problems."""
    z, n = 1.96, problems
    center, spread = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = ((center + sign * spread) / (1 + z * z / n) for sign in (-1, 1))
    return [max(min(low, share), 0.0), min(max(high, share), 1.0)]  # rounding may exclude the share


def paired(one: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    """Compares two evaluations, bool[problems, draws] each, problem by problem."""
    difference = other.mean(axis=1) - one.mean(axis=1)
    gained, lost = int((difference > 0).sum()), int((difference < 0).sum())
    return {
        "one": float(one.mean()),
        "other": float(other.mean()),
        "difference": float(difference.mean()),
        "interval95": np.quantile(bootstrap(difference), [0.025, 0.975]).tolist(),
        "p_value": mcnemar(gained, lost) if one.shape[1] == 1 else sign_flip(difference),
        "problems": len(difference),
        "better": gained,
        "worse": lost,
    }


def mcnemar(gained: int, lost: int) -> float:
    """Returns the exact two-sided p-value of McNemar's test, given the numbers of problems gained and lost."""
    n = gained + lost
    tail = sum(math.comb(n, k) for k in range(min(gained, lost) + 1)) / 2**n
    return min(1.0, 2 * tail) if n else 1.0


def sign_flip(difference: np.ndarray) -> float:
    """Returns the two-sided p-value of a permutation test that flips the signs of the differences, f[problems]."""
    draw = np.random.default_rng(0)
    signs = draw.integers(0, 2, (RESAMPLES, len(difference)), dtype=np.int8) * 2 - 1
    larger = np.abs(signs @ difference) >= abs(difference.sum()) - 1e-12
    return float((larger.sum() + 1) / (RESAMPLES + 1))
