"""One denoising step of one block: runs the network, draws tokens and writes some of them (docs/method.md section 5).

The compiled sampler, the stepwise sampler and the code that measures the error of a cached sampler all run
`Block.denoise_step`. The rules in unmasking.py select the tokens that a step writes."""

import functools
from typing import Any

import flax
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from igpo_jax.diffusion.unmasking import DecodeConfig, gumbel_noise, propose, to_write
from igpo_jax.model.sharding import Array, Params
from igpo_jax.model.transformer import KVCache, ModelConfig, Window, forward, prefill, unembed
from igpo_jax.runtime.mesh import BATCH, shard_rows

HINT = -1  # value in `unmask_step` for a token that was given before sampling


class DecodeState(flax.struct.PyTreeNode):
    """State of the sampler for a batch of completions."""

    prompt: Array  # int32 [b, p], padded on the left
    prompt_mask: Array  # bool [b, p]
    canvas: Array  # int32 [b, l], initial tokens
    keys: Array  # PRNG keys [b]
    tokens: Array  # int32 [b, l]
    unmask_step: Array  # int32 [b, l], the scheduled step that wrote each token, `HINT` for hints
    ended: Array  # bool [b], True if nothing is left to write
    slot: Array  # int32 [b], the row's index in the original batch

    @classmethod
    def abstract(cls, rows: int, prompt_length: int, decode: DecodeConfig, mesh: Mesh) -> "DecodeState":
        """Returns a `DecodeState` that holds `jax.ShapeDtypeStruct` (shape, dtype, sharding on `mesh`) instead of arrays."""

        def array(shape, dtype) -> Any:
            return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(BATCH)))

        split = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
        keys: Any = jax.ShapeDtypeStruct(split.shape, split.dtype)  # no sharding: they come from the host
        prompt, prompt_mask = array((rows, prompt_length), jnp.int32), array((rows, prompt_length), jnp.bool_)
        canvas = array((rows, decode.completion_length), jnp.int32)  # shared by several fields until the first block has run
        ended, slot = array((rows,), jnp.bool_), array((rows,), jnp.int32)
        return cls(prompt, prompt_mask, canvas, keys, canvas, canvas, ended, slot)


@functools.partial(jax.jit, static_argnames=("cfg", "decode"))
def initial_state(
    prompt: Array, prompt_mask: Array, canvas: Array, row_keys: Array, cfg: ModelConfig, decode: DecodeConfig
) -> DecodeState:
    """Returns the sampler's state before the first block. The arguments are those of `sampler.sample`."""
    number = len(canvas)
    unmask_step = jnp.where(canvas != cfg.mask_id, jnp.int32(HINT), jnp.int32(decode.steps))
    state = DecodeState(prompt, prompt_mask, canvas, row_keys, canvas, unmask_step, jnp.zeros(number, bool), jnp.arange(number))
    return jax.tree.map(shard_rows, state)


class DenoiseCarry(flax.struct.PyTreeNode):
    """Arrays that change in every denoising step of a block."""

    tokens: Array  # int32 [b, l]
    unmask_step: Array  # int32 [b, l]
    step: Array  # int32 [], steps done, see `Block.denoise_step`

    @classmethod
    def start(cls, state: DecodeState) -> "DenoiseCarry":
        return cls(state.tokens, state.unmask_step, jnp.int32(0))


class StepInfo(flax.struct.PyTreeNode):
    """Result of one denoising step in the active block: the drawn tokens, and a mask of the written positions."""

    drawn: Array  # int32 [b, k]
    written: Array  # bool [b, k]


