"""Files in Google Cloud Storage, with addresses such as gs://BUCKET/NAME. Needs the extra gcs."""

import asyncio
import contextlib
import fcntl
import fnmatch
import functools
import hashlib
import itertools
import logging
import os
import pathlib
import random
import re
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from igpo_jax.runtime.checks import require
from igpo_jax.runtime.files import MOST_BYTES, first_line, named_errors, require_plain_name, user_cache
from igpo_jax.runtime.hub import how_to_get, local_folder
from igpo_jax.runtime.installation import install_command

# How TensorStore's errors begin if a server did not answer a request.
FAILED_REQUEST = re.compile(
    "UNAVAILABLE|PERMISSION_DENIED|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|UNAUTHENTICATED|ABORTED|INTERNAL"
)
WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".msgpack", ".h5")
LOCK = ".lock"  # the object of a lock, see bucket_locks.py
MOST_DOWNLOADED = 1 << 33  # bytes of an object; the address may come from a stranger's file
MOST_SMALL = 1 << 30  # bytes of all files of a model that are not weights
PARALLEL = 1 << 8  # requests for ranges of an object
COMMAND_PATIENCE, RUN_PATIENCE = 30.0, 1200.0  # seconds in which a failed request is repeated

log = logging.getLogger(__name__)
_patience = COMMAND_PATIENCE
_repeated = 0


class BucketError(OSError, ValueError):
    """Exception for a failed request to a bucket. It is an OSError, so that a failed request can be distinguished from a
    damaged object."""


def check_download(found: dict[str, Any]) -> None:
    """Raises ValueError if an object should not be downloaded: if it is a folder, has more than `MOST_DOWNLOADED` bytes, or is
    stored with a content encoding. `found` is the dict that gcsfs's method `info` returns for the object."""
    require(found["type"] == "file", "it is a folder")
    require(found["size"] <= MOST_DOWNLOADED, f"it has more than {MOST_DOWNLOADED >> 30} GiB")
    encoded = "it is stored with a content encoding, which changes its size; upload it as it is, such as NAME.jsonl.gz"
    require(not found.get("contentEncoding"), encoded)


def is_address(path: str | os.PathLike) -> bool:
    """Returns whether a path is the address of an object or folder in a bucket. Raises ValueError if it has an unknown scheme,
    such as s3://."""
    scheme, separator, _ = os.fspath(path).partition("://")
    require(not separator or scheme == "gs", f"{path}: {scheme}:// is not supported; give a local path or gs://BUCKET/NAME")
    return bool(separator)


def path_of(path: str | os.PathLike) -> Any:
    """Returns a path as a pathlib.Path or, if it is an address in a bucket, as an epath.Path, which has the same methods. The
    id of a model in Hugging Face's cache becomes the path of the model's folder, see `local_folder`."""
    if not is_address(path):
        return local_folder(path)
    from etils import epath

    filesystem()  # raises if gcsfs is missing, and sets it up
    return epath.Path(path)


def local_file(path: str | os.PathLike) -> pathlib.Path:
    """Returns the path of a file on this machine. An object in a bucket is downloaded to the user's cache first, unless this
    version of the object is already there. All other paths are returned unchanged. Raises ValueError if the address has an
    unknown scheme, such as s3://, or if the object cannot be read."""
    if not is_address(path):
        return pathlib.Path(path)
    address = str(path)
    name = address.rpartition("/")[2]
    require_plain_name(name, address)
    files = filesystem()
    with explained_errors(address, "read"):
        files.invalidate_cache()
        found = files.info(address)
        check_download(found)
        folder = _cache_of(address)
        file = folder / _version(found) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("ab") as lock:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(lock, fcntl.LOCK_EX)  # other processes wait for the file instead of downloading it, too
            if not file.is_file():
                partial = folder / "partial"  # overwrites what a killed process has left
                files.get_file(address, str(partial))
                size = partial.stat().st_size
                require(size == found["size"], f"{size} of {found['size']} bytes arrived")
                files.invalidate_cache()
                require(_version(files.info(address)) == _version(found), "it was changed while it was read")
                partial.replace(file)
    return file


