"""Prints how runs spent their time, from their metrics: the parts of an IGPO step, evaluations, the supervised stage.

    python benchmarks/step.py before=RUN after=RUN [...]

The first run is the baseline of the ratios; compare only runs on the same machine. A step is the median of all
but the first two, which compile.
"""

import argparse
import json
import pathlib
import statistics

from igpo_jax.run.metrics import read_rows

PARTS = ("layout", "rollout", "probe", "reward", "score", "update")


def split(folder: pathlib.Path) -> dict:
    """Returns seconds: medians for a step and its parts, sums for the stages and the whole run."""
    rows, result = read_rows(folder / "metrics.jsonl"), json.loads((folder / "result.json").read_text(encoding="utf-8"))
    steps = [row for row in rows if row["stage"] == "rl" and "time/rollout" in row]
    late = steps[2:] or steps
    evaluations = [row["time/total"] for row in rows if "eval/accuracy" in row]
    return {
        "device": result["device"],
        "step": statistics.median(row["time/total"] for row in late),
        **{part: statistics.median(row.get(f"time/{part}", 0.0) for row in late) for part in PARTS},
        "evaluation": statistics.median(evaluations) if evaluations else None,
        "sft": result["wall_seconds"]["sft"],
        "rl": result["wall_seconds"]["rl"],
        "stages": sum(result["wall_seconds"].values()),
        "accuracy": result["after_rl"]["accuracy"],
    }


def main(argv: list[str] | None = None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN")
    cases = []
    for argument in parser.parse_args(argv).runs:
        name, _, folder = argument.partition("=")
        case = {"name": name} | split(pathlib.Path(folder))
        first = cases[0] if cases else case
        case["baseline"] = first["name"]
        case["ratio"] = {key: first[key] / case[key] for key in ("step", "rollout", "sft", "rl", "stages") if case[key]}
        cases.append(case)
        print(json.dumps(case), flush=True)
    return cases


if __name__ == "__main__":
    main()
