"""Faster samplers: cached keys and values, several tokens per step."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from igpo_jax.diffusion import sampler
from igpo_jax.diffusion.denoise import window_sizes
from igpo_jax.diffusion.unmasking import DecodeConfig
from igpo_jax.model import transformer
from igpo_jax.model.attention import rope_table, rotate
from igpo_jax.model.transformer import forward, forward_flops, shardings
from igpo_jax.plan.hlo_cost import program_cost
from igpo_jax.runtime.mesh import shard_batch
from sampling import CFG, DECODE, MASK, batch_of, decode

# Caches


def fast(**change):
    return dataclasses.replace(DECODE, steps=8, **change)


@pytest.mark.parametrize("cache, cfg_scale", [
    ("prefix", 0.0), pytest.param("prefix", 1.5, marks=pytest.mark.slow),
    pytest.param("dual", 0.0, marks=pytest.mark.slow), ("dual", 1.5),
])  # fmt: skip
def test_a_cache_that_is_made_anew_in_every_step_is_exact(params, cache, cfg_scale):
    exact = decode(params, batch_of(), fast(cfg_scale=cfg_scale))
    cached = decode(params, batch_of(), fast(cache=cache, refresh=1, cfg_scale=cfg_scale))
    np.testing.assert_array_equal(cached.tokens, exact.tokens)
    np.testing.assert_array_equal(cached.unmask_step, exact.unmask_step)
    assert cached.evaluations == exact.evaluations and cached.flops == exact.flops


@functools.partial(jax.jit, static_argnums=(2, 3))
def by_hand(params, tokens, begin, end, cache, prompt_mask):
    """Hidden states of tokens[begin:end] of one row, layer by layer, with the cached keys and values of all other positions."""
    x, blocks = params["embedding"][tokens][None, begin:end], params["blocks"]
    sin, cos = rope_table(jnp.arange(len(tokens)), CFG.head_size, CFG.rope_theta)
    for number in range(CFG.layers):
        layer = {name: w[number] for name, w in blocks.items()}
        h = transformer.rms_norm(x, layer["attention_norm"], CFG.norm_epsilon)
        q, k, v = ((h @ layer[name]).reshape(1, end - begin, -1, CFG.head_size) for name in ("query", "key", "value"))
        q, k = (rotate(y, sin[begin:end], cos[begin:end]) for y in (q, k))
        old = (cached[number].swapaxes(1, 2) for cached in (cache.k, cache.v))
        keys, values = (kept.at[:, begin:end].set(new) for kept, new in zip(old, (k, v), strict=True))
        scores = jnp.einsum("bqnh,btnh->bnqt", q, keys.repeat(2, axis=2)) / np.sqrt(CFG.head_size)
        weights = jax.nn.softmax(jnp.where(prompt_mask, scores, -jnp.inf), axis=-1)
        a = jnp.einsum("bnqt,btnh->bqnh", weights, values.repeat(2, axis=2)).reshape(1, end - begin, CFG.width)
        x = x + a @ layer["attention_out"]
        h = transformer.rms_norm(x, layer["mlp_norm"], CFG.norm_epsilon)
        x = x + (jax.nn.silu(h @ layer["gate"]) * (h @ layer["up"])) @ layer["down"]
    return transformer.rms_norm(x, params["final_norm"], CFG.norm_epsilon)[0]


@pytest.mark.slow
@pytest.mark.parametrize("window, fresh", [((9, 13), 9), ((5, 13), 9), ((5, 9), 5)])
def test_a_window_sees_itself_as_it_is_and_the_rest_as_it_was(window, fresh, params):
    prompt, prompt_mask, canvas, _ = batch_of(rows=2)
    before = np.concatenate([prompt, canvas], axis=1)
    prompt_mask = np.concatenate([prompt_mask, np.ones(canvas.shape, bool)], axis=1)
    after = np.where(np.arange(13) >= window[0], (before + 5) % CFG.vocab_size, before).astype(np.int32)
    _, cache = transformer.prefill(params, before, prompt_mask, CFG)
    begin, end = window
    cached = transformer.Window(cache, jnp.int32(begin), jnp.int32(fresh))
    found = forward(params, after[:, begin:end], prompt_mask, CFG, window=cached)[:, fresh - begin :]
    for row in range(2):
        of_row = jax.tree.map(lambda x: x[:, row : row + 1], cache)
        expected = by_hand(params, after[row], fresh, end, of_row, prompt_mask[row])
        np.testing.assert_allclose(found[row], expected, atol=1e-5)
    whole = forward(params, after, prompt_mask, CFG)[:, fresh:end]
    assert (np.abs(found - whole).max() > 1e-3) == (window != (9, 13)), "what has changed elsewhere is not seen"


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_cached_rows_keep_hints_ignore_padding_neighbours_and_mesh(params, cache, mesh_of):
    setting, batch = fast(cache=cache, refresh=3), batch_of()
    done = decode(params, batch, setting)
    tokens, canvas = np.asarray(done.tokens), batch[2]
    np.testing.assert_array_equal(tokens[canvas != MASK], canvas[canvas != MASK])
    assert not (tokens == MASK).any()
    prompt, prompt_mask, canvas, keys = batch
    padded = decode(params, (np.pad(prompt, ((0, 0), (3, 0))), np.pad(prompt_mask, ((0, 0), (3, 0))), canvas, keys), setting)
    np.testing.assert_array_equal(padded.tokens, tokens)
    alone = decode(params, tuple(x[3:4] for x in batch), setting)
    np.testing.assert_array_equal(alone.tokens[0], tokens[3])
    mesh = mesh_of((2, 2, 2))
    with jax.set_mesh(mesh):
        sharded = decode(jax.device_put(params, shardings(CFG, mesh)), (*shard_batch(batch[:3], mesh), keys), setting)
    np.testing.assert_array_equal(sharded.tokens, tokens)


@pytest.mark.parametrize("layers", [2, 6])
@pytest.mark.parametrize("kv_heads", [2, 4])
def test_a_window_step_neither_copies_nor_writes_the_cache(kv_heads, layers, mesh):
    """Of the keys and values of one layer, the program makes at most the slice that takes them from those of all layers."""
    cfg = dataclasses.replace(CFG, layers=layers, kv_heads=kv_heads)
    shape = (layers, 3, kv_heads, 28, cfg.head_size)
    cache = transformer.KVCache(*[jax.ShapeDtypeStruct(shape, jnp.float32)] * 2)

    def step(params, tokens, cache, start):
        return forward(params, tokens, jnp.ones((3, 28), bool), cfg, (0, 3), transformer.Window(cache, start, start))

    tokens, start = jax.ShapeDtypeStruct((3, 3), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
    text = jax.jit(step).lower(transformer.abstract(cfg, mesh), tokens, cache, start).compile().as_text()
    size = math.prod(shape[1:])
    made = [
        (operation, dims)
        for dims, operation in re.findall(r"= f32\[([\d,]*)\]\S* ([\w-]+)\(", text)
        if 28 in (sizes := [int(n) for n in dims.split(",") if n]) and math.prod(sizes) in (size, size * layers)
    ]
    free = {"parameter", "get-tuple-element", "bitcast", "slice", "dynamic-slice", "fusion", "call"}
    assert made and {operation for operation, _ in made} <= free, made


def test_windows_are_a_few_sizes_and_cost_what_they_compute():
    """Uses eight blocks, so that the windows of cache=prefix are halved."""
    cfg = dataclasses.replace(CFG, layers=8)  # a loop, in which all layers, the last included, have the same cost
    setting = DecodeConfig(completion_length=64, block_length=8, steps=64, cache="prefix")
    assert window_sizes(setting) == [8, 16, 32, 64]
    sizes, head = [64, 64, 64, 64, 32, 32, 16, 8], 2 * 8 * CFG.width * CFG.vocab_size
    position = {size: forward_flops(cfg, 1, 0, 80 + size) for size in sizes}  # its queries look at cached and fresh keys
    computed = [sampler.block_flops(0, 1, block, 80, cfg, setting) - head for block in range(8)]
    np.testing.assert_allclose(computed, [size * position[size] for size in sizes])
    dual = dataclasses.replace(setting, cache="dual")
    assert sampler.block_flops(2, 3, 1, 80, cfg, dual) == 2 * forward_flops(cfg, 80, 8) + 3 * (8 * position[8] + head)


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_counted_flops_are_those_of_the_compiled_block(cache, params):
    """Uses one block; every step but the first computes only its window."""
    setting = DecodeConfig(completion_length=8, block_length=8, steps=8, cache=cache)
    rows = sampler.initial_state(*batch_of(hints=False), CFG, setting)
    compiled = sampler.denoise_block.lower(params, rows, np.int32(0), CFG, setting).compile()
    full, partial = (8, 0) if cache == "none" else (1, 7)
    counted = 8 * sampler.block_flops(full, partial, 0, 13, CFG, setting)
    # The inner loop starts at 1; program_cost assumes 0 and counts one window more.
    window = 0 if cache == "none" else 8 * sampler.block_flops(0, 1, 0, 13, CFG, setting)
    assert program_cost(compiled.as_text()).flops == pytest.approx(counted + window, rel=0.02)


# Parallel commits


@pytest.mark.parametrize("commit, fallback", [
    ("threshold", "leftmost"), pytest.param("threshold", "most_confident", marks=pytest.mark.slow),
    pytest.param("factor", "leftmost", marks=pytest.mark.slow), ("factor", "most_confident"),
])  # fmt: skip
def test_parallel_commits_write_everything_in_fewer_evaluations(commit, fallback, params):
    sure = params | {"head": params["head"] * 8}
    done = decode(sure, batch_of(), fast(commit=commit, fallback=fallback, threshold=0.6))
    assert not np.any(np.asarray(done.tokens) == MASK)
    assert done.evaluations < 8
    unsure = decode(params, batch_of(hints=False), fast(commit=commit, threshold=1.0, factor=1e-6, fallback=fallback))
    written = np.asarray(unsure.unmask_step)
    assert unsure.evaluations == 8 and all(sorted(row) == list(range(8)) for row in written)
    assert (np.diff(written, axis=1) > 0).all() == (fallback == "leftmost")


@pytest.mark.slow
def test_fewer_steps_than_tokens_bound_parallel_commits(params):
    done = decode(params, batch_of(hints=False), dataclasses.replace(DECODE, commit="threshold", threshold=1.0))
    np.testing.assert_array_equal(done.unmask_step, [[0, 0, 1, 1, 2, 2, 3, 3]] * 8)
