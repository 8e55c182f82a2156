"""Every row of a table of docs/grading.md is a case."""

import pathlib
import re

import pytest

import igpo_jax
from igpo_jax.grading.answers import extract

DOCUMENT = pathlib.Path(__file__).parents[2] / "docs" / "grading.md"
ROW = re.compile(r"\| `(.*?)` \| `(.*?)` \| (`.*?`|\w+) \| (.*)\|")
ROWS = [ROW.fullmatch(line) for line in DOCUMENT.read_text(encoding="utf-8").splitlines()]
CASES = [row.groups() for row in ROWS if row]
PLACES = [case[:3] for case in CASES if case[0] in ("box", "number", "any")]
PAIRS = [case for case in CASES if case[0] not in ("box", "number", "any")]


def test_all_rows_are_read():
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    tables = [line for line in lines if line.startswith("| ") and not line.startswith(("| rule", "| gold"))]
    assert len(CASES) == len(tables) > 80 and len(PLACES) > 15
    assert len(lines) <= 150


@pytest.mark.parametrize("rule, text, answer", PLACES)
def test_where_the_answer_is(rule, text, answer):
    assert extract(text, rule) == (None if answer == "none" else answer.strip("`"))


@pytest.mark.parametrize("gold, answer, verdict, why", PAIRS)
def test_same_or_not(gold, answer, verdict, why):
    assert verdict in ("yes", "no")
    assert igpo_jax.grade(gold, f"So it is \\boxed{{{answer}}}.", "box") == (verdict == "yes")
    if "if the gold" not in why:  # all other rules are symmetric
        assert igpo_jax.grade(answer, f"So it is \\boxed{{{gold}}}.", "box") == (verdict == "yes")
