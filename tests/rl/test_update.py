import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adapter_gradients import assert_chain_rule
from igpo_jax.diffusion.sampler import HINT, completion_keys, denoise_block, sample
from igpo_jax.diffusion.unmasking import DecodeConfig
from igpo_jax.model import lora as lora_module
from igpo_jax.model.lora import LoraConfig
from igpo_jax.model.transformer import ModelConfig, init, shardings
from igpo_jax.rl.likelihood import GroupBatch
from igpo_jax.rl.objective import ObjectiveConfig, advantages, compute_logprobs, loss_and_statistics
from igpo_jax.rl.update import make_update
from igpo_jax.runtime.mesh import shard_batch
from igpo_jax.training.policy import Policy
from igpo_jax.training.state import OptimizerConfig, create_state, make_optimizer

# Unique vocabulary size, so that no other test has compiled these programs.
CFG = ModelConfig(vocab_size=32, mask_id=1, eos_id=2, width=32, layers=1, heads=4, kv_heads=2, mlp_width=32, head_chunk=16)
DECODE = DecodeConfig(completion_length=6, block_length=3, steps=4, temperature=1.0)
N, G, P_LENGTH, LENGTH = 8, 2, 5, 6


def make_batch(seed=0):
    draw = np.random.default_rng(seed)
    return GroupBatch(
        prompt=draw.integers(3, CFG.vocab_size, (N, P_LENGTH), dtype=np.int32),
        prompt_mask=np.arange(P_LENGTH) >= draw.integers(0, 3, N)[:, None],
        problem_id=np.arange(N, dtype=np.uint32),
        completions=draw.integers(2, CFG.vocab_size, (N, G, LENGTH), dtype=np.int32),
        unmask_step=np.where(draw.uniform(size=(N, G, LENGTH)) < 0.4, HINT, 0).astype(np.int32),
        loss_mask=np.ones((N, G, LENGTH), bool),
        advantages=np.tile(np.array([0.5, -0.5], np.float32), (N, 1)),
    )


def start(mesh, **optimizer):
    """Returns (initial parameters, state, optimizer)."""
    params = jax.jit(init, static_argnums=1, out_shardings=shardings(CFG, mesh))(jax.random.key(0), CFG)
    made = make_optimizer(OptimizerConfig(**(dict(learning_rate=1e-2, warmup_steps=0) | optimizer)), 100, Policy(CFG))
    return params, create_state(params, made, Policy(CFG), mesh), made


@pytest.mark.slow
def test_each_program_is_compiled_once(mesh_of):
    mesh, objective = mesh_of((2, 1, 2)), ObjectiveConfig(inner_steps=2)
    reference, state, optimizer = start(mesh)
    update = make_update(optimizer, Policy(CFG), objective, mesh, microbatches=2)
    programs = {"sample": denoise_block, "score": compute_logprobs, "update": update}
    before = {name: program._cache_size() for name, program in programs.items()}
    with jax.set_mesh(mesh):
        for step in range(3):
            batch = make_batch(step)
            canvas = np.full((N * G, LENGTH), CFG.mask_id, np.int32)
            rows = shard_batch((np.repeat(batch.prompt, G, 0), np.repeat(batch.prompt_mask, G, 0), canvas), mesh)
            problem, completion = np.repeat(batch.problem_id, G), np.tile(np.arange(G, dtype=np.uint32), N)
            keys = completion_keys(jax.random.key(step), problem, completion, 0)
            tokens = jax.device_get(sample(state.params, *rows, keys, CFG, DECODE).tokens).reshape(N, G, LENGTH)
            rewards = (tokens > 15).mean(axis=-1, dtype=np.float32)
            batch = batch.replace(completions=tokens, advantages=advantages(rewards, np.ones((N, G), bool), False))
            batch = shard_batch(batch, mesh)
            logprobs = compute_logprobs(state.params, reference, batch, jax.random.key(step), CFG, objective, mesh)
            for inner_step in range(objective.inner_steps):
                state, _ = update(state, batch, logprobs, jnp.int32(inner_step))
    compiled = {name: program._cache_size() - before[name] for name, program in programs.items()}
    assert compiled == {"sample": 1, "score": 1, "update": 1}
    assert state.step == 6


@pytest.mark.slow
def test_state_is_donated_and_the_callers_parameters_are_not(mesh):
    params, state, optimizer = start(mesh)
    batch, objective = make_batch(), ObjectiveConfig()
    logprobs = compute_logprobs(params, params, batch, jax.random.key(0), CFG, objective, mesh)
    following, statistics = make_update(optimizer, Policy(CFG), objective, mesh)(state, batch, logprobs, jnp.int32(0))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.opt_state)))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((params, following)))
    assert following.step == 1
    assert statistics["policy/grad_norm"] > 0
    for (path, old), new in zip(jax.tree.leaves_with_path(params), jax.tree.leaves(following.params), strict=True):
        assert not np.array_equal(old, new), jax.tree_util.keystr(path)


