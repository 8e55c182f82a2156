"""Writes a table of the speed-ups of update.py and rollout.py on different CPUs into benchmarks/README.md.

    python benchmarks/cpus.py FOLDER ...

Each folder holds update.json and rollout-torch.json, which the two scripts have written on one machine.
"""

import argparse
import json
import pathlib

from insert import insert

PAGE = pathlib.Path(__file__).parent / "README.md"
COLUMNS = {
    ("update", "torch"): "update / torch",
    ("update", "tiled"): "update / tiled",
    ("rollout-torch", "rollout, full"): "rollout / torch",
    ("rollout-torch", "rollout, 40 %"): "short answers",
    ("rollout-torch", "rollout, hints"): "with hints",
    ("rollout-torch", "second try"): "second / first try",
}


def row(folder: pathlib.Path) -> str:
    cases = {}
    for script in ("update", "rollout-torch"):
        for case in json.loads((folder / f"{script}.json").read_text(encoding="utf-8")):
            cases[script, case["baseline"] if script == "update" else case["name"]] = case
    update = cases["update", "torch"]
    rate = update.get("product_flops_per_second")
    limit = f"{update['limit_seconds'] / update['seconds']:.0%}" if rate else ""
    products = f"{rate / 1e9:.0f}" if rate else "not recorded"
    ratios = [f"{cases[key]['ratio']:.2f}" for key in COLUMNS]
    cells = (update["date"][:10], update.get("cpu", "not recorded"), products, f"{update['seconds']:.1f} s", limit, *ratios)
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=pathlib.Path)
    names = ("date", "CPU", "products, GFLOP/s", "update", "limit / update", *COLUMNS.values())
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|", *map(row, parser.parse_args().folders)]
    insert("\n".join(lines) + "\n", PAGE, "cpus")


if __name__ == "__main__":
    main()
