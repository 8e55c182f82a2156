"""The time to load problems grows linearly with the length of a text, whatever it repeats."""

import json
import random
import re
import time

import pytest
from ml_collections import ConfigDict

from igpo_jax.data.pipeline import hintable_tokens
from igpo_jax.tasks import math
from igpo_jax.tasks.answer_spans import answer_spans, formulas, in_brackets, occurrences
from igpo_jax.tasks.rows import read_rows
from igpo_jax.tasks.sources import load_sources

CHARACTERS = 100_000
SECONDS = 5.0  # of CPU time; linear code needs less than a second, quadratic code more than ten
FORMULA = re.compile(r"\\\$|\$+([^$]+)\$+|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)


@pytest.fixture
def in_time():
    begin = time.process_time()
    yield
    assert time.process_time() - begin < SECONDS


@pytest.mark.parametrize("key, unit, end", [
    *(("solution", unit, "") for unit in ("$", "$$", "\\(", "\\[", "\\boxed{", "= ", "answer is 5. ", " ", "\n", "5 ", "a")),
    *(("solution", unit, "\\boxed{5}") for unit in ("x = 5, so $y = 5$. ", "\\boxed{5} ")),
    ("answer", "aa ", ""), ("answer", "1 ", "\\boxed{5}"), ("answer", "x", "\\boxed{5}"), ("question", "*a", ""), ("question", "`", ""),
])  # fmt: skip
def test_a_long_text(key, unit, end, tmp_path, in_time):
    row = {"question": "2 + 3?", "answer": "5", "solution": "It is 5."}
    text = unit * (CHARACTERS // len(unit)) + end
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (row, row | {key: text})))
    problems = math.load(ConfigDict(math.defaults(rl=f"jsonl:{tmp_path / 'long.jsonl'}")), "rl", 0)
    for problem in problems:
        math.content(ConfigDict(math.defaults()), problem)
        hintable_tokens([(i, i + 1) for i in range(len(problem.trace))], problem.answer_spans)
        marked = in_brackets(problem.trace, problem.answer_spans)
        assert len(marked) == len(problem.trace) + 4 * len(problem.answer_spans)


@pytest.mark.parametrize("answer, text", [
    ("a" * 200_000, "a" * 700_000), ("1," * 100_000, "1," * 200_000), ("(" * 100_000, "(" * 200_000), ("-" * 999 + "x", "-" * CHARACTERS),
    ("y" * 100_000, "= " * CHARACTERS), ("x" + " x" * 50_000, "$x$ = " * CHARACTERS), ("- " * 25 + "x", "- " * CHARACTERS),
])  # fmt: skip
def test_a_long_answer(answer, text, in_time):
    answer_spans(text, answer)
    occurrences(text, answer)


@pytest.mark.parametrize("text", ["So it is {} = {}.", "{}{}"])
def test_a_long_answer_is_found_where_its_text_stands(text):
    answer = "x + 1, " * 200
    solution = text.format(answer, answer)
    assert in_brackets(solution, answer_spans(solution, answer)).replace("[[", "").replace("]]", "") == solution
    covered = {place for span in answer_spans(solution, answer) for place in range(*span)}
    begin = solution.find(answer)
    assert covered == {*range(begin, begin + len(answer)), *range(solution.rfind(answer), solution.rfind(answer) + len(answer))}
    assert list(answer_spans(solution, answer)) == occurrences(solution, answer)


@pytest.mark.parametrize("repeated, spans", [(1000, 1000), (1001, 1), (2**20, 1)])
def test_the_places_of_an_answer_need_little_memory(repeated, spans, tmp_path, in_time):
    solution = "5 " * repeated
    (tmp_path / "long.jsonl").write_text(json.dumps({"question": "2 + 3?", "answer": "5", "solution": solution}) + "\n")
    [record], _ = load_sources(f"jsonl:{tmp_path / 'long.jsonl'}", math.defaults()["fields"])
    assert len(record.spans) == spans and record.spans[0][0] == 0 and record.spans[-1][1] == len(record.solution)


def test_the_places_of_all_answers_need_little_memory(tmp_path, monkeypatch):
    row = {"question": "2 + 3?", "answer": "5", "solution": "5 " * 10}
    (tmp_path / "many.jsonl").write_text((json.dumps(row) + "\n") * 3)
    monkeypatch.setattr("igpo_jax.tasks.sources.MOST_SPANS_IN_ALL", 29)
    with pytest.raises(ValueError, match=r"many.jsonl, line 3: answers stand in more than 29 places; use fewer rows"):
        load_sources(f"jsonl:{tmp_path / 'many.jsonl'}", math.defaults()["fields"])


def test_many_columns(tmp_path, in_time):
    (tmp_path / "wide.csv").write_text(",".join(map(str, range(50_000))) + "\n" + "1," * 49_999 + "1\n")
    [(_, _, row)] = read_rows(str(tmp_path / "wide.csv"))
    assert len(row) == 50_000


def test_formulas_are_those_of_the_pattern():
    """The pattern is quadratic in the number of signs that begin a formula without an end."""
    draw = random.Random(0)
    for _ in range(20_000):
        text = "".join(draw.choices(["\\", "$", "(", ")", "]", "a", "\\(", "\\)", "\\[", "\\]", "\\$"], k=draw.randrange(12)))
        after = draw.randrange(6)
        matches = [match for match in FORMULA.finditer(text) if match.lastindex and match.end() > after]
        assert list(formulas(text, after)) == [match.span(match.lastindex) for match in matches], text


def test_hintable_tokens_are_those_that_overlap_no_span():
    draw = random.Random(0)
    for _ in range(5_000):
        spans = [tuple(sorted(draw.choices(range(20), k=2))) for _ in range(draw.randrange(5))]
        tokens = [(begin, begin + draw.randint(1, 4)) for begin in sorted(draw.choices(range(20), k=4))]
        expected = [all(end <= first or begin >= last for first, last in spans) for begin, end in tokens]
        assert hintable_tokens(tokens, spans)[0] == expected


def test_all_spans_of_a_text_are_marked():
    assert in_brackets("It is 5, so x = 5.", ((16, 17), (6, 7))) == "It is [[5]], so x = [[5]]."
    assert in_brackets("5", ()) == "5"
