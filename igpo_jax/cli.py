"""Parses command lines and config files. Errors are reported in one line instead of a traceback."""

import difflib
import functools
import inspect
import logging
import math
import os
import pathlib
import re
import runpy
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from absl import app, flags

from igpo_jax.command_help import HELP, HELP_CONFIG, command_help, config_help
from igpo_jax.runtime import interrupts, streams
from igpo_jax.runtime.buckets import with_addresses
from igpo_jax.runtime.files import require_unicode
from igpo_jax.runtime.installation import working_folder

if TYPE_CHECKING:  # `doctor` imports this module on machines on which packages are missing
    from ml_collections import ConfigDict

FLAG = re.compile(r"--?([A-Za-z][\w.-]+)(?:\[\d+\])?(=.*)?", re.DOTALL)
PATIENCE = 10.0  # seconds
SHOWN = 100  # characters of an argument in a message
LONGEST = 10_000  # characters of a message that ends a command; it may list names in a file
# (file, function) of Orbax that logs the traceback of each error that it also raises. An error passes through several of them.
LOGGED_AND_RAISED = (
    ("future.py", "run"),
    ("async_checkpointer.py", "_thread_func"),
    ("checkpoint_manager.py", "wait_until_finished"),
)
# Characters that break lines, move a terminal's cursor or reverse the direction of text, and the surrogates by which Python
# replaces bytes in the names of files. A surrogate cannot be printed.
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

flags.disclaim_key_flags()  # --help of a command lists the flag of `define_config` as the command's own


def define_config() -> "flags.FlagHolder[ConfigDict]":
    """Defines the flag --config. At this point, ml_collections also reads the files that the flag --flagfile names. If such a
    file cannot be read, prints the error in one line and ends the process."""
    from ml_collections import config_flags

    try:
        return config_flags.DEFINE_config_file("config", None, "A file in configs/, or a path; file.py:variant for a variant.")
    except (ValueError, flags.Error) as error:
        sys.exit(f"error: {error}")


def define_trust() -> "flags.FlagHolder[list[str]]":
    """Defines the flag --trust of the commands that read the folder of a run. The flag names code outside this package that the
    run may use (see tasks/trust.py)."""
    about = "A Python module, or MODULE:FUNCTION, outside igpo_jax that a run's config.json may name and that may be run."
    return flags.DEFINE_multi_string("trust", [], f"{about} May be given several times.")


def define_json() -> "flags.FlagHolder[bool]":
    """Defines the flag --json of the commands that end with a few lines of results."""
    return flags.DEFINE_bool("json", False, "Print the results as one JSON object instead.")


def define_allow_nonfinite() -> "flags.FlagHolder[bool]":
    """Defines the flag --allow_nonfinite of the commands that read weights. The flag allows weights that are NaN or
    infinite."""
    return flags.DEFINE_bool("allow_nonfinite", False, "Only warn of weights that are NaN or infinite.")


def escape_controls(text: str, kept: str = "\n\t") -> str:
    """Returns a text with all control characters escaped, except those in `kept`. Without escaping, an untrusted text, such as
    a model's output, could control the terminal on which it is printed, and for example change the clipboard."""
    return CONTROL.sub(lambda found: found[0] if found[0] in kept else found[0].encode("unicode_escape").decode(), text)


def tell(line: str) -> None:
    """Prints a line about the progress of a command to stderr, with control characters escaped."""
    print(escape_controls(line), file=sys.stderr, flush=True)


