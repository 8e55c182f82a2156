"""The texts of --help and --help-config."""

import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence

from absl import flags

HELP = ("-h", "-help", "--help", "--helpfull", "--helpshort")
HELP_CONFIG = "--help-config"
WIDEST = 100  # columns
FLAG_COLUMN = 28  # columns of a flag before its help
KINDS = {"int": "N", "float": "X", "comma separated list of strings": "A,B"}


def command_help(own: Sequence[str]) -> str:
    """Returns the help of the running command: the docstring of its module, and the flags whose names are in `own`."""
    usage, _, about = str(sys.modules["__main__"].__doc__).strip().replace("python -m igpo_jax.", "igpo ").partition("\n\n")
    shown = [flags.FLAGS[name] for name in own]
    lines = _wrapped(re.sub(r"\n +", " ", usage).splitlines(), hanging=6)
    for paragraph in about.split("\n\n"):
        lines += ["", *_wrapped([" ".join(paragraph.split())])]
    lines += ["", "Flags", *(line for flag in shown for line in _entry(_syntax(flag), _meaning(flag)))] if shown else []
    if "config" in flags.FLAGS:
        keys = f"Any key of the configuration; {HELP_CONFIG} lists the keys, with --config=FILE those of this file."
        lines += ["", "Configuration", *_entry("--config.KEY=VALUE", keys)]
    return "\n".join(lines)


def config_help(rows: Iterable[tuple[str, str, str]]) -> str:
    """Returns the text of --help-config, given (key, value, meaning) of each key."""
    lines: list[str] = []
    section = None
    for key, value, meaning in rows:
        if section != (section := key.rpartition(".")[0]):
            lines += ["", section or "(top level)"]
        lines += _entry(f"{key}={value}", meaning)
    return "\n".join(lines[1:])


def _entry(name: str, meaning: str) -> list[str]:
    name = f"  {name}"
    space = " " * FLAG_COLUMN
    lines = textwrap.wrap(meaning, _columns() - FLAG_COLUMN)
    if len(name) < FLAG_COLUMN and lines:
        return [f"{name:<{FLAG_COLUMN}}{lines[0]}", *(space + line for line in lines[1:])]
    return [name, *(space + line for line in lines)]


def _syntax(flag: flags.Flag) -> str:
    if flag.boolean:
        return f"--[no]{flag.name}"
    values = getattr(flag.parser, "enum_values", None)
    value = "|".join(values) if values else KINDS.get(flag.flag_type(), "FILE" if flag.name == "config" else "VALUE")
    return f"--{flag.name}={value}"


def _meaning(flag: flags.Flag) -> str:
    about = re.sub(r"^<[^>]*>: ", "", str(flag.help or "").strip())  # absl's list of the values
    about = about.partition(";\n")[0]  # absl's remark on flags that may be repeated
    return f"{about} (default: {flag.default})" if flag.default not in (None, "", [], False) else about


def _wrapped(paragraphs: Iterable[str], hanging: int = 0) -> list[str]:
    wrapper = textwrap.TextWrapper(_columns(), subsequent_indent=" " * hanging, break_long_words=False, break_on_hyphens=False)
    return [line for text in paragraphs for line in wrapper.wrap(text)]


def _columns() -> int:
    return min(WIDEST, shutil.get_terminal_size().columns)
