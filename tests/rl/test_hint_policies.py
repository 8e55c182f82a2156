"""Canvases of second attempts: hint policies, share shown, source of the solution; and iterations of several batches."""

import contextlib
import dataclasses
import hashlib
import json
import pathlib

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igpo_jax.data.pipeline import PromptBatch, take_rows
from igpo_jax.diffusion.sampler import completion_keys, sample
from igpo_jax.diffusion.unmasking import DecodeConfig
from igpo_jax.model.transformer import ModelConfig, init
from igpo_jax.rl.dynamic_sampling import chosen_groups, key_of_batch, merge, mixed_groups
from igpo_jax.rl.hints import InpaintingConfig, inpaint, ratio_range
from igpo_jax.rl.keys import KeyPurpose
from igpo_jax.rl.rollout import RolloutConfig, distinct_share, rollout
from igpo_jax.run.experiment import open_experiment
from igpo_jax.stages.hint_state import (
    NO_SOLUTION,
    initial_hint_ratio_center,
    require_known_ids,
    update_solution_bank,
    with_own_solutions,
)
from igpo_jax.tasks.grades import Grades
from run_configs import tiny

EOS, MASK = 1, 2
MODEL = ModelConfig(vocab_size=16, mask_id=MASK, eos_id=EOS, width=16, layers=1, heads=2, kv_heads=2, mlp_width=16)
LENGTH, GROUP, PROBLEMS = 12, 4, 4
HINTS = InpaintingConfig(chunk_min=2, chunk_max=3, ratio_min=0.5, ratio_max=0.8)
CFG = RolloutConfig(
    MODEL,
    DecodeConfig(LENGTH, block_length=6, steps=6, temperature=1.0),
    HINTS,
    GROUP,
    prompts_at_once=PROBLEMS,
    prompt_buckets=(5,),
    normalize_advantages=False,
)
WRONG, ONE, ALL = (0, 0, 0, 0), (0, 0, 1, 0), (1, 1, 1, 1)
TABLE = {100: (WRONG, ALL), 101: (ONE, ALL), 102: (WRONG, WRONG), 103: (WRONG, ONE)}


def prompts(first_id: int = 100, width: int = 5) -> PromptBatch:
    draw = np.random.default_rng(0)
    return PromptBatch(
        problem_id=np.arange(first_id, first_id + PROBLEMS, dtype=np.uint32),
        tokens=draw.integers(3, 16, (PROBLEMS, 5)).astype(np.int32)[:, -width:],
        prompt_mask=np.ones((PROBLEMS, width), bool),
        trace=draw.integers(3, 16, (PROBLEMS, LENGTH)).astype(np.int32),
        trace_length=np.full(PROBLEMS, 10, np.int32),
        hintable=np.arange(LENGTH)[None].repeat(PROBLEMS, 0) < 10,
    )


@pytest.fixture(scope="module")
def params():
    return init(jax.random.key(0), MODEL)


def run(params, mesh, table=TABLE, batch=None, seed=7, **changes):
    """Runs a rollout with rewards from a table {problem id: (first attempt, second attempt)}."""
    seen = set()

    def grade(problem_id, completions):
        rewards = np.array([table[number][number in seen] for number in problem_id.tolist()], np.float32)
        seen.update(problem_id.tolist())
        return lambda: Grades(rewards, rewards >= 1, rewards < 0, rewards < 0)

    cfg = dataclasses.replace(CFG, **changes)
    with jax.set_mesh(mesh):
        return rollout(params, prompts() if batch is None else batch, grade, jax.random.key(seed), cfg, mesh)


def assert_same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


# ---------------------------------------------------------------------------------------------------------------------
# Policies


@pytest.mark.slow
def test_the_default_rollout_is_what_it_was(params, mesh):
    """Compares with a checksum recorded before policies were added."""
    digest = hashlib.sha256()
    for seed in range(3):
        result = run(params, mesh, seed=seed)
        found = result.groups.completions, result.first.tokens, result.second.tokens, result.second.hint, result.replaced
        for values in (*found, result.triggered):
            digest.update(np.asarray(values).astype(np.int32).tobytes())
    assert digest.hexdigest()[:16] == "36c463f65dd33b04"


