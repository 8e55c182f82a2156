"""Prompts, demonstrations, and the spans that reveal the answer."""

import json
import pathlib

import pytest
from ml_collections import ConfigDict

from igpo_jax.tasks import math
from igpo_jax.tasks.problem import Problem

SAMPLE = pathlib.Path(__file__).parent / "gsm8k_sample.jsonl"


def task(**values):
    return ConfigDict(math.defaults(**{"rl": f"gsm8k:{SAMPLE}", "test": f"gsm8k:{SAMPLE}"} | values))


def problem(answer: str) -> Problem:
    return Problem("id", "?", answer, "", (), "")


def hidden(problem):
    return [problem.trace[slice(*span)] for span in problem.answer_spans]


def test_the_papers_format():
    found = math.load(task(), "rl", seed=0)[1]
    assert found.question == (
        "Respond in the following format:\n<reasoning>\n...\n</reasoning>\n<answer>\n\\boxed{<Your answer>}\n</answer>\n\n\n"
        "Mara saves $250 a month. How many dollars does she have after 5 months?"
    )
    solution = "She saves 250*5 = $1,250."
    assert found.demonstration == f"<reasoning>\n{solution}\n</reasoning>\n<answer>\n\\boxed{{1,250}}\n</answer>"
    assert found.trace == found.demonstration
    assert hidden(found) == ["$1,250", "\\boxed{1,250}"]


def test_every_line_of_a_template_with_the_answer_is_hidden():
    found = math.load(task(demonstration="The answer {answer} comes first.\n{solution}\n#### {answer}"), "rl", seed=0)[1]
    assert hidden(found) == ["The answer 1,250 comes first.", "$1,250", "#### 1,250"]


def test_the_released_accident_is_a_backspace():
    assert "\b" not in math.BOXED_PROMPT and "\boxed{<Your answer>}" in math.RELEASED_PROMPT
    assert math.RELEASED_PROMPT.count("\b") == 1


def test_plain_demonstrations_hide_the_whole_last_line():
    plain = {"prompt": math.PLAIN_PROMPT, "demonstration": math.PLAIN_DEMONSTRATION}
    for found in math.load(task(**plain), "rl", seed=0):
        assert found.question.startswith("Question: ") and found.question.endswith("\nAnswer: ")
        last = found.trace.splitlines()[-1]
        assert last == f"#### {found.answer}" and hidden(found)[-1] == last
        assert math.reward(found, found.trace, answer="number") == 1.0


def test_the_released_demonstration_hides_nothing_of_its_end():
    found = math.load(task(demonstration=math.RELEASED_DEMONSTRATION), "rl", seed=0)[1]
    assert found.trace.startswith("<reasoning>\n") and found.trace.endswith("#### 1,250")
    assert hidden(found) == []


def test_every_demonstration_earns_its_reward_and_only_for_its_own_problem():
    problems = math.load(task(), "rl", seed=0)
    rewards = [[math.reward(p, other.demonstration) for other in problems] for p in problems]
    assert rewards == [[float(i == j) for j in range(len(problems))] for i in range(len(problems))]


def test_supervised_problems_are_those_of_rl_unless_there_are_others(tmp_path):
    (tmp_path / "other.jsonl").write_text(json.dumps({"problem": "p", "answer": "1", "solution": "\\boxed{1}"}) + "\n")
    assert math.load(task(), "sft", 0) == math.load(task(), "rl", 0)
    assert len(math.load(task(sft=f"math:{tmp_path / 'other.jsonl'}"), "sft", 0)) == 1


def test_a_problem_without_a_solution_has_nothing_to_hint(tmp_path):
    (tmp_path / "amc.jsonl").write_text(json.dumps({"problem": "p", "answer": "1"}) + "\n")
    [found] = math.load(task(rl=f"amc:{tmp_path / 'amc.jsonl'}"), "rl", 0)
    assert (found.trace, found.answer_spans) == ("", ())


@pytest.mark.parametrize("values, message", [
    ({"rl": ""}, "task.rl is empty"), ({"prompt": "Solve it."}, "lacks {question}"), ({"answer": "last"}, "none of box, number, any"),
])  # fmt: skip
def test_what_cannot_work_is_said(values, message):
    with pytest.raises(ValueError, match=message):
        math.load(task(**values), "rl", 0)


RIGHT = [
    "#### 1250", "#### 1,250", "####1250", "#### $1,250.00", "#### 1250.", "#### 1250 dollars", "She saves 5 a day.\n#### 1250\n",
    "#### 1250\n\nQuestion: How old is she?\n#### 7", "that is 1300-50=1250\n####", "1300-1250", "She has $1,250.",
    "5 months make 1250", "\\boxed{1250} dollars", "<answer>1250</answer> in 5 months",
]  # fmt: skip
WRONG = ["", "none", "####", "#### none", "1250\n#### 7", "#### 7\n#### 1250", "#### -1250", "#### 125", "#### 12500", "#### 1250.5",
         "1250 is what she has after 5 months", "#### 1e999", "#### " + "9" * 5000]  # fmt: skip


@pytest.mark.parametrize("text", RIGHT)
def test_right_numbers(text):
    assert math.reward(problem("1,250"), text, answer="number") == 1.0


@pytest.mark.parametrize("text", WRONG)
def test_wrong_numbers(text):
    assert math.reward(problem("1,250"), text, answer="number") == 0.0


def test_boxes_are_asked_for_by_default():
    assert math.reward(problem("5"), "it is \\boxed{3}, no, \\boxed{5.0}") == 1.0
    assert math.reward(problem("5"), "it is 5") == 0.0
    assert math.reward(problem("5"), "it is \\boxed{3}, no, \\boxed{5}", reference_code=True) == 0.0
