"""Keys of a model's config.json: what changes the network is read or refused, all else loads."""

import json
import pathlib

import pytest

from igpo_jax.model.transformer import ModelConfig
from igpo_jax.weights.huggingface import model_config

# All keys of the config.json of LLaDA-8B-Base, LLaDA-8B-Instruct and LLaDA-1.5, with their values except for the sizes.
LLADA = json.loads((pathlib.Path(__file__).parents[1] / "model/fixtures/llada_tiny/config.json").read_text())
ILLADA = {
    "architectures": ["ILLaDAForCausalLM"], "model_type": "illada", "hidden_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 512, "rms_norm_eps": 1e-5,
    "layer_norm_eps": None, "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0,
    "resid_pdrop": 0.0, "rope_theta": 500000.0, "rope_scaling": None, "tie_word_embeddings": True, "mask_token_id": 5,
    "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 1, "initializer_range": 0.02, "max_position_embeddings": 8192,
    "use_cache": False, "dtype": "bfloat16", "transformers_version": "4.57.1",
    "auto_map": {"AutoConfig": "configuration_illada.ILLaDAConfig", "AutoModel": "modeling_illada.ILLaDAForCausalLM"},
}  # fmt: skip
BOTH = pytest.mark.parametrize("released", [LLADA, ILLADA], ids=["LLaDA", "iLLaDA"])
DEFAULT = {"rope_type": "default", "rope_theta": 500000.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 500000.0}


def read(released, **change) -> ModelConfig:
    """Reads a config.json with changed keys; a key whose value is ... is left out."""
    return model_config({key: value for key, value in (released | change).items() if value is not ...})


@BOTH
@pytest.mark.parametrize("change", [
    {}, {"rope_parameters": DEFAULT}, {"rope_theta": ..., "rope_parameters": {"rope_theta": 500000}},
    {"rope_theta": ..., "rope_parameters": DEFAULT | {"partial_rotary_factor": 1.0, "factor": None}},
    {"rope_theta": ..., "rope_parameters": {"full_attention": DEFAULT, "sliding_attention": None}, "layer_types": ["full_attention"] * 2},
    {"rope_theta": None, "rope_scaling": {"type": "default", "rope_theta": 5e5, "factor": 1.0}}, {"rope_scaling": {}},
    {"rope_parameters": None}, {"partial_rotary_factor": 1.0}, {"sliding_window": 4096, "use_sliding_window": False},
    {"layer_types": ["full_attention"] * 2, "max_window_layers": 28}, {"head_dim": 16}, {"torch_dtype": "bfloat16"},
    {"dtype": "float32", "transformers_version": "5.24.0", "use_cache": True}, {"quantization_config": None},
    {"temperature": 0.7, "do_sample": True, "max_length": 100, "id2label": {"0": "LABEL_0"}}, {"clip_qkv": None},
    {"a_later_key": False}, {"later_experts": 0}, {"_name_or_path": "GSAI-ML/LLaDA-8B-Base"}, {"pretraining_tp": 1},
])  # fmt: skip
def test_keys_that_leave_the_network_as_it_is_load(change, released):
    assert read(released, **change) == read(released)
    assert read(released).rope_theta == 500000.0


@BOTH
@pytest.mark.parametrize("change, message", [
    ({"rope_theta": 10000, "rope_parameters": {"rope_theta": 500000}}, "rope_theta=10000.0 and rope_parameters.rope_theta=500000.0 differ"),
    ({"rope_scaling": {"rope_theta": 1e6}}, "rope_theta=500000.0 and rope_scaling.rope_theta=1000000.0 differ"),
    ({"rope_theta": ..., "rope_parameters": {"full_attention": DEFAULT, "sliding_attention": {"rope_theta": 1e4}}}, "differ"),
    ({"rope_theta": ...}, "rope_theta must be a positive number, not None"),
    ({"rope_theta": ..., "rope_parameters": {"rope_theta": "5e5"}}, "rope_parameters.rope_theta must be a positive number"),
    *[({place: YARN | {"rope_type": kind}}, f"{place}=.*rope_type='{kind}' is not supported; only the default is")
      for place in ("rope_parameters", "rope_scaling") for kind in ("yarn", "linear", "dynamic", "llama3", "longrope", "ntk")],
    ({"rope_parameters": {"full_attention": YARN}}, "rope_parameters.full_attention=.*rope_type='yarn' is not supported"),
    ({"rope_parameters": {"full_attention": {"a": DEFAULT}}}, "rope_parameters.full_attention=.* is not supported"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling=.*type='linear'"),
    ({"rope_scaling": {"factor": 2.0}}, "factor=2.0 is not supported; only the default is"),
    ({"rope_parameters": DEFAULT | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5 is not supported"),
    ({"rope_parameters": DEFAULT | {"mrope_section": [16, 24, 24]}}, "mrope_section=.* is not supported"),
    ({"rope_parameters": [1]}, "rope_parameters=.* is not supported; only the default is"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported; only 1 is"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types=.* only 'full_attention' in all layers is"),
    ({"sliding_window": 4096}, "sliding_window=4096 is not supported"),
    ({"use_sliding_window": True, "sliding_window": 4096}, "use_sliding_window=True is not supported; only False is"),
    ({"head_dim": 32}, "head_dim=32 is not supported; only 64 / 4 is"),
    ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config=.* only None is"),
    ({"attention_bias": True}, "attention_bias=True is not supported"), ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
    ({"clip_qkv": 8.0}, "clip_qkv=8.0 is not known and may change the network; only null, false, 0 or an empty value"),
    ({"block_size": 32}, "block_size=32 is not known"), ({"num_experts": 64}, "num_experts=64 is not known"),
    ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0"), ({"qk_layernorm": True}, "qk_layernorm=True"),
    ({"embedding_multiplier": 12.0}, "embedding_multiplier"), ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
    ({"per_layer_config": {"0": {"rope_theta": 1}}}, "per_layer_config"), ({"is_causal": True}, "is_causal=True"),
    ({"a_later_key": "on"}, "a_later_key='on' is not known"), ({"a\nb": 1}, r"a\\nb=1 is not known"),
    ({"rope_parameters": {"a\nb": {"c\nd": 1}}}, r"a\\nb=.*c\\nd=1 is not supported"),
    ({"rope_parameters": {"a\nb": {"rope_theta": 1}}}, r"a\\nb.rope_theta=1.0 differ"),
])  # fmt: skip
def test_keys_that_change_the_network_or_are_unknown_are_refused(change, message, released):
    with pytest.raises(ValueError, match=f"^config.json: .*{message}") as error:
        read(released, **change)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_the_base_of_the_rotary_embeddings_is_read_where_transformers_5_writes_it():
    assert read(LLADA, rope_theta=..., rope_parameters={"rope_theta": 123.0}).rope_theta == 123.0


def test_sizes_under_the_names_of_the_other_architecture_must_agree():
    assert read(LLADA, hidden_size=64, num_hidden_layers=2) == read(LLADA)
    with pytest.raises(ValueError, match="hidden_size=128 and d_model=64 differ"):
        read(LLADA, hidden_size=128)


def test_whether_the_head_is_tied_is_read_where_the_architectures_code_reads_it():
    assert read(LLADA, weight_tying=True, tie_word_embeddings=False).tied_head
    assert not read(LLADA, tie_word_embeddings=True).tied_head
    assert not read(ILLADA, weight_tying=True, tie_word_embeddings=False).tied_head
