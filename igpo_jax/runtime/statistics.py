"""Numbers of verdicts: shares with their intervals, pass@k, paired tests."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from igpo_jax.tasks.reward_pool import OUTCOMES

RESAMPLES = 10_000  # of bootstrap and permutation tests


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """pass@1 with its 95 % interval, pass@k for powers of two and all draws, and what else is counted."""
    correct = np.array([[c["correct"] for c in row["completions"]] for row in rows])
    problems, draws = correct.shape
    completions = [c for row in rows for c in row["completions"]]
    result = {"problems": problems, "draws": draws, "pass@1": float(correct.mean())}
    result["interval95"] = interval(correct)
    if draws > 1:
        result[f"avg@{draws}"] = result["pass@1"]
        for k in sorted({2**i for i in range(1, draws.bit_length())} | {draws}):
            result[f"pass@{k}"] = float(np.mean([pass_at_k(draws, int(c), k) for c in correct.sum(axis=1)]))
        result["of_each_draw"] = correct.mean(axis=0).tolist()
    return result | {
        "reward": float(np.mean([c["reward"] for c in completions])),
        "without_answer": float(np.mean([c["stated"] is None for c in completions])),
        "steps": float(np.mean([c["steps"] for c in completions])),
        **{name: sum(c["outcome"] == name for c in completions) for name in OUTCOMES[1:]},
    }


def pass_at_k(draws: int, correct: int, k: int) -> float:
    """The chance that k of the draws, without replacement, hold a correct one: unbiased for k fresh ones (Chen et al. 2021)."""
    return 1.0 - math.comb(draws - correct, k) / math.comb(draws, k)


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
    centre, spread = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = ((centre + sign * spread) / (1 + z * z / n) for sign in (-1, 1))
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
