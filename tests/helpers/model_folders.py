"""Writes and compares Hugging Face folders of random weights."""

import json

import jax
import numpy as np

from igpo_jax.model.transformer import ModelConfig, init, shardings
from igpo_jax.weights.folders import write_safetensors
from igpo_jax.weights.huggingface import llada_config
from igpo_jax.weights.safetensors_files import stored_tensors

PLAIN = ModelConfig(vocab_size=32, mask_id=30, eos_id=29, width=16, layers=3, heads=4, kv_heads=4, mlp_width=24)


def write_folder(folder, mesh, cfg=PLAIN, values=None, dtype="bfloat16", weight_map=None, seed=0):
    """Writes a Hugging Face folder of random weights without the code that stacks layers. Returns its parameters on the
    host."""
    folder.mkdir(parents=True)
    values = values or llada_config(cfg, 64)
    (folder / "config.json").write_text(json.dumps(values))
    params = jax.jit(init, static_argnums=1, out_shardings=shardings(cfg, mesh))(jax.random.key(seed), cfg)
    params = jax.tree.map(lambda x: (x * 1.25).astype(dtype), params)
    leaves = [(tuple(key.key for key in path), leaf) for path, leaf in jax.tree.leaves_with_path(params)]
    write_safetensors(folder, iter(leaves), values, cfg, mesh, dtype, weight_map)
    return jax.tree.map(np.asarray, params)


def tensor_bytes(stored):
    return stored.file.read_bytes()[stored.begin : stored.end]


def assert_same_files(one, other):
    """Asserts that two folders have the same tensors in the same files, bit for bit."""
    a, b = stored_tensors(one), stored_tensors(other)
    assert a.keys() == b.keys()
    for name in a:
        assert (a[name].file.name, a[name].dtype, a[name].shape) == (b[name].file.name, b[name].dtype, b[name].shape)
        assert tensor_bytes(a[name]) == tensor_bytes(b[name]), name
