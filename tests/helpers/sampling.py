"""A small model and batches for sampler tests."""

import jax
import numpy as np

from igpo_jax.diffusion.sampler import completion_keys, sample
from igpo_jax.diffusion.unmasking import DecodeConfig
from igpo_jax.model.transformer import ModelConfig

MASK, EOS = 1, 2
CFG = ModelConfig(vocab_size=24, mask_id=MASK, eos_id=EOS, width=32, layers=1, heads=4, kv_heads=2, mlp_width=32)
DECODE = DecodeConfig(completion_length=8, block_length=4, steps=4, temperature=0.8)


def batch_of(rows=8, prompt_length=5, length=8, hints=True):
    """Returns random prompts with some padding, and a canvas with some hints."""
    draw = np.random.default_rng(1)
    prompt = draw.integers(3, CFG.vocab_size, (rows, prompt_length), dtype=np.int32)
    prompt_mask = np.arange(prompt_length) >= draw.integers(0, 3, rows)[:, None]
    given = (draw.uniform(size=(rows, length)) < 0.25) & hints
    canvas = np.where(given, draw.integers(3, CFG.vocab_size, (rows, length)), MASK).astype(np.int32)
    keys = completion_keys(jax.random.key(3), np.arange(rows, dtype=np.uint32), np.zeros(rows, np.uint32), 0)
    return prompt, prompt_mask, canvas, keys


def decode(params, batch, decode=DECODE, cfg=CFG):
    return sample(params, *batch, cfg, decode)
