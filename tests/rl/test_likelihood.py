import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from igpo_jax.diffusion.sampler import HINT
from igpo_jax.model.transformer import ModelConfig, forward, init, shardings, unembed
from igpo_jax.rl.likelihood import LOWEST_LEVEL, NOISE_LEVELS, GroupBatch, hidden_states, views_of
from igpo_jax.rl.objective import LogProbs, ObjectiveConfig, compute_logprobs, entropy_filter
from igpo_jax.runtime.mesh import shard_batch

MASK, EOS = 1, 2
CFG = ModelConfig(
    vocab_size=24, mask_id=MASK, eos_id=EOS, width=32, layers=1, heads=4, kv_heads=2, mlp_width=32, head_chunk=7
)
N, G, P_LENGTH, LENGTH = 8, 4, 5, 6
# (shape, parts of the batch)
FEW_MESHES = [((2, 2, 2), 1), ((2, 1, 2), 2)]
MORE_MESHES = [((4, 2, 1), 1), ((8, 1, 1), 1), ((1, 8, 1), 1), ((1, 1, 8), 1), ((1, 1, 1), 2)]


def make_params(seed):
    return jax.jit(init, static_argnums=1)(jax.random.key(seed), CFG)


def make_batch():
    draw = np.random.default_rng(0)
    return GroupBatch(
        prompt=draw.integers(3, CFG.vocab_size, (N, P_LENGTH), dtype=np.int32),
        prompt_mask=np.arange(P_LENGTH) >= draw.integers(0, 3, N)[:, None],
        problem_id=draw.permutation(100)[:N].astype(np.uint32),
        completions=draw.integers(2, CFG.vocab_size, (N, G, LENGTH), dtype=np.int32),
        unmask_step=np.where(draw.uniform(size=(N, G, LENGTH)) < 0.4, HINT, 0).astype(np.int32),
        loss_mask=np.arange(LENGTH) < draw.integers(2, LENGTH + 1, (N, G, 1)),
        advantages=draw.normal(size=(N, G)).astype(np.float32),
    )


def tiled_log_probs(params, batch, seen):
    """Returns log-probabilities and entropies with one row per completion. seen: int32 [n, g, l]."""
    tokens = np.concatenate([np.repeat(batch.prompt, G, 0), seen.reshape(N * G, LENGTH)], axis=1)
    prompt_mask = np.concatenate([np.repeat(batch.prompt_mask, G, 0), np.ones((N * G, LENGTH), bool)], axis=1)
    hidden = jax.jit(forward, static_argnums=3)(params, tokens, prompt_mask, CFG)[:, P_LENGTH:]
    table = np.asarray(jax.nn.log_softmax(unembed(params, hidden, CFG))).reshape(N, G, LENGTH, -1)
    chosen = np.take_along_axis(table, batch.completions[..., None], axis=-1)[..., 0]
    return chosen, -np.sum(np.exp(table) * table, axis=-1)


def on_mesh(mesh, params, batch):
    return jax.device_put(params, shardings(CFG, mesh)), shard_batch(batch, mesh)


# Log-probabilities and entropy


def test_mean_field_equals_a_row_per_completion(mesh):
    """Sharing one forward pass among completions is exact."""
    old, reference, batch = make_params(0), make_params(1), make_batch()
    logprobs = compute_logprobs(old, reference, batch, jax.random.key(0), CFG, ObjectiveConfig(), mesh)
    seen = np.full(batch.completions.shape, MASK)
    log_probs, entropy = tiled_log_probs(old, batch, seen)
    assert logprobs.old.shape == (1, N, 1, G, LENGTH)
    assert logprobs.views.masked.all() and (logprobs.views.weight == 1).all() and logprobs.views.scored.all()
    np.testing.assert_allclose(logprobs.old[0, :, 0], log_probs, atol=2e-5)
    np.testing.assert_allclose(logprobs.entropy[0], entropy, atol=2e-5)
    np.testing.assert_allclose(logprobs.reference[0, :, 0], tiled_log_probs(reference, batch, seen)[0], atol=2e-5)


@pytest.mark.parametrize("estimator", ["mean_field", "prompt_masked"])
def test_what_does_not_look_at_completions_sends_one_row_per_prompt_through_the_network(estimator):
    batch, objective = make_batch(), ObjectiveConfig(estimator)
    views = jax.tree.map(lambda x: x[0], views_of(jax.random.key(0), batch, objective))
    hidden = jax.eval_shape(lambda params: hidden_states(params, batch, views, CFG), make_params(0))
    assert hidden.shape == (N, 1, LENGTH, CFG.width)


