"""Measures the traffic of a run whose folder is in a bucket, and what checkpoints to a slow bucket cost. Needs the extra test.

    JAX_PLATFORMS=cpu PYTHONPATH=tests/helpers python benchmarks/buckets.py [--output=FILE]

The bucket is an emulator of Google Cloud Storage in this process, which counts requests and bytes and limits the speed. Runs are
separate processes that train an own model with random weights by supervised training. The traffic of a checkpoint is the difference
between runs with more and fewer checkpoints.
"""

import argparse
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

import jax
from jax.sharding import Mesh

import comparison
from igpo_jax.run.metrics import read_rows
from igpo_jax.weights.folders import load_params
from igpo_jax.weights.huggingface import folder_model_config
from model_folders import write_folder
from storage_emulator import Network, storage_emulator

ROOT = pathlib.Path(__file__).parents[1]
SLOW = 10e6  # bytes per second
UPDATES = 60


def weights(network: Network, files, mesh: Mesh, folder: pathlib.Path) -> dict:
    """Reads a model of about 100 MB from the bucket."""
    cfg = comparison.model_of(argparse.Namespace(width=512, depth=4, heads=8, vocabulary_to_width=31, dtype="float32"))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(write_folder(folder / "model", mesh, cfg, dtype="float32")))
    files.put(str(folder / "model"), "gs://team/model", recursive=True)
    before, requests = network.downloaded, network.requests.total()
    load_params("gs://team/model", folder_model_config("gs://team/model", param_dtype="float32"), mesh)
    read = network.downloaded - before
    return {
        "name": "weights",
        "bytes": size,
        "read": read,
        "ratio": read / size,
        "requests": network.requests.total() - requests,
    }


def train(network: Network, environment: dict[str, str], name: str, every: int, layers: int, rows: int) -> dict:
    """Runs supervised training with a checkpoint every `every` updates. Returns its traffic and its seconds per update."""
    network.requests.clear()
    network.received = network.downloaded = network.listed = 0
    sizes = {"model.width": 512, "model.mlp_width": 1536, "model.layers": layers, "rl.iterations": 0, "sft.eval_every": 0}
    sizes |= {"sft.updates": UPDATES, "sft.batch_size": rows, "sft.checkpoint_every": every, "sft.heldout": 0}
    flags = [f"--config.{key}={value}" for key, value in sizes.items()]
    command = [sys.executable, "-m", "igpo_jax.train", "--config=arithmetic.py", f"--workdir=gs://team/{name}", *flags]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    log = pathlib.Path(environment["XDG_CACHE_HOME"], "igpo_jax/bucket_runs/process-0/team", name, "metrics.jsonl")
    traffic = {
        "requests": network.requests.total(),
        "lists": sum(n for (_, kind), n in network.requests.items() if kind == "list"),
    }
    traffic |= {"written": network.received, "read": network.downloaded, "listed": network.listed}
    return traffic | {"seconds": statistics.median(row["time/step"] for row in read_rows(log) if "time/step" in row)}


def main(argv: list[str] | None = None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3, help="of the runs that are timed")
    parser.add_argument("--output", type=pathlib.Path, help="a JSON file for the results")
    arguments = parser.parse_args(argv)
    network, cases = Network(), []
    with tempfile.TemporaryDirectory() as scratch, storage_emulator(network) as address:
        os.environ |= {"STORAGE_EMULATOR_HOST": address, "TENSORSTORE_GCS_HTTP_URL": address}
        os.environ |= {"GOOGLE_AUTH_TOKEN_FOR_TESTING": "anon", "XDG_CACHE_HOME": scratch}
        from igpo_jax.runtime.buckets import filesystem

        cases.append(weights(network, filesystem(), comparison.one_device(), pathlib.Path(scratch)))
        environment = dict(os.environ)
        few, more, most = (train(network, environment, f"every-{every}", every, layers=8, rows=32) for every in (20, 12, 6))
        cases.append({"name": "start, three checkpoints and end"} | few)
        # From the third checkpoint on, each save deletes an old one.
        for name, one, other, number in (("checkpoints 4 and 5", few, more, 2), ("checkpoints 6 to 10", more, most, 5)):
            cases.append(
                {"name": f"each of {name}"} | {key: (other[key] - one[key]) / number for key in one if key != "seconds"}
            )

        seconds: dict[str, list[float]] = {"without": [], "with": []}
        for turn in range(arguments.repetitions):
            for kind, every in (("without", UPDATES), ("with", 20)):
                network.bytes_per_second = math.inf if kind == "without" else SLOW
                seconds[kind].append(train(network, environment, f"{kind}-{turn}", every, layers=1, rows=256)["seconds"])
        medians = {kind: statistics.median(values) for kind, values in seconds.items()}
        ratio = medians["with"] / medians["without"]
        cases.append({"name": "update with checkpoints at 10 MB/s", "seconds": medians["with"], "baseline": "one checkpoint at the end",
                      "baseline_seconds": medians["without"], "ratio": ratio})  # fmt: skip
    for case in cases:
        print(json.dumps(case), flush=True)
    comparison.write_cases(cases, arguments.output)
    return cases


if __name__ == "__main__":
    main()
