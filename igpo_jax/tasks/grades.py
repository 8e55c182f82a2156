"""Grades of rollouts. This module imports jax through flax. It is separate from reward_pool.py, because importing jax would
cost each worker process time and memory."""

import flax
import numpy as np


@flax.struct.dataclass
class Grades:
    rewards: np.ndarray  # f32[n, g], for n groups of g completions
    correct: np.ndarray  # bool[n, g]; decides which groups are sampled again with hints, and which new completions are used
    late: np.ndarray  # bool[n, g], no verdict in time; counts as wrong
    broken: np.ndarray  # bool[n, g], the reward function failed; counts as wrong
