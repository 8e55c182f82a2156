"""What LLaDA's and iLLaDA's Hugging Face folders say of the network: config.json, tensor names, published checksums.

The sources are llada.md 1, 2 and 4, and the released modelling code of iLLaDA.
"""

import hashlib
import os
import pathlib
import sys
from typing import Any

from igpo_jax.model.transformer import ModelConfig
from igpo_jax.runtime.files import read_json
from igpo_jax.tokenizers import added_tokens

Path = tuple[str, ...]  # of a parameter in the nested dict

# Our parameter -> their tensor. Matrices are [out, in] there, [in, out] here.
LLADA = {
    ("embedding",): "model.transformer.wte",
    ("blocks", "attention_norm"): "model.transformer.blocks.{}.attn_norm",
    ("blocks", "query"): "model.transformer.blocks.{}.q_proj",
    ("blocks", "key"): "model.transformer.blocks.{}.k_proj",
    ("blocks", "value"): "model.transformer.blocks.{}.v_proj",
    ("blocks", "attention_out"): "model.transformer.blocks.{}.attn_out",
    ("blocks", "mlp_norm"): "model.transformer.blocks.{}.ff_norm",
    ("blocks", "gate"): "model.transformer.blocks.{}.ff_proj",
    ("blocks", "up"): "model.transformer.blocks.{}.up_proj",
    ("blocks", "down"): "model.transformer.blocks.{}.ff_out",
    ("final_norm",): "model.transformer.ln_f",
    ("head",): "model.transformer.ff_out",
}
ILLADA = {
    ("embedding",): "model.embed_tokens",
    ("blocks", "attention_norm"): "model.layers.{}.input_layernorm",
    ("blocks", "query"): "model.layers.{}.self_attn.q_proj",
    ("blocks", "key"): "model.layers.{}.self_attn.k_proj",
    ("blocks", "value"): "model.layers.{}.self_attn.v_proj",
    ("blocks", "attention_out"): "model.layers.{}.self_attn.o_proj",
    ("blocks", "mlp_norm"): "model.layers.{}.post_attention_layernorm",
    ("blocks", "gate"): "model.layers.{}.mlp.gate_proj",
    ("blocks", "up"): "model.layers.{}.mlp.up_proj",
    ("blocks", "down"): "model.layers.{}.mlp.down_proj",
    ("final_norm",): "model.norm",
    ("head",): "lm_head",
}

# Keys of config.json that change the computation, and the only values that this network computes.
LLADA_FIXED = {
    "activation_type": ("silu",),
    "alibi": (False,),
    "attention_dropout": (0,),
    "attention_layer_norm": (False,),
    "bias_for_layer_norm": (False, None),
    "block_group_size": (1,),
    "block_type": ("llama",),
    "embedding_dropout": (0,),
    "include_bias": (False,),
    "include_qkv_bias": (False, None),
    "input_emb_norm": (False,),
    "layer_norm_type": ("rms",),
    "layer_norm_with_affine": (True,),
    "multi_query_attention": (None, False),
    "quantization_config": (None,),
    "residual_dropout": (0,),
    "rope": (True,),
    "rope_full_precision": (True,),
    "rope_scaling": (None,),
    "scale_logits": (False,),
}
ILLADA_FIXED = {
    "attention_bias": (False,),
    "attention_dropout": (0,),
    "embd_pdrop": (0,),
    "hidden_act": ("silu",),
    "layer_norm_eps": (None,),
    "mlp_bias": (False,),
    "quantization_config": (None,),
    "resid_pdrop": (0,),
    "sliding_window": (None,),
}
DEFAULT_ROPE = (None, {}, {"rope_type": "default"}, {"type": "default"})

INDEX = "model.safetensors.index.json"
MOST = 2**31 - 1  # of any size: XLA counts the positions of an axis in 32 bits
MOST_LAYERS = 10_000  # each has tensors, whose names are listed

