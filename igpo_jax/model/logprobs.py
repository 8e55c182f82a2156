"""Log-probabilities of tokens, computed from hidden states without storing all logits, [batch, length, vocabulary], at once."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from igpo_jax.model.int8 import Int8Matrix, Weight, partition_of
from igpo_jax.model.sharding import Array, Params, all_gather
from igpo_jax.model.transformer import ModelConfig, head_matrix, project_to_vocabulary
from igpo_jax.runtime.mesh import BATCH, make_mesh


def head_partition(head: Weight) -> P | Int8Matrix:
    """Returns the `PartitionSpec` of the output matrix, for the argument `in_specs` of `jax.shard_map`."""
    return partition_of(head, ("embed", "vocab"))


def token_log_probs(params: Params, hidden: jax.Array, targets: Array, cfg: ModelConfig) -> jax.Array:
    """Returns the log-probabilities, float32 [b, l], of the tokens `targets`, int32 [b, l], given the hidden states, [b, l, d].
    Runs on the current mesh, or on one device if no mesh is set. The product of the mesh sizes data and fsdp must divide b."""
    mesh = jax.sharding.get_abstract_mesh()
    mesh = make_mesh(1, 1, 1, jax.devices()[:1]) if mesh.empty else mesh
    head = head_matrix(params, cfg)

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(P(BATCH), head_partition(head), P(BATCH)), out_specs=P(BATCH))
    def sharded(hidden, head, targets):
        return token_scores(hidden[:, None], head, targets[:, None], cfg.head_chunk)[0][:, 0]

    return sharded(hidden, head, targets)


def token_scores(hidden: jax.Array, head: Weight, completions: jax.Array, chunk: int) -> tuple[jax.Array, jax.Array]:
    """Returns the log-probability of every completion token, and the entropy of the network's distribution at this token's
    position. Both are float32 [n, g, l] for g completions of each of n prompts. Runs inside `shard_map`, with the vocabulary
    split over the mesh axis tensor. To save memory, the logits are computed for `chunk` positions at a time (for all positions
    if `chunk` is 0), and recomputed in the backward pass. `hidden` is [n, r, l, d] for r rows per prompt, and g / r completions
    share a row. `head`, [d / size of fsdp, v / size of tensor], is this device's part of the output matrix, see
    `head_partition`."""
    if isinstance(head, Int8Matrix):
        head = head._replace(values=all_gather(head.values, "fsdp"))
    else:
        head = all_gather(head.astype(hidden.dtype), "fsdp")
    n, r, length, width = hidden.shape
    per_state = completions.shape[1] // r
    states = hidden.reshape(-1, width)
    targets = jnp.moveaxis(completions.reshape(n, r, per_state, length), 2, 3).reshape(-1, per_state)
    count = states.shape[0]
    chunk = min(chunk or count, count)
    padding = -count % chunk
    states, targets = (jnp.pad(x, ((0, padding), (0, 0))).reshape(-1, chunk, x.shape[1]) for x in (states, targets))
    offset = jax.lax.axis_index("tensor") * head.shape[1]

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def score(states, targets):
        logits = project_to_vocabulary(states, head)
        highest = jax.lax.pmax(jax.lax.stop_gradient(logits.max(axis=-1)), "tensor")[:, None]
        shifted = logits - highest
        exponentials = jnp.exp(shifted)
        total = jax.lax.psum(exponentials.sum(axis=-1), "tensor")
        local = targets - offset
        here = (local >= 0) & (local < head.shape[1])
        picked = jnp.take_along_axis(shifted, jnp.clip(local, 0, head.shape[1] - 1), axis=-1)
        log_probs = jax.lax.psum(jnp.where(here, picked, 0.0), "tensor") - jnp.log(total)[:, None]
        mean_logit = jax.lax.psum((exponentials * shifted).sum(axis=-1), "tensor") / total
        return log_probs, jnp.log(total) - mean_logit

    _, (log_probs, entropy) = jax.lax.scan(lambda _, x: (None, score(*x)), None, (states, targets))
    log_probs = log_probs.reshape(-1, per_state)[:count].reshape(n, r, length, per_state)
    entropy = jnp.broadcast_to(entropy.reshape(-1)[:count].reshape(n, r, 1, length), (n, r, per_state, length))
    return jnp.moveaxis(log_probs, 3, 2).reshape(completions.shape), entropy.reshape(completions.shape)
