"""Settings of PEFT's adapter_config.json: what changes the network is refused, all else loads."""

import json
import re
import time

import jax
import numpy as np
import pytest
import safetensors.numpy

from igpo_jax.model import lora
from igpo_jax.model.lora import LoraConfig
from igpo_jax.model.transformer import ModelConfig
from igpo_jax.weights.peft import ADAPTER_CONFIG, ADAPTER_FILE, _read_settings, export_peft, import_peft

CFG = ModelConfig(vocab_size=40, mask_id=39, eos_id=38, width=32, layers=2, heads=4, kv_heads=2, mlp_width=48)
LORA = LoraConfig(rank=4, alpha=6.0, targets=("query", "down"))

# The file that PEFT 0.21 writes for LoraConfig(r=4, lora_alpha=6, lora_dropout=0.05, target_modules=["q_proj", "ff_out"]).
PEFT_0_21 = {
    "alora_invocation_tokens": None, "alpha_pattern": {}, "arrow_config": None, "auto_mapping": None,
    "base_model_name_or_path": "GSAI-ML/LLaDA-8B-Instruct", "bias": "none", "corda_config": None, "ensure_weight_tying": False,
    "eva_config": None, "exclude_modules": None, "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True,
    "kasa_config": None, "layer_replication": None, "layers_pattern": None, "layers_to_transform": None, "loftq_config": {},
    "lora_alpha": 6, "lora_bias": False, "lora_dropout": 0.05, "lora_ga_config": None, "megatron_config": None,
    "megatron_core": "megatron.core", "modules_to_save": None, "monteclora_config": None, "peft_type": "LORA",
    "peft_version": "0.21.2", "qalora_group_size": 16, "r": 4, "rank_pattern": {}, "revision": None,
    "target_modules": ["q_proj", "ff_out"], "target_parameters": None, "task_type": "CAUSAL_LM",
    "trainable_token_indices": None, "use_bdlora": None, "use_dora": False, "use_qalora": False, "use_rslora": False,
    "velora_config": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    export_peft(jax.jit(lora.init, static_argnums=(1, 2))(jax.random.key(0), CFG, LORA), LORA, folder)
    return folder


def read(written, folder, **change):
    """Imports the adapters with a changed adapter_config.json."""
    (folder / ADAPTER_FILE).write_bytes((written / ADAPTER_FILE).read_bytes())
    (folder / ADAPTER_CONFIG).write_text(json.dumps(PEFT_0_21 | change))
    return import_peft(folder, CFG)


@pytest.mark.parametrize("change", [
    {}, {"lora_dropout": 0.3}, {"task_type": None}, {"inference_mode": False}, {"revision": "main"}, {"init_lora_weights": False},
    {"init_lora_weights": "gaussian"}, {"init_lora_weights": "orthogonal"},
    {"init_lora_weights": "eva", "eva_config": {"rho": 2.0, "tau": 0.99}},
    {"auto_mapping": {"base_model_class": "LLaDAModelLM", "parent_library": "modeling_llada", "unsloth_fixed": True}},
    {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"ff_out": 6}}, {"layers_to_transform": [1, 0], "layers_pattern": "blocks"},
    {"exclude_modules": ["k_proj"]}, {"exclude_modules": r".*k_proj"}, {"modules_to_save": []}, {"qalora_group_size": 32},
    {"target_modules": r".*\.(q_proj|ff_out)"}, {"target_modules": None}, {"target_modules": ["q_proj", "v_proj", "ff_out"]},
    {"a_later_key": None}, {"use_a_later_variant": False}, {"a_later_pattern": {}},
])  # fmt: skip
def test_settings_that_change_nothing_load(change, written, tmp_path):
    found, adapters = read(written, tmp_path, **change)
    assert found == LORA
    tensors = safetensors.numpy.load_file(tmp_path / ADAPTER_FILE)
    name = "base_model.model.model.transformer.blocks.1.q_proj.lora_A.weight"
    np.testing.assert_array_equal(adapters["query"]["a"][1].T, tensors[name])


