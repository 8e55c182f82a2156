"""Reads problem files row by row: JSON Lines, JSON arrays, CSV, Parquet and ArrayRecord. A row is a dict that maps column names
to values. A number in JSON that a float would round is its text.

The extension of a file, in upper or lower case, determines the format. JSON Lines, JSON and CSV files may be compressed with
gzip, under names such as problems.jsonl.gz. Their text is UTF-8, with or without a byte order mark. A .json file may also
contain JSON Lines, and a .jsonl file may also contain an array."""

import collections
import contextlib
import csv
import gzip
import io
import itertools
import logging
import math
import pathlib
import re
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from igpo_jax.runtime.buckets import local_file
from igpo_jax.runtime.checks import MOST_PROBLEMS, require
from igpo_jax.runtime.files import (
    MOST_BYTES,
    exact_number,
    first_line,
    numbered_lines,
    parse_json,
    require_plausible,
    require_stored,
)
from igpo_jax.runtime.installation import install_command

log = logging.getLogger(__name__)

Row = dict[str, Any]
Parsed = Iterator[tuple[str, int, Row | ValueError]]  # (place for messages, number, row or the reason why it is malformed)

BOM = b"\xef\xbb\xbf"
WIDE_BOMS = (b"\xff\xfe", b"\xfe\xff")  # of UTF-16 and UTF-32
PARQUET_ROWS = 64  # rows that are decoded at a time; few, because sizes in a file's metadata may be wrong
FEWEST_BYTES = 8  # stored bytes per row of a compressed file with more than MOST_PROBLEMS rows
PARQUET_BATCH = 1 << 26  # maximum bytes of a column in the rows that are decoded at a time