def _cache_of(address: str) -> pathlib.Path:
    """Returns the folder on this machine in which the downloaded versions of an object or folder are kept."""
    return user_cache().absolute() / "gs" / _digest(address)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@functools.cache
def _small_files(address: str) -> pathlib.Path:
    files = filesystem()
    with explained_errors(address, "read"):
        files.invalidate_cache()
        found = {file["name"].rpartition("/")[2]: file for file in files.ls(address, detail=True) if file["type"] == "file"}
        small = {
            name: file for name, file in sorted(found.items()) if name not in ("", LOCK) and not name.endswith(WEIGHT_FILES)
        }
        small = {name: file for name, file in small.items() if file["size"] <= MOST_BYTES}  # no file of a model is larger
        for name in (*small, address.rpartition("/")[2]):
            require_plain_name(name, address)
        for file in small.values():
            check_download(file)
        require(sum(file["size"] for file in small.values()) <= MOST_SMALL, f"its files have more than {MOST_SMALL >> 30} GiB")
        versions = "".join(f"{name} {_version(file)} " for name, file in small.items())
        around = _cache_of(address)
        folder = around / _digest(versions) / address.rpartition("/")[2]
        if not folder.is_dir():
            around.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=around) as temporary:
                partial = pathlib.Path(temporary, "files")
                partial.mkdir()
                for name, file in small.items():
                    files.get_file(file["name"], str(partial / name))
                folder.parent.mkdir(exist_ok=True)
                with contextlib.suppress(OSError):  # another process was faster
                    partial.rename(folder)
    return folder


def small_files(path: str | os.PathLike) -> pathlib.Path:
    """Returns a folder on this machine with the files of a model's folder that are not weights. For a folder in a bucket, these
    files are downloaded to the user's cache, once per process and only if they have changed. Files of more than `MOST_BYTES`
    are left out. Raises ValueError if the files have more than `MOST_SMALL` bytes together, or if one cannot be read. If `path`
    is not an address in a bucket, returns the model's folder itself, see `local_folder`."""
    return _small_files(os.fspath(path).rstrip("/")) if is_address(path) else local_folder(path)


def is_folder(path: str | os.PathLike) -> bool:
    """Returns whether a folder exists, which may be in a bucket. Raises BucketError if the bucket cannot be read, whereas epath
    would return False."""
    place = path_of(path)
    if isinstance(place, pathlib.Path):
        return place.is_dir()
    files = filesystem()
    with explained_errors(str(place), "read"):
        try:
            files.invalidate_cache()
            return files.info(str(place))["type"] == "directory"
        except FileNotFoundError:
            return False


def require_model(path: str | os.PathLike, key: str) -> None:
    """Raises ValueError if `path` is neither a folder nor the id of a model in Hugging Face's cache. The message says how to
    get a model, and names `key`, the flag or configuration key that has the path as its value."""
    require(is_folder(path), f"{key}: there is no folder {str(path)!r}{how_to_get(path, key)}")


def names_in(folder: Any) -> list[str]:
    """Returns the names of the files and folders in `folder`, an epath.Path in a bucket. Returns [] if the folder does not
    exist. Raises BucketError if the bucket cannot be read."""
    files = filesystem()
    with explained_errors(str(folder), "list"):
        try:
            files.invalidate_cache()
            return [name.rstrip("/").rpartition("/")[2] for name in files.ls(str(folder), detail=False)]
        except FileNotFoundError:
            return []


def matching_files(path: str) -> list[str]:
    """Returns the paths, in order, of the files whose folder is that of `path` and whose name matches that of `path`, a pattern
    with *. The folder may be in a bucket. Returns [] if the folder does not exist."""
    folder, slash, pattern = path.rpartition("/")
    place = path_of(folder) if is_address(path) else pathlib.Path(folder or slash)
    names = names_in(place) if is_address(path) else [file.name for file in place.iterdir()] if place.is_dir() else []
    return [f"{folder}{slash}{name}" for name in sorted(fnmatch.filter(names, pattern))]


