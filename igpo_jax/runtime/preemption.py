"""Stops a run after a signal. All processes stop at the same point and save a checkpoint."""

import contextlib
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

from igpo_jax.runtime import interrupts


class Terminated(BaseException):
    """Exception that is raised when a run has saved its state after a signal. Like KeyboardInterrupt, it is not caught by
    `except Exception`."""


@contextlib.contextmanager
def listening() -> Iterator[Callable[[], bool]]:
    """Context manager in whose body SIGINT, SIGTERM and SIGHUP do not end the process. It yields a function that returns True
    if the run must save its state and stop. If any process receives a signal, the function returns True in the same call on all
    processes. Every process must therefore call the function the same number of times. If JAX's distributed service is not in
    use, raises Terminated at the end of the body if a signal has arrived after the last call of the function."""
    if jax.distributed.is_initialized():
        calls = itertools.count(1)
        yield lambda: multihost_utils.reached_preemption_sync_point(next(calls))
        return
    received = threading.Event()
    interrupts.call_instead(lambda _: received.set())
    try:
        yield received.is_set
    finally:
        interrupts.call_instead(None)
    if received.is_set():
        raise Terminated(f"stopped by {name_of_signal()} when everything was saved")


def forward_signals() -> None:
    """Makes SIGINT and SIGHUP act like SIGTERM, which JAX's preemption service reports to all processes. The service handles
    SIGTERM itself, so a second SIGTERM does not end the process at once."""
    interrupts.call_instead(lambda number: None if number == signal.SIGTERM else os.kill(os.getpid(), signal.SIGTERM))


def name_of_signal() -> str:
    number = interrupts.first_signal()
    return signal.Signals(number).name if number in (signal.SIGINT, signal.SIGHUP) else "a termination signal"


def exit_status() -> int:
    """Returns the exit status of a run that was stopped by a signal: 0 after SIGTERM, and 128 + the signal's number after other
    signals. SIGTERM is different because schedulers use it to stop runs that they will resume."""
    number = interrupts.first_signal()
    return 0 if number in (None, signal.SIGTERM) else 128 + number
