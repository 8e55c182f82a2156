"""Writes what second attempts cost with and without inpainting.tries: python benchmarks/tries.py COMPARISON TABLE

COMPARISON is the folder of `igpo_jax.compare` with the arms igpo and igpo_tries, or their variants."""

import pathlib
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


def main():
    folder, table = map(pathlib.Path, sys.argv[1:])
    header = [
        "arm",
        "stage",
        "evaluations of second attempts",
        "of the paper's",
        "rescued",
        "swapped in per group",
        "accuracy at the end",
    ]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for pair in PAIRS:
        for stage in sorted(folder.glob("seed-*")):
            runs = [stage / arm for arm in pair]
            if all((run / "result.json").is_file() for run in runs):
                found = [numbers(run) for run in runs]
                for arm, one in zip(pair, found, strict=True):
                    share = f"{one['rows'] / found[0]['rows']:.0%}"
                    cells = [
                        f"{one['rows']:.0f}",
                        share,
                        f"{one['rescued']:.1f}",
                        f"{one['swapped']:.2f}",
                        f"{one['accuracy']:.1f}",
                    ]
                    lines.append("| " + " | ".join([arm, stage.name.removeprefix("seed-"), *cells]) + " |")
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
