"""Reads mathematical problems: GSM8K, MATH, AMC, AIME, Minerva, MetaMathQA, OpenR1, and a user's own files.

A source is written as "format:path". The name of the file may be a pattern with *, such as "openr1:data/train-*.parquet".
Several sources are separated by commas. The files are read by `rows.read_rows`."""

import collections
import dataclasses
import logging
import math
import pathlib
import re
import unicodedata
from collections.abc import Callable
from typing import Any

from igpo_jax.grading.answers import box_spans
from igpo_jax.runtime.buckets import matching_files
from igpo_jax.runtime.checks import require
from igpo_jax.runtime.files import require_unicode
from igpo_jax.tasks.answer_spans import Span, answer_spans, merged, occurrences
from igpo_jax.tasks.rows import column, columns_of, is_null, read_rows

log = logging.getLogger(__name__)

# Characters of a solution in which its answer is searched, and places of the answer. Longer or more repetitive solutions were
# made to exhaust the memory, and give no hints from the part that may show the answer.
MOST_SEARCHED, MOST_SPANS = 1 << 20, 1000
MOST_SPANS_IN_ALL = 1 << 24  # of all solutions; a place takes about 170 bytes
THINK = re.compile("</?think>")
ANNOTATION = re.compile(r"<<[^<>]*>>")  # GSM8K's calculator calls
STRIPPED = re.compile(r"\S(?:.*\S)?", re.DOTALL)
METAMATH_TYPES = ("GSM_AnsAug", "MATH_AnsAug")
# Marks of a missing answer. Answers in words, such as \\text{None} or "no solution", are not in this list.
PLACEHOLDERS = {"n/a", "nan", "none", "not found", "notfound", "null", "proof"}
INFINITE = (math.inf, -math.inf)  # JSON may have the number Infinity
BLANK = " \u115f\u1160\u2800\u3164\uffa0"  # printable characters without ink: space, fillers of Hangul, Braille without dots
MARKUP = re.compile(r"\\(?:boxed|fbox|text|mathrm|left|right|[,;:!~ ])|(?<!\\)[{}]|[\s$~.,;]")

GSM8K_ANSWER = re.compile(r"(?:^|\s)####\s*\S")  # the last line of a solution in a file of GSM8K
# Columns of each format, for messages; those of the format jsonl are in task.fields.
WANTED = {
    "gsm8k": "question and answer, or problem and raw_answer",
    "metamath": "type, query and response",
    "openr1": "problem, answer, generations and correctness_math_verify",
    "math": "problem, answer and solution (without answer: the last \\boxed in solution)",
} | dict.fromkeys(
    ("amc", "aime", "minerva"), "problem or question, answer and solution (without answer: the last \\boxed in solution)"
)

# Format -> data set on the Hugging Face hub and its files, for messages.
DATASETS = {
    "gsm8k": ("openai/gsm8k", "main/train-00000-of-00001.parquet", "main/test-00000-of-00001.parquet"),
    "math": ("HuggingFaceH4/MATH-500", "test.jsonl"),
    "metamath": ("meta-math/MetaMathQA", "MetaMathQA-395K.json"),
    "amc": ("AI-MO/aimo-validation-amc", "data/train-00000-of-00001.parquet"),
    "openr1": ("open-r1/OpenR1-Math-220k", "data/*.parquet"),
}


@dataclasses.dataclass(frozen=True)
class Record:
    id: str
    question: str
    answer: str
    solution: str  # the reasoning, without a last line that only states the answer; "" if there is none
    spans: tuple[Span, ...]  # characters of the solution that give the answer away
    response: str  # the solution as in the file


class Dropped(ValueError):
    """Error raised for a row that the rules of its source format exclude. The message is the reason. `SourceCounts` counts the
    dropped rows for each reason."""


@dataclasses.dataclass
class SourceCounts:
    source: str
    rows: int = 0
    ids: set[str] = dataclasses.field(default_factory=set)  # of the rows that are kept
    dropped: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)  # by reason

    @property
    def kept(self) -> int:
        return len(self.ids)

    def __str__(self) -> str:
        reasons = "".join(f", {number} {reason}" for reason, number in self.dropped.most_common())
        return f"{self.source}: {self.kept} of {self.rows} rows{reasons}"


def download_advice(kind: str) -> str:
    """Returns advice for an error message about a missing file of the format `kind`."""
    if kind not in DATASETS:
        return "give the path of a problem file, such as JSON Lines"
    dataset, *files = DATASETS[kind]
    name = f"data/{dataset.rpartition('/')[2]}"
    paths = " or ".join(f"{kind}:{name}/{file}" for file in files)
    return f"for example, run hf download {dataset} --repo-type dataset --local-dir {name} and give {paths}"