def read_range(file: Any, begin: int, end: int) -> bytes:
    """Returns the bytes [begin, end) of a file, which may be in a bucket. Returns fewer bytes if the file is shorter."""
    if not isinstance(file, pathlib.Path):
        with explained_errors(str(file), "read"):
            return filesystem().cat_file(str(file), begin, end)
    with file.open("rb") as opened, named_errors(file):
        opened.seek(begin)
        return opened.read(end - begin)


def read_ranges(file: Any, ranges: Sequence[tuple[int, int]]) -> Iterator[bytes]:
    """Yields the bytes of each range [begin, end) of a file, which may be in a bucket. The requests to a bucket are sent at the
    same time, because thousands of them would take minutes one after the other."""
    if isinstance(file, pathlib.Path):
        yield from (read_range(file, *place) for place in ranges)
        return
    for first in range(0, len(ranges), PARALLEL):
        begins, ends = zip(*ranges[first : first + PARALLEL], strict=True)
        with explained_errors(str(file), "read"):
            found = filesystem().cat_ranges([str(file)] * len(begins), begins, ends, on_error="raise")
        yield from found


def write_object(address: str, content: bytes) -> None:
    """Writes an object in a bucket. Raises a BucketError that names the reason if this fails."""
    with explained_errors(address, "write"):
        filesystem().pipe_file(address, content)


def upload_file(path: pathlib.Path, address: str) -> None:
    """Uploads a file of any size. Raises a BucketError that names the reason if this fails."""
    with explained_errors(address, "write"):
        filesystem().put_file(str(path), address)


def move_objects(source: str, target: str) -> None:
    """Moves all objects of a folder in a bucket to another folder of the bucket, and overwrites objects with the same names."""
    with explained_errors(source, "move"):
        filesystem().copy(source, target, recursive=True)
        filesystem().rm(source, recursive=True)


def size_of(file: Any) -> int:
    """Returns the size in bytes of a file, which may be in a bucket."""
    if isinstance(file, pathlib.Path):
        return file.stat().st_size
    with explained_errors(str(file), "read"):
        return filesystem().info(str(file))["size"]


def copies_folder() -> pathlib.Path:
    """Returns the folder on this machine that contains the copies of folders in buckets, see run/bucket_runs.py."""
    return user_cache().absolute() / "bucket_runs"


def with_addresses(text: str) -> str:
    """Replaces the paths of copies in a message by the addresses of the copied folders in the bucket, because users know only
    the addresses."""
    return re.sub(rf"{re.escape(str(copies_folder()))}/[^/]+/", "gs://", text)


def _version(found: dict[str, Any]) -> str:
    """Returns a text that differs between the versions of an object."""
    return re.sub(r"\W", "", str(found.get("generation") or found["etag"]))


@functools.cache
def filesystem() -> Any:
    """Returns the file system of gcsfs, with Google's default credentials. If the environment variable STORAGE_EMULATOR_HOST is
    set, the file system is that of an emulator, which needs no credentials."""
    # Otherwise gcsfs asks for the type of every bucket, with a time limit of a minute.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    try:
        import aiohttp
        import fsspec
        import gcsfs
    except ImportError:
        raise ValueError(f"gs:// addresses need gcsfs: {install_command('gcs')}") from None
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs a traceback for every denied request
    for name in ("_request", "_get_file_request"):  # all others call the first one
        request = getattr(gcsfs.GCSFileSystem, name)
        if not hasattr(request, "repeats"):
            setattr(gcsfs.GCSFileSystem, name, _repeating(request.__wrapped__))
    timeout = aiohttp.ClientTimeout(sock_connect=30, sock_read=60)  # seconds; by default, a silent connection is never ended
    token = "anon" if "STORAGE_EMULATOR_HOST" in os.environ else None
    options = {"token": token, "requests_timeout": timeout, "use_listings_cache": False}
    fsspec.config.conf["gs"] = options  # for epath; other processes change the bucket, so that listings cannot be kept
    try:
        return gcsfs.GCSFileSystem(**options)
    except Exception as error:  # Google's library may raise anything for credentials that it cannot read
        raise ValueError(f"there are no credentials for gs:// addresses: {type(error).__name__}: {error}") from None


