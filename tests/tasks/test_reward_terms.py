"""Rewards that are weighted sums of several functions: the value of the key `reward.function`, and their grading."""

import contextlib
from types import SimpleNamespace

import pytest
from ml_collections import ConfigDict

from igpo_jax.tasks.problem import Problem
from igpo_jax.tasks.reward_pool import reward_pool
from igpo_jax.tasks.reward_terms import RewardTerm, reward_terms, split_terms, term_error, weighted_sum
from run_configs import parsed

PROBLEM = Problem("id", "?", "63", "", (), "")


@pytest.mark.parametrize("text, terms", [
    ("", [(1, "task")]), ("task", [(1, "task")]), ("m.n:f", [(1, "m.n:f")]), ("3*task", [(3, "task")]),
    ("task + 0.2*m:f", [(1, "task"), (0.2, "m:f")]), ("m:right+-.5*m:long  +  0 * task", [(1, "m:right"), (-0.5, "m:long"), (0, "task")]),
])  # fmt: skip
def test_a_sum_is_a_list_of_weights_and_functions(text, terms):
    assert (
        reward_terms(text)
        == [RewardTerm(*term) for term in terms]
        == reward_terms(parsed(reward__function=text).reward.function)
    )


@pytest.mark.parametrize("text, message", [
    ("tasks", "'tasks' is neither task nor package.module:name"), ("task + ", "'' is neither task"), ("+", "'' is neither"),
    ("task 0.2*m:f", "the weight 'task 0.2' of m:f is not a number from -1e+06 to 1e+06"),
    ("task - 0.2*m:f", "the weight 'task - 0.2' of m:f"), ("task + nan*m:f", "the weight 'nan'"), ("*task", "the weight ''"),
    ("task + 1e7*m:f", "the weight '1e7'"), ("m:f*0.2", "'0.2' is neither"), ("0.2*3*m:f", "the weight '0.2*3'"),
    ("task + task", "the metric reward/task would have two meanings; give the function task another name"),
    ("m:f + n:f", "the metric reward/f would have two meanings; give the function n:f another name"),
    ("task + m:final", "the metric reward/final would"), ("m:first_try", "the metric reward/first_try would"),
])  # fmt: skip
def test_an_invalid_sum_is_one_clear_error(text, message):
    for check in (reward_terms, lambda function: parsed(reward__function=function)):
        with pytest.raises(ValueError) as raised:
            check(text)
        assert str(raised.value).removeprefix("config.reward.").startswith(("reward.function=", f"function={text!r}: "))
        assert message in str(raised.value) and "\n" not in str(raised.value)


def test_only_spaces_are_left_out():
    assert split_terms("a:b\n + 1*\tc:d") == [("1", "a:b\n"), ("1", "\tc:d")]


@pytest.fixture
def pool_of():
    """Makes the pool of a configuration with the given value of reward.function."""
    with contextlib.ExitStack() as made:

        def make(function, **task):
            section = SimpleNamespace(function=function, workers=1, deadline_seconds=1.0)
            pool = reward_pool(ConfigDict({"name": "arithmetic"} | task), section)
            return made.enter_context(contextlib.closing(pool))

        yield make


def test_all_functions_grade_all_answers(pool_of):
    pool = pool_of("task + 0.25*reward_functions:length + -1*reward_functions:count")
    found = pool([(PROBLEM, "=63"), (PROBLEM, "1 =64")])
    assert [(v.correct, v.values, v.outcome) for v in found] == [(True, (1, 3, 1), "ok"), (False, (0, 5, 2), "ok")]
    terms = reward_terms("task + 0.25*reward_functions:length + -1*reward_functions:count")
    assert [weighted_sum(terms, v.values) for v in found] == [0.75, -0.75]


def test_the_first_function_decides_what_is_correct(pool_of):
    [verdict] = pool_of("0.1*reward_functions:length + task")([(PROBLEM, "x")])
    assert verdict.correct and verdict.values == (1, 0)


def test_only_the_reward_of_the_task_gets_its_options(pool_of):
    """The same function, once as the task's with the options of the task and once by its name with its defaults."""
    pool = pool_of("task + igpo_jax.tasks.math:reward", name="math", answer="number", reference_code=False)
    name = "igpo_jax.tasks.math:reward"
    assert pool.functions == [(name, {"answer": "number", "reference_code": False}), (name, {})]


def test_an_answer_on_which_one_function_fails_has_no_verdict(pool_of):
    pool = pool_of("task + 0.5*reward_functions:moody + 0*reward_functions:length")
    found = pool([(PROBLEM, text) for text in ("raise", "give up", "sleep", "nan", "=63", "7")])
    assert [v.outcome for v in found] == ["error", "timeout", "timeout", "error", "error", "ok"]
    assert all(v.values == (0, 0, 0) and not v.correct for v in found[:5]) and found[5].values == (0, 7, 1)
    assert found[0].reason == "problem 'id': reward_functions:moody: RuntimeError: not this one"
    assert found[3].reason.startswith("problem 'id': reward_functions:moody: ValueError: the function returned nan")


@pytest.mark.parametrize("function, message", [
    ("no_such_module:reward", "no_such_module:reward: ModuleNotFoundError"),
    ("reward_functions:no_such", "reward_functions:no_such: AttributeError"),
])  # fmt: skip
def test_a_function_that_is_not_there_is_named(function, message, pool_of):
    both = f"igpo_jax.tasks.arithmetic:reward + {function}"
    with pytest.raises(ValueError) as raised:
        pool_of(f"task + 2*{function}")([(PROBLEM, "1")])
    assert str(raised.value).startswith(f"the reward function {both!r} cannot be used: {message}")


@pytest.mark.parametrize("text", ["+" * (1 << 25), "+".join(f"a:{n}" for n in range(17)), "m:" + "a" * 5000])
def test_a_long_sum_is_refused_at_once(text):
    with pytest.raises(ValueError, match="reward.function.* has more than 4096 characters or 16 functions"):
        split_terms(text)
    assert term_error(text) == " has more than 4096 characters or 16 functions"

