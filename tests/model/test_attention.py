"""The attention back ends against each other; the splash kernel runs in interpreter mode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from igpo_jax.model.attention import LANES, KVCache, Window, _query_chunks, attend, attend_window, splash_attention
from igpo_jax.runtime.mesh import BATCH

H = LANES


def inputs(rows=4, length=2 * LANES, heads=4, kv_heads=2, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    q, weight = (jax.random.normal(key, (rows, length, heads, H), dtype) for key in keys[:2])
    k, v = (jax.random.normal(key, (rows, length, kv_heads, H), dtype) for key in keys[2:])
    attention_mask = np.arange(length) >= np.array([0, 1, LANES, LANES + 7])[:rows, None]  # padding on the left
    return (q, k, v), attention_mask, weight * attention_mask[..., None, None]  # outputs at padding are unused


def value_and_gradients(attention, arguments, attention_mask, weight):
    def loss(q, k, v):
        a = attention(q, k, v, attention_mask)
        return jnp.sum(a.astype(jnp.float32) * weight), a

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*arguments)


def assert_close(have, want, attention_mask, tolerance):
    (_, a), gradients = have
    (_, expected), expected_gradients = want
    scale = float(jnp.abs(expected.astype(jnp.float32)).max())
    np.testing.assert_allclose(
        np.asarray(a, np.float32)[attention_mask], np.asarray(expected, np.float32)[attention_mask], atol=tolerance * scale
    )
    for gradient, of in zip(gradients, expected_gradients, strict=True):
        of = np.asarray(of, np.float32)
        np.testing.assert_allclose(np.asarray(gradient, np.float32), of, atol=tolerance * np.abs(of).max())


def splash(q, k, v, attention_mask):
    return splash_attention(q, k, v, attention_mask, interpret=True)


def xla(q, k, v, attention_mask):
    return attend(q, k, v, attention_mask, "xla")


def differentiated(q, k, v, attention_mask):
    """Runs jax's attention with automatic differentiation."""
    mask = attention_mask[:, None, None, :] if attention_mask.ndim == 2 else attention_mask[:, None]
    return jax.nn.dot_product_attention(q, k, v, mask=jnp.asarray(mask))


def some_to_some(attention_mask):
    """Returns which positions each may attend to, different in every row: itself and others, never padding."""
    sees = np.random.default_rng(0).random((*attention_mask.shape, attention_mask.shape[-1])) < 0.3
    return (sees | np.eye(attention_mask.shape[-1], dtype=bool)) & attention_mask[:, None] & attention_mask[..., None]


@pytest.mark.parametrize("valid_axes", [2, 3])
@pytest.mark.parametrize(
    "heads, kv_heads",
    [pytest.param(4, 4, marks=pytest.mark.slow), (4, 2), pytest.param(4, 1, marks=pytest.mark.slow), (6, 3)],
)
def test_own_gradients_are_those_of_differentiation(heads, kv_heads, valid_axes):
    arguments, attention_mask, weight = inputs(length=24, heads=heads, kv_heads=kv_heads)
    sees = attention_mask if valid_axes == 2 else some_to_some(attention_mask)
    results = [value_and_gradients(attention, arguments, sees, weight) for attention in (xla, differentiated)]
    assert_close(*results, attention_mask, 2e-6)


@pytest.mark.parametrize(
    "peak, shift", [(1, 0), pytest.param(8, 0, marks=pytest.mark.slow), pytest.param(1, 10, marks=pytest.mark.slow), (8, 10)]
)
@pytest.mark.parametrize("valid_axes", [2, 3])
def test_own_gradients_in_bfloat16_are_as_near_to_float32_as_those_of_differentiation(valid_axes, peak, shift):
    """Includes peaked attention, and a large common part of keys and values, which gradients must not contain."""
    (q, k, v), attention_mask, weight = inputs(length=24)
    sees = attention_mask if valid_axes == 2 else some_to_some(attention_mask)
    low = tuple(x.astype(jnp.bfloat16) for x in (q * peak, k + shift, v + shift))
    _, exact = value_and_gradients(xla, tuple(x.astype(jnp.float32) for x in low), sees, weight)

    def errors(attention):
        _, gradients = value_and_gradients(attention, low, sees, weight)
        assert all(g.dtype == jnp.bfloat16 for g in gradients)
        return np.array([jnp.linalg.norm(g - e) / jnp.linalg.norm(e) for g, e in zip(gradients, exact, strict=True)])

    assert (errors(xla) < 1.1 * errors(differentiated)).all()