def split_sources(text: str) -> list[str]:
    """Returns the sources in `text`, one per file. Replaces a pattern by the files in its folder that match it, in order. A
    pattern that no file matches stays as it is. Raises ValueError if the name of a matching file is not UTF-8."""
    sources: list[str] = []
    for source in filter(None, (part.strip() for part in text.split(","))):
        kind, _, path = source.partition(":")
        matches = matching_files(path) if "*" in path and not pathlib.Path(path).exists() else []
        require_unicode(matches)  # ids of problems may contain the name of a file
        sources += [f"{kind}:{match}" for match in matches] or [source]
    return sources


def load_sources(
    text: str, fields: dict[str, str], max_malformed: int = 0, key: str = "sources"
) -> tuple[list[Record], list[SourceCounts]]:
    """Returns the records of all sources in order, and the row counts of each source. `text` lists the sources as
    "format:path,format:path", see `split_sources`. `fields` maps id, question, answer and solution to the field names that
    files of the format jsonl use. At most `max_malformed` malformed lines of each file are skipped. If rows of a source are
    dropped, logs a warning with their number. Raises ValueError if a format is unknown, or if a file is given twice. If a file
    is unusable, raises a ValueError that names the file and line. If a file is missing, the message also contains `key` (the
    key or flag that lists the sources) and tells how to get a file."""
    records: dict[str, Record] = {}
    counts: list[SourceCounts] = []
    metamath_questions: set[str] = set()  # many rows share a question
    files: set[Any] = set()  # without this check, a stranger's run could name a small file a thousand times
    spans = 0
    for source in split_sources(text):
        kind, colon, path = source.partition(":")
        if not colon or kind not in FORMATS:
            raise ValueError(f"source {source!r} is not format:path, where format is one of {', '.join(FORMATS)}")
        file = _identity(path)
        require(file not in files, f"source {source!r} is given twice")
        files.add(file)
        count = SourceCounts(source)
        for place, _, row in read_rows(path, max_malformed, key, download_advice(kind)):
            count.rows += 1
            try:
                record = FORMATS[kind](row, fields)
                if not _is_visible(record.question):
                    raise Dropped("without a question")
                _require_answer(record.answer)
                if kind == "metamath" and record.question in metamath_questions:
                    raise Dropped("of a question that came before")
            except Dropped as dropped:
                count.dropped[str(dropped)] += 1
                continue
            except (KeyError, TypeError, AttributeError, IndexError) as error:
                wanted = WANTED.get(kind, "these of task.fields: " + ", ".join(fields.values()))
                reason = f"lacks the field {error}; {columns_of(row)}, and the format has {wanted}"
                reason = reason if isinstance(error, KeyError) else str(error)
                message = f"{place}: no row of the format {kind}: {reason}"
                count.dropped["of another format"] += 1
                if count.dropped["of another format"] > max_malformed:
                    raise ValueError(f"{message}; task.max_malformed_lines={max_malformed} are allowed") from None
                log.warning("%s; skipped", message)
                continue
            if kind == "metamath":
                metamath_questions.add(record.question)
            if not record.id:
                stem = pathlib.Path(re.sub(r"\.gz$", "", path, flags=re.IGNORECASE)).stem
                record = dataclasses.replace(record, id=f"{stem}-{count.rows - 1}")
            if record.id in records and record.id not in count.ids:  # a/train.jsonl and b/train.jsonl; ids may be row numbers
                record = dataclasses.replace(record, id=f"{record.id} of source {len(counts)}")
            if record.id in records:
                raise ValueError(f"{place}: the id {record.id!r} has come before")
            count.ids.add(record.id)
            records[record.id] = record
            spans += len(record.spans)
            too_many = f"{place}: answers stand in more than {MOST_SPANS_IN_ALL} places; use fewer rows"
            require(spans <= MOST_SPANS_IN_ALL, too_many)
        if not count.ids:
            raise ValueError(f"{count}: no problem to use")
        if count.dropped:
            log.warning("%s", count)
        counts.append(count)
    return list(records.values()), counts


# Formats: each function makes a record from a row, or raises `Dropped`, KeyError or TypeError.


def _identity(path: str) -> Any:
    """Returns a value that is equal for all paths of one file, such as a.jsonl, ./a.jsonl and the path of a link to it."""
    file = pathlib.Path(path)
    status = file.stat() if file.is_file() else None
    return (status.st_dev, status.st_ino) if status else path


