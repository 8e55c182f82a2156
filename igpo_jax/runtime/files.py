"""Utilities for files: atomic writes, strict JSON, protection against untrusted files, and a check that an output folder is
reused only with equal settings."""

import collections
import contextlib
import decimal
import errno
import fcntl
import json
import os
import pathlib
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

from igpo_jax.runtime.checks import require

# Keys of configurations and records in files of version 0.1.0 -> their current names.
RENAMED = {
    "released": "reference_code",
    "rollout_slices": "rollout_chunks",
    "written_at": "unmask_step",
    "stated": "extracted_answer",
    "hint/centre": "hint/ratio_center",
    "update/skipped_in_a_row": "update/consecutive_skips",
}
MOST_BYTES = 1 << 26  # of a JSON file, and of a line; the largest tokenizer.json known has half as many (Gemma 3)
# Compressed data that exceeds both limits was made to exhaust the memory.
MOST_RATIO = 100  # unpacked bytes per stored byte
ALWAYS_UNPACKED = 1 << 26  # bytes
MOST_HOLES = 1000  # of a sparse file
MAX_NESTED = 64  # most levels in a JSON value; the limit exists because recursive code needs a stack frame per level


def parse_json(content: str | bytes, place: object, number: Callable[[str], Any] = float) -> Any:
    """Returns the value of untrusted JSON. Bytes may begin with a byte order mark. `number` converts the text of a number that
    is not an integer. Raises a ValueError whose message names `place` if the text is not UTF-8, is not valid JSON, has a key
    twice in one object, is nested too deeply, or contains a number with thousands of digits."""
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        value = json.loads(text, object_pairs_hook=_object, parse_float=number)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # raises for an escaped lone surrogate
        if text.count("[") + text.count("{") > MAX_NESTED and _depth(value) > MAX_NESTED:
            raise RecursionError
    except UnicodeError as error:
        raise ValueError(f"{place}: not UTF-8 ({error})") from None
    except ValueError as error:  # a JSONDecodeError, a repeated key, or a number with too many digits
        raise ValueError(f"{place}: not JSON ({error})") from None
    except RecursionError:
        raise ValueError(f"{place}: not JSON (more than {MAX_NESTED} levels)") from None
    return value


def exact_number(text: str) -> float | str:
    """Converts the text of a number to float. Returns the text itself if the float, printed with 17 digits as C does or with as
    few as Python does, is another number. For example, a float keeps only 17 of the digits of 12345678901234567890.0."""
    value = float(text)
    try:
        return value if decimal.Decimal(text) in map(decimal.Decimal, (repr(value), f"{value:.17g}")) else text
    except decimal.InvalidOperation:  # an exponent of 20 digits
        return text


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):  # json would keep the last value, and a reader of the file sees the first
        repeated = collections.Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {repr(repeated)[:100]} is given twice")
    return values


def _depth(value: Any) -> int:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if parts is None else 1 + max(map(_depth, parts), default=0)


def read_json(file: pathlib.Path) -> dict[str, Any]:
    """Returns the JSON object in a file. Raises ValueError if the file is missing or does not contain a JSON object, see
    `parse_json`."""
    require_file(file)
    values = parse_json(read_bytes(file), file)
    require(isinstance(values, dict), f"{file} is not a JSON object")
    return values


def read_bytes(file: pathlib.Path) -> bytes:
    """Returns the content of a file of at most `MOST_BYTES`. Raises ValueError if the file is larger."""
    with file.open("rb") as opened, named_errors(file):
        content = opened.read(MOST_BYTES + 1)
    require(len(content) <= MOST_BYTES, f"{file}: more than {MOST_BYTES >> 20} MiB")
    return content


def numbered_lines(file: IO[bytes], name: object) -> Iterator[tuple[int, bytes]]:
    """Yields (number, line) for each line of a binary file that has just been opened. Numbers start at 1, and lines keep their
    line endings. Raises a ValueError that names the file and the line if a line has more than `MOST_BYTES`."""
    with named_errors(str(name)):
        for number, line in enumerate(iter(lambda: file.readline(MOST_BYTES + 1), b""), start=1):
            require(len(line) <= MOST_BYTES, f"{name}, line {number}: more than {MOST_BYTES >> 20} MiB in one line")
            yield number, line


def require_file(file: pathlib.Path) -> None:
    """Raises ValueError if there is no regular file with this path. For example, the path may be a symbolic link to a missing
    file."""
    if not file.is_file():
        is_link = isinstance(file, pathlib.Path) and file.is_symlink()
        link = "is a symbolic link that leads to no file"
        raise ValueError(f"{file} {link if is_link else 'is no file' if file.exists() else 'is missing'}")


