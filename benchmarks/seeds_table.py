"""Makes a table from the result.json files of runs and inserts it between the markers of a Markdown file.

    python benchmarks/seeds_table.py runs/seeds docs/results.md seeds
"""

import argparse
import json
import pathlib

from insert import insert


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def table(results: list[dict]) -> str:
    lines = [
        "| seed | hints | groups all wrong at the start | rescued by hints | accuracy after SFT | after RL | gain (95 %) |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in sorted(results, key=lambda r: (not r["inpainting"], r["seed"])):
        before, after, start = result["before_rl"], result["after_rl"], result["rl_start"]
        gain = after["accuracy"] - before["accuracy"]
        variance = sum(e["accuracy"] * (1 - e["accuracy"]) / e["problems"] for e in (before, after))
        cells = [
            str(result["seed"]),
            "yes" if result["inpainting"] else "no",
            percent(start["all_wrong_groups"]),
            percent(start["rescue_rate"]),
            percent(before["accuracy"]),
            percent(after["accuracy"]),
            f"{100 * gain:+.1f} ± {196 * variance**0.5:.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    one = results[0]
    versions = ", ".join(f"{name} {one['versions'][name]}" for name in ("jax", "flax", "optax"))
    lines.append(
        f"\nAll numbers are percentages. Evaluations use {one['after_rl']['problems']} held-out long problems and greedy decoding. "
        f"The accuracy at the start is the mean over the first {one['rl_start']['rollouts']} rollouts. "
        f"Measured on {one['device']}, Python {one['python']}, {versions}."
    )
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path, help="holds the runs' folders")
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("name", help="the table goes between <!-- NAME --> and <!-- /NAME -->")
    arguments = parser.parse_args()
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(arguments.folder.glob("*/result.json"))]
    insert(table(results), arguments.file, arguments.name)


if __name__ == "__main__":
    main()