@pytest.mark.parametrize("heads, kv_heads", [pytest.param(4, 4, marks=pytest.mark.slow), (4, 2)])
@pytest.mark.parametrize("shape", [(2, 1, 2), (1, 2, 2), pytest.param((1, 4, 1), marks=pytest.mark.slow)])
def test_own_gradients_on_meshes(shape, heads, kv_heads, mesh_of):
    arguments, attention_mask, weight = inputs(length=24, heads=heads, kv_heads=kv_heads)
    with jax.set_mesh(mesh := mesh_of(shape)):
        by_heads = NamedSharding(mesh, P(BATCH, None, "tensor"))
        have = value_and_gradients(xla, jax.device_put(arguments, by_heads), attention_mask, weight)
    assert all(gradient.sharding.is_equivalent_to(by_heads, 4) for gradient in have[1])
    assert_close(have, value_and_gradients(differentiated, arguments, attention_mask, weight), attention_mask, 2e-6)


@pytest.mark.parametrize("valid_axes", [2, 3])
@pytest.mark.parametrize("kv_heads, shape", [(4, None), (2, None), (2, (2, 2, 2))])
def test_chunks_of_queries_change_nothing(kv_heads, shape, valid_axes, mesh_of, monkeypatch):
    (q, k, v), attention_mask, _ = inputs(length=23, kv_heads=kv_heads)
    sees = attention_mask if valid_axes == 2 else some_to_some(attention_mask)
    expected = differentiated(q, *(x.repeat(4 // kv_heads, axis=2) for x in (k, v)), sees)
    of_query = 4 * 4 * kv_heads * 23  # bytes of the scores that one query has in all four rows and all key heads
    monkeypatch.setattr("igpo_jax.model.attention.LARGEST_SCORES", 7 * of_query / (8 if shape else 1))
    assert _query_chunks(4, 23 * 4 // kv_heads, kv_heads, 23) > 1
    if shape is None:
        text = jax.jit(xla).lower(q, k, v, sees).as_text()
        assert "while" in text
        found = jax.jit(xla)(q, k, v, sees)
    else:
        with jax.set_mesh(mesh := mesh_of(shape)):
            by_heads = NamedSharding(mesh, P(BATCH, None, "tensor"))
            compiled = jax.jit(xla).lower(*jax.device_put((q, k, v), by_heads), sees).compile()
            assert "while" in (text := compiled.as_text()) and "all-gather" not in text and "all-reduce" not in text
            found = jax.jit(xla)(*jax.device_put((q, k, v), by_heads), sees)
    np.testing.assert_allclose(np.asarray(found)[attention_mask], expected[attention_mask], atol=1e-5)


def test_long_rows_need_bounded_memory_and_short_rows_no_loop(monkeypatch):
    def compiled(length):
        q = jax.ShapeDtypeStruct((3, length, 4, 16), jnp.float32)
        return jax.jit(lambda *arguments: xla(*arguments)).lower(q, q, q, jax.ShapeDtypeStruct((3, length), bool)).compile()

    assert "while" not in compiled(512).as_text()
    long, matrix = compiled(5000), 4 * 3 * 4 * 5000 * 5000
    monkeypatch.setattr("igpo_jax.model.attention.LARGEST_SCORES", matrix)
    whole = compiled(5000)
    assert "while" in long.as_text() and "while" not in whole.as_text()
    used = [program.memory_analysis().temp_size_in_bytes for program in (long, whole)]
    assert used[0] < 4 * 2**28 < matrix <= used[1]


def test_queries_of_a_window_look_at_whole_rows():
    (q, k, v), attention_mask, weight = inputs(length=24)
    window = np.s_[:, 8:15]

    def of_window(q, k, v, attention_mask):
        return attend(q[window], k, v, attention_mask, "xla")

    def of_whole(q, k, v, attention_mask):
        return differentiated(q, k, v, attention_mask)[window]

    np.testing.assert_allclose(of_window(q, k, v, attention_mask), of_whole(q, k, v, attention_mask), atol=1e-6)
    results = [value_and_gradients(attention, (q, k, v), attention_mask, weight[window]) for attention in (of_window, of_whole)]
    assert_close(*results, attention_mask[window], 2e-6)


def with_cache_updated(q, fresh, window, attention_mask):
    """Computes `attend_window` in the obvious way: writes the window's keys and values into the cache, and attends to all."""

    def updated(old, new):
        size = new.shape[2]
        is_fresh = (window.start + jnp.arange(size) >= window.fresh_from)[:, None]
        kept = jax.lax.dynamic_slice_in_dim(old, window.start, size, axis=2)
        return jax.lax.dynamic_update_slice_in_dim(old, jnp.where(is_fresh, new, kept), window.start, axis=2).swapaxes(1, 2)

    return differentiated(q, updated(window.cache.k, fresh.k), updated(window.cache.v, fresh.v), attention_mask)


def window_inputs(kv_heads, size=8, dtype=jnp.float32, length=24, rows=4, heads=4):
    (q, k, v), attention_mask, _ = inputs(rows, length, heads, kv_heads, dtype)
    attention_mask = np.arange(length) >= np.arange(rows)[:, None] * 3  # padding on the left, which also reaches into a window
    cache, key = KVCache(k.swapaxes(1, 2), v.swapaxes(1, 2)), jax.random.key(1)
    fresh = KVCache(*(jax.random.normal(part, (rows, kv_heads, size, H), dtype) for part in jax.random.split(key)))
    return q[:, :size], fresh, cache, attention_mask


WINDOWS = [(16, 16), (8, 16), (8, 13), (4, 4), (4, 0), (2, 40)]  # start, fresh_from: dual, prefix and at the edges


@pytest.mark.parametrize("valid_axes", [2, 3])
@pytest.mark.parametrize("kv_heads, shape", [(4, None), (2, None), (1, None), (2, (2, 1, 2)), (4, (2, 2, 2))])
def test_a_window_attends_as_if_the_cache_was_updated(kv_heads, shape, valid_axes, mesh_of):
    q, fresh, cache, attention_mask = window_inputs(kv_heads)
    if valid_axes == 3:
        attention_mask = (some_to_some(attention_mask) | np.eye(24, dtype=bool))[:, :8]
    for start, fresh_from in WINDOWS:
        window = Window(cache, jnp.int32(start), jnp.int32(fresh_from))
        expected = with_cache_updated(q, fresh, window, attention_mask)
        if shape is None:
            found = jax.jit(attend_window)(q, fresh, window, attention_mask)
        else:
            with jax.set_mesh(mesh := mesh_of(shape)):
                parts = [NamedSharding(mesh, P(BATCH, *axes)) for axes in ((None, "tensor"), ("tensor",))]
                sharded = Window(jax.device_put(cache, parts[1]), window.start, window.fresh_from)
                new = jax.device_put(fresh, parts[1])
                found = jax.jit(attend_window)(jax.device_put(q, parts[0]), new, sharded, attention_mask)
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.slow
def test_a_window_in_bfloat16_is_as_near_to_float32_as_an_updated_cache():
    q, fresh, cache, attention_mask = window_inputs(2, dtype=jnp.bfloat16)
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), (q, fresh, cache))

    def error(attention):
        window = Window(cache, jnp.int32(8), jnp.int32(12))
        a = attention(q, fresh, window, attention_mask)
        assert a.dtype == jnp.bfloat16
        return jnp.linalg.norm(a - with_cache_updated(*exact[:2], window.replace(cache=exact[2]), attention_mask))

    assert error(attend_window) < 1.1 * error(with_cache_updated)


@pytest.mark.slow
@pytest.mark.parametrize(
    "heads, kv_heads", [(4, 4), (4, 2), (4, 1)]
)
def test_splash_equals_xla_forward_and_backward(heads, kv_heads):
    arguments, attention_mask, weight = inputs(heads=heads, kv_heads=kv_heads)
    results = [value_and_gradients(attention, arguments, attention_mask, weight) for attention in (splash, xla)]
    assert_close(*results, attention_mask, 2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape", [(2, 1, 2), (2, 2, 2), (1, 4, 1)]
)
def test_splash_equals_xla_on_meshes(shape, mesh_of):
    arguments, attention_mask, weight = inputs()
    with jax.set_mesh(mesh_of(shape)):
        results = [value_and_gradients(attention, arguments, attention_mask, weight) for attention in (splash, xla)]
    assert_close(*results, attention_mask, 2e-5)


def test_splash_takes_lengths_that_are_no_power_of_two():
    arguments, attention_mask, weight = inputs(rows=1, length=7 * LANES, heads=1, kv_heads=1)
    results = [value_and_gradients(attention, arguments, attention_mask, weight) for attention in (splash, xla)]
    assert_close(*results, attention_mask, 2e-5)


@pytest.mark.slow
def test_splash_in_bfloat16_is_as_near_to_float32_as_xla():
    (q, k, v), attention_mask, weight = inputs()
    exact = value_and_gradients(xla, (q, k, v), attention_mask, weight)
    low = tuple(x.astype(jnp.bfloat16) for x in (q, k, v))
    for attention in (splash, xla):
        have = value_and_gradients(attention, low, attention_mask, weight)
        assert have[0][1].dtype == jnp.bfloat16
        assert_close(have, exact, attention_mask, 0.03)


@pytest.mark.parametrize("length, head, valid_axes, message", [
    (LANES + 1, H, 2, "positions = 129"),
    (LANES, 64, 2, "head size = 64"),
    (LANES, H, 3, "which positions are padding"),
])  # fmt: skip
def test_what_splash_cannot_do_is_said(length, head, valid_axes, message):
    q = jnp.zeros((1, length, 1, head))
    with pytest.raises(ValueError, match=message):
        attend(q, q, q, jnp.ones((1, length, length)[:valid_axes], bool), "splash")


@pytest.mark.parametrize("valid_axes", [2, 3])
def test_cudnn_takes_what_it_is_given(valid_axes, monkeypatch):
    """Traces forward and backward without a GPU, to check the shapes and dtypes that jax's cuDNN binding accepts."""
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000, raising=False)
    monkeypatch.setattr(fused_attention_stablehlo, "check_compute_capability", lambda *_: True, raising=False)
    (q, k, v), attention_mask, _ = inputs(dtype=jnp.bfloat16)
    if valid_axes == 3:
        attention_mask = attention_mask[:, None] & attention_mask[:, :, None]

    def loss(q, k, v):
        return jnp.sum(attend(q, k, v, jnp.asarray(attention_mask), "cudnn").astype(jnp.float32))

    gradients = jax.eval_shape(jax.grad(loss, argnums=(0, 1, 2)), q, k, v)
    assert [g.shape for g in gradients] == [x.shape for x in (q, k, v)]


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cudnn runs on GPUs; benchmarks/gpu.sh runs this test")
def test_cudnn_equals_xla_forward_and_backward():
    (q, k, v), attention_mask, weight = inputs()
    exact = value_and_gradients(xla, (q, k, v), attention_mask, weight)
    low = tuple(x.astype(jnp.bfloat16) for x in (q, k, v))
    have = value_and_gradients(
        lambda q, k, v, attention_mask: attend(q, k, v, attention_mask, "cudnn"), low, attention_mask, weight
    )
    assert_close(have, exact, attention_mask, 0.03)
