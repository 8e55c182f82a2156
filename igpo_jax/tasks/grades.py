"""Grades of rollouts. This module imports jax through flax. It is separate from reward_pool.py, because this import would cost
each worker time and memory."""

import flax
import numpy as np


@flax.struct.dataclass
class Grades:
    rewards: np.ndarray  # f32[n, g] of n groups of g completions
    correct: np.ndarray  # bool[n, g], decides whether a group is all wrong and which second attempts may be swapped in
    late: np.ndarray  # bool[n, g], no verdict in time; counts as wrong
    broken: np.ndarray  # bool[n, g], the reward function failed; counts as wrong
