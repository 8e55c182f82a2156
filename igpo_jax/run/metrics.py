"""Writes and reads the logs of a run: metrics.jsonl, rollouts.jsonl, evaluations.jsonl and TensorBoard events. In all logs, the
step is the number of optimizer updates since the start of the run, counted over both stages."""

import contextlib
import errno
import functools
import glob
import itertools
import math
import os
import pathlib
import re
import socket
import zlib
from collections.abc import Callable, Iterator
from typing import Any, TextIO

import jax
import numpy as np

from igpo_jax.run.events import EventFile
from igpo_jax.runtime.checks import require
from igpo_jax.runtime.distributed import all_gather_hosts
from igpo_jax.runtime.files import (
    as_json_lines,
    atomic_write,
    named_errors,
    numbered_lines,
    parse_json,
    renamed,
    require_file,
)

NO_FSYNC = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)  # errors of a file system without fsync
LOGS = ("metrics.jsonl", "rollouts.jsonl", "evaluations.jsonl")
NEEDED = ("config.json", "data.json", "tokenizer.model")  # other files without which a run cannot be used
BACK = "put the folder back as it was; the same command then continues the run"
BENCHMARK_ACCURACY = re.compile("eval/(.+)/accuracy")
# Description of a valid value -> (keys of rollouts.jsonl with such values, function that checks a value). Earlier versions
# wrote fewer keys.
ROLLOUT_VALUES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "text": ("text question answer trace", lambda value: isinstance(value, str)),
    "first or hinted": ("try", lambda value: value in ("first", "hinted")),
    "ok, timeout or error": ("outcome", lambda value: value in ("ok", "timeout", "error")),
    "true or false": ("correct rescued", lambda value: isinstance(value, bool)),
    "a list of texts": ("tokens", lambda value: _is_list(value, str)),
    "a list of true and false": ("hint", lambda value: _is_list(value, bool)),
    "a list of numbers of steps": ("unmask_step", lambda value: _is_list(value, int) and all(-1 <= v < 2**31 for v in value)),
    "a place or null": ("end", lambda value: value is None or (type(value) is int and 0 <= value < 2**31)),
    "a finite number": ("reward", lambda value: _is_metric(value) and value is not None and math.isfinite(value)),
    "a text, a number or null": ("extracted_answer", lambda value: isinstance(value, str) or _is_metric(value)),
}