def _repeating(request: Callable[..., Awaitable]) -> Callable[..., Awaitable]:
    """Returns a function that sends a request like `request`, and repeats it for `_patience` seconds if it fails because of the
    network or an overloaded server. gcsfs itself would give up after half a minute, which is too early for a long run."""

    async def repeated(*args, **options):
        from gcsfs.retry import is_retriable
        from google.auth.exceptions import TransportError  # of a request for a new token

        global _repeated
        begin = time.monotonic()
        for number in itertools.count():
            try:
                return await request(*args, **options)
            except Exception as error:
                waited = time.monotonic() - begin
                if not (is_retriable(error) or isinstance(error, TransportError)):
                    raise
                if waited > _patience:  # as an error of a type that gcsfs does not repeat on its part
                    raise OSError(f"no answer in {waited:.0f} seconds: {first_line(error) or type(error).__name__}") from None
                _repeated += 1
                seconds = min(32, 2**number / 8) * random.uniform(0.5, 1)
                if waited > 10:
                    log.warning("a request to a bucket fails: %s; trying again in %.0f seconds", first_line(error), seconds)
                await asyncio.sleep(seconds)

    repeated.repeats = True  # type: ignore[attr-defined]
    return repeated


def be_patient() -> None:
    """Makes this process repeat failed requests for `RUN_PATIENCE` seconds instead of `COMMAND_PATIENCE` seconds."""
    global _patience
    _patience = RUN_PATIENCE


def repeated_requests() -> int:
    """Returns how many requests this process has repeated because they failed. Requests of TensorStore are not counted."""
    return _repeated


def account() -> str:
    """Returns the name of the account that makes the requests."""
    credentials = filesystem().credentials.credentials
    return getattr(credentials, "service_account_email", "") or ("your account" if credentials else "anonymous")


@contextlib.contextmanager
def explained_errors(address: str, operation: str) -> Iterator[None]:
    """Context manager for requests to a bucket. Replaces every error by one whose message is a single line with the address, the
    operation, the account and the reason. The new error is a ValueError if the object or the bucket does not exist, or if the
    body raised a ValueError itself, as `check_download` does. In all other cases, it is a BucketError."""
    try:
        yield
    except Exception as error:  # gcsfs raises errors of its HTTP client, of its credentials, and its own
        reason = "; ".join(str(error).strip().splitlines())[:300] or type(error).__name__
        kind: type[Exception] = BucketError
        if isinstance(error, FileNotFoundError) and error.errno is None:  # not a local file
            kind, reason = ValueError, "there is no such object or no such bucket"
        elif type(error) is ValueError:  # a check of this package
            kind = ValueError
        raise kind(f"cannot {operation} {address} as {account()}: {reason}") from None


def sizes_in(address: str) -> dict[str, int]:
    """Returns the sizes in bytes of all objects in a folder of a bucket. The keys are names relative to the folder."""
    files = filesystem()
    with explained_errors(address, "list"):
        files.invalidate_cache()
        begin = files._strip_protocol(address).rstrip("/") + "/"
        return {name.removeprefix(begin): found["size"] for name, found in files.find(address, detail=True).items()}


def all_files(folder: Any) -> dict[Any, int]:
    """Returns the files in a folder and its subfolders with their sizes in bytes. The folder, which may be in a bucket, need
    not exist."""
    if isinstance(folder, pathlib.Path):
        return {file: file.stat().st_size for file in folder.rglob("*") if file.is_file()}
    return {folder / name: size for name, size in sizes_in(str(folder)).items()}


def is_about_requests(error: BaseException) -> bool:
    """Returns whether an error means that a bucket did not answer a request, and not that an object is damaged."""
    library = type(error).__module__
    return library.startswith(("gcsfs", "aiohttp", "google.auth", "google.api_core", "requests")) or bool(
        FAILED_REQUEST.match(str(error))
    )
