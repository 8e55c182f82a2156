"""Starts for training that are made from autoregressive models (`convert --as`)."""

import json

import jax
import numpy as np
import pytest

from igpo_jax.config import with_tokenizer
from igpo_jax.families import FAMILIES
from igpo_jax.tokenizers import load_tokenizer, special_tokens
from igpo_jax.weights.folders import convert, export, load_params
from igpo_jax.weights.huggingface import folder_model_config, masked_config, model_config, read_model_json
from igpo_jax.weights.safetensors_files import stored_tensors
from model_folders import tensor_bytes, write_folder
from qwen_files import write_small

SIZES = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48, vocab_size=320,
    rope_theta=10000.0, rms_norm_eps=1e-6, hidden_act="silu", max_position_embeddings=512, tie_word_embeddings=False,
)  # fmt: skip
PAIRS = [(name, family.architectures[0]) for family in FAMILIES for name in family.causal]


@pytest.fixture(params=PAIRS, ids="-".join)
def causal(request, tmp_path, mesh):
    """A folder of an autoregressive model, and the architecture of the masked one."""
    name, target = request.param
    return write_causal(tmp_path, mesh, name, target), target


def write_causal(tmp_path, mesh, name, target, mask="<|mask|>"):
    ids = write_small(tmp_path / "files", mask=mask)
    values = SIZES | {"architectures": [target], "eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"]}
    if "Llama" in name:
        values["eos_token_id"] = ids["<|endoftext|>"]
    cfg = model_config(values, special=ids | {"<|mask|>": ids[mask]})
    write_folder(tmp_path / "causal", mesh, cfg, values, "float32")
    for file in (tmp_path / "files").iterdir():
        file.rename(tmp_path / "causal" / file.name)
    names = {"eos_token": "<|endoftext|>"} if "Llama" in name else {}
    tokenizer = json.loads((tmp_path / "causal/tokenizer_config.json").read_text())
    (tmp_path / "causal/tokenizer_config.json").write_text(json.dumps(tokenizer | names))
    values |= {"architectures": [name], "model_type": "any", "auto_map": {"AutoModel": "x.y"}}
    (tmp_path / "causal/config.json").write_text(json.dumps(values))
    return tmp_path / "causal"


def test_a_start_has_the_weights_a_mask_and_all_files(causal, tmp_path, mesh):
    source, target = causal
    with pytest.raises(ValueError, match="this is an autoregressive model.*igpo_jax.convert --source=FOLDER --target=NEW --as="):
        folder_model_config(source)
    start, ids = masked_config(source, target), special_tokens(source)
    assert (start["architectures"], start["mask_token_id"], "auto_map" in start) == ([target], ids["<|mask|>"], False)
    with jax.set_mesh(mesh):
        convert(source, tmp_path / "start", mesh, start=start)
        cfg = folder_model_config(tmp_path / "start")
        assert cfg.shift == (target in ("DreamModel", "CoDALanguageModel")) and cfg.eos_id == ids["<|endoftext|>"]
        params = load_params(tmp_path / "start", cfg, mesh)
        export(tmp_path / "start", tmp_path / "again", mesh)
    assert np.isfinite(np.asarray(params["embedding"])).all()
    tokenizer = load_tokenizer(tmp_path / "start", cfg.mask_id)
    assert with_tokenizer(cfg, tokenizer, tmp_path / "start").eot_id == ids["<|im_end|>"]
    one, other = stored_tensors(source), stored_tensors(tmp_path / "again")
    assert one.keys() == other.keys() and all(tensor_bytes(one[name]) == tensor_bytes(other[name]) for name in one)
    assert read_model_json(tmp_path / "again") == start


def test_the_mask_may_be_an_unused_token_or_an_id_beyond_the_tokenizer(tmp_path, mesh):
    source = write_causal(tmp_path, mesh, "Qwen3ForCausalLM", "A2DQwen3LMHeadModel", mask="<|unused|>")
    ids, target = special_tokens(source), "A2DQwen3LMHeadModel"
    assert masked_config(source, target, "<|unused|>")["mask_token_id"] == ids["<|unused|>"]
    assert masked_config(source, target, "7")["mask_token_id"] == 7
    free = masked_config(source, target)["mask_token_id"]
    assert free == max(ids.values()) + 1 < SIZES["vocab_size"]
    values = read_model_json(source)
    (source / "config.json").write_text(json.dumps(values | {"vocab_size": free}))
    with pytest.raises(ValueError, match="no id is free for MASK; give an unused special token"):
        masked_config(source, target)


@pytest.mark.parametrize("target, mask, message", [
    ("A2DQwen3LMHeadModel", "", "architectures=.'Qwen2ForCausalLM'.; A2DQwen3LMHeadModel can be made from Qwen3ForCausalLM"),
    ("LLaDAModelLM", "", "LLaDAModelLM can be made from no autoregressive model"),
    ("Qwen2ForCausalLM", "", "architectures=.'Qwen2ForCausalLM'.; this is an autoregressive model"),
    ("A2DQwen2LMHeadModel", "<|nothing|>", "has no added token '<.nothing.>'"),
    ("A2DQwen2LMHeadModel", "<|endoftext|>", "must differ from the tokenizer's <.endoftext.>"),
    ("A2DQwen2LMHeadModel", "320", "mask_token_id=320 is not below vocab_size=320"),
])  # fmt: skip
def test_what_cannot_become_a_start_is_one_line(target, mask, message, tmp_path, mesh):
    source = write_causal(tmp_path, mesh, "Qwen2ForCausalLM", "A2DQwen2LMHeadModel")
    with pytest.raises(ValueError, match=message), jax.set_mesh(mesh):
        convert(source, tmp_path / "start", mesh, start=masked_config(source, target, mask))
    assert not (tmp_path / "start").exists()
