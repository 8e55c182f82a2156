import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igpo_jax.diffusion.sampler import HINT
from igpo_jax.model.transformer import ModelConfig, init, shardings
from igpo_jax.rl.likelihood import GroupBatch
from igpo_jax.rl.objective import (
    ObjectiveConfig,
    advantages,
    compute_logprobs,
    equal_rewards,
    group_weights,
    loss_and_statistics,
    means_over_parts,
    policy_terms,
)
from igpo_jax.runtime.mesh import shard_batch
from igpo_jax.training.state import accumulate_gradients

CFG = ModelConfig(vocab_size=24, mask_id=1, eos_id=2, width=32, layers=1, heads=4, kv_heads=2, mlp_width=32, head_chunk=7)
N, G, P_LENGTH, LENGTH = 8, 4, 5, 6
SHAPES = [(2, 2, 2), (4, 2, 1), (8, 1, 1), (1, 8, 1), (1, 1, 8)]


@functools.cache
def make_params(seed):
    return jax.jit(init, static_argnums=1)(jax.random.key(seed), CFG)


def moved(params, distance):
    """Returns a policy near `params`, with ratios on both sides of the clip range."""
    other = make_params(9)
    return jax.tree.map(lambda a, b: a + distance * (b - a), params, other)


def make_batch():
    draw = np.random.default_rng(0)
    hint = (draw.uniform(size=(N, G, LENGTH)) < 0.4) & (np.arange(LENGTH) > 0)
    return GroupBatch(
        prompt=draw.integers(3, CFG.vocab_size, (N, P_LENGTH), dtype=np.int32),
        prompt_mask=np.arange(P_LENGTH) >= draw.integers(0, 3, N)[:, None],
        problem_id=np.arange(N, dtype=np.uint32),
        completions=draw.integers(2, CFG.vocab_size, (N, G, LENGTH), dtype=np.int32),
        unmask_step=np.where(hint, HINT, draw.integers(0, LENGTH, hint.shape)).astype(np.int32),
        loss_mask=np.arange(LENGTH) < draw.integers(2, LENGTH + 1, (N, G, 1)),
        advantages=draw.normal(size=(N, G)).astype(np.float32),
    )


def scores_of(old, reference, batch, objective, mesh):
    return compute_logprobs(old, reference, batch, jax.random.key(0), CFG, objective, mesh)


def first(logprobs):
    return jax.tree.map(lambda x: x[0], logprobs)


def random_terms(rows=4, length=6, seed=0):
    draw = np.random.default_rng(seed)
    old = draw.normal(-2, 0.5, (rows, length)).astype(np.float32)
    new, reference = (old + draw.normal(0, 0.05, old.shape).astype(np.float32) for _ in range(2))
    loss_mask = draw.uniform(size=old.shape) < 0.6
    loss_mask[:, 0] = True
    return new, old, reference, np.linspace(-1, 1.5, rows, dtype=np.float32), loss_mask


def terms_of(new, old, reference, advantage, loss_mask, cfg, hint=None):
    """Computes `policy_terms` of completions with one view, in which all tokens have weight 1."""
    one_view = (jnp.asarray(x)[None] for x in (new, old, reference, jnp.ones_like(new)))
    return policy_terms(*one_view, advantage, loss_mask, cfg, hint)


# Advantages


def test_advantages_are_centred_in_each_group():
    rewards = np.array([[1.0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 1]], np.float32)
    expected = [[0.75, -0.25, -0.25, -0.25], [0, 0, 0, 0], [-0.5, 0.5, -0.5, 0.5]]
    np.testing.assert_allclose(advantages(rewards, np.ones((3, 4), bool), normalize=False), expected)


