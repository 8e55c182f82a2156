"""Masked diffusion: the forward process and the supervised loss (LLaDA, arXiv 2502.09992; docs/method.md section 2)."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from igpo_jax.model.logprobs import token_log_probs
from igpo_jax.model.sharding import Array, Params
from igpo_jax.model.transformer import ModelConfig, forward

MIN_NOISE = 1e-3  # eps of LLaDA's forward process: the smallest masking probability p, so that the weight 1/p is bounded


class Corruption(NamedTuple):
    """One random draw of the forward process: the masked tokens, and the weight of each row in the loss."""

    masked: Array  # bool [b, l]
    weight: Array  # float32 [b], weight of each row's cross-entropy


def stratified_uniform(key: jax.Array, rows: int) -> jax.Array:
    """Returns stratified uniform random values in [0, 1), float32 [rows]: the interval is divided into `rows` equal parts, and
    each part contains one value. Stratification lowers the variance of the loss, whose weights depend on these values."""
    order_key, offset_key = jax.random.split(key)
    strata = jax.random.permutation(order_key, rows)
    return (strata + jax.random.uniform(offset_key, (rows,))) / rows


def mask_independently(key: jax.Array, rows: int, length: int) -> Corruption:
    """Masks tokens at random as in LLaDA's forward process. Each row has a masking probability p = (1 - eps) u + eps, where u
    is uniform and eps is small. Each token of the row is masked independently with probability p. The loss of the row has the
    weight 1/p."""
    level_key, mask_key = jax.random.split(key)
    p = (1 - MIN_NOISE) * stratified_uniform(level_key, rows) + MIN_NOISE
    return Corruption(jax.random.uniform(mask_key, (rows, length)) < p[:, None], 1 / p)


def mask_count(key: jax.Array, rows: int, length: int) -> Corruption:
    """Masks exactly k random tokens of each row, with k uniform in 1..length. The loss of the row has the weight length / k.

    Let P(k) be the probability that a row has k masked tokens, and w(k) the mean weight of such rows. P(k) * w(k) is 1/k for
    this function, and also for `mask_independently` with eps = 0. Both functions therefore give the same expected loss. With
    this function, the loss has a lower variance, because every row has a masked token and no weight exceeds `length`."""
    level_key, mask_key = jax.random.split(key)
    k = 1 + jnp.floor(length * stratified_uniform(level_key, rows)).astype(jnp.int32)
    rank = jnp.argsort(jnp.argsort(jax.random.uniform(mask_key, (rows, length)), axis=-1), axis=-1)
    return Corruption(rank < k[:, None], length / k)


HELDOUT_LEVELS = tuple(k / 8 for k in range(1, 9))  # shares of a completion's tokens that are masked


def mask_share(rank: np.ndarray, share: float) -> Corruption:
    """Masks a given share of the tokens of every completion, namely the k = ceil(share * length) tokens with the lowest `rank`.
    A token that is masked for one share is therefore also masked for all larger shares. Each row has the weight 1/k, so its
    loss is the mean over its masked tokens. Each row of `rank`, int32 [b, length], is a permutation of 0..length-1, and `share`
    is in (0, 1]."""
    k = math.ceil(rank.shape[1] * share)
    return Corruption(rank < k, np.full(len(rank), 1 / k, np.float32))


def heldout_metric(share: float) -> str:
    return f"heldout/loss_at_{share}"


CORRUPTIONS = {"independent": mask_independently, "count": mask_count}


def sft_loss(
    params: Params, prompt: Array, prompt_mask: Array, completion: Array, corruption: Corruption, cfg: ModelConfig
) -> jax.Array:
    """Computes the supervised loss (paper Eq. 1): the mean of `negative_bound` over rows, divided by the completion length."""
    return jnp.mean(negative_bound(params, prompt, prompt_mask, completion, corruption, cfg)) / completion.shape[1]


def negative_bound(
    params: Params, prompt: Array, prompt_mask: Array, completion: Array, corruption: Corruption, cfg: ModelConfig
) -> jax.Array:
    """Estimates an upper bound on -log p(completion | prompt) for every row, float32 [b], from one draw of the forward process.
    The estimate is the sum of the cross-entropies of the masked tokens in the row, multiplied by the weight of the row. The
    prompt is never masked.

    Args:
        prompt, prompt_mask: prompts padded on the left and their mask, int32 and bool [b, p].
        completion: completions padded with EOS, int32 [b, l]. The padding counts like other tokens."""
    noisy = jnp.where(corruption.masked, cfg.mask_id, completion)
    tokens = jnp.concatenate([prompt, noisy], axis=1)
    attention_mask = jnp.concatenate([prompt_mask, jnp.ones(completion.shape, bool)], axis=1)
    hidden = forward(params, tokens, attention_mask, cfg, out_slice=(prompt.shape[1], completion.shape[1]))
    log_probs = token_log_probs(params, hidden, completion, cfg)
    return -jnp.sum(log_probs, axis=-1, where=corruption.masked) * corruption.weight
