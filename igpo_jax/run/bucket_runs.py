"""Runs whose folder is in a bucket, such as gs://BUCKET/RUN.

Objects in a bucket cannot be appended to. A process therefore works in a copy of the folder on its own disk, and process 0
uploads the files that have changed: before each checkpoint, every `UPLOAD_SECONDS`, and at the end. Only checkpoints are not part
of the copy, because all processes write them together. Orbax writes them to the bucket directly.

The logs in the bucket may have lines of later steps than the newest checkpoint, but they always have those of earlier steps. As
on a disk, a run that continues from this checkpoint removes the later lines, see `MetricsWriter`."""

import contextlib
import functools
import logging
import os
import pathlib
import shutil
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax

from igpo_jax.run.metrics import LOGS
from igpo_jax.runtime.bucket_locks import BucketLock
from igpo_jax.runtime.buckets import (
    BucketError,
    be_patient,
    check_download,
    copies_folder,
    explained_errors,
    filesystem,
    is_address,
    is_folder,
    path_of,
    repeated_requests,
    write_object,
)
from igpo_jax.runtime.checks import require
from igpo_jax.runtime.distributed import check_shared, raise_on_all_hosts, sole_writer
from igpo_jax.runtime.files import require_plain_name

SETTINGS = ("config.json", "data.json", "tokenizer.model", "result.json")
UPLOAD_SECONDS = 60.0

log = logging.getLogger(__name__)


def copy_of(address: str, user: str) -> pathlib.Path:
    """Returns the folder on this machine for the copy of a folder in a bucket. `user` keeps copies apart that are used at the
    same time. `address_of` is the inverse of this function."""
    parts = address.removeprefix("gs://").rstrip("/").split("/")
    require(len(parts) > 1, f"{address} is a bucket; give a folder in it, such as {address.rstrip('/')}/run")
    for part in parts:
        require_plain_name(part, address)
        require(not set(part) & set("*?[]"), f"{address}: *, ?, [ and ] select several objects; choose another name")
    return copies_folder().joinpath(user, *parts)


def address_of(folder: pathlib.Path) -> str:
    """Returns the address in a bucket that a folder on this machine is a copy of, or the path itself if it is no copy."""
    copies = copies_folder()
    return "gs://" + "/".join(folder.relative_to(copies).parts[1:]) if folder.is_relative_to(copies) else str(folder)


def checkpoints_of(workdir: pathlib.Path) -> Any:
    """Returns the folder of a run's checkpoints. If `workdir` is a copy, this is an epath.Path in the bucket."""
    return path_of(address_of(workdir)) / "checkpoints"


def is_run(path: str | os.PathLike) -> bool:
    """Returns whether a folder, which may be in a bucket, has the checkpoints of a run."""
    return is_folder(path_of(path) / "checkpoints")


def run_folder(path: str | os.PathLike) -> pathlib.Path:
    """Returns a run's folder on this machine. If `path` is the address of a run in a bucket, downloads the run's settings, once
    per process. Raises ValueError if there is no run in the bucket or if it cannot be read."""
    return _downloaded_settings(os.fspath(path).rstrip("/")) if is_address(path) else pathlib.Path(path)


@functools.cache
def _downloaded_settings(address: str) -> pathlib.Path:
    folder = copy_of(address, "reader")
    download(folder, SETTINGS)
    require((folder / "config.json").is_file(), f"{address} holds no run: it has no config.json")
    return folder


def download(folder: pathlib.Path, names: tuple[str, ...]) -> None:
    """Downloads files from the bucket into the copy `folder`. Deletes files that the bucket does not have."""
    files = filesystem()
    files.invalidate_cache()
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        address, partial = f"{address_of(folder)}/{name}", folder / f"{name}.{os.getpid()}.partial"
        with explained_errors(address, "read"):
            try:
                check_download(files.info(address))
                files.get_file(address, str(partial))
                partial.replace(folder / name)
            except FileNotFoundError:
                (folder / name).unlink(missing_ok=True)


class Uploader(contextlib.AbstractContextManager):
    """Context manager that uploads changed files of a copy to the bucket every `UPLOAD_SECONDS`, and at the end.

    Args:
        check: function that raises an error if this process may not write any more."""

    def __init__(self, folder: pathlib.Path, check: Callable[[], None]):
        self._folder, self._check = folder, check
        self._uploaded = {path: stamp for path, stamp in self._files()}
        self._alone = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._upload_regularly, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        try:
            self.upload()
        except (ValueError, OSError) as error:  # the body may have raised an error that says more
            log.warning("%s; what was not uploaded is in %s", error, copies_folder())

    def upload(self) -> None:
        """Uploads the files that have changed. Raises ValueError if this fails, or if this process has lost the run's lock."""
        with self._alone:
            self._check()
            for path, stamp in self._files():
                if self._uploaded.get(path) != stamp:
                    address = f"{address_of(self._folder)}/{path.relative_to(self._folder).as_posix()}"
                    write_object(address, path.read_bytes())
                    self._uploaded[path] = stamp

    def _files(self) -> list[tuple[pathlib.Path, tuple[int, int]]]:
        """Returns the files of the copy with their sizes and times of change. config.json is the last one, because a folder with
        this file counts as a run."""
        paths = [path for pattern in ("*", "tensorboard/*") for path in self._folder.glob(pattern)]
        paths = sorted((p for p in paths if p.is_file() and p.suffix != ".partial"), key=lambda p: (p.name == "config.json", p))
        return [(path, (path.stat().st_size, path.stat().st_mtime_ns)) for path in paths]

    def _upload_regularly(self) -> None:
        while not self._stop.wait(UPLOAD_SECONDS):
            try:
                self.upload()
            except FileNotFoundError:  # a file was renamed meanwhile
                pass
            except BucketError as error:
                log.warning("%s; trying again in %d seconds", error, UPLOAD_SECONDS)
            except ValueError:  # the lock is lost, which `BucketLock` reports
                return


@contextlib.contextmanager
def opened_workdir(workdir: str | os.PathLike) -> Iterator[tuple[pathlib.Path, Callable[[], None]]]:
    """Context manager in whose body this run alone writes into the folder `workdir`, which may be in a bucket. Yields the folder
    on this machine, and a function that uploads changed files. All processes of the run must enter it."""
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
                lock = held.enter_context(BucketLock(address_of(folder)))
                shutil.rmtree(folder / "tensorboard", ignore_errors=True)
                download(folder, (*SETTINGS, *LOGS))
                upload = held.enter_context(Uploader(folder, lock.check)).upload
        with raise_on_all_hosts():
            if jax.process_index():
                download(folder, SETTINGS)
        be_patient()
        try:
            yield folder, upload
        finally:
            if repeated_requests():
                log.warning("%d requests to the bucket were repeated", repeated_requests())


def share_settings(workdir: pathlib.Path, upload: Callable[[], None]) -> None:
    """Makes the files that process 0 has written into the run's folder visible to all processes. Raises ValueError if that is
    not possible."""
    if not is_address(address_of(workdir)):
        check_shared(workdir)
        return
    with raise_on_all_hosts():
        upload()
    with raise_on_all_hosts():
        if jax.process_index():
            download(workdir, SETTINGS)
