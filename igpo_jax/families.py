"""Families of masked diffusion language models, whose folders in Hugging Face's format this package reads and writes. To add a
family that has the same network as a known one, add one entry to `FAMILIES` (docs/models.md)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

Path = tuple[str, ...]  # of a parameter in the nested dict of parameters


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """Template that turns messages into one prompt. Markers are special tokens. A turn consists of `header`, the role,
    `end_header`, the text `separator`, the message and `end_of_turn`."""

    begin: str  # marker at the start, or ""
    header: str  # marker
    end_header: str  # marker, or ""
    separator: str  # text between the role and the message
    end_of_turn: str  # marker
    between: str = ""  # text after a turn
    system: str = ""  # system message that is used if the first message is of another role
    answer: str = ""  # what the assistant's turn begins with
    strip: bool = True  # whether white space around a message is removed
    text_ends: bool = False  # whether the text of a completion ends at the end of a turn. Otherwise, it ends at EOS only.

    @property
    def markers(self) -> tuple[str, ...]:
        return tuple(marker for marker in (self.begin, self.header, self.end_header, self.end_of_turn) if marker)


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
    """Layout of a family's models: the names of keys in config.json and of tensors, the chat template, the special tokens, and
    the features of the network.

    Attributes:
        architectures: values of `architectures` in config.json.
        tensors: parameter -> name of its tensor, with {} for the number of the layer.
        sizes: field of `ModelConfig` -> key of config.json.
        tied: key of config.json that tells whether the output head is the transposed embedding.
        required: keys that must be in config.json, because the defaults in the model's code are not supported here.
        eos: special token that fills a row after a completion, or "" if the tokenizer's files name it. config.json and the
            tokenizer's files of a chat model may name the end of a turn instead.
        qkv_bias: whether the projections to queries, keys and values have biases.
        head_dim: whether config.json may give heads another size than width / heads.
        qk_norm: whether queries and keys are normalized per head, before the rotary embedding.
        llama3_rope: whether config.json may scale the rotary embedding as Llama 3.1 and later do.
        shift: whether position i predicts token i + 1, as in the autoregressive model that the model was trained from.
        model_type: value of the key of this name in config.json.
        causal: architectures of autoregressive models with the same tensors, from which a model of this family can be
            trained."""

    architectures: tuple[str, ...]
    tensors: Mapping[Path, str]
    sizes: Mapping[str, str]
    tied: str
    chat: ChatTemplate
    required: tuple[str, ...] = ()
    eos: str = ""
    qkv_bias: bool = False
    qk_norm: bool = False
    head_dim: bool = True
    llama3_rope: bool = False
    shift: bool = False
    model_type: str = ""
    causal: tuple[str, ...] = ()


def _tensors(embedding: str, blocks: str, norm: str, head: str, **of_block: str) -> dict[Path, str]:
    """Returns the value of `Family.tensors`, given the names of the tensors without ".weight". Only names of biases are given
    in full, with ".bias". `of_block` is {parameter: name inside of a block}."""
    names: dict[Path, str] = {("embedding",): embedding, ("final_norm",): norm, ("head",): head}
    names |= {("blocks", parameter): f"{blocks}.{{}}.{name}" for parameter, name in of_block.items()}
    return {path: name if name.endswith(".bias") else f"{name}.weight" for path, name in names.items()}


# Matrices except the embedding are [out, in] in the files and [in, out] here.
_LLADA_TENSORS = _tensors(
    "model.transformer.wte", "model.transformer.blocks", "model.transformer.ln_f", "model.transformer.ff_out",
    attention_norm="attn_norm", query="q_proj", key="k_proj", value="v_proj", attention_out="attn_out",
    mlp_norm="ff_norm", gate="ff_proj", up="up_proj", down="ff_out",
)  # fmt: skip
_LLAMA_TENSORS = _tensors(
    "model.embed_tokens", "model.layers", "model.norm", "lm_head",
    attention_norm="input_layernorm", query="self_attn.q_proj", key="self_attn.k_proj", value="self_attn.v_proj",
    query_bias="self_attn.q_proj.bias", key_bias="self_attn.k_proj.bias", value_bias="self_attn.v_proj.bias",
    query_norm="self_attn.q_norm", key_norm="self_attn.k_norm", attention_out="self_attn.o_proj",
    mlp_norm="post_attention_layernorm", gate="mlp.gate_proj", up="mlp.up_proj", down="mlp.down_proj",
)  # fmt: skip
_LLADA_SIZES = {
    "width": "d_model", "layers": "n_layers", "heads": "n_heads", "kv_heads": "n_kv_heads", "mlp_width": "mlp_hidden_size"
}  # fmt: skip
_LLAMA_SIZES = {
    "width": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads", "mlp_width": "intermediate_size",
}  # fmt: skip

LLADA_CHAT = ChatTemplate("<|startoftext|>", "<|start_header_id|>", "<|end_header_id|>", "\n\n", "<|eot_id|>")
_CHATML = ChatTemplate("", "<|im_start|>", "", "\n", "<|im_end|>", between="\n", strip=False, text_ends=True)
_QWEN2_CHAT = dataclasses.replace(_CHATML, system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant.")
_DREAM_CHAT = dataclasses.replace(_CHATML, system="You are a helpful assistant.")
_QWEN3_CHAT = dataclasses.replace(_CHATML, answer="<think>\n\n</think>\n\n")

_LLAMA_LAYOUT: dict[str, Any] = {"tensors": _LLAMA_TENSORS, "sizes": _LLAMA_SIZES, "tied": "tie_word_embeddings"}
_QWEN2: dict[str, Any] = _LLAMA_LAYOUT | {"chat": _QWEN2_CHAT, "eos": "<|endoftext|>", "qkv_bias": True}
_QWEN3: dict[str, Any] = _LLAMA_LAYOUT | {"chat": _QWEN3_CHAT, "eos": "<|endoftext|>", "qk_norm": True}
FAMILIES = (
    # In LLaDA's code, blocks are sequential, there are no rotary embeddings, and the head is tied, unless config.json differs.
    Family(
        ("LLaDAModelLM",), _LLADA_TENSORS, _LLADA_SIZES, "weight_tying", LLADA_CHAT,
        required=("activation_type", "block_type", "layer_norm_type", "rope", "weight_tying"), head_dim=False,
    ),
    Family(("ILLaDAForCausalLM",), chat=LLADA_CHAT, head_dim=False, **_LLAMA_LAYOUT),
    Family(
        ("A2DLlamaLMHeadModel",), chat=_CHATML, model_type="a2d-llama", causal=("LlamaForCausalLM",), llama3_rope=True,
        **_LLAMA_LAYOUT,
    ),
    Family(("A2DQwen2LMHeadModel",), model_type="a2d-qwen2", causal=("Qwen2ForCausalLM",), **_QWEN2),
    Family(("A2DQwen3LMHeadModel",), model_type="a2d-qwen3", causal=("Qwen3ForCausalLM",), **_QWEN3),
    Family(  # Dream, Dream-Coder, DiffuCoder
        ("DreamModel",), shift=True, head_dim=False, model_type="Dream", causal=("Qwen2ForCausalLM",),
        **_QWEN2 | {"chat": _DREAM_CHAT},
    ),
    Family(  # CoDA; its config.json has no tie_word_embeddings, and its head is not tied
        ("CoDALanguageModel",), shift=True, model_type="CoDA", causal=("Qwen3ForCausalLM",), **_QWEN3 | {"chat": _CHATML}
    ),
)  # fmt: skip
LLADA, ILLADA = FAMILIES[:2]
CAUSAL = (
    "this is an autoregressive model, whose weights make no sense of masks; make a start for training from it: "
    "python -m igpo_jax.convert --source=FOLDER --target=NEW --as=A2DQwen2LMHeadModel (or another architecture)"
)
# Architecture that is not supported -> the reason
REFUSED = {
    "LLaDAMoEModelLM": "mixtures of experts are not supported",
    "LLaDA2MoeModelLM": "mixtures of experts that sample block by block are not supported",
    "A2DQwen3BlockLMHeadModel": "models that attend block by block are not supported",
}


def architecture_of(values: Mapping[str, Any]) -> str:
    """Returns the architecture that the contents of a config.json name, or "" if they name none or several."""
    found = values.get("architectures")
    name = found[0] if isinstance(found, list) and len(found) == 1 else found
    return name if isinstance(name, str) else ""


def find_family(values: Mapping[str, Any]) -> Family | None:
    """Returns the family of a model, given the contents of its config.json, or None if the architecture is unknown."""
    return next((family for family in FAMILIES if architecture_of(values) in family.architectures), None)


def family_of(values: Mapping[str, Any]) -> Family:
    """Returns the family of a model, given the contents of its config.json. Raises ValueError if the architecture is
    unknown."""
    family = find_family(values)
    if family is None:
        known = ", ".join(name for family in FAMILIES for name in family.architectures)
        name = architecture_of(values)
        reasons = [REFUSED[name]] if name in REFUSED else [CAUSAL for family in FAMILIES if name in family.causal]
        found = repr(values.get("architectures"))[:100]
        raise ValueError(f"config.json: architectures={found}; {(*reasons, f'this loads {known}')[0]}")
    return family
