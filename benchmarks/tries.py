"""Writes what second attempts cost with and without inpainting.tries: python benchmarks/tries.py TABLE COMPARISON ...

COMPARISON is the folder of `igpo_jax.compare` with the arms igpo and igpo_tries, or their variants. The numbers are means over
all runs of an arm."""

import pathlib
import re
import sys

import numpy as np

from igpo_jax.run.metrics import read_rows

PAIRS = (("igpo", "igpo_tries"), ("igpo_position_first_hot", "igpo_position_first_hot_tries"))


def numbers(run: pathlib.Path) -> dict[str, float]:
    rows = [row for row in read_rows(run / "metrics.jsonl") if "sampler/rows" in row]
    hinted = [row for row in rows if "hint/rows" in row]
    evaluations = [
        row["eval/accuracy"] for row in read_rows(run / "metrics.jsonl") if row["stage"] == "rl" and "eval/accuracy" in row
    ]
    return {
        "rows": sum(row["hint/rows"] for row in hinted),
        "rescued": 100 * float(np.mean([row["hint/rescue_rate"] for row in hinted])),
        "swapped": float(np.mean([row["hint/replaced"] for row in rows])),
        "accuracy": 100 * evaluations[-1],
    }


def means(runs: list[pathlib.Path]) -> dict[str, float]:
    found = [numbers(run) for run in runs]
    return {key: float(np.mean([one[key] for one in found])) for key in found[0]}


def main():
    table, *folders = map(pathlib.Path, sys.argv[1:])
    header = ["task", "arm", "evaluations of second attempts", "of the paper's", "rescued", "swapped in per group"]
    header += ["accuracy at the end"]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for folder in folders:
        for pair in PAIRS:
            # The runs of an arm from one stage are ARM, ARM-1, ARM-2 and so on, one for each RL seed.
            runs = [[done.parent for done in sorted(folder.glob(f"seed-*/{arm}*/result.json"))
                     if re.fullmatch(rf"{arm}(-\d+)?", done.parent.name)] for arm in pair]  # fmt: skip
            if len(runs[0]) != len(runs[1]) or not runs[0]:
                continue
            found = [means(of_arm) for of_arm in runs]
            for arm, one in zip(pair, found, strict=True):
                cells = [f"{one['rows']:.0f}", f"{one['rows'] / found[0]['rows']:.0%}", f"{one['rescued']:.1f}"]
                cells += [f"{one['swapped']:.2f}", f"{one['accuracy']:.1f}"]
                lines.append("| " + " | ".join([folder.name, arm, *cells]) + " |")
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
