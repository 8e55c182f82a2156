"""Log-probabilities of completions under a masked diffusion policy: estimators behind one interface.

An exact likelihood needs as many forward passes as tokens, in every order. An estimator chooses a few *views* of each row,
networks' inputs with some tokens masked, and weights with which log-probabilities of masked tokens add up to one score per
token; their sum over a completion estimates log pi(completion | prompt).

| estimator     | views                                                              | sum of the scores                     |
|---------------|--------------------------------------------------------------------|---------------------------------------|
| mean_field    | the whole completion masked (paper; igpo_method.md 5.2)            | as if tokens were independent         |
| prompt_masked | and 15 % of the prompt (d1, arXiv 2504.12216)                      | the same, noisy                       |
| masked        | a part masked, more in every inner step (UniGRPO)                  | of the masked tokens only             |
| elbo          | random numbers of random tokens (LLaDA, arXiv 2502.09992, Eq. 14)  | unbiased for the lower bound          |
| quadrature    | the same, but numbers evenly spread (GDPO, arXiv 2510.08554)       | the same, with less variance          |
| coupled       | the same in pairs, the second masking what the first does not      | the same; every token is scored in    |
|               | (DiffuCoder, arXiv 2506.20639)                                     | every pair                            |
| trace         | the canvas as the sampler had it, steps merged into `samples` parts| of the sampler's own order; exact     |
|               | (d2, arXiv 2509.21474)                                             | where no steps are merged             |

The lower bound is that of a model that writes tokens one by one in a random order, log p >= E_order sum log p(token | written).
An upper bound of the same p is sum_i 1/beta log E_order p(token_i | written)^beta for beta >= the number of tokens (Hoelder's
inequality); for smaller beta, as SPG (arXiv 2510.09541) uses it for negative advantages, a constant is missing.

mean_field and prompt_masked do not look at the completion: one row per *prompt* goes through the network, and the G
completions read from one table of log-probabilities per position. The others have a row per completion and view.
"""

import functools

import flax
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from igpo_jax.diffusion.sampler import HINT, completion_keys
from igpo_jax.model.logprobs import HEAD, token_scores
from igpo_jax.model.sharding import Params
from igpo_jax.model.transformer import ModelConfig, forward, head_matrix
from igpo_jax.runtime.mesh import BATCH, join_rows, shard_rows, split_rows

NOISE_LEVELS = 128  # masked: T, in steps of the released sampler
LOWEST_LEVEL = 30  # masked: the first inner step draws its level from here up
PROMPT_SHARE = 0.15  # prompt_masked: of its tokens
MASKS = 4  # what the masks' keys fold into the iteration's key; rollout.py has the numbers before


@flax.struct.dataclass
class GroupBatch:
    """What a rollout hands to the updates: N prompts with G completions each.

    prompt int32 [n, p], valid bool [n, p], problem_id uint32 [n], completions int32 [n, g, l], unmask_step int32 [n, g, l]
    (see `sampler.Sample`), loss_mask bool [n, g, l] (up to the first EOS, inclusive), advantages float32 [n, g].
    """

    prompt: jax.Array
    prompt_mask: jax.Array
    problem_id: jax.Array
    completions: jax.Array
    unmask_step: jax.Array
    loss_mask: jax.Array
    advantages: jax.Array

    @property
    def hint(self) -> jax.Array:
        """bool [n, g, l], tokens that were given."""
        return self.unmask_step == HINT


@flax.struct.dataclass
class Views:
    """What the network sees, K times, and what its log-probabilities count; r = 1 where the completions of a prompt share a
    row, otherwise G.

    prompt_masked: bool [n, k, r, p]. masked: bool [n, k, r, l]; all of it where r = 1. weight: float32 [n, k, g, l], 0 where a
    token is not masked. scored: bool [n, g, l], the tokens that the estimate speaks of.
    """

    prompt_masked: jax.Array
    masked: jax.Array
    weight: jax.Array
    scored: jax.Array