def require_plain_name(name: Any, place: object) -> None:
    """Raises a ValueError that names `place` if `name` is not a file name without folders. Every file name that is read from a
    file must be checked in this way. Otherwise, an untrusted file could name any file of the user."""
    parts = isinstance(name, str) and name.isprintable() and not {"/", "\\"} & set(name) and name not in ("", ".", "..")
    require(parts and len(name.encode()) <= 255, f"{place}: {repr(name)[:100]} is not a plain file name")


def require_unicode(texts: Iterable[str]) -> None:
    """Raises ValueError if a text is not valid UTF-8. The names of files may have any bytes, but those of Orbax may not, and
    neither may JSON and HTML files."""
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(f"{ascii(text)} is not UTF-8; rename this file or folder") from None


def as_json_lines(rows: Iterable[dict[str, Any]]) -> str:
    """Returns dicts as text in the JSON Lines format, which has one JSON object per line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]


@contextlib.contextmanager
def wrap_read_errors(file: object) -> Iterator[None]:
    """Context manager for parsing a file that may be damaged or of another format. Turns parsing errors into a ValueError that
    names the file."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {type(error).__name__}: {first_line(error)}") from error


@contextlib.contextmanager
def named_errors(file: str | os.PathLike) -> Iterator[None]:
    """Context manager for reading or writing an open file. Adds the name of the file to an OSError of the operating system,
    such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:  # otherwise, the name would replace the message
            error.filename = os.fspath(file)
        raise


def require_plausible(place: object, unpacked: int, stored: int, remedy: str = "") -> None:
    """Raises ValueError if compressed data is implausibly large when it is unpacked. This is the case if the number of unpacked
    bytes exceeds both `ALWAYS_UNPACKED` and `MOST_RATIO` times the number of stored bytes."""
    most = max(ALWAYS_UNPACKED, MOST_RATIO * stored)
    require(unpacked <= most, f"{place}: unpacks to more than {MOST_RATIO} times its size{remedy}")


def folder_size(folder: pathlib.Path) -> int:
    """Returns the total number of bytes that the files in a folder and its subfolders hold. Counts a file once, even if several
    links lead to it. Leaves out the holes of sparse files, and files outside of the folder to which links lead, so that a small
    folder cannot pretend to be large. Counts links to the blobs of Hugging Face's cache."""
    roots = [folder, *hub_blobs(folder)]
    own = (file for file in folder.rglob("*") if not file.is_symlink() or any(is_inside(file, root) for root in roots))
    files = {(file.stat().st_dev, file.stat().st_ino): file for file in own if file.is_file()}
    return sum(map(_stored_bytes, files.values()))


def _stored_bytes(file: pathlib.Path) -> int:
    """Returns how many bytes of a file are outside of its holes. If the file has more than `MOST_HOLES` holes, the data after
    them is not counted. If the file system cannot report holes, returns the size of the file."""
    with file.open("rb") as opened:
        number = opened.fileno()
        size, end, total = os.fstat(number).st_size, 0, 0
        for _ in range(MOST_HOLES):
            try:
                begin = os.lseek(number, end, os.SEEK_DATA)
                end = os.lseek(number, begin, os.SEEK_HOLE)
            except OSError as error:
                return total if error.errno == errno.ENXIO else size  # ENXIO: only a hole is left
            total += end - begin
            if end >= size:
                break
    return total


def require_stored(file: pathlib.Path) -> None:
    """Raises ValueError if a file consists mostly of holes, see `MOST_RATIO`. Such a file is small on disk but large when it is
    read or copied."""
    size = file.stat().st_size
    sparse = size > ALWAYS_UNPACKED and size > MOST_RATIO * _stored_bytes(file)
    require(not sparse, f"{file}: it has {size} bytes, but more than {1 - 1 / MOST_RATIO:.0%} of them are a hole")


