"""Writes the table of late_loss.sh: python benchmarks/late_loss.py RUNS TABLE

The run's own evaluations, on the first 500 test problems, choose a checkpoint. This checkpoint and those of the last quarter of
the run are then measured on 2,000 further problems."""

import json
import pathlib
import re
import sys

import numpy as np
from ml_collections import ConfigDict

import igpo_jax
from igpo_jax.run.metrics import read_rows
from igpo_jax.tasks import arithmetic

VALIDATION, TEST = 500, 2000  # problems
QUARTER = (95, 125)  # first and last iteration of the last quarter
RUN = re.compile(r"([a-z-]+)-seed-(\d+)")


def accuracy(run: pathlib.Path, iteration: int, problems: list) -> float:
    model = igpo_jax.load(run, stage=f"rl-{iteration}")
    done = model.generate([problem.question for problem in problems])
    return float(np.mean([arithmetic.reward(problem, one.text) for problem, one in zip(problems, done, strict=True)]))


def row_of(run: pathlib.Path, problems: list) -> list[str]:
    inner = json.loads((run / "config.json").read_text(encoding="utf-8"))["objective"]["inner_steps"]
    begin = json.loads((run / "config.json").read_text(encoding="utf-8"))["sft"]["updates"]
    validated = {
        (row["step"] - begin) // inner: row["eval/accuracy"]
        for row in read_rows(run / "metrics.jsonl")
        if row["stage"] == "rl" and "eval/accuracy" in row
    }
    chosen = max((iteration for iteration in validated if iteration), key=lambda iteration: (validated[iteration], -iteration))
    last = [iteration for iteration in validated if QUARTER[0] <= iteration <= QUARTER[1]]
    late = [accuracy(run, iteration, problems) for iteration in last]
    found = accuracy(run, chosen, problems)
    setting, seed = RUN.fullmatch(run.name).groups()
    percents = [100 * value for value in (found, np.mean(late), min(late), max(late), np.mean(late) - found)]
    return [setting, seed, str(chosen), *(f"{value:.1f}" for value in percents[:4]), f"{percents[4]:+.1f}"]


def main():
    folder, table = map(pathlib.Path, sys.argv[1:])
    task = ConfigDict(arithmetic.defaults(slots=6, test_problems=VALIDATION + TEST))
    problems = arithmetic.load(task, "test", 0)[VALIDATION:]
    header = [
        "setting",
        "seed",
        "iteration chosen by validation",
        "its accuracy",
        "mean of the last quarter",
        "worst",
        "best",
        "mean - chosen",
    ]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for run in sorted(path for path in folder.iterdir() if RUN.fullmatch(path.name)):
        lines.append("| " + " | ".join(row_of(run, problems)) + " |")
        print(lines[-1], flush=True)
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
