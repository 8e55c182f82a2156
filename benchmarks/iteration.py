"""Estimates the rollouts of an iteration of math.py on several topologies: as in version 0.1.0, as now, and with a cache.

    python benchmarks/iteration.py v5e:2x4 v5e:4x4 v5p:2x2x4 v6e:2x4    # needs the extra "tpu"
    python benchmarks/iteration.py h100:8 h100:1                        # needs the extra "plan-gpu"
    python benchmarks/iteration.py --table

Prompts are as long as those of GSM8K and MATH. Version 0.1.0 padded all prompts to 640 tokens, sampled in 8 chunks, and gathered
the weights in every evaluation of the network. Compiles the sampler for the largest bucket, see `plan.tune.rollout_seconds`. Each
topology's results are added to results/iteration.json.
"""

import argparse
import json
import pathlib
import runpy

from igpo_jax import config as configuration
from igpo_jax.data.buckets import DEFAULT_LENGTHS, read_lengths
from igpo_jax.plan.__main__ import table
from igpo_jax.plan.devices import topology_devices
from igpo_jax.plan.programs import fitted, measure, program_of
from igpo_jax.plan.tune import rollout_seconds
from igpo_jax.runtime.mesh import make_mesh

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "iteration.json"
SETTINGS = {
    "before": {"data.prompt_buckets": (640,), "rl.rollout_chunks": 8, "sampler.layout": "train", "evaluation.batch_size": 64},
    "exact": {},
    "cached": {"sampler.cache": "dual", "sampler.commit": "threshold"},
}


def estimate(topology: str, variant: str, changes: dict) -> dict:
    values = runpy.run_path(str(ROOT / "configs" / "math.py"))["get_config"](variant)
    values.update_from_flattened_dict(changes)
    config, lengths = configuration.parse(values), read_lengths(DEFAULT_LENGTHS)
    run = fitted(config, make_mesh(**vars(config.mesh), devices=topology_devices(topology, 1)), lengths)
    record = measure(program_of(run, "sample"))
    received = sum(record.get("received_bytes", {}).values()) * run.config.rl.rollout_chunks * run.config.sampler.blocks
    return {
        "seconds": rollout_seconds(run, record, lengths),
        "communication_share": record.get("communication_share"),
        "received_gb": received / 1e9,  # if all prompts fill the largest bucket
        "peak_gib": record["peak_gib"],
        "layout": run.config.sampler.layout,
        "sampling_mesh": dict(run.sampling_mesh.shape),
        "chunks": run.config.rl.rollout_chunks,
        "settings": {name: str(value) for name, value in changes.items()},
    }


def rows(results: dict) -> list[str]:
    lines = []
    for name, cases in results.items():
        before = cases["before"]
        cells = [name, f"{before['seconds']:.0f}", f"{before['communication_share']:.0%}"]
        for key in ("exact", "cached"):
            case = cases[key]
            shared = case["sampling_mesh"]["tensor"]
            cells += [f"{case['seconds']:.0f}", f"{case['seconds'] / before['seconds']:.2f}"]
            cells += [
                f"{case['communication_share']:.0%}",
                f"{before['received_gb'] / case['received_gb']:.1f}x" if case["received_gb"] else "none left",
            ]
            cells += [f"{case['layout']}" + f" of {shared}" * (case["layout"] == "tensor") + f", {case['chunks']} chunks"]
            cells += [f"{case['peak_gib']:.1f}"]
        lines.append(cells)
    parts = [
        f"{key} {column}"
        for key in ("exact", "cached")
        for column in ("s", "of before", "comm.", "fewer bytes", "layout", "peak GiB")
    ]
    return table(("topology, variant", "before s", "before comm.", *parts), lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("topologies", nargs="*")
    parser.add_argument("--variants", default="lora,full")
    parser.add_argument("--table", action="store_true", help="print the table of the results and compile nothing")
    arguments = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for topology in arguments.topologies:
        for variant in arguments.variants.split(","):
            found = {name: estimate(topology, variant, changes) for name, changes in SETTINGS.items()}
            results[f"{topology} {variant}"] = found
            RESULTS.write_text(json.dumps(results, indent=2) + "\n")
            print(f"{topology} {variant}", {name: round(case["seconds"], 1) for name, case in found.items()}, flush=True)
    if arguments.table:
        print("\n".join(rows(results)))


if __name__ == "__main__":
    main()
