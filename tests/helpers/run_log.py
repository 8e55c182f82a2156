"""Reads a run's log."""

import pathlib

from igpo_jax.run.metrics import read_rows


def rows_so_far(workdir: pathlib.Path) -> list[dict]:
    """Returns the rows of metrics.jsonl, which another process may be writing."""
    try:
        return read_rows(workdir / "metrics.jsonl")
    except (ValueError, OSError):
        return []


def untimed(workdir: pathlib.Path) -> list[dict]:
    """Returns the rows of metrics.jsonl without columns that depend on speed."""
    rows = read_rows(workdir / "metrics.jsonl")
    return [{name: value for name, value in row.items() if not name.startswith(("time/", "speed/"))} for row in rows]
