"""Tiny models of the transformers library with random weights, as folders of masked diffusion models, and their results without
a causal mask."""

import json
import pathlib

import numpy as np
import safetensors.torch
import torch
import transformers

VOCABULARY, MASK, EOS, TURN = 96, 93, 90, 91
SIZES = dict(
    vocab_size=VOCABULARY, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=80, max_position_embeddings=256, rms_norm_eps=1e-6, tie_word_embeddings=False,
    bos_token_id=None, eos_token_id=TURN, pad_token_id=EOS,
)  # fmt: skip
# Family -> class of the causal model in transformers, architecture and model type of the masked one, special settings
KINDS = {
    "qwen2": ("Qwen2", "A2DQwen2LMHeadModel", "a2d-qwen2", {}),
    "qwen3": ("Qwen3", "A2DQwen3LMHeadModel", "a2d-qwen3", {"head_dim": 16}),
    "dream": ("Qwen2", "DreamModel", "Dream", {}),
    "coda": ("Qwen3", "CoDALanguageModel", "CoDA", {"head_dim": 16}),
    "llama": ("Llama", "A2DLlamaLMHeadModel", "a2d-llama", {"head_dim": 8, "num_key_value_heads": 1}),
}


def make_model(kind: str, seed: int = 0, **changes):
    """Returns a model whose biases and norm scales matter, unlike those of a fresh one."""
    name, _, _, special = KINDS[kind]
    config = getattr(transformers, f"{name}Config")(**SIZES | special | {"rope_theta": 20000.0} | changes)
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    config.shifted = kind in ("dream", "coda")
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.25 + (parameter.ndim == 1))
        if config.tie_word_embeddings:
            model.tie_weights()
    return model


def write_model(model, folder: pathlib.Path, kind: str, stored_head: bool = False, **changes) -> None:
    """Writes a folder as the masked diffusion model would have it. `stored_head` adds a copy of a tied head, as older versions of
    transformers do. `changes` are made to config.json."""
    model.save_pretrained(folder)
    values = json.loads((folder / "config.json").read_text())
    values.pop("shifted")
    values |= {"architectures": [KINDS[kind][1]], "model_type": KINDS[kind][2], "mask_token_id": MASK} | changes
    (folder / "config.json").write_text(json.dumps(values))
    if stored_head:
        tensors = safetensors.torch.load_file(folder / "model.safetensors")
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def full_attention(mask: np.ndarray) -> torch.Tensor:
    """Returns the additive mask [b, 1, t, t] with which no position attends to padding, and all attend to all others."""
    keys = torch.from_numpy(mask)[:, None, None, :]
    return torch.where(keys, 0.0, torch.finfo(torch.float32).min).expand(-1, 1, mask.shape[1], -1)


def logits_of(model, tokens: np.ndarray, mask: np.ndarray) -> torch.Tensor:
    positions = torch.from_numpy(mask).long().cumsum(-1).sub(1).clamp(min=0)
    found = model(
        input_ids=torch.from_numpy(tokens).long(), attention_mask=full_attention(mask), position_ids=positions, use_cache=False
    )
    logits = found.logits
    return torch.cat([logits[:, :1], logits[:, :-1]], dim=1) if model.config.shifted else logits
