"""Compares a whole policy update with one row per prompt to one with a row per completion.

[prompt ; MASK x L] does not contain the completion, so the G completions of a prompt share one row of the network and
one table of logits. A policy update scores a rollout under the old policy and the reference and then takes mu inner steps:
forward, backward, clipping, AdamW. Both baselines have N * G rows:

- tiled: the package's own functions, with groups of one completion.
- torch: the plain algorithm in PyTorch (torch_plain.py), which also applies the head to the prompt; in float32 only.

In float32 the losses of every inner step must agree, and so must the gradients of the package and of tiled.
"""

import dataclasses
import importlib.util
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

import comparison
from igpo_jax.diffusion.sampler import HINT
from igpo_jax.model.transformer import forward_flops
from igpo_jax.plan.hlo_cost import program_cost
from igpo_jax.rl.likelihood import GroupBatch, views_of
from igpo_jax.rl.objective import LogProbs, ObjectiveConfig, compute_logprobs, loss_and_statistics
from igpo_jax.rl.update import make_update
from igpo_jax.training.policy import Policy
from igpo_jax.training.state import OptimizerConfig, create_state, make_optimizer

LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4
UPDATED_LOSS_TOLERANCE = 1e-4  # of losses after updates, whose differences accumulate
NUDGE = 0.01  # distance of the old and the reference policy from the new one
LEARNING_RATE = 3e-5  # makes the inner steps' losses differ, but clips few ratios


