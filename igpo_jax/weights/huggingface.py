"""Reads the configuration in Hugging Face folders, determines the names of the tensors, and compares checksums (docs/method.md
section 3, docs/models.md). The formats are taken from the released configurations and the modeling code."""

import hashlib
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from flax.traverse_util import flatten_dict

from igpo_jax.families import FAMILIES, LLADA, Family, Path, architecture_of, family_of
from igpo_jax.model.attention import RopeScaling
from igpo_jax.model.transformer import ModelConfig, parameter_table
from igpo_jax.runtime.buckets import path_of, small_files
from igpo_jax.runtime.checks import MOST_NUMBER
from igpo_jax.runtime.files import named_errors, read_json
from igpo_jax.tokenizers import load_tokenizer, special_tokens

MASK_TOKENS = ("<[MASK]>", "<|mdm_mask|>", "<|mask|>", "<|MASK|>", "[MASK]")
# Every key of a config.json is read (READ, `Family.sizes`), must have one of the values in FIXED, is known to be harmless (HARMLESS), or
# must be off (null, false, 0 or empty).
READ = frozenset(
    """
    architectures embedding_size eos_token_id head_dim layer_types mask_token_id mlp_ratio pad_token_id rms_norm_eps rope_parameters
    rope_scaling rope_theta sliding_window tie_word_embeddings vocab_size weight_tying
    """.split()
)
# Keys that change the computation -> supported values. LLaDA's config.json has the keys of LLADA_FIXED.
LLADA_FIXED = {
    "activation_type": ("silu",), "alibi": (False,), "attention_dropout": (0,), "attention_layer_norm": (False,),
    "bias_for_layer_norm": (False, None), "block_group_size": (1,), "block_type": ("llama",), "embedding_dropout": (0,),
    "include_bias": (False,), "include_qkv_bias": (False, None), "input_emb_norm": (False,), "layer_norm_type": ("rms",),
    "layer_norm_with_affine": (True,), "multi_query_attention": (None, False), "residual_dropout": (0,), "rope": (True,),
    "rope_full_precision": (True,), "scale_logits": (False,),
}  # fmt: skip
FIXED = LLADA_FIXED | {
    "attention_bias": (False,), "embd_pdrop": (0,), "hidden_act": ("silu",), "layer_norm_eps": (None,), "mlp_bias": (False,),
    "partial_rotary_factor": (1, None), "quantization_config": (None,), "resid_pdrop": (0,), "use_sliding_window": (False, None),
}  # fmt: skip
# Keys of rope_parameters and rope_scaling, beside rope_theta -> value of unscaled rotary embeddings.
PLAIN_ROPE = {"rope_type": "default", "type": "default", "factor": 1, "partial_rotary_factor": 1}
MOST_FREQ_FACTOR = 1e15  # of llama3's scaling; infinite values of float32 would make all angles NaN
LLAMA3_ROPE = ("rope_type", "type", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
# Keys without effect on the network: they describe files, the class of the model, initialization, precision or generation, or
# belong to computations that FIXED and READ rule out.
HARMLESS = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _commit_hash _name_or_path alibi_bias_max attn_implementation
    attention_layer_norm_with_affine auto_map bad_words_ids begin_suppress_tokens block_masking_probability bos_token_id cls_token_id
    decoder_start_token_id diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size eot_token_id
    exponential_decay_length_penalty finetuning_task flash_attention forced_bos_token_id forced_eos_token_id
    gradient_checkpointing id2label init_cutoff_factor init_device init_fn init_std initializer_range
    keys_to_ignore_at_inference label2id length_penalty mask_block_sizes max_length max_new_tokens max_position_embeddings
    max_sequence_length max_window_layers min_length model_max_length model_type name_or_path no_repeat_ngram_size
    num_beam_groups num_beams num_labels num_return_sequences original_max_position_embeddings output_attentions
    output_hidden_states output_scores precision prefix prefix_probability pretraining_tp problem_type
    remove_invalid_values repetition_penalty return_dict return_dict_in_generate sampling_eps sep_token_id suppress_tokens
    task_specific_params temperature tokenizer_class top_k top_p torch_dtype torchscript transformers_version truncate_probability
    trust_remote_code typical_p unk_token_id unsloth_fixed unsloth_version use_bfloat16 use_cache
    """.split()
)

INDEX = "model.safetensors.index.json"
MAX_SIZE = 2**31 - 1  # XLA indexes an axis with 32 bits
MAX_LAYERS = 512  # bounds the number of tensors, each of which takes some 70 ms to read; the deepest known models have 126
# Release -> file -> hash, for revisions 0f2787f2d87eac5eed8a087d5ecd24277e6255b2 (Base),
# 08b83a6feb34df1a6011b80c3c00c7563e963b07 (Instruct) and 84346fd91ba60252d260022201ad6fc5a3468fb2 (1.5); only files whose
# hashes are certain.
SHA256 = read_json(pathlib.Path(__file__).with_name("checksums.json"))


def read_model_json(folder: str | os.PathLike) -> dict[str, Any]:
    """Returns the contents of a folder's config.json. Raises ValueError if the file is missing or not a JSON object."""
    return read_json(small_files(folder) / "config.json")


def model_config(values: dict[str, Any], *, special: Mapping[str, int] = {}, **numerics: Any) -> ModelConfig:
    """Returns the configuration of the network that a Hugging Face config.json describes. `special` is {name: id} of the
    special tokens in the tokenizer's files. It is used for the ids that config.json does not have. `numerics` contains other
    fields of `ModelConfig`, such as param_dtype, compute_dtype and remat. Raises ValueError if a key is missing, if a value is
    invalid or selects an unsupported computation, or if config.json and `special` give MASK different ids."""
    family = family_of(values)
    tied = values.get(family.tied, False)
    if family.required:
        values = _with_llada_defaults(values)
    _check_keys(values, family)
    values, scaling = _without_llama3_rope(values) if family.llama3_rope else (values, None)
    if not isinstance(tied, bool):
        raise ValueError(f"config.json: whether the head is tied must be true or false, not {tied!r}")
    sizes: dict[str, Any] = {
        field: _integer(values, key, most=MAX_LAYERS if field == "layers" else MAX_SIZE) for field, key in family.sizes.items()
    }
    vocab_size = _integer(values, "vocab_size")
    ids = {"mask_token_id": _mask_id(values, special), **_eos_id(values, family, special)}
    for key, value in ids.items():
        if value >= vocab_size:
            raise ValueError(f"config.json: {key}={value} is not below vocab_size={vocab_size}")
    mask_id, eos_id = ids.values()
    if mask_id == eos_id:
        raise ValueError(f"config.json: mask_token_id={mask_id} must differ from {list(ids)[1]}")
    masks = {name: special[name] for name in MASK_TOKENS if name in special}
    if masks and mask_id not in masks.values():
        [name, other], *_ = masks.items()
        raise ValueError(f"config.json: mask_token_id={mask_id}, but the tokenizer's {name} is {other}; MASK has one id")
    if values.get("head_dim") is not None and (head := _integer(values, "head_dim")) * sizes["heads"] != sizes["width"]:
        sizes["head_dim"] = head
    sizes |= {"rope_theta": _rope_theta(values), "rope_scaling": scaling, "norm_epsilon": _positive(values, "rms_norm_eps")}
    sizes |= {"qkv_bias": family.qkv_bias, "qk_norm": family.qk_norm, "shift": family.shift}
    return ModelConfig(vocab_size, mask_id, eos_id, tied_head=tied, **sizes, **numerics)


def masked_config(folder: str | os.PathLike, architecture: str, mask_token: str = "") -> dict[str, Any]:
    """Returns the content of config.json for a masked diffusion model whose training starts from the autoregressive model in
    `folder`.

    Args:
        architecture: architecture of the masked diffusion model, see `Family.causal`.
        mask_token: name or id of the token that becomes MASK. If empty, MASK is the tokenizer's mask token, see
            `MASK_TOKENS`. If the tokenizer has none, MASK is the first id above those of the tokenizer. The network must have
            an embedding for this id.

    Raises:
        ValueError: the masked diffusion model cannot be made from the architecture in `folder`, or no token can become MASK."""
    values, family = read_model_json(folder), family_of({"architectures": [architecture]})
    if architecture_of(values) not in family.causal:
        known, found = ", ".join(family.causal) or "no autoregressive model", repr(values.get("architectures"))[:100]
        raise ValueError(f"{folder}: architectures={found}; {architecture} can be made from {known}")
    special = special_tokens(small_files(folder))
    if mask_token:
        mask_id = int(mask_token) if mask_token.isdecimal() else special.get(mask_token)
        if mask_id is None:
            raise ValueError(
                f"{folder}: the tokenizer has no added token {mask_token!r}; give one of its added tokens, or an id"
            )
    else:
        mask_id = _named_mask(special)
    if mask_id is None:
        mask_id = load_tokenizer(folder, 0).vocab_size
        if mask_id >= _integer(values, "vocab_size"):
            raise ValueError(
                f"{folder}: no id is free for MASK; give an unused special token of the tokenizer as the mask token"
            )
    values = {key: value for key, value in values.items() if key != "auto_map"}
    return values | {"architectures": [architecture], "model_type": family.model_type, "mask_token_id": mask_id}


def _named_mask(special: Mapping[str, int]) -> int | None:
    return next((special[name] for name in MASK_TOKENS if name in special), None)


def _mask_id(values: dict[str, Any], special: Mapping[str, int]) -> int:
    if values.get("mask_token_id") is not None:
        return _integer(values, "mask_token_id", least=0)
    found = _named_mask(special)
    if found is None:
        raise ValueError("config.json has no mask_token_id, and the tokenizer names no mask token")
    return found


def _eos_id(values: dict[str, Any], family: Family, special: Mapping[str, int]) -> dict[str, int]:
    """Returns the id of the token that fills a row after a completion, as {source: id}. The source, such as "eos_token_id",
    says where the id was found, for use in error messages."""
    if not family.eos:
        return {"eos_token_id": _integer(values, "eos_token_id", least=0)}
    if family.eos in special:
        return {f"the tokenizer's {family.eos}": special[family.eos]}
    return {"pad_token_id": _integer(values, "pad_token_id", least=0)}


def _check_keys(values: dict[str, Any], family: Family) -> None:
    """Raises ValueError for the first key of a config.json that changes the network in an unsupported way. Also raises
    ValueError for an unknown key, unless its value is null, false, 0 or empty."""

    def refuse(key: str, accepted: object) -> NoReturn:
        raise ValueError(f"config.json: {key}={repr(values[key])[:100]} is not supported; only {accepted} is")

    # Key of another family -> key of this family for the same size
    same = {other.sizes[field]: key for other in FAMILIES for field, key in family.sizes.items() if other.sizes[field] != key}
    own = family.sizes.values()
    for key, value in values.items():
        if key in FIXED and value not in FIXED[key]:
            refuse(key, repr(FIXED[key][0]))
        if key in same and value not in (None, values.get(same[key], value)):
            raise ValueError(f"config.json: {key}={value!r} and {same[key]}={values[same[key]]!r} differ")
        if value and not (key in READ or key in FIXED or key in HARMLESS or key in same or key in own):
            off = "only null, false, 0 or an empty value is accepted"
            place = f"{repr(key)[1:-1]}={repr(value)[:100]}"  # the key may have line breaks
            raise ValueError(f"config.json: {place} is not known and may change the network; {off}")
    kinds, window = values.get("layer_types"), values.get("sliding_window")
    if kinds and (not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds)):
        refuse("layer_types", "'full_attention' in all layers")
    if window and values.get("use_sliding_window") is not False:
        refuse("sliding_window", "None, or use_sliding_window=False,")
    width, heads = (_integer(values, family.sizes[field]) for field in ("width", "heads"))
    if not family.head_dim and values.get("head_dim") not in (None, width / heads):
        refuse("head_dim", f"{width} / {heads}")


