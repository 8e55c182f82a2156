"""Tasks: where problems come from, what their traces are, how answers are rewarded.

A task is a module with `defaults(**values) -> dict`, the section `task` of a configuration; `load(task, split, seed) ->
list[Problem]` for the splits sft, rl and test; and `reward(problem, text, **options) -> float`, 1.0 where `text`, a
completion, is right, less where it is not; and `stated(text, **options)`, the answer that a completion gives, or None.
REWARD_OPTIONS names the keys of the section that these two take.
"""

import importlib

TASKS = ("arithmetic", "countdown", "math", "sudoku", "words")


def load_task(name: str):
    """The module of task `name`.

    Raises:
        ValueError: no such task; the message lists them.
    """
    if name not in TASKS:
        raise ValueError(f"task.name={name!r} is none of {', '.join(TASKS)}")
    return importlib.import_module(f"{__name__}.{name}")