def run_command(main: Callable[[list[str]], Any], parse: Callable[[list[str]], list[str]]) -> None:
    """Calls a command's `main` with the arguments that `parse` returns, and ends the process. If `main` or `parse` exits with a
    message, such as `error: ...`, the message becomes one line of at most `LONGEST` characters. In this message and in log
    messages, control characters are escaped, because file names may contain them. Paths of local copies of bucket folders are
    replaced by the addresses of these folders. Characters that the encoding of stdout lacks are escaped, too. After an error,
    waits at most `PATIENCE` seconds for other threads, because the threads of a failed save in Orbax can wait for each other
    for minutes. Hides the tracebacks and warnings that Orbax's threads and coroutines print after a failed read or save: they
    repeat the error that Orbax raises.

    What cannot be written to stderr, for example because the disk is full, is dropped. If stdout cannot be written, this is an
    error."""
    streams.use_as_log("stderr")
    sys.unraisablehook = lambda unraisable: logging.debug("not raised: %r", unraisable.exc_value)
    logging.getLogger("asyncio").addFilter(lambda record: "exception was never retrieved" not in record.getMessage())
    logging.getLogger("absl").addFilter(lambda record: not _is_raised_later(record))
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    logging.setLogRecordFactory(functools.partial(_escaped_record, logging.getLogRecordFactory()))
    try:
        try:
            with streams.checked_output():
                app.run(main, flags_parser=parse)
        except MemoryError:
            sys.exit("error: out of memory")
    except BaseException as end:
        if isinstance(end, SystemExit) and isinstance(end.code, str):
            code = escape_controls(with_addresses(end.code), kept="")
            end.code = code if len(code) <= LONGEST else f"{code[:LONGEST]}..."
        jax = sys.modules.get("jax")  # `doctor` runs without it
        is_job = jax is not None and jax.distributed.is_initialized()  # processes of a job wait for each other at the end
        if not is_job and (not isinstance(end, SystemExit) or end.code):
            status = end.code if isinstance(end, SystemExit) and isinstance(end.code, int) else 1
            timer = threading.Timer(PATIENCE, os._exit, (status,))
            timer.daemon = True
            timer.start()
        raise


def _is_raised_later(record: logging.LogRecord) -> bool:
    return bool(record.exc_info) and "/orbax/" in record.pathname and (record.filename, record.funcName) in LOGGED_AND_RAISED


def _escaped_record(make: Callable[..., logging.LogRecord], *args, **kwargs) -> logging.LogRecord:
    record = make(*args, **kwargs)
    record.msg, record.args = escape_controls(with_addresses(record.getMessage())), ()
    return record


def parse_flags(arguments: list[str], words: bool = False) -> list[str]:
    """Prepares the process for the devices of this machine. Then parses a command's flags, and returns the arguments that are
    not flags (see `parse_arguments`)."""
    from igpo_jax.runtime import host  # imports jax

    host.prepare()
    return parse_arguments(arguments, words)


def parse_arguments(arguments: list[str], words: bool = False) -> list[str]:
    """Parses a command's flags with absl and returns the arguments that are not flags. If the command line or the config file
    has an error, prints the error in one line and ends the process. An argument that is neither a flag nor the value of a flag
    is an error. If `words` is True, such an argument is an error only if it contains "=" and no file has this name. If --help,
    -h or --help-config is given, prints the help and ends the process with the status 0."""
    interrupts.watch()
    try:
        print_help(arguments)
        require_unicode((*arguments, working_folder()))
        flags.FLAGS.set_gnu_getopt(True)  # flags may follow words
        given, path = _resolve_config(flags.FLAGS.read_flags_from_files(arguments[1:]))
        _check_arguments(given, _known_flags(path), words)
        try:
            rest = flags.FLAGS([arguments[0], *given])
        except (IndexError, KeyError, TypeError, AttributeError) as error:  # ml_collections, for an index such as seed[0]
            raise ValueError(f"an index in the --config flags fits no value of the configuration: {error}") from None
        for flag in (flags.FLAGS[name] for name in flags.FLAGS):
            if flag.present and isinstance(flag.value, float) and not math.isfinite(flag.value):  # NaN is within any bounds
                raise ValueError(f"--{flag.name}={flag.value} is no finite number")
        return rest
    except (ValueError, OSError, flags.Error) as error:  # absl writes a line for each missing flag
        sys.exit(f"error: {'; '.join(str(error).splitlines())}")


def print_help(arguments: Sequence[str]) -> None:
    """Prints the help that the arguments of a command ask for, and ends the process. Returns if they ask for none."""
    if not set(arguments).isdisjoint(HELP):
        print(command_help(_own_flags(dict.fromkeys(flags.FLAGS, False))))
        sys.exit()
    if HELP_CONFIG in arguments and "config" in flags.FLAGS:
        from igpo_jax.config import base_config
        from igpo_jax.key_help import describe

        given, path = _resolve_config([argument for argument in arguments[1:] if argument != HELP_CONFIG])
        if path:
            _check_arguments(given, _known_flags(path), words=True)
            flags.FLAGS([arguments[0], *given])
        print(escape_controls(config_help(describe(flags.FLAGS["config"].value if path else base_config()))))
        sys.exit()