@pytest.mark.parametrize("key, value, accepted", [
    *[("init_lora_weights", value, "True or False or None or 'gaussian'")
      for value in ("pissa", "pissa_niter_16", "olora", "loftq", "corda", "lora_ga", "of the future")],
    ("use_qalora", True, "False"), ("lora_bias", True, "False"), ("use_dora", True, "False"), ("bias", "lora_only", "'none'"),
    ("alora_invocation_tokens", [1, 2], "None"), ("layer_replication", [[0, 2], [0, 2]], "None"),
    ("modules_to_save", ["wte"], "None"), ("trainable_token_indices", [5], "None"), ("target_parameters", ["x"], "None"),
    ("megatron_config", {"hidden_size": 8}, "None"), ("use_bdlora", {"nblocks": 2}, "None"),
    ("arrow_config", {"top_k": 3}, "None"), ("kasa_config", {"beta": 1e-4}, "None"),
    ("monteclora_config", {"num_samples": 8}, "None"), ("velora_config", {"scale": 1.0}, "None"),
    ("rank_pattern", {"q_proj": 8}, "{} is, or 4"), ("alpha_pattern", {"q_proj": 3}, "{} is, or 6"),
    ("layers_to_transform", [0], "None is, or all 2 layers"), ("layers_to_transform", 0, "None is, or all 2 layers"),
    ("use_rslora", "yes", "False or True"), ("peft_type", "IA3", "'LORA'"),
    ("use_a_later_variant", True, "null, false or an empty value"), ("later_scale", 0.5, "null, false or an empty value"),
    ("of two\nlines", 1, "null, false or an empty value"),
])  # fmt: skip
def test_settings_that_change_the_network_or_are_unknown_are_refused(key, value, accepted, written, tmp_path):
    with pytest.raises(ValueError) as error:
        read(written, tmp_path, **{key: value})
    message = str(error.value)
    key = key.replace("\n", r"\n")
    assert message.startswith(f"{tmp_path / ADAPTER_CONFIG}: {key}={value!r} is not ") and f"only {accepted}" in message
    assert "\n" not in message


@pytest.mark.parametrize("key", ["target_modules", "unknown", "r", "layers_to_transform", "rank_pattern"])
def test_a_message_does_not_repeat_a_long_value(key, written, tmp_path):
    with pytest.raises(ValueError, match=f"{key}=.*\\.\\.\\.") as raised:
        read(written, tmp_path, **{key: [f"name_{i}" for i in range(10_000)]})
    assert len(str(raised.value)) < 500 + len(str(tmp_path))


def test_a_long_list_of_layers_is_searched_once(written, tmp_path):
    begin = time.monotonic()
    _read_settings(tmp_path, PEFT_0_21 | {"layers_to_transform": [*[999] * 1_000_000, *range(512)]}, 512)
    assert time.monotonic() - begin < 2  # searching it for each layer takes over four seconds


@pytest.mark.parametrize("change", [{"target_modules": ["q_proj"]}, {"exclude_modules": ["blocks.1.ff_out"]}])
def test_tensors_that_peft_would_not_use_are_refused(change, written, tmp_path):
    with pytest.raises(ValueError, match=r"leaves out model.transformer.blocks.*ff_out, which adapter_model.safetensors has"):
        read(written, tmp_path, **change)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_adapters_of_any_float_dtype_load_as_float32(dtype, written, tmp_path):
    tensors = safetensors.numpy.load_file(written / ADAPTER_FILE)
    safetensors.numpy.save_file({name: tensor.astype(dtype) for name, tensor in tensors.items()}, tmp_path / ADAPTER_FILE)
    (tmp_path / ADAPTER_CONFIG).write_text(json.dumps(PEFT_0_21))
    query = import_peft(tmp_path, CFG)[1]["query"]["a"]
    name = "base_model.model.model.transformer.blocks.1.q_proj.lora_A.weight"
    assert query.dtype == np.float32
    np.testing.assert_array_equal(query[1].T, tensors[name].astype(dtype).astype(np.float32))


@pytest.mark.parametrize("dtype, message", [
    ("I8", "blocks.0.ff_out.lora_A.weight' has dtype int8, and quantized adapters are not supported"),
    ("F8_E4M3", "cannot be read: .*float8_e4m3fn"),
])  # fmt: skip
def test_adapters_in_eight_bits_are_refused(dtype, message, written, tmp_path):
    header, data = {}, 0
    for name, tensor in sorted(safetensors.numpy.load_file(written / ADAPTER_FILE).items()):
        header[name] = {"dtype": dtype, "shape": tensor.shape, "data_offsets": [data, data + tensor.size]}
        data += tensor.size
    encoded = json.dumps(header).encode()
    (tmp_path / ADAPTER_FILE).write_bytes(len(encoded).to_bytes(8, "little") + encoded + bytes(data))
    (tmp_path / ADAPTER_CONFIG).write_text(json.dumps(PEFT_0_21))
    with pytest.raises(ValueError, match=rf"{ADAPTER_FILE}.*{message}"):
        import_peft(tmp_path, CFG)


def test_adapters_that_their_scale_makes_infinite_are_refused(written, tmp_path):
    for name in (ADAPTER_CONFIG, ADAPTER_FILE):
        (tmp_path / name).write_bytes((written / name).read_bytes())
    tensors = safetensors.numpy.load_file(tmp_path / ADAPTER_FILE)
    name = next(name for name in tensors if "lora_B" in name)
    tensors[name] = np.full_like(tensors[name], 3e38)
    safetensors.numpy.save_file(tensors, tmp_path / ADAPTER_FILE)
    with pytest.raises(ValueError, match=f"tensor {re.escape(name)} times the scale 1.5: .* values are NaN"):
        import_peft(tmp_path, CFG)