def read_rows(
    path: str,
    max_malformed: int = 0,
    key: str = "task.test",
    advice: str = "give the path of a problem file, such as JSON Lines",
) -> Iterator[tuple[str, int, Row]]:
    """Yields (place, number, row) for each row of a problem file. The file may be in a bucket, with the path gs://BUCKET/NAME.
    `place` names the file and the row in messages. `number` is the number of the line, counted from 1, in JSON Lines and CSV.
    In JSON arrays, Parquet and ArrayRecord, it is the number of the row, counted from 0. Skips and logs up to `max_malformed`
    malformed rows. Raises ValueError if the file is missing, unreadable or has no rows. If the file is missing, the message
    contains `key` (the key or flag that names the file) and `advice` (how to get a file). If the file has more than
    `max_malformed` malformed rows, raises a ValueError with the line and the reason. Also raises ValueError for a sparse file
    that consists mostly of holes, and for a file that has an implausible number of rows for its size."""
    file = local_file(path)
    if not file.is_file():
        raise ValueError(f"{key}: no data file {str(path)!r}; {advice}")
    require_stored(file)
    most = max(MOST_PROBLEMS, file.stat().st_size // FEWEST_BYTES)
    good = malformed = 0
    for place, number, row in _parsed(file, str(path)):
        require(good + malformed < most, f"{place}: more than {most} rows in such a small file")
        if not isinstance(row, dict):
            malformed += 1
            if malformed > max_malformed:
                raise ValueError(f"{row}; task.max_malformed_lines={max_malformed} are allowed")
            log.warning("%s; skipped (%d of %d allowed)", row, malformed, max_malformed)
            continue
        good += 1
        yield place, number, row
        del row  # before the next row is read; a row may be large
    if not good:
        raise ValueError(f"{path}: no problems in this file")


def column(row: Row, *names: str) -> str | None:
    """Returns the first of the column names `names` that is in the row, as the row spells it. Returns None if the row has none
    of these columns. Ignores the case of letters, but prefers an exact match."""
    folded = {name.lower(): name for name in row}
    return next((name if name in row else folded[name] for name in names if name in row or name in folded), None)


def columns_in(row: Row, *layouts: tuple[str, str]) -> list[str]:
    """Returns the column names of the first layout that fits the row, as the row spells them. A layout is a tuple of column
    names, and it fits if the row has all of these columns. Raises ValueError if no layout fits."""
    for layout in layouts:
        names = [name for name in (column(row, wanted) for wanted in layout) if name is not None]
        if len(names) == len(layout):
            return names
    raise ValueError(f"the columns must be {', or '.join(map(' and '.join, layouts))}; {columns_of(row)}")


def columns_of(row: Row) -> str:
    """Formats the column names of a row for an error message."""
    return f"it has {', '.join(map(repr, row))}" if row else "it has none"


def is_null(value: Any) -> bool:
    """Returns whether a value is missing: None, or NaN, which pandas writes for missing values."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _parsed(file: pathlib.Path, path: str) -> Parsed:
    kinds = [suffix.lower() for suffix in file.suffixes]
    kind = kinds[-1] if kinds else ""
    if kind == ".parquet":
        yield from _parquet(file, path)
        return
    if kind in (".array_record", ".arrayrecord"):
        yield from _array_record(file, path)
        return
    compressed = kind == ".gz"
    kind = "".join(kinds[-2:-1]) if compressed else kind
    with contextlib.closing(_unpacked(file) if compressed else file.open("rb")) as stream:
        try:
            _skip_byte_order_mark(stream, path)
            most = max(2 * MOST_PROBLEMS, file.stat().st_size)  # lines; text has more than a byte per line, even compressed
            yield from _csv(stream, path, most) if kind == ".csv" else _json(stream, path, kind == ".json", most)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: no complete gzip file ({first_line(error)})") from None


def _require_unpacked(file: pathlib.Path, size: int) -> None:
    """Raises ValueError if `size`, the number of bytes unpacked so far from a compressed file, exceeds the limit of
    `require_plausible`. Problem texts do not reach this limit, because compression shrinks them only to a third or a tenth."""
    require_plausible(file, size, file.stat().st_size, "; unpack it first, as JSON Lines")


def _unpacked(file: pathlib.Path) -> io.BufferedReader:
    """Opens a gzip file for reading. Reading from it raises ValueError if the file unpacks to too many bytes."""

    class Limited(io.RawIOBase):
        def __init__(self):
            self._file, self._size = gzip.open(file), 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer) -> int:
            content = self._file.read(len(buffer))
            buffer[: len(content)] = content
            self._size += len(content)
            _require_unpacked(file, self._size)
            return len(content)

        def close(self) -> None:
            self._file.close()
            super().close()

    return io.BufferedReader(Limited(), 1 << 16)


def _skip_byte_order_mark(stream: Any, path: str) -> None:
    begin = stream.peek(3)[:3]
    if begin == BOM:
        stream.read(len(BOM))
    if begin[:2] in WIDE_BOMS:
        raise ValueError(f"{path}: not UTF-8 but UTF-16 or UTF-32; save it as UTF-8")
    if begin[:2] == b"\x1f\x8b":
        raise ValueError(f"{path}: not text but a gzip file; its name must end in .gz, such as .jsonl.gz")


def _counted(lines: Iterable[Any], path: str, most: int) -> Iterator[tuple[int, Any]]:
    """Yields (number, line) with numbers from 1. Raises ValueError if there are more than `most` lines. A small compressed file
    may have many million blank lines, which would take minutes to read."""
    for number, line in enumerate(lines, start=1):
        if number > most:
            raise ValueError(f"{path}, line {number}: more than {most} lines in such a small file; unpack it first")
        yield number, line


def _json(stream: Any, path: str, is_array: bool, most: int) -> Parsed:
    """Yields the rows of a JSON file that has one object per line, or contains an array of objects. Content that does not begin
    with a bracket is read line by line. If it begins with a bracket and `is_array` is True (for a .json file), it is read as an
    array, and an invalid array raises ValueError. If it begins with a bracket and `is_array` is False, it is read as an array
    only if it is a valid array of objects, and otherwise line by line. `most` is the maximum number of lines."""
    lines = _counted(iter(lambda: stream.readline(MOST_BYTES + 1), b""), path, most)
    number, line = next(((number, line) for number, line in lines if line.strip()), (1, b""))
    if line.lstrip().startswith(b"["):
        content = line + stream.read()
        array = None
        with contextlib.nullcontext() if is_array else contextlib.suppress(ValueError):
            array = parse_json(_decoded(content, path, number), path, exact_number)
        if array is not None and (is_array or all(isinstance(row, dict) for row in array)):
            for entry, row in enumerate(array):
                place = f"{path}, entry {entry} (from 0)"
                yield place, entry, row if isinstance(row, dict) else ValueError(f"{place}: not a JSON object")
            return
        begin = number - 1
        lines = ((begin + n, line) for n, line in _counted(io.BytesIO(content), path, most))  # splitlines also splits at \r
    else:
        lines = itertools.chain([(number, line)], lines)
    for number, line in lines:
        if not line.strip():
            continue
        require(len(line) <= MOST_BYTES, f"{path}, line {number}: more than {MOST_BYTES / 2**20:g} MiB in one line")
        row = _json_object(line, f"{path}, line {number}")
        if is_array and isinstance(row, ValueError):
            row = ValueError(f"{row}; a .json file is an array of objects, or has one object per line")
        yield f"{path}, line {number}", number, row


def _json_object(line: bytes, place: str) -> Row | ValueError:
    try:
        row = parse_json(line, place, exact_number)
    except ValueError as error:
        return error
    return row if isinstance(row, dict) else ValueError(f"{place}: not a JSON object")


def _csv(stream: Any, path: str, most: int) -> Parsed:
    """Yields the rows of a file of comma-separated values. The first line that is not blank contains the column names. `most`
    is the maximum number of lines."""
    csv.field_size_limit(MOST_BYTES)
    # A line may also end with \r alone, as in old files.
    decoded = (_decoded(line, path, number) for number, line in numbered_lines(stream, path))
    parts = (match[0] for text in decoded for match in re.finditer(r"[^\r\n]*(?:\r\n?|\n)|[^\r\n]+", text))
    reader = csv.reader((part for _, part in _counted(parts, path, most)), strict=True)
    names: list[str] = []
    while True:
        place = f"{path}, line {reader.line_num + 1}"
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(f"{place}: not CSV ({error})") from None
        if not "".join(fields).strip():
            continue
        if not names:
            names = [name.strip() for name in fields]
            _require_distinct(names, place)
        elif len(fields) != len(names):
            yield place, reader.line_num, ValueError(f"{place}: {len(fields)} values for {len(names)} columns")
        else:
            yield place, reader.line_num, dict(zip(names, fields, strict=True))


def _decoded(content: bytes, path: str, first: int = 1) -> str:
    """Decodes UTF-8. `first` is the line number at which `content` begins. Raises a ValueError that names the first line that
    is not UTF-8."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = first + content.count(b"\n", 0, error.start)
        raise ValueError(f"{path}, line {line}: not UTF-8 ({error}); save the file as UTF-8") from None


def _require_distinct(names: list[str], place: str) -> None:
    twice = sorted(name for name, number in collections.Counter(names).items() if number > 1)
    if twice:
        raise ValueError(f"{place}: the column {twice[0]!r} is given twice; rename or remove one")


def _parquet(file: pathlib.Path, path: str) -> Parsed:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f"{path}: reading Parquet needs pyarrow: {install_command('data')}") from None
    try:
        table = pyarrow.parquet.ParquetFile(file)
        _require_distinct(table.schema_arrow.names, path)
        for number, row in enumerate(_parquet_rows(file, table)):
            yield f"{path}, row {number} (from 0)", number, row
    except (pyarrow.ArrowException, OSError, OverflowError, UnicodeDecodeError) as error:  # OverflowError: dates
        raise ValueError(f"{path}: no Parquet file ({first_line(error)})") from None


