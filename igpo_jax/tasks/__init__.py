"""Tasks: problems, their worked solutions (traces) and rewards. A task is a module that defines

    defaults(**values) -> dict                     the section `task` of a configuration
    load(task, split, seed) -> list[Problem]       split: sft, rl or test
    reward(problem, text, **options) -> float      1.0 if the completion `text` is correct, otherwise less
    extract_answer(text, **options) -> str | None  the answer in a completion
    REWARD_OPTIONS                                 keys of the section `task` that are the `options` above
    content(task, problem) -> (str, str)           optional: equal for problems that count as equal (decontamination.py)
    warm_up() -> None                              optional: loads what `reward` needs, before a worker process grades answers

Some tasks generate their problems. The test split of such a task is the same for all seeds, so that runs with different seeds
are comparable, and has no questions in common with the other splits of the task. Before a run of any task, training problems
that are also in the test split are dropped."""

import importlib
import logging
import types
from collections.abc import Mapping
from typing import Any

TASKS = ("arithmetic", "countdown", "math", "sudoku", "words")
PARTS = ("defaults", "load", "reward", "extract_answer", "REWARD_OPTIONS")

log = logging.getLogger(__name__)
_failed: set[str] = set()  # tasks of whose `extract_answer` a failure was logged


def load_task(name: str) -> types.ModuleType:
    """Imports and returns the module of a task. `name` is one of `TASKS`, or "package.module" for a user's own task. The code
    of the module runs with the user's permissions. Raises ValueError if the module cannot be imported or lacks a required
    function or constant."""
    if name in TASKS:
        return importlib.import_module(f"{__name__}.{name}")
    neither = f"task.name={name!r} is none of {', '.join(TASKS)}, and"
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:  # a user's module may raise anything, and may end with sys.exit()
        raise ValueError(f"{neither} no importable module: {type(error).__name__}: {error}") from None
    missing = [part for part in PARTS if not hasattr(module, part)]
    if missing:
        raise ValueError(f"{neither} the module of that name is no task: it lacks {', '.join(missing)}")
    return module


def extracted_answer(section: Mapping[str, Any], text: str) -> str | None:
    """Returns the answer that a task finds in the text of a completion, or None if it finds none. `section` is the section
    `task` of a configuration. If the task's `extract_answer` fails, or returns something other than text and None, the text has
    no answer; the first failure is logged. Rewards do not depend on this answer."""
    task = load_task(section["name"])
    try:
        answer = task.extract_answer(text, **{name: section[name] for name in task.REWARD_OPTIONS})
        if not isinstance(answer, str | None):
            raise TypeError(f"it returned {answer!r}")
        (answer or "").encode()  # raises for a lone surrogate, which cannot be saved
        return answer
    except (Exception, SystemExit) as error:  # a user's function may raise anything
        if section["name"] not in _failed:
            _failed.add(section["name"])
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
            log.warning("extract_answer of the task %s fails: %s; such completions have no answer", section["name"], reason)
        return None
