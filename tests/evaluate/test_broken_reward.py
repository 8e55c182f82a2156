"""An evaluation whose reward function fails on every answer ends with an error and saves no row."""

import logging

import pytest

from igpo_jax.run.metrics import read_rows
from igpo_jax.tasks import arithmetic
from igpo_jax.tasks.grades import FEW


@pytest.mark.parametrize("function, reason", [
    ("os:system", "TypeError"), ("own_functions:nan", "the function returned nan"), ("builtins:print", "returned None"),
])  # fmt: skip
@pytest.mark.parametrize("number", [FEW - 1, 16])
def test_an_evaluation_without_verdicts_ends_and_can_be_repeated(evaluate, function, reason, number, tmp_path, caplog):
    message = rf"^benchmark sums: (\d+) of \1 completions got no verdict, timeouts: 0, errors: \1\. Example.*{reason}"
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            evaluate(function, number)
    assert not read_rows(tmp_path / "sums.jsonl")
    [first, second] = [record.getMessage() for record in caplog.records if "no verdict on" in record.getMessage()]  # once a run
    assert first == second and function in first and reason in first and "problem '" in first
    assert evaluate("own_functions:right", number)["pass@1"] == 1.0
    assert len(read_rows(tmp_path / "sums.jsonl")) == number


def test_an_evaluation_with_some_verdicts_ends_with_counts(evaluate, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        found = evaluate("own_functions:once", 16)
    assert (found["ungraded"], found["error"], found["pass@1"]) == (15, 15, 1.0)
    assert len(read_rows(tmp_path / "sums.jsonl")) == 16 and "returned None" in caplog.text


def test_a_few_last_answers_without_a_verdict_do_not_end_a_resumed_evaluation(evaluate, tmp_path):
    evaluate("own_functions:right", 16 - FEW)
    assert evaluate("own_functions:nan", 16)["error"] == FEW


def test_accuracy_is_that_of_the_first_function_and_the_reward_is_the_sum(evaluate, tmp_path):
    found = evaluate("own_functions:half + 4*own_functions:right", 3)
    assert (found["pass@1"], found["reward"], found["ungraded"]) == (0.0, 4.5, 0)
    rows = read_rows(tmp_path / "sums.jsonl")
    assert [completion["reward"] for row in rows for completion in row["completions"]] == [4.5] * 3
    (tmp_path / "sums.jsonl").unlink()
    found = evaluate("0.5*own_functions:right + own_functions:half", 3)
    assert (found["pass@1"], found["reward"]) == (1.0, 1.0)


def test_a_task_that_fails_to_find_answers_does_not_end_an_evaluation(evaluate, tmp_path, monkeypatch):
    monkeypatch.setattr(arithmetic, "extract_answer", lambda text: text.no_such_part)
    assert evaluate("own_functions:right", 3)["pass@1"] == 1.0
    rows = read_rows(tmp_path / "sums.jsonl")
    assert [completion["extracted_answer"] for row in rows for completion in row["completions"]] == [None] * 3
