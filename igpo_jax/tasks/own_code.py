"""Hashes of the files that define a user's own tasks and reward functions. With other code, rewards have another meaning."""

import contextlib
import hashlib
import importlib.util
import pathlib
from collections.abc import Iterable
from typing import Any

from igpo_jax.tasks import TASKS
from igpo_jax.tasks.trust import named_code


def own_code(config: dict[str, Any]) -> dict[str, str]:
    """Returns {module: hash of its file} for the user's own tasks and reward functions that a configuration, a JSON value, names
    (see `own_files`)."""
    return {module: file_digest(file) for module, file in own_files(sum(named_code(config).values(), [])).items()}


def own_files(names: Iterable[str]) -> dict[str, pathlib.Path]:
    """Returns {module: its file} for tasks and reward functions, "package.module" or "package.module:name", without those of
    igpo_jax. Imports nothing. Leaves out modules without a file, and modules that do not exist, which are errors elsewhere."""
    modules = sorted({name.partition(":")[0] for name in names if name not in TASKS})
    files = {module: _file_of(module) for module in modules if module.partition(".")[0] != "igpo_jax"}
    return {module: file for module, file in files.items() if file}


def _file_of(module: str) -> pathlib.Path | None:
    top, *rest = module.split(".")
    spec = None
    with contextlib.suppress(Exception):  # packages may install finders of their own, which may raise anything
        spec = importlib.util.find_spec(top)  # of a submodule, this function would import the packages around it
    folders = (pathlib.Path(folder, *rest) for folder in (spec and spec.submodule_search_locations) or ())
    files = [pathlib.Path(spec.origin)] if spec and spec.has_location and spec.origin and not rest else []
    files += [file for folder in folders for file in (folder / "__init__.py", pathlib.Path(f"{folder}.py"))]
    return next(filter(pathlib.Path.is_file, files), None)


def file_digest(file: str | pathlib.Path) -> str:
    """Returns a hash of a file, or "" if the file cannot be read."""
    try:
        return hashlib.sha256(pathlib.Path(file).read_bytes()).hexdigest()[:16]
    except OSError:
        return ""
