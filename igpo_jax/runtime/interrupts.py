"""Makes SIGINT (^C), SIGTERM and SIGHUP end a command at any moment, with a message of one line. Imports only the standard
library and `streams`, so that a command can call `install` before its slow imports.

A thread reads the signals from a pipe. A signal handler would wait until a running compilation is finished, because Python runs
handlers in the main thread, between two bytecodes. The thread ends the process with os._exit, because the interpreter's orderly
shutdown crashes while threads of XLA are running."""

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

from igpo_jax.runtime import streams

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SAME = 0.2  # seconds in which signals count as one: a terminal and a launcher may both deliver the same ^C
PATIENCE = 1.0  # seconds for writing the last output; the reader of a pipe may be stuck

_text = "interrupted"
_sigterm_status = 128 + signal.SIGTERM
_first: tuple[int, float] | None = None  # the first signal, and the time when it arrived
_instead: Callable[[int], None] | None = None  # called for the first signal instead of ending the process
_cleanups: list[Callable[[], None]] = []
_pipe: int | None = None  # the end into which signals are written


def install(text: str = "interrupted", sigterm_status: int = 128 + signal.SIGTERM) -> None:
    """Makes SIGINT, SIGTERM and SIGHUP print the line `text` and end this process. The exit status is 128 + the signal's
    number, or `sigterm_status` if SIGTERM is the first signal. The process first calls the functions that are registered with
    `before_end`. After a second signal, the process waits at most `PATIENCE` seconds for these functions. Call `install` in the
    main thread.

    If SIGHUP is already ignored, as under nohup, it stays ignored. An ignored SIGINT does not stay ignored, because a shell
    without job control makes its background jobs ignore ^C.

    Also opens standard streams that are closed, because each command calls this function first."""
    global _text, _sigterm_status
    streams.open_closed()
    _text, _sigterm_status = text, sigterm_status
    atexit.unregister(_ignore)
    atexit.register(_ignore)
    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _handle)


def watch() -> None:
    """Starts the thread that handles the signals. Before this call, the main thread handles them. Call this function in the
    main thread, after `host.prepare`, which must run before threads start."""
    global _pipe
    if _pipe is not None:
        return
    reader, _pipe = os.pipe()
    os.set_blocking(_pipe, False)
    signal.set_wakeup_fd(_pipe, warn_on_full_buffer=False)
    threading.Thread(target=_read_signals, args=(reader,), daemon=True).start()


def call_instead(action: Callable[[int], None] | None) -> None:
    """Sets a function that the first signal calls instead of ending the process. The function is called in another thread with
    the signal's number. If `action` is None, removes the function, so that the first signal ends the process."""
    global _instead
    _instead = action


def first_signal() -> int | None:
    """Returns the number of the first signal that has arrived, or None if no signal has arrived."""
    return _first and _first[0]


@contextlib.contextmanager
def before_end(action: Callable[[], None]) -> Iterator[None]:
    """Context manager that registers `action` for its body. If a signal ends the process, a thread calls `action` before the
    end, and the process waits for this call. If a second signal comes during the call, the process stops waiting for it, calls
    `action` again, and waits at most `PATIENCE` seconds for the second call."""
    _cleanups.append(action)
    try:
        yield
    finally:
        _cleanups.remove(action)


def _ignore() -> None:
    """Ignores signals while the interpreter shuts down, when the command has already finished. Otherwise, Python would restore
    the default actions, and a signal would kill the process."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _handle(number: int, _) -> None:
    if _pipe is None:
        _write_line()
        os._exit(_status(number))
    if _first is None:  # an event loop of a library, such as uvloop, reads the signals instead
        os.write(_pipe, bytes([number]))


def _read_signals(reader: int) -> None:
    while True:
        for number in os.read(reader, 64):
            if number in SIGNALS:  # the pipe receives all signals that have a handler in Python
                _receive(number)


def _receive(number: int) -> None:
    global _first
    now = time.monotonic()
    if _first is None:
        _first = (number, now)
        if _instead:
            _instead(number)
        else:
            threading.Thread(target=_end, args=(_status(number), None), daemon=True).start()
    elif now - _first[1] > SAME:
        _end(128 + number, PATIENCE)


def _status(number: int) -> int:
    """Returns the exit status with which the process ends if `number` is the first signal that it receives."""
    return _sigterm_status if number == signal.SIGTERM else 128 + number


def _end(status: int, patience: float | None) -> None:
    """Calls the functions that are registered with `before_end`, writes the last output, and ends the process with an exit
    status. `patience` is the time limit for the functions in seconds, or None for no limit."""
    for work, seconds in ((_clean_up, patience), (_write_output, PATIENCE)):
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(seconds)
    os._exit(status)


def _clean_up() -> None:
    for action in reversed(_cleanups):
        with contextlib.suppress(Exception):
            action()


def _write_output() -> None:
    with contextlib.suppress(Exception):  # a closed stream
        sys.stdout.flush()
        sys.stderr.flush()
    _write_line()


def _write_line() -> None:
    bars = getattr(getattr(sys.modules.get("tqdm"), "tqdm", None), "_instances", ())
    with contextlib.suppress(OSError):
        os.write(2, f"{chr(10) if len(bars) else ''}{_text}\n".encode())  # a progress bar leaves its line open