@pytest.mark.slow
def test_without_hints_a_second_try_is_another_sample(params, mesh):
    """Starts from a blank canvas with the second attempt's keys; replaces wrong completions as always."""
    result = run(params, mesh, inpainting=InpaintingConfig(policy="none"))
    assert not result.second.hint.any() and (result.second.ratio == 0).all()
    batch = take_rows(prompts(), result.triggered)
    n = len(result.triggered)
    rows = [np.repeat(x, GROUP, axis=0) for x in (batch.tokens, batch.prompt_mask)]
    problem, completion = np.repeat(batch.problem_id, GROUP), np.tile(np.arange(GROUP, dtype=np.uint32), n)
    keys = completion_keys(jax.random.key(7), problem, completion, KeyPurpose.SECOND_ATTEMPT)
    canvas = np.full((n * GROUP, LENGTH), MASK, np.int32)
    with jax.set_mesh(mesh):
        expected = sample(params, *rows, canvas, keys, MODEL, CFG.decode)
    np.testing.assert_array_equal(result.second.tokens.reshape(-1, LENGTH), expected.tokens)
    assert result.replaced.tolist() == [[False, False, True, True], [False] * 4, [False] * 4, [False, False, False, True]]
    assert result.metrics["hint/tokens"] == result.metrics["hint/ratio"] == 0
    # Equals the paper's baseline: both ratios 0.
    assert_same(result.groups, run(params, mesh, inpainting=dataclasses.replace(HINTS, ratio_min=0.0, ratio_max=0.0)).groups)


def test_a_prefix_is_the_beginning_of_the_solution(params, mesh):
    result = run(params, mesh, inpainting=InpaintingConfig(policy="prefix", ratio_min=0.5, ratio_max=0.8))
    shown = result.second.hint.sum(axis=-1)
    assert (result.second.hint == (np.arange(LENGTH) < shown[..., None])).all()
    np.testing.assert_array_equal(shown, np.floor(10 * result.second.ratio + 1e-5))
    assert 5 <= shown.min() < shown.max() <= 8
    trace = prompts().trace[result.triggered][:, None].repeat(GROUP, 1)
    assert (result.second.tokens == trace)[result.second.hint].all()


def test_a_prefix_ends_before_the_first_token_that_may_not_be_shown(params, mesh):
    batch = prompts()
    batch = batch.replace(hintable=batch.hintable & (np.arange(LENGTH) != np.array([3, 0, 0, 20])[:, None]))
    inpainting = InpaintingConfig(policy="prefix", ratio_min=1.0, ratio_max=1.0)
    result = run(params, mesh, batch=batch, inpainting=inpainting)
    assert result.triggered.tolist() == [0, 2, 3]
    assert result.second.hint.sum(axis=-1).tolist() == [[3] * GROUP, [0] * GROUP, [10] * GROUP]


@pytest.mark.parametrize(
    "inpainting", [HINTS, InpaintingConfig(policy="prefix", ratio_min=0.5, ratio_max=0.8)], ids=["chunks", "prefix"]
)
def test_ratios_lie_around_the_centre_and_nothing_is_compiled_again(inpainting, params, mesh):
    middle = initial_hint_ratio_center(inpainting)
    np.testing.assert_allclose(ratio_range(middle, inpainting), ratio_range(None, inpainting), atol=1e-6)
    run(params, mesh, inpainting=inpainting)
    compiled = inpaint._cache_size()
    for hint_ratio_center in (0.0, 0.1, middle, 0.95, 1.0):
        ratio = run(params, mesh, inpainting=inpainting, hint_ratio_center=hint_ratio_center).second.ratio
        assert max(hint_ratio_center - 0.15, 0) - 1e-6 <= ratio.min() < ratio.max() <= min(hint_ratio_center + 0.15, 1) + 1e-6
    assert inpaint._cache_size() == compiled


# ---------------------------------------------------------------------------------------------------------------------
# Own solutions