def _without_llama3_rope(values: dict[str, Any]) -> tuple[dict[str, Any], RopeScaling | None]:
    """Separates the scaling of Llama 3.1's rotary embedding from the contents of a config.json. Returns the contents without
    the scaling, and the scaling. If there is no scaling, the second value is None. transformers 4 writes the scaling
    into rope_scaling, and transformers 5 into rope_parameters. Raises ValueError if the scaling is invalid, or if the two keys
    contain different scalings."""
    found = set()
    for key in ("rope_parameters", "rope_scaling"):
        group = values.get(key)
        if not isinstance(group, dict) or group.get("rope_type", group.get("type")) != "llama3":
            continue
        factor, low, high = (_positive(group, name) for name in ("factor", "low_freq_factor", "high_freq_factor"))
        original = _integer(group, "original_max_position_embeddings")
        if not 1 <= factor <= MOST_NUMBER or not low < high <= MOST_FREQ_FACTOR:
            wanted = f"low_freq_factor below high_freq_factor, and that at most {MOST_FREQ_FACTOR:g}"
            raise ValueError(f"config.json: {key}={repr(group)[:200]}: factor must be from 1 to {MOST_NUMBER:g}, {wanted}")
        found.add(RopeScaling(factor, low, high, original))
        rest = {name for name in group if name not in LLAMA3_ROPE}
        values = values | {key: {name: group[name] for name in rest}}
    if len(found) > 1:
        raise ValueError("config.json: rope_parameters and rope_scaling differ")
    return values, next(iter(found), None)


