"""The forward process and the supervised loss of masked diffusion (LLaDA, arXiv 2502.09992; docs/method.md section 2)."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from igpo_jax.model.logprobs import token_log_probs
from igpo_jax.model.sharding import Array, Params
from igpo_jax.model.transformer import ModelConfig, forward

MIN_NOISE = 1e-3  # epsilon of LLaDA's discretization: keeps 1/p finite


class Corruption(NamedTuple):
    """A draw of the forward process."""

    masked: Array  # bool [b, l]
    weight: Array  # float32 [b], weight of each row's cross-entropy, such as 1/p


def stratified_uniform(key: jax.Array, rows: int) -> jax.Array:
    """Uniform values in [0, 1), float32 [rows], stratified over rows to lower the variance of 1/t."""
    order_key, offset_key = jax.random.split(key)
    strata = jax.random.permutation(order_key, rows)
    return (strata + jax.random.uniform(offset_key, (rows,))) / rows


def mask_independently(key: jax.Array, rows: int, length: int) -> Corruption:
    """LLaDA's forward process: p = (1 - eps) u + eps per row; masks each token with probability p, weight 1/p."""
    level_key, mask_key = jax.random.split(key)
    p = (1 - MIN_NOISE) * stratified_uniform(level_key, rows) + MIN_NOISE
    return Corruption(jax.random.uniform(mask_key, (rows, length)) < p[:, None], 1 / p)


def mask_count(key: jax.Array, rows: int, length: int) -> Corruption:
    """Masks exactly k random tokens, k uniform in 1..length, weight length/k.

    The expected bound is that of `mask_independently` (the integral of 1/t over independent masks, term by term in k). Its
    variance is lower: every row has a masked token, and no weight exceeds `length`.
    """
    level_key, mask_key = jax.random.split(key)
    k = 1 + jnp.floor(length * stratified_uniform(level_key, rows)).astype(jnp.int32)
    rank = jnp.argsort(jnp.argsort(jax.random.uniform(mask_key, (rows, length)), axis=-1), axis=-1)
    return Corruption(rank < k[:, None], length / k)


HELDOUT_LEVELS = tuple(k / 8 for k in range(1, 9))  # masked shares of a completion


def mask_share(rank: np.ndarray, share: float) -> Corruption:
    """Masks the same share, in (0, 1], of every completion, weighted so that the bound is a mean per masked token. A larger
    share masks a superset. rank: int32 [b, l], each row a permutation of 0..l-1."""
    k = math.ceil(rank.shape[1] * share)
    return Corruption(rank < k, np.full(len(rank), 1 / k, np.float32))


def heldout_metric(share: float) -> str:
    return f"heldout/loss_at_{share}"


CORRUPTIONS = {"independent": mask_independently, "count": mask_count}


def sft_loss(
    params: Params, prompt: Array, prompt_mask: Array, completion: Array, corruption: Corruption, cfg: ModelConfig
) -> jax.Array:
    """The bound on -log p(completion | prompt) per token (paper Eq. 1), averaged over rows; see `negative_bound`."""
    return jnp.mean(negative_bound(params, prompt, prompt_mask, completion, corruption, cfg)) / completion.shape[1]


def negative_bound(
    params: Params, prompt: Array, prompt_mask: Array, completion: Array, corruption: Corruption, cfg: ModelConfig
) -> jax.Array:
    """One draw of the bound on -log p(completion | prompt) for every row, float32 [b]: the weight times the sum of the masked
    tokens' cross-entropies. The prompt is never masked.

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
