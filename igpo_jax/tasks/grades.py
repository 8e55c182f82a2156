"""Grades of completions. This module imports jax through flax. It is separate from reward_pool.py, so that programs that only
grade completions do not import jax, which takes time and memory."""

from collections.abc import Mapping

import flax
import numpy as np

from igpo_jax.runtime.distributed import gather_texts

FEW = 4  # up to this number of completions without a verdict never stop a run, because their share of a small batch says little


@flax.struct.dataclass
class Grades:
    """Grades of n groups of g completions. A completion without a verdict counts neither as correct nor as wrong."""

    rewards: np.ndarray  # f32[n, g], NaN for a completion that was not sampled, see `inpainting.tries`
    correct: np.ndarray  # bool[n, g], False without a verdict
    late: np.ndarray  # bool[n, g], no verdict in time
    broken: np.ndarray  # bool[n, g], no verdict, because the reward function failed
    # If `reward.function` adds several functions: name of a function -> its values, f32[n, g], 0 without a verdict
    parts: dict[str, np.ndarray] = flax.struct.field(default_factory=dict)

    @property
    def graded(self) -> np.ndarray:
        """Mask of the completions with a verdict, bool [n, g]."""
        return self.sampled & ~(self.late | self.broken)

    @property
    def sampled(self) -> np.ndarray:
        """Mask of the completions that were sampled, bool [n, g]."""
        return ~np.isnan(self.rewards)

    @property
    def all_wrong(self) -> np.ndarray:
        """Mask of the groups with at least one graded completion and no correct completion, bool [n]."""
        return np.logical_and(self.graded.any(axis=1), ~self.correct.any(axis=1))

    @property
    def all_correct(self) -> np.ndarray:
        """Mask of the groups with at least one graded completion and no wrong completion, bool [n]."""
        return np.logical_and(self.correct.any(axis=1), (self.correct | ~self.graded).all(axis=1))


def lack_of_verdicts(counts: Mapping[str, int], total: int, reasons: Mapping[str, str], limit: float = 1.0) -> str:
    """Returns an error message if too many of `total` completions have no verdict, otherwise "". There are too many if no
    completion has a verdict, or if more than `FEW` completions and more than the share `limit` have none. All processes must
    call this function with the same counts, and all processes get the same message.

    counts: {outcome: number of completions} for the outcomes "timeout" and "error". reasons: {outcome: example of a reason},
    taken from the completions that this process has graded (`RewardPool.reasons`)."""
    ungraded = sum(counts.values())
    if ungraded < total and (ungraded <= FEW or ungraded / total <= limit):
        return ""
    text = f"{ungraded} of {total} completions got no verdict, timeouts: {counts['timeout']}, errors: {counts['error']}"
    for outcome in (outcome for outcome, count in counts.items() if count):
        examples = gather_texts(" ".join(reasons.get(outcome, "").split()))
        text += f". Example of {'an error' if outcome == 'error' else 'a timeout'}: {next(filter(None, examples), '')}"
    late = "For timeouts, raise reward.deadline_seconds, or lower reward.workers on a busy machine"
    return f"{text}. {late}; for errors, repair the reward function"
