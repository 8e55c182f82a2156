import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igpo_jax.diffusion.unmasking import DecodeConfig, exact_sampler, gumbel_noise, propose, to_write
from igpo_jax.model.transformer import ModelConfig

CFG = ModelConfig(vocab_size=6, mask_id=0, eos_id=1, eot_id=2, width=8, layers=1, heads=2, kv_heads=2, mlp_width=8)
DECODE = DecodeConfig(completion_length=6, block_length=6, steps=6, temperature=1.0)


def log(*probabilities):
    return jnp.log(jnp.array([probabilities]))


def written(confidence, masked, step=0, steps=6, **change):
    decode = dataclasses.replace(DECODE, steps=steps, **change)
    masked = jnp.array([masked], bool)
    return to_write(confidence, masked, masked.sum(axis=1), jnp.int32(step), decode)[0].astype(int).tolist()


# Worked by hand: probabilities of six positions; the last is not masked.
PROBABILITIES, MASKED = (0.95, 0.3, 0.91, 0.2, 0.85, 0.99), (1, 1, 1, 1, 1, 0)


def test_a_threshold_writes_all_that_is_likelier():
    of = log(*PROBABILITIES)
    assert written(of, MASKED, commit="threshold", threshold=0.9) == [1, 0, 1, 0, 0, 0]
    assert written(of, MASKED, commit="threshold", threshold=0.1) == [1, 1, 1, 1, 1, 0]


@pytest.mark.parametrize("fallback, expected", [("leftmost", [0, 1, 0, 0, 0, 0]), ("most_confident", [0, 0, 0, 0, 1, 0])])
def test_where_nothing_is_likely_one_token_is_written(fallback, expected):
    masked = (0, 1, 0, 1, 1, 0)
    for commit in (dict(commit="threshold", threshold=0.9), dict(commit="factor", factor=0.1)):
        assert written(log(*PROBABILITIES), masked, fallback=fallback, **commit) == expected


def test_a_factor_writes_as_many_as_are_likely_together():
    """(n + 1) (1 - p) of the n-th likeliest: 2 * 0.05, 3 * 0.09, 4 * 0.15, 5 * 0.7, 6 * 0.8."""
    of = log(*PROBABILITIES)
    assert written(of, MASKED, commit="factor", factor=0.2) == [1, 0, 0, 0, 0, 0]
    assert written(of, MASKED, commit="factor", factor=0.5) == [1, 0, 1, 0, 0, 0]
    assert written(of, MASKED, commit="factor", factor=0.7) == [1, 0, 1, 0, 1, 0]
    assert written(of, MASKED, commit="factor", factor=3.6) == [1, 1, 1, 0, 1, 0]
    assert written(of, MASKED, commit="factor", factor=9.0) == [1, 1, 1, 1, 1, 0]


def test_what_is_due_is_written_so_that_the_steps_suffice():
    """Five masks and two steps are left: three tokens are due, the likely ones among them."""
    rule = dict(commit="threshold", threshold=0.9, steps=6, step=4)
    assert written(log(*PROBABILITIES), MASKED, fallback="leftmost", **rule) == [1, 1, 1, 0, 0, 0]
    assert written(log(*PROBABILITIES), MASKED, fallback="most_confident", **rule) == [1, 0, 1, 0, 1, 0]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_every_rule_writes_masks_only_and_ends_in_time(data):
    confidence = jnp.log(jnp.array([data.draw(st.lists(st.floats(1e-6, 1.0), min_size=6, max_size=6))], jnp.float32))
    masked = np.array([data.draw(st.lists(st.booleans(), min_size=6, max_size=6))])
    decode = dataclasses.replace(
        DECODE,
        steps=data.draw(st.sampled_from([1, 2, 3, 6])),
        commit=data.draw(st.sampled_from(["schedule", "threshold", "factor"])),
        fallback=data.draw(st.sampled_from(["leftmost", "most_confident"])),
        threshold=data.draw(st.floats(0.01, 1.0)),
        factor=data.draw(st.floats(0.01, 10.0)),
    )
    at_entry = jnp.asarray(masked.sum(axis=1))
    for step in range(decode.steps):
        now = np.asarray(to_write(confidence, jnp.asarray(masked), at_entry, jnp.int32(step), decode))
        assert not (now & ~masked).any()
        assert now.any() or not masked.any() or decode.commit == "schedule"
        masked = masked & ~now
    assert not masked.any()


