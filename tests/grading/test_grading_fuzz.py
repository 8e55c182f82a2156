"""No answer breaks or delays the grader, and no notation makes a wrong number right.

tests/campaigns/grading_strings.py draws the strings; tests/campaigns/grading.py --fuzz=10000 grades more of them.
"""

import importlib.util
import pathlib
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings

from igpo_jax.grading.answers import extract
from igpo_jax.grading.equality import equal
from igpo_jax.tasks.problem import Problem
from igpo_jax.tasks.reward_pool import RewardPool

EXAMPLES = 300
REWARD = "igpo_jax.tasks.math:reward"
FOLDER = pathlib.Path(__file__).parents[1] / "campaigns"


def load(name: str):
    specification = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


strings, grading = load("grading_strings"), load("grading")


def graded(pairs, rule="box"):
    pool = RewardPool(REWARD, {"answer": rule}, 2, 5.0)
    verdicts = pool([(Problem("i", "q", gold, "", (), ""), text) for gold, text in pairs])
    pool.close()
    return verdicts


@pytest.mark.slow
@settings(deadline=None, max_examples=EXAMPLES)
@given(strings.texts)
def test_extraction_is_quick_and_finds_text_or_none(text):
    """Evaluation extracts answers in its own process, without a deadline."""
    begin = time.monotonic()
    for rule in ("box", "number", "any"):
        found = extract(text, rule)
        assert found is None or isinstance(found, str)
    assert time.monotonic() - begin < 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "rule, gold", [("box", r"\frac{1}{2}"), ("number", "5"), ("any", "x+1")]
)
def test_hostile_strings_get_a_verdict(rule, gold):
    """Every answer is graded or times out; no worker crashes or raises."""
    texts = strings.collected(strings.texts, EXAMPLES // 3)
    for text, verdict in zip(texts, graded([(gold, text) for text in texts], rule), strict=True):
        assert verdict.outcome in ("ok", "timeout") and (verdict.outcome == "ok" or verdict.reward == 0), (text[:200], verdict)


@settings(deadline=None, max_examples=EXAMPLES)
@given(strings.other_numbers())
def test_a_wrong_number_is_never_right(pair):
    assert not equal(*pair)


@settings(deadline=None, max_examples=EXAMPLES)
@given(strings.same_numbers())
def test_a_number_is_right_in_any_way_to_write_it(pair):
    assert equal(*pair)


@pytest.mark.slow
def test_wrong_numbers_are_wrong_in_the_pool_too():
    pairs = strings.collected(strings.other_numbers(), EXAMPLES)
    verdicts = graded([(gold, grading.boxed(answer)) for gold, answer in pairs])
    assert {(verdict.reward, verdict.outcome) for verdict in verdicts} == {(0.0, "ok")}


@pytest.mark.parametrize("text, value", [
    ("1,250", 1250), (r"-\frac{3}{4}", Fraction(-3, 4)), ("0.50", Fraction(1, 2)), (r"11,\! 111", 11111),
    ("3/4", Fraction(3, 4)),
    ("1,2", None), ("x", None), ("", None), ("-", None), ("3/0", None), (".5", Fraction(1, 2)),
    ("-.5", Fraction(-1, 2)),
])  # fmt: skip
def test_the_benchmark_reads_plain_numbers_on_its_own(text, value):
    assert grading.plain(text) == value


def test_mutations_differ_from_their_answers():
    answers = {f"m{n}": answer for n, answer in enumerate(["5", r"\frac{1}{2}", "-3", "x+1", "12.5", r"\sqrt{2}"])}
    made = grading.mutated(answers, 18)
    assert {name.split()[0] for name, *_ in made} == {"digit", "sign", "swap"} and made == grading.mutated(answers, 18)
    assert all(gold == answers[name.split()[1]] and wrong != gold for name, gold, wrong in made)
