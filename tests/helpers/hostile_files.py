"""Makes the files of a folder hostile: changes values, bytes, numbers, names and links, and deletes or adds files."""

import gzip
import io
import json
import os
import pathlib
import random
import shutil
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow
import pyarrow.parquet

from mutations import VALUES, change_bytes, change_json

PRECIOUS = "PRECIOUS-7d1f0c5e"  # content of files that no command may show or change
SCRIPT = "fuzz()"  # what injected HTML would run
MODULE = """import pathlib

pathlib.Path(__file__).with_name("ran").touch()
reward = load = defaults = get_config = main = lambda *arguments, **options: 0.0
"""
HTML = (
    f"<img src=x onerror={SCRIPT}>", f"</script><script>{SCRIPT}</script>", f'"><svg onload={SCRIPT}>', f"--><b onclick={SCRIPT}>",
    f"</style></title></textarea><img src=x onerror={SCRIPT}>", f"javascript:{SCRIPT}",
)  # fmt: skip
CODE = (
    "cool.evil", "cool.evil:reward", "cool.evil.reward", "evil", "evil:reward", "evil.py", "./evil.py", "cool/evil.py", ".evil",
    "cool..evil", "evil:__loader__", "os:system", "os.system", "builtins:exec", "igpo_jax.train", "__main__", "antigravity",
)  # fmt: skip
ODD = (
    "", ".", "..", "/", "~", "~/x", "a\nb", "a\rb", "\x1b]0;x\x07", "\x00", "\u202e", "\ud800", "\ufeff", "x" * 300, "x" * 100_000,
    "%s%n%(x)s", "{0.__class__}", "{}", "${HOME}", "$(touch ran)", "`touch ran`", "; touch ran", "-x", "--help", "x.safetensors\x00",
    "gs://x/y", "file:///etc/passwd", "http://127.0.0.1:9/x", "NaN", "1e999", "-1", "null", "CON", "\\\\x\\y", "c:\\x",
)  # fmt: skip
FOLDER_NAMES = (
    *(text.replace("/", "\\") for text in HTML),
    "a b",
    "a\nb",
    "-x",
    "%s{}{0}",
    "é\u202e\x1b[2J",
    "a:b",
    "a,b",
    "x" * 200,
)
PLANTED = (
    "report.html report.html.partial tensorboard compiled evaluations result.json result.json.partial metrics.jsonl.partial "
    "rollouts.jsonl.partial config.json.partial card.json card.json.partial protocol.json.partial checkpoints/rl/9 "
    "comparison.html comparison.json comparison.html.partial notes.txt tokenizer.model params"
).split()
BLOCK = gzip.compress(b"x" * 2**24)


def prepare_sandbox(root: pathlib.Path) -> pathlib.Path:
    """Makes a sandbox in an empty folder, and returns the folder inside it for a command to run in. No command may show or
    change the files beside that folder, and the Python modules there write a file `ran` if they are imported."""
    for name in ("outside/folder", "tmp", "home", "box/cool"):
        (root / name).mkdir(parents=True)
    for name in ("outside/precious.txt", "outside/folder/precious.txt", "home/precious.txt", "box/precious.txt"):
        (root / name).write_text(PRECIOUS)
    for name in ("box/evil.py", "box/cool/evil.py"):
        (root / name).write_text(MODULE)
    return root / "box"


def hostile_texts(root: pathlib.Path) -> list[str]:
    outside = root / "outside"
    paths = [f"{outside}/precious.txt", f"{outside}/new", f"{outside}/folder", "/dev/null/x", "x/../../../outside/new"]
    paths += [f"{up}outside/{name}" for up in ("../", "../../", "../../../") for name in ("precious.txt", "new", "folder/new")]
    return [*HTML, *CODE, *ODD, *paths]


