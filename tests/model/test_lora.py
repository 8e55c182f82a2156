"""Adapters: no effect at first, gradients consistent with full matrices, merging, PEFT files."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from adapter_gradients import assert_chain_rule
from igpo_jax.diffusion.corruption import mask_count, sft_loss
from igpo_jax.model import lora as lora_module
from igpo_jax.model import transformer
from igpo_jax.model.int8 import quantize, summed_axis
from igpo_jax.model.lora import ALL_LINEAR, REFERENCE_CODE_TARGETS, LoraConfig, attach, merge
from igpo_jax.model.transformer import ModelConfig
from igpo_jax.weights.huggingface import llada_config, tensor_names
from igpo_jax.weights.peft import ADAPTER_CONFIG, ADAPTER_FILE, export_peft, import_peft

CFG = ModelConfig(vocab_size=40, mask_id=39, eos_id=38, width=32, layers=2, heads=4, kv_heads=2, mlp_width=48)
LORA = LoraConfig(rank=4, alpha=6.0)
forward = jax.jit(transformer.forward, static_argnums=3)
init_adapters = jax.jit(lora_module.init, static_argnums=(1, 2))


@pytest.fixture(scope="module")
def base():
    return jax.jit(transformer.init, static_argnums=1)(jax.random.key(0), CFG)


@pytest.fixture(scope="module")
def adapters():
    """Returns adapters whose B is not zero."""
    fresh = init_adapters(jax.random.key(1), CFG, LORA)
    keys = iter(jax.random.split(jax.random.key(2), len(fresh)))
    return {name: {"a": of["a"], "b": 0.3 * jax.random.normal(next(keys), of["b"].shape)} for name, of in fresh.items()}


@pytest.fixture(scope="module")
def batch():
    tokens = jax.random.randint(jax.random.key(3), (3, 12), 0, 38)
    return tokens, jnp.ones(tokens.shape, bool).at[0, :4].set(False)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_output_equals_the_base_exactly_at_first(dtype, base, batch):
    cfg = dataclasses.replace(CFG, compute_dtype=dtype)
    fresh = init_adapters(jax.random.key(1), CFG, LORA)
    assert all(np.any(of["a"]) and not np.any(of["b"]) for of in fresh.values())
    np.testing.assert_array_equal(forward(attach(base, fresh, LORA), *batch, cfg), forward(base, *batch, cfg))


@pytest.mark.parametrize("targets", [ALL_LINEAR, REFERENCE_CODE_TARGETS])
def test_merged_equals_attached(targets, base, adapters, batch):
    lora = dataclasses.replace(LORA, targets=targets)
    some = {target: adapters[target] for target in targets}
    attached, merged = attach(base, some, lora), merge(base, some, lora)
    plain = forward(base, *batch, CFG)
    assert float(jnp.abs(forward(attached, *batch, CFG) - plain).max()) > 0.1
    np.testing.assert_allclose(forward(attached, *batch, CFG), forward(merged, *batch, CFG), atol=3e-5)


@pytest.mark.slow
def test_merged_into_bfloat16_equals_attached_within_its_rounding(base, adapters, batch):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), base)
    merged = merge(half, adapters, LORA)
    for name, of in adapters.items():
        assert merged["blocks"][name].dtype == jnp.bfloat16
        exact = half["blocks"][name].astype(jnp.float32) + 1.5 * jnp.einsum("lir,lro->lio", of["a"], of["b"])
        # Half a unit in the last of bfloat16's 8 significant bits.
        np.testing.assert_allclose(merged["blocks"][name].astype(jnp.float32), exact, rtol=2**-8, atol=1e-6)
    cfg = dataclasses.replace(CFG, compute_dtype="bfloat16")
    attached = forward(attach(half, adapters, LORA), *batch, cfg).astype(jnp.float32)
    assert float(jnp.abs(attached - forward(merged, *batch, cfg)).mean() / attached.std()) < 0.02


def test_a_small_adapter_is_not_lost_beside_a_product_in_bfloat16():
    """Early in training the adapter's part is below the spacing of bfloat16 numbers around the product."""
    draw = np.random.default_rng(0)
    x = jnp.asarray(draw.normal(size=(1, 64, 256)), jnp.bfloat16)
    w = jnp.asarray(draw.normal(size=(256, 256)) / 16, jnp.bfloat16)
    a = jnp.asarray(draw.uniform(-1, 1, size=(256, 8)) / 16, jnp.bfloat16)
    b = jnp.asarray(draw.normal(size=(8, 256)) * 1e-3, jnp.bfloat16)
    with_adapter = transformer._linear(x, {"up": w, "adapters": {"up": {"a": a, "b": b}}}, "up").astype(jnp.float32)
    exact_change = (x.astype(jnp.float32) @ a.astype(jnp.float32)) @ b.astype(jnp.float32)
    exact = x.astype(jnp.float32) @ w.astype(jnp.float32) + exact_change
    # The error equals one rounding of the exact sum; rounding the product first would double its variance.
    rounded_once = exact.astype(jnp.bfloat16).astype(jnp.float32)
    error, least = (float(jnp.sqrt(jnp.mean((y - exact) ** 2))) for y in (with_adapter, rounded_once))
    assert error < 1.05 * least


