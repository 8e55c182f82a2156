"""Log-probabilities of completions under a masked diffusion policy: two estimators behind one interface.

An estimator says which inputs the network sees and which tokens its answers speak of:

- mean_field (paper; igpo_method.md 5.2): the input is [prompt ; MASK x L]. It does not contain the completion, so one row
  per *prompt* goes through the network, and the G completions read from one table of log-probabilities per position.
- masked (UniGRPO; igpo_method.md 5.2): part of each completion is masked, more of it with every inner step, and the
  log-probabilities speak of the masked tokens only. One row per completion.

`hidden_states` returns [n, r, l, d] with r = 1 or G; `token_scores` (model/vocabulary.py) reads G / r targets from every
hidden state.
"""

import functools

import flax
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from igpo_jax.diffusion.sampler import HINT, completion_keys
from igpo_jax.model.transformer import ModelConfig, Params, forward, head_matrix
from igpo_jax.model.vocabulary import HEAD, token_scores
from igpo_jax.runtime.mesh import BATCH, join_rows, shard_rows, split_rows

NOISE_LEVELS = 128  # masked: T, in steps of the released sampler
LOWEST_LEVEL = 30  # masked: the first inner step draws its level from here up
MASKS = 4  # what the masks' keys fold into the iteration's key; rollout.py has the numbers before


@flax.struct.dataclass
class GroupBatch:
    """What a rollout hands to the updates: N prompts with G completions each.

    prompt int32 [n, p], valid bool [n, p], problem_id uint32 [n], completions int32 [n, g, l], written_at int32 [n, g, l]
    (see `sampler.Sample`), in_loss bool [n, g, l] (up to the first EOS, inclusive), advantages float32 [n, g].
    """

    prompt: jax.Array
    valid: jax.Array
    problem_id: jax.Array
    completions: jax.Array
    written_at: jax.Array
    in_loss: jax.Array
    advantages: jax.Array

    @property
    def hint(self) -> jax.Array:
        """bool [n, g, l], tokens that were given."""
        return self.written_at == HINT


def inner_masks(key: jax.Array, batch: GroupBatch, estimator: str, inner_steps: int) -> jax.Array:
    """Which completion tokens the network does not see, bool [e, n, g, l]; also the tokens that the scores speak of.

    e = 1 for mean_field (everything, in every inner step), `inner_steps` for masked. The masks belong to (problem,
    completion, inner step): old, reference and new policy see the same ones.

    Args:
        key: of the rollout's step.
    """
    n, g, length = batch.completions.shape
    if estimator == "mean_field":
        return jnp.ones((1, n, g, length), bool)
    rows = completion_keys(key, jnp.repeat(batch.problem_id, g), jnp.tile(jnp.arange(g), n), MASKS)

    def masks_of_row(key):
        level_key, mask_key = jax.random.split(key)
        first = jax.random.randint(level_key, (), LOWEST_LEVEL, NOISE_LEVELS - 1)
        fraction = jnp.arange(inner_steps) / max(inner_steps - 1, 1)
        level = jnp.floor(first + fraction * (NOISE_LEVELS - first))
        return jax.random.uniform(mask_key, (inner_steps, length)) < (level / NOISE_LEVELS)[:, None]

    return jnp.moveaxis(jax.vmap(masks_of_row)(rows).reshape(n, g, inner_steps, length), 2, 0)


def hidden_states(params: Params, batch: GroupBatch, masked: jax.Array, estimator: str, cfg: ModelConfig) -> jax.Array:
    """Hidden states at the completion's positions, [n, r, l, d] with r = 1 (mean_field) or G (masked).

    Args:
        masked: bool [n, g, l], one of `inner_masks`.
    """
    n, g, length = batch.completions.shape
    if estimator == "mean_field":
        completion, rows = jnp.full((n, 1, length), cfg.mask_id, jnp.int32), 1
    else:
        completion, rows = jnp.where(masked, cfg.mask_id, batch.completions), g
    prompt = jnp.repeat(batch.prompt, rows, axis=0)
    valid = jnp.pad(jnp.repeat(batch.valid, rows, axis=0), ((0, 0), (0, length)), constant_values=True)
    tokens = jnp.concatenate([prompt, completion.reshape(n * rows, length)], axis=1)
    hidden = forward(params, shard_rows(tokens), valid, cfg, wanted=(prompt.shape[1], length))
    return hidden.reshape(n, rows, length, -1)


@flax.struct.dataclass
class Scores:
    """Fixed during the inner updates. All [e, n, g, l], e = 1 (mean_field) or the number of inner steps (masked).

    old, reference: float32 log-probabilities. masked: bool, what the network does not see. in_loss: bool, the tokens
    that count in ratio, loss and KL. entropy: float32, of the old policy.
    """

    old: jax.Array
    reference: jax.Array
    masked: jax.Array
    in_loss: jax.Array
    entropy: jax.Array


@functools.partial(jax.jit, static_argnames=("cfg", "objective", "mesh", "microbatches"))
def score(
    params: Params,
    reference: Params,
    batch: GroupBatch,
    key: jax.Array,
    cfg: ModelConfig,
    objective,
    mesh,
    microbatches: int = 1,
) -> Scores:
    """Log-probabilities of the old and the reference policy, and the loss mask after the entropy filter.

    Args:
        params: the policy that made the rollouts. reference: the frozen policy of the KL term.
        key: of the rollout's step.
        cfg, objective (`ObjectiveConfig`), mesh: static.
        microbatches: parts of the batch that are scored one after the other, to save memory.
    """
    masks = inner_masks(key, batch, objective.estimator, objective.inner_steps)

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(P(BATCH), HEAD, P(BATCH)), out_specs=(P(BATCH), P(BATCH))
    )
    def sharded_scores(hidden, head, completions):
        return token_scores(hidden, head, completions, cfg.head_chunk)

    def score_part(part):
        batch, masked = part

        def under(params):
            hidden = hidden_states(params, batch, masked, objective.estimator, cfg)
            return sharded_scores(hidden, head_matrix(params, cfg), batch.completions)

        old, entropy = under(params)
        kept = entropy_filter(entropy, batch.hint & batch.in_loss & masked, objective.entropy_keep)
        in_loss = batch.in_loss & masked & (~batch.hint | kept)
        return Scores(old, under(reference)[0], masked, in_loss, entropy)

    def score_one(masked):
        if microbatches == 1:
            return score_part((batch, masked))
        return join_rows(jax.lax.map(score_part, split_rows((batch, masked), microbatches)))

    return jax.lax.map(score_one, masks)


def entropy_filter(entropy: jax.Array, candidates: jax.Array, keep: float) -> jax.Array:
    """The most uncertain hint tokens of every row: max(1, floor(keep * h)) of h candidates (igpo_method.md 5.3).

    Args:
        entropy: float32 [..., l], of the old policy. candidates: bool [..., l].

    Returns:
        bool [..., l], a subset of the candidates; empty where there are none.
    """
    number = candidates.sum(axis=-1, keepdims=True)
    kept = jnp.maximum(1, jnp.floor(keep * number + 1e-6).astype(jnp.int32))
    order = jnp.argsort(jnp.argsort(-jnp.where(candidates, entropy, -jnp.inf), axis=-1, stable=True), axis=-1)
    return candidates & (order < kept)
