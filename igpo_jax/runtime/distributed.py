"""The processes of one run: how they find each other, share host work, and fail together."""

import contextlib
import os
import pathlib
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def initialize() -> None:
    """Joins the processes that a TPU pod, SLURM, GKE or MPI started as one run; without them a run is one process.
    Comes before anything that asks for devices. A process that is not heard of for IGPO_HEARTBEAT_SECONDS (environment,
    100 by default) ends all of them."""
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=int(os.environ.get("IGPO_HEARTBEAT_SECONDS", "100")))
    except ValueError as error:  # how jax says that it has found no cluster
        if "coordinator_address" not in str(error):
            raise


@contextlib.contextmanager
def raise_on_all_hosts():
    """What one process raises in the body as ValueError or OSError ends the body on all processes, on the others with a
    ValueError: none waits for one that has given up. The body has no collectives; leaving it is a barrier."""
    own = None
    try:
        yield
    except (ValueError, OSError) as error:
        own = error
    failed = all_gather_hosts(own is not None)
    if own is not None:
        raise own
    if failed.any():
        raise ValueError(f"process {failed.argmax()} has found an error, see what it prints")


@contextlib.contextmanager
def ending_at_once():
    """An error in the body ends this process there and then, where a run has several: leaving in order would wait for the
    others, which wait for this one or are gone. They see it go, and end in the same way."""
    try:
        yield
    except Exception:
        if jax.process_count() == 1:
            raise
        traceback.print_exc()
        print(
            f"error: process {jax.process_index()} cannot go on, see above, or another one has ended, see what that one "
            "printed; the same command continues the run from its newest checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)


def all_gather_hosts(value) -> np.ndarray:
    """What every process has for `value`, a number or an array of the same shape; [processes, ...] on all of them."""
    value = np.asarray(value)
    return value[None] if jax.process_count() == 1 else np.asarray(multihost_utils.process_allgather(value))


def own_rows(number: int) -> np.ndarray:
    """Which of so many rows this process works on."""
    return np.arange(jax.process_index(), number, jax.process_count())


def share_rows(values: np.ndarray, work: Callable[[np.ndarray], Any]) -> np.ndarray:
    """Fills values[rows] with work(rows), [n, ...] zeros at first; every process works on its `own_rows`, all know the
    result."""
    rows = own_rows(len(values))
    if rows.size:
        values[rows] = work(rows)
    return all_gather_hosts(values).sum(axis=0, dtype=values.dtype)


def check_same(fingerprints: dict[str, str]) -> None:
    """Raises ValueError on all processes where one has another fingerprint (hexadecimal) than process 0."""
    numbers = np.array([int(value, 16) for value in fingerprints.values()], np.uint64).view(np.uint32)
    found = all_gather_hosts(numbers).reshape(jax.process_count(), len(fingerprints), 2)
    differing = (found != found[0]).any(axis=2)
    for process, name in np.argwhere(differing)[:1]:
        raise ValueError(
            f"process {process} has another {list(fingerprints)[name]} than process 0; all hosts need the same command and "
            "the same files"
        )


def check_shared(folder: pathlib.Path) -> None:
    """Raises ValueError where a process does not see what process 0 writes into `folder`, which is there on process 0."""
    if jax.process_count() == 1:
        return
    marker = folder / f".shared-{all_gather_hosts(np.uint32(time.time_ns() % 2**32))[0]}"
    with raise_on_all_hosts():
        if jax.process_index() == 0:
            marker.touch()
    with raise_on_all_hosts():
        if not marker.exists():
            raise ValueError(
                f"process {jax.process_index()} does not see what process 0 writes into {folder}; a run on several "
                "hosts needs a --workdir that all of them share"
            )
    if jax.process_index() == 0:
        marker.unlink()
