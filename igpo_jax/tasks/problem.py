"""The unit that everything works on, and how files of them are read."""

import dataclasses
import hashlib
import json
import logging
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from igpo_jax.runtime.files import parse_json

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A question with its known solution.

    id: stable and unique; all randomness that concerns the problem is folded from it.
    question: the prompt as the model sees it. answer: what a completion is compared with.
    trace: the whole solution, including the statement of the answer.
    answer_spans: character spans of `trace` that give the answer away; they are never shown as hints.
    demonstration: what the supervised stage trains on; the trace, unless the task has a careless teacher.
    """

    id: str
    question: str
    answer: str
    trace: str
    answer_spans: tuple[tuple[int, int], ...]
    demonstration: str


def problems_fingerprint(rows: Iterable[Any]) -> str:
    """Of problems, or other dataclasses and values that JSON can hold, in their order."""
    digest = hashlib.sha256()
    for row in rows:
        row = list(vars(row).values()) if dataclasses.is_dataclass(row) else row  # astuple copies everything
        digest.update(json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


def read_jsonl(path: str, max_malformed: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of every line. Blank lines are passed over.

    Args:
        max_malformed: lines that may be skipped; each is named in a warning.

    Raises:
        ValueError: no such file, nothing in it, or more malformed lines than allowed (file, line number, reason).
    """
    file = pathlib.Path(path)
    if not file.is_file():
        raise ValueError(f"no data file {str(path)!r}; give the path of a JSONL file")
    good = malformed = 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            place = f"{path}, line {number}"
            try:
                row = parse_json(line, place)
                message = None if isinstance(row, dict) else f"{place}: not a JSON object"
            except ValueError as error:
                message = str(error)
            if message is None:
                good += 1
                yield number, row
                continue
            malformed += 1
            if malformed > max_malformed:
                raise ValueError(f"{message}; task.max_malformed_lines={max_malformed} are allowed")
            log.warning("%s; skipped (%d of %d allowed)", message, malformed, max_malformed)
    if not good:
        raise ValueError(f"{path}: no problems in this file")
