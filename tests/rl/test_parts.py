"""Parts of a batch with their own prompt buckets: results are those of a batch that is padded to its longest prompt."""

import jax
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igpo_jax.data.buckets import bucket_of
from igpo_jax.model import lora as adapters
from igpo_jax.model.lora import LoraConfig
from igpo_jax.model.transformer import ModelConfig, init, shardings
from igpo_jax.rl.likelihood import GroupBatch
from igpo_jax.rl.objective import ObjectiveConfig, compute_logprobs
from igpo_jax.rl.parts import make_update_of_parts, part_programs, split_by_length
from igpo_jax.rl.update import make_update
from igpo_jax.runtime.mesh import shard_batch
from igpo_jax.training.policy import Policy
from igpo_jax.training.state import OptimizerConfig, create_state, make_optimizer

CFG = ModelConfig(vocab_size=40, mask_id=1, eos_id=2, width=32, layers=2, heads=4, kv_heads=2, mlp_width=40, head_chunk=16)
LORA = LoraConfig(rank=2, alpha=4.0)
LENGTHS = (3, 12, 1, 4, 9, 2, 4, 11)
BUCKETS = (2, 4, 8, 12)
MEAN_FIELD = ObjectiveConfig(kl_coefficient=0.3)
COUPLED = ObjectiveConfig("coupled", 2, ratio="token", kl="k2", kl_coefficient=0.3)


def batch_of(lengths, padded: int, g: int = 2, length: int = 6) -> GroupBatch:
    draw, n = np.random.default_rng(0), len(lengths)
    mask = np.arange(padded) >= padded - np.array(lengths)[:, None]
    return GroupBatch(
        prompt=np.where(mask, draw.integers(3, CFG.vocab_size, (n, padded)), 0).astype(np.int32),
        prompt_mask=mask,
        problem_id=draw.permutation(100)[:n].astype(np.uint32),
        completions=draw.integers(2, CFG.vocab_size, (n, g, length), dtype=np.int32),
        unmask_step=draw.integers(-1, 6, (n, g, length), dtype=np.int32),
        loss_mask=np.arange(length) < draw.integers(2, length + 1, (n, g, 1)),
        advantages=draw.normal(size=(n, g)).astype(np.float32),
    )


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(1, 4), st.sets(st.integers(1, 12)))
def test_parts_have_prompts_of_similar_length_in_their_own_bucket(each, number, smaller):
    lengths, buckets = [size for size in each for _ in range(number)], (*sorted(smaller - {12}), 12)
    groups = batch_of(lengths, 12)
    parts = split_by_length(
        groups, number, buckets, jax.make_mesh((1, 1, 1), ("data", "fsdp", "tensor"), devices=jax.devices()[:1])
    )
    assert {len(part.problem_id) for part in parts} == {len(each)} and len(parts) == number
    found = [np.asarray(part.prompt_mask).sum(axis=1) for part in parts]
    if number > 1:
        np.testing.assert_array_equal(np.concatenate(found), np.sort(lengths))
        assert [part.prompt.shape[1] for part in parts] == [bucket_of(sizes.max(), buckets) for sizes in found]
    rows = {int(name): row for row, name in enumerate(groups.problem_id)}
    for part in jax.device_get(parts):
        width = part.prompt.shape[1]
        wanted = jax.tree.map(lambda x: x[[rows[name] for name in part.problem_id.tolist()]], groups)
        wanted = wanted.replace(prompt=wanted.prompt[:, -width:], prompt_mask=wanted.prompt_mask[:, -width:])
        jax.tree.map(np.testing.assert_array_equal, part, wanted)


def start(mesh, policy: Policy, optimizer):
    """Returns (state, frozen parameters or None, reference)."""
    base, reference = (jax.device_put(init(jax.random.key(seed), CFG), shardings(CFG, mesh)) for seed in (0, 1))
    if policy.lora is None:
        return create_state(base, optimizer, policy, mesh), None, reference
    trained = jax.tree.map(lambda x: x + 0.05, adapters.init(jax.random.key(2), CFG, LORA))
    return create_state(trained, optimizer, policy, mesh), base, reference


def step(mesh, number: int, objective: ObjectiveConfig, adapted: bool):
    """Returns log-probabilities in the order of problem ids, statistics of an update of `number` parts, and the parameters after
    a plain SGD step, whose change is the gradient."""
    policy, optimizer = Policy(CFG, LORA if adapted else None), optax.sgd(1.0)
    state, base, reference = start(mesh, policy, optimizer)
    parts = split_by_length(batch_of(LENGTHS, BUCKETS[-1]), number, BUCKETS, mesh)
    with jax.set_mesh(mesh):
        old = policy.for_sampling(state.params, base, mesh)
        scores = [compute_logprobs(old, reference, part, jax.random.key(3), CFG, objective, mesh) for part in parts]
        update = make_update_of_parts(optimizer, policy, objective, mesh, number, number)
        state, statistics = update(state, parts, scores, np.int32(0), base)
    order = np.argsort(np.concatenate([np.asarray(part.problem_id) for part in parts]))
    names = "old", "reference", "entropy", "loss_mask"
    joined = {name: np.concatenate([getattr(of, name) for of in scores], axis=1)[:, order] for name in names}
    return jax.device_get((joined, statistics, state.params))


