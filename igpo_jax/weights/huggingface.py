"""Reads the configuration of Hugging Face folders of LLaDA and iLLaDA, names their tensors, and compares checksums
(docs/method.md section 3). The formats are taken from LLaDA's released configuration and modeling code, and from iLLaDA's
modeling code."""

import hashlib
import os
import pathlib
import sys
from typing import Any

from igpo_jax.model.transformer import ModelConfig
from igpo_jax.runtime.files import read_json
from igpo_jax.tokenizers import added_tokens

Path = tuple[str, ...]  # of a parameter in the nested dict
ARCHITECTURES = ("LLaDAModelLM", "ILLaDAForCausalLM")

# Parameter -> tensor of LLaDA, tensor of iLLaDA. Matrices except the embedding are [out, in] there, and [in, out] here.
TENSORS: dict[Path, tuple[str, str]] = {
    ("embedding",): ("model.transformer.wte", "model.embed_tokens"),
    ("blocks", "attention_norm"): ("model.transformer.blocks.{}.attn_norm", "model.layers.{}.input_layernorm"),
    ("blocks", "query"): ("model.transformer.blocks.{}.q_proj", "model.layers.{}.self_attn.q_proj"),
    ("blocks", "key"): ("model.transformer.blocks.{}.k_proj", "model.layers.{}.self_attn.k_proj"),
    ("blocks", "value"): ("model.transformer.blocks.{}.v_proj", "model.layers.{}.self_attn.v_proj"),
    ("blocks", "attention_out"): ("model.transformer.blocks.{}.attn_out", "model.layers.{}.self_attn.o_proj"),
    ("blocks", "mlp_norm"): ("model.transformer.blocks.{}.ff_norm", "model.layers.{}.post_attention_layernorm"),
    ("blocks", "gate"): ("model.transformer.blocks.{}.ff_proj", "model.layers.{}.mlp.gate_proj"),
    ("blocks", "up"): ("model.transformer.blocks.{}.up_proj", "model.layers.{}.mlp.up_proj"),
    ("blocks", "down"): ("model.transformer.blocks.{}.ff_out", "model.layers.{}.mlp.down_proj"),
    ("final_norm",): ("model.transformer.ln_f", "model.norm"),
    ("head",): ("model.transformer.ff_out", "lm_head"),
}

# Field of `ModelConfig` -> key of LLaDA's config.json, key of iLLaDA's.
SIZES = {
    "width": ("d_model", "hidden_size"), "layers": ("n_layers", "num_hidden_layers"),
    "heads": ("n_heads", "num_attention_heads"), "kv_heads": ("n_kv_heads", "num_key_value_heads"),
    "mlp_width": ("mlp_hidden_size", "intermediate_size"),
}  # fmt: skip
# Keys of config.json that change the computation -> supported values.
LLADA_FIXED = {
    "activation_type": ("silu",), "alibi": (False,), "attention_dropout": (0,), "attention_layer_norm": (False,),
    "bias_for_layer_norm": (False, None), "block_group_size": (1,), "block_type": ("llama",), "embedding_dropout": (0,),
    "include_bias": (False,), "include_qkv_bias": (False, None), "input_emb_norm": (False,), "layer_norm_type": ("rms",),
    "layer_norm_with_affine": (True,), "multi_query_attention": (None, False), "quantization_config": (None,),
    "residual_dropout": (0,), "rope": (True,), "rope_full_precision": (True,), "rope_scaling": (None,),
    "scale_logits": (False,),
}  # fmt: skip
ILLADA_FIXED = {
    "attention_bias": (False,), "attention_dropout": (0,), "embd_pdrop": (0,), "hidden_act": ("silu",),
    "layer_norm_eps": (None,), "mlp_bias": (False,), "quantization_config": (None,), "resid_pdrop": (0,),
    "rope_scaling": (None, {}, {"rope_type": "default"}, {"type": "default"}), "sliding_window": (None,),
}  # fmt: skip

