"""Checks of configuration values. A check is declared beside its field in a dataclass."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
Check = Callable[[Any], str]  # value -> text to put after "key=value" in the error message, or "" if the value is valid


MOST_SIZE = 1 << 16  # tokens of a prompt or completion, and rows of a batch; far more than any masked diffusion LM is used with
MOST_IDS = 1 << 20  # in a vocabulary, far more than in any model's; bounds lists of ids


def checked(default: Any, check: Check) -> Any:
    """Returns a dataclass field with a default value and a check, which `check_fields` runs."""
    return dataclasses.field(default=default, metadata={"check": check})


def check_fields(config: Any, section: str = "") -> None:
    """Raises ValueError for the first field of a dataclass whose value fails its check. The message starts with `section`, such
    as "rl.", and the field's name."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if problem := field.metadata.get("check", lambda _: "")(value):
            raise ValueError(f"{section}{field.name}={value!r}{problem}")


def require(condition: object, message: str) -> None:
    """Raises ValueError with the given message if the condition is false."""
    if not condition:
        raise ValueError(message)


def require_size(name: str, size: int) -> None:
    """Raises ValueError for a number of tokens or rows above `MOST_SIZE`. A file of a stranger could ask for all memory with it."""
    require(size <= MOST_SIZE, f"{name}={size} is more than {MOST_SIZE}")


def within(least: float, most: float) -> Check:
    """Returns a check that a value is in the closed range from `least` to `most`. The check rejects NaN."""
    return lambda value: "" if least <= value <= most else f" must be within [{least}, {most}]"


def at_least(least: float, because: str = "") -> Check:
    """Returns a check that a value is at least `least`. The check rejects NaN. `because` replaces the usual error message."""
    message = f": {because}" if because else f" must be at least {least}" if least else " must not be negative"
    return lambda value: "" if value >= least else message


def one_of(*known: str) -> Check:
    return lambda value: "" if value in known else f" is none of {', '.join(known)}"


def not_negative(value: float) -> str:
    """Checks that a value is at least 0 and finite; rejects NaN."""
    return "" if 0 <= value < math.inf else " must not be negative or infinite"


def positive(value: float) -> str:
    """Checks that a value is positive and finite; rejects NaN."""
    return "" if 0 < value < math.inf else " must be positive and finite"


def ascending_lengths(values: tuple[int, ...]) -> str:
    """Checks that there is at least one length and that all are positive and in strictly ascending order."""
    works = len(values) > 0 and values[0] > 0 and list(values) == sorted(set(values))
    return "" if works else " must be ascending positive lengths"


def present(value: T | None) -> T:
    """Asserts that a value is not None and returns it, so that type checkers accept its use."""
    assert value is not None
    return value
