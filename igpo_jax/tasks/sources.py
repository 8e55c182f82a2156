"""Reads mathematical problems: GSM8K, MATH, AMC, Minerva, MetaMathQA, OpenR1, and a user's own files.

A source is "format:path"; commas separate several sources. The extension of a file determines how it is read: JSON Lines, a
JSON array, Parquet (needs the extra "data"), or ArrayRecord with one JSON object per record."""

import collections
import dataclasses
import logging
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

from igpo_jax.grading.answers import box_spans
from igpo_jax.runtime.files import first_line, parse_json
from igpo_jax.tasks.answer_spans import Span, answer_spans, merged, occurrences
from igpo_jax.tasks.problem import read_jsonl

log = logging.getLogger(__name__)

ANNOTATION = re.compile(r"<<[^<>]*>>")  # GSM8K's calculator calls
STRIPPED = re.compile(r"\S(?:.*\S)?", re.DOTALL)
METAMATH_TYPES = ("GSM_AnsAug", "MATH_AnsAug")
# Marks of a missing answer. Answers in words, such as \\text{None} or "no solution", are not in this list.
PLACEHOLDERS = {"n/a", "nan", "none", "not found", "notfound", "null", "proof"}
MARKUP = re.compile(r"\\(?:boxed|fbox|text|mathrm|left|right|[,;:!~ ])|(?<!\\)[{}]|[\s$~.,;]")

Rows = Iterator[tuple[dict[str, Any], str]]  # (row, its place for messages)


@dataclasses.dataclass(frozen=True)
class Record:
    id: str
    question: str
    answer: str
    solution: str  # the reasoning, without a last line that only states the answer; "" if there is none
    spans: tuple[Span, ...]  # characters of the solution that give the answer away
    response: str  # the solution as in the file


class Dropped(ValueError):
    """Error raised for a row that the rules of a format exclude. The message is the reason, by which `SourceCounts`
    groups dropped rows."""


@dataclasses.dataclass
class SourceCounts:
    source: str
    rows: int = 0
    kept: int = 0
    dropped: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)  # by reason

    def __str__(self) -> str:
        reasons = "".join(f", {number} {reason}" for reason, number in self.dropped.most_common())
        return f"{self.source}: {self.kept} of {self.rows} rows{reasons}"


def load_sources(text: str, fields: dict[str, str], max_malformed: int = 0) -> tuple[list[Record], list[SourceCounts]]:
    """Returns the records of all sources in order, and the row counts of each source. `text` lists the sources as
    "format:path,format:path". `fields` maps id, question, answer and solution to their names in files of the format jsonl.
    At most `max_malformed` malformed lines of each file are skipped. Raises ValueError if a format is unknown. If a file is
    unusable, raises a ValueError that names the file and line."""
    records: dict[str, Record] = {}
    counts: list[SourceCounts] = []
    metamath_questions: set[str] = set()  # many rows share a question
    for source in filter(None, (part.strip() for part in text.split(","))):
        kind, colon, path = source.partition(":")
        if not colon or kind not in FORMATS:
            raise ValueError(f"source {source!r} is not format:path, where format is one of {', '.join(FORMATS)}")
        if source in (count.source for count in counts):
            raise ValueError(f"source {source!r} is given twice")
        count = SourceCounts(source)
        for row, place in _rows(path, max_malformed):
            count.rows += 1
            try:
                record = FORMATS[kind](row, fields)
                _require_answer(record.answer)
                if kind == "metamath" and record.question in metamath_questions:
                    raise Dropped("of a question that came before")
            except Dropped as dropped:
                count.dropped[str(dropped)] += 1
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
                metamath_questions.add(record.question)
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


def _rows(path: str, max_malformed: int) -> Rows:
    file = pathlib.Path(path)
    if not file.is_file():
        raise ValueError(f"no data file {path!r}")
    readers = {".parquet": _parquet, ".array_record": _array_record, ".arrayrecord": _array_record, ".json": _json_array}
    if file.suffix in readers:
        return readers[file.suffix](file)
    return ((row, f"{path}, line {number}") for number, row in read_jsonl(path, max_malformed))


def _json_array(file: pathlib.Path) -> Rows:
    try:
        rows = parse_json(file.read_bytes(), file)
    except ValueError as error:
        raise ValueError(f"{error}; JSON lines end in .jsonl") from None
    if not isinstance(rows, list):
        raise ValueError(f"{file}: no array of JSON objects")
    for number, row in enumerate(rows):
        yield row, f"{file}, entry {number} (from 0)"


def _parquet(file: pathlib.Path) -> Rows:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f'{file}: reading Parquet needs pyarrow: pip install -e ".[data]"') from None
    try:
        batches = pyarrow.parquet.ParquetFile(file).iter_batches(1024)
        for number, row in enumerate(row for batch in batches for row in batch.to_pylist()):
            yield row, f"{file}, row {number} (from 0)"
    except (pyarrow.ArrowException, OSError, OverflowError, UnicodeDecodeError) as error:  # OverflowError: dates
        raise ValueError(f"{file}: no Parquet file ({first_line(error)})") from None


def _array_record(file: pathlib.Path) -> Rows:
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
            raise ValueError(f"{place}: cannot be read ({first_line(error)})") from None
        yield parse_json(record, place), place


