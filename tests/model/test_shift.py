"""Models that predict a token from the position before it, as Dream does: every part that reads logits knows of the shift."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from igpo_jax.api import DiffusionLM
from igpo_jax.data.pipeline import require_prompts
from igpo_jax.diffusion.corruption import Corruption, sft_loss
from igpo_jax.diffusion.denoise import Block, initial_state
from igpo_jax.diffusion.unmasking import DecodeConfig
from igpo_jax.model.transformer import forward, init, shardings, unembed
from igpo_jax.rl.likelihood import ESTIMATORS, GroupBatch
from igpo_jax.rl.objective import ObjectiveConfig, compute_logprobs, loss_and_statistics
from igpo_jax.runtime.mesh import shard_batch
from sampling import CFG, DECODE, MASK, batch_of, decode

SHIFTED = dataclasses.replace(CFG, shift=True, layers=2)
PLAIN = dataclasses.replace(SHIFTED, shift=False)
SCANNED = dataclasses.replace(SHIFTED, layers=6)


@functools.partial(jax.jit, static_argnames=("cfg", "size"))
def logits_of(params, tokens, mask, cfg, start=None, size=None):
    return unembed(params, forward(params, tokens, mask, cfg, None if size is None else (start, size)), cfg)


def make(cfg, seed=0):
    return jax.jit(init, static_argnums=1)(jax.random.key(seed), cfg)


@pytest.mark.parametrize("cfg", [SHIFTED, SCANNED], ids=["unrolled", "scanned"])
def test_logits_are_the_unshifted_ones_rolled_by_one(cfg):
    params, (prompt, prompt_mask, canvas, _) = make(cfg), batch_of(rows=3)
    tokens, mask = np.concatenate([prompt, canvas], axis=1), np.pad(prompt_mask, ((0, 0), (0, 8)), constant_values=True)
    plain = np.asarray(logits_of(params, tokens, mask, dataclasses.replace(cfg, shift=False)))
    shifted = np.asarray(logits_of(params, tokens, mask, cfg))
    np.testing.assert_allclose(shifted[:, 1:], plain[:, :-1], atol=1e-5)
    np.testing.assert_allclose(shifted[:, 0], plain[:, 0], atol=1e-5)
    for start, size in ((5, 8), (7, 2), (1, 12)):
        part = logits_of(params, tokens, mask, cfg, jnp.int32(start), size)
        np.testing.assert_allclose(part, plain[:, start - 1 : start + size - 1], atol=1e-5)


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("cfg_scale", [0.0, 1.5])
def test_a_window_after_a_full_evaluation_gives_the_same_logits(cache, cfg_scale):
    """Nothing has changed since the keys and values were cached, so every block must see the same."""
    params, setting = make(SHIFTED), dataclasses.replace(DECODE, cache=cache, cfg_scale=cfg_scale)
    prompt, prompt_mask, canvas, keys = batch_of()
    state = initial_state(prompt, prompt_mask, canvas, keys, SHIFTED, setting)

    @jax.jit
    def both(number):
        block = Block.begin(params, state, number, SHIFTED, setting)
        full, kept = block.full_forward(state.tokens)
        return full, block.cached_forward(state.tokens, kept)

    for number in range(setting.blocks):
        full, cached = both(jnp.int32(number))
        np.testing.assert_allclose(cached, full, atol=1e-5)


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_completions_with_a_cache_that_is_made_anew_and_on_meshes_are_those_without(cache, mesh_of):
    params, setting = make(SHIFTED), dataclasses.replace(DECODE, steps=8)
    exact = decode(params, batch_of(), setting, SHIFTED)
    cached = dataclasses.replace(setting, cache=cache, refresh=int(cache != "none"))
    np.testing.assert_array_equal(decode(params, batch_of(), cached, SHIFTED).tokens, exact.tokens)
    mesh, (*arrays, keys) = mesh_of((2, 2, 2)), batch_of()
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, shardings(SHIFTED, mesh))
        sharded = decode(placed, (*shard_batch(tuple(arrays), mesh), keys), cached, SHIFTED)
    np.testing.assert_array_equal(sharded.tokens, exact.tokens)
    unshifted = decode(params, batch_of(), setting, PLAIN)
    assert (np.asarray(unshifted.tokens) != np.asarray(exact.tokens)).any()


def test_a_greedy_sampler_reads_the_position_before():
    """One token per step, written by hand from unshifted logits."""
    params, setting = make(SHIFTED, 4), DecodeConfig(completion_length=6, block_length=6, steps=6)
    prompt, prompt_mask, _, keys = batch_of(rows=2, length=6)
    canvas = np.full((2, 6), MASK, np.int32)
    found = decode(params, (prompt, prompt_mask, canvas, keys), setting, SHIFTED)
    mask = np.pad(prompt_mask, ((0, 0), (0, 6)), constant_values=True)
    for _ in range(6):
        logits = np.array(logits_of(params, np.concatenate([prompt, canvas], axis=1), mask, PLAIN))[:, 4:-1]
        logits[..., MASK] = -np.inf
        probability = np.asarray(jax.nn.log_softmax(logits)).max(-1)
        place = np.where(canvas == MASK, probability, -np.inf).argmax(-1)
        canvas[np.arange(2), place] = logits.argmax(-1)[np.arange(2), place]
    np.testing.assert_array_equal(found.tokens, canvas)


def test_the_supervised_loss_is_a_cross_entropy_at_the_position_before(mesh):
    params, (prompt, prompt_mask, _, _) = make(SHIFTED), batch_of(rows=3)
    completion = np.random.default_rng(5).integers(3, 24, (3, 8)).astype(np.int32)
    masked = np.random.default_rng(6).uniform(size=(3, 8)) < 0.5
    weight = np.array([1.0, 0.5, 2.0], np.float32)
    with jax.set_mesh(mesh):
        found = sft_loss(params, prompt, prompt_mask, completion, Corruption(masked, weight), SHIFTED)
    tokens = np.concatenate([prompt, np.where(masked, MASK, completion)], axis=1)
    mask = np.pad(prompt_mask, ((0, 0), (0, 8)), constant_values=True)
    table = np.asarray(jax.nn.log_softmax(logits_of(params, tokens, mask, PLAIN)))[:, 4:-1]
    log_probs = np.take_along_axis(table, completion[..., None], axis=-1)[..., 0]
    expected = -((log_probs * masked).sum(axis=1) * weight).mean() / 8
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_ratio_before_the_first_update_is_one(estimator, mesh):
    draw, params = np.random.default_rng(0), make(SHIFTED)
    batch = GroupBatch(
        prompt=draw.integers(3, 24, (4, 5), dtype=np.int32),
        prompt_mask=np.arange(5) >= draw.integers(0, 3, 4)[:, None],
        problem_id=np.arange(4, dtype=np.uint32),
        completions=draw.integers(2, 24, (4, 2, 6), dtype=np.int32),
        unmask_step=draw.integers(-1, 6, (4, 2, 6)).astype(np.int32),
        loss_mask=np.ones((4, 2, 6), bool),
        advantages=np.tile(np.array([0.5, -0.5], np.float32), (4, 1)),
    )
    objective = ObjectiveConfig(estimator, samples=2 if estimator == "coupled" else 1)
    with jax.set_mesh(mesh):
        logprobs = compute_logprobs(params, params, batch, jax.random.key(0), SHIFTED, objective, mesh)
        parts = jax.tree.map(lambda x: x[0] if x is not None else None, logprobs)
        loss = functools.partial(loss_and_statistics, cfg=SHIFTED, objective=objective, mesh=mesh)
        _, statistics = jax.jit(loss)(params, batch, parts)
    assert statistics["policy/ratio_mean"] == pytest.approx(1, abs=1e-6)
    assert statistics["policy/kl"] == pytest.approx(0, abs=1e-6)
    other = compute_logprobs(params, params, batch, jax.random.key(0), PLAIN, objective, mesh)
    assert np.abs(np.asarray(other.old) - np.asarray(logprobs.old)).max() > 1e-3


def test_an_empty_prompt_becomes_the_end_of_a_document_or_is_refused(mesh):
    model = DiffusionLM(SHIFTED, jax.device_put(make(SHIFTED), shardings(SHIFTED, mesh)), None, mesh, {})
    options = {"completion_length": 4, "block_length": 4, "steps": 4}
    [empty], [end] = (model.generate([ids], **options) for ids in ([], [SHIFTED.eos_id]))
    np.testing.assert_array_equal(empty.tokens, end.tokens)
    assert model.score([], [5, 6]).log_likelihood == model.score([SHIFTED.eos_id], [5, 6]).log_likelihood
    prompt_mask = np.array([[True, True], [False, False]])
    require_prompts(False, prompt_mask)
    with pytest.raises(ValueError, match="prompt .1. is empty, but this model predicts the first token"):
        require_prompts(True, prompt_mask)
