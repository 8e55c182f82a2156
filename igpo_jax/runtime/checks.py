"""Checks of single values, stated beside the field of a configuration that they are about."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
Check = Callable[[Any], str]  # value -> the rest of the error message after "key=value", "" for a value that works


def checked(default: Any, check: Check) -> Any:
    """A dataclass field with a check, which `problem_of` applies."""
    return dataclasses.field(default=default, metadata={"check": check})


def problem_of(field: dataclasses.Field, value: Any) -> str:
    """The message of the field's check, "" without a check or for a value that works."""
    return field.metadata["check"](value) if "check" in field.metadata else ""


def at_least(least: float, because: str = "") -> Check:
    """because: replaces the message. NaN is refused."""
    message = f": {because}" if because else f" must be at least {least}" if least else " must not be negative"
    return lambda value: "" if value >= least else message


def one_of(*known: str) -> Check:
    return lambda value: "" if value in known else f" is none of {', '.join(known)}"


def positive(value: float) -> str:
    """A check itself; infinity and NaN are refused."""
    return "" if 0 < value < math.inf else " must be positive and finite"


def ascending_lengths(values: tuple[int, ...]) -> str:
    """A check itself: at least one length, each positive and larger than the one before."""
    works = len(values) > 0 and values[0] > 0 and list(values) == sorted(set(values))
    return "" if works else " must be ascending positive lengths"


def present(value: T | None) -> T:
    """Returns a value that cannot be None here; for type checkers."""
    assert value is not None
    return value
