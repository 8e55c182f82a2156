"""Word problems: every solution is verified by computing it from the text."""

import re
import runpy
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from igpo_jax.config import parse
from igpo_jax.data.pipeline import prompt_arrays, sft_arrays
from igpo_jax.run.tokenizer import train_tokenizer
from igpo_jax.tasks import words
from igpo_jax.tasks.problem import Problem
from igpo_jax.tokenizers import load_tokenizer
from run_configs import CONFIGS

EQUATION = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")
IN_WORDS = {"twice": 2, "doubles": 2, "half": 2, "third": 3}


def task(**values):
    return ConfigDict(words.defaults(**{"sft_problems": 500, "rl_problems": 200, "test_problems": 50, **values}))


def numbers(text):
    return [int(number) for number in re.findall(r"\d+", text)]


def equations(problem):
    *lines, last = problem.trace.split("\n")
    assert last == f"#### {problem.answer}" and "#" not in "".join(lines)
    found = [EQUATION.findall(line) for line in lines]
    assert all(len(in_line) == 1 for in_line in found)
    return [(int(a), sign, int(b), int(c)) for [(a, sign, b, c)] in found]


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), steps=st.integers(2, 7), distractors=st.sampled_from([0.0, 1.0]))
def test_solutions_are_right_and_use_what_is_known_and_nothing_else(seed, steps, distractors):
    sizes = {"rl_problems": 10, "test_problems": 1}
    for problem in words.load(task(steps=steps, distractors=distractors, **sizes), "rl", seed):
        known = numbers(problem.question) + [value for word, value in IN_WORDS.items() if word in problem.question]
        worked = equations(problem)
        for step, (a, sign, b, result) in enumerate(worked):
            value = {"+": a + b, "-": a - b, "*": a * b, "/": Fraction(a, b)}[sign]
            assert value == result and a in known and b in known
            assert step == steps - 1 or any(result in (c, d) for c, _, d, _ in worked[step + 1 :]), problem.trace
            known.append(result)
        assert len(worked) == steps and problem.answer == str(worked[-1][-1])
        assert all(0 <= number < 1000 for number in numbers(problem.question + problem.trace))
        needless = set(numbers(problem.question)) - set(numbers(problem.trace))
        assert len(needless) == distractors, problem.question
        assert problem.demonstration == problem.trace and words.reward(problem, problem.trace) == 1.0
        assert words.reward(problem, words.OPEN) == 0.0


def test_text_is_grammatical():
    seen = set()
    for problem in words.load(task(rl_problems=3000), "rl", seed=0):
        text = f"{problem.question}\n{problem.trace}"
        for number, noun in re.findall(r"\b(\d+) ([a-z]+)", text):
            seen.add((number == "1", noun))
            assert noun.endswith("s") == (number != "1"), text
        assert not re.search(r"[{}|\[\]]|  |\b[Aa] [aeiou]|\ban [^h]", text), text
        name = problem.question.split()
        assert not ({"he", "his", "He", "His"} & set(name) and {"she", "her", "She", "Her"} & set(name)), text
        assert all(re.match(r"[A-Z].*[.?]$", sentence) for sentence in re.split(r"(?<=[.?]) ", problem.question))
        assert all(re.fullmatch(r"[A-Z].*\.", line) for line in problem.trace.split("\n")[:-1])
    assert {(True, "pen"), (False, "pens"), (True, "mile"), (False, "dollars")} <= seen


def test_splits():
    problems = {split: words.load(task(), split, seed=1) for split in ("sft", "rl", "test")}
    questions = {split: {problem.question for problem in drawn} for split, drawn in problems.items()}
    assert {split: len(found) for split, found in questions.items()} == {"sft": 500, "rl": 200, "test": 50}
    assert not questions["test"] & (questions["sft"] | questions["rl"])
    assert {len(equations(problem)) for problem in problems["sft"]} == {2, 3, 4}
    assert {len(equations(problem)) for problem in problems["rl"] + problems["test"]} == {4}
    for split in problems:
        assert words.load(task(), split, seed=1) == problems[split]
        assert (words.load(task(), split, seed=2) == problems[split]) == (split == "test")