INDEX = "model.safetensors.index.json"
MAX_SIZE = 2**31 - 1  # XLA indexes an axis with 32 bits
MAX_LAYERS = 10_000  # bounds the list of tensor names
# Release -> file -> hash, for revisions 0f2787f2d87eac5eed8a087d5ecd24277e6255b2 (Base),
# 08b83a6feb34df1a6011b80c3c00c7563e963b07 (Instruct) and 84346fd91ba60252d260022201ad6fc5a3468fb2 (1.5); only files whose
# hashes are certain.
SHA256 = read_json(pathlib.Path(__file__).with_name("checksums.json"))


def read_model_json(folder: str | os.PathLike) -> dict[str, Any]:
    """Returns the contents of a folder's config.json. Raises ValueError if the file is missing or not a JSON object."""
    return read_json(pathlib.Path(folder) / "config.json")


def _architecture(values: dict[str, Any]) -> int:
    """Returns the index in `ARCHITECTURES` of the architecture that a config.json names."""
    found = values.get("architectures")
    name = found[0] if isinstance(found, list) and len(found) == 1 else found
    if name not in ARCHITECTURES:
        raise ValueError(f"config.json: architectures={found!r}; this loads {' and '.join(ARCHITECTURES)}")
    return ARCHITECTURES.index(name)


def model_config(values: dict[str, Any], *, mask_id: int | None = None, **numerics: Any) -> ModelConfig:
    """Returns the configuration of the network that a Hugging Face config.json describes. `mask_id` is used if the file has no
    mask_token_id, as in iLLaDA. `numerics` contains param_dtype, compute_dtype, remat and eot_id. Raises ValueError if a key is
    missing, or if a value is invalid or selects an unsupported computation."""
    architecture = _architecture(values)
    tied = values.get(("weight_tying", "tie_word_embeddings")[architecture], False)
    if ARCHITECTURES[architecture] == "LLaDAModelLM":
        values = _with_llada_defaults(values)
    for key, allowed in (LLADA_FIXED, ILLADA_FIXED)[architecture].items():
        if key in values and values[key] not in allowed:
            only = "the default" if key == "rope_scaling" else repr(allowed[0])
            raise ValueError(f"config.json: {key}={values[key]!r} is not supported; only {only} is")
    if not isinstance(tied, bool):
        raise ValueError(f"config.json: whether the head is tied must be true or false, not {tied!r}")
    sizes: dict[str, Any] = {
        field: _integer(values, keys[architecture], most=MAX_LAYERS if field == "layers" else MAX_SIZE)
        for field, keys in SIZES.items()
    }
    vocab_size = _integer(values, "vocab_size")
    if values.get("mask_token_id") is not None:
        mask_id = _integer(values, "mask_token_id", least=0)
    if mask_id is None:
        raise ValueError("config.json has no mask_token_id, and the tokenizer names no mask token")
    eos_id = _integer(values, "eos_token_id", least=0)
    for key, value in (("mask_token_id", mask_id), ("eos_token_id", eos_id)):
        if value >= vocab_size:
            raise ValueError(f"config.json: {key}={value} is not below vocab_size={vocab_size}")
    sizes |= {"rope_theta": _positive(values, "rope_theta"), "norm_epsilon": _positive(values, "rms_norm_eps")}
    return ModelConfig(vocab_size, mask_id, eos_id, tied_head=tied, **sizes, **numerics)


def _with_llada_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the contents of a config.json. Derives missing sizes from the other sizes, as LLaDA's modeling code does."""
    values = dict(values)
    if values.get("n_kv_heads") is None:
        values["n_kv_heads"] = values.get("n_heads")
    ratio, width = values.get("mlp_ratio"), values.get("d_model")
    if values.get("mlp_hidden_size") is None and isinstance(ratio, int | float) and isinstance(width, int | float):
        values["mlp_hidden_size"] = ratio * width
    embeddings, vocab_size = values.get("embedding_size"), values.get("vocab_size")
    if embeddings not in (None, vocab_size):
        raise ValueError(f"config.json: embedding_size={embeddings!r} differs from vocab_size={vocab_size!r}")
    return values


