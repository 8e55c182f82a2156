"""Estimators of the log-likelihood of completions under a masked diffusion policy (docs/method.md section 9).

The exact likelihood would need one forward pass per token, for every order of the tokens. An estimator chooses a few *views* of
each completion (network inputs in which some tokens are masked), and a weight for each token in each view. The score of a token
is the weighted sum of its log-probabilities in the views that mask the token. The scores of all tokens add up to an estimate of
log pi(completion | prompt)."""

import dataclasses
import functools
from collections.abc import Callable

import flax
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from igpo_jax.diffusion.sampler import HINT, completion_keys
from igpo_jax.model.int8 import Weight
from igpo_jax.model.logprobs import token_scores
from igpo_jax.model.sharding import Array, Params
from igpo_jax.model.transformer import ModelConfig, forward
from igpo_jax.rl.keys import KeyPurpose
from igpo_jax.runtime.checks import MOST_NUMBER, at_least, check_fields, checked, one_of, require, within
from igpo_jax.runtime.mesh import BATCH, shard_rows

NOISE_LEVELS = 128  # estimator masked: at noise level t, a token is masked with probability t / NOISE_LEVELS
LOWEST_LEVEL = 30  # estimator masked: lowest noise level that the first inner step draws
PROMPT_SHARE = 0.15  # estimator prompt_masked: probability that a prompt token is masked


@dataclasses.dataclass(frozen=True)
class LikelihoodConfig:
    """Configuration of the likelihood estimator, which masks completions and scores their tokens. In a configuration file,
    these keys belong to the section `objective`."""

    # How completions are masked and their tokens scored, see docs/method.md section 9
    estimator: str = checked("mean_field", lambda value: one_of(*ESTIMATORS)(value))
    samples: int = 1  # K: views per completion. Only elbo, quadrature, coupled (even K) and trace can have several
    # SPG: weight of the upper bound in the score of a completion with a negative advantage
    upper_weight: float = checked(0.0, within(0, 1))
    # SPG: power beta in the upper bound
    upper_power: float = checked(1.0, at_least(1, most=MOST_NUMBER))
    inner_steps: int = checked(4, at_least(1))  # mu: updates per rollout

    def __post_init__(self):
        check_fields(self, "objective.")
        several = self.estimator not in ("mean_field", "prompt_masked", "masked")
        given = f"objective.samples={self.samples} and objective.estimator={self.estimator!r}"
        require(self.samples == 1 or (several and self.samples > 1), f"{given}: mean_field, prompt_masked and masked take one")
        require(self.estimator != "coupled" or self.samples % 2 == 0, f"{given}: masks come in pairs")
        require(
            not self.upper_weight or (several and self.estimator != "trace" and self.samples > 1),
            f"objective.upper_weight={self.upper_weight} needs objective.estimator elbo, quadrature or coupled, and more than "
            "one of objective.samples",
        )
        require(
            self.upper_weight > 0 or self.upper_power == 1,
            f"objective.upper_power={self.upper_power} does nothing without objective.upper_weight; leave it out",
        )

    def rows_per_prompt(self, group_size: int) -> int:
        """Returns the number of sequences that the network processes for a prompt with `group_size` completions."""
        return 1 if self.estimator in ("mean_field", "prompt_masked") else self.samples * group_size


@flax.struct.dataclass
class GroupBatch:
    """Output of a rollout and input of the updates: n prompts, each with a group of g completions."""

    prompt: Array  # i32[n, p]
    prompt_mask: Array  # bool[n, p]
    problem_id: Array  # u32[n]
    completions: Array  # i32[n, g, l]
    unmask_step: Array  # i32[n, g, l], see `sampler.Sample`
    loss_mask: Array  # bool[n, g, l], True up to and including the first EOS, or everywhere with RolloutConfig.after_eos
    advantages: Array  # f32[n, g]

    @property
    def hint(self) -> Array:
        """Mask of hint tokens, bool [n, g, l], for n prompts with g completions of length l."""
        return self.unmask_step == HINT

    @classmethod
    def abstract(cls, mesh: Mesh, n: int, g: int, p: int, l: int) -> "GroupBatch":  # noqa: E741
        """Returns a `GroupBatch` that holds `jax.ShapeDtypeStruct` (shape, dtype, sharding on `mesh`) instead of arrays."""

        def rows(dtype, *shape: int):
            return jax.ShapeDtypeStruct((n, *shape), dtype, sharding=NamedSharding(mesh, P(BATCH)))

        tokens, flags = rows(jnp.int32, g, l), rows(jnp.bool_, g, l)
        prompt = rows(jnp.int32, p), rows(jnp.bool_, p), rows(jnp.uint32)
        return cls(*prompt, completions=tokens, unmask_step=tokens, loss_mask=flags, advantages=rows(jnp.float32, g))


