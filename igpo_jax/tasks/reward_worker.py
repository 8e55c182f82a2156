"""Worker process of reward_pool.py, which grades answers. Its arguments are the file descriptor of the connection to the pool,
the reward functions, and hashes of their files (see `main`)."""

import contextlib
import ctypes
import functools
import importlib
import json
import math
import os
import pickle
import resource
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from igpo_jax.runtime import streams
from igpo_jax.tasks.own_code import file_digest

MEMORY = 4 * 2**30  # bytes of address space; grading that needs more raises MemoryError before the machine runs out of memory
PR_SET_PDEATHSIG = 1  # of prctl
MAX_REASON = 500  # characters of an error
LARGEST = 1e30  # maximum reward; rewards are stored in float32, whose maximum is 3.4e38, and may be scaled
WORKER = os.getpid()
Reward = Callable[..., Any]  # (problem, text) -> float


def main(fd: str, functions: str, files: str) -> None:
    """Grades answers until the pool closes the connection with the file descriptor `fd`. `functions` is JSON, [[name, options],
    ...], with the name "package.module:name" and the keyword arguments of each reward function. `files` is JSON, {file: hash},
    with the files of the functions' modules when the pool was made. A worker that starts later must not use other code."""
    connection = Connection(int(fd))
    os.set_inheritable(int(fd), False)  # for programs that the function starts
    if not end_with_parent(connection):
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ^C is handled by the training process
    streams.use_as_log("stdout", "stderr")  # a function that prints does not fail because the disk is full
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]  # which only root may raise
    memory = MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    sys.set_int_max_str_digits(20_000)
    rewards: list[tuple[str, Reward]] = []
    trouble = None
    for name, options in (named := json.loads(functions)):
        shown = name if len(named) > 1 else ""
        try:
            rewards.append((shown, functools.partial(load(name), **options)))
        except (Exception, SystemExit) as error:  # a user's module may raise anything; the pool reports it
            trouble = describe(error, shown)
            break
    for file, digest in json.loads(files).items():
        if file_digest(file) != digest:
            again = "run the same command again to continue with it as it is now, or restore it first"
            trouble = f"{file} has changed since this command began; {again}"
    reply(connection, "loaded", trouble)
    if trouble:
        return
    number = 0
    # The pool closed the connection, or its process has ended.
    with contextlib.suppress(EOFError, OSError, pickle.UnpicklingError), os.fdopen(int(fd), "rb", closefd=False) as answers:
        while True:
            for problem, text in pickle.load(answers):
                reply(connection, number, rewards_of(rewards, problem, text))
                number += 1


def rewards_of(rewards: list[tuple[str, Reward]], problem: Any, text: str) -> list[float] | str | None:
    """Returns the value of each reward function. Returns the text of an error if one of them fails, and None if one of them
    raises TimeoutError."""
    values = []
    for name, reward in rewards:
        try:
            values.append(as_reward(reward(problem, text)))
        except TimeoutError:  # a time limit of the function counts like the pool's
            return None
        except (Exception, SystemExit) as error:  # the answer gets no reward and the outcome "error"
            return describe(error, name)
    return values


def describe(error: BaseException, name: str) -> str:
    """Returns the text of an error. `name` is the function that raised it, or "" if there is only one function."""
    return f"{name}: {type(error).__name__}: {error}".removeprefix(": ")


def reply(connection: Connection, subject: str | int, result: list[float] | str | None) -> None:
    """Sends a line of JSON, [subject, result], to the pool. `subject` is "loaded" or the number of an answer, counted from the
    start of this process. `result` is a list of rewards, the text of an error, or None. `Connection.send` is not used, because it
    announces the length of each message: if the reward function wrote junk to the connection, the pool could mistake it for a
    length, and wait forever for the rest of the message. A process that the reward function has forked, and that returns from it
    like the worker, ends here: its replies would be taken for those on later answers."""
    if os.getpid() != WORKER:
        os._exit(0)
    if isinstance(result, str):
        result = result[:MAX_REASON].encode("utf-8", "replace").decode()
    line = json.dumps([subject, result]).encode() + b"\n"
    while line:
        line = line[os.write(connection.fileno(), line) :]


def end_with_parent(connection: Connection) -> bool:
    """Makes Linux kill this process when its parent (the process of the pool) ends, even while the reward function is
    computing. Returns False if the parent has already ended. The pool sends nothing before the worker is ready, so the
    connection is readable only if the parent has closed it."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    return not connection.poll(0)


def load(name: str) -> Reward:
    """Imports the module of a reward function, "package.module:name", and returns the function. First calls the module's function
    `warm_up()` if there is one."""
    module, _, function = name.partition(":")
    reward = getattr(importlib.import_module(module), function)
    warm_up(module)
    return reward


@functools.cache  # one call for all functions of a module
def warm_up(module: str) -> None:
    with contextlib.suppress(TimeoutError):  # a time limit of the function; what it has loaded stays loaded
        getattr(sys.modules[module], "warm_up", lambda: None)()


def as_reward(value: Any) -> float:
    """Converts the return value of a reward function to float. Raises ValueError if the value is not a number, is NaN or
    infinite, or is larger than `LARGEST` in absolute value."""
    try:
        number = math.nan if isinstance(value, str | bytes) else float(value)
    except (OverflowError, TypeError, ValueError):
        number = math.nan
    if not abs(number) <= LARGEST:
        raise ValueError(f"the function returned {value!r}; a reward is a number from {-LARGEST:g} to {LARGEST:g}")
    return number


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"  # a reward that imports jax must not take the accelerators
    main(*sys.argv[1:])
