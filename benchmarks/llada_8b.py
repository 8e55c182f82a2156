"""Measures a rollout and updates of adapters at the shape of LLaDA-8B, with random weights, on this machine's devices.

Prints one JSON line per case: seconds, tokens per second, the minimal FLOPs and, if the device's published peak is known, their
share of it (MFU), the FLOPs of the compiled program, which recomputes some values, the fullest device's memory, and what
`igpo_jax.plan` predicts for the compiled program: seconds (predicted_seconds) and the peak of the memory of all cases so far
(predicted_peak_gib). --small runs a toy model on any machine.
"""

import argparse
import dataclasses
import datetime
import json
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from igpo_jax.diffusion.sampler import completion_keys, denoise_block, initial_state, sample
from igpo_jax.diffusion.unmasking import DecodeConfig
from igpo_jax.model import lora as lora_module
from igpo_jax.model.attention import PLATFORMS
from igpo_jax.model.fitting import fit_to_devices
from igpo_jax.model.lora import LoraConfig
from igpo_jax.model.transformer import forward_flops, init, shardings
from igpo_jax.plan.programs import LLADA_8B, read_compiled
from igpo_jax.rl.likelihood import GroupBatch
from igpo_jax.rl.objective import ObjectiveConfig, compute_logprobs
from igpo_jax.rl.update import make_update
from igpo_jax.run.metrics import device_memory
from igpo_jax.runtime.chips import CHIPS
from igpo_jax.runtime.mesh import batch_size_divisor, make_mesh, shard_batch, to_host
from igpo_jax.training.policy import Policy
from igpo_jax.training.state import OptimizerConfig, create_state, make_optimizer

SMALL = {"width": 64, "layers": 2, "heads": 4, "kv_heads": 4, "mlp_width": 192, "vocab_size": 2048}
SMALL |= {"mask_id": 1, "eos_id": 2, "eot_id": None}


def measure(
    function, arguments, model_flops: float, repetitions: int, advance=lambda arguments, result: arguments
) -> tuple[float, dict]:
    """Returns a function's median seconds after one warm-up run, and the measurements of the case.

    model_flops: minimal FLOPs over all devices, without recomputation.
    advance: (arguments, result) -> arguments of the next run, for programs that donate theirs.
    """
    seconds = []
    for _ in range(repetitions + 1):
        begin = time.perf_counter()
        result = jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - begin)
        arguments = advance(arguments, result)
    median, flops = statistics.median(seconds[1:]), model_flops / jax.device_count()
    case = {"seconds": median, "repetitions": repetitions, "model_flops_per_device": flops}
    case |= device_memory()
    chip = CHIPS.get(jax.devices()[0].device_kind)
    return median, case | ({"mfu": flops / median / chip.flops} if chip else {})


