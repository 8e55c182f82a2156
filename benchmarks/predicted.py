"""Prints a Markdown table of what `igpo_jax.plan` predicted and what the device needed, from results of llada_8b.py.

python benchmarks/predicted.py RESULT.json ...
"""

import json
import pathlib
import sys

from igpo_jax.plan.text import table

COLUMNS = ("device", "case", "attention", "seconds: predicted", "measured", "ratio", "peak GiB: predicted", "measured", "ratio")


def row(case: dict) -> list[str]:
    """Returns the cells of a case. A cell is empty if the device's rates are not known, or if it does not tell its memory."""
    cells = [case["device"], f"{case['name']} {case.get('cache', '')}".strip(), case["model"]["attention"]]
    peak = case.get("memory/peak_gib")
    for predicted, measured in ((case.get("predicted_seconds"), case["seconds"]), (case["predicted_peak_gib"], peak)):
        ratio = f"{measured / predicted:.2f}" if predicted and measured else ""
        cells += ["" if number is None else f"{number:.2f}" for number in (predicted, measured)] + [ratio]
    return cells


def main() -> None:
    cases = [json.loads(line) for name in sys.argv[1:] for line in pathlib.Path(name).read_text(encoding="utf-8").splitlines()]
    print("\n".join(table(COLUMNS, map(row, cases))))


if __name__ == "__main__":
    main()
