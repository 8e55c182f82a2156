import pytest
from ml_collections import ConfigDict

from igpo_jax.tasks import arithmetic
from igpo_jax.tasks.problem import Problem

SIZES = {"sft_problems": 500, "rl_problems": 200, "test_problems": 50}


def task(**values):
    return ConfigDict({"slots": 2, "worked_share": 0.5, **SIZES, **values})


def test_splits_have_their_sizes_and_the_test_split_is_held_out():
    problems = {split: arithmetic.load(task(), split, seed=1) for split in ("sft", "rl", "test")}
    questions = {split: {p.question for p in drawn} for split, drawn in problems.items()}
    assert {split: len(found) for split, found in questions.items()} == {"sft": 500, "rl": 200, "test": 50}
    assert not questions["test"] & (questions["sft"] | questions["rl"])
    assert arithmetic.load(task(), "test", seed=2) == problems["test"] != arithmetic.load(task(), "rl", seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("split, most", [("test", 3600), ("rl", 3550), ("sft", 4150)])
def test_more_problems_than_there_are_questions_is_an_error_and_no_endless_search(split, most):
    """With two slots there are 100 starts and 36 pairs of coins; the supervised stage also has 600 problems of one coin."""
    assert len(arithmetic.load(task(**{f"{split}_problems": most}), split, seed=0)) == most
    with pytest.raises(ValueError, match=f"task.{split}_problems={most + 1}, but task.slots=2 makes only {most} different"):
        arithmetic.load(task(**{f"{split}_problems": most + 1}), split, seed=0)


@pytest.mark.parametrize("text, reward", [
    ("# 43 63=63", 1.0), ("=63", 1.0), ("63=63", 1.0), ("# 43 63=63\n", 1.0), ("=12=63", 1.0), ("=63=12", 0.0),
    # Everything else than two digits between the last equals sign and the end earns nothing.
    ("63", 0.0), ("=63.", 0.0), ("= 63", 0.0), ("=63 ", 0.0), ("=**63**", 0.0), ("**=63**", 0.0), ("=$63$", 0.0),
    (r"=\boxed{63}", 0.0),
    (r"\boxed{63}", 0.0), ("<answer>63</answer>", 0.0), ("#### 63", 0.0), ("=63 coins", 0.0), ("=63<|eot_id|>", 0.0),
    ("=62 or 63", 0.0),
    ("=-63", 0.0), ("=063", 0.0), ("=163", 0.0), ("=6,3", 0.0), ("=63.0", 0.0), ("=٦٣", 0.0), ("=??", 0.0), ("", 0.0),
])  # fmt: skip
def test_only_two_digits_after_the_last_equals_sign_state_an_answer(text, reward):
    """The model learns the format of the demonstrations, and must keep it."""
    assert arithmetic.reward(Problem("i", "?", "63", "", (), ""), text) == reward


def test_leading_zeros_belong_to_an_answer():
    problem = Problem("i", "?", "03", "", (), "")
    assert arithmetic.reward(problem, "=03") == 1.0 and arithmetic.reward(problem, "=3") == 0.0
    assert arithmetic.reward(Problem("i", "?", "", "", (), ""), "=") == 0.0, "no answer is right for an empty one"
