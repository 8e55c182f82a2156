import json
import logging

import pytest

from igpo_jax.tasks import extracted_answer, load_task
from igpo_jax.tasks.rows import read_rows


def read(path, max_malformed=0):
    return [row for _, _, row in read_rows(path, max_malformed)]


def write(tmp_path, *lines: str | bytes) -> str:
    path = tmp_path / "problems.jsonl"
    path.write_bytes(b"".join(line.encode() if isinstance(line, str) else line for line in lines))
    return str(path)


GOOD = json.dumps({"question": "1+1?", "answer": "#### 2"}) + "\n"


def test_reads_objects_in_file_order_and_passes_over_blank_lines(tmp_path):
    other = json.dumps({"problem": "2+2?", "raw_answer": "#### 4"})
    rows = read(write(tmp_path, GOOD, "\n", "  \n", other))
    assert rows == [{"question": "1+1?", "answer": "#### 2"}, {"problem": "2+2?", "raw_answer": "#### 4"}]


def test_only_a_line_feed_ends_a_line(tmp_path):
    row = {"question": "a\u2028b\x85c", "answer": "#### 1"}
    windows = GOOD.replace("\n", "\r\n")
    rows = read(write(tmp_path, json.dumps(row, ensure_ascii=False) + "\n", windows))
    assert rows == [row, json.loads(GOOD)]


@pytest.mark.parametrize(
    "line, reason",
    [
        ('{"question": "cut off', "not JSON"),
        ('["question", "answer"]', "not a JSON object"),
        (b'{"question": "caf\xe9", "answer": "#### 1"}', "not UTF-8"),
        (r'{"question": "\ud800", "answer": "#### 1"}', "not UTF-8"),
    ],
)
def test_a_malformed_line_is_an_error_with_file_line_and_reason(tmp_path, line, reason):
    path = write(tmp_path, GOOD, "\n", line, "\n", GOOD)
    with pytest.raises(ValueError) as error:
        read(path)
    assert f"{path}, line 3: {reason}" in str(error.value)
    assert "task.max_malformed_lines=0" in str(error.value)


def test_malformed_lines_up_to_the_limit_are_skipped_and_logged(tmp_path, caplog):
    path = write(tmp_path, "{\n", GOOD, "[]\n", GOOD)
    with caplog.at_level(logging.WARNING):
        assert len(read(path, 2)) == 2
    assert [("line 1" in r.message, "line 3" in r.message) for r in caplog.records] == [(True, False), (False, True)]
    assert "2 of 2 allowed" in caplog.records[-1].message
    with pytest.raises(ValueError, match="line 3.*max_malformed_lines=1"):
        read(path, 1)


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_a_file_without_problems_is_an_error(tmp_path, content):
    path = write(tmp_path, content)
    with pytest.raises(ValueError, match="no problems") as error:
        read(path)
    assert path in str(error.value)


def test_a_file_of_which_every_line_was_skipped_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no problems"):
        read(write(tmp_path, "{\n"), 5)


@pytest.mark.parametrize("name", ["missing.jsonl", ""])
def test_a_path_that_is_no_file_is_named(tmp_path, name):
    path = str(tmp_path / name)
    with pytest.raises(ValueError, match="no data file") as error:
        read(path)
    assert path in str(error.value)


def test_tasks_are_found_by_name_and_others_are_listed():
    for name in ("arithmetic", "countdown", "math", "sudoku"):
        task = load_task(name)
        assert callable(task.load) and callable(task.reward) and task.defaults()["name"] == name
        assert set(task.REWARD_OPTIONS) <= set(task.defaults())
    for name in ("problem", "arithmetics", ""):
        with pytest.raises(ValueError, match="arithmetic, countdown, math, sudoku"):
            load_task(name)


def test_a_task_may_be_a_module_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    whole = "REWARD_OPTIONS = ()\ndef defaults(): ...\ndef load(): ...\ndef reward(): ...\ndef extract_answer(): ..."
    (tmp_path / "own_task.py").write_text(whole)
    (tmp_path / "half_task.py").write_text("def load(): ...")
    (tmp_path / "bad_task.py").write_text("1 / 0")
    assert load_task("own_task").__name__ == "own_task"
    with pytest.raises(ValueError, match="no task: it lacks defaults, reward, extract_answer, REWARD_OPTIONS"):
        load_task("half_task")
    with pytest.raises(ValueError, match="'bad_task' is none of arithmetic.*ZeroDivisionError"):
        load_task("bad_task")
    (tmp_path / "script_task.py").write_text("import sys\nsys.exit()")
    with pytest.raises(ValueError, match="'script_task' is none of arithmetic.*SystemExit"):
        load_task("script_task")


@pytest.mark.parametrize("name, body, reason", [
    ("index", "raise IndexError('no such part')", "IndexError: no such part"), ("exits", "raise SystemExit", "SystemExit:"),
    ("number", "return 7", "TypeError: it returned 7"), ("nan", "return float('nan')", "TypeError: it returned nan"),
    ("data", "return b'7'", r"TypeError: it returned b'7'"), ("half", r"return '\ud800'", "UnicodeEncodeError: "),
])  # fmt: skip
def test_a_task_that_fails_to_find_an_answer_is_told_once_and_ends_nothing(name, body, reason, tmp_path, monkeypatch, caplog):
    """The function runs in the process of the training. What it returns goes into JSON Lines files."""
    monkeypatch.syspath_prepend(tmp_path)
    source = f"from igpo_jax.tasks.arithmetic import *\n\ndef extract_answer(text):\n    if text == 'right':\n        return '7'\n    {body}\n"
    (tmp_path / f"{name}_answer.py").write_text(source)
    section = {"name": f"{name}_answer"}
    assert [extracted_answer(section, text) for text in ("right", "1", "2")] == ["7", None, None]
    [message] = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"extract_answer of the task {name}_answer fails: {reason}")
