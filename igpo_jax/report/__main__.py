"""python -m igpo_jax.report RUN [RUN ...] [--output=FILE]

Rewrites the report of a run, finished or not; or writes a page that compares several runs: curves, results with intervals,
differing settings, rollouts.
"""

import pathlib
import sys

from absl import app, flags

from igpo_jax.cli import parse_flags
from igpo_jax.report.page import write_page

OUTPUT = flags.DEFINE_string(
    "output", None, "The file to write; by default RUN/report.html, or compared.html for several runs."
)


def main(arguments: list[str]) -> None:
    runs = arguments[1:]
    try:
        if not runs:
            raise ValueError("give the folder of one run or several: python -m igpo_jax.report RUN [RUN ...]")
        path = pathlib.Path(OUTPUT.value or (pathlib.Path(runs[0], "report.html") if len(runs) == 1 else "compared.html"))
        write_page(runs, path)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
    print(f"report: {path}")


def run() -> None:
    app.run(main, flags_parser=parse_flags)


if __name__ == "__main__":
    run()
