"""Handles SIGTERM: every process of a run stops at the same point, with a checkpoint."""

import itertools
import signal
import threading
from collections.abc import Callable

import jax
from jax.experimental import multihost_utils


class Terminated(BaseException):
    """Raised when a run that received SIGTERM is saved. Like KeyboardInterrupt, it is not caught by `except Exception`."""


def listen() -> Callable[[], bool]:
    """Installs a SIGTERM handler; returns a function that tells whether to save and stop. Call it equally often on every
    process: after a signal to any, all return True at the same call, some calls later (jax's preemption service)."""
    if jax.distributed.is_initialized():
        calls = itertools.count(1)
        return lambda: multihost_utils.reached_preemption_sync_point(next(calls))
    received = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: received.set())
    return received.is_set
