"""Replaces standard streams of a command that are closed or that cannot be written. Imports only the standard library, so that
a command can do this before its slow imports."""

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any


class _Log(io.FileIO):
    """File that drops what cannot be written, for example because the disk is full. A closed pipe, as of `| head`, is still an
    error, because it means that nobody reads the output any more."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError:
            return len(data)


class OutputError(OSError):
    """Results of a command cannot be written to stdout, for example because the disk is full."""


class _Output(io.FileIO):
    """File whose errors name stdout, because the user may have redirected it. A closed pipe stays a BrokenPipeError."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(f"stdout cannot be written: {error.strerror}") from None


def open_closed() -> None:
    """Opens /dev/null in the place of each standard stream that is closed. Otherwise, the next file that this process opens
    would get the stream's number, and libraries would write their messages into this file. Call this function first."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is that of the stream
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))


def use_as_log(*names: str) -> None:
    """Makes standard streams, "stdout" or "stderr", drop what cannot be written, so that a full disk that holds only the log of
    a command does not end the command. Handlers of the root logger that write to such a stream, which a library may have added
    when it was imported, then write to the new stream. By this, absl recognizes them and removes them: otherwise, each warning
    would be logged twice."""
    for name in names:
        _replace(name, _Log)


@contextlib.contextmanager
def checked_output() -> Iterator[None]:
    """Context manager whose body prints the results of a command to stdout. Ends the process with a message if they cannot be
    written, and without one if their reader, such as `head`, has ended. Characters that the encoding of stdout lacks are
    escaped, as on stderr."""
    _replace("stdout", _Output)
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except (BrokenPipeError, OutputError) as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it at the end
        sys.exit(1 if isinstance(error, BrokenPipeError) else f"error: {error}")


def _replace(name: str, kind: type[io.FileIO]) -> None:
    stream = getattr(sys, name)
    if isinstance(stream, io.TextIOWrapper):
        with contextlib.suppress(OSError):
            stream.flush()
        at_once = stream.line_buffering or stream.write_through  # the latter with PYTHONUNBUFFERED
        binary = io.BufferedWriter(kind(stream.fileno(), "w", closefd=False))
        new = io.TextIOWrapper(binary, stream.encoding, "backslashreplace", line_buffering=at_once)
        setattr(sys, name, new)
        for handler in logging.root.handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is stream:
                handler.setStream(new)