def views_of(key: jax.Array, batch: GroupBatch, objective) -> Views:
    """The views of every inner step, with a leading axis e: 1 where all steps have the same, otherwise
    objective.inner_steps. Random ones belong to (problem, completion, inner step): old, reference and new policy see the same.

    Args:
        key: of the rollout's step.
        objective: `ObjectiveConfig`; its estimator, samples (k, see the module) and inner_steps.
    """
    n, g, length = batch.completions.shape
    everything = jnp.ones((1, n, g, length), bool)
    if objective.estimator == "mean_field":
        no_prompt = jnp.zeros((1, n, 1, 1, batch.prompt.shape[1]), bool)
        return Views(no_prompt, everything[:, :, None, :1], everything[:, :, None].astype(jnp.float32), everything)
    if objective.estimator == "trace":
        return jax.tree.map(lambda x: x[None], _trace_views(batch, objective.samples))
    steps, shared = objective.inner_steps, objective.estimator == "prompt_masked"
    rows, completion = (n, jnp.zeros(n, jnp.uint32)) if shared else (n * g, jnp.tile(jnp.arange(g, dtype=jnp.uint32), n))
    keys = completion_keys(key, jnp.repeat(batch.problem_id, rows // n), completion, MASKS)
    if shared:
        draw = functools.partial(jax.random.bernoulli, p=PROMPT_SHARE, shape=(steps, batch.prompt.shape[1]))
        prompt_masked = jnp.moveaxis(jax.vmap(draw)(keys), 1, 0)[:, :, None, None]
        whole = jnp.broadcast_to(everything, (steps, *everything.shape[1:]))
        return Views(prompt_masked, whole[:, :, None, :1], whole[:, :, None].astype(jnp.float32), whole)
    draw = functools.partial(
        ROW_VIEWS[objective.estimator], steps=steps, samples=objective.samples, length=length
    )
    masked, weight = jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(n, g, steps, objective.samples, length), (2, 3), (0, 2)), jax.vmap(draw)(keys)
    )
    scored = masked[:, :, 0] if objective.estimator == "masked" else jnp.broadcast_to(everything, masked[:, :, 0].shape)
    return Views(jnp.zeros((*masked.shape[:-1], batch.prompt.shape[1]), bool), masked, weight, scored)


def _masked_views(key: jax.Array, steps: int, samples: int, length: int) -> tuple[jax.Array, jax.Array]:
    """masked bool and weight float32 [steps, samples, length] of one row; so have the others below."""
    level_key, mask_key = jax.random.split(key)
    first = jax.random.randint(level_key, (), LOWEST_LEVEL, NOISE_LEVELS - 1)
    fraction = jnp.arange(steps) / max(steps - 1, 1)
    level = jnp.floor(first + fraction * (NOISE_LEVELS - first))
    masked = (jax.random.uniform(mask_key, (steps, length)) < (level / NOISE_LEVELS)[:, None])[:, None]
    return masked, masked.astype(jnp.float32)


def _elbo_views(key: jax.Array, steps: int, samples: int, length: int) -> tuple[jax.Array, jax.Array]:
    """m of the tokens, m uniform in 1..length: those that a random order has not yet written."""
    number_key, order_key = jax.random.split(key)
    number = jax.random.randint(number_key, (steps, samples), 1, length + 1)
    masked = _random_ranks(order_key, (steps, samples, length)) < number[..., None]
    return masked, masked * (length / (samples * number))[..., None]


def _quadrature_views(key: jax.Array, steps: int, samples: int, length: int) -> tuple[jax.Array, jax.Array]:
    """The numbers m are evenly spaced from a random start, so that each is as likely as under elbo."""
    number_key, order_key = jax.random.split(key)
    number = _spread_numbers(number_key, steps, samples, length)
    masked = _random_ranks(order_key, (steps, samples, length)) < number[..., None]
    return masked, masked * (length / (samples * number))[..., None]