@flax.struct.dataclass
class Views:
    """Views (network inputs in which some tokens are masked) of all completions, and the weight of each token in each view. In
    the shapes below, e is the number of inner steps, or 1 if all inner steps use the same views. k is the number of views of a
    completion. r is the number of network inputs for a prompt in each view: 1 if all completions of the prompt share one input,
    otherwise the group size g."""

    prompt_masked: Array  # bool[e, n, k, r, p]
    masked: Array  # bool[e, n, k, r, l], all True for r = 1
    weight: Array  # f32[e, n, k, g, l], 0 for tokens that are not masked
    scored: Array  # bool[e, n, g, l], the tokens whose likelihood is estimated

    @classmethod
    def abstract(cls, mesh: Mesh, batch: GroupBatch, cfg: LikelihoodConfig) -> "Views":
        """Returns `Views` that hold `jax.ShapeDtypeStruct` (shape, dtype, sharding on `mesh`) instead of arrays."""
        host = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
        views = jax.eval_shape(lambda batch: views_of(jax.random.key(0), batch, cfg), host)
        placed = NamedSharding(mesh, P(None, BATCH))
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed), views)


def views_of(key: Array, batch: GroupBatch, cfg: LikelihoodConfig) -> Views:
    """Makes the views (network inputs in which some tokens are masked) for every inner step. Random views depend only on the
    iteration's key, the problem, the completion and the inner step, so the old, reference and new policies get the same
    views."""
    return ESTIMATORS[cfg.estimator](key, batch, cfg)


def _mean_field_views(key: Array, batch: GroupBatch, cfg: LikelihoodConfig) -> Views:
    n, prompt_length = batch.prompt.shape
    return _shared_views(jnp.zeros((1, n, 1, 1, prompt_length), bool), batch)


def _prompt_masked_views(key: Array, batch: GroupBatch, cfg: LikelihoodConfig) -> Views:
    n, prompt_length = batch.prompt.shape
    keys = completion_keys(key, batch.problem_id, jnp.zeros(n, jnp.uint32), KeyPurpose.LIKELIHOOD_MASKS)
    draw = functools.partial(jax.random.bernoulli, p=PROMPT_SHARE, shape=(cfg.inner_steps, prompt_length))
    return _shared_views(jnp.moveaxis(jax.vmap(draw)(keys), 1, 0)[:, :, None, None], batch)


def _shared_views(prompt_masked: Array, batch: GroupBatch) -> Views:
    """Returns views that mask whole completions. All completions of a prompt then have the same network input. The network
    therefore computes only one sequence per prompt, and the g completions share its log-probabilities."""
    whole = jnp.ones((len(prompt_masked), *batch.completions.shape), bool)
    return Views(prompt_masked, whole[:, :, None, :1], whole[:, :, None].astype(jnp.float32), whole)


def row_views(draw: Callable, key: Array, batch: GroupBatch, cfg: LikelihoodConfig) -> Views:
    """Draws the views (network inputs in which some tokens are masked) of every completion independently. The function `draw`
    is called as draw(key, steps, samples, length). It returns the masks, bool, and the weights, float32, of one completion,
    both with the shape [steps, samples, length]."""
    n, g, length = batch.completions.shape
    shape = cfg.inner_steps, cfg.samples, length
    completion = jnp.tile(jnp.arange(g, dtype=jnp.uint32), n)
    keys = completion_keys(key, jnp.repeat(batch.problem_id, g), completion, KeyPurpose.LIKELIHOOD_MASKS)
    drawn = jax.vmap(lambda key: draw(key, *shape))(keys)
    masked, weight = (jnp.moveaxis(x.reshape(n, g, *shape), (2, 3), (0, 2)) for x in drawn)
    prompt_masked = jnp.zeros((*masked.shape[:-1], batch.prompt.shape[1]), bool)
    return Views(prompt_masked, masked, weight, jnp.ones((cfg.inner_steps, n, g, length), bool))


def _masked_views(key: Array, batch: GroupBatch, cfg: LikelihoodConfig) -> Views:
    views = row_views(_growing_masks, key, batch, cfg)
    return dataclasses.replace(views, scored=views.masked[:, :, 0])