def test_masked_scores_see_what_is_not_masked(mesh):
    old, batch = make_params(0), make_batch()
    logprobs = compute_logprobs(old, old, batch, jax.random.key(0), CFG, ObjectiveConfig(estimator="masked", inner_steps=3), mesh)
    assert logprobs.old.shape == (3, N, 1, G, LENGTH)
    for step in range(3):
        masked = np.asarray(logprobs.views.masked[step, :, 0])
        assert step == 2 or not masked.all()
        log_probs, entropy = tiled_log_probs(old, batch, np.where(masked, MASK, batch.completions))
        np.testing.assert_array_equal(logprobs.views.scored[step], masked)
        np.testing.assert_allclose(logprobs.old[step, :, 0], log_probs, atol=2e-5)  # also of visible tokens
        np.testing.assert_allclose(logprobs.entropy[step], np.where(masked, entropy, 0), atol=2e-5)
    np.testing.assert_allclose(logprobs.old, logprobs.reference, atol=1e-6)  # the same sums, possibly in another order


@pytest.mark.parametrize("estimator, samples", [("mean_field", 1), ("masked", 1), ("elbo", 3), ("trace", 3)])
def test_abstract_log_probabilities_have_the_shapes_of_real_ones(estimator, samples, mesh):
    """`igpo_jax.plan` compiles an update for them."""
    objective, batch = ObjectiveConfig(estimator, samples, inner_steps=2), make_batch()
    params = jax.eval_shape(lambda: make_params(0))
    real = jax.eval_shape(lambda p, b: compute_logprobs(p, p, b, jax.random.key(0), CFG, objective, mesh), params, batch)
    abstract = LogProbs.abstract(mesh, GroupBatch.abstract(mesh, N, G, P_LENGTH, LENGTH), objective)
    jax.tree.map(lambda a, b: np.testing.assert_equal((a.shape, a.dtype), (b.shape, b.dtype)), abstract, real)


@pytest.mark.slow
@pytest.mark.parametrize("estimator, samples, meshes", [  # test_whole_step compares mean_field on the other meshes
    pytest.param("mean_field", 1, FEW_MESHES, id="mean_field"),
    pytest.param("masked", 1, FEW_MESHES + MORE_MESHES, id="masked"),
    pytest.param("coupled", 2, FEW_MESHES, id="coupled"),
])  # fmt: skip
def test_scores_do_not_depend_on_the_mesh(estimator, samples, meshes, mesh_of):
    objective = ObjectiveConfig(estimator, samples, inner_steps=2)

    def scores_on(shape, parts=1):
        mesh = mesh_of(shape)
        old, batch = on_mesh(mesh, make_params(0), make_batch())
        reference = jax.device_put(make_params(1), shardings(CFG, mesh))
        with jax.set_mesh(mesh):
            return jax.device_get(compute_logprobs(old, reference, batch, jax.random.key(0), CFG, objective, mesh, parts))

    expected = scores_on((1, 1, 1))
    for shape, parts in meshes:
        have = scores_on(shape, parts)
        for name in ("old", "reference", "entropy"):
            np.testing.assert_allclose(getattr(have, name), getattr(expected, name), atol=2e-5, err_msg=f"{name} {shape}")
        jax.tree.map(np.testing.assert_array_equal, have.views, expected.views)
        np.testing.assert_array_equal(have.loss_mask, expected.loss_mask)


@pytest.mark.slow
def test_a_tied_head_is_sharded_by_vocabulary_too(mesh_of):
    """The embedding is sharded over tensor by its first axis, the head that `token_scores` reads by its second."""
    cfg, batch = dataclasses.replace(CFG, tied_head=True), make_batch()
    params = {name: value for name, value in make_params(0).items() if name != "head"}

    def scores_on(shape):
        mesh = mesh_of(shape)
        with jax.set_mesh(mesh):
            sharded = jax.device_put(params, shardings(cfg, mesh))
            return compute_logprobs(sharded, sharded, shard_batch(batch, mesh), jax.random.key(0), cfg, ObjectiveConfig(), mesh).old

    expected = tiled_log_probs(params | {"head": params["embedding"].T}, batch, np.full((N, G, LENGTH), MASK))[0]
    for shape in ((1, 1, 1), (2, 2, 2)):
        np.testing.assert_allclose(scores_on(shape)[0, :, 0], expected, atol=1e-4)


# Masks of the masked estimator


RANDOM = [("prompt_masked", 1), ("masked", 1), ("elbo", 3), ("quadrature", 3), ("coupled", 4)]


