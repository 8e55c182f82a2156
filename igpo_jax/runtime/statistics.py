"""Numbers of verdicts: shares with their intervals, pass@k, paired tests."""

import math
from typing import Any

import numpy as np

RESAMPLES = 10_000  # of bootstrap and permutation tests


def interval(correct: np.ndarray) -> list[float]:
    """95 % interval of the mean of bool [problems, draws]: Wilson's for one draw, else the bootstrap over problems."""
    if correct.shape[1] == 1:
        return wilson(float(correct.mean()), len(correct))
    means = bootstrap(correct.mean(axis=1))
    return np.quantile(means, [0.025, 0.975]).tolist()


def bootstrap(values: np.ndarray) -> np.ndarray:
    """Means of `RESAMPLES` samples with replacement; the same for the same values."""
    draw, n = np.random.default_rng(0), len(values)
    return np.array([values[draw.integers(n, size=n)].mean() for _ in range(RESAMPLES)])


def wilson(share: float, problems: int) -> list[float]:
    """Wilson's 95 % interval of a share of `problems`."""
    z, n = 1.96, problems
    center, spread = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = ((center + sign * spread) / (1 + z * z / n) for sign in (-1, 1))
    return [max(min(low, share), 0.0), min(max(high, share), 1.0)]  # but for rounding it holds the share


def paired(one: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    """Of bool [problems, draws] each, problem by problem."""
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
    """Exact and two-sided: whether so many of the problems that changed would change one way by chance."""
    n = gained + lost
    tail = sum(math.comb(n, k) for k in range(min(gained, lost) + 1)) / 2**n
    return min(1.0, 2 * tail) if n else 1.0


def sign_flip(difference: np.ndarray) -> float:
    """Two-sided permutation test of a mean of 0: the sign of each problem's difference is as likely the other one."""
    draw = np.random.default_rng(0)
    signs = draw.integers(0, 2, (RESAMPLES, len(difference)), dtype=np.int8) * 2 - 1
    larger = np.abs(signs @ difference) >= abs(difference.sum()) - 1e-12
    return float((larger.sum() + 1) / (RESAMPLES + 1))
