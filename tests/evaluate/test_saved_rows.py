"""Rows that are not one of each problem, such as those of two evaluations in one folder, are an error and never count."""

import json
import math
import shutil

import pytest

from igpo_jax.evaluate import benchmark as evaluating
from igpo_jax.evaluate.benchmark import compare
from igpo_jax.evaluate.generations import read_generations
from igpo_jax.run.metrics import read_rows
from igpo_jax.runtime.files import as_json_lines
from igpo_jax.tasks.problem import problems_fingerprint

PROBLEMS = 4


def doubled(rows):
    return rows + rows, "line 5: the id '{0}' has come before, in line 1, so the problem would count twice"


def interleaved(rows):
    return [rows[0], rows[0], *rows[1:]], "line 2: the id '{0}' has come before, in line 1"


def foreign(rows):
    return [rows[0], rows[1] | {"id": "99+99="}, *rows[2:]], "line 2: the id '99+99=' is not that of a problem of the benchmark"


def swapped(rows):
    return [rows[1], rows[0], *rows[2:]], "line 1: the id '{1}' is not the next one, '{0}'"


def without_id(rows):
    return [*rows[:2], {"completions": []}], "line 3: id=None is not text"


def twice_drawn(rows):
    return [rows[0] | {"completions": rows[0]["completions"] * 2}], "line 1: there are 2 completions of the problem '{0}', and "


@pytest.fixture
def file(evaluate, tmp_path):
    assert evaluate("own_functions:right", PROBLEMS)["problems"] == PROBLEMS
    return tmp_path / "sums.jsonl"


@pytest.mark.slow
def test_rows_that_were_there_before_are_told(evaluate, file, caplog):
    """A stranger's run may contain an evaluation whose rows are forged."""
    file.write_text(as_json_lines(read_rows(file)[:3]))
    caplog.clear()
    assert evaluate("own_functions:right", PROBLEMS)["problems"] == PROBLEMS
    assert f"{file} has 3 of {PROBLEMS} problems from an earlier evaluation; to evaluate them again, give another" in caplog.text


@pytest.mark.parametrize("change", [doubled, interleaved, foreign, swapped, without_id, twice_drawn])
def test_an_evaluation_does_not_go_on_with_other_rows(change, evaluate, file):
    rows = read_rows(file)
    changed, message = change(rows)
    file.write_text(as_json_lines(changed))
    with pytest.raises(ValueError) as raised:
        evaluate("own_functions:right", PROBLEMS)
    told = f"{file}, {message.format(*(row['id'] for row in rows))}"
    assert str(raised.value).startswith(told)
    assert str(raised.value).endswith("; move this file away and run its evaluation again")
    file.unlink()
    assert evaluate("own_functions:right", PROBLEMS)["problems"] == PROBLEMS == len(read_rows(file))


def test_a_file_without_rows_is_replaced_only_if_it_has_the_beginning_of_one(evaluate, tmp_path):
    file = tmp_path / "sums.jsonl"
    for content in ('[{"question": "1+1?", "answer": "2"}]', "notes"):
        file.write_text(content)
        with pytest.raises(ValueError, match=f"{file} has no rows of an evaluation; move this file away"):
            evaluate("own_functions:right", PROBLEMS)
        assert file.read_text() == content
    for content in ("", '{"i', '{"id": "1+1=", "quest'):
        file.write_text(content)
        assert evaluate("own_functions:right", PROBLEMS)["problems"] == PROBLEMS
        file.unlink()


FOREIGN = [
    ("correct", 7), ("correct", "0.5"), ("correct", 1e308), ("correct", None), ("outcome", "fine"), ("outcome", ["ok"]), ("text", 5),
    ("reward", "1"), ("reward", math.nan), ("reward", True), ("reward", 10**400), ("steps", 1.5), ("steps", -1), ("extracted_answer", {}),
]  # fmt: skip


