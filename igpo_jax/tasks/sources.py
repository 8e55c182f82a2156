"""Mathematical problems from the files that people have: GSM8K, MATH, AMC, Minerva, MetaMathQA, OpenR1, or one's own.

A source is written "format:path", several are separated by commas. JSON lines, a JSON array, Parquet (extra "data") and
ArrayRecord files (one JSON object each) are told apart by their ending.
"""

import collections
import dataclasses
import logging
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

from igpo_jax.grading.answers import box_spans
from igpo_jax.grading.exact import evaluate
from igpo_jax.runtime.files import parse_json
from igpo_jax.tasks.problem import read_jsonl

log = logging.getLogger(__name__)

ANNOTATION = re.compile(r"<<[^<>]*>>")  # GSM8K's, for a calculator that we do not have
METAMATH_TYPES = ("GSM_AnsAug", "MATH_AnsAug")

Span = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Record:
    """One problem of a file. solution: the reasoning, "" if there is none; without a last line that only states the answer.
    spans: of the solution, what gives the answer away. response: the solution as the file has it."""

    id: str
    question: str
    answer: str
    solution: str
    spans: tuple[Span, ...]
    response: str


class Dropped(ValueError):
    """A row that is passed over; the message is the reason, which is counted."""


@dataclasses.dataclass
class Counts:
    """Of one source: rows of the file, records that were kept, and why the others were not."""

    source: str
    rows: int = 0
    kept: int = 0
    dropped: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    def __str__(self) -> str:
        reasons = "".join(f", {number} {reason}" for reason, number in self.dropped.most_common())
        return f"{self.source}: {self.kept} of {self.rows} rows{reasons}"


def load_sources(text: str, fields: dict[str, str], max_malformed: int = 0) -> tuple[list[Record], list[Counts]]:
    """The records of all sources in their order.

    Args:
        text: "format:path,format:path".
        fields: of the format jsonl: what its fields for question, answer and solution are called.
        max_malformed: lines of each file that may be skipped.

    Raises:
        ValueError: a format that there is not, or a file that cannot be used; names file and line.
    """
    records: dict[str, Record] = {}
    counts: list[Counts] = []
    asked: set[str] = set()  # questions of metamath, where many rows have the same
    for source in filter(None, (part.strip() for part in text.split(","))):
        kind, colon, path = source.partition(":")
        if not colon or kind not in FORMATS:
            raise ValueError(f"source {source!r} is not format:path, where format is one of {', '.join(FORMATS)}")
        if source in (count.source for count in counts):
            raise ValueError(f"source {source!r} is given twice")
        count = Counts(source)
        for row, place in _rows(path, max_malformed):
            count.rows += 1
            try:
                record = FORMATS[kind](row, fields)
                if kind == "metamath" and record.question in asked:
                    raise Dropped("of a question that came before")
            except Dropped as reason:
                count.dropped[str(reason)] += 1
                continue
            except (KeyError, TypeError, AttributeError, IndexError) as error:
                reason = f"lacks the field {error}" if isinstance(error, KeyError) else str(error)
                message = f"{place}: no row of the format {kind}: {reason}"
                count.dropped["of another format"] += 1
                if count.dropped["of another format"] > max_malformed:
                    raise ValueError(f"{message}; task.max_malformed_lines={max_malformed} are allowed") from None
                log.warning("%s; skipped", message)
                continue
            if kind == "metamath":
                asked.add(record.question)
            if not record.id:
                name = f"{pathlib.Path(path).stem}-{count.rows - 1}"
                name += f" of source {len(counts)}" if name in records else ""  # a/train.jsonl and b/train.jsonl
                record = dataclasses.replace(record, id=name)
            if record.id in records:
                raise ValueError(f"{place}: the id {record.id!r} has come before")
            records[record.id] = record
            count.kept += 1
        if not count.kept:
            raise ValueError(f"{count}: no problem to use")
        counts.append(count)
    return list(records.values()), counts


# Files


def _rows(path: str, max_malformed: int) -> Iterator[tuple[dict[str, Any], str]]:
    """(row, where it stands) of a file."""
    file = pathlib.Path(path)
    if not file.is_file():
        raise ValueError(f"no data file {path!r}")
    if file.suffix == ".parquet":
        return _parquet(file)
    if file.suffix in (".array_record", ".arrayrecord"):
        return _array_record(file)
    if file.suffix == ".json":
        return _json_array(file)
    return ((row, f"{path}, line {number}") for number, row in read_jsonl(path, max_malformed))


def _json_array(file: pathlib.Path):
    try:
        rows = parse_json(file.read_bytes(), file)
    except ValueError as error:
        raise ValueError(f"{error}; JSON lines end in .jsonl") from None
    if not isinstance(rows, list):
        raise ValueError(f"{file}: no array of JSON objects")
    for number, row in enumerate(rows):
        yield row, f"{file}, entry {number} (from 0)"


def _parquet(file: pathlib.Path):
    try:
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f'{file}: reading Parquet needs pyarrow: pip install -e ".[data]"') from None
    try:
        table = pyarrow.parquet.ParquetFile(file)
        number = 0
        for batch in table.iter_batches(1024):
            for row in batch.to_pylist():
                yield row, f"{file}, row {number} (from 0)"
                number += 1
    except (pyarrow.ArrowException, OSError, OverflowError, UnicodeDecodeError) as error:  # of dates beyond all years
        raise ValueError(f"{file}: no Parquet file ({str(error).splitlines()[0][:300]})") from None


