"""Writes TensorBoard events. tensorboardX formats them, but its writer is not used. This writer runs in a thread, which ends if
the disk is full, and the training would then wait for it forever."""

import contextlib
import itertools
import pathlib
import struct
import sys
import time
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

from igpo_jax.runtime.files import named_errors


class EventFile:
    """New file of TensorBoard events in a folder. Its name does not contain the name of this host, because the folder may be
    published. Every write reaches the file at once, and raises OSError if it fails.

    Args:
        purge_step: TensorBoard hides the events of this and later steps in the folder's older files. If it is 0, it hides
            none."""

    def __init__(self, folder: pathlib.Path, purge_step: int):
        with _without_torch():
            from tensorboardX import record_writer, summary
            from tensorboardX.proto import event_pb2
        self._checksum, self._summary, self._proto = record_writer.masked_crc32c, summary, event_pb2
        folder.mkdir(exist_ok=True)
        begin = folder / f"events.out.tfevents.{int(time.time())}"
        self._file = next(file for i in itertools.count() if (file := _new_file(begin.with_name(f"{begin.name}.{i}"))))
        self._write(0, file_version="brain.Event:2")
        if purge_step:
            self._write(purge_step, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))

    def close(self) -> None:
        self._file.close()

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self._write(step, summary=self._summary.scalar(name, value))

    def add_text(self, name: str, text: str, step: int) -> None:
        self._write(step, summary=self._summary.text(name, text))

    def add_histogram(self, name: str, values: np.ndarray, step: int) -> None:
        self._write(step, summary=self._summary.histogram(name, values, bins=30))

    def _write(self, step: int, **content: Any) -> None:
        event = self._proto.Event(step=step, wall_time=time.time(), **content).SerializeToString()
        size = struct.pack("<Q", len(event))
        with named_errors(self._file.name):
            self._file.write(b"".join(part + struct.pack("<I", self._checksum(part)) for part in (size, event)))
            self._file.flush()


def _new_file(path: pathlib.Path) -> IO[bytes] | None:
    """Returns a new file that is open for writing, or None if there is a file of this name."""
    with contextlib.suppress(FileExistsError):
        return path.open("xb")
    return None


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """Context manager in whose body PyTorch cannot be imported unless it already was. Importing tensorboardX would import
    PyTorch if it is installed, which takes seconds, and which scalars and texts do not need."""
    hidden: dict[str, Any] = {"torch": None} if "torch" not in sys.modules else {}
    sys.modules.update(hidden)
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
