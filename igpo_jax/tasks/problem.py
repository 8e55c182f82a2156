"""The type of a problem, its fingerprint, and a reader of JSON Lines files."""

import dataclasses
import hashlib
import json
import logging
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from igpo_jax.runtime.files import parse_json

log = logging.getLogger(__name__)

DRAWN_SIZES = {"sft_problems": 60_000, "rl_problems": 4_000, "test_problems": 500}  # defaults of the tasks arithmetic and words


@dataclasses.dataclass(frozen=True)
class Problem:
    id: str  # unique and stable: all randomness of the problem is derived from it
    question: str  # the prompt as the model sees it
    answer: str  # the correct answer, which completions are compared with
    trace: str  # the whole solution, with the answer
    answer_spans: tuple[tuple[int, int], ...]  # (begin, end) in `trace` of text that gives the answer away
    demonstration: str  # target of supervised training: usually the trace, for some problems a text without an answer


def problems_fingerprint(rows: Iterable[Any]) -> str:
    """Returns a hash, as 16 hexadecimal digits, of a sequence of problems, records, other dataclasses or JSON values."""
    digest = hashlib.sha256()
    for row in rows:
        row = list(vars(row).values()) if dataclasses.is_dataclass(row) else row  # unlike astuple, vars copies nothing
        digest.update(json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


def read_jsonl(path: str, max_malformed: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number, object) for each nonblank line of a JSON Lines file. Skips and logs up to `max_malformed` malformed
    lines. Raises ValueError if the file is missing or has no objects. If the file has more than `max_malformed` malformed
    lines, raises a ValueError with the line number and the reason."""
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
                if not isinstance(row, dict):
                    raise ValueError(f"{place}: not a JSON object")
            except ValueError as error:
                malformed += 1
                if malformed > max_malformed:
                    raise ValueError(f"{error}; task.max_malformed_lines={max_malformed} are allowed") from None
                log.warning("%s; skipped (%d of %d allowed)", error, malformed, max_malformed)
                continue
            good += 1
            yield number, row
    if not good:
        raise ValueError(f"{path}: no problems in this file")
