"""Reads a run's log."""

import json
import pathlib
import shutil

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


def after_supervised_stage(finished: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Copies a run's files as they were before its RL stage, without its configuration. Returns `folder`."""
    shutil.copytree(finished / "checkpoints/sft", folder / "checkpoints/sft")
    shutil.copy(finished / "tokenizer.model", folder)
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        rows = [row for row in read_rows(finished / name) if row["stage"] == "sft"]
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