def test_advantages_may_be_divided_by_the_standard_deviation():
    rewards = np.array([[1.0, 0, 0, 0], [1, 1, 1, 1]], np.float32)
    deviation = math.sqrt(3) / 4
    expected = [[0.75 / deviation] + [-0.25 / deviation] * 3, [0, 0, 0, 0]]
    np.testing.assert_allclose(advantages(rewards, np.ones((2, 4), bool), normalize=True), expected, rtol=1e-3)


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.booleans())
def test_with_all_verdicts_advantages_are_the_plain_ones_to_the_bit(seed, size, normalize):
    draw = np.random.default_rng(seed)
    rewards = draw.choice([0, 0.125, 0.75, 1, 3, draw.normal()], (5, size)).astype(np.float32)
    plain = rewards - rewards.mean(axis=1, keepdims=True)
    plain[(rewards == rewards[:, :1]).all(axis=1)] = 0
    if normalize:
        plain = plain / (np.sqrt((plain**2).mean(axis=1, keepdims=True)) + 1e-4)
    found = advantages(rewards, np.ones(rewards.shape, bool), normalize)
    assert found.dtype == np.float32 and found.tobytes() == plain.tobytes()


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.booleans())
def test_advantages_are_over_the_completions_with_a_verdict(seed, size, normalize):
    draw = np.random.default_rng(seed)
    rewards, graded = draw.normal(size=(4, size)).astype(np.float32), draw.uniform(size=(4, size)) < draw.uniform()
    found = advantages(rewards, graded, normalize)
    for group, known, row in zip(rewards, graded, found, strict=True):
        assert (row[~known] == 0).all()
        if known.any():
            kept = group[known]
            deviation = kept.std() + 1e-4 if normalize else 1
            np.testing.assert_allclose(row[known], (kept - kept.mean()) / deviation, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("scale", [0.011, 1.0, 3.7, 1234.5])
def test_rewards_that_differ_by_rounding_have_no_advantage(scale, normalize):
    """Also equal rewards, whose mean may be rounded."""
    same = np.full(6, scale, np.float32)
    rewards = np.stack([same, np.where(np.arange(6) % 2, same, np.nextafter(same, np.float32(np.inf)))])
    graded = np.ones(rewards.shape, bool)
    assert equal_rewards(rewards, graded).all() and (advantages(rewards, graded, normalize) == 0).all()
    rewards[:, 0] = 0  # an ungraded completion changes nothing, a graded one does
    graded[:, 0] = False
    assert equal_rewards(rewards, graded).all() and (advantages(rewards, graded, normalize) == 0).all()
    graded[:, 0] = True
    assert not equal_rewards(rewards, graded).any() and (advantages(rewards, graded, normalize) != 0).all()


# One row at a time


def test_wd1_pulls_up_what_is_better_and_pushes_down_what_is_worse():
    """Checks minus the sum over the group of (softmax(A) - softmax(-A)) log pi, without ratio (arXiv 2507.08838)."""
    new, old, reference, advantage, loss_mask = random_terms()
    cfg = ObjectiveConfig(loss="wd1", kl_coefficient=0.0)
    weights = np.exp(advantage) / np.exp(advantage).sum() - np.exp(-advantage) / np.exp(-advantage).sum()
    rows, _ = terms_of(new, old, reference, advantage, loss_mask, cfg)
    sums = np.array([new[row][loss_mask[row]].sum() for row in range(len(new))])
    assert rows.mean() == pytest.approx(-np.sum(weights * sums), rel=1e-5)
    np.testing.assert_allclose(terms_of(new, new, reference, advantage, loss_mask, cfg)[0], rows)
    np.testing.assert_allclose(group_weights(jnp.zeros(4), jnp.ones(4, bool)), 0)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["clipped", "wd1"])
