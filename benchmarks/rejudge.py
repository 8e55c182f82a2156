"""Judges the arms of a comparison of version 0.1.0 again: python benchmarks/rejudge.py OLD.json NEW_FOLDER

The runs of that comparison are gone, but its comparison.json has the accuracy of every evaluation. This is all that the
statistics over stages need, except for the hardest third of the problems, which is left out. Writes comparison.json and
comparison.md."""

import json
import pathlib
import sys
from typing import get_args

import numpy as np

from igpo_jax.compare.arms import CLAIMS, HARD
from igpo_jax.compare.numbers import ALL_WRONG_METRIC, Budget, RunNumbers, Runs, arm_numbers, at_budget, judged, same_verdicts
from igpo_jax.compare.page import write_comparison

KEPT = (
    "all_wrong",
    "rescue_rate",
    "swapped_in",
    "second_attempts",
    "distinct",
    "prompts_to_reach",
    "evaluations_to_reach",
    "rl_seconds",
)


def read_runs(old: dict) -> dict[str, Runs]:
    """Returns the runs of each arm, with the accuracy of an evaluation as the verdict on one problem."""
    results = {(run["arm"], run["seed"]): run for run in old["runs"]}
    runs: dict[str, Runs] = {arm: [] for arm in old["curves"]}
    for arm, curves in old["curves"].items():
        for seed, curve in zip(old["seeds"], curves, strict=True):
            prompts, evaluations = np.array(curve["prompts"]), np.array(curve["evaluations"])
            seconds = results[arm, seed]["wall_seconds"]["rl"] * prompts / prompts[-1]
            rollouts = [{ALL_WRONG_METRIC: share} for share in curve["all_wrong"]]
            accuracy = np.array(curve["accuracy"])[:, None]
            runs[arm].append([RunNumbers(prompts, evaluations, seconds, accuracy, rollouts, results[arm, seed])])
    return runs


def main():
    old, folder = json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8")), pathlib.Path(sys.argv[2])
    runs, everything = read_runs(old), np.ones((len(old["seeds"]), 1), bool)
    decidable = [claim for claim in CLAIMS if {claim.better, *claim.worse} <= set(runs) and claim.measure != HARD]
    correct = {budget: at_budget(runs, budget) for budget in get_args(Budget)}
    arms = []
    for before in old["arms"]:
        arm = arm_numbers(before["arm"], runs, correct, everything) | {key: before.get(key) for key in KEPT}
        arms.append(arm | {"hardest_third": {"mean": None, "interval95": None}})
    found = old | {
        "rl_seeds": 1,
        "quick": False,
        "arms": arms,
        "claims": judged(decidable, runs, everything),
        "same_verdicts": same_verdicts(runs),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_comparison(folder, found)


if __name__ == "__main__":
    main()
