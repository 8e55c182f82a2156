"""Files in Google Cloud Storage, with addresses such as gs://BUCKET/NAME. Needs the extra gcs. Its package gcsfs repeats requests
that fail because of the network or an overloaded server."""

import contextlib
import functools
import hashlib
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator
from typing import Any

from igpo_jax.runtime.checks import require
from igpo_jax.runtime.files import first_line, require_plain_name, user_cache
from igpo_jax.runtime.installation import install_command

MOST_BYTES = 1 << 33  # of a downloaded object; the address may come from a stranger's file


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
        found = files.info(address)
        require(found["type"] == "file", "it is a folder")
        require(found["size"] <= MOST_BYTES, f"it has more than {MOST_BYTES >> 30} GiB")
        version = re.sub(r"\W", "", str(found.get("generation") or found["etag"]))
        file = user_cache() / "gs" / hashlib.sha256(address.encode()).hexdigest()[:32] / version / name
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=file.parent) as folder:  # other processes may download the same object
                partial = pathlib.Path(folder, name)
                files.get_file(address, str(partial))
                size = partial.stat().st_size
                require(size == found["size"], f"{size} of {found['size']} bytes arrived")
                partial.replace(file)
    return file


@functools.cache
def filesystem() -> Any:
    """Returns the file system of gcsfs, with Google's default credentials. If the environment variable STORAGE_EMULATOR_HOST is
    set, the file system is that of an emulator, which needs no credentials."""
    # Otherwise gcsfs asks for the type of every bucket, with a time limit of a minute.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    try:
        import gcsfs
    except ImportError:
        raise ValueError(f"gs:// addresses need gcsfs: {install_command('gcs')}") from None
    return gcsfs.GCSFileSystem(token="anon" if "STORAGE_EMULATOR_HOST" in os.environ else None)


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
        reason = first_line(error) or type(error).__name__
        if isinstance(error, FileNotFoundError):
            reason = "there is no such object or no such bucket"
        raise ValueError(f"cannot {operation} {address} as {account()}: {reason}") from None
