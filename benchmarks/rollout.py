"""The package's sampler, whose head sees the active block only, against a plain one whose head sees the whole canvas.

The plain sampler follows the released LLaDA code: logits, noise, argmax and confidence at every position of prompt and
completion, then top-k among the masks of the active block; here in one compiled loop, too, and with the package's
noise. So both must write the same tokens, which is asserted in float32, at temperature 0 and above.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from comparison import EOS, compare, exact, model_of, one_device, parser_with_model, random_params, report
from igpo_jax.diffusion.sampler import (
    DecodeConfig,
    completion_keys,
    gumbel_noise,
    most_confident,
    propose,
    sample,
    transfer_count,
)
from igpo_jax.model.transformer import forward, unembed


@functools.partial(jax.jit, static_argnames=("cfg", "decode"))
def plain_sample(params, prompt, valid, canvas, row_keys, cfg, decode):
    """The completions, int32 [b, l]. Arguments as those of `sample`."""
    rows, prompt_length = prompt.shape
    steps_per_block = decode.steps // decode.blocks
    tokens = jnp.concatenate([prompt, canvas], axis=1)
    valid = jnp.concatenate([valid, jnp.ones(canvas.shape, bool)], axis=1)
    position = jnp.arange(tokens.shape[1]) - prompt_length  # as the package counts: from the completion's start
    position_keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(row_keys, position)

    def denoise(step, carry):
        tokens, masks_at_entry = carry
        in_block = position // decode.block_length == step // steps_per_block
        masked = (tokens == cfg.mask_id) & in_block
        step_in_block = step % steps_per_block
        masks_at_entry = jnp.where(step_in_block == 0, masked.sum(axis=1), masks_at_entry)

        logits = unembed(params, forward(params, tokens, valid, cfg), cfg).at[..., cfg.mask_id].set(-jnp.inf)
        keys = jax.vmap(jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, step))[0]))(position_keys)
        gumbel = gumbel_noise(keys, cfg.vocab_size) if decode.temperature > 0 else None
        drawn, confidence = propose(logits, gumbel, None, cfg, decode)
        write = most_confident(confidence, masked, transfer_count(masks_at_entry, step_in_block, steps_per_block))
        return jnp.where(write, drawn, tokens), masks_at_entry

    tokens, _ = jax.lax.fori_loop(0, decode.steps, denoise, (tokens, jnp.zeros(rows, jnp.int32)))
    return tokens[:, prompt_length:]


def assert_equal(inputs, cfg, decode):
    cfg = dataclasses.replace(cfg, compute_dtype="float32")
    with exact():
        fast, plain = sample(*inputs, cfg, decode), plain_sample(*inputs, cfg, decode)
    assert int(fast.evaluations) == decode.steps, "rows that end early would save steps, which is not compared here"
    assert not np.any(np.asarray(plain) == cfg.mask_id)
    np.testing.assert_array_equal(np.asarray(fast.tokens), np.asarray(plain))


def main(argv: list[str] | None = None) -> dict:
    parser = parser_with_model(__doc__)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--prompt-length", type=int, default=128)
    parser.add_argument("--completion-length", type=int, default=256)
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--steps", type=int, default=16, help="a multiple of the number of blocks")
    parser.add_argument("--temperature", type=float, default=1.2, help="of the second comparison; the first is at 0")
    arguments = parser.parse_args(argv)

    cfg = model_of(arguments)
    draw = np.random.default_rng(0)
    shape = (arguments.rows, arguments.prompt_length)
    row = jnp.arange(arguments.rows)
    names = ("rows", "prompt_length", "completion_length", "block", "steps")
    sizes = {name: getattr(arguments, name) for name in names}
    results = {}
    with jax.set_mesh(one_device()):
        inputs = (
            random_params(0, cfg),
            jnp.asarray(draw.integers(EOS + 1, cfg.vocab_size, shape, dtype=np.int32)),
            jnp.asarray(np.arange(shape[1]) >= draw.integers(0, shape[1] // 4 + 1, (shape[0], 1))),
            jnp.full((arguments.rows, arguments.completion_length), cfg.mask_id, jnp.int32),
            completion_keys(jax.random.key(0), row, row, 0),
        )
        for temperature in (0.0, arguments.temperature):
            decode = DecodeConfig(arguments.completion_length, arguments.block, arguments.steps, temperature)
            assert_equal(inputs, cfg, decode)
            results[f"temperature {temperature}"] = compare(
                lambda: plain_sample(*inputs, cfg, decode), lambda: sample(*inputs, cfg, decode), arguments.repetitions
            )
    what = "sampler: head on the whole canvas (plain) / head on the active block"
    return report(what, cfg, {**sizes, **results}, arguments.output)


if __name__ == "__main__":
    main()