def random_batch(arguments, vocabulary: int) -> GroupBatch:
    """Returns a random batch of host arrays."""
    draw = np.random.default_rng(0)
    n, g, length = arguments.prompts, arguments.group_size, arguments.completion_length
    return GroupBatch(
        prompt=draw.integers(comparison.EOS + 1, vocabulary, (n, arguments.prompt_length), dtype=np.int32),
        prompt_mask=np.arange(arguments.prompt_length) >= draw.integers(0, arguments.prompt_length // 4 + 1, (n, 1)),
        problem_id=np.arange(n, dtype=np.uint32),
        completions=draw.integers(comparison.EOS + 1, vocabulary, (n, g, length), dtype=np.int32),
        unmask_step=np.where(draw.uniform(size=(n, g, length)) < 0.2, HINT, 0).astype(np.int32),
        loss_mask=np.arange(length) < draw.integers(length // 2, length + 1, (n, g, 1)),
        advantages=draw.normal(size=(n, g)).astype(np.float32),
    )


def tiled(batch: GroupBatch, scores: LogProbs) -> tuple[GroupBatch, LogProbs]:
    """Makes every completion a group of one, with a copy of its prompt."""
    n, g, length = batch.completions.shape
    copies = {name: np.repeat(getattr(batch, name), g, axis=0) for name in ("prompt", "prompt_mask", "problem_id")}
    own = {
        name: getattr(batch, name).reshape(n * g, 1, *getattr(batch, name).shape[2:])
        for name in ("completions", "unmask_step", "loss_mask", "advantages")
    }
    batch = GroupBatch(**copies, **own)
    per_token = {name: getattr(scores, name).reshape(-1, n * g, 1, length) for name in ("loss_mask", "entropy")}
    per_token |= {name: getattr(scores, name).reshape(-1, n * g, 1, 1, length) for name in ("old", "reference")}  # one view
    views = jax.device_get(views_of(jax.random.key(0), batch, ObjectiveConfig()))
    return batch, LogProbs(views=views, **per_token)


def assert_equal(params, sides, cfg, objective, mesh) -> float:
    """Asserts that both sides have equal loss and gradients in float32; returns the gradients' relative difference."""
    # Recomputing layers changes no number; with it the tiled side fits into the memory of the update in bfloat16.
    cfg = dataclasses.replace(cfg, compute_dtype="float32", remat="full")

    @jax.jit
    def loss_and_gradients(params, batch, scores):
        scores = jax.tree.map(lambda x: x[0], scores)
        return jax.value_and_grad(loss_and_statistics, has_aux=True)(params, batch, scores, cfg, objective, mesh)

    with comparison.exact():
        ((loss, _), gradients), ((plain_loss, _), plain) = (loss_and_gradients(params, *side) for side in sides)
    difference = float(optax.global_norm(jax.tree.map(jnp.subtract, gradients, plain)) / optax.global_norm(plain))
    assert_close(float(loss), float(plain_loss), LOSS_TOLERANCE)
    assert float(optax.global_norm(plain)) > 0 and difference <= GRADIENT_TOLERANCE, difference
    return difference


def assert_close(loss: float, other: float, tolerance: float) -> None:
    assert abs(loss - other) <= tolerance * max(1.0, abs(other)), (loss, other)


def make_policy_update(inputs: comparison.UpdateInputs, mesh: Mesh) -> tuple[Callable[[], list[jax.Array]], float]:
    """Returns a function that makes the package's policy update of a batch and returns the losses of its inner steps, and the
    FLOPs of its compiled programs. Each call continues from the last."""
    params, old, reference, batch, cfg, objective, adamw = inputs
    optimizer, key = make_optimizer(adamw, 100, Policy(cfg)), jax.random.key(0)
    scoring = compute_logprobs.lower(old, reference, batch, key, cfg, objective, mesh).compile()
    state, scores = create_state(params, optimizer, Policy(cfg), mesh), scoring(old, reference, batch, key)
    updating = make_update(optimizer, Policy(cfg), objective, mesh).lower(state, batch, scores, np.int32(0)).compile()

    def policy_update():
        nonlocal state
        scores, losses = scoring(old, reference, batch, key), []
        for inner_step in range(objective.inner_steps):
            state, statistics = updating(state, batch, scores, np.int32(inner_step))
            losses.append(statistics["policy/loss"])
        return losses

    of_score, of_update = (program_cost(program.as_text()).flops for program in (scoring, updating))
    return policy_update, of_score + objective.inner_steps * of_update


def main(argv: list[str] | None = None) -> list[dict]:
    parser = comparison.parser_with_model(__doc__, repetitions=2)
    parser.add_argument("--prompts", type=int, default=4, help="N")
    parser.add_argument("--group-size", type=int, default=8, help="G")
    parser.add_argument("--prompt-length", type=int, default=128)
    parser.add_argument("--completion-length", type=int, default=128)
    parser.add_argument("--chunk", type=int, default=512, help="positions whose logits exist at a time")
    parser.add_argument("--no-torch", action="store_true", help="leave out the baseline in PyTorch")
    arguments = parser.parse_args(argv)
    n, g, length = arguments.prompts, arguments.group_size, arguments.completion_length
    positions, in_float32 = arguments.prompt_length + length, arguments.dtype == "float32"
    with_torch = in_float32 and not arguments.no_torch
    if with_torch and importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed, so there is no comparison with it", file=sys.stderr)
        with_torch = False

    cfg, mesh = dataclasses.replace(comparison.model_of(arguments), head_chunk=arguments.chunk), comparison.one_device()
    objective, adamw = ObjectiveConfig(), OptimizerConfig(learning_rate=LEARNING_RATE, warmup_steps=0)
    with jax.set_mesh(mesh), jax.default_matmul_precision("highest" if in_float32 else "default"):
        params = comparison.random_params(0, cfg)
        old, reference = (jax.tree.map(lambda x, y: x + NUDGE * y, params, comparison.random_params(seed, cfg)) for seed in (1, 2))
        batch = random_batch(arguments, cfg.vocab_size)
        scores = jax.device_get(compute_logprobs(old, reference, batch, jax.random.key(0), cfg, objective, mesh))
        sides = [jax.device_put(side) for side in ((batch, scores), tiled(batch, scores))]
        difference = assert_equal(params, sides, cfg, objective, mesh)

        inputs = comparison.UpdateInputs(params, old, reference, sides[0][0], cfg, objective, adamw)
        ours, flops = make_policy_update(inputs, mesh)
        baselines = {"tiled": make_policy_update(inputs._replace(batch=sides[1][0]), mesh)[0]}
        if with_torch:
            import torch_plain

            baselines["torch"] = torch_plain.make_policy_update(inputs._replace(batch=batch))

        # The first call of each is a warm-up; its losses are compared.
        losses, *others = (list(map(float, function())) for function in (ours, *baselines.values()))
        if in_float32:
            for other in others:
                for pair in zip(losses, other, strict=True):
                    assert_close(*pair, UPDATED_LOSS_TOLERANCE)
        assert np.ptp(losses) > UPDATED_LOSS_TOLERANCE, f"updates that change nothing: {losses}"
        seconds, *baseline_seconds = comparison.seconds_in_turn((ours, *baselines.values()), arguments.repetitions)

    # One forward pass for each of the two scores, and three (forward and backward) for each inner step; the head at the
    # completion only. With several chunks, the compiled programs do one product more: the backward pass recomputes each
    # chunk's logits, so that only one chunk's logits exist at a time.
    passes = 2 + 3 * objective.inner_steps
    floor = n * passes * forward_flops(cfg, positions, length)
    names = ("prompts", "group_size", "prompt_length", "completion_length", "chunk")
    common = {name: getattr(arguments, name) for name in names} | {
        "inner_steps": objective.inner_steps,
        "tokens": n * g * length,
        "evaluations": 2 + objective.inner_steps,
        "rows_evaluated": n * (2 + objective.inner_steps),
        "model_flops": floor,
        "compiled_flops": flops,
        "compiled_to_model_flops": flops / floor,
        "losses": losses,
        "gradient_difference": difference,
    }
    cases = []
    for baseline, other, its_seconds in zip(baselines, others, baseline_seconds, strict=True):
        apart = {"loss_difference": float(np.max(np.abs(np.subtract(losses, other))))}
        measured = common | apart | {"baseline": baseline} | comparison.ratio_of(its_seconds, seconds)
        cases.append(comparison.report("policy update", cfg, measured))
    comparison.write_cases(cases, arguments.output)
    return cases


if __name__ == "__main__":
    main()
