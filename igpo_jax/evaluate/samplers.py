"""Compares a cached or parallel sampler with the exact sampler in accuracy, logits and cost. Both samplers get the same
problems and the same noise."""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from igpo_jax.api import DiffusionLM
from igpo_jax.data.pipeline import cut_to_bucket, take_rows
from igpo_jax.diffusion.batches import Batching, Requests, complete
from igpo_jax.diffusion.sampler_error import sampler_error
from igpo_jax.diffusion.unmasking import DecodeConfig, exact_sampler
from igpo_jax.evaluate.benchmark import correct_of, prompts_of, run_benchmark
from igpo_jax.evaluate.protocol import decode_config
from igpo_jax.run.metrics import read_rows
from igpo_jax.runtime.checks import require
from igpo_jax.runtime.distributed import raise_on_all_hosts
from igpo_jax.runtime.files import is_inside
from igpo_jax.runtime.mesh import batch_size_divisor
from igpo_jax.runtime.statistics import paired
from igpo_jax.tasks.problem import Problem

PROBED = 64  # problems on which logits, network evaluations and FLOPs are compared


def compare_samplers(
    model: DiffusionLM, config: ConfigDict, name: str, problems: Sequence[Problem], folder: pathlib.Path
) -> dict[str, Any]:
    """Runs a benchmark with the exact sampler and with the fast (cached or parallel) sampler, and compares the results. Writes
    the completions into the folders `folder`/exact and `folder`/fast.

    Returns:
        accuracy: the comparison of the accuracy of the fast sampler with that of the exact sampler (see `paired`).
        changed_texts: the share of completions whose text differs between the samplers.
        logits: the errors of the cached logits (see `sampler_error`), or None if the fast sampler has no cache.
        exact, fast: for each sampler, the number of network evaluations and of FLOPs per completion.

    Processes other than 0 return only logits, exact and fast."""
    samplers = {"exact": exact_sampler(decode_config(config, name)), "fast": decode_config(config, name)}
    for which, decode in samplers.items():
        with raise_on_all_hosts():
            if jax.process_index() == 0:  # a run's folder may come from a stranger
                require(is_inside(folder / which, folder), f"{folder / which} leads out of {folder}; remove this link")
                (folder / which).mkdir(exist_ok=True)
        changed = config.copy_and_resolve_references()
        changed.decode.update({key: getattr(decode, key) for key in changed.decode})
        run_benchmark(model, changed, name, problems, folder / which)
    found = _on_a_few(model, config, problems, samplers)
    if jax.process_index() > 0:
        return found  # only process 0, which wrote the rows, is sure to see them
    rows = [read_rows(folder / which / f"{name}.jsonl") for which in samplers]
    texts = [[completion["text"] for row in sampled for completion in row["completions"]] for sampled in rows]
    changed_texts = float(np.mean([one != other for one, other in zip(*texts, strict=True)]))
    return {"accuracy": paired(*map(correct_of, rows)), "changed_texts": changed_texts, **found}


def _on_a_few(model: DiffusionLM, config: ConfigDict, problems, samplers: dict[str, DecodeConfig]) -> dict[str, Any]:
    """Returns the number of network evaluations and FLOPs per completion of each sampler, and the error of the logits that are
    computed with a cache. Uses only the first `PROBED` problems."""
    divisor, prompts = batch_size_divisor(model.mesh), prompts_of(model, config, problems[:PROBED])
    number = -(-len(prompts.tokens) // divisor) * divisor
    prompts = take_rows(prompts, np.arange(number) % len(prompts.tokens))
    requests = Requests.blank(prompts, np.zeros(number, np.uint32), model.config, samplers["fast"])
    batching = Batching(model.mesh, number, config.prompt_buckets, shortest_first=False)
    found: dict[str, Any] = {}
    with jax.set_mesh(model.mesh):
        key = jax.random.key(config.seed)
        for which, decode in samplers.items():
            [(_, done)] = complete(model.params, requests, key, model.config, decode, batching)
            found[which] = {"evaluations": done.rows_evaluated / number, "flops": done.flops / number}
        found["logits"] = None
        if samplers["fast"].cache != "none":
            rows = cut_to_bucket(requests, config.prompt_buckets).placed(key, 0, model.mesh)
            found["logits"] = sampler_error(model.params, *rows, model.config, samplers["fast"])
    return found