def test_results_are_those_of_one_part(mesh_of):
    assert_same_results((1, 1, 1), 2, MEAN_FIELD, True, mesh_of)


@pytest.mark.slow
@pytest.mark.parametrize("shape, number, objective, adapted", [
    (shape, number, objective, adapted)
    for shape, number in [((1, 1, 1), 8), ((1, 2, 2), 4), ((2, 2, 2), 2)]
    for objective in (MEAN_FIELD, COUPLED) for adapted in (False, True)
])  # fmt: skip
def test_results_are_those_of_one_part_on_all_meshes(shape, number, objective, adapted, mesh_of):
    assert_same_results(shape, number, objective, adapted, mesh_of)


def assert_same_results(shape, number, objective, adapted, mesh_of) -> None:
    have = step(mesh_of(shape), number, objective, adapted)
    want = step(mesh_of((1, 1, 1)), 1, objective, adapted)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6), have, want)
    before = jax.device_get(start(mesh_of((1, 1, 1)), Policy(CFG, LORA if adapted else None), optax.sgd(1.0))[0].params)
    changes = jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), want[2], before))
    assert max(changes) > 100 * 2e-6  # of parameters, by gradients


@pytest.mark.slow
def test_a_program_is_compiled_for_each_bucket_and_sums_are_donated(mesh_of):
    mesh, policy = mesh_of((1, 2, 2)), Policy(CFG, LORA)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2, warmup_steps=0), 100, policy)
    state, base, reference = start(mesh, policy, optimizer)
    programs = part_programs(optimizer, policy, MEAN_FIELD, mesh)
    scored = compute_logprobs._cache_size()
    with jax.set_mesh(mesh):
        for seed in range(3):
            draw = np.random.default_rng(seed)
            parts = split_by_length(batch_of(draw.integers(1, 13, 16), BUCKETS[-1]), 4, BUCKETS, mesh)
            old, total, statistics = policy.for_sampling(state.params, base, mesh), programs.zeros(), []
            for part in parts:
                scores = compute_logprobs(old, reference, part, jax.random.key(seed), CFG, MEAN_FIELD, mesh)
                before = total
                total, found = programs.add_gradients(total, state.params, part, scores, np.int32(0), base)
                assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
                statistics.append(found)
            given_state, (state, _) = state, programs.apply(state, total, statistics)
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves((given_state.params, given_state.opt_state)))
    assert programs.zeros._cache_size() == programs.apply._cache_size() == 1 and state.step == 3
    assert 1 < programs.add_gradients._cache_size() <= len(BUCKETS)
    assert compute_logprobs._cache_size() - scored <= len(BUCKETS)


@pytest.mark.slow
def test_a_part_that_is_not_finite_skips_the_update(mesh):
    policy, optimizer = Policy(CFG), optax.sgd(1.0)
    state, _, reference = start(mesh, policy, optimizer)
    before, parts = jax.device_get(state.params), split_by_length(batch_of(LENGTHS, 12), 2, BUCKETS, mesh)
    parts[1] = parts[1].replace(advantages=parts[1].advantages.at[0, 0].set(np.nan))
    with jax.set_mesh(mesh):
        scores = [compute_logprobs(state.params, reference, part, jax.random.key(3), CFG, MEAN_FIELD, mesh) for part in parts]
        state, statistics = make_update_of_parts(optimizer, policy, MEAN_FIELD, mesh, 2, 2)(
            state, parts, scores, np.int32(0), None
        )
    assert not np.isfinite(statistics["policy/loss"]) and not statistics["finite_gradients"].all()
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), before)


@pytest.mark.slow
def test_one_part_is_updated_by_the_program_with_microbatches(mesh):
    """Bit for bit, as long as there is one prompt bucket."""
    policy, optimizer = Policy(CFG), optax.sgd(1.0)
    groups, results = batch_of(LENGTHS, 12), []
    for update in (
        make_update(optimizer, policy, MEAN_FIELD, mesh, 4),
        make_update_of_parts(optimizer, policy, MEAN_FIELD, mesh, 1, 4),
    ):
        state, _, reference = start(mesh, policy, optimizer)
        [part] = split_by_length(groups, 1, (12,), mesh)
        jax.tree.map(np.testing.assert_array_equal, part, shard_batch(groups, mesh))
        with jax.set_mesh(mesh):
            scores = compute_logprobs(state.params, reference, part, jax.random.key(3), CFG, MEAN_FIELD, mesh, 4)
            given = (part, scores) if not results else ([part], [scores])
            results.append(jax.device_get(update(state, *given, np.int32(0), None)))
    jax.tree.map(np.testing.assert_array_equal, *results)