def _text(row: dict[str, Any], name: str) -> str:
    value = row[name]
    if type(value) is float and value.is_integer() and abs(value) < 2**53:
        value = int(value)  # pandas writes whole numbers as 5.0 if another row has none
    value = str(value) if type(value) is int or (type(value) is float and math.isfinite(value)) else value
    if not isinstance(value, str):
        kind = "null" if is_null(value) else "infinite" if value in INFINITE else type(value).__name__
        raise TypeError(f"the field {name!r} is {kind}, not text")
    value.encode("utf-8")  # raises for an escaped lone surrogate
    return value.strip()


def _answer(row: dict[str, Any], name: str) -> str:
    """Returns the answer in the column `name` of a row. Raises `Dropped` if the answer is null or infinite. Raises TypeError if
    the column contains a whole solution instead of an answer, because no completion would match it."""
    if is_null(row[name]) or row[name] in INFINITE:
        raise Dropped("without an answer")
    answer = _text(row, name)
    if GSM8K_ANSWER.search(answer):
        raise TypeError(f"the field {name!r} has a line '#### ...', as the solutions of GSM8K; give this file as gsm8k:PATH")
    if _has_prose(answer[: max((begin for begin, _ in box_spans(answer)), default=0)]):
        raise TypeError(
            f"the field {name!r} has whole solutions with a \\boxed; name it solution, and give this file as math:PATH"
        )
    return answer


def _has_prose(text: str) -> bool:
    """Returns whether a text contains prose: more than one line, or at least two words in its only line."""
    *lines, last = text.split("\n")
    word = re.search(r"(?<!\\)\b[a-zA-Z]{2,}\b", last)
    has_words = word is not None and re.search(r"\s[a-zA-Z]{2,}\b", last[word.end() :]) is not None
    return has_words or any(re.search(r"\w", line) for line in lines)


def _solution(row: dict[str, Any], name: str) -> str:
    return _text(row, name) if row.get(name) and not is_null(row[name]) else ""


def _is_visible(text: str) -> bool:
    """Returns whether a text has a character besides control characters, combining marks such as accents, and those in
    `BLANK`."""
    return any(c.isprintable() and c not in BLANK and not unicodedata.category(c).startswith("M") for c in text)


def _require_answer(answer: str) -> None:
    """Raises `Dropped` if an answer is empty, invisible or a placeholder such as "n/a". A completion could match such an answer
    without solving the problem."""
    if not _is_visible(MARKUP.sub("", answer)):
        raise Dropped("without an answer")
    if answer.casefold() in PLACEHOLDERS:
        raise Dropped(f"with {answer.casefold()!r} for an answer")


def _spans(solution: str, answer: str) -> tuple[Span, ...]:
    """Returns the character spans of a solution that give the answer away. These are all spans that `answer_spans` finds, and
    the content of the last \\boxed{...}. If there is no box, the last occurrence of the answer is added instead. To limit time
    and memory, returns the whole of a solution longer than `MOST_SEARCHED`, and one span in place of more than `MOST_SPANS`."""
    if len(solution) > MOST_SEARCHED:
        return ((0, len(solution)),)
    boxes = [content.span() for span in box_spans(solution)[-1:] if (content := STRIPPED.search(solution, *span))]
    spans = merged([*answer_spans(solution, answer), *(boxes or occurrences(solution, answer)[-1:])])
    return tuple(spans) if len(spans) <= MOST_SPANS else ((spans[0][0], spans[-1][1]),)


def _spans_or_whole(solution: str, answer: str) -> tuple[Span, ...]:
    """Returns the character spans of a solution that give the answer away, as found by `_spans`. If `_spans` finds nothing,
    returns the span of the whole solution, because the solution may give the answer in another notation."""
    return _spans(solution, answer) or (((0, len(solution)),) if solution else ())


def _gsm8k(row: dict[str, Any], fields: dict[str, str]) -> Record:
    """Reads a row of GSM8K with the keys question and answer, or problem and raw_answer. The final answer is the text after the
    last ####. A row with further lines after the answer is dropped."""
    names = ("question", "answer") if "question" in row else ("problem", "raw_answer")
    question, response = (_text(row, name) for name in names)
    solution, separator, answer = response.rpartition("####")
    if not separator:
        raise TypeError("the answer has no #### line")
    solution, answer = ANNOTATION.sub("", solution).strip(), answer.strip()
    if "\n" in answer:
        raise Dropped("with further lines after the answer")
    response = ANNOTATION.sub("", response)
    return Record(_id(row), question, answer, solution, _spans(solution, answer), response)


