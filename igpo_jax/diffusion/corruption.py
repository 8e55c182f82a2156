"""The forward process and the supervised loss of masked diffusion (LLaDA; docs/method.md section 2)."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from igpo_jax.model.logprobs import token_log_probs
from igpo_jax.model.sharding import Params
from igpo_jax.model.transformer import ModelConfig, forward

MIN_NOISE = 1e-3  # epsilon of LLaDA's discretisation: keeps 1/p finite


class Corruption(NamedTuple):
    """Which tokens are masked, bool [b, l], and the weight 1/p of each row's cross-entropy, float32 [b]."""

    masked: jax.Array
    weight: jax.Array


def stratified_uniform(key: jax.Array, rows: int) -> jax.Array:
    """float32 [rows] in [0, 1): each value uniform, together evenly spread, which tames the variance of 1/t."""
    order_key, offset_key = jax.random.split(key)
    strata = jax.random.permutation(order_key, rows)
    return (strata + jax.random.uniform(offset_key, (rows,))) / rows


def mask_independently(key: jax.Array, rows: int, length: int) -> Corruption:
    """LLaDA's forward process: p = (1 - eps) u + eps per row, each token masked with probability p, weight 1/p."""
    level_key, mask_key = jax.random.split(key)
    p = (1 - MIN_NOISE) * stratified_uniform(level_key, rows) + MIN_NOISE
    return Corruption(jax.random.uniform(mask_key, (rows, length)) < p[:, None], 1 / p)


def mask_count(key: jax.Array, rows: int, length: int) -> Corruption:
    """Exactly k random tokens masked, k uniform in 1..length, weight length/k.

    The same bound in expectation (the integral of 1/t over independent masks, taken term by term in k) with less
    variance: no row is left without a masked token, and no weight exceeds `length`.
    """
    level_key, mask_key = jax.random.split(key)
    k = 1 + jnp.floor(length * stratified_uniform(level_key, rows)).astype(jnp.int32)
    rank = jnp.argsort(jnp.argsort(jax.random.uniform(mask_key, (rows, length)), axis=-1), axis=-1)
    return Corruption(rank < k[:, None], length / k)


HELDOUT_LEVELS = tuple(k / 8 for k in range(1, 9))  # shares of a completion that are masked


def mask_share(rank: np.ndarray, share: float) -> Corruption:
    """The grid of the held-out loss: of every completion the same share, weighted so that the bound is a mean per masked token.

    Args:
        rank: int32 [b, l], each row a permutation of 0..l-1; what a small share masks, a larger one masks, too.
        share: in (0, 1].
    """
    k = math.ceil(rank.shape[1] * share)
    return Corruption(rank < k, np.full(len(rank), 1 / k, np.float32))


def heldout_metric(share: float) -> str:
    return f"heldout/loss_at_{share}"


CORRUPTIONS = {"independent": mask_independently, "count": mask_count}


def sft_loss(
    params: Params, prompt: jax.Array, prompt_mask: jax.Array, completion: jax.Array, corruption: Corruption, cfg: ModelConfig
) -> jax.Array:
    """The bound on -log p(completion | prompt) per token (paper Eq. 1), averaged over rows; see `negative_bound`."""
    return jnp.mean(negative_bound(params, prompt, prompt_mask, completion, corruption, cfg)) / completion.shape[1]


def negative_bound(
    params: Params, prompt: jax.Array, prompt_mask: jax.Array, completion: jax.Array, corruption: Corruption, cfg: ModelConfig
) -> jax.Array:
    """One draw of the bound on -log p(completion | prompt) for every row, float32 [b]: the sum of the masked tokens'
    cross-entropies times the weight. The prompt is never masked.

    Args:
        prompt, prompt_mask: int32 and bool [b, p], padded on the left.
        completion: int32 [b, l], padded with EOS, which is trained on.
    """
    noisy = jnp.where(corruption.masked, cfg.mask_id, completion)
    tokens = jnp.concatenate([prompt, noisy], axis=1)
    attention_mask = jnp.concatenate([prompt_mask, jnp.ones(completion.shape, bool)], axis=1)
    hidden = forward(params, tokens, attention_mask, cfg, out_slice=(prompt.shape[1], completion.shape[1]))
    log_probs = token_log_probs(params, hidden, completion, cfg)
    return -jnp.sum(log_probs, axis=-1, where=corruption.masked) * corruption.weight
