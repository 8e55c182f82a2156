"""Files that are either whole or not there, folders that belong to one thing, and JSON that others wrote."""

import contextlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

# Keys of configurations and fields of records whose names have changed since version 0.1.0 -> their names now.
RENAMED = {
    "released": "reference_code",
    "rollout_slices": "rollout_chunks",
    "written_at": "unmask_step",
    "stated": "extracted_answer",
    "hint/centre": "hint/ratio_center",
    "update/skipped_in_a_row": "update/consecutive_skips",
}
MOST_NESTED = 64  # levels of a JSON value: what works through it needs a frame of the stack for each


def parse_json(content: str | bytes, place: object, **options) -> Any:
    """The value of JSON that somebody else may have written; `options` are those of json.loads.

    Raises:
        ValueError: names the place: no UTF-8, no JSON, a number of thousands of digits, or too many lists in each other.
    """
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        value = json.loads(text, **options)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # an escaped lone surrogate is no text
    except UnicodeError as error:
        raise ValueError(f"{place}: not UTF-8 ({error})") from None
    except ValueError as error:  # of a number that is too long, it is no JSONDecodeError
        raise ValueError(f"{place}: not JSON ({error})") from None
    except RecursionError:
        raise ValueError(f"{place}: not JSON (more than {MOST_NESTED} levels)") from None
    if text.count("[") + text.count("{") > MOST_NESTED and _levels_exceed(value, MOST_NESTED):
        raise ValueError(f"{place}: not JSON (more than {MOST_NESTED} levels)")
    return value


def _levels_exceed(value: Any, most: int) -> bool:
    level = [value]
    for _ in range(most + 1):
        parts = [part.values() if isinstance(part, dict) else part for part in level if isinstance(part, dict | list)]
        level = [value for part in parts for value in part]
    return bool(parts)


def read_json(file: pathlib.Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        ValueError: names the file: it is missing, or see `parse_json`.
    """
    if not file.is_file():
        raise ValueError(f"{file} is missing")
    values = parse_json(file.read_bytes(), file)
    if not isinstance(values, dict):
        raise ValueError(f"{file} is not a JSON object")
    return values


@contextlib.contextmanager
def wrap_read_errors(what: object) -> Iterator[None]:
    """For code that works through files which this package wrote: what a damaged or foreign one makes it raise becomes one
    ValueError that names it."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0][:300]
        raise ValueError(f"{what} cannot be read: {type(error).__name__}: {reason}") from error


def atomic_write(path: pathlib.Path, content: str | bytes) -> None:
    """Writes beside `path` and renames: a reader, or a process killed meanwhile, never meets half a file."""
    temporary = path.with_name(f"{path.name}.partial")
    temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    temporary.replace(path)


def renamed(value: Any, names: dict[str, str] = RENAMED) -> Any:
    """A JSON value from a file of an earlier version, with the current names of its keys."""
    if isinstance(value, dict):
        return {names.get(key, key): renamed(part, names) for key, part in value.items()}
    return [renamed(part, names) for part in value] if isinstance(value, list) else value


def differing_keys(one: dict[str, Any], other: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys whose values differ or that only one of the two has."""
    keys = []
    for key in one | other:
        a, b = one.get(key), other.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            keys += differing_keys(a, b, f"{prefix}{key}.")
        elif a != b:
            keys.append(f"{prefix}{key}")
    return keys


def require_same_identity(file: pathlib.Path, identity: dict[str, Any], what: str) -> None:
    """Makes the folder of `file` that of this identity, or checks that it is.

    Raises:
        ValueError: it is another's; names the keys that differ.
    """
    if file.is_file():
        differing = differing_keys(renamed(read_json(file)), identity)
        if differing:
            raise ValueError(
                f"{file.parent} holds another {what} (differing: {', '.join(differing)}); give another --output"
            )
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(file, json.dumps(identity, indent=2, ensure_ascii=False))
