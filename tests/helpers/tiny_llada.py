"""A tiny LLaDA with a tokenizer, as a Hugging Face folder."""

import pathlib
import shutil

import jax

from igpo_jax.model.transformer import ModelConfig
from model_folders import write_folder
from tokenizer_files import write_tokenizer


def one_device() -> jax.sharding.Mesh:
    return jax.make_mesh((1, 1, 1), ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)


def write_tiny_llada(folder: pathlib.Path, layers: int) -> pathlib.Path:
    """Writes a network with well separated logits, and its tokenizer. Returns their folder."""
    tokens, model = folder / "tokens", folder / "hf"
    tokens.mkdir()
    ids = write_tokenizer(tokens)
    size = -(-max(ids.values()) // 8) * 8 + 8
    cfg = ModelConfig(vocab_size=size, mask_id=ids["<|mdm_mask|>"], eos_id=ids["<|endoftext|>"], width=32, layers=layers,
                      heads=4, kv_heads=2, mlp_width=48)  # fmt: skip
    write_folder(model, one_device(), cfg, dtype="float32", seed=3)
    for file in tokens.iterdir():
        shutil.copy(file, model)
    return model