def config_overrides(arguments: Sequence[str]) -> list[str]:
    """Returns the overrides --config.KEY=VALUE among arguments that were already parsed. Rewrites other spellings, such as
    --noconfig.KEY and --config.KEY VALUE, to this form."""
    overrides, given = [], flags.FLAGS.read_flags_from_files(arguments)
    for i, argument in enumerate(given):
        if override := re.fullmatch(r"--?(no)?(config\.[^=]+)(=.*)?", argument, re.DOTALL):
            negated, name, value = override.groups()
            if value is None:
                boolean = negated or flags.FLAGS[name].boolean
                value = f"={not negated}" if boolean else f"={given[i + 1]}"
            overrides.append(f"--{name}{value}")
    return overrides


def resolve_config_path(argument: str) -> str:
    """Returns the path of a config file, given a name such as `math.py`, `math` or `math.py:variant`. A name without a folder
    is also looked up in ./configs, and then in the configs/ folder of the installation. A wheel installs this folder inside the
    package. In a clone of the repository, the folder is beside the package. If there is no such file, raises a ValueError that
    lists all config files."""
    name, colon, variant = argument.partition(":")
    package = pathlib.Path(__file__).parent
    installed = package / "configs"
    folders = [pathlib.Path("configs"), installed if installed.is_dir() else package.parent / "configs"]
    for file in [name] if name.endswith(".py") else [name, f"{name}.py"]:
        for path in [pathlib.Path(file)] + ([folder / file for folder in folders] if "/" not in file else []):
            if path.is_file():
                return f"{path}{colon}{variant}"
    known = sorted({path.name for folder in folders for path in folder.glob("*.py")})
    raise ValueError(f"no config file {name!r} here, nor in configs/; there are: {', '.join(known)}")


def _resolve_config(arguments: list[str]) -> tuple[list[str], str | None]:
    """Returns (arguments, path). In the returned arguments, the name of the config file is replaced by its path. The path is
    None if the command takes no config file, or if no config file is given."""
    resolved, path = list(arguments), None
    if "config" in flags.FLAGS:
        for i, argument in enumerate(arguments):
            if re.match("--?config=", argument):
                path = resolve_config_path(argument.partition("=")[2])
                resolved[i] = f"--config={path}"
            elif i and arguments[i - 1] in ("-config", "--config") and not FLAG.fullmatch(argument):
                resolved[i] = path = resolve_config_path(argument)
    return resolved, path


def load_config(argument: str) -> "ConfigDict":
    """Calls get_config() of a config file, given as `file.py` or `file.py:variant`, and returns the configuration. Raises
    ValueError if the call fails or does not return a configuration. The message contains the line number and, if a key is
    wrong, the most similar key."""
    from ml_collections import ConfigDict

    path, colon, variant = argument.partition(":")
    try:
        get_config = runpy.run_path(path)["get_config"]
        has_variants = bool(inspect.signature(get_config).parameters)
        config = get_config(*([variant] if colon and has_variants else []))
    except (Exception, SystemExit) as error:  # a config file can raise anything
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
    if colon and not has_variants:
        raise ValueError(f"{path} has no variants; give --config={path}")
    if not isinstance(config, ConfigDict):
        raise ValueError(f"{path}: get_config() returns {type(config).__name__}, not a configuration; start from base_config()")
    return config


def _known_flags(path: str | None) -> dict[str, bool]:
    """Returns {name of a flag: whether the flag may be given without a value}. The flags are those of the command and, if
    `path` is the path of a config file, one flag config.KEY for each key of this configuration."""
    known = {name: bool(flags.FLAGS[name].boolean) for name in flags.FLAGS}
    known["undefok"] = False
    for key, value in _dotted_items(load_config(path)) if path else ():
        known[f"config.{key}"] = value is None or isinstance(value, bool)
    return known | {f"no{name}": True for name, boolean in known.items() if boolean}


