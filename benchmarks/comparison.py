"""Shared code of the benchmarks: options of a model, alternating timing of functions, printing and writing of cases."""

import argparse
import datetime
import functools
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from igpo_jax.model.sharding import Params
from igpo_jax.model.transformer import ModelConfig, init
from igpo_jax.rl.likelihood import GroupBatch
from igpo_jax.rl.objective import ObjectiveConfig
from igpo_jax.runtime.chips import CHIPS
from igpo_jax.runtime.host import keep_freed_memory
from igpo_jax.runtime.mesh import AXES
from igpo_jax.training.state import OptimizerConfig

MASK, EOS = 1, 2

keep_freed_memory()  # as all commands of igpo_jax do


def parser_with_model(description: str, repetitions: int) -> argparse.ArgumentParser:
    """Returns a parser with the network's options; defaults have LLaDA's proportions (MLP 3 x width, vocabulary 31 x width)."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--depth", type=int, default=4, help="layers")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--vocabulary-to-width", type=int, default=31, help="LLaDA: 126464 / 4096")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the products")
    parser.add_argument("--repetitions", type=int, default=repetitions, help="timed, after one that compiles")
    parser.add_argument("--output", type=pathlib.Path, help="a JSON file for the cases")
    return parser


def model_of(arguments: argparse.Namespace) -> ModelConfig:
    product_rate(arguments.dtype)  # measured now, because PyTorch's threads will wait for work by spinning
    return ModelConfig(
        vocab_size=arguments.vocabulary_to_width * arguments.width,
        mask_id=MASK,
        eos_id=EOS,
        width=arguments.width,
        layers=arguments.depth,
        heads=arguments.heads,
        kv_heads=arguments.heads,
        mlp_width=3 * arguments.width,
        compute_dtype=arguments.dtype,
    )


class UpdateInputs(NamedTuple):
    """Inputs of a policy update."""

    params: Params  # the new policy at its start
    old: Params  # the policy that made the rollout
    reference: Params
    batch: GroupBatch
    cfg: ModelConfig
    objective: ObjectiveConfig
    adamw: OptimizerConfig


def one_device() -> Mesh:
    return Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), AXES)


def random_params(seed: int, cfg: ModelConfig) -> Params:
    return jax.jit(init, static_argnums=1)(jax.random.key(seed), cfg)


def exact():
    """Returns a context of exact float32 products, whose operands accelerators round by default."""
    return jax.default_matmul_precision("highest")


def compare(baseline, ours, repetitions: int) -> dict:
    """Returns `ratio_of` two functions, after one call each that compiles."""
    for function in (baseline, ours):
        jax.block_until_ready(function())
    return ratio_of(*seconds_in_turn((baseline, ours), repetitions))


def seconds_in_turn(functions: Sequence, repetitions: int) -> list[list[float]]:
    """Returns the seconds of each function's calls, which alternate, so that other load affects all of them."""
    seconds = [[] for _ in functions]
    for _ in range(repetitions):
        for function, of in zip(functions, seconds, strict=True):
            begin = time.perf_counter()
            jax.block_until_ready(function())
            of.append(time.perf_counter() - begin)
    return seconds


def processor() -> str:
    """Returns the name of this machine's CPU, its number of cores and its widest vector instructions, as far as Linux tells."""
    lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if sys.platform == "linux" else []
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    vectors = [name for name in ("avx512f", "avx2", "avx") if name in told.get("flags", "").split()]
    return ", ".join([told.get("model name") or platform.machine(), f"{os.cpu_count()} cores", *vectors[:1]])


@functools.cache
def product_rate(dtype: str, size: int = 2048) -> float:
    """Returns the FLOPs per second of a product of two square matrices: the best of ten calls on one device."""
    of = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(dtype))
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(of, of))
    return 2 * size**3 / min(seconds_in_turn([lambda: product(of, of)], 10)[0])


def ratio_of(baseline: list[float], ours: list[float]) -> dict:
    """Returns the median seconds and their ratio, and the range of ratios of adjacent calls: the noise of a busy machine."""
    ratios = [a / b for a, b in zip(baseline, ours, strict=True)]
    medians = statistics.median(baseline), statistics.median(ours)
    return {
        "seconds": medians[1],
        "baseline_seconds": medians[0],
        "ratio": medians[0] / medians[1],
        "ratio_range": [min(ratios), max(ratios)],
        "repetitions": len(ratios),
    }


def report(name: str, cfg: ModelConfig, measured: dict) -> dict:
    """Prints a case as one line of JSON and returns it.

    Args:
        measured: includes seconds, baseline (its name), tokens and model_flops (the minimum for the computation).
    """
    device, seconds, flops = jax.devices()[0].device_kind, measured["seconds"], measured["model_flops"]
    rate = product_rate(cfg.compute_dtype)
    versions = ("jax", "jaxlib", "flax", "optax", *["torch"] * ("torch" in sys.modules))
    shape = ("width", "layers", "heads", "mlp_width", "vocab_size", "compute_dtype")
    case = {
        "name": name,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": device,
        "devices": f"1 of {jax.device_count()}",
        "cpu": processor(),
        "versions": {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in versions},
        "model": {key: getattr(cfg, key) for key in shape},
        **measured,
        "tokens_per_second": measured["tokens"] / seconds,
        "flops_per_second": flops / seconds,
        "product_flops_per_second": rate,
        "limit_seconds": flops / rate,  # the same FLOPs at the rate of a large product
        "mfu": flops / seconds / CHIPS[device].flops if device in CHIPS else None,
    }
    print(json.dumps(case), flush=True)
    return case


def write_cases(cases: list[dict], output: pathlib.Path | None) -> None:
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(cases, indent=2) + "\n", encoding="utf-8")
