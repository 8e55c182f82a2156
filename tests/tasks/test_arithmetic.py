import pytest
from ml_collections import ConfigDict

from igpo_jax.tasks import arithmetic

SIZES = {"sft_problems": 500, "rl_problems": 200, "test_problems": 50}


def task(**values):
    return ConfigDict({"slots": 2, "worked_share": 0.5, **SIZES, **values})


def test_splits_have_their_sizes_and_the_test_split_is_held_out():
    problems = {split: arithmetic.load(task(), split, seed=1) for split in ("sft", "rl", "test")}
    questions = {split: {p.question for p in drawn} for split, drawn in problems.items()}
    assert {split: len(found) for split, found in questions.items()} == {"sft": 500, "rl": 200, "test": 50}
    assert not questions["test"] & (questions["sft"] | questions["rl"])
    assert arithmetic.load(task(), "test", seed=2) == problems["test"] != arithmetic.load(task(), "rl", seed=1)


@pytest.mark.parametrize("split, most", [("test", 3600), ("rl", 3550), ("sft", 4150)])
def test_more_problems_than_there_are_questions_is_an_error_and_no_endless_search(split, most):
    """With two slots there are 100 starts and 36 pairs of coins; the supervised stage also has 600 problems of one coin."""
    assert len(arithmetic.load(task(**{f"{split}_problems": most}), split, seed=0)) == most
    with pytest.raises(ValueError, match=f"task.{split}_problems={most + 1}, but task.slots=2 makes only {most} different"):
        arithmetic.load(task(**{f"{split}_problems": most + 1}), split, seed=0)
