"""Writes result.json (the final numbers of a run, with the data, decoding settings and environment that they depend on), and
formats the lines that `train` prints at the start and at the end."""

import dataclasses
import json
import math
import pathlib
import platform
import subprocess
from importlib import metadata
from typing import Any

import jax
import numpy as np

from igpo_jax.config import without_new_keys
from igpo_jax.model.sharding import shard_bytes
from igpo_jax.model.transformer import abstract
from igpo_jax.run.experiment import Experiment
from igpo_jax.run.metrics import benchmark_accuracies, read_log
from igpo_jax.run.missing_files import log_sums
from igpo_jax.runtime.bucket_folders import address_of
from igpo_jax.runtime.files import atomic_write, read_json, wrap_read_errors
from igpo_jax.runtime.installation import path_from_here
from igpo_jax.runtime.progress import duration
from igpo_jax.runtime.statistics import interval_text, percent, wilson
from igpo_jax.training.policy import Policy

EDGE_ROLLOUTS = 4  # number of rollouts to average at the start of the RL stage, and at its end
PACKAGES = ("igpo_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "sentencepiece", "numpy")


def environment() -> dict[str, Any]:
    """Returns a dict that describes the devices, the operating system, the package versions, and the Git commit of this
    package. The commit is None if the package is not in a Git repository."""
    return {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "commit": _commit(),
    }


def _commit() -> str | None:
    command, here = ["git", "describe", "--always", "--dirty"], pathlib.Path(__file__).parent
    try:
        return subprocess.run(command, cwd=here, capture_output=True, encoding="utf-8").stdout.strip() or None
    except OSError:  # no git on this host
        return None


def decoding(experiment: Experiment) -> dict[str, Any]:
    """Returns a dict with the sampler settings of rollouts, the sampler settings of evaluations, and the names of the settings
    whose values differ between the two."""
    config = experiment.config
    rollout, evaluation = dataclasses.asdict(config.sampler.decode), dataclasses.asdict(config.evaluation.decode)
    differences = [key for key in rollout if rollout[key] != evaluation[key]]
    settings = {"rollout": without_new_keys(rollout), "evaluation": without_new_keys(evaluation)}
    return settings | {"differences": differences}


def summarize(experiment: Experiment) -> dict[str, Any]:
    """Returns the contents of result.json, computed from the run's metrics.jsonl and configuration."""
    file = experiment.workdir / "metrics.jsonl"
    rows = read_log(file)
    with wrap_read_errors(file):
        logged = _logged(rows)
    result = {
        "task": experiment.config.task.name,
        "seed": experiment.config.seed,
        "inpainting": experiment.config.inpainting.enabled,
        "attention": experiment.model.attention,
        "layout": experiment.config.sampler.layout,
        "base_copy_stays": experiment.base_copy_stays,
        "rollout_chunks": experiment.config.rl.rollout_chunks,
        "microbatches": experiment.config.rl.microbatches,
        "fingerprint": experiment.fingerprint,
        "data": experiment.data,
        "base": experiment.files if experiment.config.model.path else {},
        "logs": log_sums(experiment.workdir),
    }
    data = experiment.workdir / "data.json"
    if code := read_json(data).get("code") if data.is_file() else None:  # more than one hash of a module: it changed in the run
        result["code"] = code
    return result | logged | {"decode": decoding(experiment)} | environment()


def _logged(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the part of result.json that is computed from the lines of metrics.jsonl."""

    def accuracy(stage: str, index: int) -> dict[str, Any] | None:
        evaluations = [row for row in rows if row["stage"] == stage and "eval/accuracy" in row]
        if not evaluations:
            return None
        row = evaluations[index]
        share, problems = row["eval/accuracy"], int(row["eval/problems"])
        benchmarks = {name: row[metric] for name, metric in benchmark_accuracies(row).items()}
        found = {"accuracy": share, "interval95": wilson(share, problems), "problems": problems}
        return found | ({"benchmarks": benchmarks} if benchmarks else {})

    result: dict[str, Any] = {
        "updates": max((row["step"] for row in rows), default=0),
        "after_sft": accuracy("sft", -1),
        "before_rl": accuracy("rl", 0),
        "after_rl": accuracy("rl", -1),
    }
    losses = [row["heldout/loss"] for row in rows if row.get("heldout/loss") is not None]  # None: not finite
    if losses:
        result["heldout_loss"] = {"first": losses[0], "last": losses[-1]}
    rollouts = [row for row in rows if "reward/first_try" in row]
    if rollouts:
        result["rl_start"] = _rollout_means(rollouts[:EDGE_ROLLOUTS])
        result["rl_end"] = _rollout_means(rollouts[-EDGE_ROLLOUTS:])
    seconds = {stage: sum(row.get("time/total", 0.0) for row in rows if row["stage"] == stage) for stage in ("sft", "rl")}
    return result | {"wall_seconds": seconds}


def _rollout_means(rollouts: list[dict[str, Any]]) -> dict[str, Any]:
    def mean(name: str) -> float | None:
        values = [row[name] for row in rollouts if row.get(name) is not None]
        return float(np.mean(values)) if values else None

    return {
        "rollouts": len(rollouts),
        "all_wrong_groups": mean("groups/all_wrong_before"),
        "all_wrong_groups_after_rescue": mean("groups/all_wrong_after"),
        "rescue_rate": rescue_rate(rollouts),
        "reward_first_try": mean("reward/first_try"),
    }


def rescue_rate(rollouts: list[dict[str, Any]]) -> float | None:
    """Returns the share of all-wrong groups that were rescued, which means that a second attempt with hints gave a correct
    completion. A group consists of the completions of one problem in a rollout. It is all-wrong if none of them is correct.
    `rollouts` are rows of metrics.jsonl. Rows without a rescue rate or without a share of all-wrong groups are left out.
    Returns None if the remaining rows have no all-wrong groups."""
    keys = "hint/rescue_rate", "groups/all_wrong_before"
    tried = [row for row in rollouts if all(row.get(key) is not None for key in keys)]
    groups = [row["groups/all_wrong_before"] for row in tried]
    return float(np.average([row["hint/rescue_rate"] for row in tried], weights=groups)) if sum(groups) else None


def write_result(experiment: Experiment) -> pathlib.Path:
    path = experiment.workdir / "result.json"
    atomic_write(path, json.dumps(summarize(experiment), indent=2))
    return path


def first_lines(experiment: Experiment) -> list[str]:
    """Returns lines that describe a run: its stages, its devices, the settings that were chosen for these devices, and the
    number of token ids that the sampler never draws."""
    config, model = experiment.config, experiment.model
    sft, rl = config.sft, config.rl
    stages = [f"{sft.updates:,} supervised updates of {sft.batch_size} solutions"] * (sft.updates > 0)
    stages += [f"{rl.iterations:,} RL iterations of {rl.prompts} x {rl.group_size} completions"] * (rl.iterations > 0)
    parameters = sum(math.prod(x.shape) for x in jax.tree.leaves(abstract(model, experiment.mesh)))
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}, processes: {jax.process_count()}"
    copy = shard_bytes(Policy(model, config.lora).abstract_for_sampling(experiment.sampling_mesh)) / 2**30
    layout = f"{config.sampler.layout} on {dict(experiment.sampling_mesh.shape)} with {copy:.2g} GiB of weights per device"
    layout += " (the copy of the frozen ones stays)" * experiment.base_copy_stays
    chosen = f"chosen: attention: {model.attention}; sampler.layout: {layout}; chunks of a rollout: {rl.rollout_chunks}; "
    return [
        f"{shown_path(experiment.workdir)}: {parameters:,} parameters; {'; '.join(stages)}",
        f"devices: {devices}",
        f"{chosen}microbatches: {rl.microbatches}",
        f"never drawn: MASK and {model.excluded} of {model.vocab_size} ids, which have no text",
    ]


def shown_path(workdir: pathlib.Path) -> str:
    """Returns the address of a run in a bucket, or the path of the folder of a local run. The path is relative if the folder is
    inside the working folder."""
    shown = path_from_here(workdir)
    return address_of(workdir) if shown.is_absolute() else str(shown)


def result_lines(result: dict[str, Any]) -> list[str]:
    """Returns the main numbers of a result.json as lines of text."""
    before, after = (result.get(name) for name in ("before_rl", "after_rl"))
    last = after or result.get("after_sft")
    lines = []
    if last:
        problems = f"accuracy on {last['problems']:,} test problems"
        change = f"{percent(before['accuracy'])} -> " if before and after else "after the supervised stage "
        lines.append(f"{problems}: {change}{percent(last['accuracy'])} ({interval_text(last['interval95'])})")
        earlier = before.get("benchmarks", {}) if before and after else {}
        for name, share in last.get("benchmarks", {}).items():
            change = f"{percent(earlier[name])} -> " if name in earlier else "" if after else "after the supervised stage "
            lines.append(f"accuracy on {name}: {change}{percent(share)}")
    if loss := result.get("heldout_loss"):
        lines.append(f"held-out loss: {loss['first']:.3f} -> {loss['last']:.3f}")
    start, end = (result.get(edge, {}).get("all_wrong_groups") for edge in ("rl_start", "rl_end"))
    if start is not None and end is not None:
        rescued = result["rl_start"]["rescue_rate"]
        hints = "" if rescued is None else f"; hints rescued {percent(rescued)} of the first ones"
        rollouts = f"of the first and last {result['rl_start']['rollouts']} rollouts"
        lines.append(f"all-wrong groups {rollouts}: {percent(start)} -> {percent(end)}{hints}")
    names = {"sft": "supervised stage", "rl": "RL"}
    spent = [f"{names[stage]} {duration(seconds)}" for stage, seconds in result["wall_seconds"].items() if seconds]
    return [*lines, f"time: {', '.join(spent) or 'no update'}"]
