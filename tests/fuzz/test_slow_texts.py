"""Texts that would take exponential or quadratic time in an expression that can match them in several ways. A test ends in
milliseconds, or practically never."""

import gzip
import itertools
import re

import numpy as np
import pytest

from igpo_jax.grading.answers import BOX, JOINT, extract
from igpo_jax.runtime.files import atomic_write
from igpo_jax.tasks import answer_spans, countdown, rows
from igpo_jax.tasks.decontamination import question_content
from igpo_jax.weights.huggingface import folder_model_config
from igpo_jax.weights.safetensors_files import stored_tensors
from model_folders import write_folder

# The expression of an earlier version, which is right but slow
OLD_JOINT = re.compile(
    r"(?:[\s$,;()\[\]\\{}]|\\?quad|\\text|and|or)*(?:and|or|,)(?:[\s$,;()\[\]\\{}]|\\?quad|\\text|and|or)*\\(?:boxed|fbox)\s*\{?"
)
OLD_ARITHMETIC = re.compile(answer_spans.ARITHMETIC.pattern.replace(r"\^\{?\d", r"\^{?\d{1,3}}?"))


def test_boxes_with_many_spaces_between_them():
    assert extract("\\boxed{1}" + "\\quad" * 60 + "z\\boxed{2}", "box") == "2"
    assert extract("\\boxed{1}" + "\\quad" * 20 + ",\\boxed{2}", "box") == "1, 2"


def test_boxes_are_joined_as_before():
    parts = ["\\quad", "\\text", "quad", "text", "and", "or", ",", "\\", " ", "{", "x", "\\boxed{"]
    for words in itertools.product(parts, repeat=3):
        for end in ("", "\\boxed{", "\\fbox {"):
            text = "".join(words) + end
            assert bool(JOINT.fullmatch(text)) == bool(OLD_JOINT.fullmatch(text)), text
    assert BOX.search("\\boxed{")


def test_arithmetic_with_many_powers():
    assert answer_spans.ARITHMETIC.fullmatch("^{123}" * 5000 + "x") is None
    assert answer_spans.states("^{123}" * 5000 + "x", "5") is False
    for parts in itertools.product(["^", "{", "}", "1", "23", "+", "\\cdot", "x", " "], repeat=4):
        text = "".join(parts)
        assert bool(answer_spans.ARITHMETIC.fullmatch(text)) == bool(OLD_ARITHMETIC.fullmatch(text)), text


def test_a_long_word_after_an_underscore():
    assert question_content("What is _" + "a" * 200_000 + "?")[0]
    assert question_content("an _emphasized_ word") == question_content("an emphasized word")


def test_slow_comparisons_have_a_budget(monkeypatch, caplog):
    calls, seconds = [], iter(np.arange(0, 1000, 2.5).tolist())
    monkeypatch.setattr(answer_spans, "equal", lambda answer, text: bool(calls.append(text)))
    monkeypatch.setattr(answer_spans.time, "monotonic", lambda: next(seconds))
    monkeypatch.setattr(answer_spans, "_slow_seconds", 0.0)
    found = [answer_spans.states(f"y + x + {' ' * n}1", "x + y + 1") for n in range(40)]
    assert len(calls) == 25 and found == [False] * 25 + [True] * 15  # 60 seconds of 2.5 each, and the one that exceeds them
    assert "comparing answers takes long" in caplog.text


def test_numbers_with_many_spaces_between_them():
    assert countdown._parts("1" + " " * 200_000 + "2") == ["1", "2"]
    for text in ("[ 30 100  93]", "30,100,93", " [30, 100, 93] ", "['30', '100', '93']", "(30, 100, 93)"):
        assert [int(part) for part in countdown._parts(text)] == [30, 100, 93]
    assert countdown._parts("[]") == countdown._parts("") == countdown._parts(" ") == [] and countdown._parts("[") == ["["]


def test_comparisons_of_a_solution_have_a_limit(monkeypatch):
    calls = []
    monkeypatch.setattr(answer_spans, "MOST_COMPARED", 10)
    monkeypatch.setattr(answer_spans, "equal", lambda answer, text: bool(calls.append(text)))
    text = "\n".join(f"= y +{' ' * n} x" for n in range(1, 30))
    assert len(answer_spans.answer_spans(text, "x + y")) == 19 and len(calls) == 10


def test_a_file_that_has_another_name_is_not_written(tmp_path):
    (tmp_path / "secret").write_text("mine")
    (tmp_path / "page.partial").hardlink_to(tmp_path / "secret")
    atomic_write(tmp_path / "page", "new")
    assert (tmp_path / "secret").read_text() == "mine" and (tmp_path / "page").read_text() == "new"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_of_a_table_end_in_any_way_and_have_a_limit(end, tmp_path, monkeypatch):
    file = tmp_path / "a.csv"
    file.write_bytes(end.join(["question,answer", '"What,', 'now?",2', "b,3", ""]).encode())
    found = [row for _, _, row in rows.read_rows(str(file))]
    assert found == [{"question": f"What,{end}now?", "answer": "2"}, {"question": "b", "answer": "3"}]
    monkeypatch.setattr("igpo_jax.runtime.files.MOST_BYTES", 64)
    file.write_bytes(b"question,answer\n" + b"a" * 100 + b",1\n")
    with pytest.raises(ValueError, match="a.csv, line 2: more than"):
        list(rows.read_rows(str(file)))


def test_a_cell_of_a_table_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "MOST_BYTES", 1000)
    with gzip.open(tmp_path / "a.csv.gz", "wt") as file:
        file.write('question,answer\n"' + "a\n" * 600 + '",1\n')
    with pytest.raises(ValueError, match="not CSV .field larger than field limit"):
        list(rows.read_rows(str(tmp_path / "a.csv.gz")))


def test_weights_that_are_a_hole_are_refused(tmp_path, mesh):
    write_folder(tmp_path / "a", mesh)
    assert folder_model_config(tmp_path / "a")
    file = tmp_path / "a/model.safetensors"
    with file.open("r+b") as opened:
        opened.truncate(1 << 30)
    with pytest.raises(ValueError, match="model.safetensors: it has 1073741824 bytes, but more than 99% of them are a hole"):
        stored_tensors(tmp_path / "a")