# Of files that are the same wherever they are found (llada.md 2.3). What is not listed has no known sum.
SHA256 = {
    "LLaDA-8B-Base": {
        "config.json": "5f99fefe855fdb5100bb6cadb57bdb09fae723ad54811f95c00ecacf29d58a6a",
        INDEX: "28b4ec27206e42e7ade630450e6ce618bd197acf34d35120e8e86d2bb910a408",
        "model-00001-of-00006.safetensors": "4c0652913997c26851c51d5881918a93b2d502c0eeabcf3fe409800441ebc385",
        "model-00002-of-00006.safetensors": "330b95434544dcdac54531ef01a14fd7dede828974d3ca2c440e443a011d0365",
        "model-00003-of-00006.safetensors": "e7847f941f2872c715af1700834056713aba45cfa66223d9e06000b1936e1abf",
        "model-00004-of-00006.safetensors": "9d5d75b011eae74467ec02db8875b582cce7b02eff143dab78b8530af4bf4dd2",
        "model-00005-of-00006.safetensors": "49e9018af8ae4852eefb2ffe7947df1931b7c4c1dcdd3648b36acd5c90eafd3d",
        "model-00006-of-00006.safetensors": "3a2c91cf7aac23ca84f48d4fdabf58ffd050e9f56b9c94b7962a3d3f5c35e3c6",
        "tokenizer.json": "ee1ef8e5f6d9493ac25480b7b7337ff5d2c1b946190afff18d12c86ca738ae00",
        "tokenizer_config.json": "6e9f41633217287fcf9a58890efb26e91e905bd6ae2234b534b65e0c36f4dd3c",
        "special_tokens_map.json": "981e83321bd28bee90ad62ce1bd0baa0fcef3540dd29ca35e2116ec5577fef71",
    },
    "LLaDA-8B-Instruct": {
        "config.json": "5f99fefe855fdb5100bb6cadb57bdb09fae723ad54811f95c00ecacf29d58a6a",
        INDEX: "28b4ec27206e42e7ade630450e6ce618bd197acf34d35120e8e86d2bb910a408",
        "tokenizer.json": "071eb20fe7bd601550b1b7838ff696d6c93b88f51257f753303d3df23163c381",
        "tokenizer_config.json": "b9a6102c39a4f42f47f0d63fc6cee58a2381199d90f2a4f39b3f6871f32b4119",
        "special_tokens_map.json": "e9f1f0f6fa133da3169ae69b1969c51cced047a900050893d7a0711c6bd063aa",
    },
    "LLaDA-1.5": {
        "config.json": "5f99fefe855fdb5100bb6cadb57bdb09fae723ad54811f95c00ecacf29d58a6a",
        INDEX: "529c88f26aebf7797ba124ceea1e0a574f5057b3b54132800c2a2e20e79d862c",
        "tokenizer_config.json": "b9a6102c39a4f42f47f0d63fc6cee58a2381199d90f2a4f39b3f6871f32b4119",
        "special_tokens_map.json": "e9f1f0f6fa133da3169ae69b1969c51cced047a900050893d7a0711c6bd063aa",
    },
}


def read_config(folder: str | os.PathLike) -> dict[str, Any]:
    """The values of config.json.

    Raises:
        ValueError: there is none, or it is not a JSON object.
    """
    return read_json(pathlib.Path(folder) / "config.json")


def model_config(values: dict[str, Any], *, mask_id: int | None = None, **numerics) -> ModelConfig:
    """The network that a Hugging Face config.json describes.

    Args:
        values: see `read_config`.
        mask_id: where the configuration has no `mask_token_id`, as iLLaDA's has not.
        numerics: `param_dtype`, `compute_dtype`, `remat`, `eot_id` of `ModelConfig`.

    Raises:
        ValueError: names the key whose value is missing or asks for a computation that is not LLaDA's.
    """
    architecture = _architecture(values)
    if architecture == "LLaDAModelLM":
        theirs = ("d_model", "n_layers", "n_heads", "n_kv_heads", "mlp_hidden_size")
        fixed, tied = LLADA_FIXED, values.get("weight_tying", False)
        values = dict(values)
        if values.get("n_kv_heads") is None:
            values["n_kv_heads"] = values.get("n_heads")
        if values.get("mlp_hidden_size") is None:
            values["mlp_hidden_size"] = _times(values.get("mlp_ratio"), values.get("d_model"))
        if values.get("embedding_size") not in (None, values.get("vocab_size")):
            raise ValueError(
                f"config.json: embedding_size={values['embedding_size']} differs from vocab_size={values.get('vocab_size')}"
            )
    else:
        theirs = (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "intermediate_size",
        )
        fixed, tied = ILLADA_FIXED, values.get("tie_word_embeddings", False)
        if values.get("rope_scaling") not in DEFAULT_ROPE:
            raise ValueError(
                f"config.json: rope_scaling={values['rope_scaling']!r} is not supported; only the default is"
            )
    for key, allowed in fixed.items():
        if key in values and values[key] not in allowed:
            raise ValueError(f"config.json: {key}={values[key]!r} is not supported; only {allowed[0]!r} is")
    if not isinstance(tied, bool):
        raise ValueError(f"config.json: whether the head is tied must be true or false, not {tied!r}")

    def integer(key: str, least: int = 1, most: int = MOST) -> int:
        value = values.get(key)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"config.json: {key} must be an integer, at least {least}, not {value!r}")
        if value > most:
            raise ValueError(f"config.json: {key}={value} is more than {most}")
        return value

    def positive(key: str) -> float:
        value = values.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < sys.float_info.max:
            raise ValueError(f"config.json: {key} must be a positive number, not {value!r}")
        return float(value)

    shape = {
        ours: integer(key, most=MOST_LAYERS if ours == "layers" else MOST)
        for ours, key in zip(("width", "layers", "heads", "kv_heads", "mlp_width"), theirs, strict=True)
    }
    vocab_size = integer("vocab_size")
    if values.get("mask_token_id") is not None:
        mask_id = integer("mask_token_id", least=0)
    if mask_id is None:
        raise ValueError("config.json has no mask_token_id, and the tokenizer names no mask token")
    eos_id = integer("eos_token_id", least=0)
    for key, value in (("mask_token_id", mask_id), ("eos_token_id", eos_id)):
        if value >= vocab_size:
            raise ValueError(f"config.json: {key}={value} is not below vocab_size={vocab_size}")
    return ModelConfig(
        vocab_size=vocab_size,
        mask_id=mask_id,
        eos_id=eos_id,
        rope_theta=positive("rope_theta"),
        norm_epsilon=positive("rms_norm_eps"),
        tied_head=tied,
        **shape,
        **numerics,
    )


