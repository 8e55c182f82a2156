import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from igpo_jax.model.logprobs import head_partition, token_log_probs, token_scores
from igpo_jax.model.sharding import all_gather
from igpo_jax.model.transformer import ModelConfig, init, shardings, unembed
from igpo_jax.runtime.mesh import BATCH, shard_batch

CFG = ModelConfig(vocab_size=24, mask_id=1, eos_id=2, width=32, layers=1, heads=4, kv_heads=2, mlp_width=32, head_chunk=7)
MESHES = [(1, 1, 1), (2, 2, 2), (8, 1, 1), (1, 8, 1), (1, 1, 8)]


def sharded_scores(mesh, chunk):
    """Returns `token_scores` as a function of unsharded arrays."""

    def scores(hidden, head, targets):
        specs = {"in_specs": (P(BATCH), head_partition(head), P(BATCH)), "out_specs": (P(BATCH), P(BATCH))}
        return jax.shard_map(lambda *x: token_scores(*x, chunk), mesh=mesh, **specs)(hidden, head, targets)

    return scores


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("chunk", [5, 1000])
def test_scores_equal_a_log_softmax_over_the_vocabulary(rows, chunk, mesh_of):
    hidden = 3 * jax.random.normal(jax.random.key(0), (8, rows, 6, 32))
    head = jax.random.normal(jax.random.key(1), (32, 24))
    targets = np.asarray(jax.random.randint(jax.random.key(2), (8, 4, 6), 0, 24))
    log_probs, entropy = jax.jit(sharded_scores(mesh_of((2, 1, 4)), chunk))(hidden, head, targets)
    table = np.repeat(jax.nn.log_softmax(hidden @ head), 4 // rows, axis=1)
    np.testing.assert_allclose(log_probs, np.take_along_axis(table, targets[..., None], -1)[..., 0], atol=1e-4)
    np.testing.assert_allclose(entropy, -np.sum(np.exp(table) * table, axis=-1), atol=1e-4)


def test_scores_survive_huge_logits(mesh):
    scores = sharded_scores(mesh, 4)
    log_probs, entropy = scores(jnp.full((1, 1, 2, 1), 1.0), jnp.array([[1e4, 1e4, 0.0]]), jnp.array([[[0, 2]]]))
    np.testing.assert_allclose(log_probs, [[[-math.log(2), -1e4 - math.log(2)]]], rtol=1e-5)
    np.testing.assert_allclose(entropy, math.log(2), rtol=1e-5)


# The chunk size changes memory use, not values. Chunks may divide the 32 positions, not divide them, or hold all.
@pytest.mark.slow
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chunk=st.integers(1, 40), seed=st.integers(0, 1000))
def test_chunking_of_positions_changes_nothing(chunk, seed, mesh):
    draw = np.random.default_rng(seed)
    hidden, head = draw.normal(size=(4, 1, 8, 16)).astype(np.float32), draw.normal(size=(16, 12)).astype(np.float32)
    targets = draw.integers(0, 12, (4, 3, 8))
    weight = draw.normal(size=(2, *targets.shape)).astype(np.float32)

    def run(chunk):
        def value(hidden, head):
            outputs = jnp.stack(sharded_scores(mesh, chunk)(hidden, head, targets))
            return jnp.sum(weight * outputs), outputs

        return jax.jit(jax.value_and_grad(value, argnums=(0, 1), has_aux=True))(hidden, head)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), run(chunk), run(32))


def plain_log_probs(params, hidden, targets):
    return jnp.take_along_axis(jax.nn.log_softmax(unembed(params, hidden, CFG)), targets[..., None], -1)[..., 0]


@pytest.mark.parametrize(
    "shape", [None, (2, 2, 2), *(pytest.param(shape, marks=pytest.mark.slow) for shape in MESHES if shape != (2, 2, 2))]
)
def test_log_probs_and_gradients_equal_those_of_whole_logits(shape, mesh_of):
    params = jax.jit(init, static_argnums=1)(jax.random.key(0), CFG)
    hidden, targets = jax.random.normal(jax.random.key(1), (8, 5, 32)), jax.random.randint(jax.random.key(2), (8, 5), 0, 24)

    def gradients(function, params, hidden, targets):
        def value(params, hidden):
            out = function(params, hidden, targets)
            return jnp.sum(out * jnp.arange(5)), out

        return jax.jit(jax.grad(value, argnums=(0, 1), has_aux=True))(params, hidden)

    expected = gradients(plain_log_probs, params, hidden, targets)

    def chunked(*arrays):
        return token_log_probs(*arrays, CFG)

    if shape is None:
        have = gradients(chunked, params, hidden, targets)
    else:
        mesh = mesh_of(shape)
        with jax.set_mesh(mesh):
            have = gradients(chunked, jax.device_put(params, shardings(CFG, mesh)), *shard_batch((hidden, targets), mesh))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), have, expected)


def test_whole_logits_never_exist():
    cfg = ModelConfig(vocab_size=4096, mask_id=1, eos_id=2, width=8, layers=1, heads=1, kv_heads=1, mlp_width=8, head_chunk=16)
    params = jax.eval_shape(lambda: init(jax.random.key(0), cfg))
    hidden, targets = jax.ShapeDtypeStruct((4, 64, 8), jnp.float32), jax.ShapeDtypeStruct((4, 64), jnp.int32)
    gradient = jax.grad(lambda *arrays: token_log_probs(*arrays, cfg).sum())
    memory = jax.jit(gradient).lower(params, hidden, targets).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * 64 * 4096 * 4


@pytest.mark.parametrize("dtype", [np.float32, np.int8])
def test_no_sum_goes_through_the_reduce_scatter_of_gloo(dtype, mesh_of, monkeypatch):
    draw = np.random.default_rng(0)
    matrix, weight = draw.integers(-9, 9, (16, 12)).astype(dtype), draw.normal(size=(16, 12)).astype(np.float32)

    def run():
        def total(matrix):
            gathered = jax.shard_map(
                lambda x: (all_gather(x, "fsdp") * weight[:, :3]).sum(keepdims=True),
                mesh=mesh_of((2, 2, 2)),
                in_specs=P("fsdp", "tensor"),
                out_specs=P("fsdp", "tensor"),
            )
            return gathered(matrix[:, :6]).sum()

        function = jax.jit(jax.value_and_grad(total) if dtype == np.float32 else total)
        return function(matrix), function.lower(matrix).compile().as_text()

    value, program = run()
    assert ("reduce-scatter(" in program) == (dtype == np.float32)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    with_gloo, program = run()
    assert "reduce-scatter(" not in program and "all-reduce(" in program
    jax.tree.map(np.testing.assert_array_equal, with_gloo, value)
