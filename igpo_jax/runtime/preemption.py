"""Handles SIGTERM, so that every process of a run stops at the same point, with a checkpoint."""

import itertools
import signal
import threading
from collections.abc import Callable

import jax
from jax.experimental import multihost_utils


class Terminated(BaseException):
    """Exception raised after a run that received SIGTERM was saved. Like KeyboardInterrupt, it is not caught by `except
    Exception`."""


def listen() -> Callable[[], bool]:
    """Installs a SIGTERM handler and returns a function that tells whether to save and stop. Every process must call the
    returned function equally often. After a signal to any process, it soon returns True at the same call on all of them (jax's
    preemption service)."""
    if jax.distributed.is_initialized():
        calls = itertools.count(1)
        return lambda: multihost_utils.reached_preemption_sync_point(next(calls))
    received = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: received.set())
    return received.is_set
