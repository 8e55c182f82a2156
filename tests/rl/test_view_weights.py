"""Ratios and KL estimates are computed in each view, and the weights of the views are applied to the results."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from igpo_jax.rl.objective import ObjectiveConfig, policy_terms


def test_ratio_and_kl_are_computed_before_the_weights_of_views():
    """A token with weight 16 in one of two views: its KL is 16 times that of the view, not that of a policy to the power 16."""
    old = jnp.log(jnp.array([[[0.5, 0.2]], [[0.3, 0.4]]]))  # [k, g, l]
    new, reference = old + 0.05, old - 0.02
    weight = jnp.array([[[16.0, 0.0]], [[0.0, 2.0]]])
    cfg = ObjectiveConfig("elbo", 2, ratio="token", kl_coefficient=0.0, clip_high=0.01)
    terms = functools.partial(policy_terms, new, old, reference, weight, jnp.ones(1), jnp.ones((1, 2), bool))
    loss, statistics = terms(cfg)
    assert loss[0] == pytest.approx(-(16 + 2) / 2 * 1.01, rel=1e-5)
    assert statistics["policy/kl"][0] == pytest.approx((16 + 2) / 2 * (np.exp(-0.07) + 0.07 - 1), rel=1e-3)
    assert statistics["policy/ratio_mean"][0] == pytest.approx(np.exp(0.05), rel=1e-5)
    assert statistics["policy/clip_fraction"][0] == 1 and statistics["policy/overflow"][0] == 0
    # The sequence ratio is that of two estimates of the log-likelihood, per token (ESPO, arXiv 2512.03759).
    _, statistics = terms(ObjectiveConfig("elbo", 2))
    assert statistics["policy/ratio_mean"][0] == pytest.approx(np.exp(0.05 * (16 + 2) / 2), rel=1e-5)


@pytest.mark.parametrize("how", [
    dict(), dict(ratio="token"), dict(kl="k2"), dict(ratio="token", kl="k3_corrected", hint_supervision=0.1), dict(loss="wd1"),
    dict(upper_weight=0.5),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("bad", [-np.inf, np.nan, 1e30])
def test_views_without_weight_count_for_nothing(how, bad):
    draw = np.random.default_rng(0)
    new, old, reference = (jnp.asarray(-draw.exponential(size=(3, 4, 5)), jnp.float32) for _ in range(3))
    weight = jnp.asarray(draw.uniform(size=new.shape) < 0.5, jnp.float32).at[..., 0].set(0)
    loss_mask, hint = jnp.ones((4, 5), bool), jnp.ones((4, 5), bool)
    cfg = ObjectiveConfig("elbo", 3, **how)

    def run(x):
        policies = [jnp.where(weight > 0, each, x) for each in (old, reference)]

        def loss(new):
            terms, statistics = policy_terms(new, *policies, weight, jnp.linspace(-1, 1, 4), loss_mask, cfg, hint)
            return terms.sum(), statistics

        return jax.value_and_grad(loss, has_aux=True)(jnp.where(weight > 0, new, x))

    expected, found = run(0.0), run(bad)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert np.isfinite(expected[1]).all() and (np.asarray(expected[1])[np.asarray(weight) == 0] == 0).all()


def test_the_reference_code_averages_the_ratio_over_the_whole_canvas():
    """One token in four is masked. Log-probabilities of visible tokens count too, as in the released code."""
    change = jnp.array([0.4, 0.0, 0.0, 0.0])
    masked = jnp.array([[True, False, False, False]])
    for visible in (0.0, 0.2):
        new = jnp.where(masked, change, visible)[None]
        weight = masked[None].astype(jnp.float32)
        terms = new, jnp.zeros_like(new), new, weight, jnp.ones(1), masked
        _, statistics = policy_terms(*terms, ObjectiveConfig("masked", reference_code=True))
        assert statistics["policy/ratio_mean"][0] == pytest.approx(np.exp((0.4 + 3 * visible) / 4), rel=1e-5)
        _, statistics = policy_terms(*terms, ObjectiveConfig("masked"))
        assert statistics["policy/ratio_mean"][0] == pytest.approx(np.exp(0.4), rel=1e-5)


@pytest.mark.slow
def test_bounded_estimates_are_counted():
    new = jnp.zeros((2, 1, 4))
    far = new.at[0, 0, 0].set(6.0).at[1, 0, 0].set(6.0).at[1, 0, 1].set(30.0).at[0, 0, 2].set(30.0)
    weight = jnp.ones_like(new).at[0, 0, 2].set(0)
    for kind, old, number in (("k3", new, 2), ("k2", new, 0), ("k3_corrected", new, 1), ("k2", far, 1)):
        cfg = ObjectiveConfig("elbo", 2, kl=kind, ratio="token")
        _, statistics = policy_terms(new, old, far, weight, jnp.ones(1), jnp.ones((1, 4), bool), cfg)
        assert statistics["policy/overflow"][0] == number, kind
