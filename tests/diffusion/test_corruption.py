import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from igpo_jax.diffusion.corruption import (
    CORRUPTIONS,
    HELDOUT_LEVELS,
    MIN_NOISE,
    Corruption,
    mask_count,
    mask_independently,
    mask_share,
    negative_bound,
    sft_loss,
    stratified_uniform,
)
from igpo_jax.model import transformer
from igpo_jax.model.transformer import ModelConfig, unembed

# Compiled: op by op, most of the time would go into compiling single operations.
forward, init = jax.jit(transformer.forward, static_argnums=3), jax.jit(transformer.init, static_argnums=1)
bound_of, loss_of = jax.jit(negative_bound, static_argnums=5), jax.jit(sft_loss, static_argnums=5)
gradient_of_loss = jax.jit(jax.grad(sft_loss), static_argnums=5)
MASK, EOS = 1, 2
CFG = ModelConfig(vocab_size=16, mask_id=MASK, eos_id=EOS, width=16, layers=1, heads=2, kv_heads=2, mlp_width=16)
ROWS = 30_000


def row_loss_of_pattern(pattern, length):
    """Returns an arbitrary loss per mask pattern, from a table: a stand-in for the cross-entropy summed over masked tokens."""
    table = np.random.default_rng(0).uniform(0.5, 3.0, (2,) * length)
    return table[tuple(np.asarray(pattern, int).T)] * np.asarray(pattern).sum(-1)


def exact_bound(length, lowest):
    """Expectation over the level p ~ U[lowest, 1) and independent masks of (1/p) sum over masked tokens, by enumeration.

    A pattern with k masked tokens has density p^k (1-p)^(length-k); this times 1/p is integrated numerically.
    """
    p = lowest + (1 - lowest) * (np.arange(200_000) + 0.5) / 200_000
    total = 0.0
    for pattern in itertools.product((0, 1), repeat=length):
        k = sum(pattern)
        if k:
            weight = np.mean(p ** (k - 1) * (1 - p) ** (length - k))
            total += weight * row_loss_of_pattern(np.array([pattern]), length)[0]
    return total


@pytest.mark.parametrize("name, lowest", [("independent", MIN_NOISE), ("count", 0.0)])
def test_expectation_is_the_exact_bound(name, lowest):
    masked, weight = CORRUPTIONS[name](jax.random.key(0), ROWS, 3)
    values = row_loss_of_pattern(masked, 3) * np.asarray(weight)
    error = values.std() / math.sqrt(ROWS)
    assert error < 0.05
    assert abs(values.mean() - exact_bound(3, lowest)) < 4 * error


def test_count_has_less_variance_than_independent_masks():
    def standard_deviation(corrupt):
        masked, weight = corrupt(jax.random.key(1), ROWS, 3)
        return (row_loss_of_pattern(masked, 3) * np.asarray(weight)).std()

    assert standard_deviation(mask_count) < 0.7 * standard_deviation(mask_independently)


def test_count_masks_between_one_and_all_tokens_evenly():
    masked, weight = mask_count(jax.random.key(2), 80, 8)
    number = np.asarray(masked.sum(axis=1))
    np.testing.assert_array_equal(np.bincount(number, minlength=9), [0] + [10] * 8)
    np.testing.assert_allclose(weight, 8 / number, rtol=1e-6)
    # Every position is masked about equally often (4.5 of 8 on average).
    often = np.asarray(mask_count(jax.random.key(3), ROWS, 8).masked.mean(axis=0))
    np.testing.assert_allclose(often, 4.5 / 8, atol=0.015)


def test_independent_weight_is_the_inverse_of_the_share_that_is_masked():
    masked, weight = mask_independently(jax.random.key(4), 64, 4000)
    np.testing.assert_allclose(masked.mean(axis=1), 1 / weight, atol=0.05)
    assert float(weight.max()) <= 1 / MIN_NOISE


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_stratified_uniform_has_one_value_in_every_stratum(rows):
    first, second = (np.asarray(stratified_uniform(jax.random.key(seed), rows)) for seed in (0, 1))
    np.testing.assert_array_equal(np.sort(np.floor(first * rows)), np.arange(rows))
    assert not np.array_equal(first, second)
    if rows > 1:
        assert not np.array_equal(first, np.sort(first)), "rows must not be tied to levels"


def test_each_stratified_value_is_uniform():
    draws = jax.vmap(lambda key: stratified_uniform(key, 4))(jax.random.split(jax.random.key(5), 4000))
    for row in np.asarray(draws).T:
        counts = np.histogram(row, bins=8, range=(0, 1))[0]
        assert np.sum((counts - 500) ** 2 / 500) < 29  # chi-square with 7 degrees of freedom, p = 1e-4


