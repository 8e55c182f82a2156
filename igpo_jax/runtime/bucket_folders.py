"""Writes folders in a bucket, such as gs://BUCKET/RUN.

A process works in a copy of the folder on its own disk, because objects in a bucket cannot be appended to. Process 0 uploads
the files that have changed, every `UPLOAD_SECONDS` and at the end."""

import atexit
import contextlib
import logging
import os
import pathlib
import shutil
import threading
from collections.abc import Callable, Collection, Iterator

import jax

from igpo_jax.runtime import interrupts
from igpo_jax.runtime.bucket_locks import BucketLock
from igpo_jax.runtime.buckets import (
    LOCK,
    MOST_DOWNLOADED,
    BucketError,
    be_patient,
    check_download,
    copies_folder,
    explained_errors,
    filesystem,
    is_address,
    local_file,
    sizes_in,
    upload_file,
    write_object,
)
from igpo_jax.runtime.checks import require
from igpo_jax.runtime.distributed import all_gather_hosts, check_shared, raise_on_all_hosts
from igpo_jax.runtime.files import require_plain_name
from igpo_jax.runtime.locks import locked

UPLOAD_SECONDS = 60.0
RESULTS = (".json", ".jsonl")  # files that a command reads again when it continues

log = logging.getLogger(__name__)


def copy_of(address: str, user: str) -> pathlib.Path:
    """Returns the path on this machine for the copy of a folder in a bucket. Copies that are used at the same time need
    different values of `user`, which is a part of the path. `address_of` is the inverse of this function."""
    parts = address.removeprefix("gs://").rstrip("/").split("/")
    require(len(parts) > 1, f"{address} is a bucket; give a folder in it, such as {address.rstrip('/')}/run")
    for part in parts:
        require_plain_name(part, address)
        require(not set(part) & set("*?[]"), f"{address}: *, ?, [ and ] select several objects; choose another name")
    return copies_folder().joinpath(user, *parts)


def address_of(folder: pathlib.Path) -> str:
    """Returns the address of the folder in a bucket of which `folder` is the copy. If `folder` is not a copy, returns its
    path."""
    copies = copies_folder()
    return "gs://" + "/".join(folder.relative_to(copies).parts[1:]) if folder.is_relative_to(copies) else str(folder)


def download(folder: pathlib.Path, names: Collection[str]) -> None:
    """Downloads the files `names` from the bucket into the copy `folder`. If the bucket does not have one of these files,
    deletes it from the copy."""
    files = filesystem()
    files.invalidate_cache()
    for name in names:
        address, target = f"{address_of(folder)}/{name}", folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
        with explained_errors(address, "read"):
            try:
                check_download(files.info(address))
                files.get_file(address, str(partial))
                partial.replace(target)
            except FileNotFoundError:
                target.unlink(missing_ok=True)


def result_names(address: str) -> list[str]:
    """Returns the names of the result files (.json and .jsonl) in a folder of a bucket and in its direct subfolders. Raises
    ValueError if these files have more than `MOST_DOWNLOADED` bytes together."""
    sizes = {name: size for name, size in sizes_in(address).items() if name.endswith(RESULTS) and name.count("/") <= 1}
    for name in sizes:
        for part in name.split("/"):
            require_plain_name(part, address)
    require(sum(sizes.values()) <= MOST_DOWNLOADED, f"{address}: its results have more than {MOST_DOWNLOADED >> 30} GiB")
    return list(sizes)


def local_results(path: str | os.PathLike) -> pathlib.Path:
    """Returns the path on this machine of a result file, or of a folder with result files (.json and .jsonl). If `path` is an
    address in a bucket, downloads these files first."""
    if not is_address(path):
        return pathlib.Path(path)
    address = os.fspath(path).rstrip("/")
    if address.endswith(RESULTS):
        return local_file(address)
    folder = copy_of(address, f"reader-{os.getpid()}")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    names = result_names(address)
    require(names, f"{address} has no files with results (.json or .jsonl)")
    download(folder, names)
    return folder


class Uploader(contextlib.AbstractContextManager):
    """Context manager that uploads the changed files of a copy to the bucket every `UPLOAD_SECONDS`, and at the end.

    Args:
        patterns: which files to upload, as arguments of `Path.glob`.
        check: function that raises an error if this process is no longer allowed to write into the bucket."""

    def __init__(self, folder: pathlib.Path, patterns: Collection[str], check: Callable[[], None]):
        self._folder, self._patterns, self._check = folder, patterns, check
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
            log.warning("%s; what was not uploaded is in %s until the command is started again", error, copies_folder())

    def upload(self) -> None:
        """Uploads the files that have changed. Raises ValueError if this fails, or if this process has lost the folder's
        lock."""
        with self._alone:
            self._check()
            for path, stamp in self._files():
                if self._uploaded.get(path) != stamp:
                    address = f"{address_of(self._folder)}/{path.relative_to(self._folder).as_posix()}"
                    write_object(address, path.read_bytes())
                    self._uploaded[path] = stamp

    def _files(self) -> list[tuple[pathlib.Path, tuple[int, int]]]:
        """Returns the files of the copy with their sizes and times of change. config.json is the last one, because a folder
        with this file counts as a run or as a model."""
        complete = (path for path in _files_of(self._folder, self._patterns) if path.suffix != ".partial")
        files = sorted(complete, key=lambda path: (path.name == "config.json", path))
        return [(path, (path.stat().st_size, path.stat().st_mtime_ns)) for path in files]

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