def test_position_first_judges_positions_and_not_draws():
    """The draw changes neither the ranking of a flat and a sharp position nor the tempered distribution."""
    number, logits = 20_000, jnp.array([[0.0, 0.0, 0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 3.0, 0.0, 0.0]])
    gumbel = gumbel_noise(jax.random.split(jax.random.key(0), (number, 2)), 6)
    many = jnp.broadcast_to(logits, (number, 2, 6))
    clean = np.asarray(jax.nn.log_softmax(logits))
    drawn, confidence = propose(many, gumbel, None, CFG, dataclasses.replace(DECODE, remasking="position_first"))
    np.testing.assert_allclose(confidence, np.broadcast_to(clean[:, 3], (number, 2)), rtol=1e-5)
    shares = np.bincount(np.asarray(drawn)[:, 1], minlength=6) / number
    np.testing.assert_allclose(shares, np.exp(clean[1]), atol=0.015)
    _, by_draw = propose(many, gumbel, None, CFG, DECODE)
    assert (np.asarray(by_draw).argmax(axis=1) == 0).mean() > 0.1, "low_confidence prefers the flat one where its draw is lucky"


def test_entropy_prefers_the_narrow_distribution_not_the_likeliest_token():
    """Compares one likely token among six with two equally likely tokens."""
    peaked, two = log(0.55, 0.09, 0.09, 0.09, 0.09, 0.09)[0], jnp.log(jnp.array([0.5, 0.5, 1e-9, 1e-9, 1e-9, 1e-9]))
    logits = jnp.stack([peaked, two])[None]
    _, confidence = propose(logits, None, None, CFG, dataclasses.replace(DECODE, remasking="entropy"))
    expected = [sum(p * np.log(p) for p in np.exp(np.asarray(row, np.float64))) for row in (peaked, two)]
    np.testing.assert_allclose(confidence[0], expected, rtol=1e-4)
    _, first = propose(logits, None, None, CFG, dataclasses.replace(DECODE, remasking="position_first"))
    assert confidence[0, 1] > confidence[0, 0] and first[0, 1] < first[0, 0]


@pytest.mark.parametrize("remasking", ["position_first", "entropy"])
def test_positions_that_would_end_the_text_come_last_where_asked(remasking):
    logits = jnp.zeros((1, 3, 6)).at[0, [0, 1, 2], [CFG.eos_id, CFG.eot_id, 4]].set(5.0)
    decode = dataclasses.replace(DECODE, remasking=remasking, confidence_eos_eot_inf=True)
    _, confidence = propose(logits, None, None, CFG, decode)
    np.testing.assert_array_equal(np.isneginf(confidence), [[True, True, False]])


def test_a_drawn_end_comes_last_whatever_was_likelier():
    """Position first: the likeliest token is not EOS, but the draw is; the leftmost fallback skips it."""
    logits, gumbel = jnp.zeros((1, 2, 6)).at[0, :, 4].set(2.0), jnp.zeros((1, 2, 6)).at[0, 0, CFG.eos_id].set(9.0)
    decode = dataclasses.replace(DECODE, remasking="position_first", confidence_eos_eot_inf=True)
    drawn, confidence = propose(logits, gumbel, None, CFG, decode)
    assert drawn.tolist() == [[CFG.eos_id, 4]] and np.isneginf(confidence).tolist() == [[True, False]]
    rule = dict(commit="threshold", threshold=1.0, fallback="leftmost", confidence_eos_eot_inf=True)
    assert written(jnp.array([[-jnp.inf, -1.0, -0.5]]), (1, 1, 1), **rule) == [0, 1, 0]


@pytest.mark.parametrize("change, message", [
    (dict(commit="all"), "commit='all'"),
    (dict(fallback="first"), "fallback='first'"),
    (dict(cache="both"), "cache='both'"),
    (dict(commit="threshold", remasking="random"), "commit=threshold compares probabilities"),
    (dict(threshold=0.0), "threshold=0.0"),
    (dict(factor=float("nan")), "factor=nan"),
    (dict(refresh=-1), "refresh=-1"),
])  # fmt: skip
def test_impossible_rules_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(DECODE, **change)


def test_the_exact_sampler_neither_reuses_nor_hurries():
    fast = dataclasses.replace(DECODE, cache="dual", commit="factor", remasking="position_first")
    assert exact_sampler(fast) == dataclasses.replace(DECODE, remasking="position_first")


def test_integers_in_fields_of_floats_become_floats():
    """JAX would turn them into int32 numbers, which overflow."""
    decode = DecodeConfig(4, 4, 4, temperature=1, cfg_scale=2**31 - 1)
    assert isinstance(decode.temperature, float) and decode.cfg_scale + 1 == 2.0**31 and isinstance(decode.top_k, int)
    assert decode == DecodeConfig(4, 4, 4, temperature=1.0, cfg_scale=2.0**31 - 1)
