"""Noise in solutions: what it changes, what it leaves alone, and that it reaches the hints only."""

import dataclasses
import random

import pytest

from igpo_jax import config as configuration
from igpo_jax.run.experiment import open_experiment
from igpo_jax.tasks.noise import FILLERS, LONGEST_TRACE, NUMBER, OPERATOR, WORD, with_noise
from igpo_jax.tasks.problem import Problem
from run_configs import parsed, tiny

TRACE = "<reasoning>\nShe has 3 + 4 = 7 apples, well-known in 2x-1.\nThen $7 \\times 12 = 84$, so 84/2=42.\n</reasoning>\n\\boxed{42}"
SPANS = tuple((begin, begin + 2) for begin in (TRACE.index("42."), TRACE.rindex("42")))
PROBLEM = Problem("p", "?", "42", TRACE, SPANS, demonstration=TRACE)


def hidden(problem):
    return [problem.trace[begin:end] for begin, end in problem.answer_spans]


def test_numbers_are_replaced_by_near_ones_that_are_not_the_answer():
    for seed in range(50):
        noisy = with_noise(PROBLEM, seed, 1, 0, 0)
        before, after = (NUMBER.findall(problem.trace) for problem in (PROBLEM, noisy))
        assert len(before) == len(after) == 12
        changed = [(one, other) for one, other in zip(before, after, strict=True) if one != other]
        assert len(changed) == 10 and all(0 < abs(int(one) - int(other)) <= 9 and other != "42" for one, other in changed)
        assert hidden(noisy) == hidden(PROBLEM) == ["42", "42"]
        assert NUMBER.sub("", noisy.trace) == NUMBER.sub("", TRACE)
    fixed = with_noise(dataclasses.replace(PROBLEM, trace="01 02 99", answer_spans=()), 0, 1, 0, 0)
    assert all(len(number) >= 2 for number in fixed.trace.split())  # keeps leading zeros


def test_operators_stand_between_operands_and_words_are_no_commands_or_tags():
    assert [match[0] for match in OPERATOR.finditer(TRACE)] == ["+", "-", "\\times", "/"]
    assert [match[0] for match in OPERATOR.finditer("a + b, -5, x = -3, (1)*(2), twenty-one")] == ["+", "*"]
    assert WORD.findall(TRACE) == ["She", "has", "apples", "known", "in", "Then", "so"]
    noisy = with_noise(PROBLEM, 0, 0, 1, 0)
    assert not any(text in noisy.trace for text in ("3 + 4", "2x-1", "\\times", "84/2")) and "well-known" in noisy.trace
    assert hidden(noisy) == ["42", "42"] and NUMBER.findall(noisy.trace) == NUMBER.findall(TRACE)


def test_fillers_follow_words():
    noisy = with_noise(PROBLEM, 0, 0, 0, 1)
    assert sum(noisy.trace.count(filler) for filler in FILLERS) - TRACE.count("well") == 7
    assert noisy.trace.startswith("<reasoning>\nShe ") and noisy.trace.endswith("</reasoning>\n\\boxed{42}")
    assert hidden(noisy) == ["42", "42"]


def test_noise_depends_on_the_problem_the_seed_and_the_share():
    assert with_noise(PROBLEM, 0, 0, 0, 0) == PROBLEM
    assert with_noise(PROBLEM, 1, 0.5, 0.5, 0.5) == with_noise(PROBLEM, 1, 0.5, 0.5, 0.5)
    other = dataclasses.replace(PROBLEM, id="q")
    assert len({with_noise(p, seed, 0.5, 0.5, 0.5).trace for p in (PROBLEM, other) for seed in range(5)}) == 10
    long = dataclasses.replace(
        PROBLEM, trace=" ".join(str(random.Random(i).randint(100, 999)) for i in range(2000)), answer_spans=()
    )
    words = [with_noise(long, 0, share, 0, 0).trace.split() for share in (0, 0.3, 0.6, 1)]
    changed = [{i for i, (one, other) in enumerate(zip(words[0], some, strict=True)) if one != other} for some in words]
    assert [round(len(places) / 2000, 1) for places in changed] == [0, 0.3, 0.6, 1] and changed[1] < changed[2] < changed[3]
    assert all(words[1][place] == words[3][place] for place in changed[1])


def test_noise_in_a_very_long_solution_is_an_error_that_names_the_problem():
    size = LONGEST_TRACE + 1
    with pytest.raises(ValueError, match=f"problem 'p': its solution has {size} characters; noise is possible in at most"):
        with_noise(dataclasses.replace(PROBLEM, trace="1" * size, answer_spans=()), 0, 1, 0, 0)


def test_only_hints_have_noise(tmp_path):
    plain = open_experiment(tiny(), tmp_path / "plain")
    noisy = open_experiment(tiny(inpainting__number_noise=1.0), tmp_path / "noisy")
    assert noisy.data == plain.data and (noisy.sft_data.completion == plain.sft_data.completion).all()
    assert (noisy.rl_data.prompts.tokens == plain.rl_data.prompts.tokens).all()
    pairs = list(zip(noisy.rl_data.problems, plain.rl_data.problems, strict=True))
    assert all(one.trace != other.trace and hidden(one) == hidden(other) for one, other in pairs)
    tokens = noisy.tokenizer.encode(noisy.rl_data.problems[0].trace)
    assert noisy.rl_data.prompts.trace[0][: len(tokens)].tolist() == tokens
    assert configuration.fingerprint(tiny(inpainting__number_noise=1.0), "sft") == configuration.fingerprint(tiny(), "sft")


@pytest.mark.parametrize("changes, words", [
    ({"number_noise": 1.5}, "inpainting.number_noise=1.5 must be within"),
    ({"policy": "none", "chunk_min": 5, "chunk_max": 10, "filler_noise": 0.5}, "inpainting.policy='none' does not use inpainting.filler_noise=0.5"),
    ({"source": "own", "operator_noise": 0.5}, "inpainting.source='own' does not use inpainting.operator_noise=0.5"),
])  # fmt: skip
def test_noise_without_effect_is_an_error(changes, words):
    with pytest.raises(ValueError) as raised:
        parsed(**{f"inpainting__{key}": value for key, value in changes.items()})
    assert words in str(raised.value)