class Block(flax.struct.PyTreeNode):
    """A block (consecutive completion positions that are sampled together), and the inputs that all its denoising steps use."""

    params: Params
    state: DecodeState  # before the block
    number: Array  # int32 [], index of the block
    masks_at_entry: Array  # int32 [b], number of masked positions in the block before its first step
    attention_mask: Array  # bool [b, p + l], or [2 b, p + l] with classifier-free guidance
    cfg: ModelConfig = flax.struct.field(pytree_node=False)
    decode: DecodeConfig = flax.struct.field(pytree_node=False)

    @classmethod
    def begin(cls, params: Params, state: DecodeState, number: Array, cfg: ModelConfig, decode: DecodeConfig) -> "Block":
        attention_mask = jnp.concatenate([state.prompt_mask, jnp.ones(state.canvas.shape, bool)], axis=1)
        if decode.cfg_scale > 0:
            attention_mask = jnp.concatenate([attention_mask, attention_mask])
        active = jax.lax.dynamic_slice_in_dim(state.tokens, number * decode.block_length, decode.block_length, axis=1)
        return cls(params, state, number, (active == cfg.mask_id).sum(axis=1), attention_mask, cfg, decode)

    @property
    def start(self) -> Array:
        """Index of the block's first position in the completion."""
        return self.number * self.decode.block_length

    def active(self, x: Array) -> jax.Array:
        """Returns the columns of `x`, [rows, completion length], that belong to the block."""
        return jax.lax.dynamic_slice_in_dim(x, self.start, self.decode.block_length, axis=1)

    def unfinished(self, tokens: Array) -> jax.Array:
        return jnp.any(self.active(tokens) == self.cfg.mask_id)

    def full_forward(self, tokens: Array) -> tuple[jax.Array, KVCache | None]:
        """Runs the network on all positions of each row (prompt and completion). Returns the logits of the block, float32
        [rows, block length, vocabulary], and the keys and values of all positions. If `decode.cache` is "none", returns None
        instead of the keys and values."""
        rows, out_slice = self._network_input(tokens), (self.state.prompt.shape[1] + self.start, self.decode.block_length)
        if self.decode.cache == "none":
            return self._logits(forward(self.params, rows, self.attention_mask, self.cfg, out_slice)), None
        hidden, cache = prefill(self.params, rows, self.attention_mask, self.cfg, out_slice)
        return self._logits(hidden), cache

    def cached_forward(self, tokens: Array, cache: KVCache) -> jax.Array:
        """Runs the network only on a window of consecutive positions in each row. Attention takes the keys and values of the
        other positions from `cache`. Returns the logits of the block, float32 [rows, block length, vocabulary]."""
        rows, prompt_length, length = self._network_input(tokens), self.state.prompt.shape[1], self.decode.completion_length
        first = prompt_length + self.start

        shifted = int(self.cfg.shift)  # the logits of the first position come from the position before it

        def from_window(begin, size):
            begin, size = begin - shifted, size + shifted
            part = shard_rows(jax.lax.dynamic_slice_in_dim(rows, begin, size, axis=1))
            out_slice, window = (first - begin, self.decode.block_length), Window(cache, begin, first - shifted)
            return self._logits(forward(self.params, part, self.attention_mask, self.cfg, out_slice, window))

        if self.decode.cache == "dual":
            return from_window(first, self.decode.block_length)
        sizes = window_sizes(self.decode)
        enough = jnp.array(sizes) >= length - self.start
        at_end = [functools.partial(from_window, prompt_length + length - size, size) for size in sizes]
        return jax.lax.switch(jnp.argmax(enough), at_end)

    def _network_input(self, tokens: Array) -> jax.Array:
        """Returns the network input, int32 [b, p + l]: each prompt followed by its completion. With classifier-free guidance,
        the result is [2 b, p + l], and its second half repeats the rows with the prompt and the hints masked."""
        prompt, canvas, mask_id = self.state.prompt, self.state.canvas, self.cfg.mask_id
        rows = jnp.concatenate([prompt, tokens], axis=1)
        if self.decode.cfg_scale > 0:
            without = [jnp.full_like(prompt, mask_id), jnp.where(canvas != mask_id, mask_id, tokens)]
            rows = jnp.concatenate([rows, jnp.concatenate(without, axis=1)])
        return shard_rows(rows)

    def _logits(self, hidden: jax.Array) -> jax.Array:
        """Computes logits from hidden states, applies classifier-free guidance, and sets the logit of MASK to -inf."""
        logits = unembed(self.params, hidden, self.cfg)
        if self.decode.cfg_scale > 0:
            conditional, unconditional = jnp.split(logits, 2)
            logits = unconditional + (self.decode.cfg_scale + 1) * (conditional - unconditional)
        return logits.at[..., self.cfg.mask_id].set(-jnp.inf)

    def denoise_step(self, carry: DenoiseCarry, logits: jax.Array, first: Array | int = 0) -> tuple[DenoiseCarry, StepInfo]:
        """Draws a token for every position of the block from `logits`, float32 [rows, block length, vocabulary], and writes
        some of the tokens. Returns the updated carry, and a `StepInfo` with the drawn tokens and the written positions. The
        index of the step within the block is `first + carry.step`."""
        decode = self.decode
        positions = self.start + jnp.arange(decode.block_length)
        step = first + carry.step
        scheduled = self.number * decode.steps_per_block + step
        active = self.active(carry.tokens)

        def position_keys(row_key, position):
            return jax.random.split(jax.random.fold_in(jax.random.fold_in(row_key, position), scheduled))

        with jax.named_scope("draw"):
            keys = jax.vmap(jax.vmap(position_keys, (None, 0)), (0, None))(self.state.keys, positions)
            gumbel = gumbel_noise(keys[..., 0], logits.shape[-1]) if decode.temperature > 0 else None
            is_random = decode.remasking == "random" or decode.alg_temp > 0
            uniform = jax.vmap(jax.vmap(jax.random.uniform))(keys[..., 1]) if is_random else None
            drawn, confidence = propose(logits, gumbel, uniform, self.cfg, decode)
            written = to_write(confidence, active == self.cfg.mask_id, self.masks_at_entry, step, decode, uniform)
        update = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=self.start, axis=1)
        carry = carry.replace(
            tokens=update(carry.tokens, jnp.where(written, drawn, active)),
            unmask_step=update(carry.unmask_step, jnp.where(written, scheduled, self.active(carry.unmask_step))),
            step=carry.step + 1,
        )
        return carry, StepInfo(drawn, written)

    def finish(self, tokens: Array, unmask_step: Array) -> DecodeState:
        """Returns the sampler's state after the block. A row has ended if all its tokens in the block are EOS. The masked
        positions that remain in such a row become EOS."""
        steps = self.decode.steps_per_block
        ended = self.state.ended | jnp.all(self.active(tokens) == self.cfg.eos_id, axis=1)
        rest = ended[:, None] & (tokens == self.cfg.mask_id)
        state = self.state.replace(
            tokens=jnp.where(rest, self.cfg.eos_id, tokens),
            unmask_step=jnp.where(rest, self.number * steps + steps - 1, unmask_step),
            ended=ended,
        )
        return jax.tree.map(shard_rows, state)


def window_sizes(decode: DecodeConfig) -> list[int]:
    """Returns the window sizes, in ascending order, that the sampler can use with `decode.cache` = "prefix". A window consists
    of the last positions of the completion, and contains the active block. A denoising step recomputes only the positions in
    the window. The compiled program has one branch for each size. There are only a few sizes, because each branch costs compile
    time."""
    sizes, blocks = [], decode.blocks
    while not sizes or sizes[-1] > decode.block_length:
        sizes.append(blocks * decode.block_length)
        blocks = -(-blocks // 2)
    return sizes[::-1]