class MetricsWriter(contextlib.AbstractContextManager):
    """Appends records to the logs of a run, on process 0 only. A record is one line of a JSON Lines file. When a run resumes at
    `step`, the constructor removes all records of later steps. If `starting` names a stage, the constructor also removes all
    records of this stage. If the logs contain only the metrics or only the verdicts of the evaluation at `step`, the
    constructor removes them, because the resumed run repeats this evaluation. Therefore the logs of a resumed run equal those
    of an uninterrupted run. `upload` is called whenever a checkpoint is about to be saved, see `run.bucket_runs`."""

    def __init__(
        self,
        workdir: pathlib.Path,
        step: int,
        *,
        starting: str | None = None,
        upload: Callable[[], None] = lambda: None,
    ):
        self._workdir, self._step, self._upload = workdir, step, upload
        self._files: dict[str, TextIO] = {}
        self._needed: list[pathlib.Path] = []
        self._sums: dict[str, list[int]] = {}  # name of a log -> [bytes, CRC-32]
        if jax.process_index():
            return
        self._needed = [file for file in (workdir / name for name in NEEDED) if file.is_file()]
        kept = {name: [row for row in read_log(workdir / name) if row["step"] <= step] for name in LOGS}
        metrics, verdicts = kept["metrics.jsonl"], kept["evaluations.jsonl"]
        evaluated = {_place(row) for row in metrics if "eval/accuracy" in row}
        kept["evaluations.jsonl"] = [row for row in verdicts if _place(row) in evaluated]
        # Evaluations of earlier steps are not repeated.
        lost = {place for place in evaluated - set(map(_place, verdicts)) if place[0] == step}
        kept["metrics.jsonl"] = [row for row in metrics if "eval/accuracy" not in row or _place(row) not in lost]
        for name, rows in kept.items():
            content = as_json_lines(row for row in rows if starting is None or row.get("stage") != starting)
            atomic_write(workdir / name, content)
            self._sums[name] = _extended([0, 0], content)
            self._files[name] = (workdir / name).open("a", encoding="utf-8")

    @functools.cached_property
    def _events(self) -> EventFile:
        """TensorBoard events. The file is created when the first value is written, so that opening a finished run again adds no
        file."""
        folder = self._workdir / "tensorboard"
        _rename_events(folder)
        return EventFile(folder, self._step + 1 if self._step else 0)

    def __exit__(self, error, *_):
        for file in (*self._files.values(), *([self._events] if "_events" in vars(self) else [])):
            with contextlib.suppress(*[OSError] * (error is not None)):  # closing again writes what could not be written
                file.close()

    def sums(self) -> dict[str, list[int]]:
        """Makes sure that all log lines are on the disk, and in the bucket if the run's folder is in one. Returns {file name:
        [size in bytes, CRC-32]} with an entry for each log. Returns {} on processes other than 0. Raises ValueError if the logs
        are no longer in the run's folder."""
        self._require_place()
        for file in self._files.values():
            try:
                os.fsync(file.fileno())
            except OSError as error:
                if error.errno not in NO_FSYNC:
                    raise
        self._upload()
        return dict(self._sums)

    def write(self, step: int, stage: str, scalars: dict[str, float]) -> None:
        scalars = {name: float(value) for name, value in scalars.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        self._append("metrics.jsonl", [{"step": step, "stage": stage, **finite}])
        if self._files:
            for name, value in scalars.items():
                self._events.add_scalar(name, value, step)

    def write_rollouts(self, rows: list[dict[str, Any]]) -> None:
        """Appends sampled completions to rollouts.jsonl and TensorBoard. All of them must be from the same step."""
        self._append("rollouts.jsonl", rows)
        if self._files and rows:
            self._events.add_text("rollout/completions", "\n\n".join(map(_as_markdown, rows)), rows[0]["step"])

    def write_histograms(self, step: int, values: dict[str, np.ndarray]) -> None:
        """Writes a histogram of each array's finite values to TensorBoard."""
        for name, array in values.items():
            finite = np.asarray(array, float)[np.isfinite(array)]
            if self._files and finite.size:
                self._events.add_histogram(name, finite, step)

    def write_evaluation(
        self, step: int, stage: str, correct: np.ndarray, graded: np.ndarray, scalars: dict[str, float]
    ) -> None:
        """Logs an evaluation on the test problems. Appends the verdict on each problem (1 for correct, 0 for wrong, null for
        not graded) to evaluations.jsonl, and `scalars` to metrics.jsonl and TensorBoard. `correct` and `graded` are bool
        [problems]. `scalars` must contain eval/accuracy."""
        verdicts = [int(right) if known else None for right, known in zip(correct, graded, strict=True)]
        self._append("evaluations.jsonl", [{"step": step, "stage": stage, "correct": verdicts}])
        self.write(step, stage, scalars)

    def _append(self, name: str, rows: list[dict[str, Any]]) -> None:
        if self._files:
            self._require_place()
            content = as_json_lines(rows)
            with named_errors(self._workdir / name):
                self._files[name].write(content)
                self._files[name].flush()
            self._sums[name] = _extended(self._sums[name], content)

    def _require_place(self) -> None:
        """Raises ValueError if a log or another file of the run has been moved or deleted, such as with the whole folder.
        Otherwise, this process would go on with these logs, and with checkpoints in a new folder of the old name."""
        for name, file in self._files.items():
            path = self._workdir / name
            same = path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno()))
            require(same, f"{path} was moved, deleted or replaced while the run was writing it; {BACK}")
        for path in self._needed:
            require(path.is_file(), f"{path} was moved or deleted while the run needed it; {BACK}")


