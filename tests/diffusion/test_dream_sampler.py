"""The options of Dream's sampler: truncated distributions, its confidences, its numbers of tokens per step, noisy positions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from igpo_jax.diffusion.stepwise import sample_stepwise
from igpo_jax.diffusion.unmasking import DecodeConfig, propose, timestep_shares, to_write, truncate
from igpo_jax.model.transformer import ModelConfig, forward, init, unembed
from sampling import EOS, MASK

torch = pytest.importorskip("torch", reason="the reference needs PyTorch")

CFG = ModelConfig(
    vocab_size=40, mask_id=MASK, eos_id=EOS, width=32, layers=2, heads=4, kv_heads=2, mlp_width=32, qkv_bias=True, shift=True
)
DREAM = DecodeConfig(16, 16, 16, remasking="entropy", commit="timestep", tempered_confidence=True)
NAMES = {"maskgit_plus": "low_confidence", "topk_margin": "margin", "entropy": "entropy"}


@pytest.fixture(scope="module")
def params():
    values = jax.jit(init, static_argnums=1)(jax.random.key(0), CFG)
    return jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), values)


def top_p_logits(logits, top_p):
    values, indices = torch.sort(logits, descending=True)
    remove = torch.cumsum(torch.softmax(values, dim=-1), dim=-1) > top_p
    remove[..., 1:] = remove[..., :-1].clone()
    remove[..., 0] = False
    return logits.masked_fill(torch.zeros_like(remove).scatter(-1, indices, remove), -torch.inf)


def top_k_logits(logits, top_k):
    return logits.masked_fill(logits < torch.topk(logits, top_k)[0][..., -1, None], -torch.inf)


def confidence_of(logits, algorithm, top_p, top_k):
    """Returns (confidence, tokens) at temperature 0, as in the released sampler, but MASK is never chosen."""
    logits = logits.clone()
    logits[..., MASK] = -torch.inf
    logits = top_p_logits(logits, top_p) if top_p < 1 else logits
    logits = top_k_logits(logits, top_k) if top_k else logits
    probabilities = torch.softmax(logits, dim=-1)
    confidence, tokens = probabilities.max(dim=-1)
    if algorithm == "topk_margin":
        ordered, _ = torch.sort(probabilities, dim=-1, descending=True)
        confidence = ordered[..., 0] - ordered[..., 1]
    if algorithm == "entropy":
        confidence = (probabilities * torch.log(probabilities + 1e-10)).sum(dim=-1)
    return confidence, tokens


def released_loop(network, prompt, length, steps, algorithm, top_p, top_k):
    """Yields the canvas after each step of Dream's diffusion_generate, batch 1 and temperature 0."""
    x = torch.cat([prompt, torch.full((1, length), MASK)], dim=1)
    times = torch.linspace(1, 1e-3, steps + 1)
    for i in range(steps):
        masked = x == MASK
        logits = network(x)
        logits = torch.cat([logits[:, :1], logits[:, :-1]], dim=1)
        confidence, tokens = confidence_of(logits[masked], algorithm, top_p, top_k)
        t, s = times[i], times[i + 1]
        number = masked.sum() / masked.shape[0]
        count = int(number * (1 - s / t)) if i < steps - 1 else int(number)
        full_confidence = torch.full_like(x, -torch.inf, dtype=logits.dtype)
        full_confidence[masked] = confidence
        if count > 0:
            _, positions = torch.topk(full_confidence, count)
            proposed = torch.full_like(x, MASK)
            proposed[masked] = tokens
            x[0, positions[0]] = proposed[0, positions[0]]
        yield x[0, prompt.shape[1] :].numpy().copy()


@pytest.mark.parametrize("algorithm", NAMES)
@pytest.mark.parametrize("steps, top_p, top_k", [(16, 1.0, 0), (16, 0.9, 0), (8, 1.0, 3), (8, 0.8, 5)])
def test_every_intermediate_state_is_that_of_the_released_loop(algorithm, steps, top_p, top_k, params):
    unshifted = dataclasses.replace(CFG, shift=False)
    run = jax.jit(lambda x: unembed(params, forward(params, x, jnp.ones(x.shape, bool), unshifted), unshifted))
    prompt = np.array([[5, 9, 3, 7]], np.int32)
    expected = list(released_loop(
        lambda x: torch.from_numpy(np.array(run(x.numpy().astype(np.int32)))), torch.from_numpy(prompt).long(), 16, steps,
        algorithm, top_p, top_k,
    ))  # fmt: skip
    decode = dataclasses.replace(DREAM, steps=steps, remasking=NAMES[algorithm], top_p=top_p, top_k=top_k)
    states = []
    keys = jax.random.split(jax.random.key(0), 1)
    canvas = np.full((1, 16), MASK, np.int32)
    sample_stepwise(params, prompt, prompt > 0, canvas, keys, CFG, decode, lambda step: states.append(step.tokens[0]))
    np.testing.assert_array_equal(states[1:], expected[: len(states) - 1])
    assert not (states[-1] == MASK).any() and (expected[-1] == states[-1]).all()


@pytest.mark.parametrize("length, steps, expected", [
    (256, 256, [0, *[1] * 254, 2]), (512, 512, [0, *[1] * 510, 2]), (256, 128, [1, *[2] * 126, 3]), (128, 64, [1, *[2] * 62, 3])
])  # fmt: skip
def test_numbers_of_tokens_per_step(length, steps, expected):
    masked, found = np.ones((1, length), bool), []
    decode = DecodeConfig(length, length, steps, commit="timestep")
    confidence = np.random.default_rng(0).normal(size=(1, length)).astype(np.float32)
    write = jax.jit(lambda masked, step: to_write(confidence, masked, jnp.array([length]), step, decode))
    for step in range(steps):
        written = np.asarray(write(masked, jnp.int32(step)))
        found.append(int(written.sum()))
        masked &= ~written
    assert found == expected
    times = torch.linspace(1, 1e-3, steps + 1)
    np.testing.assert_allclose(timestep_shares(steps)[:-1], (1 - times[1:] / times[:-1]).numpy()[:-1], atol=1e-6)