@pytest.mark.parametrize("with_adapters", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", ["", "int8"])
def test_sums_over_tensor_that_are_rounded_before_the_exchange_stay_as_near_to_float32(
    dtype, with_adapters, base, adapters, batch, mesh_of
):
    """Compares hidden states and gradients in bfloat16 with float32, on one device and on two that share each matrix."""
    half = jax.tree.map(lambda w: w.astype(jnp.bfloat16), base)
    if dtype:
        table = transformer.parameter_table(CFG)
        half = jax.tree.map(lambda info, w: w if info.stddev is None else quantize(w, summed_axis(info.axes)), table, half)
    cfg = dataclasses.replace(CFG, param_dtype="bfloat16", base_dtype=dtype, compute_dtype="bfloat16", remat="dots")

    def run(cfg, mesh):
        placed = jax.tree.map(lambda leaf: leaf.sharding, transformer.abstract_base(cfg, mesh))
        trained = jax.device_put(adapters, lora_module.shardings(cfg, LORA, mesh))
        params = jax.device_put(half, placed)

        def mean(trained):
            return transformer.forward(attach(params, trained, LORA), *batch, cfg).astype(jnp.float32).mean()

        with jax.set_mesh(mesh):
            y = forward(attach(params, trained, LORA) if with_adapters else params, *batch, cfg)
            return [y, *(jax.tree.leaves(jax.jit(jax.grad(mean))(trained)) if with_adapters else ())]

    one, two = mesh_of((1, 1, 1)), mesh_of((2, 2, 2))
    exact = run(dataclasses.replace(cfg, compute_dtype="float32"), one)
    for expected, alone, shared in zip(exact, run(cfg, one), run(cfg, two), strict=True):
        of_one, of_two = (float(jnp.linalg.norm(jax.device_get(y) - jax.device_get(expected))) for y in (alone, shared))
        assert 0 < of_two < 1.5 * of_one < 0.1 * float(jnp.linalg.norm(expected))


@pytest.mark.slow
def test_gradients_equal_those_of_the_full_parametrisation(base, adapters, batch):
    tokens, attention_mask = batch
    corrupted = mask_count(jax.random.key(4), 3, 6)

    def loss(params):
        return sft_loss(params, tokens[:, :6], attention_mask[:, :6], tokens[:, 6:], corrupted, CFG)

    found = jax.jit(jax.grad(lambda trained: loss(attach(base, trained, LORA))))(adapters)
    full = jax.jit(jax.grad(loss))(merge(base, adapters, LORA))["blocks"]
    assert_chain_rule(found, full, adapters, LORA, least=1e-5, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape", [(2, 2, 2), (1, 1, 4), (1, 8, 1)]
)
def test_the_mesh_changes_nothing(shape, base, adapters, batch, mesh_of):
    mesh = mesh_of(shape)
    if CFG.kv_heads % shape[2]:
        cfg = dataclasses.replace(CFG, kv_heads=4)
        base = jax.jit(transformer.init, static_argnums=1)(jax.random.key(0), cfg)
        adapters = init_adapters(jax.random.key(1), cfg, LORA)
    else:
        cfg = CFG
    placed = lora_module.shardings(cfg, LORA, mesh)
    sharded = attach(jax.device_put(base, transformer.shardings(cfg, mesh)), jax.device_put(adapters, placed), LORA)
    with jax.set_mesh(mesh):
        np.testing.assert_allclose(forward(sharded, *batch, cfg), forward(attach(base, adapters, LORA), *batch, cfg), atol=3e-5)
    a, b = placed["gate"]["a"].spec, placed["gate"]["b"].spec
    assert (tuple(a), tuple(b)) == ((None, ("fsdp", "tensor"), None), (None, None, ("tensor", "fsdp")))


@pytest.mark.parametrize("change, message", [
    (dict(rank=0), "lora.rank=0 must be at least 1"),
    (dict(alpha=0.0), "lora.alpha=0.0 must be positive, from 1e-15"),
    (dict(alpha=1e39), "lora.alpha=1e.39 must be positive, from 1e-15 to"),
    (dict(targets=()), "lora.targets=.. must be some of query"),
    (dict(targets=("query", "query")), "each once"),
    (dict(targets=("q_proj",)), "lora.targets=.'q_proj',. must be some of query, key"),
])  # fmt: skip
def test_impossible_configurations_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(LORA, **change)


# PEFT files


def test_peft_files_round_trip(adapters, tmp_path):
    export_peft(adapters, LORA, tmp_path, "LLaDA-8B-Instruct")
    lora, loaded = import_peft(tmp_path, CFG)
    assert lora == LORA
    jax.tree.map(np.testing.assert_array_equal, loaded, jax.tree.map(np.asarray, adapters))
    values = json.loads((tmp_path / ADAPTER_CONFIG).read_text())
    assert (values["r"], values["lora_alpha"], values["base_model_name_or_path"]) == (4, 6.0, "LLaDA-8B-Instruct")


def test_peft_tensors_mean_what_peft_means_by_them(base, adapters, tmp_path):
    """Checks y = W x + alpha / r * B A x, with W, A and B in torch.nn.Linear's layout."""
    export_peft(adapters, LORA, tmp_path)
    tensors = safetensors.numpy.load_file(tmp_path / ADAPTER_FILE)
    name = "base_model.model.model.transformer.blocks.1.ff_out.lora_{}.weight"
    a, b = tensors[name.format("A")], tensors[name.format("B")]
    assert (a.shape, b.shape, a.dtype) == ((4, 48), (32, 4), np.float32)
    x = np.random.default_rng(0).normal(size=(5, 48)).astype(np.float32)
    by_hand = x @ np.asarray(base["blocks"]["down"][1]) + 6.0 / 4 * (x @ a.T @ b.T)
    layer = jax.tree.map(lambda w: w[1], attach(base, adapters, LORA)["blocks"])
    np.testing.assert_allclose(transformer._linear(x[None], layer, "down")[0], by_hand, rtol=1e-4, atol=1e-4)


def test_target_modules_match_the_blocks_and_not_the_head(adapters, tmp_path):
    export_peft(adapters, LORA, tmp_path)
    pattern = json.loads((tmp_path / ADAPTER_CONFIG).read_text())["target_modules"]
    names = tensor_names(llada_config(CFG, 64), CFG)
    matched = {
        path[-1]
        for path, of_parameter in names.items()
        for name in of_parameter
        if re.fullmatch(pattern, name.removesuffix(".weight"))  # PEFT uses full matches
    }
    assert matched == set(ALL_LINEAR)


def test_rank_stabilised_adapters_keep_their_scale(adapters, tmp_path):
    export_peft(adapters, LORA, tmp_path)
    change_config(use_rslora=True)(tmp_path)
    lora, _ = import_peft(tmp_path, CFG)
    assert lora.scale == pytest.approx(6.0 / np.sqrt(4))


def change_config(**values):
    def change(folder):
        file = folder / ADAPTER_CONFIG
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


def change_tensors(function):
    def change(folder):
        tensors = safetensors.numpy.load_file(folder / ADAPTER_FILE)
        function(tensors)
        safetensors.numpy.save_file(tensors, folder / ADAPTER_FILE)

    return change


NAME = "base_model.model.model.transformer.blocks.1.q_proj.lora_A.weight"


@pytest.mark.parametrize("damage, message", [
    (lambda f: (f / ADAPTER_CONFIG).unlink(), "adapter_config.json is missing"),
    (lambda f: (f / ADAPTER_CONFIG).write_text("{"), "adapter_config.json: not JSON"),
    (lambda f: (f / ADAPTER_FILE).unlink(), "adapter_model.safetensors is missing"),
    (lambda f: (f / ADAPTER_FILE).write_bytes((f / ADAPTER_FILE).read_bytes()[:-9]), "adapter_model.safetensors cannot be read"),
    (change_config(peft_type="ADALORA"), "peft_type='ADALORA' is not supported; only 'LORA' is"),
    (change_config(use_dora=True), "use_dora=True"),
    (change_config(bias="all"), "bias='all'"),
    (change_config(rank_pattern={"q_proj": 8}), "rank_pattern"),
    (change_config(alpha_pattern={"q_proj": 8}), "alpha_pattern"),
    (change_config(modules_to_save=["ff_out"]), "modules_to_save"),
    (change_config(fan_in_fan_out=True), "fan_in_fan_out=True"),
    (change_config(layers_to_transform=[0]), "layers_to_transform"),
    (change_config(r="4"), "r='4' must be an integer"),
    (change_config(r=8), "lora_A.weight has shape .4, 32., the model asks for .8, 32."),
    (change_tensors(lambda t: t.pop(NAME)), f"lacks {NAME}"),
    (change_tensors(lambda t: t.update(extra=np.zeros(1, np.float32))), "has 'extra', for which the model has no place"),
    (change_tensors(lambda t: t.update({NAME: t[NAME].T.copy()})), f"{NAME} has shape .32, 4."),
    (change_tensors(lambda t: t.clear()), "no adapters of known modules"),
])  # fmt: skip
def test_peft_files_that_cannot_be_used_are_refused(damage, message, adapters, tmp_path):
    export_peft(adapters, LORA, tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        import_peft(tmp_path, CFG)
