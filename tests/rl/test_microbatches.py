"""Microbatches with their own prompt buckets: results are those of a batch that is padded to its longest prompt."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igpo_jax.data.buckets import bucket_of
from igpo_jax.model import lora as adapters
from igpo_jax.model.lora import LoraConfig
from igpo_jax.model.transformer import ModelConfig, init, shardings
from igpo_jax.rl.likelihood import GroupBatch, LikelihoodConfig, views_of
from igpo_jax.rl.microbatches import Microbatches, at_bucket, sort_by_length
from igpo_jax.rl.objective import ObjectiveConfig, compute_logprobs
from igpo_jax.rl.update import make_update
from igpo_jax.runtime.mesh import join_rows, shard_batch, split_rows
from igpo_jax.training.policy import Policy
from igpo_jax.training.state import create_state

CFG = ModelConfig(vocab_size=40, mask_id=1, eos_id=2, width=32, layers=2, heads=4, kv_heads=2, mlp_width=40, head_chunk=16)
LORA = LoraConfig(rank=2, alpha=4.0)
LENGTHS = (3, 12, 1, 4, 9, 2, 4, 11)
BUCKETS = (2, 4, 8, 12)


def batch_of(lengths, padded: int, g: int = 2, length: int = 6) -> GroupBatch:
    draw, n = np.random.default_rng(0), len(lengths)
    mask = np.arange(padded) >= padded - np.array(lengths)[:, None]
    return GroupBatch(
        prompt=np.where(mask, draw.integers(3, CFG.vocab_size, (n, padded)), 0).astype(np.int32),
        prompt_mask=mask,
        problem_id=draw.permutation(100)[:n].astype(np.uint32),
        completions=draw.integers(2, CFG.vocab_size, (n, g, length), dtype=np.int32),
        unmask_step=draw.integers(0, 6, (n, g, length), dtype=np.int32),
        loss_mask=np.arange(length) < draw.integers(2, length + 1, (n, g, 1)),
        advantages=draw.normal(size=(n, g)).astype(np.float32),
    )


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(1, 4))
def test_parts_have_consecutive_lengths(each, number):
    lengths = [size for size in each for _ in range(number)]
    groups = batch_of(lengths, 12)
    ordered = sort_by_length(groups, number)
    parts = split_rows(ordered, number)
    found = np.asarray(parts.prompt_mask.sum(axis=-1))
    np.testing.assert_array_equal(found.reshape(-1), np.sort(lengths))
    back = join_rows(parts)
    one, other = np.argsort(np.asarray(back.problem_id)), np.argsort(groups.problem_id)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a)[one], b[other]), back, groups)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.sets(st.integers(1, 12)), st.integers(1, 3))
def test_a_part_is_computed_in_the_smallest_bucket_that_holds_it(lengths, smaller, number):
    buckets = (*sorted(smaller - {12}), 12)
    batch = batch_of(lengths, 12)
    views = jax.tree.map(lambda x: x[0], views_of(jax.random.key(0), batch, LikelihoodConfig()))
    width = at_bucket(lambda batch, views: jnp.int32(batch.prompt.shape[1]), batch, views, Microbatches(number, buckets))
    assert width == (bucket_of(max(lengths), buckets) if number > 1 else 12)


def step(mesh, parts: Microbatches, objective: ObjectiveConfig, adapted: bool):
    """Returns the statistics and the parameters after a plain SGD step, whose change is the gradient."""
    policy = Policy(CFG, LORA if adapted else None)
    start, reference = (jax.device_put(init(jax.random.key(seed), CFG), shardings(CFG, mesh)) for seed in (0, 1))
    trained, base = start, None
    if adapted:
        trained, base = jax.tree.map(lambda x: x + 0.05, adapters.init(jax.random.key(2), CFG, LORA)), start
    state = create_state(trained, optax.sgd(1.0), policy, mesh)
    groups = shard_batch(sort_by_length(batch_of(LENGTHS, BUCKETS[-1]), parts.number), mesh)
    with jax.set_mesh(mesh):
        old = policy.for_sampling(state.params, base, mesh)
        logprobs = compute_logprobs(old, reference, groups, jax.random.key(3), CFG, objective, mesh, parts)
        state, statistics = make_update(optax.sgd(1.0), policy, objective, mesh, parts)(state, groups, logprobs, 0, base)
    order = np.argsort(np.asarray(groups.problem_id))
    scores = [np.asarray(x)[:, order] for x in (logprobs.old, logprobs.reference, logprobs.entropy, logprobs.loss_mask)]
    return jax.device_get((scores, statistics, state.params))


@pytest.mark.parametrize("shape, parts, objective, adapted", [
    ((1, 1, 1), 8, ObjectiveConfig(kl_coefficient=0.3), False),
    ((1, 2, 2), 4, ObjectiveConfig(kl_coefficient=0.3), True),
    ((2, 2, 2), 2, ObjectiveConfig("prompt_masked", kl_coefficient=0.3), False),
    ((1, 1, 2), 4, ObjectiveConfig("coupled", 2, ratio="token", kl="k2", kl_coefficient=0.3), False),
])  # fmt: skip
def test_results_are_those_of_one_part(shape, parts, objective, adapted, mesh_of):
    have = step(mesh_of(shape), Microbatches(parts, BUCKETS), objective, adapted)
    want = step(mesh_of((1, 1, 1)), Microbatches(), objective, adapted)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6), have, want)