@pytest.mark.slow
def test_moments_lie_where_their_parameters_lie(mesh_of):
    mesh, objective, batch = mesh_of((2, 2, 2)), ObjectiveConfig(), make_batch()
    params, state, optimizer = start(mesh)
    with jax.set_mesh(mesh):
        batch = shard_batch(batch, mesh)
        logprobs = compute_logprobs(params, params, batch, jax.random.key(0), CFG, objective, mesh)
        updated, _ = make_update(optimizer, Policy(CFG), objective, mesh)(state, batch, logprobs, jnp.int32(0))
    adam = optax.tree.get(updated.opt_state, "ScaleByAdamState")
    for tree in (updated.params, adam.mu, adam.nu):
        for have, want in zip(jax.tree.leaves(tree), jax.tree.leaves(shardings(CFG, mesh)), strict=True):
            assert have.sharding.is_equivalent_to(want, have.ndim)
    assert adam.count.sharding.is_fully_replicated and updated.step.sharding.is_fully_replicated


def test_updates_raise_the_likelihood_of_what_was_rewarded(mesh):
    params, state, optimizer = start(mesh, weight_decay=0.0)
    objective = ObjectiveConfig(kl_coefficient=0.0)
    batch = make_batch()
    logprobs = compute_logprobs(params, params, batch, jax.random.key(0), CFG, objective, mesh)
    update = make_update(optimizer, Policy(CFG), objective, mesh)
    losses = []
    for _ in range(3):
        state, statistics = update(state, batch, logprobs, jnp.int32(0))
        losses.append(float(statistics["policy/loss"]))
    after = compute_logprobs(state.params, params, batch, jax.random.key(0), CFG, objective, mesh)
    rise = jnp.sum((after.old - logprobs.old)[:, :, 0], axis=-1, where=logprobs.loss_mask)[0].mean(axis=0)
    assert rise[0] > 0 > rise[1]
    assert losses[0] == pytest.approx(0, abs=1e-5) and losses[1] < -0.01


@pytest.mark.slow
def test_each_inner_step_uses_its_own_masks(mesh):
    params, _, optimizer = start(mesh)
    objective, batch = ObjectiveConfig(estimator="masked", inner_steps=2, kl_coefficient=1.0), make_batch()
    reference = jax.tree.map(lambda x: 0.9 * x, params)
    logprobs = compute_logprobs(params, reference, batch, jax.random.key(0), CFG, objective, mesh)
    update = make_update(optimizer, Policy(CFG), objective, mesh)
    loss = jax.jit(lambda params, part: loss_and_statistics(params, batch, part, CFG, objective, mesh)[0])
    losses = []
    for inner_step in range(2):
        _, statistics = update(create_state(params, optimizer, Policy(CFG), mesh), batch, logprobs, jnp.int32(inner_step))
        part = jax.tree.map(lambda x, i=inner_step: x[i], logprobs)
        expected = loss(params, part)
        assert statistics["policy/loss"] == pytest.approx(float(expected), rel=1e-4)
        losses.append(float(expected))
    assert abs(losses[0] - losses[1]) > 1e-3


@pytest.mark.slow
def test_norm_scales_do_not_decay(mesh):
    """Without a gradient, only decay changes the parameters."""
    params, state, optimizer = start(mesh, weight_decay=0.1)
    objective, batch = ObjectiveConfig(kl_coefficient=0.0), make_batch().replace(advantages=np.zeros((N, G), np.float32))
    logprobs = compute_logprobs(params, params, batch, jax.random.key(0), CFG, objective, mesh)
    state, _ = make_update(optimizer, Policy(CFG), objective, mesh)(state, batch, logprobs, jnp.int32(0))
    for name in ("attention_norm", "mlp_norm"):
        np.testing.assert_array_equal(state.params["blocks"][name], params["blocks"][name])
    np.testing.assert_allclose(state.params["blocks"]["query"], params["blocks"]["query"] * (1 - 1e-3), rtol=1e-5)


