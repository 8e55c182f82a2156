"""Writes the tables of docs/results.md that compare arms on several tasks: python benchmarks/tasks.py

Reads the comparisons in results/tasks (`tasks.sh`) and the bounds in results/tries_bound (`tries_bound.py`)."""

import json
import pathlib
from typing import Any

import numpy as np

from igpo_jax.compare import page
from igpo_jax.compare.intervals import mean_with_interval, stage_means
from igpo_jax.compare.tasks import claims_table, correct_p_values, note
from igpo_jax.plan.text import table
from insert import insert

ROOT = pathlib.Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "results.md"
TASKS = ("arithmetic", "countdown", "sudoku")
BEST = "best"
TRIES = (("igpo", "igpo_tries"), ("igpo_position_first_hot", "igpo_position_first_hot_tries"))


def differences(found: dict[str, Any], better: str, worse: str) -> np.ndarray:
    """Returns how much higher the accuracy of one arm is than that of another, at the largest number of network evaluations
    that both have reached, f64[stages]."""
    runs = zip(found["curves"][better], found["curves"][worse], strict=True)
    pairs = []
    for one, other in runs:
        budget = min(one["evaluations"][-1], other["evaluations"][-1])
        pairs.append(np.subtract(*(np.interp(budget, run["evaluations"], run["accuracy"]) for run in (one, other))))
    return stage_means(np.reshape(pairs, (len(found["seeds"]), found["rl_seeds"], 1)))


def best_table(found: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Returns the table of differences between the arm `BEST` and every other arm. Differences that are decided after the
    correction of p-values are bold. Only a difference about which there is a claim can be decided."""
    rows = [[f"`{BEST}` minus, in points (95 %)", *found]]
    for arm in next(iter(found.values()))["arms"]:
        if arm["arm"] != BEST:
            cells = [best_cell(part, arm["arm"]) for part in found.values()]
            rows.append([f"`{arm['arm']}`: {arm['title']}", *cells])
    return rows


def best_cell(found: dict[str, Any], worse: str) -> str:
    for claim in found["claims"]:
        if (claim["better"], claim["against"]) == (BEST, worse):
            text = page.difference(claim)
            return f"**{text}**" if page.verdict(claim) in ("held", "not held") else text
    return page.difference(mean_with_interval(differences(found, BEST, worse)))


def accuracy_table(found: dict[str, dict[str, Any]]) -> list[list[str]]:
    rows = [["accuracy at equally many evaluations (95 %)", *found]]
    arms = [{arm["arm"]: arm for arm in part["arms"]} for part in found.values()]
    for name, arm in arms[0].items():
        rows.append([f"`{name}`: {arm['title']}", *(page.with_interval(part[name]["equal_evaluations"]) for part in arms)])
    return rows


def tries_table(found: dict[str, dict[str, Any]]) -> list[list[str]]:
    rows = [["task", "arm", "evaluations of second attempts", "share", "least share of any rule", "rescued", "swapped in per group"]]
    rows[0] += ["accuracy at the end"]
    for task, part in found.items():
        arms = {arm["arm"]: arm for arm in part["arms"]}
        bound = json.loads((RESULTS / "tries_bound" / f"{task}.json").read_text(encoding="utf-8"))["least_share"]
        for pair in TRIES:
            spent = {}
            for name in pair:
                curves, arm = part["curves"][name], arms[name]
                spent[name] = arm["second_attempts"] * np.mean([run["evaluations"][-1] for run in curves])
                share, end = spent[name] / spent[pair[0]], np.mean([run["accuracy"][-1] for run in curves])
                least = f"{bound:.0%}" if name == "igpo_tries" else ""
                rows.append([task, f"`{name}`", f"{spent[name]:.0f}", f"{share:.0%}", least, f"{100 * arm['rescue_rate']:.1f}",
                             f"{arm['swapped_in']:.2f}", f"{100 * end:.1f}"])  # fmt: skip
    return rows


def as_markdown(rows: list[list[str]]) -> str:
    return "\n".join(table(rows[0], rows[1:])) + "\n"


def main():
    found = {task: json.loads((RESULTS / "tasks" / f"{task}.json").read_text(encoding="utf-8")) for task in TASKS}
    correct_p_values(found)
    tables = {
        "short": as_markdown(best_table(found)),
        "accuracies": as_markdown(accuracy_table(found)),
        "claims": as_markdown(claims_table(found)) + "\n" + page.markdown_text(note(found)) + "\n",
        "tries": as_markdown(tries_table(found)),
    } | {task: as_markdown(page.table(part)) for task, part in found.items()}
    for name, text in tables.items():
        insert(text, PAGE, name)


if __name__ == "__main__":
    main()