def test_a_completion_without_a_verdict_is_as_if_it_had_not_been_sampled(loss):
    """Apart from the divisor, which is the number of sampled completions."""
    new, old, reference, advantage, loss_mask = random_terms()
    kept = np.array([True, False, True, True])
    advantage, loss_mask = np.where(kept, advantage, 0), loss_mask & kept[:, None]
    cfg = ObjectiveConfig(loss=loss, kl_coefficient=0.0 if loss == "wd1" else 0.1)

    def gradient(new, rows):
        terms = old[rows], reference[rows], advantage[rows], loss_mask[rows], cfg
        return jax.grad(lambda new: terms_of(new, *terms)[0].mean())(new[rows]) * rows.sum()

    every, without = gradient(new, np.ones(4, bool)), gradient(new, kept)
    assert (every[1] == 0).all() and (without != 0).any()
    # wd1 multiplies the weights by the size of the group.
    np.testing.assert_allclose(every[kept], without * (4 / 3 if loss == "wd1" else 1), rtol=1e-4, atol=1e-6)


def test_over_the_canvas_a_token_weighs_the_same_in_short_and_long_completions():
    new, old, reference, advantage, _ = random_terms()
    loss_mask = np.arange(6) < np.array([1, 6, 3, 2])[:, None]
    cfg = ObjectiveConfig(ratio="token", normalization="canvas", kl_coefficient=0.1)
    gradient = jax.grad(lambda new: terms_of(new, old, old, advantage, loss_mask, cfg)[0].sum())(old)
    np.testing.assert_allclose(gradient, np.where(loss_mask, -advantage[:, None] / 6, 0), atol=1e-6)


def test_hints_of_better_completions_are_supervised():
    new, old, reference, advantage, loss_mask = random_terms()
    hint = ~loss_mask
    plain, supervised = (
        jax.grad(lambda x, c=c: terms_of(x, old, reference, advantage, loss_mask, c, hint)[0].sum())(new)
        for c in (ObjectiveConfig(), ObjectiveConfig(hint_supervision=0.3))
    )
    number = np.maximum(hint.sum(axis=1, keepdims=True), 1)
    expected = np.where(hint & (advantage > 0)[:, None], -0.3 / number, 0)
    np.testing.assert_allclose(supervised - plain, expected, atol=1e-6)


@pytest.mark.parametrize("ratio", ["sequence", "token"])
def test_loss_and_gradient_before_the_first_update(ratio):
    """Uses the vector of docs/method.md section 10, default reduction: three filtered tokens in the first row."""
    old = jnp.asarray(np.random.default_rng(0).normal(-2, 1, (2, 6)), jnp.float32)
    loss_mask = jnp.array([[True, False, True, False, False, True], [True] * 6])
    cfg = ObjectiveConfig(ratio=ratio)

    def loss(new):
        rows, statistics = terms_of(new, old, old, jnp.array([1.5, -0.5]), loss_mask, cfg)
        return rows.mean(), (rows, statistics)

    (value, (rows, statistics)), gradient = jax.value_and_grad(loss, has_aux=True)(old)
    np.testing.assert_allclose(rows, [-1.5, 0.5], rtol=1e-6)
    assert value == pytest.approx(-0.5)
    np.testing.assert_allclose(gradient, [[-0.25, 0, -0.25, 0, 0, -0.25], [1 / 24] * 6], rtol=1e-5)
    np.testing.assert_array_equal(statistics["policy/ratio_mean"], 1)
    for name in ("policy/kl", "policy/clip_fraction", "policy/overflow"):
        np.testing.assert_array_equal(statistics[name], 0, err_msg=name)


@pytest.mark.parametrize(
    "ratio, filtered, kept", [("sequence", -1 / 12, -1 / 12), ("token", 0.0, -1 / 6)], ids=["sequence", "token"]
)
def test_the_released_reduction(ratio, filtered, kept):
    """Checks the vector of docs/method.md section 10: loss -1/6; the sequence ratio passes gradient to filtered tokens."""
    old = jnp.asarray(np.random.default_rng(0).normal(-2, 1, (2, 6)), jnp.float32)
    loss_mask = jnp.array([[True, False, True, False, False, True], [True] * 6])
    cfg = ObjectiveConfig(ratio=ratio, reference_code=True)
    loss, gradient = jax.value_and_grad(lambda new: terms_of(new, old, old, jnp.array([1.5, -0.5]), loss_mask, cfg)[0].mean())(
        old
    )
    assert loss == pytest.approx(-1 / 6)
    np.testing.assert_allclose(gradient, [np.where(loss_mask[0], kept, filtered), [1 / 18] * 6], rtol=1e-5)


