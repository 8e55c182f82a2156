"""Handles SIGTERM, so that every process of a run stops at the same point, with a checkpoint."""

import itertools
import signal
import threading
from collections.abc import Callable

import jax
from jax.experimental import multihost_utils


class Terminated(BaseException):
    """Exception that is raised when a run has saved its state after SIGTERM. Like KeyboardInterrupt, it is not caught by
    `except Exception`."""


def listen() -> Callable[[], bool]:
    """Installs a SIGTERM handler. Returns a function that returns True if the run must save its state and stop. Every process
    must call this function equally often. If any process receives the signal, JAX's preemption service soon makes the function
    return True in the same call on all processes."""
    if jax.distributed.is_initialized():
        calls = itertools.count(1)
        return lambda: multihost_utils.reached_preemption_sync_point(next(calls))
    received = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: received.set())
    return received.is_set