def _parquet_rows(file: pathlib.Path, table: Any) -> Iterator[Row]:
    """Yields the rows of a `pyarrow.parquet.ParquetFile`. Decodes only a few rows at a time to limit memory: a file stores a
    repeated text only once, so each decoded row may be as large as all stored values of a column."""
    # The sizes of single columns would give a closer bound, but pyarrow ends the process if their description is damaged.
    groups = [table.metadata.row_group(number) for number in range(table.metadata.num_row_groups)]
    largest = max((group.total_byte_size for group in groups), default=0)
    _require_unpacked(file, largest)
    size = 0
    for batch in table.iter_batches(max(1, min(PARQUET_ROWS, PARQUET_BATCH // max(1, largest)))):
        size += batch.nbytes
        _require_unpacked(file, size)
        try:
            rows = batch.to_pylist()
        except (LookupError, ValueError) as error:  # an unknown time zone, or a struct with two fields of one name
            raise ValueError(f"{file}: a column has values for which Python has no type ({first_line(error)})") from None
        yield from rows


def _array_record(file: pathlib.Path, path: str) -> Parsed:
    import grain

    try:
        source = grain.sources.ArrayRecordDataSource(str(file))
    except (ValueError, RuntimeError, OSError) as error:
        raise ValueError(f"{path}: no ArrayRecord file ({error})") from None
    for number in range(len(source)):
        place = f"{path}, record {number} (from 0)"
        try:
            record = source[number]
        except (RuntimeError, OSError) as error:
            raise ValueError(f"{place}: cannot be read ({first_line(error)})") from None
        require(len(record) <= MOST_BYTES, f"{place}: more than {MOST_BYTES / 2**20:g} MiB")
        yield place, number, _json_object(record, place)