def main(argv: list[str] | None = None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a toy of the same kind, to try this script")
    parser.add_argument("--attention", default="auto", choices=["auto", *sorted(PLATFORMS)])
    parser.add_argument("--prompts", type=int, default=8, help="of an update")
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--rows", type=int, default=16, help="of a rollout")
    parser.add_argument("--prompt-length", type=int, default=256)
    parser.add_argument("--completion-length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=64, help="of denoising, for the whole completion")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--output", type=pathlib.Path, help="a file for the JSON lines")
    arguments = parser.parse_args(argv)
    n, g, p, length = arguments.prompts, arguments.group_size, arguments.prompt_length, arguments.completion_length

    numerics = {"param_dtype": "bfloat16", "compute_dtype": "bfloat16", "remat": "full"}
    cfg = dataclasses.replace(LLADA_8B, **numerics, attention=arguments.attention, **(SMALL if arguments.small else {}))
    lora = LoraConfig(rank=4 if arguments.small else 128, alpha=64.0)
    decode = DecodeConfig(length, min(32, length), arguments.steps, temperature=1.2)
    mesh, objective, draw = make_mesh(), ObjectiveConfig(), np.random.default_rng(0)
    cfg = fit_to_devices(cfg, mesh, [p + length])
    divisor = batch_size_divisor(mesh)
    if n % divisor or arguments.rows % divisor:
        parser.error(f"--prompts={n} and --rows={arguments.rows} must be multiples of the {divisor} devices")
    cases, peak = [], 0.0

    def predicted(compiled: jax.stages.Compiled, calls: int) -> dict:
        """Returns what `plan` says of a program that a case calls several times."""
        nonlocal peak
        planned = read_compiled(compiled, mesh)
        peak = max(peak, planned["peak_gib"])
        known = {"compiled_flops_per_device": calls * planned["flops"], "predicted_peak_gib": peak}
        seconds = planned.get("estimated_seconds")
        return known | ({} if seconds is None else {"predicted_seconds": calls * seconds})

    def record(name: str, measured: dict, **more) -> None:
        device = {"device": jax.devices()[0].device_kind, "devices": jax.device_count(), "jax": jax.__version__}
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        shape = {key: getattr(cfg, key) for key in ("width", "layers", "heads", "mlp_width", "vocab_size", "attention")}
        cases.append({"name": name, "date": date, **device, "model": shape, **more, **measured})
        print(json.dumps(cases[-1]), flush=True)

    def prompts(rows: int):
        return draw.integers(3, cfg.vocab_size // 2, (rows, p), dtype=np.int32), np.ones((rows, p), bool)

    with jax.set_mesh(mesh):
        frozen = jax.jit(init, static_argnums=1, out_shardings=shardings(cfg, mesh))(jax.random.key(0), cfg)
        make = jax.jit(lora_module.init, static_argnums=(1, 2), out_shardings=lora_module.shardings(cfg, lora, mesh))
        adapters = make(jax.random.key(1), cfg, lora)
        policy = Policy(cfg, lora).assemble(adapters, frozen)

        rows, row = arguments.rows, np.arange(arguments.rows, dtype=np.uint32)
        canvas = np.full((rows, length), cfg.mask_id, np.int32)
        inputs = shard_batch((*prompts(rows), canvas), mesh)
        keys = completion_keys(jax.random.key(2), row, row, 0)
        # FLOPs of the adapters for one row: A and B of each matrix.
        widths = jax.tree.leaves(jax.tree.map(lambda x: x.shape[1] * x.shape[2] * cfg.layers, adapters))
        adapter_flops = 2 * (p + length) * sum(widths)

        with_adapters = 1 + adapter_flops / forward_flops(cfg, p + length, decode.block_length)
        exact_seconds = None
        for cache in ("none", "dual"):
            sampler = dataclasses.replace(decode, cache=cache)

            def rollout(sampler=sampler):
                return sample(policy, *inputs, keys, cfg, sampler)

            done = rollout()
            seconds, measured = measure(rollout, (), done.flops * with_adapters, arguments.repetitions)
            exact_seconds = exact_seconds or seconds
            if (np.asarray(to_host(done.tokens)) == cfg.mask_id).any():
                raise AssertionError("a completion still has masks")
            start = initial_state(*inputs, keys, cfg, sampler)
            of_block = denoise_block.lower(policy, start, np.int32(0), cfg, sampler).compile()
            measured |= predicted(of_block, decode.blocks)
            sizes = {"rows": rows, "prompt_length": p, "completion_length": length, "steps": arguments.steps}
            work = {"cache": cache, "evaluations": done.evaluations, "rows_evaluated": done.rows_evaluated}
            speed = {"tokens_per_second": rows * length / seconds, "baseline": "none", "ratio": exact_seconds / seconds}
            record("rollout", measured, **sizes, **work, **speed)

        batch = shard_batch(
            GroupBatch(
                *prompts(n),
                problem_id=np.arange(n, dtype=np.uint32),
                completions=draw.integers(3, cfg.vocab_size // 2, (n, g, length), dtype=np.int32),
                unmask_step=np.zeros((n, g, length), np.int32),
                loss_mask=np.ones((n, g, length), bool),
                advantages=draw.normal(size=(n, g)).astype(np.float32),
            ),
            mesh,
        )
        scores = compute_logprobs(policy, frozen, batch, jax.random.key(3), cfg, objective, mesh)
        optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-3, warmup_steps=0), 100, Policy(cfg, lora))
        state = create_state(adapters, optimizer, Policy(cfg, lora), mesh)
        inner_step = jnp.int32(0)
        compiled = make_update(optimizer, Policy(cfg, lora), objective, mesh).lower(
            state, batch, scores, inner_step, frozen
        ).compile()  # fmt: skip
        first = (state, batch, scores, inner_step, frozen)
        losses = []

        def advance(arguments, result):
            losses.append(float(result[1]["policy/loss"]))
            return (result[0], *arguments[1:])

        # Forward, and backward to the activations; for adapters also to their parameters. One row per prompt.
        flops = n * (2 * forward_flops(cfg, p + length, length) + 3 * adapter_flops)
        seconds, measured = measure(compiled, first, flops, arguments.repetitions, advance)
        measured |= predicted(compiled, 1)
        if not np.isfinite(losses).all() or len(set(losses)) == 1:
            raise AssertionError(f"updates that change nothing: losses {losses}")
        sizes = {"prompts": n, "group_size": g, "prompt_length": p, "completion_length": length, "lora_rank": lora.rank}
        record("update", measured, **sizes, tokens_per_second=n * g * length / seconds, losses=losses)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text("".join(json.dumps(case) + "\n" for case in cases), encoding="utf-8")
    return cases


if __name__ == "__main__":
    main()