@pytest.mark.parametrize("ratio", ["sequence", "token"])
@pytest.mark.parametrize("kl_coefficient", [0.0, 0.5])
def test_filtered_tokens_get_no_gradient_at_all(ratio, kl_coefficient):
    """In the released code they get one through the mean of the sequence ratio."""
    new, old, reference, advantage, loss_mask = random_terms()
    cfg = ObjectiveConfig(ratio=ratio, kl_coefficient=kl_coefficient)

    def rows(new):
        return terms_of(new, old, reference, advantage, loss_mask, cfg)[0]

    gradient = np.asarray(jax.grad(lambda new: rows(new).sum())(new))
    np.testing.assert_array_equal(gradient[~loss_mask], 0)
    assert (gradient[loss_mask] != 0).all()
    np.testing.assert_array_equal(rows(np.where(loss_mask, new, -7.0)), rows(new))


@pytest.mark.parametrize("ratio", ["sequence", "token"])
def test_policy_terms_equal_a_loop(ratio):
    new, old, reference, advantage, loss_mask = random_terms(seed=1)
    new = old + 6 * (new - old)  # far enough to clip some ratios
    cfg = ObjectiveConfig(ratio=ratio, clip_low=0.1, clip_high=0.25, kl_coefficient=0.3)
    rows, statistics = terms_of(new, old, reference, advantage, loss_mask, cfg)
    clipped = 0
    for b in range(4):
        tokens = np.flatnonzero(loss_mask[b])
        mean = np.mean([new[b, k] - old[b, k] for k in tokens])
        total = 0.0
        for k in tokens:
            r = math.exp(mean if ratio == "sequence" else new[b, k] - old[b, k])
            surrogate = min(r * advantage[b], min(max(r, 0.9), 1.25) * advantage[b])
            clipped += (surrogate < r * advantage[b]) / len(tokens)
            d = reference[b, k] - new[b, k]
            total += -surrogate + 0.3 * (math.exp(d) - d - 1)
        assert rows[b] == pytest.approx(total / len(tokens), rel=1e-4)
    assert clipped > 0
    assert statistics["policy/clip_fraction"].sum() == pytest.approx(clipped)


def test_statistics_of_hint_tokens_and_of_generated_tokens_equal_a_loop():
    new, old, reference, advantage, loss_mask = random_terms(seed=1)
    new = old + 6 * (new - old)
    hint = np.random.default_rng(0).uniform(size=loss_mask.shape) < 0.4
    cfg = ObjectiveConfig(ratio="token", clip_low=0.1, clip_high=0.25)
    _, statistics = terms_of(new, old, reference, advantage, loss_mask, cfg, hint)
    found = means_over_parts({name: float(value.mean()) for name, value in statistics.items()})
    for part, mask in ("hint", hint & loss_mask), ("generated", ~hint & loss_mask):
        ratio, gap = np.exp(new - old)[mask], (reference - new)[mask]
        signs = np.broadcast_to(advantage[:, None], mask.shape)[mask]
        clipped = np.minimum(ratio * signs, np.clip(ratio, 0.9, 1.25) * signs) < ratio * signs
        assert found[f"policy/{part}/ratio_mean"] == pytest.approx(ratio.mean(), rel=1e-5)
        assert found[f"policy/{part}/kl"] == pytest.approx((np.exp(gap) - gap - 1).mean(), rel=1e-4)
        assert found[f"policy/{part}/clip_fraction"] == pytest.approx(clipped.mean(), rel=1e-5) != 0
    alone = means_over_parts({"policy/loss": 1.0, "policy/hint/tokens": 0.0, "policy/hint/weight": 0.0})
    assert alone == {"policy/loss": 1.0}


