import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from igpo_jax.diffusion.sampler import completion_keys, initial_state, sample
from igpo_jax.diffusion.sampler_error import block_errors, divergence, sampler_error
from igpo_jax.diffusion.unmasking import DecodeConfig
from igpo_jax.model.transformer import ModelConfig, init, shardings
from igpo_jax.runtime.mesh import shard_batch

MASK = 1
CFG = ModelConfig(vocab_size=16, mask_id=MASK, eos_id=2, width=32, layers=2, heads=4, kv_heads=2, mlp_width=32)
CACHED = DecodeConfig(completion_length=8, block_length=4, steps=8, temperature=0.8, cache="dual")


@pytest.fixture(scope="module")
def params():
    params = jax.jit(init, static_argnums=1)(jax.random.key(0), CFG)
    params["blocks"]["attention_out"] *= 4
    return params | {"head": params["head"] * 3}


def batch(rows=8):
    draw = np.random.default_rng(1)
    prompt = draw.integers(3, CFG.vocab_size, (rows, 5), dtype=np.int32)
    keys = completion_keys(jax.random.key(3), np.arange(rows, dtype=np.uint32), np.zeros(rows, np.uint32), 0)
    return prompt, np.ones((rows, 5), bool), np.full((rows, 8), MASK, np.int32), keys


def test_divergence_is_that_of_the_definition():
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.2, 0.2, 0.6])
    found = divergence(jnp.log(jnp.array([*p, 0.0])), jnp.log(jnp.array([*q, 0.0])) + 3)
    assert float(found) == pytest.approx(float(np.sum(p * np.log(p / q))), rel=1e-5)


@pytest.mark.slow
def test_a_cache_that_is_always_new_has_no_error(params):
    error = sampler_error(params, *batch(), CFG, dataclasses.replace(CACHED, refresh=1))
    assert error["kl"] < 1e-6 and error["changed"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_the_error_is_made_between_refreshes_only(cache, params):
    error = sampler_error(params, *batch(), CFG, dataclasses.replace(CACHED, cache=cache, refresh=2))
    by_step = np.array(error["kl_by_step"])
    assert (np.abs(by_step[::2]) < 1e-6).all() and (by_step[1::2] > 1e-5).all()
    whole = sampler_error(params, *batch(), CFG, dataclasses.replace(CACHED, cache=cache))
    assert whole["kl"] > error["kl"] and len(whole["kl_by_step"]) == 4
    assert 0 <= whole["changed"] <= 1


@pytest.mark.slow
def test_what_is_measured_is_the_sampler_itself(params):
    """The measured canvases equal those of `sample`."""
    rows = initial_state(*batch(), CFG, CACHED)
    for block in range(2):
        rows, _ = block_errors(params, rows, np.int32(block), CFG, CACHED)
    np.testing.assert_array_equal(rows.tokens, sample(params, *batch(), CFG, CACHED).tokens)


@pytest.mark.slow
def test_the_mesh_changes_nothing(params, mesh_of):
    plain, mesh = sampler_error(params, *batch(), CFG, CACHED), mesh_of((2, 2, 2))
    prompt, prompt_mask, canvas, keys = batch()
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, shardings(CFG, mesh))
        sharded = sampler_error(placed, *shard_batch((prompt, prompt_mask, canvas), mesh), keys, CFG, CACHED)
    assert sharded["kl"] == pytest.approx(plain["kl"], rel=1e-3) and sharded["changed"] == plain["changed"]
