"""Command lines and config files whose mistakes are said in one line."""

import difflib
import re
import runpy
import sys
import traceback

from absl import flags
from ml_collections import ConfigDict

from igpo_jax.config import resolve_config_path
from igpo_jax.runtime.host import keep_freed_memory


def parse_flags(arguments: list[str]) -> list[str]:
    """absl's parser; what is wrong with a command line or a config file is said in one line instead of a traceback."""
    keep_freed_memory()
    try:
        arguments, path = _with_resolved_config(arguments)
        if path is not None:
            _check_overrides(arguments, _load_config(path))
        return flags.FLAGS(arguments)
    except (ValueError, flags.Error) as error:
        sys.exit(f"error: {error}")


def _with_resolved_config(arguments: list[str]) -> tuple[list[str], str | None]:
    """--config=math.py becomes a path into configs/; that path, too."""
    resolved, path = [], None
    for i, argument in enumerate(arguments):
        if argument.startswith("--config="):
            path = resolve_config_path(argument.removeprefix("--config="))
            argument = f"--config={path}"
        elif i and arguments[i - 1] == "--config":
            argument = path = resolve_config_path(argument)
        resolved.append(argument)
    return resolved, path


def _load_config(argument: str) -> ConfigDict:
    """What get_config() of `file.py` or `file.py:variant` returns.

    Raises:
        ValueError: it fails, or returns something else; the message names the line and, of a wrong key, the nearest.
    """
    path, colon, variant = argument.partition(":")
    try:
        config = runpy.run_path(path)["get_config"](*([variant] if colon else []))
    except Exception as error:  # whatever a mistake in a config file raises
        in_file = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        line = error.lineno if isinstance(error, SyntaxError) else in_file[-1] if in_file else None
        while error.args and isinstance(error.args[0], Exception):
            error = error.args[0]
        reason = (str(error.args[0]) if error.args else "").splitlines()
        # ml_collections lists all keys of the section, and ends with the nearest one.
        reason = [part.partition(" and cannot be added")[0] for part in (reason[:1] + reason[1:][-1:])]
        where = path if line is None else f"{path}, line {line}"
        raise ValueError(f"{where}: {type(error).__name__}: {'; '.join(reason)}") from None
    if not isinstance(config, ConfigDict):
        raise ValueError(
            f"{path}: get_config() returns {type(config).__name__}, not a configuration; start from base_config()"
        )
    return config


def _check_overrides(arguments: list[str], config: ConfigDict) -> None:
    """Raises ValueError for --config.key with a key that is not there."""

    def keys(section: ConfigDict, prefix: str = ""):
        for key, value in section.items():
            yield prefix + key
            if isinstance(value, ConfigDict):
                yield from keys(value, f"{prefix}{key}.")

    known = list(keys(config))
    for argument in arguments:
        override = re.match(r"--?(?:no)?config\.([^=\[]+)", argument)
        if override and override[1] not in known:
            nearest = difflib.get_close_matches(override[1], known, n=1)
            hint = f"; did you mean --config.{nearest[0]}?" if nearest else f"; there are: {', '.join(known)}"
            raise ValueError(f"--config.{override[1]}: there is no such key{hint}")
