"""Checks a run's folder before the run continues or its results are used: no files and no log lines may be missing, no log
lines of another run may have been added, and no symbolic link may lead out of the folder. Without these checks, the run could
delete lines of its logs, mix two runs, or write outside of its folder."""

import io
import itertools
import os
import pathlib
import zlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from igpo_jax.config import Config
from igpo_jax.run.bucket_runs import checkpoints_of
from igpo_jax.run.checkpoint_integrity import NO_LINK, are_log_sums, other_identity, read_metadata, steps_in
from igpo_jax.run.metrics import LOGS, read_log
from igpo_jax.runtime.bucket_folders import address_of
from igpo_jax.runtime.buckets import path_of
from igpo_jax.runtime.checks import require
from igpo_jax.runtime.files import is_inside, read_json

STAGES = ("sft", "rl")
RESTORE = "restore it from a copy, or start over in another --workdir"


def has_checkpoints(workdir: pathlib.Path) -> bool:
    return any(steps_in(checkpoints_of(workdir) / stage) for stage in STAGES)


def check_links(workdir: pathlib.Path) -> None:
    """Raises ValueError if a symbolic link in the run's folder leads out of this folder. The folder may come from an untrusted
    source, and the run would write to the target of the link. The run's folder itself may be a link. Also raises ValueError if
    a checkpoint or an unfinished save is a link, which neither Orbax nor `Checkpoints` could delete."""
    saved, events = workdir / "checkpoints", workdir / "tensorboard"
    written = (events, *events.glob("*"), *map(workdir.joinpath, LOGS), saved, *saved.glob("*"), *saved.glob("*/*"))
    for path in written:
        place = f"{path} leads to {os.path.realpath(path)}, outside of the run"
        require(is_inside(path, workdir), f"{place}; move the run to where it shall be and give this place as --workdir")
    for path in saved.glob("*/*"):
        require(not path.is_symlink(), f"{path} {NO_LINK}")


