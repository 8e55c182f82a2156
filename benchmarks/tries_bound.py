"""Computes how few network evaluations second attempts could need: python benchmarks/tries_bound.py TASK SEED ...

Trains the arm igpo from the supervised models TASK/seed-SEED of benchmarks/stages, and counts the correct ones among the G
hinted completions of each group. Writes these counts, and the bound of `least_share`, to results/tries_bound/TASK.json."""

import itertools
import json
import math
import pathlib
import sys
import tempfile
from unittest import mock

import numpy as np

from igpo_jax.cli import load_config, resolve_config_path
from igpo_jax.rl.hints import max_replaced
from igpo_jax.rl.rollout import rollout
from igpo_jax.run.experiment import open_experiment
from igpo_jax.stages import rl
from igpo_jax.stages.training import train

ROOT = pathlib.Path(__file__).parent
RESCUED, SWAPPED = 0.05, 0.1  # accepted loss of rescued groups, as a share of all, and of completions swapped in, of these


def correct_counts(task: str, seed: int) -> np.ndarray:
    """Returns how many groups of a run had 0, 1, ..., G correct completions in their second attempt, int [G + 1]."""
    config = load_config(resolve_config_path(f"{task}.py"))
    config.update_from_flattened_dict({"seed": seed, "sft.updates": 0, "model.path": f"{ROOT}/stages/{task}/seed-{seed}"})
    counts = np.zeros(config.rl.group_size + 1, int)

    def counted(*arguments):
        sampled = rollout(*arguments)
        if sampled.second is not None:
            np.add.at(counts, sampled.second.grades.correct.sum(axis=1), 1)
        return sampled

    with tempfile.TemporaryDirectory() as workdir, mock.patch.object(rl, "rollout", counted):
        train(open_experiment(config, workdir))
    return counts


def least_share(counts: np.ndarray, enough: int) -> float:
    """Returns a lower bound for the share of second attempts' evaluations that a cheaper rule needs. `counts`, int [G + 1], are
    the numbers of groups with 0, 1, ..., G correct completions, and `enough` is the number that can be swapped in.

    The bound is for all rules that sample the completions of a group one after another, in random order, and stop depending on
    which ones were correct, even if they know `counts` and decide at random. Compared with all G completions, the rule may
    rescue fewer groups, by `RESCUED`, and swap in fewer completions, by `SWAPPED`. Given a price for a completion swapped in,
    and one for a group rescued, dynamic programming finds the best rule. Any prices give a bound (weak duality); the largest
    one is returned."""
    g, share = len(counts) - 1, counts / counts.sum()

    def seen(n: int, k: int) -> float:
        """Returns the probability that k of the first n completions are correct."""
        ways = (math.comb(n, k) * math.comb(g - n, total - k) / math.comb(g, total) for total in range(k, g - n + k + 1))
        return sum(share[k : g - n + k + 1] * list(ways))

    states = {(n, k): seen(n, k) for n in range(g + 1) for k in range(n + 1)}
    swapped, rescued = share @ np.minimum(np.arange(g + 1), enough), 1 - share[0]

    def bound(price: float, reward: float) -> float:
        stop = [price * min(k, enough) + reward * (k > 0) for k in range(g + 1)]
        value = stop
        for n in range(g - 1, -1, -1):
            further = list(stop)
            for k in range(n + 1):
                if states[n, k]:
                    p = states[n + 1, k + 1] * (k + 1) / (n + 1) / states[n, k]  # that the next one is correct
                    further[k] = max(stop[k], p * value[k + 1] + (1 - p) * value[k] - 1)
            value = further
        return price * (1 - SWAPPED) * swapped + reward * (rescued - RESCUED) - value[0]

    prices = itertools.product(np.linspace(0, 10, 101), np.linspace(0, 20, 81))
    return max(bound(price, reward) for price, reward in prices) / g


def main():
    task, *seeds = sys.argv[1:]
    counts = sum(correct_counts(task, int(seed)) for seed in seeds)
    enough = max_replaced(load_config(resolve_config_path(f"{task}.py")).inpainting, len(counts) - 1)
    found = {"seeds": [int(seed) for seed in seeds], "groups": counts.tolist(), "least_share": least_share(counts, enough)}
    path = ROOT / "results" / "tries_bound" / f"{task}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found) + "\n", encoding="utf-8")
    print(task, found)


if __name__ == "__main__":
    main()
