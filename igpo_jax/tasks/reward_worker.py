"""Worker process of reward_pool.py, started by: python -m igpo_jax.tasks.reward_worker FD FUNCTION OPTIONS."""

import contextlib
import importlib
import json
import os
import resource
import signal
import sys
from multiprocessing.connection import Connection

MEMORY = 4 * 2**30  # bytes of address space; grading that needs more raises MemoryError before the machine runs out of memory


def main(fd: str, name: str, options: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ^C is handled by the training process
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    sys.set_int_max_str_digits(20_000)
    module, _, function = name.partition(":")
    connection = Connection(int(fd))
    try:
        reward = getattr(importlib.import_module(module), function)
    except Exception as error:  # a user's module may raise anything; the pool reports it
        connection.send(f"{type(error).__name__}: {error}")
        return
    connection.send(None)
    keywords = json.loads(options)
    with contextlib.suppress(EOFError):  # the pool closed the connection
        while True:
            for problem, text in connection.recv():
                try:
                    result = float(reward(problem, text, **keywords))
                except TimeoutError:  # a time limit of the function counts like the pool's
                    result = None
                except Exception as error:  # the answer gets no reward and the outcome "error"
                    result = f"{type(error).__name__}: {error}"[:500]
                connection.send(result)


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"  # a reward that imports jax must not take the accelerators
    main(*sys.argv[1:])