def check_identities(workdir: pathlib.Path, identities: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises ValueError if the newest readable checkpoint of a stage was saved with another configuration or with other data
    than those of the present run. A change is found even if config.json or data.json is missing or has been edited.
    `identities` maps each stage to the fingerprints of the present run, see `other_identity`."""
    for stage in STAGES:
        folder = checkpoints_of(workdir) / stage
        checkpoints = [folder / str(step) for step in reversed(steps_in(folder))]
        readable = ((checkpoint, about) for checkpoint in checkpoints if (about := read_metadata(checkpoint)) is not None)
        for checkpoint, about in itertools.islice(readable, 1):
            other = other_identity(stage, about, identities[stage])
            require(not other, f"{checkpoint} {other}")


def check_logs(workdir: pathlib.Path, checkpoint: pathlib.Path | None, step: int, stages: Collection[str]) -> None:
    """Raises ValueError if lines that a log had when the given checkpoint was saved are missing or have changed, or if lines
    were added since that the run has not written. The metadata of the checkpoint contains the size and the CRC-32 of each log
    (see `MetricsWriter.sums`). Checkpoints that were saved by earlier versions of this package do not contain them, so their
    logs are not checked.

    Args:
        checkpoint: the checkpoint from which the run continues, or None if the run starts again.
        step: number of optimizer updates from which the run continues.
        stages: names of the stages that the run has."""
    sums: Mapping[str, Sequence[int]] = dict.fromkeys(LOGS, (0, 0))
    if checkpoint is not None:
        sums = (read_metadata(checkpoint) or {}).get("logs", {})
    accept = "give --accept_loss to continue with the logs as they are"
    _check_sums(workdir, sums, f"{checkpoint} was saved; {RESTORE}, or {accept}")
    for name, (size, _) in sums.items():
        file = workdir / name
        _, begin = _beginning(file, size)
        for number, row in enumerate(read_log(file)[begin:], begin + 1):
            # An evaluation may come after the checkpoint that it evaluates.
            first = step + (name == "rollouts.jsonl" or (name == "metrics.jsonl" and "eval/accuracy" not in row))
            stage = row.get("stage", "rl")
            foreign = (
                f"{file}:{number}: step {row['step']} of the stage {stage} is not of this run, which continues from step {step}"
            )
            require(row["step"] >= first and stage in stages, f"{foreign}; remove this line, or {accept}")


def check_finished_logs(workdir: pathlib.Path) -> None:
    """Raises ValueError if lines that a log had when the run finished are missing or have changed, or if lines were added
    since. The result.json of a finished run contains the size and the CRC-32 of each log. If it was written by an earlier
    version of this package, it does not contain them, so the logs are compared with the newest checkpoint, after which the run
    may have added lines. If the run is not finished, checks nothing."""
    result = workdir / "result.json"
    if not result.is_file():
        return
    sums = at_end = read_json(result).get("logs")
    if sums is None:
        folders = [checkpoints_of(workdir) / stage for stage in STAGES]
        saved = [folder / str(step) for folder in folders for step in steps_in(folder)]
        sums = (read_metadata(saved[-1]) or {}).get("logs", {}) if saved else {}
    require(are_log_sums(sums), f"{result}: logs={repr(sums)[:100]} are no checksums of logs; restore it from a copy")
    advice = "restore it from a copy, or train the run again with --accept_loss to keep the logs as they are"
    _check_sums(workdir, sums, f"the run finished; {advice}")
    for name in LOGS if at_end is not None else ():
        size, _ = sums.get(name, (0, 0))
        added = f"{workdir / name} has lines after its first {size} bytes, which were added since the run finished; {advice}"
        require(_size(workdir / name) <= size, added)


def log_sums(workdir: pathlib.Path) -> dict[str, list[int]]:
    """Returns {file name: [size in bytes, CRC-32]} of the logs on the disk, as `MetricsWriter.sums` does."""
    sizes = {name: _size(workdir / name) for name in LOGS if (workdir / name).is_file()}
    return {name: [size, _beginning(workdir / name, size)[0]] for name, size in sizes.items()}


def _check_sums(workdir: pathlib.Path, sums: Mapping[str, Sequence[int]], told: str) -> None:
    """Raises ValueError if a log does not begin with the bytes that `sums` describe. `told` is the end of the message: an event
    at which the log had these bytes, and what to do."""
    for name, (size, crc) in sums.items():
        file = workdir / name
        what = "has lost or changed lines since" if file.is_file() else "is missing, which had lines when"
        require(_beginning(file, size)[0] == crc, f"{file} {what} {told}")


def _size(file: pathlib.Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def _beginning(file: pathlib.Path, size: int) -> tuple[int, int]:
    """Returns the CRC-32 of the first `size` bytes of a file and their number of line breaks. A missing file is treated as an
    empty file."""
    crc = lines = 0
    with file.open("rb") if file.is_file() else io.BytesIO() as opened:
        while part := opened.read(max(0, min(size, 1 << 20))):
            crc, lines, size = zlib.crc32(part, crc), lines + part.count(b"\n"), size - len(part)
    return crc, lines


def check_stages(workdir: pathlib.Path, config: Config, accept_loss: bool) -> None:
    """Calls `check_stage` for each stage of the run. Passes the step of the stage's newest checkpoint as `done`, even if this
    checkpoint is unreadable. With sft.epochs, the number of updates is unknown before the data is read; then `Stage.restore`
    makes the only check."""
    if config.sft.epochs:
        return
    for stage, total in {"sft": config.sft.updates, "rl": config.rl.iterations}.items():
        if total:
            check_stage(workdir, config, stage, max(steps_in(checkpoints_of(workdir) / stage), default=None), accept_loss)


def check_stage(workdir: pathlib.Path, config: Config, stage: str, done: int | None, accept_loss: bool) -> None:
    """Raises ValueError if other files in the run's folder show that training had gone beyond the newest checkpoint of a stage.
    If training continued from this checkpoint, it would delete the log lines of a later stage, or all log lines of this stage.

    Args:
        done: number of iterations in the stage's newest checkpoint, or None if the stage has no checkpoints.
        accept_loss: whether a stage without checkpoints may start again even if the logs show that it was trained before."""
    folder, later, updates = checkpoints_of(workdir) / stage, checkpoints_of(workdir) / "rl", config.sft.updates
    if stage == "sft" and done != updates and steps_in(later):
        raise ValueError(
            f"{folder} has no checkpoint of the end of the supervised stage (update {updates}), from which the RL stage in {later} "
            f"began; {RESTORE}"
        )
    if done is None and not accept_loss:
        again = f"{RESTORE}, or give --accept_loss to train the stage again, which cuts its logs"
        logged = max((row["step"] for name in LOGS for row in read_log(workdir / name)), default=0)
        # A stage waits until its first checkpoint is saved, so a log that goes further shows that there was one.
        first = updates if stage == "rl" else min(config.sft.checkpoint_every or updates, updates)
        require(logged <= first, f"{folder} has no checkpoints, but the logs go on to update {logged}; {again}")
        require(not (workdir / "result.json").is_file(), f"{folder} has no checkpoints, but the run has a result.json; {again}")


def check_result(workdir: pathlib.Path, newest: Any, step: int) -> None:
    """Raises ValueError if the run finished with a later update than `step`, that of its newest checkpoint `newest`. If
    training continued from this checkpoint, it would cut the logs and replace the results of a finished run."""
    lost = lost_checkpoint(workdir, newest, step)
    require(not lost, f"{lost}; {RESTORE}, or give --accept_loss to train the rest again, which cuts the logs")


def lost_checkpoint(workdir: pathlib.Path, newest: Any, step: float) -> str:
    """Returns a text that says that the run finished with a later update than `step`, that of its newest checkpoint `newest`.
    Returns "" if the run did not."""
    file = workdir / "result.json"
    updates = read_json(file).get("updates", 0) if file.is_file() else 0
    lost = f"the run finished with update {updates} ({file.name}), but its newest checkpoint, {newest}, is of update {step}"
    return lost if type(updates) is int and updates > step else ""


def discard_result(workdir: pathlib.Path) -> None:
    """Removes the result.json of a run that trains further, also from the bucket if the run's folder is in one. It would no
    longer describe the logs, and launchers and reports would take the run for finished."""
    for folder in (workdir, path_of(address_of(workdir))):
        (folder / "result.json").unlink(missing_ok=True)
