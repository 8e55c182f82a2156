"""Families of models beside LLaDA: the network equals that of the transformers library, and files survive a round trip."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from igpo_jax.model.lora import LoraConfig, attach
from igpo_jax.model.lora import init as init_adapters
from igpo_jax.model.transformer import forward, unembed, weight_decay_mask
from igpo_jax.weights.folders import convert, export, load_params
from igpo_jax.weights.huggingface import folder_model_config, read_model_json, tensor_names
from igpo_jax.weights.peft import ADAPTER_FILE, export_peft, import_peft
from model_folders import assert_same_files

torch = pytest.importorskip("torch", reason="the reference needs PyTorch")
pytest.importorskip("transformers", reason="the reference needs transformers")
peft_style = pytest.importorskip("safetensors.torch")

from igpo_jax.families import family_of
from transformers_models import EOS, KINDS, MASK, TURN, logits_of, make_model, write_model

SAME = {"rtol": 2e-4, "atol": 2e-4}


LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16
}  # fmt: skip


def batch(rows=3, length=11, padding=4):
    tokens = np.random.default_rng(1).integers(0, 90, (rows, length)).astype(np.int32)
    mask = np.ones(tokens.shape, bool)
    mask[0, :padding] = False
    return tokens, mask


def defined(kind, mask):
    """Returns the positions whose logits are defined. A shifted model reads those after the padding at padding."""
    after = np.concatenate([mask[:, :1], mask[:, :-1]], axis=1)
    return mask & after if kind in ("dream", "coda") else mask


def ours(params, cfg, tokens, mask):
    with jax.default_matmul_precision("highest"):
        return jax.jit(lambda params: unembed(params, forward(params, tokens, mask, cfg), cfg))(params)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.mark.parametrize("tied, layers", [(False, 2), (True, 2), (True, 6)])  # few layers are unrolled, many are scanned
def test_logits_with_padding_and_gradients_are_those_of_transformers(kind, tied, layers, tmp_path, mesh):
    model = make_model(kind, tie_word_embeddings=tied, num_hidden_layers=layers)
    write_model(model, tmp_path / "hf", kind)
    cfg, (tokens, mask) = folder_model_config(tmp_path / "hf"), batch()
    ends = TURN if kind == "llama" else EOS
    assert (cfg.mask_id, cfg.eos_id, cfg.tied_head, cfg.head_size) == (MASK, ends, tied, {"qwen3": 16, "coda": 16, "llama": 8}.get(kind, 12))
    with jax.set_mesh(mesh):
        params = load_params(tmp_path / "hf", cfg, mesh)
        expected = logits_of(model, tokens, mask)
        real = defined(kind, mask)
        np.testing.assert_allclose(np.asarray(ours(params, cfg, tokens, mask))[real], expected.detach().numpy()[real], **SAME)
        weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2)) * torch.from_numpy(real)[..., None]
        (expected * weight).sum().backward()

        def loss(params):
            return (unembed(params, forward(params, tokens, mask, cfg), cfg) * weight.numpy()).sum()

        with jax.default_matmul_precision("highest"):
            gradients = flatten_dict(jax.jit(jax.grad(loss))(params))
    theirs = dict(model.named_parameters())
    for path, names in tensor_names(read_model_json(tmp_path / "hf"), cfg).items():
        for layer, name in enumerate(names):
            found = np.asarray(gradients[path][layer] if path[0] == "blocks" else gradients[path])
            wanted = theirs[name].grad.numpy()
            wanted = wanted.T if wanted.ndim == 2 and path != ("embedding",) else wanted
            assert np.linalg.norm(found - wanted) <= 1e-3 * np.linalg.norm(wanted), name
            assert np.linalg.norm(wanted) > 0


def test_a_causal_mask_makes_it_the_autoregressive_model(kind, tmp_path, mesh):
    """So the weights of autoregressive models are read rightly."""
    model = make_model(kind)
    write_model(model, tmp_path / "hf", kind)
    cfg = dataclasses.replace(folder_model_config(tmp_path / "hf"), shift=False)
    tokens, _ = batch()
    causal = np.broadcast_to(np.tril(np.ones((11, 11), bool)), (3, 11, 11))
    with jax.set_mesh(mesh), torch.no_grad():
        found = ours(load_params(tmp_path / "hf", cfg, mesh), cfg, tokens, causal)
        expected = model(input_ids=torch.from_numpy(tokens).long()).logits
    np.testing.assert_allclose(found, expected.numpy(), **SAME)


@pytest.mark.parametrize("shape", [(1, 8, 1), (2, 2, 2), (8, 1, 1)])
@pytest.mark.parametrize("layers", [2, pytest.param(9, marks=pytest.mark.slow)])  # unrolled and scanned
def test_meshes_give_the_same_logits(kind, shape, layers, tmp_path, mesh, mesh_of):
    changes = {"num_hidden_layers": layers} | ({"num_key_value_heads": 2} if kind == "llama" else {})
    write_model(make_model(kind, **changes), tmp_path / "hf", kind)
    cfg, (tokens, mask) = folder_model_config(tmp_path / "hf"), batch(rows=8)
    found = []
    for one in (mesh, mesh_of(shape)):
        with jax.set_mesh(one):
            found.append(np.asarray(ours(load_params(tmp_path / "hf", cfg, one), cfg, tokens, mask)))
    np.testing.assert_allclose(found[1], found[0], **SAME)


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_the_scaled_rotary_embedding_of_llama_3_is_that_of_transformers(key, tmp_path, mesh):
    scaled = {"rope_scaling": LLAMA3} if key == "rope_scaling" else {"rope_parameters": LLAMA3 | {"rope_theta": 20000.0}}
    model = make_model("llama", head_dim=16, **scaled)
    write_model(model, tmp_path / "hf", "llama", **({"rope_parameters": None, "rope_theta": 20000.0} | scaled))
    cfg, (tokens, mask) = folder_model_config(tmp_path / "hf"), batch(length=64)
    assert cfg.rope_scaling == (8.0, 1.0, 4.0, 16) and cfg.rope_theta == 20000.0
    with jax.set_mesh(mesh):
        params = load_params(tmp_path / "hf", cfg, mesh)
        found = np.asarray(ours(params, cfg, tokens, mask))
        plain = np.asarray(ours(params, dataclasses.replace(cfg, rope_scaling=None), tokens, mask))
    np.testing.assert_allclose(found[mask], logits_of(model, tokens, mask).detach().numpy()[mask], **SAME)
    assert np.abs(plain - found)[mask].max() > 0.1


@pytest.mark.parametrize("stored_head", [False, True])
def test_files_survive_a_round_trip_and_load_in_transformers(kind, stored_head, tmp_path, mesh):
    model = make_model(kind, tie_word_embeddings=True)
    write_model(model, tmp_path / "hf", kind, stored_head)
    with jax.set_mesh(mesh):
        convert(tmp_path / "hf", tmp_path / "model", mesh)
        export(tmp_path / "model", tmp_path / "again", mesh)
    assert_same_files(tmp_path / "hf", tmp_path / "again")
    values = json.loads((tmp_path / "again/config.json").read_text())
    values |= {"architectures": [type(model).__name__], "model_type": model.config.model_type, "shifted": kind in ("dream", "coda")}
    (tmp_path / "again/config.json").write_text(json.dumps(values))
    loaded = type(model).from_pretrained(tmp_path / "again", attn_implementation="eager").eval()
    np.testing.assert_array_equal(logits_of(loaded, *batch()).detach(), logits_of(model, *batch()).detach())


def test_adapters_have_the_names_of_the_modules(kind, tmp_path, mesh):
    model, lora = make_model(kind), LoraConfig(rank=2, alpha=3.0)
    write_model(model, tmp_path / "hf", kind)
    cfg, (tokens, mask) = folder_model_config(tmp_path / "hf"), batch()
    adapters = init_adapters(jax.random.key(1), cfg, lora)
    adapters = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(2), x.shape), adapters)
    export_peft(jax.tree.map(np.asarray, adapters), lora, tmp_path / "peft", "", family_of(read_model_json(tmp_path / "hf")))
    stored = peft_style.load_file(tmp_path / "peft" / ADAPTER_FILE)
    with torch.no_grad():
        for name, module in model.named_modules():
            a, b = (stored.pop(f"base_model.model.{name}.lora_{part}.weight", None) for part in "AB")
            if a is not None:
                module.weight += lora.scale * b @ a
    assert not stored
    again, read = import_peft(tmp_path / "peft", cfg)
    assert again == lora
    with jax.set_mesh(mesh):
        params = attach(load_params(tmp_path / "hf", cfg, mesh), read, lora)
        found = np.asarray(ours(params, cfg, tokens, mask))
    real = defined(kind, mask)
    np.testing.assert_allclose(found[real], logits_of(model, tokens, mask).detach().numpy()[real], **SAME)


def test_int8_quantizes_matrices_only_and_biases_do_not_decay(mesh, tmp_path):
    write_model(make_model("qwen2"), tmp_path / "hf", "qwen2")
    cfg, (tokens, mask) = folder_model_config(tmp_path / "hf"), batch()
    decayed = flatten_dict(weight_decay_mask(cfg))
    assert {path[-1] for path, decays in decayed.items() if not decays} == {
        "attention_norm", "mlp_norm", "final_norm", "query_bias", "key_bias", "value_bias"
    }  # fmt: skip
    quantized = dataclasses.replace(cfg, base_dtype="int8")
    with jax.set_mesh(mesh):
        exact, rounded = (load_params(tmp_path / "hf", one, mesh) for one in (cfg, quantized))
        np.testing.assert_array_equal(exact["blocks"]["query_bias"], rounded["blocks"]["query_bias"])
        logits = [np.asarray(ours(params, one, tokens, mask))[mask] for params, one in ((exact, cfg), (rounded, quantized))]
    assert 0 < np.abs(logits[0] - logits[1]).mean() < 0.2 * np.abs(logits[0]).mean()


def edited(change):
    def edit(folder):
        file = folder / "config.json"
        values = json.loads(file.read_text())
        values.update(change)
        file.write_text(json.dumps(values))

    return edit


def without(name):
    def edit(folder):
        file = folder / "model.safetensors"
        tensors = peft_style.load_file(file)
        del tensors[name]
        peft_style.save_file(tensors, file, {"format": "pt"})

    return edit


def with_tensor(name, shape):
    def edit(folder):
        file = folder / "model.safetensors"
        peft_style.save_file(peft_style.load_file(file) | {name: torch.ones(shape)}, file, {"format": "pt"})

    return edit


BIAS = "model.layers.1.self_attn.k_proj.bias"


@pytest.mark.parametrize("kind, change, message", [
    ("qwen2", edited({"architectures": ["A2DQwen3LMHeadModel"]}), "no place for: model.layers.0.self_attn.k_proj.bias|lacks"),
    ("qwen2", edited({"architectures": ["Qwen2MoeForCausalLM"]}), "architectures=.'Qwen2MoeForCausalLM'.; this loads LLaDAModelLM"),
    ("qwen2", edited({"architectures": ["A2DQwen3BlockLMHeadModel"]}), "attend block by block are not supported"),
    ("qwen2", without(BIAS), f"lacks {BIAS}"),
    ("qwen2", with_tensor("model.layers.0.self_attn.o_proj.bias", 48), "no place for: model.layers.0.self_attn.o_proj.bias"),
    ("qwen3", with_tensor("model.layers.0.self_attn.q_proj.bias", 64), "no place for: model.layers.0.self_attn.q_proj.bias"),
    ("qwen3", edited({"attention_bias": True}), "attention_bias=True is not supported"),
    ("qwen2", edited({"use_sliding_window": True, "sliding_window": 8}), "use_sliding_window=True is not supported"),
    ("qwen3", edited({"sliding_window": 8, "use_sliding_window": None}), "sliding_window=8 is not supported"),
    ("qwen3", edited({"layer_types": ["full_attention", "sliding_attention"]}), "layer_types=.*'full_attention' in all layers is"),
    ("qwen3", edited({"mask_token_id": 96}), "mask_token_id=96 is not below vocab_size=96"),
    ("qwen3", edited({"mask_token_id": EOS}), "mask_token_id=90 must differ from pad_token_id"),
    ("qwen3", edited({"mask_token_id": None}), "no mask_token_id, and the tokenizer names no mask token; the files of the tok"),
    ("qwen3", edited({"pad_token_id": None}), "pad_token_id must be an integer"),
    ("qwen3", edited({"head_dim": 15}), "the size of a head, 15"),
    ("qwen3", edited({"head_dim": 8}), "has shape .*, config.json asks for"),
    ("llama", edited({"rope_scaling": {"rope_type": "yarn", "factor": 32.0}}), "rope_scaling=.*: rope_type='yarn' is not"),
    ("qwen3", edited({"rope_scaling": LLAMA3}), "rope_scaling=.*: rope_type='llama3' is not"),
    ("llama", edited({"rope_scaling": LLAMA3 | {"factor": "x"}}), "factor must be a positive number, not 'x'"),
    ("llama", edited({"rope_scaling": LLAMA3 | {"factor": 1e39}}), "factor must be from 1 to 1e.15"),
    ("llama", edited({"rope_scaling": LLAMA3 | {"low_freq_factor": 9.0}}), "low_freq_factor below high_freq_factor"),
    ("llama", edited({"rope_scaling": LLAMA3 | {"high_freq_factor": 1e307}}), "and that at most 1e\\+15"),  # NaN in float32
    ("llama", edited({"rope_scaling": LLAMA3 | {"beta_fast": 2}}), "beta_fast=2 is not supported"),
    ("llama", edited({"rope_scaling": LLAMA3, "rope_parameters": LLAMA3 | {"factor": 2.0}}), "rope_parameters and rope_scaling differ"),
    ("llama", with_tensor("model.embed_tokens.bias", 48), "no place for: model.embed_tokens.bias"),
])  # fmt: skip
def test_a_folder_that_cannot_be_loaded_is_one_line(kind, change, message, tmp_path, mesh):
    write_model(make_model(kind), tmp_path / "hf", kind)
    change(tmp_path / "hf")
    with pytest.raises(ValueError, match=message):
        load_params(tmp_path / "hf", folder_model_config(tmp_path / "hf"), mesh)


def test_a_tied_head_that_differs_is_refused(tmp_path, mesh):
    write_model(make_model("qwen3", tie_word_embeddings=True), tmp_path / "hf", "qwen3")
    with_tensor("lm_head.weight", (96, 48))(tmp_path / "hf")
    message = "lm_head.weight differs from model.embed_tokens.weight, but config.json says that they are tied"
    with pytest.raises(ValueError, match=message):
        load_params(tmp_path / "hf", folder_model_config(tmp_path / "hf"), mesh)


def test_settings_of_both_versions_of_transformers_are_read(kind, tmp_path, mesh):
    """transformers 5 writes rope_parameters and dtype, transformers 4 rope_theta and torch_dtype. A list of
    ends is accepted where the row is filled with another token."""
    write_model(make_model(kind), tmp_path / "hf", kind)
    found = folder_model_config(tmp_path / "hf")
    values = read_model_json(tmp_path / "hf")
    theta = (values.pop("rope_parameters", None) or values)["rope_theta"]
    values.pop("dtype", None)
    values |= {"rope_theta": theta, "torch_dtype": "float32", "rope_scaling": None}
    values["eos_token_id"] = TURN if kind == "llama" else [TURN, EOS]
    shutil.copytree(tmp_path / "hf", tmp_path / "old")
    (tmp_path / "old/config.json").write_text(json.dumps(values))
    assert folder_model_config(tmp_path / "old") == found and found.rope_theta == 20000.0