@pytest.mark.slow
def test_without_a_solution_of_its_own_a_problem_has_no_second_try(params, mesh):
    batch = prompts()
    batch = batch.replace(trace_length=np.array([0, 5, 5, 0], np.int32))
    own = run(params, mesh, batch=batch, inpainting=dataclasses.replace(HINTS, source="own"))
    given = run(params, mesh, batch=batch)
    assert own.triggered.tolist() == [2] and given.triggered.tolist() == [0, 2, 3]
    assert_same(own.second, take_rows(given.second, np.array([1])))
    assert own.metrics["groups/all_wrong_before"] == 0.75
    nothing = run(params, mesh, batch=batch.replace(trace_length=np.zeros(4, np.int32)), inpainting=dataclasses.replace(
        HINTS, source="own"))  # fmt: skip
    assert nothing.second is None and not nothing.replaced.any()


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**31))
def test_the_memory_holds_the_newest_correct_completion_of_every_problem(seed):
    draw = np.random.default_rng(seed)
    solution_bank, expected = np.full((6, 5), NO_SOLUTION, np.int32), {}
    for _ in range(4):
        rows = draw.permutation(6)[:3]
        tokens = draw.integers(1, 5, (3, 4, 5)).astype(np.int32)  # 1 is EOS
        correct = draw.uniform(size=(3, 4)) < 0.3
        before = solution_bank.copy()
        after = update_solution_bank(solution_bank, rows, tokens, correct, EOS)
        np.testing.assert_array_equal(solution_bank, before)
        solution_bank = after
        for row, group, right in zip(rows, tokens.tolist(), correct, strict=True):
            for completion, is_right in zip(group, right, strict=True):
                if is_right:
                    end = completion.index(EOS) if EOS in completion else 5
                    expected[row] = completion[:end] + [EOS] * (5 - end)
    for row in range(6):
        assert solution_bank[row].tolist() == expected.get(row, [NO_SOLUTION] * 5)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return open_experiment(tiny(inpainting__source="own"), tmp_path_factory.mktemp("own") / "run")


def memory_of(experiment, texts: dict[int, str]) -> np.ndarray:
    """Returns the solution bank with these completions, {row of the problem: completion}."""
    solution_bank = np.full_like(experiment.rl_data.prompts.trace, NO_SOLUTION)
    for row, text in texts.items():
        tokens = experiment.tokenizer.encode(text)
        solution_bank[row] = tokens + [experiment.tokenizer.eos_id] * (solution_bank.shape[1] - len(tokens))
    return solution_bank


@pytest.mark.parametrize("id, known", [(NO_SOLUTION, True), (0, True), (-2, False), (-(2**31), False), (47, True), (48, False)])
def test_a_bank_with_ids_that_the_network_lacks_is_refused(id, known):
    bank = np.full((2, 3), NO_SOLUTION, np.int32)
    bank[1, 1] = id
    with contextlib.nullcontext() if known else pytest.raises(ValueError, match=r"rl/4: .* ids outside of \[0, 48\)"):
        require_known_ids(pathlib.Path("rl/4"), bank, 48)


OWN = {3: "# 43 63=63", 7: "~ ab cd=??", 8: "# 12=12", 9: "63=63", 10: ""}
SHOWN = {3: "# 43 __=", 7: "~ ab cd", 8: "# __=", 9: "__=", 10: ""}  # _: hidden; without an answer, three quarters


def test_own_solutions_are_shown_up_to_the_answer(experiment):
    order = np.array([9, 0, 3, 7, 10, 8])
    batch = take_rows(experiment.rl_data.prompts, order)
    found = with_own_solutions(experiment, batch, memory_of(experiment, OWN))
    for row, place in enumerate(order.tolist()):
        length = found.trace_length[row]
        text = experiment.tokenizer.decode(found.trace[row, :length].tolist())
        assert "".join(c if may else "_" for c, may in zip(text, found.hintable[row], strict=False)) == SHOWN.get(place, "")
    assert found.trace.dtype == found.trace_length.dtype == np.int32
    assert_same((found.tokens, found.prompt_mask, found.problem_id), (batch.tokens, batch.prompt_mask, batch.problem_id))


