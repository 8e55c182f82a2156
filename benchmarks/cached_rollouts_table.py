"""Makes the table of cached_rollouts.sh: python benchmarks/cached_rollouts_table.py runs/cached FILE"""

import argparse
import json
import pathlib
import statistics

from igpo_jax.run.metrics import read_rows

NAMES = {"exact": "exact", "leftmost": "dual, threshold, leftmost", "most-confident": "dual, threshold, most confident"}


def line(folder: pathlib.Path) -> str:
    name, _, seed = folder.name.rpartition("-")
    result, rows = json.loads((folder / "result.json").read_text(encoding="utf-8")), read_rows(folder / "metrics.jsonl")
    accuracy = [100 * row["eval/accuracy"] for row in rows if row["stage"] == "rl" and "eval/accuracy" in row]
    steps = [row for row in rows if "sampler/evaluations" in row]
    updates = steps[-1]["step"] - (steps[0]["step"] - (steps[1]["step"] - steps[0]["step"]))
    errors = [row["sampler/kl"] for row in steps if "sampler/kl" in row]
    cells = [NAMES[name], seed, updates, f"{100 * result['after_rl']['accuracy']:.1f}", f"{max(accuracy):.1f}"]
    cells += [f"{min(accuracy[1:]):.1f}", f"{statistics.mean(row['sampler/evaluations'] for row in steps):.1f}"]
    cells += [f"{statistics.mean(row['sampler/flops'] for row in steps) / 1e6:.0f}"]
    cells += [f"{max(errors):.3f}" if errors else ""]
    return "| " + " | ".join(map(str, cells)) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("file", type=pathlib.Path)
    arguments = parser.parse_args()
    folders = sorted(arguments.folder.glob("*/result.json"), key=lambda path: (list(NAMES).index(path.parent.name[:-2]), path))
    head = "| rollouts | seed | updates | accuracy at the end | best | worst after the first evaluation | evaluations per completion "
    head += "| MFLOP per completion | largest KL of a probe |"
    table = "\n".join([head, "|---" * 9 + "|", *(line(path.parent) for path in folders)]) + "\n"
    arguments.file.write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main()
