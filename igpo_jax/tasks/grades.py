"""Grades of completions. This module imports jax through flax. It is separate from reward_pool.py, because importing jax would
cost each worker process time and memory."""

from collections.abc import Mapping

import flax
import numpy as np

from igpo_jax.runtime.distributed import gather_texts

FEW = 4  # up to this number of completions without a verdict never stop a run, because their share of a small batch says little


@flax.struct.dataclass
class Grades:
    """Grades of n groups of g completions. A completion without a verdict is neither correct nor wrong."""

    rewards: np.ndarray  # f32[n, g]
    correct: np.ndarray  # bool[n, g], False without a verdict
    late: np.ndarray  # bool[n, g], no verdict in time
    broken: np.ndarray  # bool[n, g], no verdict, because the reward function failed

    @property
    def graded(self) -> np.ndarray:
        """Mask of the completions with a verdict, bool [n, g]."""
        return ~(self.late | self.broken)

    @property
    def all_wrong(self) -> np.ndarray:
        """Mask of the groups that have graded completions, none of them correct, bool [n]."""
        return np.logical_and(self.graded.any(axis=1), ~self.correct.any(axis=1))

    @property
    def all_correct(self) -> np.ndarray:
        """Mask of the groups that have graded completions, all of them correct, bool [n]."""
        return np.logical_and(self.correct.any(axis=1), (self.correct | ~self.graded).all(axis=1))


def lack_of_verdicts(counts: Mapping[str, int], total: int, reasons: Mapping[str, str], limit: float = 1.0) -> str:
    """Returns an error message if too many of `total` completions have no verdict, otherwise "". Too many means all
    completions, or more than `FEW` completions and a share above `limit`. All processes must call this function with the same
    counts. They all get the same message.

    counts: the numbers of completions with the outcomes "timeout" and "error". reasons: an example of each outcome among the
    completions that this process has graded, see `RewardPool.reasons`."""
    ungraded = sum(counts.values())
    if ungraded < total and (ungraded <= FEW or ungraded / total <= limit):
        return ""
    text = f"{ungraded} of {total} completions got no verdict, timeouts: {counts['timeout']}, errors: {counts['error']}"
    for outcome in (outcome for outcome, count in counts.items() if count):
        examples = gather_texts(" ".join(reasons.get(outcome, "").split()))
        text += f". Example of {'an error' if outcome == 'error' else 'a timeout'}: {next(filter(None, examples), '')}"
    late = "For timeouts, raise reward.deadline_seconds, or lower reward.workers on a busy machine"
    return f"{text}. {late}; for errors, repair the reward function"