@pytest.mark.parametrize("key, value", FOREIGN, ids=lambda value: repr(value)[:20])
def test_values_of_completions_have_types(key, value, evaluate, file, tmp_path):
    one, other = (finished(file, tmp_path / name) for name in ("one", "other"))
    rows = read_rows(file)
    rows[1]["completions"][0][key] = value
    for changed in (file, other / "sums.jsonl"):
        changed.write_text(as_json_lines(rows))
    for read in (lambda: compare(one, other), lambda: evaluate("own_functions:right", PROBLEMS)):
        with pytest.raises(ValueError, match=rf"sums.jsonl, line 2: {key}=.* of a completion is not") as raised:
            read()
        assert "\n" not in str(raised.value) and len(str(raised.value)) < 500


def test_a_completion_lacks_nothing(evaluate, file, tmp_path):
    one, other = (finished(file, tmp_path / name) for name in ("one", "other"))
    rows = read_rows(file)
    del rows[1]["completions"][0]["outcome"]  # as in earlier versions
    (other / "sums.jsonl").write_text(as_json_lines(rows))
    assert compare(one, other)["sums"]["problems"] == PROBLEMS
    rows[2]["completions"] = ["right"]
    (other / "sums.jsonl").write_text(as_json_lines(rows))
    with pytest.raises(ValueError, match="line 3: the completion 'right' is no object"):
        compare(one, other)
    rows[0]["completions"] = [{"correct": True}]
    file.write_text(as_json_lines(rows[:1]))
    with pytest.raises(ValueError, match="line 1: outcome of a completion is missing"):
        evaluate("own_functions:right", PROBLEMS)


def test_rows_that_another_process_writes_meanwhile_are_not_counted(evaluate, file, monkeypatch):
    [first, *_] = file.read_text().splitlines(keepends=True)
    file.write_text("")
    verdicts = evaluating._verdicts
    monkeypatch.setattr(evaluating, "_verdicts", lambda *arguments: file.open("a").write(first) and verdicts(*arguments))
    with pytest.raises(ValueError, match="line 2: the id .* has come before, in line 1"):
        evaluate("own_functions:right", PROBLEMS)


def finished(file, folder):
    shutil.copytree(file.parent, folder, ignore=shutil.ignore_patterns("*.py", "one", "other"))
    protocol = {"draws": 1, "problems": PROBLEMS}
    (folder / "card.json").write_text(json.dumps({"benchmarks": {"sums": {}}, "protocol": {"sums": protocol}}))
    return folder


def test_comparisons_and_graders_refuse_repeated_and_missing_problems(file, tmp_path):
    one, other = (finished(file, tmp_path / name) for name in ("one", "other"))
    assert compare(one, other)["sums"]["problems"] == PROBLEMS
    rows = read_rows(other / "sums.jsonl")
    (other / "sums.jsonl").write_text(as_json_lines(rows + rows))
    message = f"{other / 'sums.jsonl'}, line 5: the id .* has come before, in .*line 1"
    with pytest.raises(ValueError, match=message):
        compare(one, other)
    with pytest.raises(ValueError, match=message):
        read_generations(other / "sums.jsonl")
    for folder in (one, other):
        (folder / "sums.jsonl").write_text(as_json_lines(rows[:-1]))
    with pytest.raises(ValueError, match=f"sums.jsonl: {PROBLEMS - 1} rows for {PROBLEMS} problems; run its evaluation again"):
        compare(one, other)


@pytest.mark.parametrize("has_fingerprint", [True, False])
@pytest.mark.parametrize("key", ["question", "answer"])
def test_rows_of_other_problems_with_the_same_ids_are_not_compared(key, has_fingerprint, file, tmp_path):
    one, other = (finished(file, tmp_path / name) for name in ("one", "other"))
    rows = read_rows(file)
    for folder in (one, other) if has_fingerprint else ():
        card = json.loads((folder / "card.json").read_text())
        card["protocol"]["sums"]["data"] = problems_fingerprint((row["id"], row["question"], row["answer"]) for row in rows)
        (folder / "card.json").write_text(json.dumps(card))
    assert compare(one, other)["sums"]["problems"] == PROBLEMS
    rows[1][key] = "another"
    for folder in (one, other) if has_fingerprint else (other,):  # both have the same wrong problems
        (folder / "sums.jsonl").write_text(as_json_lines(rows))
    message = "one/sums.jsonl: other problems than those of the protocol" if has_fingerprint else "hold other problems than"
    with pytest.raises(ValueError, match=message):
        compare(one, other)
