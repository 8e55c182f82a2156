"""Tasks: where problems come from, what their traces are, how answers are rewarded.

A task is a module with `defaults(**values) -> dict`, the section `task` of a configuration; `load(task, split, seed) ->
list[Problem]` for the splits sft, rl and test; and `reward(problem, text, **options) -> float`, 1.0 where `text`, a
completion, is right, less where it is not; and `extract_answer(text, **options)`, the answer that a completion gives, or None.
REWARD_OPTIONS names the keys of the section that these two take.
"""

import importlib

TASKS = ("arithmetic", "countdown", "math", "sudoku", "words")
PARTS = ("defaults", "load", "reward", "extract_answer", "REWARD_OPTIONS")


def load_task(name: str):
    """The module of task `name`: one of `TASKS`, or one's own, "package.module", importable from here; it is code that runs as
    you do.

    Raises:
        ValueError: no such task, the message lists them; or a module that is none.
    """
    if name in TASKS:
        return importlib.import_module(f"{__name__}.{name}")
    try:
        module = importlib.import_module(name)
    except Exception as error:  # whatever a user's module raises
        raise ValueError(
            f"task.name={name!r} is none of {', '.join(TASKS)}, nor a module of one's own: {type(error).__name__}: {error}"
        ) from None
    missing = [part for part in PARTS if not hasattr(module, part)]
    if missing:
        raise ValueError(
            f"task.name={name!r} is none of {', '.join(TASKS)}, and the module of that name is no task: it lacks "
            f"{', '.join(missing)}"
        )
    return module