class Folder:
    """A folder to make hostile. files: those that may change. targets: folders that are not replaced by links, because the user
    names them as the target. Each public method except `pick` makes a random change, and returns a description of it, or None
    if the folder has nothing to change in this way."""

    def __init__(self, root: pathlib.Path, files: list[pathlib.Path], draw: random.Random, targets: Sequence[str] = ()):
        self.root, self.files, self.draw, self.texts = root, files, draw, hostile_texts(root)
        self.targets = [root / "box" / name for name in targets]

    def pick(self, *suffixes: str) -> pathlib.Path | None:
        chosen = [file for file in self.files if not file.is_symlink() and file.is_file()]
        chosen = [file for file in chosen if not suffixes or file.name.endswith(suffixes)]
        small = [file for file in chosen if "checkpoints" not in file.parts]  # checkpoints have most of the files
        return self.draw.choice(small if small and self.draw.random() < 0.7 else chosen) if chosen else None

    def value(self) -> str | None:
        """Changes a JSON value of a file, or of a row of a table."""
        return self._changed(lambda content: change_json(content, self.draw, [*VALUES, *self.texts]))

    def text(self) -> str | None:
        """Replaces a string, which may be a name or a path."""
        file = self.pick(".json", ".jsonl", ".safetensors", ".gz", ".parquet", "metrics", "_METADATA")
        return self._changed(lambda content: _with_text(content, self.draw, self.texts), file)

    def code(self) -> str | None:
        """Writes a module or function name in place of the task or the reward function in config.json."""
        file = next((file for file in self.files if file.name == "config.json" and file.is_file()), None)
        if file is None:
            return None
        place, name = self.draw.choice((("task", "name"), ("task", "name"), ("reward", "function"))), self.draw.choice(CODE)
        try:
            config = json.loads(file.read_bytes())
            config.setdefault(place[0], {})[place[1]] = name
        except (ValueError, AttributeError, TypeError, RecursionError):  # an earlier change broke the file
            return None
        file.write_text(json.dumps(config))
        return f"{'.'.join(place)} = {name!r}"

    def bytes(self) -> str | None:
        file = self.pick()
        if file is None:
            return None
        file.write_bytes(change_bytes(file.read_bytes(), self.draw))
        return f"bytes of {self._name(file)}"

    def number(self) -> str | None:
        """Writes NaN, infinity or a huge number into weights."""
        file = self.pick(".safetensors")
        if file is None:
            return None
        content, pattern = bytearray(file.read_bytes()), self.draw.choice((b"\xff\xff", b"\x80\x7f", b"\x80\xff", b"\x7f\x7f"))
        begin = 8 + int.from_bytes(content[:8], "little")
        if not 8 < begin < len(content):
            return None
        at = begin + self.draw.randrange(len(content) - begin) // 4 * 4
        content[at : at + 4] = 2 * pattern
        file.write_bytes(content)
        return f"{pattern!r} in {self._name(file)}"

    def cell(self) -> str | None:
        """Replaces a cell of a CSV file, or a word of a text."""
        file = self.pick(".csv", ".txt")
        if file is None:
            return None
        lines = file.read_text("utf-8", "surrogateescape").split("\n")
        number = self.draw.randrange(len(lines))
        cells = lines[number].split(",")
        cells[self.draw.randrange(len(cells))] = self.draw.choice((*self.texts, '"', "9" * 5000, ",", '"' * 3))
        lines[number] = ",".join(cells)
        file.write_text("\n".join(lines), "utf-8", "surrogatepass")
        return f"cell of {self._name(file)}"

    def link(self) -> str | None:
        """Replaces a file or its folder by a symbolic link: to a copy outside, a file to protect, a folder, nothing, or
        itself."""
        file = self.pick()
        if file is None:
            return None
        parents = [parent for parent in file.parents if self.root / "box" in parent.parents and parent not in self.targets]
        path = self.draw.choice((file, file, *parents))
        kind = self.draw.choice(("copy", "copy", "precious", "folder", "new", "loop", "parent"))
        copy = self.root / "outside" / f"copy{len(list((self.root / 'outside').iterdir()))}"
        targets = {"copy": copy, "precious": self.root / "outside/precious.txt", "folder": self.root / "outside/folder"}
        targets |= {"new": self.root / "outside/new", "loop": path, "parent": path.parent}
        if kind == "copy":
            path.rename(copy)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        relative = self.draw.random() < 0.5
        path.symlink_to(os.path.relpath(targets[kind], path.parent) if relative else targets[kind])
        return f"{self._name(path)} -> {os.readlink(path)}"

    def planted(self) -> str | None:
        """Puts a link, a folder or a file where a command may write."""
        file = self.pick()
        if file is None:
            return None
        top = self.root / "box" / file.relative_to(self.root / "box").parts[0]
        path = (top if top.is_dir() else top.parent) / self.draw.choice(PLANTED)
        if not path.parent.is_dir() or path.exists() or path.is_symlink():
            return None
        kind = self.draw.choice(("precious.txt", "precious.txt", "new", "folder", "directory", "file"))
        if kind == "directory":
            (path / "x").mkdir(parents=True)
        elif kind == "file":
            path.write_text(self.draw.choice(("", "{}", "x", "[]")))
        else:
            path.symlink_to(self.root / "outside" / kind)
        return f"{self._name(path)} planted: {kind}"

    def missing(self) -> str | None:
        """Deletes a file, empties it, or replaces it by a folder."""
        file = self.pick()
        if file is None:
            return None
        file.unlink()
        kind = self.draw.choice(("missing", "empty", "a folder", "a folder with a file"))
        if kind == "empty":
            file.write_bytes(b"")
        elif kind != "missing":
            file.mkdir()
            if "file" in kind:
                (file / "x").write_text("x")
        return f"{self._name(file)} is {kind}"

    def bomb(self) -> str | None:
        """Fills a compressed file with a line of 4 GiB, or with 300,000 lines."""
        file = self.pick(".gz")
        if file is None:
            return None
        self.files.remove(file)  # another change would unpack it
        content, line = _unpacked(file), b'{"question": "", "answer": "1", "problem": ""}\n'
        rows = self.draw.random() < 0.5
        file.write_bytes(gzip.compress(line * 2**14) * 20 if rows else gzip.compress(content[:20]) + BLOCK * 256)
        return f"{'rows' if rows else 'a line'} without end in {self._name(file)}"

    def _changed(self, change: Callable[[bytes], bytes], file: pathlib.Path | None = None) -> str | None:
        file = file or self.pick()
        if file is None:
            return None
        content = _unpacked(file)
        changed = change(content)
        file.write_bytes(_packed(changed, file.suffix))
        at = next(
            (i for i, (a, b) in enumerate(zip(content, changed, strict=False)) if a != b), min(len(content), len(changed))
        )
        return f"{self._name(file)}: {changed[max(0, at - 30) : at + 40]!r}"

    def _name(self, file: pathlib.Path) -> str:
        return str(file.relative_to(self.root / "box"))