def _growing_masks(key: Array, steps: int, samples: int, length: int) -> tuple[Array, Array]:
    """Draws the masks and weights of one completion for `row_views`. The masks hide random tokens, and the masking probability
    grows with every inner step. If there are several inner steps, the probability is 1 in the last one."""
    level_key, mask_key = jax.random.split(key)
    first = jax.random.randint(level_key, (), LOWEST_LEVEL, NOISE_LEVELS - 1)
    fraction = jnp.arange(steps) / max(steps - 1, 1)
    level = jnp.floor(first + fraction * (NOISE_LEVELS - first))
    masked = (jax.random.uniform(mask_key, (steps, length)) < (level / NOISE_LEVELS)[:, None])[:, None]
    return masked, masked.astype(jnp.float32)


def _elbo_masks(key: Array, steps: int, samples: int, length: int) -> tuple[Array, Array]:
    """Draws the masks and weights of one completion for `row_views`. Every view masks m random tokens, where m is drawn
    uniformly from 1..length for each view."""
    number_key, order_key = jax.random.split(key)
    number = jax.random.randint(number_key, (steps, samples), 1, length + 1)
    return _last_masks(order_key, number, length)


def _quadrature_masks(key: Array, steps: int, samples: int, length: int) -> tuple[Array, Array]:
    """Draws the masks and weights of one completion for `row_views`. Every view masks m random tokens. The values of m in the
    views of one inner step are evenly spaced, and start at a random offset. All values in 1..length are therefore equally
    likely."""
    number_key, order_key = jax.random.split(key)
    return _last_masks(order_key, _spread_numbers(number_key, steps, samples, length), length)


def _last_masks(key: Array, number: Array, length: int) -> tuple[Array, Array]:
    """Draws the masks and weights of one completion for `row_views`. Each view masks random tokens. `number`, int32 [steps,
    samples], is the number of tokens to mask in each view."""
    masked = _random_ranks(key, (*number.shape, length)) < number[..., None]
    return masked, masked * (length / (number.shape[1] * number))[..., None]


