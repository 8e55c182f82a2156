"""A model of tiny size with a tokenizer, and the playground's server with it."""

import shutil

import jax
import pytest

import igpo_jax
from igpo_jax.model.transformer import ModelConfig
from model_folders import write_folder
from tokenizer_files import write_tokenizer


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A Hugging Face folder with a tokenizer, of a network whose logits are far apart."""
    folder = tmp_path_factory.mktemp("playground")
    (folder / "tokens").mkdir()
    ids = write_tokenizer(folder / "tokens")
    size = -(-max(ids.values()) // 8) * 8 + 8
    cfg = ModelConfig(vocab_size=size, mask_id=ids["<|mdm_mask|>"], eos_id=ids["<|endoftext|>"], width=32, layers=1,
                      heads=4, kv_heads=2, mlp_width=48)  # fmt: skip
    write_folder(folder / "tiny", one_device(), cfg, dtype="float32", seed=3)
    for file in (folder / "tokens").iterdir():
        shutil.copy(file, folder / "tiny")
    return folder / "tiny"


@pytest.fixture(scope="session")
def model(folder):
    return igpo_jax.load(folder, mesh=one_device())


def one_device():
    return jax.make_mesh((1, 1, 1), ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
