"""Compares the package's sampler with plain samplers, which apply the head to the whole canvas and run all rows to the end.

--against jax: a sampler as in LLaDA's released code: logits, noise, argmax and confidence at every position of prompt and
completion, then top-k among the masks of the active block; here in one compiled loop, with the package's noise. Asserts
that both write the same tokens, in float32, at temperature 0 and above.

--against torch: the same in PyTorch (torch_plain.py), with the same weights, in float32 at temperature 0: with answers that
fill the canvas, that fill 40 % of it on average, and with hints on 40 % of it. A random network never writes EOS, so the
canvas contains a block of EOS at each answer's end, after which everything counts as EOS. Then, for the package alone, a
second attempt with hints against a first attempt without, one token per evaluation. TORCH_SIZES has the default sizes.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

import comparison
from igpo_jax.diffusion.sampler import Sample, completion_keys, sample
from igpo_jax.diffusion.unmasking import DecodeConfig, gumbel_noise, most_confident, propose, transfer_count
from igpo_jax.model.transformer import forward, unembed

TORCH_SIZES = {"rows": 4, "completion_length": 128, "steps": 32, "repetitions": 2}  # minutes on two cores
EQUAL_TOKENS = 0.99  # minimum; the libraries round differently, which decides near ties of a random network


@functools.partial(jax.jit, static_argnames=("cfg", "decode"))
def plain_sample(params, prompt, prompt_mask, canvas, row_keys, cfg, decode):
    """Returns completions, i32[b, l]; arguments as in `sample`."""
    rows, prompt_length = prompt.shape
    steps_per_block = decode.steps_per_block
    tokens = jnp.concatenate([prompt, canvas], axis=1)
    prompt_mask = jnp.concatenate([prompt_mask, jnp.ones(canvas.shape, bool)], axis=1)
    position = jnp.arange(tokens.shape[1]) - prompt_length  # from the completion's start, as in the package
    position_keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(row_keys, position)

    def denoise(step, carry):
        tokens, masks_at_entry = carry
        in_block = position // decode.block_length == step // steps_per_block
        masked = (tokens == cfg.mask_id) & in_block
        step_in_block = step % steps_per_block
        masks_at_entry = jnp.where(step_in_block == 0, masked.sum(axis=1), masks_at_entry)

        logits = unembed(params, forward(params, tokens, prompt_mask, cfg), cfg).at[..., cfg.mask_id].set(-jnp.inf)
        keys = jax.vmap(jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, step))[0]))(position_keys)
        gumbel = gumbel_noise(keys, cfg.vocab_size) if decode.temperature > 0 else None
        drawn, confidence = propose(logits, gumbel, None, cfg, decode)
        write = most_confident(confidence, masked, transfer_count(masks_at_entry, step_in_block, steps_per_block))
        return jnp.where(write, drawn, tokens), masks_at_entry

    tokens, _ = jax.lax.fori_loop(0, decode.steps, denoise, (tokens, jnp.zeros(rows, jnp.int32)))
    return tokens[:, prompt_length:]


def assert_equal(inputs, cfg, decode) -> Sample:
    cfg = dataclasses.replace(cfg, compute_dtype="float32")
    with comparison.exact():
        fast, plain = sample(*inputs, cfg, decode), plain_sample(*inputs, cfg, decode)
    assert fast.evaluations == decode.steps, "rows that end early would save steps, which is not compared here"
    assert not np.any(np.asarray(plain) == cfg.mask_id)
    np.testing.assert_array_equal(np.asarray(fast.tokens), np.asarray(plain))
    return fast


def against_jax(inputs, cfg, decode: DecodeConfig, temperatures: tuple[float, ...], repetitions: int) -> list[dict]:
    """Measures a case for each temperature."""
    cases = []
    for temperature in temperatures:
        decode = dataclasses.replace(decode, temperature=temperature)
        done = assert_equal(inputs, cfg, decode)
        seconds = comparison.compare(
            lambda decode=decode: plain_sample(*inputs, cfg, decode),
            lambda decode=decode: sample(*inputs, cfg, decode),
            repetitions,
        )
        measured = {"baseline": "whole canvas"} | seconds | work_of(done, inputs, cfg, decode)
        cases.append(comparison.report(f"rollout, temperature {temperature}", cfg, measured))
    return cases


def work_of(done: Sample, inputs, cfg, decode: DecodeConfig) -> dict:
    """Returns the sizes and the work of `sample`; tokens: number of masks in the canvas, all replaced by tokens."""
    _, prompt, _, canvas, _ = inputs
    return {
        "rows": len(prompt),
        "prompt_length": prompt.shape[1],
        "completion_length": decode.completion_length,
        "block": decode.block_length,
        "steps": decode.steps,
        "tokens": int(np.sum(np.asarray(canvas) == cfg.mask_id)),
        "evaluations": done.evaluations,
        "rows_evaluated": done.rows_evaluated,
        "model_flops": done.flops,
    }


def canvases(rows: int, cfg, decode: DecodeConfig) -> dict[str, np.ndarray]:
    """Returns canvases by content, i32[rows, l]."""
    draw, blocks = np.random.default_rng(1), decode.blocks
    empty = np.full((rows, decode.completion_length), cfg.mask_id, np.int32)
    ending = empty.copy()
    lengths = np.linspace(0, 0.8, rows)  # of the answers, including their block of EOS
    for row, last in enumerate(np.clip(np.round(lengths * blocks).astype(int) - 1, 0, blocks - 1)):
        ending[row, last * decode.block_length : (last + 1) * decode.block_length] = cfg.eos_id
    hinted = np.where(draw.random(empty.shape) < 0.4, draw.integers(comparison.EOS + 1, cfg.vocab_size, empty.shape), empty)
    return {"full": empty, "40 %": ending, "hints": hinted.astype(np.int32)}


def after_end(tokens: np.ndarray, cfg, decode: DecodeConfig) -> np.ndarray:
    """Returns the positions after the first block of only EOS, bool[b, l], in completions i32[b, l]."""
    only_eos = (tokens == cfg.eos_id).reshape(len(tokens), decode.blocks, -1).all(axis=2)
    before = np.cumsum(only_eos, axis=1) > only_eos
    return np.repeat(before, decode.block_length, axis=1)


def against_torch(inputs, cfg, decode: DecodeConfig, repetitions: int) -> list[dict]:
    """Measures a case for each of `canvases`, and a second attempt; ignores the canvas among the inputs."""
    import torch

    from torch_plain import best_device, torch_weights
    from torch_plain import plain_sample as torch_sample

    params, prompt, prompt_mask, _, keys = inputs
    weights = torch_weights(params, best_device(), torch.float32)
    filled = canvases(len(prompt), cfg, decode)

    def of_canvas(name):
        canvas = filled[name]
        inputs = params, prompt, prompt_mask, jnp.asarray(canvas), keys

        def plain():
            return torch_sample(weights, prompt, prompt_mask, canvas, cfg, decode)

        def fast():
            return sample(*inputs, cfg, decode)

        tokens, done = plain(), fast()
        ended = after_end(tokens, cfg, decode)
        equal = np.asarray(done.tokens) == np.where(ended & (canvas == cfg.mask_id), cfg.eos_id, tokens)
        assert equal.mean() >= EQUAL_TOKENS, f"{name}: {equal.mean():.2%} of the tokens are the same"
        measured = {"baseline": "torch"} | comparison.ratio_of(*comparison.seconds_in_turn((plain, fast), repetitions))
        measured |= work_of(done, inputs, cfg, decode) | {
            "baseline_evaluations": decode.steps,
            "baseline_rows_evaluated": decode.steps * len(prompt),
            "equal_tokens": float(equal.mean()),
            "filled": float(1 - ended.mean()),
        }
        return comparison.report(f"rollout, {name}", cfg, measured)

    def second_try():
        # Hints save evaluations if a block has fewer masks than steps.
        by_token = dataclasses.replace(decode, steps=decode.completion_length)
        first, second = ((params, prompt, prompt_mask, jnp.asarray(filled[name]), keys) for name in ("full", "hints"))
        before, done = sample(*first, cfg, by_token), sample(*second, cfg, by_token)
        seconds = comparison.seconds_in_turn([lambda of=of: sample(*of, cfg, by_token) for of in (first, second)], repetitions)
        measured = {"baseline": "first try"} | comparison.ratio_of(*seconds) | work_of(done, second, cfg, by_token)
        return comparison.report("second try", cfg, measured | {"baseline_evaluations": before.evaluations})

    return [*map(of_canvas, filled), second_try()]


def main(argv: list[str] | None = None) -> list[dict]:
    parser = comparison.parser_with_model(__doc__, repetitions=5)
    parser.add_argument("--against", choices=("jax", "torch"), default="jax")
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--prompt-length", type=int, default=128)
    parser.add_argument("--completion-length", type=int, default=256)
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--steps", type=int, default=16, help="a multiple of the number of blocks")
    parser.add_argument("--temperature", type=float, default=1.2, help="of the second comparison in jax; the first is at 0")
    against = parser.parse_known_args(argv)[0].against
    parser.set_defaults(**TORCH_SIZES if against == "torch" else {})
    arguments = parser.parse_args(argv)
    if against == "torch" and arguments.dtype != "float32":
        parser.error("--against torch is in float32")

    cfg = comparison.model_of(arguments)
    decode = DecodeConfig(arguments.completion_length, arguments.block, arguments.steps)
    draw = np.random.default_rng(0)
    shape = (arguments.rows, arguments.prompt_length)
    row = jnp.arange(arguments.rows)
    with jax.set_mesh(comparison.one_device()):
        inputs = (
            comparison.random_params(0, cfg),
            jnp.asarray(draw.integers(comparison.EOS + 1, cfg.vocab_size, shape, dtype=np.int32)),
            jnp.asarray(np.arange(shape[1]) >= draw.integers(0, shape[1] // 4 + 1, (shape[0], 1))),
            jnp.full((arguments.rows, arguments.completion_length), cfg.mask_id, jnp.int32),
            completion_keys(jax.random.key(0), row, row, 0),
        )
        if against == "torch":
            with comparison.exact():
                cases = against_torch(inputs, cfg, decode, arguments.repetitions)
        else:
            cases = against_jax(inputs, cfg, decode, (0.0, arguments.temperature), arguments.repetitions)
    comparison.write_cases(cases, arguments.output)
    return cases


if __name__ == "__main__":
    main()