def _coupled_masks(key: Array, steps: int, samples: int, length: int) -> tuple[Array, Array]:
    """Draws the masks and weights of one completion for `row_views`. The views form pairs, and a number m in 1..length is drawn
    for each pair. The first view of a pair masks m random tokens, and the second view masks the other length - m tokens. If m
    is the length, the second view masks all tokens too."""
    number_key, order_key = jax.random.split(key)
    number = _spread_numbers(number_key, steps, samples // 2, length)[..., None]
    rank = _random_ranks(order_key, (steps, samples // 2, length))
    other = jnp.where(number == length, length, length - number)
    masked = jnp.concatenate([rank < number, (rank >= number) | (number == length)], axis=1)
    return masked, masked * (length / (samples * jnp.concatenate([number, other], axis=1)))


def _spread_numbers(key: Array, steps: int, samples: int, length: int) -> Array:
    """Returns the number of tokens to mask in each view, int32 [steps, samples]. The numbers of one inner step are evenly
    spaced in 1..length, and start at a random offset."""
    place = (jnp.arange(samples) + jax.random.uniform(key, (steps, 1))) / samples
    return 1 + jnp.minimum(jnp.floor(length * place).astype(jnp.int32), length - 1)


def _random_ranks(key: Array, shape: tuple[int, ...]) -> Array:
    return jnp.argsort(jnp.argsort(jax.random.uniform(key, shape), axis=-1), axis=-1)


def _trace_views(key: Array, batch: GroupBatch, cfg: LikelihoodConfig) -> Views:
    """Returns views that follow the order in which the sampler wrote the tokens. The denoising steps of a completion, up to the
    last step that wrote a token in the loss mask, are divided into equal ranges, one for each view. View j masks the tokens
    that were written in range j or later, and scores the tokens that were written in range j."""
    n, g, _ = batch.completions.shape
    generated = batch.unmask_step != HINT
    steps = 1 + jnp.max(batch.unmask_step, axis=-1, keepdims=True, initial=0, where=batch.loss_mask)
    part = jnp.minimum(batch.unmask_step * cfg.samples // steps, cfg.samples - 1)[:, None]
    here, number = generated[:, None], jnp.arange(cfg.samples)[:, None, None]
    prompt_masked = jnp.zeros((n, cfg.samples, g, batch.prompt.shape[1]), bool)
    views = Views(prompt_masked, here & (part >= number), (here & (part == number)).astype(jnp.float32), generated)
    return jax.tree.map(lambda x: x[None], views)


ESTIMATORS: dict[str, Callable[[Array, GroupBatch, LikelihoodConfig], Views]] = {
    "mean_field": _mean_field_views,
    "prompt_masked": _prompt_masked_views,
    "masked": _masked_views,
    "elbo": functools.partial(row_views, _elbo_masks),
    "quadrature": functools.partial(row_views, _quadrature_masks),
    "coupled": functools.partial(row_views, _coupled_masks),
    "trace": _trace_views,
}


def hidden_states(params: Params, batch: GroupBatch, views: Views, cfg: ModelConfig) -> Array:
    """Computes the hidden states of completions in one inner step, [n, k * r, l, d]. There are n prompts, each with k views,
    and r network inputs for each view of a prompt. l is the length of a completion, and d is the width of the network."""
    n, k, r, _ = views.masked.shape
    length = batch.completions.shape[-1]
    completion = jnp.where(views.masked, cfg.mask_id, batch.completions[:, None, :r])
    prompt = jnp.where(views.prompt_masked & batch.prompt_mask[:, None, None], cfg.mask_id, batch.prompt[:, None, None])
    prompt = jnp.broadcast_to(prompt, (n, k, r, prompt.shape[-1]))
    attention_mask = jnp.pad(jnp.repeat(batch.prompt_mask, k * r, axis=0), ((0, 0), (0, length)), constant_values=True)
    tokens = jnp.concatenate([prompt, completion], axis=-1).reshape(n * k * r, -1)
    hidden = forward(params, shard_rows(tokens), attention_mask, cfg, out_slice=(prompt.shape[-1], length))
    return hidden.reshape(n, k * r, length, -1)


def combine(log_probs: Array, weight: Array, advantages: Array, cfg: LikelihoodConfig) -> Array:
    """Combines the log-probabilities of each token in k views (maskings) into one score, float32 [..., g, l] for g completions
    of l tokens (docs/method.md section 9). Ignores log-probabilities with weight 0.

    For completions with a positive or zero advantage, the score is `lower`, the weighted sum of the log-probabilities over the
    views. If the estimator is elbo, quadrature or coupled, `lower` is the token's term in a lower bound of the completion's
    log-likelihood. For completions with a negative advantage, the score is (1 - w) * lower + w * upper, where w is
    `cfg.upper_weight` and `upper` is the token's term in SPG's upper bound (arXiv 2510.09541). Training should decrease the
    likelihood of these completions, but decreasing only a lower bound does not guarantee that the likelihood decreases.

    Args:
        log_probs, weight: float32 [..., k, g, l].
        advantages: float32 [..., g]."""
    seen = weight > 0
    log_probs = jnp.where(seen, log_probs, 0.0)
    lower = jnp.sum(weight * log_probs, axis=-3)
    if not cfg.upper_weight:
        return lower
    power = cfg.upper_power
    terms = jnp.where(seen, jnp.log(jnp.where(seen, weight, 1.0)) + power * log_probs, -jnp.inf)
    ever = jnp.any(seen, axis=-3)
    terms = jnp.where(ever[..., None, :, :], terms, 0.0)  # before logsumexp, whose gradient would be NaN
    upper = jnp.where(ever, jax.nn.logsumexp(terms, axis=-3) / power, 0.0)
    share = jnp.where(advantages < 0, cfg.upper_weight, 0.0)[..., None]
    return (1 - share) * lower + share * upper


def view_scores(hidden: jax.Array, head: Weight, completions: Array, weight: Array, chunk: int) -> tuple[Array, Array]:
    """Returns two values. The first is the log-probability of every completion token in every view, float32 [n, k, g, l]. The
    second is the entropy at each token's position, float32 [n, g, l], averaged over the views in which the token's weight is
    positive. Runs inside `shard_map`.

    Args:
        hidden: hidden states of the completions, [n, k * r, l, d], see `hidden_states`.
        weight: weight of each token in each of the k views, float32 [n, k, g, l].
        chunk: number of positions whose logits are computed at a time, see `token_scores`."""
    targets = jnp.tile(completions, (1, weight.shape[1], 1))
    log_probs, entropy = (x.reshape(weight.shape) for x in token_scores(hidden, head, targets, chunk))
    seen = weight > 0
    mean_entropy = jnp.sum(entropy, axis=1, where=seen) / jnp.maximum(seen.sum(axis=1), 1)
    return log_probs, mean_entropy
