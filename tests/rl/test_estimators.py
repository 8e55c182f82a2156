"""Estimators compared with exact likelihoods, on completions so short that all orders and masks can be enumerated."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from igpo_jax.diffusion.sampler import HINT, completion_keys, sample
from igpo_jax.diffusion.unmasking import DecodeConfig
from igpo_jax.model.transformer import ModelConfig, forward, init, unembed
from igpo_jax.rl.likelihood import GroupBatch, combine, views_of
from igpo_jax.rl.objective import ObjectiveConfig, compute_logprobs

MASK, EOS, LENGTH, P_LENGTH = 1, 2, 4, 3
CFG = ModelConfig(vocab_size=8, mask_id=MASK, eos_id=EOS, width=32, layers=2, heads=4, kv_heads=2, mlp_width=32)
ROWS, GROUP = 1024, 8
RANDOM = [("elbo", 1), ("elbo", 2), ("elbo", 4), ("quadrature", 2), ("quadrature", 4), ("coupled", 2), ("coupled", 4)]


@functools.cache
def make_params(seed=0):
    """Returns parameters far from uniform predictions, so that the order matters."""
    params = jax.jit(init, static_argnums=1)(jax.random.key(seed), CFG)
    return jax.tree.map(lambda x: 4 * x, params)


PROMPT = np.array([3, 5, 4], np.int32)
COMPLETION = np.array([6, 3, 7, 4], np.int32)


@functools.cache
def table(seed=0):
    """Returns log p(token i | unmasked tokens), float64 [2 ** LENGTH, LENGTH]; bit i of the row number masks token i."""
    masked = (np.arange(2**LENGTH)[:, None] >> np.arange(LENGTH)) & 1 == 1
    tokens = np.concatenate([np.tile(PROMPT, (len(masked), 1)), np.where(masked, MASK, COMPLETION)], axis=1)
    hidden = jax.jit(forward, static_argnums=3)(make_params(seed), tokens, np.ones(tokens.shape, bool), CFG)
    logits = unembed(make_params(seed), hidden[:, P_LENGTH:], CFG)
    return np.asarray(jax.nn.log_softmax(logits), np.float64)[:, np.arange(LENGTH), COMPLETION]


def orders(of_masks):
    """Returns log p of each token at its turn, for every order of writing, [LENGTH!, LENGTH]."""
    found = []
    for order in itertools.permutations(range(LENGTH)):
        left, terms = set(range(LENGTH)), np.zeros(LENGTH)
        for token in order:
            terms[token] = of_masks[sum(1 << i for i in left), token]
            left.remove(token)
        found.append(terms)
    return np.array(found)


def exact(of_masks):
    """Returns (lower bound, log-likelihood) of the model that writes one token at a time in a random order."""
    sums = orders(of_masks).sum(axis=1)
    return sums.mean(), np.log(np.mean(np.exp(sums)))


def estimates(objective, of_masks):
    """Returns summed scores [ROWS * GROUP] over many draws of the views, and scores [ROWS * GROUP, LENGTH]."""
    shape = (ROWS, GROUP, LENGTH)
    batch = GroupBatch(
        prompt=np.tile(PROMPT, (ROWS, 1)),
        prompt_mask=np.ones((ROWS, P_LENGTH), bool),
        problem_id=np.arange(ROWS, dtype=np.uint32),
        completions=np.broadcast_to(COMPLETION, shape),
        unmask_step=np.zeros(shape, np.int32),
        loss_mask=np.ones(shape, bool),
        advantages=np.full(shape[:2], -1, np.float32),
    )
    views = jax.tree.map(lambda x: x[0], views_of(jax.random.key(0), batch, objective))
    number = np.asarray(views.masked) @ (1 << np.arange(LENGTH))
    log_probs = of_masks[number]
    logprobs = np.asarray(combine(log_probs, views.weight, batch.advantages, objective), np.float64).reshape(-1, LENGTH)
    return logprobs.sum(axis=1), logprobs


@pytest.mark.parametrize(
    "estimator, samples", [pytest.param(*case, marks=[pytest.mark.slow] * (case[1] == 2)) for case in RANDOM]
)
def test_lower_bounds_are_unbiased_for_any_order(estimator, samples):
    lower, _ = exact(table())
    found, of_tokens = estimates(ObjectiveConfig(estimator, samples, inner_steps=1), table())
    assert abs(found.mean() - lower) < 4 * found.std() / math.sqrt(len(found)) + 1e-9
    canonical_sharding = of_tokens.std(axis=0) / math.sqrt(len(found))
    np.testing.assert_array_less(np.abs(of_tokens.mean(axis=0) - orders(table()).mean(axis=0)), 4 * canonical_sharding + 1e-9)


def variances(of_masks):
    return {
        (estimator, samples): estimates(ObjectiveConfig(estimator, samples, inner_steps=1), of_masks)[0].var()
        for estimator, samples in RANDOM
    }


@pytest.mark.parametrize("seed", range(3))
def test_spread_numbers_have_less_variance_than_random_ones(seed):
    variance = variances(table(seed))
    assert variance["elbo", 4] == pytest.approx(variance["elbo", 1] / 4, rel=0.15)
    for samples in (2, 4):
        assert variance["quadrature", samples] < variance["elbo", samples]


def test_pairs_take_away_what_differs_between_tokens():
    """Uses log-probabilities that do not depend on the tokens already written."""
    variance = variances(np.tile([-0.1, -1.0, -3.0, -0.5], (2**LENGTH, 1)))
    for samples in (2, 4):
        assert variance["coupled", samples] < variance["quadrature", samples] < 1.1 * variance["elbo", samples]
        assert variance["coupled", samples] < variance["elbo", samples] / 2


def test_spread_numbers_take_away_what_differs_between_levels():
    """Uses log-probabilities that depend only on the number of masked tokens."""
    masks = np.array([bin(number).count("1") for number in range(2**LENGTH)])
    variance = variances(np.tile(-(masks[:, None] ** 2) / 4.0, (1, LENGTH)))
    assert variance["quadrature", LENGTH] < 1e-9
    assert variance["quadrature", 2] < variance["elbo", 2] / 2


def every_view():
    """Returns all sets of masked tokens, weighted as by elbo with the probability of a random order, [1, k, 1, LENGTH]."""
    number = np.arange(1, 2**LENGTH)
    masked = (number[:, None] >> np.arange(LENGTH)) & 1 == 1
    size = masked.sum(axis=1)
    ways = np.array([math.comb(LENGTH, m) for m in size])
    return number, (masked / (ways * size)[:, None]).astype(np.float32)[None, :, None]


@pytest.mark.parametrize("seed", range(5))
def test_bounds_hold_from_both_sides(seed):
    """Computes the expectations inside the bounds as sums over all views. A true upper bound needs a power equal to the number
    of tokens."""
    of_masks = table(seed)
    lower, log_p = exact(of_masks)
    number, weight = every_view()
    log_probs = of_masks[number][None, :, None].astype(np.float32)

    def bound(share, power):
        objective = ObjectiveConfig("elbo", 2, upper_weight=share, upper_power=power)
        return float(combine(log_probs, weight, -np.ones((1, 1), np.float32), objective).sum())

    assert bound(0.0, 1.0) == pytest.approx(lower, rel=1e-5)
    assert lower < log_p < bound(1.0, LENGTH) + 1e-5
    assert bound(0.25, LENGTH) == pytest.approx(0.75 * bound(0.0, 1.0) + 0.25 * bound(1.0, LENGTH), rel=1e-5)
    powers = [bound(1.0, power) for power in (1.0, 1.5, 2.0, LENGTH)]
    assert powers == sorted(powers) and lower < powers[0]


def test_a_small_power_lacks_a_constant():
    """Two tokens, each certain in one order and impossible in the other: p = 1/2, but a power of 1 gives 1/4."""
    certain, impossible = 0.0, -30.0
    # masks: both tokens, only the first, only the second
    log_probs = np.array([[certain, impossible], [impossible, 0], [0, certain]], np.float32)[None, :, None]
    weight = np.array([[0.5, 0.5], [0.5, 0], [0, 0.5]], np.float32)[None, :, None]

    def bound(power):
        objective = ObjectiveConfig("elbo", 2, upper_weight=1.0, upper_power=power)
        return float(combine(log_probs, weight, -np.ones((1, 1), np.float32), objective).sum())

    assert bound(1.0) == pytest.approx(math.log(1 / 4), abs=1e-4)
    assert bound(2.0) == pytest.approx(math.log(1 / 2), abs=1e-4)


@pytest.mark.slow
def test_the_upper_bound_is_for_negative_advantages_and_has_finite_gradients():
    draw = np.random.default_rng(0)
    log_probs = jnp.asarray(-draw.exponential(size=(1, 3, 2, 5)), jnp.float32)
    weight = jnp.asarray(draw.uniform(size=(1, 3, 2, 5)) < 0.4, jnp.float32).at[:, :, :, 0].set(0)  # never masked
    objective = ObjectiveConfig("elbo", 3, upper_weight=0.7, upper_power=1.5)
    advantages = jnp.array([[1.0, -1.0]])
    logprobs = combine(log_probs, weight, advantages, objective)
    np.testing.assert_allclose(logprobs[:, 0], jnp.sum(weight * log_probs, axis=1)[:, 0], rtol=1e-6)
    assert (logprobs[0, :, 0] == 0).all()
    gradient = jax.grad(lambda x: combine(x, weight, advantages, objective).sum())(log_probs)
    assert np.isfinite(gradient).all() and (np.asarray(gradient)[weight == 0] == 0).all()


# Trace estimator


def trace_batch(decode, canvas, rows=8):
    """Samples completions of one prompt; returns them as a batch, and their scores under `trace` with one view per step."""
    params = make_params()
    prompt, prompt_mask = np.tile(PROMPT, (rows, 1)), np.ones((rows, P_LENGTH), bool)
    number = np.arange(rows, dtype=np.uint32)
    keys = completion_keys(jax.random.key(1), number, number, 0)
    done = jax.device_get(sample(params, prompt, prompt_mask, np.tile(canvas, (rows, 1)), keys, CFG, decode))
    shape = (rows, 1, decode.completion_length)
    return GroupBatch(
        prompt, prompt_mask, number, done.tokens.reshape(shape), done.unmask_step.reshape(shape), np.ones(shape, bool),
        np.ones(shape[:2], np.float32),
    )  # fmt: skip


def replayed(batch, row):
    """Returns log-probabilities by replaying the sampler: one forward pass on the canvas before each step."""
    tokens, unmask_step = batch.completions[row, 0], batch.unmask_step[row, 0]
    logprobs = np.zeros(len(tokens))
    for step in np.unique(unmask_step[unmask_step != HINT]):
        canvas = np.where(unmask_step >= step, MASK, tokens)
        whole = np.concatenate([batch.prompt[row], canvas])[None]
        hidden = jax.jit(forward, static_argnums=3)(make_params(), whole, np.ones(whole.shape, bool), CFG)
        table = np.asarray(jax.nn.log_softmax(unembed(make_params(), hidden[:, P_LENGTH:], CFG)))[0]
        now = unmask_step == step
        logprobs[now] = table[now, tokens[now]]
    return logprobs


@pytest.mark.slow
@pytest.mark.parametrize("per_step, hinted", [
    (1, False), (1, True), (2, False), (2, True),
])  # fmt: skip
def test_a_trace_without_merged_steps_is_what_the_sampler_did(hinted, per_step, mesh):
    decode = DecodeConfig(completion_length=8, block_length=4, steps=8 // per_step, temperature=1.0)
    canvas = np.full(8, MASK, np.int32)
    if hinted:
        canvas[[2, 5]] = 6
    batch = trace_batch(decode, canvas)
    logprobs = compute_logprobs(make_params(), make_params(), batch, jax.random.key(0), CFG, ObjectiveConfig("trace", 8), mesh)
    scores = np.sum(logprobs.old * logprobs.views.weight, axis=2)
    for row in range(len(batch.completions)):
        np.testing.assert_allclose(scores[0, row, 0], replayed(batch, row), atol=1e-4)
    np.testing.assert_array_equal(logprobs.loss_mask[0], batch.unmask_step != HINT)


@pytest.mark.slow
def test_merged_steps_score_every_generated_token_once(mesh):
    decode = DecodeConfig(completion_length=8, block_length=4, steps=8, temperature=1.0)
    batch = trace_batch(decode, np.array([MASK, 6, *[MASK] * 6], np.int32))
    for samples in (1, 2, 3):
        views = jax.tree.map(lambda x: x[0], views_of(jax.random.key(0), batch, ObjectiveConfig("trace", samples)))
        np.testing.assert_array_equal(views.weight.sum(axis=1), batch.unmask_step != HINT)
        assert (np.asarray(views.weight) <= views.masked).all() and not views.masked[..., 1].any()
        left = np.asarray(views.masked).sum(axis=-1)
        assert (np.diff(left, axis=1) < 0).all() and (left[:, 0] == 7).all()


@pytest.mark.slow
def test_with_one_view_a_trace_without_hints_is_the_mean_field(mesh):
    decode = DecodeConfig(completion_length=8, block_length=4, steps=8, temperature=1.0)
    batch = trace_batch(decode, np.full(8, MASK, np.int32))
    one, other = (
        compute_logprobs(make_params(), make_params(), batch, jax.random.key(0), CFG, ObjectiveConfig(estimator), mesh).old
        for estimator in ("trace", "mean_field")
    )
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_from_left_to_right_the_likelihoods_of_all_completions_add_up_to_one(mesh):
    """The arm just_grpo: blocks of one token, and one view per token."""
    length = 3
    decode = DecodeConfig(completion_length=length, block_length=1, steps=length, temperature=1.0)
    drawn = trace_batch(decode, np.full(length, MASK, np.int32))
    assert (drawn.unmask_step == np.arange(length)).all()
    every = np.array(list(itertools.product(range(CFG.vocab_size), repeat=length)), np.int32)
    shape = (8, len(every) // 8, length)
    batch = GroupBatch(
        prompt=np.tile(PROMPT, (8, 1)),
        prompt_mask=np.ones((8, P_LENGTH), bool),
        problem_id=np.zeros(8, np.uint32),
        completions=every.reshape(shape),
        unmask_step=np.broadcast_to(np.arange(length, dtype=np.int32), shape),
        loss_mask=np.ones(shape, bool),
        advantages=np.ones(shape[:2], np.float32),
    )
    objective = ObjectiveConfig("trace", length, ratio="token")
    logprobs = compute_logprobs(make_params(), make_params(), batch, jax.random.key(0), CFG, objective, mesh)
    scores = np.sum(logprobs.old * logprobs.views.weight, axis=2, dtype=np.float64).sum(axis=-1)
    assert np.exp(scores).sum() == pytest.approx(1, abs=1e-4)
    assert logprobs.views.masked.shape[2] == length
