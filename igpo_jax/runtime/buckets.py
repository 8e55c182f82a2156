"""Files in Google Cloud Storage, with addresses such as gs://BUCKET/NAME. Needs the extra gcs. Its package gcsfs repeats
requests that fail because of the network or an overloaded server."""

import contextlib
import fcntl
import functools
import hashlib
import logging
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from igpo_jax.runtime.checks import require
from igpo_jax.runtime.files import require_plain_name, user_cache
from igpo_jax.runtime.installation import install_command

MOST_DOWNLOADED = 1 << 33  # bytes of an object; the address may come from a stranger's file


def local_file(path: str | os.PathLike) -> pathlib.Path:
    """Returns the path of a file on this machine. An object in a bucket is downloaded to the user's cache first, unless this
    version of the object is already there. All other paths are returned unchanged. Raises ValueError if the address has an
    unknown scheme, such as s3://, or if the object cannot be read."""
    scheme, separator, _ = str(path).partition("://")
    if not separator:
        return pathlib.Path(path)
    require(scheme == "gs", f"{path}: files at {scheme}:// cannot be read; give a local path or gs://BUCKET/NAME")
    address = str(path)
    name = address.rpartition("/")[2]
    require_plain_name(name, address)
    files = filesystem()
    with explained_errors(address, "read"):
        files.invalidate_cache()
        found = files.info(address)
        require(found["type"] == "file", "it is a folder")
        require(found["size"] <= MOST_DOWNLOADED, f"it has more than {MOST_DOWNLOADED >> 30} GiB")
        encoded = "it is stored with a content encoding, which changes its size; upload it as it is, such as NAME.jsonl.gz"
        require(not found.get("contentEncoding"), encoded)
        folder = user_cache() / "gs" / hashlib.sha256(address.encode()).hexdigest()[:32]
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
        import gcsfs
    except ImportError:
        raise ValueError(f"gs:// addresses need gcsfs: {install_command('gcs')}") from None
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs a traceback for every denied request
    timeout = aiohttp.ClientTimeout(sock_connect=30, sock_read=60)  # seconds; by default, a silent connection is never ended
    token = "anon" if "STORAGE_EMULATOR_HOST" in os.environ else None
    try:
        return gcsfs.GCSFileSystem(token=token, requests_timeout=timeout)
    except Exception as error:  # Google's library may raise anything for credentials that it cannot read
        raise ValueError(f"there are no credentials for gs:// addresses: {type(error).__name__}: {error}") from None


def account() -> str:
    """Returns the name of the account that makes the requests."""
    credentials = filesystem().credentials.credentials
    return getattr(credentials, "service_account_email", "") or ("your account" if credentials else "anonymous")


@contextlib.contextmanager
def explained_errors(address: str, operation: str) -> Iterator[None]:
    """Context manager for requests to a bucket. Turns errors into a ValueError with one line that names the address, the
    operation and the account."""
    try:
        yield
    except Exception as error:  # gcsfs raises errors of its HTTP client, of its credentials, and its own
        reason = "; ".join(str(error).strip().splitlines())[:300] or type(error).__name__
        if isinstance(error, FileNotFoundError) and error.errno is None:  # not a local file
            reason = "there is no such object or no such bucket"
        raise ValueError(f"cannot {operation} {address} as {account()}: {reason}") from None
