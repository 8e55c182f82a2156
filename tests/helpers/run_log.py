"""What the tests read from a run's log."""

import pathlib

from igpo_jax.run.metrics import read_rows


def rows_so_far(workdir: pathlib.Path) -> list[dict]:
    """Of metrics.jsonl, while another process may be writing it."""
    try:
        return read_rows(workdir / "metrics.jsonl")
    except (ValueError, OSError):
        return []


def untimed(workdir: pathlib.Path) -> list[dict]:
    """Of metrics.jsonl, what must not depend on how fast the run was."""
    rows = read_rows(workdir / "metrics.jsonl")
    return [{name: value for name, value in row.items() if not name.startswith(("time/", "speed/"))} for row in rows]
