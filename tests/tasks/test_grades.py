"""Groups are all wrong, all correct or mixed by their completions with a verdict."""

from types import SimpleNamespace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from igpo_jax.rl.dynamic_sampling import chosen_groups, mixed_groups
from igpo_jax.tasks.grades import Grades

CORRECT, WRONG, LATE, BROKEN = range(4)


def grades_of(kinds) -> Grades:
    kinds = np.array(kinds)
    return Grades((kinds == CORRECT).astype(np.float32), kinds == CORRECT, kinds == LATE, kinds == BROKEN)


def part(*kinds):
    return SimpleNamespace(final=SimpleNamespace(grades=grades_of(kinds)))


@given(
    st.integers(1, 6).flatmap(lambda g: st.lists(st.lists(st.integers(0, 3), min_size=g, max_size=g), min_size=1, max_size=5))
)
def test_groups_are_judged_by_their_graded_completions(kinds):
    grades = grades_of(kinds)
    seen = [{kind for kind in group if kind in (CORRECT, WRONG)} for group in kinds]
    assert grades.all_wrong.tolist() == [group == {WRONG} for group in seen]
    assert grades.all_correct.tolist() == [group == {CORRECT} for group in seen]
    assert mixed_groups([part(*kinds)])[0].tolist() == [group == {CORRECT, WRONG} for group in seen]
    assert grades.graded.tolist() == [[kind in (CORRECT, WRONG) for kind in group] for group in kinds]


def test_dynamic_sampling_keeps_groups_with_correct_and_wrong_completions():
    batches = [part([CORRECT, LATE], [CORRECT, WRONG]), part([LATE, WRONG], [WRONG, CORRECT])]
    assert chosen_groups(mixed_groups(batches)).tolist() == [1, 3]


def test_dynamic_sampling_leaves_out_groups_whose_rewards_differ_by_rounding():
    """A reward of 0.9999999999999999, a sum of ten tenths, counts as wrong, but its group has no advantages."""
    mixed = part([CORRECT, WRONG], [CORRECT, WRONG])
    mixed.final.grades = mixed.final.grades.replace(rewards=np.array([[1, sum([0.1] * 10)], [1, 0]], np.float32))
    assert mixed_groups([mixed]).tolist() == [[False, True]]
