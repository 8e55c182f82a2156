"""Tasks: where problems come from, what their traces are, how answers are rewarded.

A task is a module with `load(task, split, seed) -> list[Problem]` for the splits sft, rl and test, and
`reward(problem, text) -> float`, 0.0 or 1.0, where `text` is a completion up to its first EOS.
"""

import functools
import importlib
import pkgutil

NOT_TASKS = {"problem"}


@functools.cache
def load_task(name: str):
    """The module of task `name`.

    Raises:
        ValueError: no such task; the message lists them.
    """
    known = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in NOT_TASKS)
    if name not in known:
        raise ValueError(f"task.name={name!r} is none of {', '.join(known)}")
    return importlib.import_module(f"{__name__}.{name}")
