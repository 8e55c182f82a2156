"""Runnable blocks of the documentation.

A comment in the line before a block marks it: `<!-- run -->` (python or bash), `<!-- file: NAME -->` (written to that file
first), `<!-- output -->` (output of the preceding block), `<!-- example output -->` (the same, but generated text varies with a
machine's rounding). All blocks of a document run in one empty folder, its python blocks as one program.
`python tests/helpers/doc_blocks.py DOCUMENT ...` updates the outputs.
"""

import dataclasses
import os
import pathlib
import re
import subprocess
import sys

from commands import QUICK

BLOCK = re.compile(
    r"^<!-- (run|output|example output|file: (?P<name>\S+)) -->\n```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S
)
BETWEEN = "\x1e\n"  # printed after every python block


@dataclasses.dataclass(frozen=True)
class Block:
    """kind: run | output | example output | file. name: file name. text: content between the fences, at `span`."""

    kind: str
    name: str | None
    language: str
    text: str
    span: tuple[int, int]


def blocks_of(document: str) -> list[Block]:
    """Returns the marked blocks of a Markdown text."""
    return [
        Block(match[1].partition(":")[0], match["name"], match["language"], match["text"], match.span("text"))
        for match in BLOCK.finditer(document)
    ]


def run_blocks(document: str, folder: pathlib.Path) -> dict[int, str]:
    """Runs the blocks of a document in `folder`. Returns {index in `blocks_of`: output}.

    Raises:
        AssertionError: a block fails; the message ends with its output.
    """
    blocks, printed = blocks_of(document), {}
    for block in blocks:
        if block.kind == "file":
            (folder / block.name).write_text(block.text)
    wanted = [place for place, block in enumerate(blocks) if block.kind == "run"]
    python = [place for place in wanted if blocks[place].language == "python"]
    if python:
        program = f"print({BETWEEN!r}, end='')\n".join(blocks[place].text for place in python)
        (folder / "blocks.py").write_text(program)
        printed |= zip(python, _output([sys.executable, "blocks.py"], folder).split(BETWEEN), strict=True)
    for place in wanted:
        if blocks[place].language == "bash":
            printed[place] = _output(["bash", "-euo", "pipefail", "-c", blocks[place].text], folder)
    return printed


def assert_outputs(document: str, printed: dict[int, str]) -> None:
    """Asserts that output blocks equal the printed output of the preceding block, and example outputs have as many lines."""
    for place, block in enumerate(blocks_of(document)):
        if block.kind == "output":
            assert printed[place - 1] == block.text
        elif block.kind == "example output":
            assert printed[place - 1].count("\n") == block.text.count("\n"), f"printed:\n{printed[place - 1]}"


def with_outputs(document: str, printed: dict[int, str]) -> str:
    """Returns the document with updated output blocks."""
    for place, block in reversed(list(enumerate(blocks_of(document)))):
        if block.kind.endswith("output"):
            document = document[: block.span[0]] + printed[place - 1] + document[block.span[1] :]
    return document


def _output(command: list[str], folder: pathlib.Path) -> str:
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": QUICK,
        "PATH": f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


if __name__ == "__main__":
    import tempfile

    for file in map(pathlib.Path, sys.argv[1:]):
        with tempfile.TemporaryDirectory() as scratch:
            file.write_text(with_outputs(file.read_text(), run_blocks(file.read_text(), pathlib.Path(scratch))))