def _dotted_items(section: "ConfigDict", prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        yield prefix + key, value
        if isinstance(value, type(section)):
            yield from _dotted_items(value, f"{prefix}{key}.")


def _check_arguments(arguments: Sequence[str], known: dict[str, bool], words: bool) -> None:
    """Raises ValueError for the first argument that is neither a known flag nor a flag's value, or if the value of a flag is
    missing. The message names the most similar flag. If `words` is True, an argument that is neither a flag nor a flag's value
    is an error only if it contains "=" and no file has this name."""
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            continue
        if not argument.strip("-") or not argument.startswith("-"):
            if not words or ("=" in argument and not pathlib.Path(argument).exists()):
                raise ValueError(f"{_shown(argument)} is not a flag{_hint(argument, rest, known)}")
            continue
        name, equals, _ = (argument[2:] if argument.startswith("--") else argument[1:]).partition("=")
        boolean = known.get(name.partition("[")[0])
        if boolean is None:
            raise ValueError(_unknown_flag(argument, rest, known))
        if equals:
            continue
        if boolean:
            if rest and rest[0].lower() in ("true", "false", "1", "0", "yes", "no"):
                raise ValueError(f"{rest[0]} is not a flag; did you mean --{name}={rest[0]}?")
        elif not rest:
            raise ValueError(f"{argument} has no value; give it as {argument}=VALUE")
        elif (flag := FLAG.fullmatch(rest[0])) and (flag[1] in known or _similar(flag[1], known)):
            raise ValueError(f"{argument} has no value before {_shown(rest[0])}; give it as {argument}=VALUE")
        else:
            rest.pop(0)


def _unknown_flag(argument: str, rest: Sequence[str], known: dict[str, bool]) -> str:
    is_key = re.match(r"--?(no)?config\.", argument) and "config" in known
    if is_key and not any(name.startswith("config.") for name in known):
        return f"{_shown(argument)} changes a key of a config file, but there is no --config=FILE"
    return f"{_shown(argument)}: there is no such {'key' if is_key else 'flag'}{_hint(argument, rest, known)}"


def _parts(argument: str, rest: Sequence[str]) -> tuple[str, str]:
    """Guesses what a user meant by a mistaken argument, and returns the name and the value of the intended flag. `rest` holds
    the arguments after the mistaken one. For example, `rl.iterations 3` and `rl.iterations = 3` both give ("rl.iterations",
    "3")."""
    name, equals, value = argument.lstrip("-").partition("=")
    following = [word for word in rest[:2] if not word.startswith("--")]
    if not equals and following and following[0].startswith("="):
        value = following[0][1:] or "".join(following[1:])
    elif not value and following and not (equals and argument.startswith("-")) and "=" not in following[0]:
        value = following[0]
    return name, value


def _hint(argument: str, rest: Sequence[str], known: dict[str, bool]) -> str:
    """Returns the end of an error message about a mistaken argument. The text suggests the most similar flags, or lists all
    flags if none is similar."""
    name, value = _parts(argument, rest)
    if "config" in known and not argument.startswith("-") and argument.partition(":")[0].endswith(".py"):
        return f"; did you mean --config={argument}?"
    own = {flag: takes for flag, takes in known.items() if not flag.startswith("config.")}
    is_flag = argument.startswith("-") and not name.startswith("config.") and difflib.get_close_matches(name, own, 1, 0.8)
    similar = _similar(name, own if is_flag else known)
    if not similar and "config" in known and re.fullmatch(r"[a-z]\w*(\.\w+)+", name):
        similar = [f"config.{name}"] * (not any(flag.startswith("config.") for flag in known))  # no file whose keys are known
    if similar:
        return f"; did you mean {' or '.join(_shown(f'--{flag}={value}' if value else f'--{flag}') for flag in similar)}?"
    keys = [flag for flag in known if flag.startswith("config.")]
    if name.startswith("config.") and keys:
        return f"; there are: {', '.join(key.removeprefix('config.') for key in keys)}"
    listed = ", ".join(f"--{flag}" for flag in _own_flags(known) if not flag.startswith("config."))
    quote = "" if argument.startswith("-") or not listed else "; a value with spaces needs quotes"
    return f"; the flags are {listed}{quote}" if listed else "; this command has no flags"


def _similar(name: str, known: dict[str, bool]) -> list[str]:
    """Returns the flags that are most similar to a mistaken name, which may lack the prefix `config.`. Returns several flags
    only if the name is the last part of several configuration keys."""
    own = _own_flags(known)
    if name in own or f"config.{name}" in own:
        return [name if name in own else f"config.{name}"]
    if ends := [flag for flag in own if flag.startswith("config.") and flag.rpartition(".")[2] == name]:
        return ends[:3]
    bare = {flag.removeprefix("config."): flag for flag in reversed(own)}
    return [bare[match] for match in difflib.get_close_matches(name.removeprefix("config."), bare, n=1)]


def _own_flags(known: dict[str, bool]) -> list[str]:
    """Returns the names of the flags that the command itself defines, and of the flags for keys of the configuration. Leaves
    out flags that libraries define."""
    modules = flags.FLAGS.flags_by_module_dict().items()
    own = {flag.name for module, defined in modules if module in ("__main__", sys.argv[0]) for flag in defined}
    own |= {flag.name for module, defined in modules if module.startswith("igpo_jax.") for flag in defined}
    return [name for name in known if name in own or name.startswith("config.")]


def _shown(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}..."
