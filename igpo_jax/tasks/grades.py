"""Grades of rollouts. This module imports jax through flax. It is separate from reward_pool.py, because importing jax would
cost each worker process time and memory."""

import flax
import numpy as np


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
        """Mask of the groups with wrong and without correct completions, bool [n]."""
        return np.logical_and(self.graded.any(axis=1), ~self.correct.any(axis=1))

    @property
    def all_correct(self) -> np.ndarray:
        """Mask of the groups with correct and without wrong completions, bool [n]."""
        return np.logical_and(self.correct.any(axis=1), (self.correct | ~self.graded).all(axis=1))