def _array_record(file: pathlib.Path):
    import grain

    try:
        source = grain.sources.ArrayRecordDataSource(str(file))
    except (ValueError, RuntimeError, OSError) as error:
        raise ValueError(f"{file}: no ArrayRecord file ({error})") from None
    for number in range(len(source)):
        place = f"{file}, record {number} (from 0)"
        try:
            record = source[number]
        except (RuntimeError, OSError) as error:
            raise ValueError(f"{place}: cannot be read ({str(error).splitlines()[0]})") from None
        yield parse_json(record, place), place


# Formats. Each makes a record of a row, or says why not.


def _text(row: dict[str, Any], name: str) -> str:
    value = row[name]
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise TypeError(f"the field {name!r} is {type(value).__name__}, not text")
    value.encode("utf-8")  # an escaped lone surrogate is no text
    return value.strip()


WRITTEN = re.compile(r"-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")


def _last_occurrence(solution: str, answer: str) -> tuple[Span, ...]:
    """Where a solution states the answer last; a number in any of the ways to write it, such as 1,000.00 for 1000."""
    wanted = evaluate(answer)
    for match in reversed(list(WRITTEN.finditer(solution)) if wanted is not None else []):
        text = match[0].rstrip(",")
        for begin in (match.start(), match.end() - len(match[0].lstrip("-"))):  # 9-5 ends in 5 as well as in -5
            number = evaluate(text[begin - match.start() :])
            if number is not None and number.value == wanted.value:
                return ((begin, match.start() + len(text)),)
    plain = not answer or (wanted is not None and WRITTEN.fullmatch(answer))
    begin = -1 if plain else solution.rfind(answer)  # such as \frac{1}{2}
    return () if begin < 0 else ((begin, begin + len(answer)),)


def _last_box(solution: str) -> tuple[Span, ...] | None:
    """The content of the last box; None where there is none, or nothing in it."""
    spans = box_spans(solution)
    if not spans:
        return None
    begin, end = spans[-1]
    content = solution[begin:end]
    begin, end = begin + len(content) - len(content.lstrip()), begin + len(content.rstrip())
    return ((begin, end),) if begin < end else None


def _gsm8k(row, fields) -> Record:
    """question and answer, as published, or problem and raw_answer. Answer: what follows ####."""
    question, response = ("question", "answer") if "question" in row else ("problem", "raw_answer")
    question, response = _text(row, question), _text(row, response)
    solution, separator, answer = response.rpartition("####")
    if not separator:
        raise TypeError("the answer has no #### line")
    solution, answer = ANNOTATION.sub("", solution).strip(), answer.strip()
    response = ANNOTATION.sub("", response)
    return Record(_id(row), question, answer, solution, _last_occurrence(solution, answer), response)


def _math(row, fields) -> Record:
    """problem, answer, solution (which may be missing, as in AMC). Answer: the content of the last box."""
    question, answer = _text(row, "problem"), _text(row, "answer")
    solution = _text(row, "solution") if row.get("solution") else ""
    spans = _last_box(solution) if solution else ()
    if spans is None:  # it does not say where the answer is: nothing of it may be shown
        spans = ((0, len(solution)),)
    return Record(_id(row), question, answer, solution, spans, solution)


def _metamath(row, fields) -> Record:
    """type, query, response. Answer: what follows "The answer is:", else #### (igpo_method.md 4, where else it is all of the
    response, which no completion can match)."""
    kind = _text(row, "type")
    if kind not in METAMATH_TYPES:
        raise Dropped(f"of the type {kind}" if kind.isidentifier() else "of another type")
    question, response = _text(row, "query"), _text(row, "response")
    solution, stated, answer = response.rpartition("The answer is:")
    if not stated:
        solution, stated, answer = response.rpartition("####")
    if not stated:
        raise Dropped("without an answer")
    answer = answer.strip()
    solution = solution.rstrip()
    last_line = solution.rfind("\n") + 1
    marks = solution.find("####", last_line)
    solution = solution if marks < 0 else solution[:marks].rstrip()
    spans = _last_box(solution) or _last_occurrence(solution, answer)
    if not spans and kind.startswith("MATH"):  # it may be written in another way
        spans = ((0, len(solution)),)
    return Record(_id(row), question, answer, solution, spans, response)


def _openr1(row, fields) -> Record:
    """problem, answer, generations with correctness_math_verify: the shortest that is marked correct is the solution."""
    question, answer = _text(row, "problem"), _text(row, "answer")
    marks = row.get("correctness_math_verify") or row.get("correctness_llama")
    if not marks:
        raise Dropped("without marks of correctness")
    right = [text for text, correct in zip(row["generations"], marks, strict=False) if correct and text]
    if not right:
        raise Dropped("without a correct trace")
    response = min(right, key=len).strip()
    solution = re.sub(r"</?think>", "", response).strip()
    spans = _last_box(solution)
    return Record(
        _id(row, "uuid"), question, answer, solution, ((0, len(solution)),) if spans is None else spans, response
    )


def _jsonl(row, fields) -> Record:
    """One's own: what its fields are called is in task.fields. The answer is where the last box or the last occurrence is."""
    question, answer = _text(row, fields["question"]), _text(row, fields["answer"])
    solution = _text(row, fields["solution"]) if row.get(fields["solution"]) else ""
    spans = _last_box(solution) or _last_occurrence(solution, answer)
    if solution and not spans:
        spans = ((0, len(solution)),)
    return Record(_id(row, fields["id"]), question, answer, solution, spans, solution)


def _id(row: dict[str, Any], name: str = "id") -> str:
    return "" if row.get(name) is None else _text(row, name)


FORMATS: dict[str, Callable[[dict[str, Any], dict[str, str]], Record]] = {
    "gsm8k": _gsm8k,
    "math": _math,
    "amc": _math,
    "minerva": _math,
    "metamath": _metamath,
    "openr1": _openr1,
    "jsonl": _jsonl,
}
