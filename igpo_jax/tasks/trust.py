"""Checks the names of Python modules and functions in files such as configurations. Such a file may come from an untrusted
source, and importing a module runs its code. Therefore, the names are checked before anything is imported."""

import os
import re
from collections.abc import Collection
from typing import Any

from igpo_jax.runtime.checks import require
from igpo_jax.tasks import TASKS
from igpo_jax.tasks.reward_terms import TASK, split_terms

# Modules of this package with tasks and reward functions
MODULES = frozenset({f"igpo_jax.tasks.{name}" for name in TASKS} | {"igpo_jax.evaluate.graders"})
IDENTIFIER = r"[^\W\d]\w*"
NAME = re.compile(rf"{IDENTIFIER}(\.{IDENTIFIER})*(:{IDENTIFIER})?")  # package.module or package.module:name
SHOWN = 100  # characters of an invalid name in a message


def named_code(values: dict[str, Any], graded: bool = True) -> dict[str, list[str]]:
    """Returns the Python modules and functions that a configuration names, as {dotted key: names}. `values` is the configuration
    as a JSON value. If `graded` is False, omits the reward functions, because they are imported only to grade answers. Raises
    ValueError if a value is not a string."""
    keys = {"task.name": values["task"]["name"]}
    for name, part in values.get("evaluation", {}).get("benchmarks", {}).items():
        keys[f"evaluation.benchmarks.{name}.task.name"] = part["task"]["name"]
    if graded and (function := values.get("reward", {}).get("function", "")):
        keys["reward.function"] = function
    for key, value in keys.items():
        require(isinstance(value, str), f"{key}={repr(value)[:SHOWN]} is no text")
    named = {key: [value] for key, value in keys.items()}
    if "reward.function" in keys:
        named["reward.function"] = [name for _, name in split_terms(keys["reward.function"]) if name != TASK]
    return named


def require_trusted(named: dict[str, list[str]], file: str | os.PathLike, trust: Collection[str]) -> None:
    """Raises ValueError if `file` names code that is neither a task or grader of this package (`TASKS`, `MODULES`) nor in
    `trust`. The message lists the code that would run. `named` is {dotted key: names of modules or functions}. If `trust`
    contains a module, all its functions are trusted. Imports nothing."""
    foreign = [(key, name) for key, names in named.items() for name in names if not _is_trusted(name, trust)]
    for key, name in foreign:
        require(NAME.fullmatch(name), f"{file}: {key}={repr(name)[:SHOWN]} is no name of a Python module")
    names = dict.fromkeys(name for _, name in foreign)
    told = " and ".join(f"{key}={name!r}" for key, name in foreign)
    added = " ".join(f"--trust={name}" for name in names)
    require(
        not foreign,
        f"{file} names code that is not part of igpo_jax: {told}. It would be imported and run with your permissions; if you "
        f"know this code and trust it, add {added} (in Python: trust={list(names)})",
    )


def _is_trusted(name: str, trust: Collection[str]) -> bool:
    module = name.partition(":")[0]
    return name in TASKS or module in MODULES or name in trust or module in trust