def test_with_the_released_switch_own_solutions_are_shown_whole(experiment):
    config = experiment.config
    shown = dataclasses.replace(config, inpainting=dataclasses.replace(config.inpainting, exclude_answer=False))
    whole = dataclasses.replace(experiment, config=shown)
    found = with_own_solutions(whole, experiment.rl_data.prompts, memory_of(experiment, OWN))
    assert {row: found.trace_length[row] for row in OWN} == {row: len(text) for row, text in OWN.items()}
    assert found.trace_length.sum() == sum(map(len, OWN.values()))


@pytest.mark.parametrize("policy", ["chunks", "prefix"])
def test_no_hint_of_an_own_solution_shows_its_answer(policy, experiment):
    sizes = {"chunk_min": 1, "chunk_max": 2} if policy == "chunks" else {}
    cfg = InpaintingConfig(policy=policy, source="own", ratio_min=0.0, ratio_max=1.0, **sizes)
    batch = with_own_solutions(experiment, experiment.rl_data.prompts, memory_of(experiment, OWN))
    canvas = np.full((len(batch.trace) * 64, batch.trace.shape[1]), NO_SOLUTION, np.int32)
    solution = batch.trace, batch.trace_length, batch.hintable
    filled, hint, _ = map(np.asarray, inpaint(jax.random.key(0), batch.problem_id, canvas, *solution, cfg))
    shown = hint.reshape(len(batch.trace), 64, -1).any(axis=1)
    for row, places in enumerate(shown):
        allowed = np.array([c != "_" for c in SHOWN.get(row, "").ljust(len(places), "_")])
        assert not places[~allowed].any(), "no more"
        assert policy == "prefix" or places[np.flatnonzero(allowed)[:-1]].all(), "nearly all, in 64 draws"
    assert (filled == np.repeat(batch.trace, 64, axis=0))[hint].all() and (filled[~hint] == NO_SOLUTION).all()


# ---------------------------------------------------------------------------------------------------------------------
# Several batches per iteration


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 6), st.data())
def test_mixed_groups_are_kept_in_order_and_the_last_batch_fills_up(batches, n, data):
    flags = data.draw(st.lists(st.booleans(), min_size=batches * n, max_size=batches * n))
    mixed = np.array(flags).reshape(batches, n)
    chosen = chosen_groups(mixed)
    assert len(chosen) == n and (np.diff(chosen) > 0).all()
    wanted = [place for place in range(batches * n) if mixed.flat[place]][:n]
    others = [place for place in range((batches - 1) * n, batches * n) if not mixed.flat[place]]
    assert sorted(wanted + others[: n - len(wanted)]) == chosen.tolist()
    if batches == 1:
        assert chosen.tolist() == list(range(n)), "one batch is taken as it is"


def three_batches(params, mesh):
    """Returns three rollouts, each with one mixed group, before or after hints; the second has shorter prompts."""
    tables = (
        {100: (WRONG, ONE), 101: (ALL, ALL), 102: (WRONG, WRONG), 103: (WRONG, WRONG)},
        {200: (ALL, ALL), 201: (ALL, ALL), 202: (ONE, ALL), 203: (ALL, ALL)},
        {300: (WRONG, WRONG), 301: (WRONG, WRONG), 302: (WRONG, ONE), 303: (ALL, ALL)},
    )
    return [
        run(params, mesh, table, prompts(first, width), seed, prompt_buckets=(3, 5))
        for table, first, width, seed in zip(tables, (100, 200, 300), (5, 3, 5), (1, 2, 3), strict=True)
    ]


def test_several_batches_become_one(params, mesh):
    parts = three_batches(params, mesh)
    assert np.argwhere(mixed_groups(parts)).tolist() == [[0, 0], [1, 2], [2, 2]]
    merged = merge(parts, CFG)
    groups = jax.tree.map(np.asarray, merged.groups)
    # The three mixed groups, and the first other group of the last batch.
    assert groups.problem_id.tolist() == [100, 202, 300, 302]
    places = [(0, 0), (1, 2), (2, 0), (2, 2)]
    for row, (part, group) in enumerate(places):
        taken, of = take_rows(groups, row), take_rows(jax.tree.map(np.asarray, parts[part].groups), group)
        assert_same(taken.replace(prompt=0, prompt_mask=0), of.replace(prompt=0, prompt_mask=0))
        np.testing.assert_array_equal(groups.prompt[row][groups.prompt_mask[row]], of.prompt[of.prompt_mask])
        assert_same(take_rows(merged.first, row), take_rows(parts[part].first, group))
        assert_same(merged.replaced[row], parts[part].replaced[group])
    assert not groups.prompt_mask[1, :2].any() and groups.prompt_mask[[0, 2, 3]].all()
    # Second attempts of the kept groups keep their places.
    assert merged.triggered.tolist() == [0, 2, 3]
    for row, (part, again) in enumerate([(0, 0), (2, 0), (2, 2)]):
        assert_same(take_rows(merged.second, row), take_rows(parts[part].second, again))