@pytest.mark.slow
def test_loss_equals_a_loop_over_masked_tokens():
    params = init(jax.random.key(5), CFG)
    prompt, prompt_mask = jax.random.randint(jax.random.key(6), (3, 2), 3, 16), jnp.ones((3, 2), bool)
    completion = jax.random.randint(jax.random.key(7), (3, 5), 3, 16)
    corruption = mask_independently(jax.random.key(8), 3, 5)
    tokens = jnp.concatenate([prompt, jnp.where(corruption.masked, MASK, completion)], axis=1)
    log_probs = np.asarray(jax.nn.log_softmax(unembed(params, forward(params, tokens, jnp.ones((3, 7), bool), CFG), CFG)))
    by_hand = [
        sum(-log_probs[b, 2 + i, completion[b, i]] for i in range(5) if corruption.masked[b, i]) * corruption.weight[b]
        for b in range(3)
    ]
    bounds = bound_of(params, prompt, prompt_mask, completion, corruption, CFG)
    np.testing.assert_allclose(bounds, by_hand, rtol=1e-5)
    np.testing.assert_allclose(
        loss_of(params, prompt, prompt_mask, completion, corruption, CFG), np.mean(by_hand) / 5, rtol=1e-5
    )


def test_network_without_a_head_costs_log_vocabulary():
    params = init(jax.random.key(0), CFG)
    params["head"] = jnp.zeros_like(params["head"])
    prompt, completion = jnp.full((2, 3), 5), jnp.full((2, 4), 6)
    corruption = Corruption(jnp.ones((2, 4), bool), jnp.ones(2))
    loss = loss_of(params, prompt, jnp.ones((2, 3), bool), completion, corruption, CFG)
    assert loss == pytest.approx(math.log(16), rel=1e-6)


def test_prompt_is_never_masked_and_masked_targets_are_not_seen(monkeypatch):
    seen = {}

    def record(params, tokens, prompt_mask, cfg, out_slice):
        seen.update(tokens=np.asarray(tokens), prompt_mask=np.asarray(prompt_mask), out_slice=out_slice)
        return jnp.zeros((len(tokens), out_slice[1], cfg.width))

    monkeypatch.setattr("igpo_jax.diffusion.corruption.forward", record)
    prompt = jnp.array([[0, 5, 6], [4, 5, 6]])
    prompt_mask = jnp.array([[False, True, True], [True, True, True]])
    completion = jnp.array([[7, 8, EOS, EOS], [9, 10, 11, EOS]])
    masked = jnp.array([[True, False, True, False], [True, True, True, True]])
    sft_loss(init(jax.random.key(0), CFG), prompt, prompt_mask, completion, Corruption(masked, jnp.ones(2)), CFG)
    np.testing.assert_array_equal(seen["tokens"], [[0, 5, 6, MASK, 8, MASK, EOS], [4, 5, 6, MASK, MASK, MASK, MASK]])
    np.testing.assert_array_equal(seen["prompt_mask"], [[False] + [True] * 6, [True] * 7])
    assert seen["out_slice"] == (3, 4)


def test_gradient_reaches_the_prompt_but_not_masked_targets():
    params = init(jax.random.key(1), CFG)
    prompt, completion = jnp.array([[5, 6]]), jnp.array([[7, 8]])
    corruption = Corruption(jnp.array([[True, False]]), jnp.ones(1))

    def gradient(params):
        return gradient_of_loss(params, prompt, jnp.ones((1, 2), bool), completion, corruption, CFG)

    touched = np.abs(gradient(params)["embedding"]).sum(axis=1) > 0
    assert set(np.flatnonzero(touched)) == {5, 6, MASK, 8}


def test_the_grid_of_the_held_out_loss_masks_more_and_more_of_the_same():
    rank = np.stack([np.random.default_rng(row).permutation(11) for row in range(3)]).astype(np.int32)
    before = np.zeros((3, 11), bool)
    for share in HELDOUT_LEVELS:
        masked, weight = mask_share(rank, share)
        assert (masked.sum(axis=1) == math.ceil(11 * share)).all()
        np.testing.assert_allclose(weight * masked.sum(axis=1), 1, rtol=1e-6)
        assert (masked | ~before).all()
        before = masked
    assert before.all()


@pytest.mark.slow
def test_the_held_out_loss_is_the_mean_cross_entropy_of_the_masked_tokens():
    params = init(jax.random.key(0), CFG)
    prompt, completion = np.array([[3, 4]]), np.array([[5, 3, 2, 2]])
    rank = np.array([[2, 0, 3, 1]])
    corruption = mask_share(rank, 0.5)
    noisy = np.array([[3, 4, 5, CFG.mask_id, 2, CFG.mask_id]])
    hidden = forward(params, noisy, np.ones((1, 6), bool), CFG)
    log_probs = jax.nn.log_softmax(unembed(params, hidden, CFG))[0, 2:]
    expected = -(log_probs[1, 3] + log_probs[3, 2]) / 2
    found = bound_of(params, prompt, np.ones((1, 2), bool), completion, corruption, CFG)
    np.testing.assert_allclose(found, [expected], rtol=1e-5)