def test_rows_with_unequal_masks_are_counted_one_by_one():
    """The released code divides the mean over the batch."""
    decode = DecodeConfig(8, 8, 4, commit="timestep")
    masked = np.arange(8) < np.array([[8], [2]])
    written = to_write(jnp.zeros((2, 8)), jnp.array(masked), jnp.array([8, 2]), jnp.int32(0), decode)
    assert written.sum(axis=1).tolist() == [1, 0]


@pytest.mark.parametrize("top_p, top_k", [(0.9, 0), (0.3, 0), (1e-6, 0), (1.0, 4), (0.7, 2)])
@pytest.mark.parametrize("scale", [0.0, 1.0, 5.0])
def test_truncated_distributions_are_those_of_the_released_code(top_p, top_k, scale):
    logits = (scale * np.random.default_rng(0).normal(size=(6, 9, 40))).astype(np.float32)
    if scale == 0:  # of equal values, the released code keeps the first
        logits = np.zeros((1, 1, 8), np.float32)
    expected = torch.from_numpy(logits)
    expected = top_p_logits(expected, top_p) if top_p < 1 else expected
    expected = top_k_logits(expected, top_k) if top_k else expected
    found = truncate(jnp.array(logits), DecodeConfig(8, 8, 8, top_p=top_p, top_k=top_k))
    assert (np.isfinite(found).sum(-1) == np.isfinite(expected.numpy()).sum(-1)).all()
    if scale:
        np.testing.assert_array_equal(found, expected.numpy())


def test_tokens_outside_of_a_truncated_distribution_are_never_drawn():
    """The frequencies of the drawn tokens are those of softmax(logits / T), restricted and normalized."""
    cfg, n = dataclasses.replace(CFG, vocab_size=6), 20_000
    logits = jnp.array([2.0, -jnp.inf, 1.5, 1.0, 0.0, -1.0])
    decode = DecodeConfig(8, 8, 8, temperature=0.7, top_p=0.85)
    gumbel = jax.random.gumbel(jax.random.key(0), (n, 1, 6))
    drawn, _ = propose(jnp.broadcast_to(logits, (n, 1, 6)), gumbel, None, cfg, decode)
    kept = np.isfinite(truncate(logits / 0.7, decode))
    assert kept.tolist() == [True, False, True, True, False, False]
    expected = np.where(kept, np.exp(np.where(kept, logits, 0) / 0.7), 0)
    frequency = np.bincount(np.asarray(drawn).ravel(), minlength=6) / n
    np.testing.assert_allclose(frequency, expected / expected.sum(), atol=0.015)
    assert (frequency[~kept] == 0).all()


@pytest.mark.parametrize("remasking", ["low_confidence", "margin", "entropy"])
def test_confidence_is_that_of_the_tempered_distribution_if_asked_for(remasking):
    logits = jnp.array(np.random.default_rng(0).normal(size=(2, 3, 40)).astype(np.float32)).at[..., MASK].set(-jnp.inf)
    options = {"temperature": 0.5, "top_k": 4, "remasking": remasking}
    gumbel = jnp.zeros(logits.shape)
    tempered = truncate(logits / 0.5, DecodeConfig(8, 8, 8, top_k=4))
    plain = {"temperature": 0.0, "remasking": remasking}
    for asked, of in ((True, tempered), (False, logits)):
        found = propose(logits, gumbel, None, CFG, DecodeConfig(8, 8, 8, **options, tempered_confidence=asked))[1]
        expected = propose(of, None, None, CFG, DecodeConfig(8, 8, 8, **plain))[1]
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("remasking", ["low_confidence", "entropy"])
def test_noisy_positions_are_drawn_from_the_softmax_of_confidence(remasking):
    """Dream's confidence is a probability where ours is its logarithm."""
    n, decode = 20_000, DecodeConfig(4, 4, 4, alg_temp=0.5, remasking=remasking)
    confidence = jnp.broadcast_to(jnp.array([-0.1, -0.5, -1.0, -2.0]), (n, 4))
    masked = jnp.broadcast_to(jnp.array([True, True, False, True]), (n, 4))
    uniform = jax.random.uniform(jax.random.key(0), (n, 4))
    written = np.asarray(to_write(confidence, masked, jnp.full(n, 4), jnp.int32(0), decode, uniform))
    assert (written.sum(axis=1) == 1).all() and not written[:, 2].any()
    theirs = np.array([-0.1, -0.5, 0.0, -2.0])
    theirs = np.exp(theirs) if remasking == "low_confidence" else theirs
    expected = np.exp(theirs / 0.5) * [1, 1, 0, 1]
    np.testing.assert_allclose(written.mean(axis=0), expected / expected.sum(), atol=0.015)


@pytest.mark.parametrize("options, message", [
    ({"top_p": 0.0}, "top_p=0.0 must be within"), ({"top_p": 1.5}, "top_p=1.5 must be within"), ({"top_k": -1}, "top_k=-1"),
    ({"alg_temp": -0.1}, "alg_temp=-0.1"), ({"alg_temp": 0.5, "commit": "threshold"}, "alg_temp=0.5 needs commit=schedule"),
    ({"remasking": "margin", "commit": "factor"}, "commit=factor compares probabilities"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DecodeConfig(8, 8, 8, **options)