def test_what_is_logged_is_of_all_that_was_sampled(params, mesh):
    parts = three_batches(params, mesh)
    found, of = merge(parts, CFG).metrics, [part.metrics for part in parts]
    for name in ("reward/first_try", "correct/final", "groups/all_wrong_before", "groups/distinct", "hint/replaced"):
        assert found[name] == pytest.approx(np.mean([metrics[name] for metrics in of])), name
    assert found["hint/rescue_rate"] == pytest.approx(2 / 6)
    for name in ("sampler/rows", "sampler/prompts", "time/rollout", "time/reward"):
        assert found[name] == pytest.approx(sum(metrics[name] for metrics in of)), name
    assert found["sampler/prompts"] == 12 and set(found) == set(of[0])
    assert found["sampler/evaluations"] == pytest.approx(found["sampler/rows"] / ((4 + 4 + 4 + 4 + 4) * GROUP))


def test_merging_keeps_nothing_of_second_tries_that_are_not_taken(params, mesh):
    tables = {100: (WRONG, WRONG)} | {i: (ALL, ALL) for i in (101, 102, 103)}, {i: (ONE, ONE) for i in range(200, 204)}
    parts = [run(params, mesh, table, prompts(first)) for table, first in zip(tables, (100, 200), strict=True)]
    merged = merge(parts, CFG)
    assert np.asarray(merged.groups.problem_id).tolist() == [200, 201, 202, 203]
    assert parts[0].second is not None and merged.second is None and merged.triggered.size == 0
    assert "hint/rescue_rate" in merged.metrics


def test_one_batch_is_left_as_it_is(params, mesh):
    part = run(params, mesh)
    merged = merge([part], CFG)
    assert merged.first is part.first and merged.metrics is part.metrics
    jax.tree.map(np.testing.assert_array_equal, merged.groups, part.groups)


def test_every_batch_has_its_own_key():
    key = jax.random.key(3)
    assert (jax.random.key_data(key_of_batch(key, 0)) == jax.random.key_data(key)).all()
    purposes = [jax.random.fold_in(key, number) for number in range(20)]
    data = [tuple(jax.random.key_data(k).tolist()) for k in [key, *purposes, *(key_of_batch(key, i) for i in range(1, 20))]]
    assert len(set(data)) == len(data)


# ---------------------------------------------------------------------------------------------------------------------
# Metrics


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**31))
def test_completions_are_distinct_up_to_their_end(seed):
    tokens = np.random.default_rng(seed).integers(0, 3, (3, 4, 3)).astype(np.int32)
    shares = []
    for group in tokens.tolist():
        ended = {tuple(row[: row.index(EOS)]) if EOS in row else (*row, "goes on") for row in group}
        shares.append(len(ended) / len(group))
    assert distinct_share(tokens, EOS) == pytest.approx(np.mean(shares))


def test_the_work_of_a_rollout_is_logged_as_a_total(params, mesh):
    alone = run(params, mesh, inpainting=InpaintingConfig(enabled=False)).metrics
    both = run(params, mesh).metrics
    assert alone["sampler/rows"] == alone["sampler/evaluations"] * PROBLEMS * GROUP == 6 * PROBLEMS * GROUP
    assert alone["sampler/rows"] < both["sampler/rows"] <= 2 * alone["sampler/rows"]
    assert alone["sampler/prompts"] == both["sampler/prompts"] == PROBLEMS
    assert json.loads(json.dumps({name: float(value) for name, value in both.items()}))
