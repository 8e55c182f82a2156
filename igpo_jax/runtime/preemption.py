"""Termination signals: every process of a run stops at the same point, with a checkpoint."""

import itertools
import signal
import threading
from collections.abc import Callable

import jax
from jax.experimental import multihost_utils


class Terminated(BaseException):
    """The run has saved what it had when SIGTERM came. Like KeyboardInterrupt, no handler of errors is meant to see it."""


def listen() -> Callable[[], bool]:
    """From now on SIGTERM does not end this process. Returns the question whether to save and stop.

    All processes of a run must ask equally often: a signal to one of them gets the answer yes on all, at the same asking,
    some askings later (jax's preemption service).
    """
    if jax.distributed.is_initialized():
        asked = itertools.count(1)
        return lambda: multihost_utils.reached_preemption_sync_point(next(asked))
    received = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: received.set())
    return received.is_set