@pytest.mark.parametrize("ratio, advantage, loss, has_gradient", [
    (1.5, 1.0, -1.2, False),
    (1.5, -1.0, 1.5, True),
    (0.5, 1.0, -0.5, True),
    (0.5, -1.0, 0.7, False),
    (1.1, 1.0, -1.1, True),
    (0.9, -1.0, 0.9, True),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["sequence", "token"])
def test_clipping(ratio, advantage, loss, has_gradient, kind):
    cfg = ObjectiveConfig(ratio=kind, clip_low=0.3, clip_high=0.2, kl_coefficient=0.0)
    old = jnp.full((1, 3), -2.0)

    def value(new):
        return terms_of(new, old, old, jnp.array([advantage]), jnp.ones((1, 3), bool), cfg)[0].sum()

    new = old + math.log(ratio)
    assert value(new) == pytest.approx(loss, rel=1e-5)
    assert np.all((np.abs(jax.grad(value)(new)) > 0) == has_gradient)


def test_sequence_ratio_is_the_geometric_mean_of_the_token_ratios():
    old = jnp.zeros((1, 4))
    new, loss_mask = jnp.log(jnp.array([[4.0, 0.25, 2.0, 9.0]])), jnp.array([[True, True, True, False]])
    cfg = ObjectiveConfig(clip_low=0.99, clip_high=99, kl_coefficient=0)
    loss, statistics = terms_of(new, old, new, jnp.ones(1), loss_mask, cfg)
    assert loss[0] == pytest.approx(-(2.0 ** (1 / 3)), rel=1e-5)
    tokenwise, _ = terms_of(new, old, new, jnp.ones(1), loss_mask, ObjectiveConfig(ratio="token", clip_high=99, clip_low=0.99))
    assert tokenwise[0] == pytest.approx(-(4 + 0.25 + 2) / 3, rel=1e-5)


@pytest.mark.parametrize("sign", [-1, 1])
def test_huge_log_ratios_stay_finite_and_are_counted(sign):
    new, old = jnp.full((1, 4), -50.0 + sign * 500), jnp.full((1, 4), -50.0)
    loss_mask = jnp.array([[True, True, True, False]])

    def loss(new):
        rows, statistics = terms_of(new, old, old, -jnp.ones(1), loss_mask, ObjectiveConfig())
        return rows.sum(), statistics

    (value, statistics), gradient = jax.value_and_grad(loss, has_aux=True)(new)
    assert np.isfinite(value) and np.isfinite(gradient).all()
    assert statistics["policy/overflow"] == 3


def test_a_row_without_tokens_costs_nothing():
    new, old, reference, advantage, loss_mask = random_terms()
    loss_mask[1] = False

    def loss(new):
        return terms_of(new, old, reference, advantage, loss_mask, ObjectiveConfig())[0]

    assert loss(new)[1] == 0
    gradient = jax.grad(lambda new: loss(new).sum())(new)
    assert np.isfinite(gradient).all() and (gradient[1] == 0).all()


@pytest.mark.parametrize("change, message", [
    (dict(estimator="exact"), "objective.estimator='exact'.*mean_field.*elbo.*trace"),
    (dict(samples=2), "objective.samples=2.*mean_field"),
    (dict(estimator="coupled", samples=3), "objective.samples=3.*pairs"),
    (dict(estimator="elbo", samples=0), "objective.samples=0"),
    (dict(upper_weight=0.5), "objective.upper_weight=0.5"),
    (dict(estimator="trace", samples=2, upper_weight=0.5), "objective.upper_weight=0.5"),
    (dict(estimator="elbo", samples=2, upper_weight=1.5), "upper_weight"),
    (dict(estimator="elbo", samples=2, upper_power=0.5), "upper_power"),
    (dict(loss="ppo"), "objective.loss='ppo'"),
    (dict(loss="wd1", ratio="token"), "objective.ratio='token'"),
    (dict(kl="k4"), "objective.kl='k4'"),
    (dict(normalization="canvas"), "objective.ratio='token'"),
    (dict(normalization="canvas", ratio="token", normalize_advantages=True), "objective.normalize_advantages"),
    (dict(reference_code=True, kl="k2"), "objective.reference_code=True"),
    (dict(kl="k1"), "gradient of k1 is 0 on average"),
    (dict(kl="k1", kl_coefficient=1e-9, loss="wd1"), "objective.kl='k1'.*k3_corrected"),
    (dict(estimator="elbo", samples=2, upper_weight=0.5, ratio="token"), "objective.ratio='token'.*upper bound"),
    (dict(reference_code=True, estimator="elbo"), "objective.reference_code=True"),
    (dict(hint_supervision=-1.0), "hint_supervision"),
    (dict(ratio="word"), "objective.ratio='word'"),
    (dict(entropy_keep=1.2), "objective.entropy_keep=1.2"),
    (dict(inner_steps=0), "objective.inner_steps"),
    (dict(clip_low=1.0), "objective.clip_low"),
])  # fmt: skip
def test_impossible_configs_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ObjectiveConfig(**change)


# The complete objective


EVERY_ESTIMATOR = [
    dict(estimator="mean_field"),
    dict(estimator="prompt_masked"),
    dict(estimator="masked"),
    dict(estimator="elbo", samples=3),
    dict(estimator="quadrature", samples=3),
    dict(estimator="coupled", samples=2),
    dict(estimator="coupled", samples=2, upper_weight=0.5, upper_power=1.5),
    dict(estimator="trace", samples=3),
]


@pytest.mark.parametrize("estimator, how, parts", [
    pytest.param(
        estimator, *how, id="-".join(map(str, [*estimator.values(), name])),
        marks=[pytest.mark.slow] * ((name == "token") != (estimator["estimator"] == "quadrature")),
    )
    for estimator in EVERY_ESTIMATOR
    for name, how in {"sequence": (dict(), 1), "token": (dict(ratio="token", kl="k2"), 4)}.items()
    if name == "sequence" or "upper_weight" not in estimator
])  # fmt: skip
def test_before_the_first_update_ratio_is_one_and_kl_is_zero(estimator, how, parts, mesh):
    """With a sequence ratio, or weights of 1, the loss is then minus the mean advantage: 0 for centered groups."""
    # In the second inner step `masked` masks everything, so that every row has tokens in the loss.
    objective, params = ObjectiveConfig(**estimator, **how, inner_steps=2), make_params(0)

    def run(batch):
        logprobs = compute_logprobs(params, params, batch, jax.random.key(0), CFG, objective, mesh, parts)
        logprobs = jax.tree.map(lambda x: x[-1], logprobs)
        function = jax.jit(functools.partial(loss_and_statistics, cfg=CFG, objective=objective, mesh=mesh))
        return *function(params, batch, logprobs), jax.device_get(logprobs)

    batch = make_batch()
    loss, statistics, logprobs = run(batch)
    # In the sequence loss a completion counts once. In the token loss it counts with the mean weight of its tokens.
    weight = np.sum(logprobs.views.weight, axis=1) if objective.ratio == "token" else np.ones((N, G, LENGTH))
    share = np.sum(weight, axis=-1, where=logprobs.loss_mask) / np.maximum(logprobs.loss_mask.sum(axis=-1), 1)
    assert loss == pytest.approx(-(batch.advantages * share).mean(), abs=1e-5)
    assert statistics["policy/ratio_mean"] == pytest.approx((share > 0).mean(), abs=1e-5)
    assert statistics["policy/kl"] == pytest.approx(0, abs=1e-6)
    assert statistics["policy/clip_fraction"] == statistics["policy/overflow"] == 0


@pytest.mark.slow
def test_groups_of_equal_rewards_have_no_gradient(mesh):
    objective, params = ObjectiveConfig(kl_coefficient=0.0), make_params(0)
    batch = make_batch().replace(advantages=advantages(np.ones((N, G), np.float32), np.ones((N, G), bool), normalize=True))
    logprobs = first(scores_of(params, params, batch, objective, mesh))
    gradient = jax.jit(jax.grad(lambda p, b: loss_and_statistics(p, b, logprobs, CFG, objective, mesh)[0]))
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient(moved(params, 0.1), batch)))
    assert any((leaf != 0).any() for leaf in jax.tree.leaves(gradient(moved(params, 0.1), make_batch())))