def _files_of(folder: pathlib.Path, patterns: Collection[str]) -> set[pathlib.Path]:
    return {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}


@contextlib.contextmanager
def opened_copy(folder: pathlib.Path, names: Collection[str] | None, patterns: Collection[str]) -> Iterator[Callable[[], None]]:
    """Context manager that holds the lock of a folder in a bucket, so that no other process writes into this folder. `folder`
    is the path of the copy on this machine. Deletes the files of an earlier copy, and downloads the files `names`. Yields a
    function that uploads changed files.

    Args:
        names: files to download into the copy. None means all result files (.json and .jsonl), see `result_names`.
        patterns: which files belong to the copy, as arguments of `Path.glob`."""
    with BucketLock(address_of(folder)) as lock:
        folder.mkdir(parents=True, exist_ok=True)
        for path in _files_of(folder, patterns):
            path.unlink()
        download(folder, result_names(address_of(folder)) if names is None else names)
        with Uploader(folder, patterns, lock.check) as uploader:
            yield uploader.upload


@contextlib.contextmanager
def opened_output(path: str | os.PathLike) -> Iterator[tuple[pathlib.Path, Callable[[], None]]]:
    """Context manager that keeps other processes from writing into the folder `path`, which may be in a bucket. Yields the
    folder on this machine and a function that uploads changed files. If `path` is in a bucket, the yielded folder is a copy
    that contains the bucket's result files. Raises ValueError if the last upload fails."""
    if not is_address(path):
        with locked(path):
            yield pathlib.Path(path), lambda: None
        return
    folder = copy_of(os.fspath(path), "output")
    with opened_copy(folder, None, ("**/*",)) as upload, interrupts.before_end(upload):
        be_patient()
        yield folder, upload
        upload()


@contextlib.contextmanager
def new_bucket_folder(address: str) -> Iterator[pathlib.Path]:
    """Context manager that yields an empty folder on this machine, the copy of a new folder in a bucket. If the body ends
    without an error, uploads the files of the copy. Otherwise, deletes all objects of the folder in the bucket. All processes
    must enter this context manager, but only process 0 may write files into the yielded folder. Raises ValueError if the folder
    in the bucket has objects already, or if another process is writing into it."""
    folder, lock = copy_of(address, f"new-{jax.process_index()}"), None
    with contextlib.ExitStack() as held:
        with raise_on_all_hosts():
            shutil.rmtree(folder, ignore_errors=True)
            if jax.process_index() == 0:
                lock = held.enter_context(BucketLock(address_of(folder)))
                found = sorted(name for name in sizes_in(address) if name != LOCK)
                require(not found, f"{address} has objects already, such as {found[:1]}; give a folder that does not exist")
                folder.mkdir(parents=True)
                held.callback(shutil.rmtree, folder, ignore_errors=True)
        try:
            with interrupts.before_end(lambda: _delete_objects(address, lock)):
                yield folder
                with raise_on_all_hosts():
                    if lock:
                        lock.check()
                    for path in sorted(_files_of(folder, ("**/*",)), key=lambda path: (path.name == "config.json", path)):
                        upload_file(path, f"{address_of(folder)}/{path.relative_to(folder).as_posix()}")
        except BaseException:
            _delete_objects(address, lock)
            raise
    all_gather_hosts(0)  # no process reads the folder before its lock is gone


def _delete_objects(address: str, lock: BucketLock | None) -> None:
    """Deletes the objects of a folder in a bucket, except its lock. Logs a warning instead if another process has taken the
    lock over, or if a request fails. Does nothing if `lock` is None."""
    try:
        if lock:
            lock.check()
            for name in sizes_in(address):
                if name != LOCK:
                    with explained_errors(f"{address}/{name}", "delete"):
                        filesystem().rm_file(f"{address.rstrip('/')}/{name}")
    except ValueError as error:
        log.warning("%s; %s is not complete", error, address)


@contextlib.contextmanager
def opened_by_all(path: str | os.PathLike) -> Iterator[tuple[pathlib.Path, Callable[[], None]]]:
    """Context manager like `opened_output` for a job of several processes. Keeps other jobs from writing into the folder
    `path`. Yields the folder on this machine and a function that uploads changed files. All processes must enter this context
    manager, but only process 0 writes. If `path` is in a bucket, each of the other processes gets its own local folder, into
    which `share_files` can download files."""
    folder, upload = pathlib.Path(path), lambda: None
    with contextlib.ExitStack() as held:
        with raise_on_all_hosts():
            if jax.process_index() == 0:
                folder, upload = held.enter_context(opened_output(path))
            elif is_address(path):
                folder = copy_of(os.fspath(path), f"process-{jax.process_index()}")
        yield folder, upload


def share_files(folder: pathlib.Path, names: Collection[str], upload: Callable[[], None]) -> None:
    """Makes the files `names`, which process 0 has written into `folder`, visible to all processes. Raises ValueError if this
    is not possible.

    Args:
        upload: function that uploads the changed files of process 0, if `folder` is the copy of a folder in a bucket."""
    if not is_address(address_of(folder)):
        check_shared(folder)
        return
    with raise_on_all_hosts():
        upload()
    with raise_on_all_hosts():
        if jax.process_index():
            download(folder, names)