def test_the_teacher_is_careless_and_distractors_come_as_often_as_configured():
    problems = words.load(task(sft_problems=6000, worked_share=0.2, distractors=0.25), "sft", seed=0)
    longest = [problem for problem in problems if len(equations(problem)) == 4]
    worked = [problem.demonstration == problem.trace for problem in longest]
    assert 0.16 < np.mean(worked) < 0.24
    assert {problem.demonstration for problem in longest if problem.demonstration != problem.trace} == {"#### ?"}
    assert all(problem.demonstration == problem.trace for problem in problems if len(equations(problem)) < 4)
    assert 0.21 < np.mean([not set(numbers(p.question)) <= set(numbers(p.trace)) for p in problems]) < 0.29


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["", "smoke"])
def test_problems_of_the_configuration_fit_and_hints_never_show_the_answer(variant, tmp_path):
    config = runpy.run_path(str(CONFIGS / "words.py"))["get_config"](variant)
    config.task.update({"sft_problems": 3000, "rl_problems": 1000, "test_problems": 200, "distractors": 1.0})
    data = {split: words.load(config.task, split, 0) for split in ("sft", "rl", "test")}
    train_tokenizer(data, tmp_path, parse(config))
    tokenizer = load_tokenizer(tmp_path / "tokenizer.model")
    lengths = {"prompt_length": config.data.prompt_buckets[-1], "completion_length": config.sampler.completion_length}
    fit = lengths | {"overflow": config.data.overflow}
    assert config.data.overflow == "error" and len(sft_arrays(data["sft"], tokenizer, **fit)[1].tokens) == 3000
    problems, rows = prompt_arrays(data["test"] + data["rl"], tokenizer, **fit, exclude_answer=True)
    pieces = [tokenizer.piece(token) for token in set(rows.trace.flat)]
    assert all(len(piece.strip()) == 1 for piece in pieces if re.search("[0-9]", piece)), "a digit is a token"
    for row, problem in enumerate(problems):
        _, offsets = tokenizer.encode_with_offsets(problem.trace)
        # No choice of chunks shows more.
        may_show = rows.hintable[row] & (np.arange(rows.trace.shape[1]) < rows.trace_length[row])
        shown = {place for token in np.flatnonzero(may_show) for place in range(*offsets[token])}
        line, result = problem.trace.index("#"), problem.trace.rindex(f"= {problem.answer}") + len("= ")
        assert not shown & {*range(line, len(problem.trace)), *range(result, result + len(problem.answer))}
        assert shown >= set(range(result - len("= ")))


@pytest.mark.parametrize("text, answer", [
    ("She has 3 * 4 = 12 pens.\n#### 12", "12"), ("#### 12", "12"), ("#### 9\n#### 12", "12"), ("#### ?", None),
    ("#### 012", "012"), ("12", None), ("####12", None), ("so #### 12", None), ("#### 12 pens", None), ("", None),
])  # fmt: skip
def test_only_the_last_line_of_its_form_states_an_answer(text, answer):
    [problem] = words.load(task(rl_problems=1, test_problems=1), "rl", seed=0)
    assert words.extract_answer(text) == answer
    assert words.reward(problem, text.replace("12", problem.answer)) == (answer == "12")


@pytest.mark.parametrize("line", [
    "**#### 12**", "#### **12**", "#### $12$", r"#### \boxed{12}", r"\boxed{12}", r"\boxed{12", "<answer>12</answer>", "#### 12.",
    "#### 12.0", "#### 012", "#### +12", "#### 12 apples", "#### 12 or 13", "#### 6 + 6 = 12", "#### 12 (the answer)", " #### 12", "####  12",
    "###12", "#### 12<|eot_id|>", "#### twelve", "#### -12", "#### 1,2", "#### 12%", "#### ١٢",
])  # fmt: skip
def test_other_ways_to_state_an_answer_earn_nothing(line):
    """The model learns the format of the demonstrations, and must keep it."""
    problem = Problem("i", "?", "12", "", (), "")
    assert words.reward(problem, line) == 0.0 and words.reward(problem, f"{line}\n#### 12") == 1.0


def test_text_around_the_last_line_of_an_answer_does_not_matter():
    problem = Problem("i", "?", "12", "", (), "")
    assert words.reward(problem, "#### 12\nThis is the answer.") == words.reward(problem, "#### 13\n#### 12\n") == 1.0
    assert words.reward(problem, "#### 12\n#### 13") == words.reward(problem, "#### 13\n#### 12 apples") == 0.0
    assert words.reward(Problem("i", "?", "", "", (), ""), "#### ") == 0.0, "no answer is right for an empty one"


@pytest.fixture
def small_world(monkeypatch):
    """Restricts the task to one man, one woman, one choice of each word, and two values of each number."""
    family = words.FAMILIES[0]._replace(words={key: choices[:1] for key, choices in words.FAMILIES[0].words.items()})
    changed = {"FAMILIES": (family,), "WOMEN": ("Anna",), "MEN": ("Ben",), "RANGES": dict.fromkeys(words.RANGES, (7, 8))}
    for name, value in changed.items():
        monkeypatch.setattr(words, name, value)


@pytest.mark.parametrize("split", ["test", "rl", "sft"])
def test_more_problems_than_there_are_questions_is_an_error_and_no_endless_search(split, small_world):
    problems = {part: words.load(task(steps=2, rl_problems=30, test_problems=30), part, seed=0) for part in ("test", "rl")}
    assert not {problem.question for problem in problems["test"]} & {problem.question for problem in problems["rl"]}
    with pytest.raises(ValueError, match=rf"task.{split}_problems=9000, but with task.steps=2 .* \d+ different questions"):
        words.load(task(steps=2, distractors=0.0, **{f"{split}_problems": 9000}), split, seed=0)


@pytest.mark.parametrize("values, message", [
    ({"steps": 1}, "task.steps=1 must be at least 2"), ({"distractors": 1.5}, r"task.distractors=1.5 .* in \[0, 1\]"),
    ({"worked_share": -0.1}, r"task.worked_share=-0.1 must be in \[0, 1\]"),
])  # fmt: skip
def test_values_that_cannot_work_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        words.load(task(**values), "sft", seed=0)
