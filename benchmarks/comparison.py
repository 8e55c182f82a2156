"""What the benchmarks share: a model's options, timing two ways of doing one thing, the result file."""

import argparse
import datetime
import importlib.metadata
import json
import pathlib
import platform
import statistics
import time

import jax
import numpy as np
from jax.sharding import Mesh

from igpo_jax.model.transformer import ModelConfig, Params, init
from igpo_jax.runtime.mesh import AXES

MASK, EOS = 1, 2


def parser_with_model(description: str) -> argparse.ArgumentParser:
    """Options of the network: LLaDA's proportions (MLP 3 x width, vocabulary 31 x width) unless told."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--depth", type=int, default=4, help="layers")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--vocabulary-to-width", type=int, default=31, help="LLaDA: 126464 / 4096")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the products")
    parser.add_argument("--repetitions", type=int, default=5, help="timed, after one that compiles")
    parser.add_argument("--output", type=pathlib.Path, help="a JSON file for the result")
    return parser


def model_of(arguments: argparse.Namespace) -> ModelConfig:
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


def one_device() -> Mesh:
    return Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), AXES)


def random_params(seed: int, cfg: ModelConfig) -> Params:
    return jax.jit(init, static_argnums=1)(jax.random.key(seed), cfg)


def exact():
    """Float32 products as they are written: accelerators round their operands by default."""
    return jax.default_matmul_precision("highest")


def compare(plain, fast, repetitions: int) -> dict:
    """Median seconds of two functions called in turn, after one call each that compiles, and their ratio.

    The range is that of the ratios of neighbouring calls: how much a busy machine moved them.
    """
    seconds = {plain: [], fast: []}
    for function in (plain, fast) * (repetitions + 1):
        begin = time.perf_counter()
        jax.block_until_ready(function())
        seconds[function].append(time.perf_counter() - begin)
    plain_seconds, fast_seconds = (seconds[function][1:] for function in (plain, fast))
    ratios = [a / b for a, b in zip(plain_seconds, fast_seconds, strict=True)]
    medians = statistics.median(plain_seconds), statistics.median(fast_seconds)
    return {
        "plain_seconds": medians[0],
        "seconds": medians[1],
        "ratio": medians[0] / medians[1],
        "ratio_range": [min(ratios), max(ratios)],
        "repetitions": repetitions,
    }


def report(what: str, cfg: ModelConfig, measured: dict, output: pathlib.Path | None) -> dict:
    """Prints sizes, versions and measurements, one a line, and writes them to `output`."""
    result = {
        "benchmark": what,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": jax.devices()[0].device_kind,
        "devices": f"1 of {jax.device_count()}",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")},
        "width": cfg.width,
        "depth": cfg.layers,
        "heads": cfg.heads,
        "mlp": cfg.mlp_width,
        "vocabulary": cfg.vocab_size,
        "dtype": cfg.compute_dtype,
        **measured,
    }
    for name, value in result.items():
        for inner, value in value.items() if isinstance(value, dict) else [("", value)]:
            print(f"{f'{name} {inner}':<30} {_short(value)}")
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(result, indent=2) + "\n")
    return result


def _short(value) -> str:
    if isinstance(value, list):
        return " to ".join(map(_short, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