@pytest.mark.parametrize("estimator, samples", RANDOM)
def test_masks_belong_to_the_completion_not_to_its_place_in_the_batch(estimator, samples):
    batch, order = make_batch(), np.random.default_rng(1).permutation(N)
    objective = ObjectiveConfig(estimator, samples, inner_steps=2)
    views = views_of(jax.random.key(0), batch, objective)
    jax.tree.map(np.testing.assert_array_equal, views_of(jax.random.key(0), batch, objective), views)
    moved = views_of(jax.random.key(0), jax.tree.map(lambda x: x[order], batch), objective)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[:, order]), moved, views)
    other = views_of(jax.random.key(1), batch, objective)
    assert any(not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(views), strict=True))


def masks_of(batch, inner_steps):
    """Returns the masks of the estimator `masked`, [e, n, g, l]."""
    return views_of(jax.random.key(0), batch, ObjectiveConfig("masked", inner_steps=inner_steps)).scored


def test_masks_differ_between_problems_completions_and_inner_steps():
    long = make_batch().replace(completions=np.zeros((N, G, 500), np.int32))
    masks = np.asarray(masks_of(long, 3))[:2]  # the last step masks everything
    assert len(np.unique(masks.reshape(-1, 500), axis=0)) == 2 * N * G


def test_later_inner_steps_mask_more_and_the_last_one_everything():
    long = make_batch().replace(completions=np.zeros((N, G, 2000), np.int32))
    share = np.asarray(masks_of(long, 4)).mean(axis=-1)
    assert (np.diff(share, axis=0) > 0).all()
    assert (share[-1] == 1).all()
    first = share[0]
    assert first.min() > LOWEST_LEVEL / NOISE_LEVELS - 0.05 and first.max() < 1
    assert first.std() > 0.1, "the first level is drawn per completion"
    # Levels between the first and the last are evenly spaced (up to the rounding to steps of 1/128).
    np.testing.assert_allclose(share[1], first + (1 - first) / 3, atol=0.06)


def test_a_single_inner_step_has_masked_and_unmasked_tokens():
    share = np.asarray(masks_of(make_batch(), 1)).mean()
    assert 0.3 < share < 0.95


# The entropy filter and the loss mask


@pytest.mark.parametrize("hints, kept", [(77, 15), (10, 2), (5, 1), (4, 1), (1, 1), (0, 0)])
def test_the_most_uncertain_fifth_of_the_hints_is_kept(hints, kept):
    draw = np.random.default_rng(hints)
    candidates = np.zeros(100, bool)
    candidates[draw.permutation(100)[:hints]] = True
    entropy = draw.uniform(size=100)
    selected = np.asarray(entropy_filter(jnp.array(entropy), jnp.array(candidates), 0.2))
    assert selected.sum() == kept
    assert not (selected & ~candidates).any()
    if 0 < kept < hints:
        assert entropy[selected].min() > entropy[candidates & ~selected].max()


def test_of_equal_entropies_the_first_are_kept():
    candidates = jnp.array([False, True, True, True, False, True])
    np.testing.assert_array_equal(
        entropy_filter(jnp.ones(6), candidates, 0.5), [False, True, True, False, False, False]
    )


def test_nothing_is_kept_at_share_zero():
    assert not entropy_filter(jnp.ones((2, 3)), jnp.ones((2, 3), bool), 0.0).any()


def test_everything_is_kept_at_share_one():
    candidates = jnp.array([[False, True, True], [True, True, True]])
    np.testing.assert_array_equal(entropy_filter(jnp.ones((2, 3)), candidates, 1.0), candidates)


@pytest.mark.parametrize("estimator", ["mean_field", "masked"])
def test_the_loss_mask_keeps_generated_tokens_and_uncertain_hints(estimator, mesh):
    objective = ObjectiveConfig(estimator=estimator, inner_steps=2, entropy_keep=0.5)
    batch = make_batch()
    logprobs = jax.device_get(compute_logprobs(make_params(0), make_params(1), batch, jax.random.key(0), CFG, objective, mesh))
    for scored, loss_mask, entropy in zip(logprobs.views.scored, logprobs.loss_mask, logprobs.entropy, strict=True):
        counts = batch.loss_mask & scored
        np.testing.assert_array_equal(loss_mask & ~batch.hint, counts & ~batch.hint)
        # Hints after the first EOS would use up the budget, so they are no candidates.
        for row in np.ndindex(N, G):
            candidates = np.flatnonzero((counts & batch.hint)[row])
            number = max(1, len(candidates) // 2) if len(candidates) else 0
            best = sorted(candidates, key=lambda i: (-entropy[row][i], i))[:number]
            assert set(np.flatnonzero((loss_mask & batch.hint)[row])) == set(best)
