"""Defines the type of a problem, and a fingerprint (hash) of a list of problems."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from typing import Any

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
    """Returns a hash, as 16 hexadecimal digits, of a sequence of items. The items are problems, other dataclasses or JSON
    values."""
    digest = hashlib.sha256()
    for row in rows:
        row = list(vars(row).values()) if dataclasses.is_dataclass(row) else row  # unlike astuple, vars copies nothing
        digest.update(json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]