def _times(one, other):
    """The product of two numbers; None, which is refused later, where they are not."""
    return one * other if isinstance(one, int | float) and isinstance(other, int | float) else None


def llada_config(cfg: ModelConfig, max_length: int) -> dict[str, Any]:
    """A config.json in LLaDA's format for a network that was not converted from one."""
    fixed = {
        key: allowed[0] for key, allowed in LLADA_FIXED.items() if key not in ("quantization_config", "rope_scaling")
    }
    return fixed | {
        "architectures": ["LLaDAModelLM"],
        "auto_map": {
            "AutoConfig": "configuration_llada.LLaDAConfig",
            "AutoModel": "modeling_llada.LLaDAModelLM",
            "AutoModelForCausalLM": "modeling_llada.LLaDAModelLM",
        },
        "model_type": "llada",
        "d_model": cfg.width,
        "n_layers": cfg.layers,
        "n_heads": cfg.heads,
        "n_kv_heads": cfg.kv_heads,
        "mlp_hidden_size": cfg.mlp_width,
        "vocab_size": cfg.vocab_size,
        "embedding_size": cfg.vocab_size,
        "max_sequence_length": max_length,
        "mask_token_id": cfg.mask_id,
        "eos_token_id": cfg.eos_id,
        "pad_token_id": cfg.eos_id,
        "rope_theta": cfg.rope_theta,
        "rms_norm_eps": cfg.norm_epsilon,
        "weight_tying": cfg.tied_head,
    }


def _architecture(values: dict[str, Any]) -> str:
    found = values.get("architectures")
    name = found[0] if isinstance(found, list) and len(found) == 1 else found
    if name not in ("LLaDAModelLM", "ILLaDAForCausalLM"):
        raise ValueError(f"config.json: architectures={found!r}; this loads LLaDAModelLM and ILLaDAForCausalLM")
    return name


def tensor_names(values: dict[str, Any], cfg: ModelConfig) -> dict[Path, list[str]]:
    """For every parameter, the names of the tensors it is made of: one, or one per layer."""
    templates = LLADA if _architecture(values) == "LLaDAModelLM" else ILLADA
    return {
        path: [f"{name.format(layer)}.weight" for layer in range(cfg.layers)]
        if path[0] == "blocks"
        else [f"{name}.weight"]
        for path, name in templates.items()
        if not (path == ("head",) and cfg.tied_head)
    }


def folder_model_config(folder: str | os.PathLike, **numerics) -> ModelConfig:
    """The network of a Hugging Face or a model folder; a mask id that config.json lacks is looked up in tokenizer.json.

    Raises:
        ValueError: see `model_config`; the message begins with the folder.
    """
    try:
        return model_config(read_config(folder), mask_id=_mask_token_of(pathlib.Path(folder)), **numerics)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def _mask_token_of(folder: pathlib.Path) -> int | None:
    if not (folder / "tokenizer.json").is_file():
        return None
    named = added_tokens(folder / "tokenizer.json", read_json(folder / "tokenizer.json"))
    return next((token["id"] for token in named if token["content"] in ("<[MASK]>", "<|mdm_mask|>")), None)


def check_sha256(folder: str | os.PathLike, release: str) -> list[str]:
    """Compares the files of a known release with their published sums; returns the names of those that were compared.

    Raises:
        ValueError: a file that differs or is missing, or a release that is not known.
    """
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
