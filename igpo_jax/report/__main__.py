"""python -m igpo_jax.report RUN [RUN ...] [--output=FILE] [--watch]

Writes the HTML report of a training run, which need not be finished. For several runs, writes a page that compares their
curves, their results with confidence intervals, their rollouts, and the settings that differ. With --watch, writes the page
again every minute until all runs are finished. A browser that shows the page reloads it every minute.
"""

from igpo_jax.runtime import interrupts

if __name__ == "__main__":  # before the slow imports
    interrupts.install()

import functools
import pathlib
import sys

from absl import flags

from igpo_jax.cli import escape_controls, parse_flags, run_command
from igpo_jax.report.page import keep_writing, require_own_page, write_page
from igpo_jax.runtime.buckets import is_address

OUTPUT = flags.DEFINE_string(
    "output", None, "The file to write; by default RUN/report.html, or compared.html for several runs."
)
WATCH = flags.DEFINE_boolean("watch", False, "Writes the page again every minute until all runs are finished.")


def main(arguments: list[str]) -> None:
    runs = arguments[1:]
    try:
        if not runs:
            raise ValueError("give the folder of one run or several: python -m igpo_jax.report RUN [RUN ...]")
        path = OUTPUT.value or (
            (f"{runs[0].rstrip('/')}/report.html" if is_address(runs[0]) else str(pathlib.Path(runs[0], "report.html")))
            if len(runs) == 1
            else "compared.html"
        )
        if not OUTPUT.value and len(runs) > 1:
            require_own_page(pathlib.Path(path))
        finished = write_page(runs, path)
        print(escape_controls(f"report: {path}"), flush=True)
        if WATCH.value and not finished:
            keep_writing(runs, path)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")


def run() -> None:
    run_command(main, functools.partial(parse_flags, words=True))


if __name__ == "__main__":
    run()