# Formats: each function makes a record from a row, or raises `Dropped`, KeyError or TypeError.


def _text(row: dict[str, Any], name: str) -> str:
    value = str(row[name]) if type(row[name]) in (int, float) else row[name]
    if not isinstance(value, str):
        raise TypeError(f"the field {name!r} is {type(value).__name__}, not text")
    value.encode("utf-8")  # raises for an escaped lone surrogate
    return value.strip()


def _require_answer(answer: str) -> None:
    """Raises `Dropped` for an answer that a completion would match without solving the problem, such as an empty one."""
    if not MARKUP.sub("", answer):
        raise Dropped("without an answer")
    if answer.casefold() in PLACEHOLDERS:
        raise Dropped(f"with {answer.casefold()!r} for an answer")


def _spans(solution: str, answer: str) -> tuple[Span, ...]:
    """Returns the character spans of a solution that give the answer away: all that `answer_spans` finds, and the content of
    the last \\boxed{...} or, if there is no box, the last occurrence of the answer."""
    boxes = [content.span() for span in box_spans(solution)[-1:] if (content := STRIPPED.search(solution, *span))]
    return tuple(merged([*answer_spans(solution, answer), *(boxes or occurrences(solution, answer)[-1:])]))


def _spans_or_whole(solution: str, answer: str) -> tuple[Span, ...]:
    """Returns `_spans`, or the whole solution if they are empty, because it may write the answer in another notation."""
    return _spans(solution, answer) or (((0, len(solution)),) if solution else ())


def _gsm8k(row: dict[str, Any], fields: dict[str, str]) -> Record:
    """Reads a row of GSM8K with the keys question and answer, or problem and raw_answer. The final answer follows the last
    ####."""
    names = ("question", "answer") if "question" in row else ("problem", "raw_answer")
    question, response = (_text(row, name) for name in names)
    solution, separator, answer = response.rpartition("####")
    if not separator:
        raise TypeError("the answer has no #### line")
    solution, answer = ANNOTATION.sub("", solution).strip(), answer.strip()
    response = ANNOTATION.sub("", response)
    return Record(_id(row), question, answer, solution, _spans(solution, answer), response)


def _math(row: dict[str, Any], fields: dict[str, str]) -> Record:
    """Reads a row of MATH with the keys problem, answer and solution. Rows of AMC have no solution."""
    question, answer = _text(row, "problem"), _text(row, "answer")
    solution = _text(row, "solution") if row.get("solution") else ""
    return Record(_id(row), question, answer, solution, _spans_or_whole(solution, answer), solution)


def _metamath(row: dict[str, Any], fields: dict[str, str]) -> Record:
    """Reads a row of MetaMathQA with the keys type, query and response. The answer follows "The answer is:" or, if this text is
    missing, ####. A row with neither marker is dropped. From such a row, the reference code takes the whole response as
    the answer, which no completion can match (docs/method.md section 8)."""
    kind = _text(row, "type")
    if kind not in METAMATH_TYPES:
        raise Dropped(f"of the type {kind}" if kind.isidentifier() else "of another type")
    question, response = _text(row, "query"), _text(row, "response")
    mark = next((mark for mark in ("The answer is:", "####") if mark in response), None)
    if not mark:
        raise Dropped("without an answer")
    solution, _, answer = response.rpartition(mark)
    solution, answer = solution.rstrip(), answer.strip()
    marks = solution.find("####", solution.rfind("\n") + 1)
    solution = solution if marks < 0 else solution[:marks].rstrip()
    spans = _spans_or_whole(solution, answer) if kind.startswith("MATH") else _spans(solution, answer)
    return Record(_id(row), question, answer, solution, spans, response)


def _openr1(row: dict[str, Any], fields: dict[str, str]) -> Record:
    """Reads a row of OpenR1, which has several generated solutions, each marked as right or wrong. The shortest right one
    becomes the solution."""
    question, answer = _text(row, "problem"), _text(row, "answer")
    marks = row.get("correctness_math_verify") or row.get("correctness_llama")
    if not marks:
        raise Dropped("without marks of correctness")
    right = [text for text, correct in zip(row["generations"], marks, strict=False) if correct and text]
    if not right:
        raise Dropped("without a correct trace")
    response = min(right, key=len).strip()
    solution = re.sub(r"</?think>", "", response).strip()
    return Record(_id(row, "uuid"), question, answer, solution, _spans_or_whole(solution, answer), response)


def _jsonl(row: dict[str, Any], fields: dict[str, str]) -> Record:
    """Reads a row of a user's file, whose field names are given in task.fields."""
    question, answer = _text(row, fields["question"]), _text(row, fields["answer"])
    solution = _text(row, fields["solution"]) if row.get(fields["solution"]) else ""
    return Record(_id(row, fields["id"]), question, answer, solution, _spans_or_whole(solution, answer), solution)


def _id(row: dict[str, Any], name: str = "id") -> str:
    return "" if row.get(name) is None else _text(row, name)


FORMATS: dict[str, Callable[[dict[str, Any], dict[str, str]], Record]] = dict(
    gsm8k=_gsm8k, math=_math, amc=_math, minerva=_math, metamath=_metamath, openr1=_openr1, jsonl=_jsonl
)
