"""Frozen weights in int8: rounding, gradients of adapters, sampled tokens, sharding, loading and memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from igpo_jax.config import fingerprint, parse
from igpo_jax.diffusion.sampler import completion_keys, sample
from igpo_jax.diffusion.unmasking import DecodeConfig
from igpo_jax.model import int8, lora, transformer
from igpo_jax.model.lora import LoraConfig
from igpo_jax.model.transformer import ModelConfig
from igpo_jax.plan.programs import LLADA_8B
from igpo_jax.rl.likelihood import GroupBatch
from igpo_jax.rl.objective import ObjectiveConfig, compute_logprobs, loss_and_statistics
from igpo_jax.runtime.mesh import shard_batch
from igpo_jax.training.policy import Policy
from igpo_jax.weights.folders import load_params
from model_folders import PLAIN, write_folder
from run_configs import tiny

CFG = ModelConfig(
    vocab_size=40, mask_id=39, eos_id=38, width=32, layers=2, heads=4, kv_heads=2, mlp_width=48, base_dtype="int8"
)
LORA = LoraConfig(rank=4, alpha=6.0)
OBJECTIVE = ObjectiveConfig(kl_coefficient=0.1)
N, G, PROMPT, LENGTH = 8, 2, 5, 6


def quantized(params, cfg):
    """Returns the parameters with all matrices quantized."""

    def one(info, w):
        return w if info.stddev is None else int8.quantize(w, int8.summed_axis(info.axes))

    return jax.tree.map(one, transformer.parameter_table(cfg), params)


def dequantized(params):
    return jax.tree.map(lambda w: int8.dequantize(w) if int8.is_int8(w) else w, params, is_leaf=int8.is_int8)


def models(cfg, mesh):
    """Returns int8 parameters, and float32 parameters of the same values, both sharded on `mesh`. The scales are powers of two, so
    that it does not matter for rounding whether matrices or products are scaled."""
    params = quantized(jax.jit(transformer.init, static_argnums=1)(jax.random.key(0), cfg), cfg)
    params = jax.tree.map(
        lambda w: w._replace(scale=2.0 ** jnp.round(jnp.log2(w.scale))) if int8.is_int8(w) else w, params, is_leaf=int8.is_int8
    )
    shardings = jax.tree.map(lambda leaf: leaf.sharding, transformer.abstract_base(cfg, mesh))
    return jax.device_put(params, shardings), jax.device_put(dequantized(params), transformer.shardings(cfg, mesh))


def trained_adapters(cfg, mesh):
    """Returns adapters whose B is not zero."""
    fresh = lora.init(jax.random.key(1), cfg, LORA)
    fresh = {name: {"a": one["a"], "b": 0.3 * jax.random.normal(jax.random.key(n), one["b"].shape)}
             for n, (name, one) in enumerate(fresh.items())}  # fmt: skip
    return jax.device_put(fresh, lora.shardings(cfg, LORA, mesh))


def make_batch():
    draw = np.random.default_rng(0)
    return GroupBatch(
        prompt=draw.integers(3, 38, (N, PROMPT), dtype=np.int32),
        prompt_mask=np.arange(PROMPT) >= draw.integers(0, 3, N)[:, None],
        problem_id=np.arange(N, dtype=np.uint32),
        completions=draw.integers(2, 38, (N, G, LENGTH), dtype=np.int32),
        unmask_step=np.zeros((N, G, LENGTH), np.int32),
        loss_mask=np.ones((N, G, LENGTH), bool),
        advantages=np.tile(np.array([0.5, -0.5], np.float32), (N, 1)),
    )


def adapter_gradients(base, adapters, cfg, mesh):
    """Returns the loss and the gradients of the first update; the reference is the base model."""
    policy, batch = Policy(cfg, LORA), shard_batch(make_batch(), mesh)
    logprobs = compute_logprobs(policy.assemble(adapters, base), base, batch, jax.random.key(5), cfg, OBJECTIVE, mesh)

    def loss(adapters):
        return loss_and_statistics(policy.assemble(adapters, base), batch, one_update, cfg, OBJECTIVE, mesh)[0]

    one_update = jax.tree.map(lambda x: x[0], logprobs)
    with jax.set_mesh(mesh):
        return jax.jit(jax.value_and_grad(loss))(adapters)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"remat": "full", "tied_head": True, "layers": 5}], ids=["unrolled", "scanned"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2)])
def test_gradients_equal_those_of_the_dequantized_model(shape, changes, mesh_of):
    mesh, cfg = mesh_of(shape), dataclasses.replace(CFG, **changes)
    base, dense = models(cfg, mesh)
    adapters = trained_adapters(cfg, mesh)
    loss, found = adapter_gradients(base, adapters, cfg, mesh)
    expected_loss, expected = adapter_gradients(dense, adapters, cfg, mesh)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    for path, gradient in jax.tree.leaves_with_path(expected):
        difference = np.linalg.norm(np.asarray(gradient) - np.asarray(found[path[0].key][path[1].key]))
        assert 0 < np.linalg.norm(gradient) and difference <= 1e-6 * np.linalg.norm(gradient), path


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2)])
def test_sampled_tokens_equal_those_of_the_dequantized_model(shape, mesh_of):
    mesh, decode = mesh_of(shape), DecodeConfig(completion_length=12, block_length=6, steps=12, temperature=1.0)
    batch, number = make_batch(), np.arange(N, dtype=np.uint32)
    canvas = np.full((N, decode.completion_length), CFG.mask_id, np.int32)
    keys = completion_keys(jax.random.key(3), number, number, 0)
    adapters, rows = trained_adapters(CFG, mesh), shard_batch((batch.prompt, batch.prompt_mask, canvas), mesh)
    tokens = []
    for base in models(CFG, mesh):
        params = Policy(CFG, LORA).for_sampling(adapters, base, mesh)
        with jax.set_mesh(mesh):
            tokens.append(np.asarray(sample(params, *rows, keys, CFG, decode).tokens))
    np.testing.assert_array_equal(*tokens)
    assert len(np.unique(tokens)) > 5


WEIGHTS = st.floats(-(2.0**127), 2.0**127, width=32) | st.floats(-1, 1, width=32)
quantize = jax.jit(int8.quantize, static_argnums=1)


@given(arrays.arrays(np.float32, (2, 4, 3), elements=WEIGHTS), st.sampled_from([-2, -1]))
def test_a_weight_changes_by_at_most_half_the_scale_of_its_channel(w, axis):
    found = quantize(w, axis)
    assert found.values.dtype == np.int8 and found.scale.dtype == np.float32 and found.scale.shape[axis] == 1
    values, scale = (np.asarray(x, np.float64) for x in found)
    rounding = 127 * 2.0**-23  # of the float32 quotient
    normal = np.where(np.abs(w) < np.finfo(np.float32).tiny, 0, w)  # devices treat subnormal numbers as 0
    assert (np.abs(values * scale - normal.astype(np.float64)) <= (0.5 + rounding) * scale).all()


def test_weights_that_are_not_finite_make_products_not_finite():
    w = np.array([[1, np.nan, np.inf], [1, 1, 1]], np.float32)
    product = int8.matmul(jnp.ones((1, 2)), int8.quantize(w, -2))
    assert np.isfinite(np.asarray(product)).tolist() == [[True, False, False]]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_folder_is_loaded_in_int8_with_the_shardings_of_its_weights(dtype, mesh_of, tmp_path):
    mesh, cfg = mesh_of((2, 2, 2)), dataclasses.replace(PLAIN, base_dtype="int8", param_dtype=dtype)
    stored = write_folder(tmp_path / "hf", mesh, PLAIN, dtype="float32")
    found, abstract = load_params(tmp_path / "hf", cfg, mesh), Policy(cfg, LORA).abstract_base(mesh)
    assert jax.tree.structure(found) == jax.tree.structure(abstract)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(abstract), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype) and one.sharding.is_equivalent_to(other.sharding, one.ndim)
    # The values are rounded once, from what the files hold.
    expected = jax.tree.map(lambda w: w if int8.is_int8(w) else w.astype(dtype), quantized(stored, cfg), is_leaf=int8.is_int8)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    values, scale = found["blocks"]["attention_out"]
    assert values.sharding.shard_shape(values.shape) == (3, 8, 8) and scale.sharding.shard_shape(scale.shape) == (3, 1, 8)


def test_a_base_of_8b_parameters_takes_about_8_gb(mesh_of):
    cfg, lora_config = dataclasses.replace(LLADA_8B, base_dtype="int8"), LoraConfig(rank=128, alpha=64.0)
    policy = Policy(cfg, lora_config)
    sizes = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(policy.abstract_base(mesh_of((1, 1, 1))))]
    adapters = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(policy.abstract(mesh_of((1, 1, 1))))]
    assert 8.015e9 < sum(sizes) < 8.03e9 and sum(adapters) == 4 * 335_544_320


def test_int8_is_for_frozen_weights_only():
    with pytest.raises(ValueError, match=r"model\.base_dtype='int8' and lora\.rank=0"):
        parse(tiny(model__base_dtype="int8"))
    with pytest.raises(ValueError, match="base_dtype='int4' is not '' or 'int8'"):
        ModelConfig(**vars(CFG) | {"base_dtype": "int4"})


def test_the_key_decides_the_fingerprint_of_runs_that_use_it():
    """That other runs keep theirs is tested with the file of an old run, in tests/run/test_renamed_keys.py."""
    values = {"model__path": "model", "lora__rank": 4}
    for stage in ("sft", "rl"):
        assert fingerprint(tiny(**values), stage) != fingerprint(tiny(**values, model__base_dtype="int8"), stage)


@pytest.mark.slow
def test_the_backward_pass_stores_no_dequantized_weights(mesh_of):
    """Otherwise, products keep their matrix in the compute dtype, stacked over layers, if nothing is recomputed."""
    mesh, cfg = mesh_of((1, 1, 1)), dataclasses.replace(CFG, layers=5, compute_dtype="bfloat16")
    policy = Policy(cfg, LORA)

    def total(adapters, base, tokens):
        return transformer.forward(policy.assemble(adapters, base), tokens, jnp.ones(tokens.shape, bool), cfg).sum()

    arguments = policy.abstract(mesh), policy.abstract_base(mesh), jax.ShapeDtypeStruct((2, 6), jnp.int32)
    program = str(jax.make_jaxpr(jax.grad(total))(*arguments))
    for rows, columns in ((32, 32), (32, 16), (32, 48), (48, 32)):
        assert f"i8[5,{rows},{columns}]" in program
        assert f"bf16[5,{rows},{columns}]" not in program and f"f32[5,{rows},{columns}]" not in program
