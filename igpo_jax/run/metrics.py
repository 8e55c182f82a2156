"""metrics.jsonl, rollouts.jsonl, evaluations.jsonl and TensorBoard events of a run, written as it goes, with one step
counter.

The step is the number of optimiser updates since the start of the run, over both stages.
"""

import functools
import json
import math
import os
import pathlib
from typing import Any

import jax
import numpy as np
from tensorboardX import SummaryWriter

from igpo_jax.runtime.distributed import all_gather_hosts
from igpo_jax.runtime.files import atomic_write, parse_json, renamed


class MetricsWriter:
    """Appends to the logs of a run; process 0 writes, the others do nothing.

    Opening it at `step` drops what an interrupted process had logged beyond that step, and all of the stage that begins
    there (`starting`), so that a resumed run's logs are those of an uninterrupted one.
    """

    def __init__(self, workdir: pathlib.Path, step: int, *, starting: str | None = None):
        self._files = {}
        if jax.process_index():
            return
        for name in ("metrics.jsonl", "rollouts.jsonl", "evaluations.jsonl"):
            path = workdir / name
            _rewind(path, step, starting)
            if name == "evaluations.jsonl":
                _drop_unfinished_evaluation(path, workdir / "metrics.jsonl")
            self._files[name] = path.open("a", encoding="utf-8")
        self._open_events = functools.partial(
            SummaryWriter, str(workdir / "tensorboard"), purge_step=step + 1 if step else None
        )
        self._events = None  # a run that has ended writes no more

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._files:
            for file in self._files.values():
                file.close()
            if self._events is not None:
                self._events.close()

    def write(self, step: int, stage: str, scalars: dict[str, float]) -> None:
        scalars = {name: float(value) for name, value in scalars.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        self._append("metrics.jsonl", [{"step": step, "stage": stage, **finite}])
        if self._files:
            events = self._tensorboard()
            for name, value in scalars.items():
                events.add_scalar(name, value, step)

    def write_rollouts(self, rows: list[dict[str, Any]]) -> None:
        """rows: of one step."""
        self._append("rollouts.jsonl", rows)
        if self._files and rows:
            self._tensorboard().add_text("rollout/completions", "\n\n".join(map(_as_markdown, rows)), rows[0]["step"])

    def write_histograms(self, step: int, values: dict[str, np.ndarray]) -> None:
        """To TensorBoard only; what is not finite is left out."""
        if self._files:
            for name, of_name in values.items():
                finite = np.asarray(of_name, float)[np.isfinite(of_name)]
                if finite.size:
                    self._tensorboard().add_histogram(name, finite, step, bins=30)

    def write_evaluation(self, step: int, stage: str, correct: np.ndarray, scalars: dict[str, float]) -> None:
        """correct: bool [problems], the verdicts; the scalars, eval/accuracy among them, go to metrics.jsonl."""
        verdicts = np.asarray(correct, int).tolist()
        self._append("evaluations.jsonl", [{"step": step, "stage": stage, "correct": verdicts}])
        self.write(step, stage, scalars)

    def _tensorboard(self) -> SummaryWriter:
        self._events = self._events or self._open_events()
        return self._events

    def _append(self, name: str, rows: list[dict[str, Any]]) -> None:
        if self._files:
            self._files[name].writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            self._files[name].flush()


def _as_markdown(row: dict[str, Any]) -> str:
    """A rollout for TensorBoard's text. Indented lines are code, which nothing that a model wrote can end."""
    verdict = "correct" if row["correct"] else "wrong"
    parts = {"question": row["question"], "completion": row["text"]}
    parts |= {"answer read": str(row["extracted_answer"])} if "extracted_answer" in row else {}
    told = (f"{name}:\n\n" + "\n".join(f"    {line}" for line in text.splitlines()) for name, text in parts.items())
    return f"**{row['try']} try, {verdict}, reward {row['reward']:g}**\n\n" + "\n\n".join(told)


def read_rows(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Rows of a log; none if there is no file. A last line that was cut off is passed over.

    Raises:
        ValueError: a line before the last is no JSON object.
    """
    rows = []
    if pathlib.Path(path).is_file():
        # A line may have been cut off within a character.
        lines = pathlib.Path(path).read_text("utf-8", errors="replace").split("\n")
        for number, line in enumerate(lines, 1):
            try:
                row = parse_json(line, path)
            except ValueError:
                row = None
            if isinstance(row, dict):
                rows.append(renamed(row))
            elif any(lines[number:]):
                raise ValueError(f"{path}:{number} is no JSON object; repair or remove this line")
    return rows


def is_logged(workdir: pathlib.Path, step: int, stage: str, name: str) -> bool:
    """Whether this metric has been logged at this step of the stage; process 0 decides, all know."""
    found = jax.process_index() == 0 and any(
        (row["step"], row["stage"]) == (step, stage) and name in row for row in read_rows(workdir / "metrics.jsonl")
    )
    return bool(all_gather_hosts(found)[0])


def last_logged(workdir: pathlib.Path, stage: str, name: str) -> float | None:
    """The newest value of a metric of the stage, None if there is none; process 0 reads, all know."""
    found = math.nan
    if jax.process_index() == 0:
        values = [row[name] for row in read_rows(workdir / "metrics.jsonl") if row["stage"] == stage and name in row]
        found = values[-1] if values else math.nan
    value = float(all_gather_hosts(np.float64(found))[0])
    return None if math.isnan(value) else value


def device_memory() -> dict[str, float]:
    """GiB that this process's fullest device has in use, and had at most; nothing where the backend does not say (CPUs)."""
    known = [statistics for device in jax.local_devices() if (statistics := device.memory_stats())]
    names = {"memory/in_use_gib": "bytes_in_use", "memory/peak_gib": "peak_bytes_in_use"}
    return {name: max(s.get(key, 0) for s in known) / 2**30 for name, key in names.items()} if known else {}


def _rewind(path: pathlib.Path, step: int, starting: str | None) -> None:
    def keep(row: dict[str, Any]) -> bool:
        return row["step"] <= step and (starting is None or row.get("stage") != starting)

    _write_rows(path, [row for row in read_rows(path) if keep(row)])


def _drop_unfinished_evaluation(path: pathlib.Path, metrics: pathlib.Path) -> None:
    """An evaluation is made again where its verdicts, but not its metrics had been written."""
    finished = {(row["step"], row["stage"]) for row in read_rows(metrics) if "eval/accuracy" in row}
    _write_rows(path, [row for row in read_rows(path) if (row["step"], row["stage"]) in finished])


def _write_rows(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    atomic_write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