@pytest.mark.parametrize("estimator, reference_code, shapes", [  # test_whole_step compares mean_field on the other meshes
    pytest.param("mean_field", False, SHAPES[:1], id="mean_field"),
    pytest.param("masked", True, SHAPES, id="masked", marks=pytest.mark.slow),
])  # fmt: skip
def test_loss_and_gradients_do_not_depend_on_the_mesh(estimator, reference_code, shapes, mesh_of):
    objective = ObjectiveConfig(estimator=estimator, inner_steps=2, kl_coefficient=0.2, reference_code=reference_code)
    old, reference, batch, one = make_params(0), make_params(1), make_batch(), mesh_of((1, 1, 1))
    near = moved(old, 0.1)
    logprobs = jax.device_get(first(scores_of(old, reference, batch, objective, one)))

    def run(shape):
        mesh = mesh_of(shape)
        with jax.set_mesh(mesh):
            params = jax.device_put(near, shardings(CFG, mesh))
            function = jax.jit(
                jax.value_and_grad(lambda params, *rest: loss_and_statistics(params, *rest, CFG, objective, mesh), has_aux=True)
            )
            return jax.device_get(function(params, *shard_batch((batch, logprobs), mesh)))

    expected = run((1, 1, 1))
    (loss, statistics), _ = expected
    assert abs(loss) > 0.01 and 0 < statistics["policy/clip_fraction"] < 1 and statistics["policy/kl"] > 0.01
    for shape in shapes:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6, err_msg=str(shape)), run(shape), expected
        )


