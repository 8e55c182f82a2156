"""Inserts a file's text between the markers <!-- NAME --> and <!-- /NAME --> of a Markdown file.

    python benchmarks/insert.py runs/compare/comparison.md docs/results.md comparison
"""

import pathlib
import sys


def insert(text: str, file: pathlib.Path, name: str) -> None:
    """Replaces the text between the markers.

    Raises:
        ValueError: the file lacks a marker.
    """
    before, begin, rest = file.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- /{name} -->")
    if not begin or not end:
        raise ValueError(f"{file} has no <!-- {name} --> and <!-- /{name} -->")
    file.write_text(f"{before}{begin}{text}{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    source, file, name = sys.argv[1:]
    insert(pathlib.Path(source).read_text(encoding="utf-8"), pathlib.Path(file), name)
