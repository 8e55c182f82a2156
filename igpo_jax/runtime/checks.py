"""Checks of configuration values. Each field of a configuration dataclass can declare a check of its value."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
Check = Callable[[Any], str]  # value -> text to put after "key=value" in the error message, or "" if the value is valid


MOST_IDS = 1 << 20  # in a vocabulary, far more than in any model's; bounds lists of ids
# Limits of a configuration, far above all that is sensible. The config.json of a stranger's run could otherwise fill the memory.
MOST_TOKENS = 1 << 16  # of a prompt or a completion
MOST_ROWS = 1 << 16  # of a batch
MOST_PROBLEMS = 10**6  # of a split that a task generates, and of an evaluation
MOST_DEADLINE = 3600  # seconds to grade an answer
MOST_SEED = 2**32 - 1  # of noise; larger seeds would repeat the noise of smaller ones
MOST_DRAWS = 1 << 16  # masked copies of a completion that estimate its likelihood
# Products and quotients of two such numbers and a logit are neither 0 nor infinite in float32.
LEAST_NUMBER, MOST_NUMBER = 1e-15, 1e15


def checked(default: Any, check: Check) -> Any:
    """Returns a dataclass field with a default value and a check of the field's value. `check_fields` runs the check."""
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


def within(least: float, most: float) -> Check:
    """Returns a check that a value is in the closed range from `least` to `most`. The check rejects NaN."""
    return lambda value: "" if least <= value <= most else f" must be within [{least}, {most}]"


def require_seed(seed: int, name: str = "seed") -> None:
    """Raises ValueError if a seed of noise is not in the range from 0 to `MOST_SEED`."""
    require(0 <= seed <= MOST_SEED, f"{name}={seed} must be within [0, {MOST_SEED}]")


def require_draws(draws: int, name: str = "draws") -> None:
    """Raises ValueError if a number of masked copies is not in the range from 1 to `MOST_DRAWS`."""
    problem = at_least(1, most=MOST_DRAWS)(draws)
    require(not problem, f"{name}={draws}{problem}")


def at_least(least: float, because: str = "", most: float = math.inf) -> Check:
    """Returns a check that a value is at least `least`, and at most `most`. The check rejects NaN. If `because` is given, it
    replaces the error message for values that are too small."""
    message = f": {because}" if because else f" must be at least {least}" if least else " must not be negative"
    return lambda value: (message if not value >= least else "") or (f" must be at most {most}" if value > most else "")


def one_of(*known: str) -> Check:
    return lambda value: "" if value in known else f" is none of {', '.join(known)}"


def not_negative(value: float) -> str:
    """Checks that a value is 0 or from `LEAST_NUMBER` to `MOST_NUMBER`. Returns "" if the value is valid, otherwise the end of
    an error message. Rejects NaN."""
    return "" if value == 0 else " must not be negative" if value < 0 else positive(value).replace(" be", " be 0 or", 1)


def positive(value: float) -> str:
    """Checks that a value is from `LEAST_NUMBER` to `MOST_NUMBER`. Returns "" if the value is valid, otherwise the end of an
    error message. Rejects NaN."""
    return "" if LEAST_NUMBER <= value <= MOST_NUMBER else f" must be positive, from {LEAST_NUMBER:g} to {MOST_NUMBER:g}"


def ascending_lengths(values: tuple[int, ...]) -> str:
    """Checks that there is at least one length, and that all lengths are positive, in strictly ascending order and at most
    `MOST_TOKENS`. Returns "" if the lengths are valid, otherwise the end of an error message."""
    works = len(values) > 0 and values[0] > 0 and list(values) == sorted(set(values))
    return "" if works and values[-1] <= MOST_TOKENS else f" must be ascending positive lengths of at most {MOST_TOKENS}"


def present(value: T | None) -> T:
    """Asserts that a value is not None and returns it, so that type checkers accept its use."""
    assert value is not None
    return value
