"""Locks that keep a second process from writing into the same folder."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import re
import shlex
import socket
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import IO, Any

from igpo_jax.runtime import interrupts
from igpo_jax.runtime.files import open_without_links, parse_json

HELD_BY_ANOTHER = (errno.EACCES, errno.EAGAIN)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # of a file system
MOST_CHARACTERS = 1 << 16  # of a lock file


@contextlib.contextmanager
def locked(folder: str | os.PathLike) -> Iterator[None]:
    """Context manager that creates `folder` and holds the lock `folder`/.lock, so that no other process writes into the folder.
    Raises a ValueError that names the other process if the lock is taken. Also raises ValueError if the file .lock has the
    content of another program, and leaves this file as it is. At the end, deletes the lock file, and also the folder if the
    folder is new and empty.

    The kernel frees the lock when the process ends for any reason. The lock is a POSIX lock (fcntl), because NFS supports such
    locks and child processes do not inherit them. The process must not open the lock file a second time, because closing any
    descriptor of the file frees the lock. Some file systems have no locks. There, the process id and the host that are written
    in the lock file replace the lock."""
    if "://" in os.fspath(folder):
        raise ValueError(f"{folder} is not a local folder; give one, and copy its files to the bucket afterwards")
    folder = pathlib.Path(folder)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    path = folder / ".lock"
    file = _acquire(path)
    try:
        with interrupts.before_end(lambda: path.unlink(missing_ok=True)):
            yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        file.close()  # after the file is deleted, see `_acquire`
        with contextlib.suppress(OSError):  # not empty
            for created in missing:
                created.rmdir()


def _acquire(path: pathlib.Path) -> IO[str]:
    """Opens and locks the lock file, writes this process's id, host and command into it, and returns the open file. Raises
    ValueError if another process holds the lock, or if another program has written the file."""
    while True:
        file = _open(path)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            held, no_locks = error.errno in HELD_BY_ANOTHER, error.errno in NO_LOCKS
            holder = _read(file)
            if held or (no_locks and may_run(holder)):
                file.close()
                raise ValueError(_refusal(path, holder, stale_possible=no_locks)) from None
            if not no_locks:
                file.close()
                raise
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        file.close()  # its holder has deleted it between opening and locking
    if os.fstat(file.fileno()).st_size and not _read(file):
        file.close()
        raise ValueError(not_own(path))
    file.truncate(0)
    json.dump(this_process(), file)
    file.flush()
    return file


def _open(path: pathlib.Path) -> IO[str]:
    for _ in range(20):
        # Another process may delete the empty folder at any moment, also within mkdir.
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            path.parent.mkdir(parents=True, exist_ok=True)
            return open_without_links(path, "a+", "utf-8")
    path.parent.mkdir(parents=True, exist_ok=True)
    return open_without_links(path, "a+", "utf-8")


def this_process() -> dict[str, Any]:
    """Returns the host, id, start time and command of this process, which are written into a lock."""
    started = datetime.now(UTC).isoformat(timespec="seconds")
    words = " ".join(shlex.join(sys.orig_argv).split())
    command = re.sub(r"//[^/@\s]*@", "//", words)[:500]  # without the password of an address
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": started, "command": command}


def _read(file: IO[str]) -> dict[str, Any]:
    """Returns the dict that the lock's holder has written into the lock file, or {} if the holder has not finished writing or
    is another program."""
    try:
        file.seek(0)
        return holder_of(parse_json(file.read(MOST_CHARACTERS), "a lock file"))
    except (OSError, ValueError):
        return {}


def holder_of(value: Any) -> dict[str, Any]:
    """Returns the JSON value in a lock if it is a dict as `this_process` returns, possibly with further keys. Otherwise returns
    {}."""
    is_own = isinstance(value, dict) and {"host", "pid", "started", "command"} <= value.keys() and isinstance(value["pid"], int)
    return value if is_own else {}


def not_own(path: object) -> str:
    return f"{path} is no lock of igpo_jax, and would be replaced by one; move it away, or give another folder"


def may_run(holder: dict[str, Any]) -> bool:
    """Returns whether the process that wrote the lock may still be running. This check replaces locks on file systems that have
    none."""
    if not holder or holder.get("host") != socket.gethostname():
        return bool(holder)
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it belongs to another user, or the number is not that of a process
        pass
    return holder["pid"] != os.getpid()


def _refusal(path: pathlib.Path, holder: dict[str, Any], stale_possible: bool) -> str:
    remedy = "wait until it ends, end it, or give another folder"
    if stale_possible:
        remedy += f"; if it has ended, delete {path} (this file system has no locks)"
    return f"{path.parent} is being written by {describe_holder(holder)}; {remedy}"


def describe_holder(holder: dict[str, Any]) -> str:
    """Describes the process that wrote `holder` into a lock. If this process is unknown, `holder` is {}."""
    if not holder:
        return "another process"
    return f"process {holder['pid']} on {holder.get('host')}, started {holder.get('started')}: {holder.get('command')}"
