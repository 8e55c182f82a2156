"""Ids without text are never drawn by any sampler, and excluding them changes nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from igpo_jax.diffusion.denoise import initial_state
from igpo_jax.diffusion.sampler import HINT, canonical_sharding, denoise_block
from igpo_jax.diffusion.sampler_error import sampler_error
from igpo_jax.diffusion.stepwise import sample_stepwise
from igpo_jax.diffusion.unmasking import CACHES, COMMITS, REMASKINGS, DecodeConfig, gumbel_noise, propose
from igpo_jax.model.transformer import init, shardings
from igpo_jax.plan.hlo_cost import program_cost
from igpo_jax.runtime.mesh import shard_batch
from sampling import CFG, EOS, MASK, batch_of, decode

EXCLUDED = np.isin(np.arange(CFG.vocab_size), [0, 5, 6, *range(18, 24)])
TEXT = dataclasses.replace(CFG, never_drawn=((0, 1), (5, 7), (18, 24)))
SETTING = DecodeConfig(completion_length=8, block_length=4, steps=8, temperature=1.2)
PATHS = [
    *({"remasking": name} for name in REMASKINGS),
    *({"cache": name} for name in CACHES[1:]),
    *({"commit": name, "threshold": 0.3} for name in COMMITS[1:]),
    {"cfg_scale": 1.5},
    {"cfg_scale": 1.5, "cache": "dual", "commit": "threshold", "threshold": 0.3},
    {"logits_eos_inf": True, "confidence_eos_eot_inf": True},
    {"temperature": 0.0},
]


def drawn(done) -> np.ndarray:
    return np.asarray(done.tokens)[np.asarray(done.unmask_step) != HINT]


@pytest.mark.parametrize(
    "change", [pytest.param(change, marks=[pytest.mark.slow] * (change not in PATHS[::3])) for change in PATHS], ids=str
)
def test_no_sampler_draws_an_id_without_text(params, change):
    batch, setting = batch_of(rows=64), dataclasses.replace(SETTING, **change)
    before = drawn(decode(params, batch, setting))
    assert 0.1 < EXCLUDED[before].mean() < 0.6, "an untrained network must draw them if nothing excludes them"
    done = decode(params, batch, setting, TEXT)
    assert not EXCLUDED[drawn(done)].any() and not np.any(np.asarray(done.tokens) == MASK)
    assert setting.logits_eos_inf or setting.temperature == 0 or EOS in drawn(done)


@pytest.mark.slow
@pytest.mark.parametrize("change", [{}, {"cache": "dual", "cfg_scale": 1.5}, {"remasking": "entropy"}], ids=str)
def test_the_stepwise_sampler_neither_draws_nor_shows_them(params, change):
    steps, setting = [], dataclasses.replace(SETTING, **change)
    done = sample_stepwise(params, *batch_of(rows=16), TEXT, setting, steps.append)
    np.testing.assert_array_equal(done.tokens, decode(params, batch_of(rows=16), setting, TEXT).tokens)
    assert not EXCLUDED[drawn(done)].any()
    for step in steps[1:]:
        assert not EXCLUDED[step.likeliest].any() and np.isfinite(step.likelihood).all()


def test_hints_with_such_ids_stay(params):
    prompt, prompt_mask, canvas, keys = batch_of()
    canvas[:, 2] = 20
    done = decode(params, (prompt, prompt_mask, canvas, keys), SETTING, TEXT)
    np.testing.assert_array_equal(np.asarray(done.tokens)[:, 2], 20)
    assert not EXCLUDED[drawn(done)].any()


@pytest.mark.slow
def test_the_error_of_a_cached_sampler_stays_finite():
    cfg = dataclasses.replace(TEXT, layers=2)  # with one layer, a dual cache is exact
    error = sampler_error(init(jax.random.key(0), cfg), *batch_of(), cfg, dataclasses.replace(SETTING, cache="dual"))
    assert 0 < error["kl"] < np.inf


@pytest.mark.slow
@pytest.mark.parametrize("change", PATHS, ids=str)
def test_excluding_ids_that_are_impossible_anyway_changes_no_bit(params, change):
    """The noise of the other ids stays the same: here the network itself gives the excluded ids a probability of 0."""
    head = jnp.where(EXCLUDED, 0, params["head"]).at[0].set(jnp.where(EXCLUDED, -1e9, 0))
    without = params | {"head": head, "embedding": params["embedding"].at[:, 0].set(10)}  # the network keeps the sign of the 10
    batch, setting = batch_of(), dataclasses.replace(SETTING, **change)
    have, expected = decode(without, batch, setting, TEXT), decode(without, batch, setting)
    np.testing.assert_array_equal(have.tokens, expected.tokens)
    np.testing.assert_array_equal(have.unmask_step, expected.unmask_step)


@pytest.mark.parametrize("remasking", ["low_confidence", "position_first", "entropy"])
def test_the_confidence_of_a_token_is_the_same_as_without_exclusion(remasking):
    logits = jax.random.normal(jax.random.key(0), (4, 50, CFG.vocab_size)).at[..., MASK].set(-jnp.inf)
    gumbel = gumbel_noise(jax.random.split(jax.random.key(1), (4, 50)), CFG.vocab_size)
    setting = dataclasses.replace(SETTING, remasking=remasking)
    (drawn, confidence), (free, expected) = (propose(logits, gumbel, None, cfg, setting) for cfg in (TEXT, CFG))
    assert not EXCLUDED[drawn].any()
    same = ~EXCLUDED[np.argmax(logits, axis=-1) if remasking == "position_first" else free]
    assert 0.2 < same.mean() < 1
    np.testing.assert_array_equal(confidence[same], expected[same])
    np.testing.assert_array_equal(drawn[~EXCLUDED[free]], free[~EXCLUDED[free]])


@pytest.mark.slow
def test_a_split_vocabulary_draws_the_same_without_more_communication(params, mesh_of):
    mesh, batch = mesh_of((1, 2, 4)), batch_of()
    expected = decode(params, batch, SETTING, TEXT)
    with jax.set_mesh(mesh):
        split = jax.device_put(params, shardings(TEXT, mesh))
        inputs = (*shard_batch(batch[:3], mesh), batch[3])
        done = decode(split, inputs, SETTING, TEXT)
        received = [received_bytes(split, inputs, cfg) for cfg in (CFG, TEXT)]
    np.testing.assert_array_equal(done.tokens, expected.tokens)
    assert received[0] == received[1]


def received_bytes(params, inputs, cfg) -> dict:
    state = canonical_sharding(initial_state(*inputs, cfg, SETTING))
    return dict(program_cost(denoise_block.lower(params, state, np.int32(0), cfg, SETTING).compile().as_text()).received)