@pytest.mark.slow
def test_gradients_of_the_shared_forward_equal_a_row_per_completion(mesh):
    """mean_field tiles nothing; views with one row per completion send each completion through the network."""
    batch, objective = make_batch(), ObjectiveConfig(kl_coefficient=0.2)
    shared = first(scores_of(make_params(0), make_params(1), batch, objective, mesh))
    rows = (N, 1, G)
    views = shared.views.replace(masked=np.ones((*rows, LENGTH), bool), prompt_masked=np.zeros((*rows, P_LENGTH), bool))

    def run(logprobs):
        def loss(params):
            return loss_and_statistics(params, batch, logprobs, CFG, objective, mesh)[0]

        return jax.jit(jax.value_and_grad(loss))(moved(make_params(0), 0.1))

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), run(shared), run(shared.replace(views=views))
    )


@pytest.mark.slow
def test_gradient_accumulation_changes_nothing(mesh):
    objective, old, batch = ObjectiveConfig(kl_coefficient=0.2), make_params(0), make_batch()
    logprobs = first(scores_of(old, make_params(1), batch, objective, mesh))

    def run(microbatches):
        def loss(params, part):
            return loss_and_statistics(params, *part, CFG, objective, mesh)

        value_and_grad = jax.value_and_grad(loss, has_aux=True)
        return jax.jit(lambda p: accumulate_gradients(value_and_grad, p, (batch, logprobs), microbatches))(moved(old, 0.1))

    expected = run(1)
    for microbatches in (2, 4):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), run(microbatches), expected)