@pytest.mark.slow
def test_a_first_moment_in_bfloat16_takes_half_the_bytes_and_learns_the_same(mesh):
    params, state, _ = start(mesh)
    _, short, optimizer = start(mesh, first_moment_dtype="bfloat16")
    moments = optax.tree.get(short.opt_state, "ScaleByAdamState")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(moments.mu)} == {"bfloat16"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves((moments.nu, short.params))} == {"float32"}
    batch, objective = make_batch(), ObjectiveConfig()
    logprobs = compute_logprobs(params, params, batch, jax.random.key(0), CFG, objective, mesh)
    updates = [make_update(start(mesh)[2], Policy(CFG), objective, mesh), make_update(optimizer, Policy(CFG), objective, mesh)]
    for _ in range(3):
        state, short = (update(s, batch, logprobs, jnp.int32(0))[0] for update, s in zip(updates, (state, short), strict=True))
    for have, want, first in zip(*map(jax.tree.leaves, (short.params, state.params, params)), strict=True):
        moved = np.abs(want - first).max()
        assert moved > 0 and np.abs(have - want).max() < 0.05 * moved


# Adapters of a frozen model

LORA = LoraConfig(rank=3, alpha=6.0)


def start_adapters(mesh):
    """Returns (frozen parameters in bfloat16, adapters, state, optimizer)."""
    cfg = dataclasses.replace(CFG, param_dtype="bfloat16")
    frozen = jax.jit(init, static_argnums=1, out_shardings=shardings(cfg, mesh))(jax.random.key(0), cfg)
    placed = lora_module.shardings(CFG, LORA, mesh)
    adapters = jax.jit(lora_module.init, static_argnums=(1, 2), out_shardings=placed)(jax.random.key(1), CFG, LORA)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2, warmup_steps=0), 100, Policy(CFG, LORA))
    return frozen, adapters, create_state(adapters, optimizer, Policy(CFG, LORA), mesh), optimizer


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2)])
def test_an_update_of_adapters_changes_nothing_else(shape, mesh_of):
    mesh, objective = mesh_of(shape), ObjectiveConfig()
    frozen, adapters, state, optimizer = start_adapters(mesh)
    before = jax.tree.map(np.asarray, frozen)
    with jax.set_mesh(mesh):
        batch = shard_batch(make_batch(), mesh)
        policy = Policy(CFG, LORA).assemble(state.params, frozen)
        logprobs = compute_logprobs(policy, frozen, batch, jax.random.key(0), CFG, objective, mesh)
        np.testing.assert_array_equal(logprobs.old, logprobs.reference)  # B is zero at first
        update = make_update(optimizer, Policy(CFG, LORA), objective, mesh)
        state, statistics = update(state, batch, logprobs, jnp.int32(0), frozen)
        assert statistics["policy/ratio_mean"] == pytest.approx(1, abs=1e-6)
        assert statistics["policy/kl"] == pytest.approx(0, abs=1e-6)
        state, statistics = update(state, batch, logprobs, jnp.int32(1), frozen)
        assert abs(float(statistics["policy/ratio_mean"]) - 1) > 1e-5 and float(statistics["policy/kl"]) > 1e-6
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, frozen), before)
    assert jax.tree.structure(state.params) == jax.tree.structure(adapters)
    moments = optax.tree.get(state.opt_state, "ScaleByAdamState")
    assert jax.tree.structure(moments.mu) == jax.tree.structure(adapters)
    for leaf, moment, first in zip(*map(jax.tree.leaves, (state.params, moments.nu, adapters)), strict=True):
        assert leaf.dtype == moment.dtype == jnp.float32 and not np.array_equal(leaf, first)
        assert leaf.sharding.is_equivalent_to(first.sharding, 3) and moment.sharding.is_equivalent_to(first.sharding, 3)


@pytest.mark.slow
def test_gradients_of_adapters_follow_from_those_of_the_full_parametrisation(mesh):
    """Uses gradients of the objective at a ratio other than 1."""
    objective = ObjectiveConfig(kl_coefficient=0.5, clip_low=0.9, clip_high=9.0)
    _, adapters, _, _ = start_adapters(mesh)
    frozen = jax.jit(init, static_argnums=1)(jax.random.key(0), CFG)
    adapters = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), adapters)
    batch = make_batch()
    logprobs = compute_logprobs(frozen, frozen, batch, jax.random.key(0), CFG, objective, mesh)
    part = jax.tree.map(lambda x: x[0], logprobs)

    def loss(params):
        return loss_and_statistics(params, batch, part, CFG, objective, mesh)[0]

    found = jax.jit(jax.grad(lambda trained: loss(Policy(CFG, LORA).assemble(trained, frozen))))(adapters)
    full = jax.jit(jax.grad(loss))(lora_module.merge(frozen, adapters, LORA))["blocks"]
    assert_chain_rule(found, full, adapters, LORA, least=1e-6, rtol=2e-3, atol=1e-7)
