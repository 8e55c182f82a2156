"""Command-line and config-file parsing that reports errors in one line instead of a traceback."""

import difflib
import pathlib
import re
import runpy
import sys
import traceback
from collections.abc import Iterator

from absl import flags
from ml_collections import ConfigDict

from igpo_jax.runtime.host import keep_freed_memory


def parse_flags(arguments: list[str]) -> list[str]:
    """Parses a command's flags with absl and returns the arguments that are not flags. If the command line or the config file
    has an error, prints the error in one line and ends the process."""
    keep_freed_memory()
    try:
        resolved, path = list(arguments), None
        for i, argument in enumerate(arguments):
            if argument.startswith("--config="):
                path = resolve_config_path(argument.removeprefix("--config="))
                resolved[i] = f"--config={path}"
            elif i and arguments[i - 1] == "--config":
                resolved[i] = path = resolve_config_path(argument)
        if path is not None:
            _check_overrides(resolved, _load_config(path))
        return flags.FLAGS(resolved)
    except (ValueError, flags.Error) as error:
        sys.exit(f"error: {error}")


def resolve_config_path(argument: str) -> str:
    """Returns the path of a config file, given a name such as `math.py` or `math.py:variant`. A name without a folder is also
    looked up in ./configs and in the repository's configs/. If there is no such file, raises a ValueError that lists all config
    files."""
    name, colon, variant = argument.partition(":")
    folders = [pathlib.Path("configs"), pathlib.Path(__file__).parents[1] / "configs"]
    for path in [pathlib.Path(name)] + ([folder / name for folder in folders] if "/" not in name else []):
        if path.is_file():
            return f"{path}{colon}{variant}"
    known = sorted({path.name for folder in folders for path in folder.glob("*.py")})
    raise ValueError(f"no config file {name!r} here, nor in configs/; there are: {', '.join(known)}")


def _load_config(argument: str) -> ConfigDict:
    """Calls get_config() of a config file, given as `file.py` or `file.py:variant`, and returns the configuration. Raises
    ValueError if the call fails or does not return a configuration. The message contains the line number and, if a key is
    wrong, the most similar key."""
    path, colon, variant = argument.partition(":")
    try:
        config = runpy.run_path(path)["get_config"](*([variant] if colon else []))
    except Exception as error:  # a config file can raise anything
        in_file = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        line = error.lineno if isinstance(error, SyntaxError) else in_file[-1] if in_file else None
        cause: BaseException = error
        while cause.args and isinstance(cause.args[0], Exception):
            cause = cause.args[0]
        told = (str(cause.args[0]) if cause.args else "").splitlines()
        # ml_collections lists all keys of the section and ends with the nearest one.
        reason = "; ".join(part.partition(" and cannot be added")[0] for part in (told[:1] + told[1:][-1:]))
        where = path if line is None else f"{path}, line {line}"
        raise ValueError(f"{where}: {type(cause).__name__}: {reason}") from None
    if not isinstance(config, ConfigDict):
        raise ValueError(f"{path}: get_config() returns {type(config).__name__}, not a configuration; start from base_config()")
    return config


def _check_overrides(arguments: list[str], config: ConfigDict) -> None:
    """Raises ValueError if a command-line argument --config.KEY=VALUE has a key that is not in the configuration."""
    known = list(_dotted_keys(config))
    for argument in arguments:
        override = re.match(r"--?(?:no)?config\.([^=\[]+)", argument)
        if override and override[1] not in known:
            nearest = difflib.get_close_matches(override[1], known, n=1)
            hint = f"; did you mean --config.{nearest[0]}?" if nearest else f"; there are: {', '.join(known)}"
            raise ValueError(f"--config.{override[1]}: there is no such key{hint}")


def _dotted_keys(section: ConfigDict, prefix: str = "") -> Iterator[str]:
    for key, value in section.items():
        yield prefix + key
        if isinstance(value, ConfigDict):
            yield from _dotted_keys(value, f"{prefix}{key}.")