def _math(row: dict[str, Any], fields: dict[str, str], *other_names: str) -> Record:
    """Reads a row of MATH with the columns problem, answer and solution. The solution may be missing, as in files of AMC. If a
    row has a solution but no answer, the answer is the content of the last \\boxed{...} of the solution. If such a solution
    consists only of this box, as in files of AIME, the solution counts as missing, because it contains no reasoning.
    `other_names` are alternative names of the column problem."""
    question_name = column(row, "problem", *other_names) or "problem"
    names = (question_name, *(column(row, name) or name for name in ("answer", "solution")))
    question, response = _text(row, names[0]), _solution(row, names[2])
    solution = response
    if not solution or not is_null(row.get(names[1])):
        answer = _answer(row, names[1])
    else:
        begin, end = next(iter(box_spans(solution)[-1:]), (0, 0))
        answer = solution[begin:end].strip()
        solution = solution if MARKUP.sub("", solution[:begin] + solution[end:]) else ""
    return Record(_id(row), question, answer, solution, _spans_or_whole(solution, answer), response)


def _contest(row: dict[str, Any], fields: dict[str, str]) -> Record:
    """Reads a row of AMC, AIME or Minerva in the same way as `_math`. The column problem may also be named question."""
    return _math(row, fields, "question")


def _metamath(row: dict[str, Any], fields: dict[str, str]) -> Record:
    """Reads a row of MetaMathQA with the keys type, query and response. The answer follows "The answer is:" or, if this text is
    missing, ####. A row with neither marker is dropped. (The reference code uses the whole response of such a row as the
    answer, which no completion can match: docs/method.md section 8.) A row with further lines after the answer is dropped, too,
    but an answer such as a matrix may have several lines between its \\begin and \\end."""
    kind = _text(row, "type")
    if kind not in METAMATH_TYPES:
        raise Dropped(f"of the type {kind}" if kind.isidentifier() else "of another type")
    question, response = _text(row, "query"), _text(row, "response")
    mark = next((mark for mark in ("The answer is:", "####") if mark in response), None)
    if not mark:
        raise Dropped("without an answer")
    solution, _, answer = response.rpartition(mark)
    solution, answer = solution.rstrip(), answer.strip()
    begin, end = answer.find(r"\begin{"), answer.rfind(r"\end{")
    if "\n" in (answer[:begin] + answer[end:] if 0 <= begin < end else answer):
        raise Dropped("with further lines after the answer")
    marks = solution.find("####", solution.rfind("\n") + 1)
    solution = solution if marks < 0 else solution[:marks].rstrip()
    spans = _spans_or_whole(solution, answer) if kind.startswith("MATH") else _spans(solution, answer)
    return Record(_id(row), question, answer, solution, spans, response)


def _openr1(row: dict[str, Any], fields: dict[str, str]) -> Record:
    """Reads a row of OpenR1. A row has several generated solutions, each marked as correct or wrong. The shortest correct one
    becomes the solution of the record."""
    question, answer = _text(row, "problem"), _answer(row, "answer")
    marks = row.get("correctness_math_verify") or row.get("correctness_llama")
    if not marks:
        raise Dropped("without marks of correctness")
    traces = row["generations"]
    if not (isinstance(traces, list) and isinstance(marks, list) and len(traces) == len(marks)):
        raise TypeError("generations and correctness_math_verify must be lists of the same length")
    if not all(
        isinstance(mark, bool | None) and isinstance(text, str | None) for mark, text in zip(marks, traces, strict=True)
    ):
        raise TypeError("generations must have texts, and correctness_math_verify true or false")
    right = [text for text, correct in zip(traces, marks, strict=True) if correct]
    right = [text for text in right if text and _is_visible(THINK.sub("", text))]
    if not right:
        raise Dropped("without a correct trace")
    response = min(right, key=len).strip()
    solution = THINK.sub("", response).strip()
    return Record(_id(row, "uuid"), question, answer, solution, _spans_or_whole(solution, answer), response)


def _jsonl(row: dict[str, Any], fields: dict[str, str]) -> Record:
    """Reads a row of a user's file, whose field names are given in task.fields."""
    question, answer = _text(row, fields["question"]), _answer(row, fields["answer"])
    solution = _solution(row, fields["solution"])
    return Record(_id(row, fields["id"]), question, answer, solution, _spans_or_whole(solution, answer), solution)


def _id(row: dict[str, Any], name: str = "id") -> str:
    return "" if is_null(row.get(name)) else _text(row, name)


FORMATS: dict[str, Callable[[dict[str, Any], dict[str, str]], Record]] = dict(
    gsm8k=_gsm8k, math=_math, amc=_contest, aime=_contest, minerva=_contest, metamath=_metamath, openr1=_openr1, jsonl=_jsonl
)
