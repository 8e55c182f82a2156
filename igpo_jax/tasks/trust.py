"""Checks the names of Python modules and functions in files such as configurations. A file may come from a stranger, so the
names are checked before any of the code is imported."""

import os
import re
from collections.abc import Collection
from typing import Any

from igpo_jax.runtime.checks import require
from igpo_jax.tasks import TASKS

# Modules of this package with tasks and reward functions
MODULES = frozenset({f"igpo_jax.tasks.{name}" for name in TASKS} | {"igpo_jax.evaluate.graders"})
IDENTIFIER = r"[^\W\d]\w*"
NAME = re.compile(rf"{IDENTIFIER}(\.{IDENTIFIER})*(:{IDENTIFIER})?")  # package.module or package.module:name
SHOWN = 100  # characters of an invalid name in a message


def named_code(values: dict[str, Any], graded: bool = True) -> dict[str, str]:
    """Returns the Python modules and functions that a configuration names, as {dotted key: name}. `values` is the configuration
    as a JSON value. If `graded` is False, omits the reward function, because it is imported only to grade answers. Raises
    ValueError if a name is not a string."""
    named = {"task.name": values["task"]["name"]}
    if graded and (function := values.get("reward", {}).get("function", "")):
        named["reward.function"] = function
    for key, name in named.items():
        require(isinstance(name, str), f"{key}={repr(name)[:SHOWN]} is no text")
    return named


def require_trusted(named: dict[str, str], file: str | os.PathLike, trust: Collection[str]) -> None:
    """Raises ValueError if `file` names code that is neither part of this package nor in `trust`. The message lists the code
    that would run. `named` is {dotted key: name of a module or function}. If `trust` contains a module, all its functions are
    trusted. Imports nothing."""
    foreign = {key: name for key, name in named.items() if not _is_trusted(name, trust)}
    for key, name in foreign.items():
        require(NAME.fullmatch(name), f"{file}: {key}={repr(name)[:SHOWN]} is no name of a Python module")
    names = dict.fromkeys(foreign.values())
    told = " and ".join(f"{key}={name!r}" for key, name in foreign.items())
    added = " ".join(f"--trust={name}" for name in names)
    require(
        not foreign,
        f"{file} names code that is not part of igpo_jax: {told}. It would be imported and run with your permissions; if you "
        f"know this code and trust it, add {added} (in Python: trust={list(names)})",
    )


def _is_trusted(name: str, trust: Collection[str]) -> bool:
    module = name.partition(":")[0]
    return name in TASKS or module in MODULES or name in trust or module in trust
