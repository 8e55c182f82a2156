"""Files that are either whole or not there."""

import pathlib


def write_whole(path: pathlib.Path, content: str | bytes) -> None:
    """Writes beside `path` and renames: a reader, or a process killed meanwhile, never meets half a file."""
    temporary = path.with_name(f"{path.name}.partial")
    temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    temporary.replace(path)
