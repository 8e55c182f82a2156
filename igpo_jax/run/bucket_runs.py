"""Runs whose folder is in a bucket, such as gs://BUCKET/RUN.

Each process works in a local copy of the folder, see runtime/bucket_folders.py. Process 0 uploads changed files regularly and
before each checkpoint. Checkpoints are not part of the copy. Orbax writes them directly to the bucket, because all processes
write them together.

The logs in the bucket always contain the lines that were written before the newest checkpoint was saved. They may also contain
lines of later steps. As on a disk, a run that continues from this checkpoint removes the later lines, see `MetricsWriter`."""

import contextlib
import functools
import logging
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax

from igpo_jax.run.metrics import LOGS
from igpo_jax.runtime.bucket_folders import address_of, copy_of, download, opened_copy
from igpo_jax.runtime.buckets import be_patient, is_address, is_folder, path_of, repeated_requests
from igpo_jax.runtime.checks import require
from igpo_jax.runtime.distributed import raise_on_all_hosts, sole_writer

SETTINGS = ("config.json", "data.json", "tokenizer.model", "result.json")

log = logging.getLogger(__name__)


def checkpoints_of(workdir: pathlib.Path) -> Any:
    """Returns the folder of a run's checkpoints. If `workdir` is the local copy of a folder in a bucket, the result is an
    epath.Path in the bucket, because checkpoints are not part of the copy."""
    return path_of(address_of(workdir)) / "checkpoints"


def is_run(path: str | os.PathLike) -> bool:
    """Returns whether a folder, which may be in a bucket, has the checkpoints of a run."""
    return is_folder(path_of(path) / "checkpoints")


def run_folder(path: str | os.PathLike) -> pathlib.Path:
    """Returns a run's folder on this machine. If `path` is the address of a run in a bucket, downloads the run's settings, once
    per process. Raises ValueError if there is no run at this address, or if the bucket cannot be read."""
    return _downloaded_settings(os.fspath(path).rstrip("/")) if is_address(path) else pathlib.Path(path)


@functools.cache
def _downloaded_settings(address: str) -> pathlib.Path:
    folder = copy_of(address, "reader")
    download(folder, SETTINGS)
    require((folder / "config.json").is_file(), f"{address} holds no run: it has no config.json")
    return folder


@contextlib.contextmanager
def opened_workdir(workdir: str | os.PathLike) -> Iterator[tuple[pathlib.Path, Callable[[], None]]]:
    """Context manager that keeps other runs from writing into the folder `workdir`, which may be in a bucket. Yields the folder
    on this machine, and a function that uploads changed files. All processes of the run must enter this context manager."""
    if not is_address(workdir):
        original = address_of(pathlib.Path(workdir).absolute())
        require(not is_address(original), f"{workdir} is a copy of {original}; give this address")
        with sole_writer(workdir):
            yield pathlib.Path(workdir).absolute(), lambda: None
        return
    with contextlib.ExitStack() as held:
        upload: Callable[[], None] = lambda: None  # noqa: E731
        with raise_on_all_hosts():
            folder = copy_of(os.fspath(workdir), f"process-{jax.process_index()}")
            if jax.process_index() == 0:
                upload = held.enter_context(opened_copy(folder, (*SETTINGS, *LOGS), ("*", "tensorboard/*")))
        with raise_on_all_hosts():
            if jax.process_index():
                download(folder, SETTINGS)
        be_patient()
        try:
            yield folder, upload
        finally:
            if repeated_requests():
                log.warning("%d requests to the bucket were repeated", repeated_requests())
