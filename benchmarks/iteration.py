"""Estimates an RL iteration of math.py on several topologies, as in version 0.1.0 and now, without and with a cache.

    python benchmarks/iteration.py v5e:2x4 v5e:4x4 v5p:2x2x4 v6e:2x4    # needs the extra "tpu"
    python benchmarks/iteration.py h100:8 h100:1                        # needs the extra "plan-gpu"
    python benchmarks/iteration.py rtx4090:1 --variants=int8            # adapters of a frozen model in int8
    python benchmarks/iteration.py --table

Prompts are as long as those of GSM8K and MATH. Version 0.1.0 padded all prompts to 640 tokens, sampled in 8 chunks, and gathered
the weights in every evaluation of the network. Compiles the sampler, the scores and the update for the largest bucket; rollouts
take the share of it that `plan.tune.rollout_seconds` estimates. If sampling exchanges data, also compiles the sampler for the
smallest bucket: the bytes of an exchange grow linearly with the prompt length. Results are added to results/iteration.json.
"""

import argparse
import dataclasses
import json
import operator
import pathlib
import runpy

import numpy as np

from igpo_jax import config as configuration
from igpo_jax.data.buckets import DEFAULT_LENGTHS, read_lengths
from igpo_jax.plan.advice import MOST
from igpo_jax.plan.devices import topology_devices
from igpo_jax.plan.programs import Fitted, fitted, measure, program_of
from igpo_jax.plan.text import table
from igpo_jax.plan.tune import rollout_seconds
from igpo_jax.run.layout import rollout_loads
from igpo_jax.runtime.chips import device_memory_gib
from igpo_jax.runtime.mesh import make_mesh

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "iteration.json"
LENGTHS = read_lengths(DEFAULT_LENGTHS)
BEFORE = {"data.prompt_buckets": (640,), "rl.rollout_chunks": 8, "sampler.layout": "train", "evaluation.batch_size": 64}
CACHED = {"sampler.cache": "dual", "sampler.commit": "threshold"}
LITTLE = 1e6  # bytes per block, such as seeds and flags
SETTINGS = {"before": BEFORE, "exact": {}, "before cached": BEFORE | CACHED, "cached": CACHED}


def fitted_run(topology: str, variant: str, changes: dict) -> Fitted:
    frozen = {"model.base_dtype": "int8"} if variant == "int8" else {}
    values = runpy.run_path(str(ROOT / "configs" / "math.py"))["get_config"]("lora" if frozen else variant)
    values.update_from_flattened_dict(changes | frozen)
    config = configuration.parse(values)
    return fitted(config, make_mesh(**vars(config.mesh), devices=topology_devices(topology, 1)), LENGTHS)


def received_bytes(run: Fitted, largest: dict) -> float:
    """Returns the bytes that a device receives in a rollout. `largest` is the record of the sampler for the largest bucket."""
    config = run.config
    ends, received = config.data.prompt_buckets[-1:], [sum(largest["received_bytes"].values())]
    if len(config.data.prompt_buckets) > 1 and received[0] > LITTLE:
        smallest = dataclasses.replace(config.data, prompt_buckets=config.data.prompt_buckets[:1])
        small = measure(program_of(run._replace(config=dataclasses.replace(config, data=smallest)), "sample"))
        ends, received = (*smallest.prompt_buckets, *ends), [sum(small["received_bytes"].values()), *received]
    length, blocks = config.sampler.completion_length, config.sampler.blocks
    loads = rollout_loads(config, config.rl.rollout_chunks, LENGTHS)
    return sum(times * blocks * np.interp(load.positions - length, ends, received) for load, times in loads)


def estimate(run: Fitted, changes: dict, rest: list[dict]) -> dict:
    """Estimates an iteration, given the records of the scores and the update, which do not depend on `changes`."""
    record, rl = measure(program_of(run, "sample")), run.config.rl
    peak, memory = max(each["peak_gib"] for each in (record, *rest)), device_memory_gib(run.mesh.devices.flat[0])
    if peak > MOST * memory:
        return {"peak_gib": peak, "memory_gib": memory, "fits": False}
    seconds = [rollout_seconds(run, record, LENGTHS), *(each["per_iteration"] * each["estimated_seconds"] for each in rest)]
    shares = [each["communication_share"] for each in (record, *rest)]
    return {
        "seconds": sum(seconds),
        "rollout_seconds": seconds[0],
        "communication_share": sum(map(operator.mul, seconds, shares)) / sum(seconds),
        "received_gb": received_bytes(run, record) / 1e9,
        "peak_gib": peak,
        "memory_gib": memory,
        "fits": True,
        "layout": run.config.sampler.layout,
        "sampling_mesh": dict(run.sampling_mesh.shape),
        "chunks": rl.rollout_chunks,
        "settings": {name: str(value) for name, value in changes.items()},
    }


def cells(case: dict, before: dict, same: dict) -> list[str]:
    """Returns a case's cells: seconds, share of the seconds of `before`, share of communication, reduction of the bytes of
    `same`, layout and peak memory. `same` is the case of version 0.1.0 with the same sampler."""
    peak = f"{case['peak_gib']:.1f} of {case['memory_gib']:.1f}"
    if not case["fits"]:
        return ["does not fit", "", "", "", "", peak]
    layout = f"{case['layout']}{' of ' + str(case['sampling_mesh']['tensor']) if case['layout'] == 'tensor' else ''}"
    few = case["received_gb"] < 1
    fewer = same["fits"] and not few and same["received_gb"] / case["received_gb"]
    return [
        f"{case['seconds']:.0f}",
        f"{case['seconds'] / before['seconds']:.2f}" if before["fits"] else "",
        f"{case['communication_share']:.0%}",
        "none left" if few else f"{fewer:.1f}x" if fewer else "",
        f"{layout}, {case['chunks']} chunks",
        peak,
    ]


def rows(results: dict) -> list[str]:
    columns = ("s", "of before", "comm.", "bytes", "layout", "peak GiB")
    parts = [f"{key} {column}" for key in ("now", "cached") for column in columns]
    lines = []
    for name, cases in sorted(results.items()):
        before = cases["before"]
        old, exact, cached = (
            cells(cases[now], before, cases[same])
            for now, same in (("before", "before"), ("exact", "before"), ("cached", "before cached"))
        )
        lines.append([name, old[0], old[2], *exact, *cached])
    return table(("topology, variant", "before s", "before comm.", *parts), lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("topologies", nargs="*")
    parser.add_argument("--variants", default="lora,full")
    parser.add_argument("--table", action="store_true", help="print the table of the results and compile nothing")
    arguments = parser.parse_args()
    for topology in arguments.topologies:
        for variant in arguments.variants.split(","):
            runs = {name: fitted_run(topology, variant, changes) for name, changes in SETTINGS.items()}
            rest = [measure(program_of(runs["exact"], name)) for name in ("score", "update")]
            found = {name: estimate(run, SETTINGS[name], rest) for name, run in runs.items()}
            results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
            RESULTS.write_text(json.dumps(results | {f"{topology} {variant}": found}, indent=2) + "\n", encoding="utf-8")
            print(
                f"{topology} {variant}", {name: case.get("seconds", "does not fit") for name, case in found.items()}, flush=True
            )
    if arguments.table:
        print("\n".join(rows(json.loads(RESULTS.read_text(encoding="utf-8")))))


if __name__ == "__main__":
    main()
