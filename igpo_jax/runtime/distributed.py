"""Connects the processes of one run, divides work on CPUs among them, and makes all of them fail if one fails."""

import contextlib
import os
import pathlib
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax._src.clusters import ClusterEnv
from jax.experimental import multihost_utils

from igpo_jax.runtime.checks import require
from igpo_jax.runtime.chips import find_devices
from igpo_jax.runtime.files import first_line
from igpo_jax.runtime.locks import locked
from igpo_jax.runtime.ports import listen
from igpo_jax.runtime.preemption import forward_signals

# Variables by which jax recognizes a cluster -> the variables that are also set if a scheduler has started this process as
# part of a job. Every pod has the first key, and programs started by mpirun's processes may inherit the second key.
JOB_VARIABLES = {
    "KUBERNETES_SERVICE_HOST": ("JOB_COMPLETION_INDEX",),
    "OMPI_MCA_orte_hnp_uri": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
}
DETECTION_SECONDS = 300  # for finding the coordinator; jax's default
ALONE = "IGPO_DISTRIBUTED=0 trains in this process alone"


def initialize(*, saves_on_signals: bool = False) -> None:
    """Connects the processes of a run that a TPU pod, SLURM, Kubernetes or MPI has started, and starts the devices. If none of
    these has started this process, or if the environment variable IGPO_DISTRIBUTED is 0, the run is one process. Call this
    function before any use of devices.

    All processes end if one does not respond for IGPO_HEARTBEAT_SECONDS (environment variable, default 100). If
    `saves_on_signals` is True, JAX's preemption service receives termination signals; otherwise they end this process. If the
    processes of a job cannot be connected, or if there are no devices, prints the reason in one line and ends this process."""
    try:
        if os.environ.get("IGPO_DISTRIBUTED") != "0":
            _connect(saves_on_signals)
        find_devices()
    except ValueError as error:
        sys.exit(f"error: {error}")


def _connect(saves_on_signals: bool) -> None:
    # The service would replace the handler of SIGTERM.
    jax.config.update("jax_enable_preemption_service", saves_on_signals)
    try:
        with _hidden_variables(not_of_a_job()), warnings.catch_warnings():
            warnings.filterwarnings("error", "Kubernetes environment detected")  # the package kubernetes is missing
            job = ClusterEnv.auto_detect_unset_distributed_params(
                os.environ.get("JAX_COORDINATOR_ADDRESS"), None, None, None, None, DETECTION_SECONDS
            )
            if job[0] is not None and job[2] == 0:
                _check_coordinator_port(job[0])
            seconds = int(os.environ.get("IGPO_HEARTBEAT_SECONDS", "100"))
            jax.distributed.initialize(*job[:3], heartbeat_timeout_seconds=seconds)
    except Exception as error:  # a cluster's client library may raise anything
        if isinstance(error, ValueError) and "coordinator_address" in str(error):  # jax found no cluster
            return
        reason = f"{type(error).__name__}: {first_line(error)}"
        if isinstance(error, UserWarning):
            reason = "the package kubernetes is not installed"
        elif type(error).__name__ != "ConfigException":  # the pod has no service account
            raise ValueError(f"the processes of this job cannot be connected: {reason}; {ALONE}") from None
        print(f"note: this process does not look for others of its Kubernetes job: {reason}", file=sys.stderr)
    if saves_on_signals and jax.distributed.is_initialized():
        forward_signals()


def _check_coordinator_port(address: str) -> None:
    """Raises OSError if process 0 cannot listen at the port of the coordinator's address, HOST:PORT. Without this check, jaxlib
    would crash."""
    bind = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", f"[::]:{address.rpartition(':')[2]}")
    host, _, port = bind.rpartition(":")
    try:
        listen(host.strip("[]"), int(port)).close()
    except OSError as error:
        remedy = "end the process that uses the port, or set JAX_COORDINATOR_PORT on all processes"
        raise OSError(f"the coordinator cannot listen at {bind}: {error}; {remedy}") from None


def not_of_a_job() -> list[str]:
    """Returns the names of environment variables from which jax would wrongly conclude that a scheduler has started this
    process as part of a job. For example, SLURM also sets the number of a job's tasks in an interactive shell, although the
    shell is the only task that is running. jax would wait for the other tasks in vain."""
    found = [name for name, others in JOB_VARIABLES.items() if not all(other in os.environ for other in others)]
    if os.environ.get("SLURM_STEP_NUM_TASKS") == "1" and os.environ.get("SLURM_NTASKS", "1") != "1":
        found.append("SLURM_JOB_ID")
    return found