def _unpacked(file: pathlib.Path) -> bytes:
    content = file.read_bytes()
    if file.suffix == ".gz":
        try:
            return gzip.decompress(content)
        except (OSError, EOFError, zlib.error):
            return content
    if file.suffix == ".parquet":
        try:
            return json.dumps(pyarrow.parquet.read_table(io.BytesIO(content)).to_pylist()).encode()
        except (pyarrow.ArrowException, OSError):
            return content
    return content


def _packed(content: bytes, suffix: str) -> bytes:
    """Returns the content of a file. Rows that do not form a table are written as text."""
    if suffix == ".gz":
        return gzip.compress(content, 1)
    if suffix == ".parquet":
        try:
            stored = io.BytesIO()
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(json.loads(content)), stored)
            return stored.getvalue()
        except (ValueError, RecursionError, pyarrow.ArrowException, AttributeError, TypeError, OverflowError):
            return content
    return content


def _with_text(content: bytes, draw: random.Random, texts: list[str]) -> bytes:
    """Replaces one string of a JSON file, line or header, and half of the time all strings that are equal to it."""
    begin = 8 if content[8:9] == b"{" else 0
    length = int.from_bytes(content[:8], "little") if begin else len(content)
    lines = [content[begin : begin + length]] if begin else content.split(b"\n")
    whole, number = content[begin : begin + length], draw.randrange(len(lines))
    for part in (whole, lines[number]):
        try:
            value = json.loads(part)
        except (ValueError, RecursionError):
            continue
        leaves = _texts(value)
        if not leaves:
            break
        chosen, text, all_equal = draw.choice(leaves), draw.choice(texts), draw.random() < 0.5
        old, count = json.dumps(chosen).encode(), -1 if all_equal else 1
        new = part.replace(old, json.dumps(text).encode("utf-8"), count)
        if begin:
            return len(new).to_bytes(8, "little") + new + content[begin + length :]
        return new if part is whole else b"\n".join([*lines[:number], new, *lines[number + 1 :]])
    return change_bytes(content, draw)


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict | list):
        parts = value.values() if isinstance(value, dict) else value
        return [text for part in parts for text in _texts(part)]
    return [value] if isinstance(value, str) else []