def _integer(values: dict[str, Any], key: str, least: int = 1, most: int = MAX_SIZE) -> int:
    value = values.get(key)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"config.json: {key} must be an integer, at least {least}, not {value!r}")
    if value > most:
        raise ValueError(f"config.json: {key}={value} is more than {most}")
    return value


def _positive(values: dict[str, Any], key: str) -> float:
    value = values.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < sys.float_info.max:
        raise ValueError(f"config.json: {key} must be a positive number, not {value!r}")
    return float(value)


def llada_config(cfg: ModelConfig, max_length: int) -> dict[str, Any]:
    """Returns the contents of a config.json in LLaDA's format, for a network that was not converted from Hugging Face."""
    fixed = {key: allowed[0] for key, allowed in LLADA_FIXED.items() if key not in ("quantization_config", "rope_scaling")}
    return fixed | {
        "architectures": ["LLaDAModelLM"],
        "auto_map": {
            "AutoConfig": "configuration_llada.LLaDAConfig", "AutoModel": "modeling_llada.LLaDAModelLM",
            "AutoModelForCausalLM": "modeling_llada.LLaDAModelLM",
        },
        "model_type": "llada",
        **{key: getattr(cfg, field) for field, (key, _) in SIZES.items()},
        "vocab_size": cfg.vocab_size, "embedding_size": cfg.vocab_size, "max_sequence_length": max_length,
        "mask_token_id": cfg.mask_id, "eos_token_id": cfg.eos_id, "pad_token_id": cfg.eos_id,
        "rope_theta": cfg.rope_theta, "rms_norm_eps": cfg.norm_epsilon, "weight_tying": cfg.tied_head,
    }  # fmt: skip


def tensor_names(values: dict[str, Any], cfg: ModelConfig) -> dict[Path, list[str]]:
    """Returns the names of each parameter's tensors in Hugging Face's files. A parameter has one tensor, or one per layer."""
    architecture = _architecture(values)
    return {
        path: [f"{names[architecture]}.weight".format(layer) for layer in range(cfg.layers if path[0] == "blocks" else 1)]
        for path, names in TENSORS.items()
        if path != ("head",) or not cfg.tied_head
    }


def folder_model_config(folder: str | os.PathLike, **numerics: Any) -> ModelConfig:
    """Returns the configuration of the network in a Hugging Face or model folder. If config.json lacks the mask id, the mask id
    is read from tokenizer.json."""
    try:
        return model_config(read_model_json(folder), mask_id=_mask_id(pathlib.Path(folder) / "tokenizer.json"), **numerics)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def _mask_id(tokenizer: pathlib.Path) -> int | None:
    added = added_tokens(tokenizer, read_json(tokenizer)) if tokenizer.is_file() else []
    return next((token["id"] for token in added if token["content"] in ("<[MASK]>", "<|mdm_mask|>")), None)


def check_sha256(folder: str | os.PathLike, release: str) -> list[str]:
    """Compares a folder's files with the SHA-256 sums of a known release, and returns the names of the compared files. Raises
    ValueError if the release is unknown, or if a file differs or is missing."""
    if release not in SHA256:
        raise ValueError(f"no sums are known of {release!r}; there are those of {', '.join(SHA256)}")
    for name, wanted in SHA256[release].items():
        file = pathlib.Path(folder) / name
        if not file.is_file():
            raise ValueError(f"{file} is missing; {release} has it")
        with file.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
        if found != wanted:
            raise ValueError(f"{file} is not that of {release}: its sha256 is {found}, not {wanted}")
    return list(SHA256[release])
