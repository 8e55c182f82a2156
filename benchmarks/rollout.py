"""The package's sampler, whose head sees the active block only, against a plain one whose head sees the whole canvas.

The plain sampler follows the released LLaDA code: logits, noise, argmax and confidence at every position of prompt and
completion, then top-k among the masks of the active block; here in one compiled loop, and with the package's
noise. So both must write the same tokens, which is asserted in float32, at temperature 0 and above.

--torch adds the plain algorithm in PyTorch (torch_plain.py), with the same weights, at temperature 0: where answers fill the
canvas, where their mean fills 40 % of it, and with hints on 40 % of it. A random network ends nothing by itself, so that an
answer's end is given: a block of EOS in the canvas, after which everything counts as EOS.
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
    assert fast.evaluations == decode.steps, "rows that end early would save steps, which is not compared here"
    assert not np.any(np.asarray(plain) == cfg.mask_id)
    np.testing.assert_array_equal(np.asarray(fast.tokens), np.asarray(plain))


def canvases(rows: int, cfg, decode: DecodeConfig) -> dict[str, np.ndarray]:
    """Canvases by what is in them, int32 [rows, l]."""
    draw, blocks = np.random.default_rng(1), decode.blocks
    empty = np.full((rows, decode.completion_length), cfg.mask_id, np.int32)
    ending = empty.copy()
    lengths = np.linspace(0, 0.8, rows)  # of the answers; the block of EOS after them belongs to them
    for row, last in enumerate(np.clip(np.round(lengths * blocks).astype(int) - 1, 0, blocks - 1)):
        ending[row, last * decode.block_length : (last + 1) * decode.block_length] = cfg.eos_id
    hinted = np.where(draw.random(empty.shape) < 0.4, draw.integers(EOS + 1, cfg.vocab_size, empty.shape), empty)
    return {"full": empty, "40 %": ending, "hints": hinted.astype(np.int32)}


def against_torch(inputs, cfg, decode: DecodeConfig, repetitions: int) -> dict:
    """Seconds and ratios of both, and the share of equal tokens, for each of `canvases`."""
    import torch

    from torch_plain import plain_sample as torch_sample
    from torch_plain import torch_weights

    params, prompt, valid, _, keys = inputs
    device = "cuda" if torch.cuda.is_available() else "cpu"
    weights = torch_weights(params, device, getattr(torch, cfg.compute_dtype))
    results = {}
    for name, canvas in canvases(len(prompt), cfg, decode).items():
        plain = torch_sample(weights, prompt, valid, canvas, cfg, decode)
        done = sample(params, prompt, valid, jnp.asarray(canvas), keys, cfg, decode)
        ended = np.zeros(canvas.shape, bool)
        is_eos = (plain == cfg.eos_id).reshape(len(plain), decode.blocks, -1).all(axis=2)
        for row, ends in enumerate(is_eos):
            ended[row, (int(ends.argmax()) + 1) * decode.block_length if ends.any() else None :] = ends.any()
        equal = np.asarray(done.tokens) == np.where(ended & (canvas == cfg.mask_id), cfg.eos_id, plain)
        measured = compare(
            lambda canvas=canvas: torch_sample(weights, prompt, valid, canvas, cfg, decode),
            lambda canvas=canvas: sample(params, prompt, valid, jnp.asarray(canvas), keys, cfg, decode),
            repetitions,
        )
        work = {"evaluations": done.evaluations, "rows_evaluated": done.rows_evaluated, "equal_tokens": float(equal.mean())}
        results[f"torch {name}"] = measured | work
    return results


def main(argv: list[str] | None = None) -> dict:
    parser = parser_with_model(__doc__)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--prompt-length", type=int, default=128)
    parser.add_argument("--completion-length", type=int, default=256)
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--steps", type=int, default=16, help="a multiple of the number of blocks")
    parser.add_argument("--temperature", type=float, default=1.2, help="of the second comparison; the first is at 0")
    parser.add_argument("--torch", action="store_true", help="compare with PyTorch, too")
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
        if arguments.torch:
            results |= against_torch(inputs, cfg, DecodeConfig(arguments.completion_length, arguments.block, arguments.steps), arguments.repetitions)
    what = "sampler: head on the whole canvas (plain) / head on the active block"
    return report(what, cfg, {**sizes, **results}, arguments.output)


if __name__ == "__main__":
    main()
