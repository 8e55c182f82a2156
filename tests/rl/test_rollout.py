"""Trigger, second attempt and replacement, with a scripted grader."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igpo_jax.data.pipeline import PromptBatch, take_rows
from igpo_jax.diffusion.sampler import HINT
from igpo_jax.diffusion.unmasking import DecodeConfig
from igpo_jax.model.transformer import ModelConfig, init
from igpo_jax.rl.hints import InpaintingConfig
from igpo_jax.rl.rollout import RolloutConfig, _pad_rows, rollout, up_to_first_eos
from igpo_jax.tasks.grades import Grades

EOS, MASK = 1, 2
MODEL = ModelConfig(vocab_size=16, mask_id=MASK, eos_id=EOS, width=16, layers=1, heads=2, kv_heads=2, mlp_width=16)
LENGTH, GROUP, PROBLEMS = 12, 4, 4
CFG = RolloutConfig(
    MODEL,
    DecodeConfig(LENGTH, block_length=6, steps=6, temperature=1.0),
    InpaintingConfig(chunk_min=2, chunk_max=3, ratio_min=0.5, ratio_max=0.8),
    GROUP,
    prompts_at_once=PROBLEMS,
    prompt_buckets=(5,),
    normalize_advantages=False,
)


def prompts() -> PromptBatch:
    draw = np.random.default_rng(0)
    return PromptBatch(
        problem_id=np.arange(100, 100 + PROBLEMS, dtype=np.uint32),
        tokens=draw.integers(3, 16, (PROBLEMS, 5)).astype(np.int32),
        prompt_mask=np.ones((PROBLEMS, 5), bool),
        trace=draw.integers(3, 16, (PROBLEMS, LENGTH)).astype(np.int32),
        trace_length=np.full(PROBLEMS, 10, np.int32),
        hintable=np.arange(LENGTH)[None].repeat(PROBLEMS, 0) < 10,
    )


NONE = -1  # in a table of rewards: no verdict


class Grader:
    """Grades by a table {problem id: (first attempt, second attempt)} and records its calls."""

    def __init__(self, table):
        self.table, self.calls = table, []

    def __call__(self, problem_id, completions):
        seen = {int(i) for ids, _ in self.calls for i in ids}
        self.calls.append((problem_id.copy(), completions.copy()))
        rewards = np.array([self.table[int(i)][int(i) in seen] for i in problem_id], np.float32)
        return lambda: Grades(rewards, rewards >= 1, rewards < 0, rewards < 0)


WRONG, ONE, ALL = (0, 0, 0, 0), (0, 0, 1, 0), (1, 1, 1, 1)
TABLE = {100: (WRONG, ALL), 101: (ONE, ALL), 102: (WRONG, WRONG), 103: (WRONG, ONE)}


@pytest.fixture(scope="module")
def params():
    return init(jax.random.key(0), MODEL)


def run(params, mesh, table=TABLE, cfg=CFG, batch=None, seed=7):
    grader = Grader(table)
    with jax.set_mesh(mesh):
        return rollout(params, batch or prompts(), grader, jax.random.key(seed), cfg, mesh), grader


def test_only_groups_that_are_all_wrong_get_a_second_try(params, mesh):
    result, grader = run(params, mesh)
    assert result.triggered.tolist() == [0, 2, 3]
    assert set(grader.calls[1][0].tolist()) == {100, 102, 103}
    assert result.second.tokens.shape == (3, GROUP, LENGTH)


def test_at_most_lambda_g_correct_completions_replace_the_last_wrong_ones(params, mesh):
    result, _ = run(params, mesh)
    assert result.replaced.tolist() == [[False, False, True, True], [False] * 4, [False] * 4, [False, False, False, True]]
    completions = np.asarray(result.groups.completions)
    assert (completions[~result.replaced] == result.first.tokens[~result.replaced]).all()
    np.testing.assert_array_equal(completions[3, 3], result.second.tokens[2, 2])  # the correct one
    swapped = {tuple(row) for row in completions[0, 2:].tolist()}
    assert swapped <= {tuple(row) for row in result.second.tokens[0].tolist()}


def test_the_released_switches_replace_the_first_and_count_all_tokens(params, mesh):
    cfg = dataclasses.replace(CFG, inpainting=dataclasses.replace(CFG.inpainting, by_completion=True), after_eos=True)
    result, _ = run(params, mesh, cfg=cfg)
    assert result.replaced.tolist() == [[True, True, False, False], [False] * 4, [False] * 4, [True, False, False, False]]
    np.testing.assert_array_equal(np.asarray(result.groups.completions)[3, 0], result.second.tokens[2, 2])
    assert np.asarray(result.groups.loss_mask).all()


def test_advantages_are_those_of_the_final_group(params, mesh):
    result, _ = run(params, mesh)
    expected = [[-0.5, -0.5, 0.5, 0.5], [-0.25, -0.25, 0.75, -0.25], [0.0] * 4, [-0.25, -0.25, -0.25, 0.75]]
    np.testing.assert_allclose(np.asarray(result.groups.advantages), expected)


def test_hint_tokens_come_from_the_solution_and_are_marked_in_the_batch(params, mesh):
    result, _ = run(params, mesh)
    second, batch = result.second, prompts()
    trace = batch.trace[result.triggered][:, None].repeat(GROUP, 1)
    assert second.hint.any(axis=-1).all()
    assert (second.tokens[second.hint] == trace[second.hint]).all()
    assert ((second.unmask_step == HINT) == second.hint).all()
    hint = np.asarray(result.groups.hint)
    assert hint[result.replaced].any(axis=-1).all() and not hint[~result.replaced].any()


def test_partial_credit_is_not_being_right(params, mesh):
    """A group with partial rewards but no correct completion gets hints; only correct completions replace others."""
    table = TABLE | {100: ((0.1, 0.0, 0.5, 0.1), (0.1, 1, 0.5, 0.5)), 101: ((0.1, 0, 1, 0), ALL)}
    result, _ = run(params, mesh, table=table)
    assert result.triggered.tolist() == [0, 2, 3]
    assert result.replaced[0].tolist() == [False, False, False, True]
    np.testing.assert_array_equal(np.asarray(result.groups.completions)[0, 3], result.second.tokens[0, 1])
    expected = np.array([0.1, 0.0, 0.5, 1.0]) - 0.4
    np.testing.assert_allclose(np.asarray(result.groups.advantages)[0], expected, atol=1e-6)
    assert result.metrics["reward/first_try"] == pytest.approx(1.8 / 16)
    assert result.metrics["correct/first_try"] == pytest.approx(1 / 16)


@pytest.mark.parametrize("tries", [0, 2])
def test_with_several_functions_hints_go_by_correctness_and_advantages_by_the_sum(tries, params, mesh):
    """Every group has a positive reward for its form, and one completion has no verdict."""
    form = np.array([[1, 1, 0, 1], [1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 1]], np.float32)
    grader = Grader(TABLE)

    def grade(problem_id, completions):
        size = completions.shape[1]
        parts = {"task": grader(problem_id, completions)().rewards[:, :size], "form": form[problem_id - 100][:, :size]}
        late = (problem_id == 103)[:, None] & (np.arange(size) == 0)
        rewards = np.where(late, 0, parts["task"] + 0.5 * parts["form"])
        return lambda: Grades(rewards, parts["task"] >= 1, late, np.zeros_like(late), parts)

    cfg = dataclasses.replace(CFG, inpainting=dataclasses.replace(CFG.inpainting, tries=tries))
    with jax.set_mesh(mesh):
        result = rollout(params, prompts(), grade, jax.random.key(7), cfg, mesh)
    assert result.triggered.tolist() == [0, 2, 3] and result.replaced[0].tolist() == [False, False, True, True]
    assert result.metrics["reward/task"] == pytest.approx(1 / 15) == result.metrics["correct/first_try"]
    assert result.metrics["reward/form"] == pytest.approx(9 / 15)
    assert result.metrics["reward/first_try"] == pytest.approx(1 / 15 + 0.5 * 9 / 15)
    np.testing.assert_array_equal(result.final.grades.parts["task"][0], [0, 0, 1, 1])
    np.testing.assert_allclose(result.groups.advantages[1], np.array([0.5, 0, 1, 0]) - 0.375)


def test_a_completion_without_a_verdict_is_not_wrong(params, mesh):
    """Groups without any verdict are not sampled again, and only graded correct completions replace others."""
    table = {
        100: ((NONE,) * 4, ALL),
        101: ((NONE, 1, NONE, 0), ALL),
        102: ((0, NONE, 0, 0), (NONE, 1, 1, NONE)),
        103: (WRONG, (NONE,) * 4),
    }
    result, grader = run(params, mesh, table=table)
    assert result.triggered.tolist() == [2, 3] and {102, 103} == set(grader.calls[1][0].tolist())
    # The completion without a verdict is replaced first.
    assert result.replaced.tolist() == [[False] * 4, [False] * 4, [False, True, False, True], [False] * 4]
    np.testing.assert_array_equal(np.asarray(result.groups.completions)[2, [1, 3]], result.second.tokens[0, [1, 2]])
    expected = [[0.0] * 4, [0, 0.5, 0, -0.5], [-0.5, 0.5, -0.5, 0.5], [0.0] * 4]
    np.testing.assert_array_equal(np.asarray(result.groups.advantages), expected)
    trained = np.asarray(result.groups.loss_mask).any(axis=-1)
    assert trained.tolist() == [[False] * 4, [False, True, False, True], [True] * 4, [True] * 4]
    metrics = result.metrics
    assert metrics["reward/first_try"] == pytest.approx(1 / 9) == metrics["correct/first_try"]
    assert metrics["correct/final"] == pytest.approx(3 / 10)
    assert metrics["groups/all_wrong_before"] == pytest.approx(2 / 3) and metrics["groups/all_correct"] == 0
    assert metrics["groups/all_wrong_after"] == pytest.approx(1 / 3) and metrics["hint/rescue_rate"] == 1.0
    assert metrics["grading/late"] == 7 + 6


def test_the_first_completions_are_replaced_but_before_them_one_without_a_verdict(params, mesh):
    cfg = dataclasses.replace(CFG, inpainting=dataclasses.replace(CFG.inpainting, by_completion=True))
    result, _ = run(params, mesh, table=TABLE | {100: ((0, 0, NONE, 0), ALL)}, cfg=cfg)
    assert result.replaced[0].tolist() == [True, False, True, False]


@pytest.mark.filterwarnings("error")
def test_metrics_without_any_verdict_are_not_numbers(params, mesh):
    result, _ = run(params, mesh, table=dict.fromkeys(TABLE, ((NONE,) * 4, ALL)))
    assert result.second is None and not np.asarray(result.groups.advantages).any()
    assert np.isnan([value for name, value in result.metrics.items() if name.split("/")[0] in ("reward", "correct")]).all()
    assert np.isnan(result.metrics["groups/all_wrong_before"]) and result.metrics["grading/late"] == 16


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 12))
def test_a_mean_over_all_completions_is_the_plain_mean_to_the_bit(seed, groups, size):
    rewards = np.random.default_rng(seed).normal(size=(groups, size)).astype(np.float32)
    assert np.mean(rewards[np.ones(rewards.shape, bool)]) == np.mean(rewards)


def test_without_inpainting_there_is_one_try(params, mesh):
    cfg = dataclasses.replace(CFG, inpainting=InpaintingConfig(enabled=False))
    result, grader = run(params, mesh, cfg=cfg)
    assert len(grader.calls) == 1 and result.second is None and not result.replaced.any()
    assert "hint/rescue_rate" not in result.metrics


def test_metrics_count_groups_before_and_after_the_rescue(params, mesh):
    metrics = run(params, mesh)[0].metrics
    assert metrics["groups/all_wrong_before"] == 0.75 and metrics["groups/all_wrong_after"] == 0.25
    assert metrics["hint/rescue_rate"] == pytest.approx(2 / 3) and metrics["hint/replaced"] == 0.75
    assert metrics["reward/first_try"] == pytest.approx(1 / 16) and metrics["reward/final"] == pytest.approx(4 / 16)


def test_completions_hints_and_swaps_do_not_depend_on_the_place_in_the_batch(params, mesh):
    order = np.array([2, 0, 3, 1])
    one, _ = run(params, mesh)
    other, _ = run(params, mesh, batch=take_rows(prompts(), order))
    for name in ("completions", "hint", "advantages"):
        np.testing.assert_array_equal(np.asarray(getattr(one.groups, name))[order], np.asarray(getattr(other.groups, name)))


@pytest.mark.slow
def test_slices_of_short_prompts_first_change_nothing(params, mesh):
    """Pads prompts of 1 to 5 tokens to several lengths, one or more at a time. Sorting them by length is a permutation that is
    not its own inverse."""
    batch = prompts()
    batch = batch.replace(prompt_mask=np.arange(5) >= np.array([[2], [4], [3], [0]]))
    expected, grader = run(params, mesh, batch=batch)
    for problem_id, completions in zip(*grader.calls[0], strict=True):
        np.testing.assert_array_equal(expected.first.tokens[int(problem_id) - 100], completions)
    for at_once, buckets in ((1, (3, 5)), (2, (1, 3, 5)), (4, (3, 5))):
        cfg = dataclasses.replace(CFG, prompts_at_once=at_once, prompt_buckets=buckets)
        result, _ = run(params, mesh, cfg=cfg, batch=batch)
        for one, other in zip(jax.tree.leaves(result.first), jax.tree.leaves(expected.first), strict=True):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(result.second.tokens, expected.second.tokens)


def test_the_second_try_draws_other_noise_and_another_key_another_rollout(params, mesh):
    no_hints = dataclasses.replace(CFG, inpainting=InpaintingConfig(ratio_min=0.0, ratio_max=0.0))
    result, _ = run(params, mesh, cfg=no_hints)
    assert not result.second.hint.any()
    assert (result.second.tokens[0] != result.first.tokens[0]).any()
    assert (run(params, mesh, seed=8)[0].first.tokens != result.first.tokens).any()


@pytest.mark.slow
def test_the_same_on_a_mesh(params, mesh, mesh_of):
    one, many = run(params, mesh)[0], run(params, mesh_of((2, 2, 2)))[0]
    np.testing.assert_array_equal(np.asarray(one.groups.completions), np.asarray(many.groups.completions))


def test_up_to_the_first_eos_inclusive():
    tokens = np.array([[5, EOS, 6, EOS], [5, 6, 7, 8], [EOS, EOS, 5, 5]])
    expected = [[True, True, False, False], [True] * 4, [True, False, False, False]]
    assert up_to_first_eos(tokens, EOS).tolist() == expected


@pytest.mark.parametrize(
    "rows, most, group_size, divisor, size",
    [(1, 16, 1, 1, 4), (5, 16, 1, 1, 8), (9, 16, 1, 1, 16), (1, 16, 1, 8, 8), (3, 6, 1, 1, 3)]  # groups of one
    + [(1, 16, 2, 8, 4), (17, 16, 1, 1, 20), (32, 16, 1, 1, 32), (1, 2, 8, 16, 2)],  # several rows per group, several chunks
)
def test_second_tries_have_few_sizes(rows, most, group_size, divisor, size):
    padded = _pad_rows(np.arange(rows) + 20, most, group_size, divisor)
    assert len(padded) == size and padded[:rows].tolist() == list(range(20, 20 + rows)) and set(padded[rows:]) <= {20}


def graded_by(correct):
    """Returns a grader of second attempts, whose verdict on a completion depends on its tokens alone."""

    def grade(problem_id, completions):
        right = np.array([[correct(row) for row in group] for group in completions.tolist()])
        return lambda: Grades(right.astype(np.float32), right, np.zeros_like(right), np.zeros_like(right))

    return grade


def rolled_out(params, mesh, tries, share, seed, prompts_at_once=PROBLEMS):
    """First attempts are all wrong. Of second attempts, which contain hints, about `share` are correct."""
    hints = dataclasses.replace(CFG.inpainting, tries=tries, replace_fraction=0.5)
    cfg = dataclasses.replace(CFG, inpainting=hints, group_size=8, prompts_at_once=prompts_at_once)
    calls = []

    def grade(problem_id, completions):
        calls.append(completions.shape[1])
        second = len(calls) > PROBLEMS // prompts_at_once
        return graded_by(lambda row: second and np.random.default_rng(row).random() < share)(problem_id, completions)

    with jax.set_mesh(mesh):
        return rollout(params, prompts(), grade, jax.random.key(seed), cfg, mesh)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_tries_sample_fewer_of_the_same_completions(share, params, mesh):
    for seed in range(4):
        whole = rolled_out(params, mesh, 0, share, seed)
        for tries, at_once in (1, 4), (2, 4), (4, 4), (8, 4), (4, 2):
            part = rolled_out(params, mesh, tries, share, seed, at_once)
            sampled = part.second.grades.sampled
            np.testing.assert_array_equal(part.second.tokens[sampled], whole.second.tokens[sampled])
            np.testing.assert_array_equal(part.second.ratio, whole.second.ratio)
            for row, correct in zip(sampled, whole.second.grades.correct, strict=True):
                number = tries
                while number < 8 and 0 < correct[:number].sum() < 4:
                    number += tries
                assert row.tolist() == [True] * number + [False] * (8 - number)
            most = np.minimum(part.second.grades.correct.sum(axis=1), 4)
            np.testing.assert_array_equal(part.replaced.sum(axis=1), most)
            gave_up = ~whole.second.grades.correct[:, :tries].any(axis=1)
            np.testing.assert_array_equal(most[~gave_up], whole.replaced.sum(axis=1)[~gave_up])
            assert part.metrics["hint/sampled"] == sampled.sum(axis=1).mean()
            first_rows, hinted_rows = (
                [found.metrics["sampler/rows"] - found.metrics["hint/rows"] for found in (part, whole)],
                [found.metrics["hint/rows"] for found in (part, whole)],
            )
            assert at_once != PROBLEMS or (first_rows[0] == first_rows[1] and 0 < hinted_rows[0] <= hinted_rows[1])
            for group, row in enumerate(part.replaced):
                swapped = {tuple(tokens) for tokens in part.final.tokens[group, row].tolist()}
                assert swapped <= {tuple(x) for x in part.second.tokens[group][part.second.grades.correct[group]].tolist()}


def test_tries_do_not_go_with_ascending_hint_ratios():
    with pytest.raises(ValueError, match=r"inpainting\.tries=2 does not go with inpainting\.by_completion=True"):
        InpaintingConfig(tries=2, by_completion=True)
