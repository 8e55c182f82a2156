"""Meanings of configuration keys. The meaning of a key is the comment beside this key in the source code. docs/configuration.md
is generated from the meanings."""

import ast
import dataclasses
import functools
import importlib.util
import io
import math
import re
import tokenize
import typing
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from igpo_jax.config import Config, MeshConfig, RewardConfig
from igpo_jax.diffusion.unmasking import DecodeConfig
from igpo_jax.tasks import TASKS
from igpo_jax.tasks.benchmark import BenchmarkConfig

EVALUATIONS = "igpo_jax.evaluate.protocol"  # not imported, because only the commands may import each other
PUZZLES = "igpo_jax.tasks.puzzles", "puzzle_defaults"  # has the keys that several tasks share
IMPOSSIBLE = {str: "?", int: math.nan, float: math.nan, tuple: ()}  # values that the checks of fields reject


def describe(values: ConfigDict) -> list[tuple[str, Any, str]]:
    """Returns (key, value, meaning) for each key of the configuration of a run, or of an evaluation, in the order of the source
    code. Keys are dotted, such as "rl.optimizer.b2". The meaning is "" if the source code says nothing about a key, which is
    possible for the keys of a user's own task."""
    if "benchmarks" in values:
        known = _evaluation_meanings(values)
    else:
        known = _task_meanings(values.task, "task.") | _fields(Config)
        known |= _benchmark_meanings(values.get("evaluation", {}).get("benchmarks", {}), "evaluation.benchmarks.")
    places = {key: place for place, key in enumerate(known)}
    items = sorted(_leaves(values), key=lambda item: places.get(item[0], len(places)))
    return [(key, value, known.get(key, "")) for key, value in items]


def _leaves(section: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, ConfigDict) and len(value):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _evaluation_meanings(values: ConfigDict) -> dict[str, str]:
    known = comments(EVALUATIONS, "base_evaluation") | _fields(DecodeConfig, "decode.")
    known |= _fields(RewardConfig, "reward.") | _fields(MeshConfig, "mesh.")
    return known | _benchmark_meanings(values.benchmarks, "benchmarks.")


def _benchmark_meanings(benchmarks: ConfigDict, prefix: str) -> dict[str, str]:
    known: dict[str, str] = {}
    for name, part in benchmarks.items():
        known |= _fields(BenchmarkConfig, f"{prefix}{name}.") | _task_meanings(part.task, f"{prefix}{name}.task.")
    return known


def _task_meanings(task: ConfigDict, prefix: str) -> dict[str, str]:
    name = task.get("name", "")  # a configuration without a task has none
    module = f"igpo_jax.tasks.{name}" if name in TASKS else name
    return _prefixed(comments(*PUZZLES) | comments(module, "defaults"), prefix)


def _prefixed(meanings: dict[str, str], prefix: str) -> dict[str, str]:
    return {prefix + key: meaning for key, meaning in meanings.items()}


def _fields(cls: type, prefix: str = "") -> dict[str, str]:
    """Returns {key: meaning} for the fields of a dataclass, of its base classes, and of the dataclasses that it contains."""
    own, found = {}, {}
    for base in reversed([base for base in cls.__mro__ if dataclasses.is_dataclass(base)]):
        own |= comments(base.__module__, base.__name__)
    kinds = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind, name = kinds[field.name], prefix + field.name
        section: Any = next((part for part in (kind, *typing.get_args(kind)) if dataclasses.is_dataclass(part)), None)
        if section is not None and typing.get_origin(kind) is not dict:
            found |= _fields(section, f"{name}.")
        else:
            meaning = own.get(field.name, "").removesuffix(".")
            found[name] = "; ".join(filter(None, (meaning, _limit(field, meaning))))
    return found


def _limit(field: dataclasses.Field, meaning: str) -> str:
    """Returns the values that the check of a field allows, in the words of the error message of this check. Returns "" if
    `meaning` already names these values, or if the error message does not state them."""
    check, value = field.metadata.get("check"), IMPOSSIBLE.get(type(field.default))
    told = check(value) if check and value is not None else ""
    if words := re.fullmatch(" is none of (.+)", told):
        return "" if all(word in meaning for word in words[1].split(", ")) else f"one of {words[1]}"
    return told.removeprefix(" must ").replace("be ", "", 1) if told.startswith(" must ") else ""


@functools.cache
def comments(module: str, name: str) -> dict[str, str]:
    """Returns the comments on the fields of a class, or on the keys of the dict that a function builds, without importing the
    module of the class or function. A comment stands above its key, behind it, or both. Keys of a dict inside the dict are
    dotted. Returns an empty dict if there is no source code, or if `name` is not defined at the top level of the module."""
    try:
        spec = importlib.util.find_spec(module)
        source = spec.loader.get_source(module)  # type: ignore[union-attr]
        [definition] = [node for node in ast.parse(source).body if getattr(node, "name", None) == name]
    except (ImportError, AttributeError, TypeError, ValueError, SyntaxError, OSError):
        return {}
    texts, behind = {}, set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            texts[token.start[0]] = token.string.removeprefix("#").strip()
            behind |= {token.start[0]} if token.line[: token.start[1]].strip() else set()
    found = {}
    for key, first, last in _entries(definition):
        above = first
        while above - 1 in texts.keys() - behind:
            above -= 1
        lines = [*range(above, first), *(line for line in (first, last) if line in behind)]
        found[key] = " ".join(texts[line] for line in dict.fromkeys(lines))
    return {key: text for key, text in found.items() if text}


def _entries(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, int, int]]:
    """Yields (key, first line, last line) for the annotated names and the keys of dicts in the syntax tree `node`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.AnnAssign) and isinstance(child.target, ast.Name):
            yield prefix + child.target.id, child.lineno, child.end_lineno or child.lineno
        elif isinstance(child, ast.Dict):
            for key, value in zip(child.keys, child.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(key.value, str):
                    yield f"{prefix}{key.value}", key.lineno, value.end_lineno or key.lineno
                    yield from _entries(ast.Expression(value), f"{prefix}{key.value}.")
        else:
            yield from _entries(child, prefix)