def _rope_theta(values: dict[str, Any]) -> float:
    """Returns the base of the rotary embeddings, rope_theta. transformers 4 writes rope_theta as a key beside rope_scaling.
    transformers 5 writes it into rope_parameters, possibly once for each type of layer. Raises ValueError if rope_theta is
    missing, if its values differ, or if the embeddings are scaled or partial."""
    groups = {key: values.get(key) or {} for key in ("rope_parameters", "rope_scaling")}
    for key, group in tuple(groups.items()):
        if isinstance(group, dict):
            groups |= {f"{key}.{kind}": part for kind, part in group.items() if isinstance(part, dict)}
            groups[key] = {name: value for name, value in group.items() if not isinstance(value, dict)}
    found = {"rope_theta": values.get("rope_theta")}
    for place, group in groups.items():
        for name, value in group.items() if isinstance(group, dict) else [("its type", type(group).__name__)]:
            if name == "rope_theta":
                found[f"{place}.{name}"] = value
            elif value not in (None, PLAIN_ROPE.get(name)) and name != "original_max_position_embeddings":
                text = f"{repr(place)[1:-1]}={repr(group)[:100]}: {repr(name)[1:-1]}={repr(value)[:100]}"
                raise ValueError(f"config.json: {text} is not supported; only the default is")
    found = {repr(place)[1:-1]: value for place, value in found.items()}  # a place may have line breaks
    thetas = {place: _positive(found, place) for place, value in found.items() if value is not None}
    if len(set(thetas.values())) > 1:
        raise ValueError(f"config.json: {' and '.join(f'{place}={theta}' for place, theta in thetas.items())} differ")
    return next(iter(thetas.values()), None) or _positive(values, "rope_theta")


