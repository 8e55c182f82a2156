"""Records the code of a user's own task and reward functions, which may change while a run is interrupted."""

import logging
import pathlib
from typing import Any

from igpo_jax.runtime.files import read_json, wrap_read_errors
from igpo_jax.tasks.own_code import own_code

log = logging.getLogger(__name__)


def code_history(workdir: pathlib.Path, config: dict[str, Any]) -> dict[str, dict[str, list[str]]]:
    """Returns the entry "code" of the run's data.json: {"code": {module: hashes of its file}}, in the order in which the run
    used them, or {} if all code is part of igpo_jax. `config` is the run's configuration as a JSON value. Logs a warning for
    each module that has changed since the run was last opened."""
    file = workdir / "data.json"
    with wrap_read_errors(f"{file}, key code,"):
        written = read_json(file).get("code", {}) if file.is_file() else {}
        history = {module: list(hashes) for module, hashes in written.items()}
    for module, digest in own_code(config).items():
        before = history.setdefault(module, [])
        if before and before[-1] != digest:
            text = "%s: the module %s has changed since the run was last opened; rewards before and after may differ (%s, key code)"
            log.warning(text, workdir, module, file.name)
        if before[-1:] != [digest]:
            before.append(digest)
    return {"code": history} if history else {}
