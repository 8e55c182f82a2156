"""Files that are either whole or not there, and folders that belong to one thing."""

import json
import pathlib
from typing import Any


def write_whole(path: pathlib.Path, content: str | bytes) -> None:
    """Writes beside `path` and renames: a reader, or a process killed meanwhile, never meets half a file."""
    temporary = path.with_name(f"{path.name}.partial")
    temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    temporary.replace(path)


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


def claim(file: pathlib.Path, identity: dict[str, Any], what: str) -> None:
    """Makes the folder of `file` that of this identity, or checks that it is.

    Raises:
        ValueError: it is another's; names the keys that differ.
    """
    if file.is_file():
        differing = differing_keys(json.loads(file.read_text("utf-8")), identity)
        if differing:
            raise ValueError(
                f"{file.parent} holds another {what} (differing: {', '.join(differing)}); give another --output"
            )
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(identity, indent=2, ensure_ascii=False))