@contextlib.contextmanager
def _hidden_variables(names: list[str]) -> Iterator[None]:
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextlib.contextmanager
def sole_writer(folder: str | os.PathLike) -> Iterator[None]:
    """Context manager in whose body process 0 holds the lock of a folder, see `locked`. Raises an error on all processes if
    another run holds the lock."""
    with contextlib.ExitStack() as held:
        with raise_on_all_hosts():
            if jax.process_index() == 0:
                held.enter_context(locked(folder))
        yield


@contextlib.contextmanager
def raise_on_all_hosts() -> Iterator[None]:
    """Context manager that makes all processes fail if one process fails. If the body raises ValueError or OSError on one
    process, the other processes raise ValueError, so that none of them waits for the failed process. The body must not contain
    collective operations. At the end of the body, all processes wait for each other."""
    own = None
    try:
        yield
    except (ValueError, OSError) as error:
        own = error
    failed = all_gather_hosts(own is not None)
    if own is not None:
        raise own
    require(not failed.any(), f"process {failed.argmax()} has found an error, see what it prints")


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """Context manager that ends this process immediately if the body fails in a run of several processes. An orderly exit would
    wait for the other processes, but they are waiting for this process or have already ended. The other processes notice the
    exit and end in the same way."""
    try:
        yield
    except Exception:
        if jax.process_count() == 1:
            raise
        traceback.print_exc()
        failure = f"error: process {jax.process_index()} cannot go on, see above, or another process has ended, see its output"
        print(f"{failure}; the same command continues the run from its newest checkpoint", file=sys.stderr, flush=True)
        os._exit(1)


def all_gather_hosts(value) -> np.ndarray:
    """Gathers a number or an array from every process. All processes must give the same shape. Returns the array [processes,
    ...] on every process."""
    value = np.asarray(value)
    return value[None] if jax.process_count() == 1 else np.asarray(multihost_utils.process_allgather(value))


def gather_texts(text: str, size: int = 400) -> list[str]:
    """Gathers one text from every process. Each text is cut to `size` bytes of UTF-8. Returns the list of all texts on every
    process."""
    data = np.zeros(size, np.uint8)
    encoded = text.encode("utf-8", "replace")[:size]
    data[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    return [row.tobytes().rstrip(b"\0").decode("utf-8", "ignore") for row in all_gather_hosts(data)]


def own_rows(number: int) -> np.ndarray:
    """Returns the indices of the rows that this process works on, if `number` rows are divided among all processes."""
    return np.arange(jax.process_index(), number, jax.process_count())


def share_rows(values: np.ndarray, work: Callable[[np.ndarray], Any]) -> np.ndarray:
    """Divides the computation of an array among all processes by rows. `values` is an array of zeros, [n, ...]. Each process
    sets values[rows] to work(rows), where rows is `own_rows(n)`. Returns the complete array on all processes."""
    rows = own_rows(len(values))
    if rows.size:
        values[rows] = work(rows)
    return all_gather_hosts(values).sum(axis=0, dtype=values.dtype)


def check_same(fingerprints: dict[str, str]) -> None:
    """Raises ValueError on all processes if a fingerprint on any process differs from that on process 0. `fingerprints` maps
    names to hexadecimal numbers."""
    numbers = np.array([int(value, 16) for value in fingerprints.values()], np.uint64).view(np.uint32)
    found = all_gather_hosts(numbers).reshape(jax.process_count(), len(fingerprints), 2)
    for process, index in np.argwhere((found != found[0]).any(axis=2))[:1]:
        other = f"process {process} has another {list(fingerprints)[index]} than process 0"
        raise ValueError(f"{other}; all hosts need the same command and the same files")


def check_shared(folder: pathlib.Path) -> None:
    """Raises ValueError if a process cannot see a file that process 0 writes into `folder`. The folder must exist on process
    0."""
    if jax.process_count() == 1:
        return
    marker = folder / f".shared-{all_gather_hosts(np.uint32(time.time_ns() % 2**32))[0]}"
    with raise_on_all_hosts():
        if jax.process_index() == 0:
            marker.touch()
    with raise_on_all_hosts():
        unseen = f"process {jax.process_index()} does not see what process 0 writes into {folder}"
        require(marker.exists(), f"{unseen}; a run on several hosts needs a --workdir that all of them share")
    if jax.process_index() == 0:
        marker.unlink()