def _with_llada_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """Returns a copy of the contents of a config.json, in which missing sizes are derived from the other sizes, as in LLaDA's
    modeling code. Raises ValueError if a key is missing and its default value in LLaDA's code is not supported here."""
    values = dict(values)
    for key in LLADA.required:
        if key not in values:
            raise ValueError(f"config.json: {key} is missing; LLaDA's code would then use a value that is not supported here")
    if values.get("n_kv_heads") is None:
        values["n_kv_heads"] = values.get("n_heads")
    ratio, width = values.get("mlp_ratio"), values.get("d_model")
    if values.get("mlp_hidden_size") is None and isinstance(ratio, int | float) and isinstance(width, int | float):
        values["mlp_hidden_size"] = _positive(values, "mlp_ratio") * _integer(values, "d_model")
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
    fixed = {key: allowed[0] for key, allowed in LLADA_FIXED.items()}
    return fixed | {
        "architectures": ["LLaDAModelLM"],
        "auto_map": {
            "AutoConfig": "configuration_llada.LLaDAConfig", "AutoModel": "modeling_llada.LLaDAModelLM",
            "AutoModelForCausalLM": "modeling_llada.LLaDAModelLM",
        },
        "model_type": "llada",
        **{key: getattr(cfg, field) for field, key in LLADA.sizes.items()},
        "vocab_size": cfg.vocab_size, "embedding_size": cfg.vocab_size, "max_sequence_length": max_length,
        "mask_token_id": cfg.mask_id, "eos_token_id": cfg.eos_id, "pad_token_id": cfg.eos_id,
        "rope_theta": cfg.rope_theta, "rms_norm_eps": cfg.norm_epsilon, "weight_tying": cfg.tied_head,
    }  # fmt: skip


def tensor_names(values: dict[str, Any], cfg: ModelConfig) -> dict[Path, list[str]]:
    """Returns the names of each parameter's tensors in Hugging Face's files. A parameter has one tensor, or one per layer."""
    tensors, table = family_of(values).tensors, flatten_dict(parameter_table(cfg))
    return {path: [tensors[path].format(layer) for layer in range(cfg.layers if path[0] == "blocks" else 1)] for path in table}


def head_name(values: dict[str, Any]) -> str:
    """Returns the name of the tensor of the output head. Files of models with tied embeddings may lack this tensor."""
    return family_of(values).tensors["head",]


def folder_model_config(folder: str | os.PathLike, **numerics: Any) -> ModelConfig:
    """Returns the configuration of the network in a Hugging Face or model folder. If config.json lacks the mask id, the mask id
    is read from the tokenizer's files."""
    values, special = read_model_json(folder), special_tokens(small_files(folder))
    try:
        return model_config(values, special=special, **numerics)
    except ValueError as error:
        needed = values.get("mask_token_id") is None and not special
        raise ValueError(f"{folder}: {error}{'; the files of the tokenizer are missing' if needed else ''}") from None


def check_sha256(folder: str | os.PathLike, release: str) -> list[str]:
    """Compares a folder's files with the SHA-256 sums of a known release, and returns the names of the compared files. Raises
    ValueError if the release is unknown, or if a file differs or is missing."""
    if release not in SHA256:
        raise ValueError(f"no sums are known of {release!r}; there are those of {', '.join(SHA256)}")
    for name, wanted in SHA256[release].items():
        file = path_of(folder) / name
        if not file.is_file():
            raise ValueError(f"{file} is missing; {release} has it")
        with file.open("rb") as opened, named_errors(file):
            found = hashlib.file_digest(opened, "sha256").hexdigest()
        if found != wanted:
            raise ValueError(f"{file} is not that of {release}: its sha256 is {found}, not {wanted}")
    return list(SHA256[release])