def _place(row: dict[str, Any]) -> tuple[int, str]:
    return row["step"], row["stage"]


def _extended(size_and_crc: list[int], content: str) -> list[int]:
    size, crc = size_and_crc
    encoded = content.encode("utf-8")
    return [size + len(encoded), zlib.crc32(encoded, crc)]


def _rename_events(folder: pathlib.Path) -> None:
    """Replaces the name of this host, which earlier versions wrote, in the file names of TensorBoard logs by a number, because
    the folder may be published."""
    for file in folder.glob(f"events.out.tfevents.*.{glob.escape(socket.gethostname())}"):
        begin = file.name.removesuffix(socket.gethostname())
        file.rename(next(new for i in itertools.count() if not (new := folder / f"{begin}{i}").exists()))


def _as_markdown(row: dict[str, Any]) -> str:
    """Formats a logged completion as Markdown. Puts generated text into indented code blocks, because no generated text can
    close a code block of this kind."""
    verdict = {"timeout": "no verdict in time", "error": "the grader failed"}.get(row.get("outcome", "ok"))
    verdict = verdict or ("correct" if row["correct"] else "wrong")
    parts = {"question": row["question"], "completion": row["text"]}
    if "extracted_answer" in row:
        parts["answer read"] = str(row["extracted_answer"])
    blocks = (f"{name}:\n\n" + "\n".join(f"    {line}" for line in text.splitlines()) for name, text in parts.items())
    return f"**{row['try']} try, {verdict}, reward {row['reward']:g}**\n\n" + "\n\n".join(blocks)