def _coupled_views(key: jax.Array, steps: int, samples: int, length: int) -> tuple[jax.Array, jax.Array]:
    """Pairs of m tokens and the other length - m; where m is all of them, both are."""
    number_key, order_key = jax.random.split(key)
    number = _spread_numbers(number_key, steps, samples // 2, length)[..., None]
    rank = _random_ranks(order_key, (steps, samples // 2, length))
    other = jnp.where(number == length, length, length - number)
    masked = jnp.concatenate([rank < number, (rank >= number) | (number == length)], axis=1)
    return masked, masked * (length / (samples * jnp.concatenate([number, other], axis=1)))


def _spread_numbers(key: jax.Array, steps: int, samples: int, length: int) -> jax.Array:
    """int32 [steps, samples] in 1..length."""
    place = (jnp.arange(samples) + jax.random.uniform(key, (steps, 1))) / samples
    return 1 + jnp.minimum(jnp.floor(length * place).astype(jnp.int32), length - 1)


def _random_ranks(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jnp.argsort(jnp.argsort(jax.random.uniform(key, shape), axis=-1), axis=-1)


ROW_VIEWS = {
    "masked": _masked_views,
    "elbo": _elbo_views,
    "quadrature": _quadrature_views,
    "coupled": _coupled_views,
}


def _trace_views(batch: GroupBatch, samples: int) -> Views:
    """Part j of a row's steps: masked is what was written in it or later, and scored what was written in it. The steps up to
    that of the last token in the loss are divided evenly."""
    n, g, _ = batch.completions.shape
    generated = batch.unmask_step != HINT
    steps = 1 + jnp.max(batch.unmask_step, axis=-1, keepdims=True, initial=0, where=batch.loss_mask)
    part = jnp.minimum(batch.unmask_step * samples // steps, samples - 1)[:, None]
    here, number = generated[:, None], jnp.arange(samples)[:, None, None]
    prompt_masked = jnp.zeros((n, samples, g, batch.prompt.shape[1]), bool)
    return Views(prompt_masked, here & (part >= number), (here & (part == number)).astype(jnp.float32), generated)


def hidden_states(params: Params, batch: GroupBatch, views: Views, cfg: ModelConfig) -> jax.Array:
    """Hidden states at the completion's positions of all views, [n, k * r, l, d].

    Args:
        views: of one inner step.
    """
    n, k, r, _ = views.masked.shape
    length = batch.completions.shape[-1]
    completion = jnp.where(views.masked, cfg.mask_id, batch.completions[:, None, :r])
    prompt = jnp.where(views.prompt_masked & batch.prompt_mask[:, None, None], cfg.mask_id, batch.prompt[:, None, None])
    prompt = jnp.broadcast_to(prompt, (n, k, r, prompt.shape[-1]))
    attention_mask = jnp.pad(jnp.repeat(batch.prompt_mask, k * r, axis=0), ((0, 0), (0, length)), constant_values=True)
    tokens = jnp.concatenate([prompt, completion], axis=-1).reshape(n * k * r, -1)
    hidden = forward(params, shard_rows(tokens), attention_mask, cfg, out_slice=(prompt.shape[-1], length))
    return hidden.reshape(n, k * r, length, -1)


def combine(log_probs: jax.Array, weight: jax.Array, advantages: jax.Array, objective) -> jax.Array:
    """The score of every token, float32 [n, g, l]: the weighted sum over views, of rows with a negative advantage mixed with
    the upper bound's terms (SPG; see the module), so that they are not pushed below what they are thought to be.

    Args:
        log_probs, weight: float32 [n, k, g, l]. advantages: float32 [n, g].
        objective: `ObjectiveConfig`; its upper_weight and upper_power.
    """
    lower = jnp.sum(weight * log_probs, axis=1)
    if not objective.upper_weight:
        return lower
    power, seen = objective.upper_power, weight > 0
    terms = jnp.where(seen, jnp.log(jnp.where(seen, weight, 1.0)) + power * log_probs, -jnp.inf)
    ever = seen.any(axis=1)
    terms = jnp.where(ever[:, None], terms, 0.0)  # before the sum: its gradient would be NaN
    upper = jnp.where(ever, jax.nn.logsumexp(terms, axis=1) / power, 0.0)
    share = jnp.where(advantages < 0, objective.upper_weight, 0.0)[..., None]
    return (1 - share) * lower + share * upper


def view_scores(
    hidden: jax.Array, head: jax.Array, batch: GroupBatch, weight: jax.Array, objective, chunk: int
) -> tuple[jax.Array, jax.Array]:
    """Score and entropy of every completion token, float32 [n, g, l] each; runs inside `shard_map`.

    Args:
        hidden: [n, k * r, l, d]. weight: float32 [n, k, g, l]. chunk: see `token_scores`.
    """
    shape = weight.shape
    targets = jnp.tile(batch.completions, (1, shape[1], 1))
    log_probs, entropy = (x.reshape(shape) for x in token_scores(hidden, head, targets, chunk))
    seen = weight > 0
    mean_entropy = jnp.sum(entropy, axis=1, where=seen) / jnp.maximum(seen.sum(axis=1), 1)
    return combine(log_probs, weight, batch.advantages, objective), mean_entropy


@flax.struct.dataclass
class LogProbs:
    """Fixed during the inner updates; everything has a leading axis e, see `views_of`.

    old, reference: float32 [e, n, g, l], scores. views: of every inner step. loss_mask: bool [e, n, g, l], the tokens that count
    in ratio, loss and KL. entropy: float32 [e, n, g, l], of the old policy, the mean over views.
    """

    old: jax.Array
    reference: jax.Array
    views: Views
    loss_mask: jax.Array
    entropy: jax.Array


@functools.partial(jax.jit, static_argnames=("cfg", "objective", "mesh", "microbatches"))
def compute_logprobs(
    params: Params,
    reference: Params,
    batch: GroupBatch,
    key: jax.Array,
    cfg: ModelConfig,
    objective,
    mesh,
    microbatches: int = 1,
) -> LogProbs:
    """Scores of the old and the reference policy, and the loss mask after the entropy filter.

    Args:
        params: the policy that made the rollouts. reference: the frozen policy of the KL term.
        key: of the rollout's step.
        cfg, objective (`ObjectiveConfig`), mesh: static.
        microbatches: parts of the batch that are scored one after the other, to save memory.
    """
    per_row = P(BATCH)

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(per_row, HEAD, per_row, per_row), out_specs=(per_row, per_row)
    )
    def sharded_scores(hidden, head, batch, weight):
        return view_scores(hidden, head, batch, weight, objective, cfg.head_chunk)

    def score_part(part):
        batch, views = part

        def under(params):
            return sharded_scores(hidden_states(params, batch, views, cfg), head_matrix(params, cfg), batch, views.weight)

        old, entropy = under(params)
        counts = batch.loss_mask & views.scored
        kept = entropy_filter(entropy, batch.hint & counts, objective.entropy_keep)
        return LogProbs(old, under(reference)[0], views, counts & (~batch.hint | kept), entropy)

    def score_one(views):
        if microbatches == 1:
            return score_part((batch, views))
        return join_rows(jax.lax.map(score_part, split_rows((batch, views), microbatches)))

    return jax.lax.map(score_one, views_of(key, batch, objective))


def entropy_filter(entropy: jax.Array, candidates: jax.Array, keep: float) -> jax.Array:
    """The most uncertain hint tokens of every row: max(1, floor(keep * h)) of h candidates (igpo_method.md 5.3), none for
    keep = 0.

    Args:
        entropy: float32 [..., l], of the old policy. candidates: bool [..., l].

    Returns:
        bool [..., l], a subset of the candidates; empty where there are none.
    """
    number = candidates.sum(axis=-1, keepdims=True)
    kept = jnp.maximum(int(keep > 0), jnp.floor(keep * number + 1e-6).astype(jnp.int32))
    order = jnp.argsort(jnp.argsort(-jnp.where(candidates, entropy, -jnp.inf), axis=-1, stable=True), axis=-1)
    return candidates & (order < kept)
