"""Rows of rollouts.jsonl: the extracted answer and the verdict of a completion."""

import functools
from types import SimpleNamespace

import numpy as np
import pytest

from igpo_jax.run.experiment import Experiment
from igpo_jax.stages.rl import _shown
from igpo_jax.tasks import arithmetic
from igpo_jax.tasks.grades import Grades
from igpo_jax.tasks.problem import Problem

EOS = 3
PIECES = ["1", "=", "12", "<eos>"]
# Two groups of two completions: all are late in the first group, and the second is correct in the other.
TOKENS = np.array([[[0, 1, 2, EOS], [0, 0, 0, 0]], [[0, 0, EOS, EOS], [0, 1, 2, EOS]]])
GRADES = Grades(
    rewards=np.array([[0.0, 0.25], [0.0, 1.0]], np.float32),
    correct=np.array([[False, False], [False, True]]),
    late=np.array([[True, True], [False, False]]),
    broken=np.zeros((2, 2), bool),
)


def rows(function="", grades=GRADES):
    problem = Problem("p", "6+6=", "12", "1=12", (), "1=12")
    config = SimpleNamespace(task=_Section(name="arithmetic"), reward=SimpleNamespace(function=function))
    experiment = SimpleNamespace(
        rl_data=SimpleNamespace(by_id={7: problem, 8: problem}),
        tokenizer=SimpleNamespace(piece=PIECES.__getitem__),
        config=config,
        model=SimpleNamespace(eos_id=EOS),
        graded_text=lambda tokens: "".join(PIECES[i] for i in tokens if i != EOS),
        extract_answer=functools.partial(Experiment.extract_answer, SimpleNamespace(config=config)),
    )
    first = SimpleNamespace(
        tokens=TOKENS, unmask_step=np.zeros(TOKENS.shape, int), hint=np.zeros(TOKENS.shape, bool), grades=grades
    )
    sampled = SimpleNamespace(
        first=first, second=None, triggered=np.array([0]), groups=SimpleNamespace(problem_id=np.array([7, 8], np.uint32))
    )
    return _shown(experiment, sampled, step=5)


class _Section(dict):
    __getattr__ = dict.__getitem__


def test_a_row_says_what_was_read_and_how_it_was_judged():
    late, right = rows()
    assert (late["extracted_answer"], late["correct"], late["outcome"], late["reward"]) == ("12", False, "timeout", 0.0)
    assert (right["extracted_answer"], right["correct"], right["outcome"], right["reward"]) == ("12", True, "ok", 1.0)
    assert right["text"] == "1=12" and right["end"] == 3


def test_a_task_that_fails_to_find_answers_does_not_end_a_run(monkeypatch):
    monkeypatch.setattr(arithmetic, "extract_answer", lambda text: np.int64(12))  # not serializable
    late, right = rows()
    assert late["extracted_answer"] is None and right["extracted_answer"] is None and right["correct"]


def test_a_completion_without_a_verdict_is_shown_only_if_there_is_no_other():
    late = np.array([[False, True], [False, False]])
    first, _ = rows(grades=GRADES.replace(late=late))
    assert (first["text"], first["outcome"], first["reward"]) == ("1=12", "ok", 0.0)  # the late one has reward 0.25


def test_a_row_has_the_value_of_each_function_of_a_sum():
    assert all("reward_parts" not in row for row in rows())
    parts = {"task": np.array([[0, 0], [0, 1]], np.float32), "concise": np.array([[2, 3], [4, 5]], np.float32)}
    assert rows(grades=GRADES.replace(parts=parts))[1]["reward_parts"] == {"task": 1.0, "concise": 5.0}


@pytest.mark.parametrize("function, read", [
    ("", True), ("package.module:name", False), ("task + package.module:name", True), ("package.module:name + task", False),
])  # fmt: skip
def test_what_a_reward_function_of_ones_own_reads_is_not_guessed(function, read):
    assert all(("extracted_answer" in row) == read for row in rows(function))