def read_rows(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Returns the JSON objects in a JSON Lines log, one per line, or [] if the file does not exist. Skips a truncated last
    line, which is no JSON object and has no line break, and blank lines at the end. Raises ValueError if another line is not a
    JSON object, if a line is too long, or if the path is that of a folder or of another thing that is no file."""
    return list(_rows(path))


def _rows(path: str | os.PathLike) -> Iterator[dict[str, Any]]:
    if not os.path.lexists(path):
        return
    require_file(pathlib.Path(path))
    blank = 0  # number of the first blank line
    with open(path, "rb") as file:
        for number, line in numbered_lines(file, path):
            if line == b"\n":
                blank = blank or number
                continue
            row = None
            with contextlib.suppress(ValueError):
                row = parse_json(line.decode("utf-8", "replace"), path)
            if not isinstance(row, dict) and not line.endswith(b"\n") and not blank:
                return  # a killed process has left this line, or a process is still writing it
            if not isinstance(row, dict) or blank:
                raise ValueError(f"{path}:{blank or number} is no JSON object; repair or remove this line")
            yield renamed(row)


def read_log(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Returns the records in metrics.jsonl, rollouts.jsonl or evaluations.jsonl. Like `read_rows`, returns [] for a missing
    file, skips a truncated last line, and raises ValueError for other malformed lines. Also raises ValueError for a record that
    `MetricsWriter` would not write, such as a record without a step, with a metric that is not a number, or with a step that is
    not above that of the record before. (Evaluations and other records of a stage are counted separately. Records of
    rollouts.jsonl that follow each other may have the same step.)"""
    rows, name = list[dict[str, Any]](), pathlib.Path(path).name
    steps = dict[tuple[Any, bool], int]()  # (stage, is evaluation) -> step of the last record
    repeated = name == "rollouts.jsonl"  # several completions have the same step
    for number, row in enumerate(_rows(path), 1):
        step, stage, correct = row.get("step"), row.get("stage"), row.get("correct")
        wrong = ""
        if type(step) is not int or not 0 <= step < 2**63:
            wrong = f"step={repr(step)[:100]} is not a number of updates"
        elif name != "rollouts.jsonl" and stage not in ("sft", "rl"):
            wrong = f"stage={repr(stage)[:100]} is neither sft nor rl"
        elif name == "evaluations.jsonl" and not (isinstance(correct, list) and all(v in (0, 1, None) for v in correct)):
            wrong = f"correct={repr(correct)[:100]} is not a list of verdicts"
        elif name == "metrics.jsonl":
            foreign = [key for key, value in row.items() if key not in ("step", "stage") and not _is_metric(value)]
            wrong = f"{repr(foreign[0])[:100]}: {repr(row[foreign[0]])[:100]} is not a number" if foreign else ""
        elif name == "rollouts.jsonl":
            wrong = _foreign_in_rollout(row)
        if type(step) is int and not wrong:
            kind = ("rl", False) if repeated else (stage, "eval/accuracy" in row)
            last, steps[kind] = steps.get(kind, -1), step
            wrong = f"step {step} of the stage {kind[0]} comes after step {last}" if step < last + (not repeated) else ""
        if wrong:
            raise ValueError(f"{path}:{number}: {wrong}; repair or remove this line")
        rows.append(row)
    return rows


def _foreign_in_rollout(row: dict[str, Any]) -> str:
    for form, (keys, is_one) in ROLLOUT_VALUES.items():
        for key in keys.split():
            if key in row and not is_one(row[key]):
                return f"{key}={repr(row[key])[:100]} is not {form}"
    lengths = {key: len(row[key]) for key in ("tokens", "unmask_step", "hint") if key in row}
    return f"the lists have different lengths, {lengths}" if len(set(lengths.values())) > 1 else ""


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(type(part) is kind for part in value)


def _is_metric(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value is None or (number and (isinstance(value, float) or abs(value) < 2**63))


def lost_verdicts(metrics: list[dict[str, Any]], verdicts: list[dict[str, Any]]) -> list[tuple[int, str]]:
    """Returns (step, stage) of the evaluations in metrics.jsonl that evaluations.jsonl lacks. `MetricsWriter` writes the
    verdicts first, so they were deleted later. `metrics` and `verdicts` are the records in these files."""
    return sorted({_place(row) for row in metrics if "eval/accuracy" in row} - set(map(_place, verdicts)))


def is_evaluated(workdir: pathlib.Path, step: int, stage: str) -> bool:
    """Returns whether the logs contain both the metrics and the verdicts of the evaluation at the given step of a stage.
    Process 0 reads the logs and sends the result to all processes."""
    names = {"metrics.jsonl": "eval/accuracy", "evaluations.jsonl": "correct"} if jax.process_index() == 0 else {}
    found = [(step, stage) in {_place(row) for row in read_log(workdir / name) if key in row} for name, key in names.items()]
    return bool(all_gather_hosts(all(found))[0])


def benchmark_accuracies(row: dict[str, Any]) -> dict[str, str]:
    """Returns {benchmark: name of the metric} for the accuracies on benchmarks in a record of metrics.jsonl."""
    found = {key: BENCHMARK_ACCURACY.fullmatch(key) for key in row}
    return {match[1]: key for key, match in found.items() if match and row[key] is not None}


def last_logged(workdir: pathlib.Path, stage: str, name: str) -> float | None:
    """Returns the newest logged value of a metric in a stage, or None if the metric was never logged. Process 0 reads the log
    and sends the value to all processes."""
    rows = read_log(workdir / "metrics.jsonl") if jax.process_index() == 0 else []
    values = [math.nan, *(row[name] for row in rows if row["stage"] == stage and name in row)]
    value = float(all_gather_hosts(np.float64(values[-1]))[0])
    return None if math.isnan(value) else value


def device_memory() -> dict[str, float]:
    """Returns the current and the peak memory use in GiB. Each number is the maximum over the devices of this process. Returns
    {} if the backend does not report memory use, as on CPUs."""
    known = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    names = {"memory/in_use_gib": "bytes_in_use", "memory/peak_gib": "peak_bytes_in_use"}
    return {name: max(stats.get(key, 0) for stats in known) / 2**30 for name, key in names.items()} if known else {}