def atomic_write(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a temporary file and renames it to `path`, so that no partial file is ever visible. Deletes the temporary file if
    writing fails. If several processes or threads write the same path, they write one after the other, and the last content
    remains."""
    temporary = path.with_name(f"{path.name}.partial")
    with _open_alone(temporary) as file:
        try:
            file.truncate(0)
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # writes what the buffer still has
                file.close()
            raise


def _open_alone(path: pathlib.Path) -> IO[bytes]:
    """Opens a temporary file for writing and locks it until it is closed. All writers use the same file name, so that a file
    that a killed writer has left is overwritten by the next writer."""
    while True:
        with contextlib.suppress(FileNotFoundError):
            if path.stat(follow_symlinks=False).st_nlink > 1:  # another name of this file may be outside of the folder
                path.unlink()
        file = open_without_links(path, "ab")
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()  # another writer has renamed it between opening and locking


def is_inside(path: str | os.PathLike, folder: str | os.PathLike) -> bool:
    """Returns whether a path is in a folder after all symbolic links are followed, including those on the way to the folder."""
    return pathlib.Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def require_links_inside(folder: pathlib.Path) -> None:
    """Raises ValueError if a symbolic link in `folder` leads out of the folder, which may come from an untrusted source.
    Without this check, a command that copies the folder's files could copy private files, and a command that writes the
    folder's files could write outside of the folder."""
    for place, folders, files in os.walk(folder):
        for path in (pathlib.Path(place, name) for name in (*folders, *files)):
            if path.is_symlink() and not is_inside(path, folder):
                raise ValueError(f"{path} leads to {os.path.realpath(path)}, outside of {folder}; remove the link")


def hub_blobs(path: pathlib.Path) -> list[pathlib.Path]:
    """Returns a list with one path if `path` is in the snapshot of a model in Hugging Face's cache. This path is the folder
    blobs, to which the symbolic links in the snapshot lead. Otherwise returns []. Also returns [] if blobs is a link, because a
    folder from an untrusted source may only look like such a cache."""
    real = pathlib.Path(os.path.realpath(path))
    found = [place.parents[1] / "blobs" for place in (real, *real.parents) if place.parent.name == "snapshots"]
    return [blobs for blobs in found if not blobs.is_symlink()]


def open_without_links(path: pathlib.Path, mode: str, encoding: str | None = None) -> IO[Any]:
    """Opens a file for appending, in a folder that may come from an untrusted source. If the path is a symbolic link, replaces
    the link by a new file, because the link may lead to any file of the user. Raises OSError if the path is a named pipe or
    another kind of file that is not regular. Raises ValueError if the file has hard links. The other links may be in a copy of
    the folder, or may be any file of the user."""

    def opener(name: str, flags: int) -> int:
        number = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)  # the last keeps a pipe from blocking
        try:
            found = os.fstat(number)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EINVAL, "not a regular file", name)
            links = f"{name} has {found.st_nlink} hard links, and writing would change the file under all these names"
            require(found.st_nlink <= 1, f"{links}; put a copy of it in its place")
        except BaseException:
            os.close(number)
            raise
        return number

    if path.is_symlink():
        path.unlink(missing_ok=True)
    return open(path, mode, encoding=encoding, opener=opener)


def append_row(path: pathlib.Path, row: dict[str, Any]) -> None:
    """Appends a dict to a JSON Lines file. If the last line of the file has no end, ends it first. A killed process may have
    left such a line. Raises the errors of `open_without_links`."""
    with named_errors(path), open_without_links(path, "a+b") as file:
        file.seek(max(0, file.tell() - 1))
        begin = "" if file.read(1) in (b"", b"\n") else "\n"
        file.write((begin + as_json_lines([row])).encode())


def user_cache() -> pathlib.Path:
    """Returns the folder in which this package caches files for the user."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path("~/.cache").expanduser()) / "igpo_jax"


def place_name(path: str | os.PathLike) -> str:
    """Returns the name of a file or folder without its parent folders. In the cache of the Hugging Face hub, a model's folder
    is named by a commit. For such a folder, returns MODEL/COMMIT, such as models--GSAI-ML--LLaDA-8B-Base/0f2787f2d87e."""
    place = pathlib.Path(os.path.abspath(path))  # links keep their names
    return f"{place.parents[1].name}/{place.name}" if place.parent.name == "snapshots" else place.name


def renamed(value: Any, names: dict[str, str] = RENAMED) -> Any:
    """Returns a JSON value in which keys are renamed at all levels. By default, keys of earlier versions of this package get
    their current names."""
    if isinstance(value, dict):
        return {names.get(key, key): renamed(part, names) for key, part in value.items()}
    return [renamed(part, names) for part in value] if isinstance(value, list) else value


def differing_keys(one: dict[str, Any], other: dict[str, Any], prefix: str = "") -> list[str]:
    """Compares two nested dicts. Returns the dotted keys that only one dict has or whose values differ."""
    keys = []
    for key in one | other:
        a, b = one.get(key), other.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            keys += differing_keys(a, b, f"{prefix}{key}.")
        elif a != b:
            keys.append(f"{prefix}{key}")
    return keys


def require_same_identity(file: pathlib.Path, identity: dict[str, Any], kind: str, results: Iterable[Any] = ()) -> None:
    """Checks that an output folder is reused only with equal settings. If `file` exists, compares its contents with `identity`,
    and raises a ValueError that names the keys that differ. Otherwise, writes the settings `identity` to `file`. `results` are
    the paths of files that will be written later, which may be in a bucket. If one of them exists without `file`, another
    command has written it, so raises a ValueError that names it."""
    if not file.is_file():
        for other in results:
            require(not other.exists(), f"{other} is of no {kind}, because there is no {file.name}; give another --output")
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(file, json.dumps(identity, indent=2, ensure_ascii=False))
        return
    written = renamed(read_json(file))
    differing = ", ".join(differing_keys(written, identity))
    another = f"another {kind}" + (", or one of an earlier version" if identity.keys() - written.keys() else "")
    require(not differing, f"{file.parent} holds {another} (differing: {differing}); give another --output")
