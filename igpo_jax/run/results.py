"""result.json: the final numbers of a run, with the data, decoding and environment that they depend on."""

import dataclasses
import json
import pathlib
import platform
import subprocess
from importlib import metadata
from typing import Any

import jax
import numpy as np

from igpo_jax.run.experiment import Experiment
from igpo_jax.run.metrics import read_rows
from igpo_jax.runtime.files import atomic_write
from igpo_jax.runtime.statistics import wilson

STAGES = ("sft", "rl")
EDGE_ROLLOUTS = 4  # rollouts averaged for the start and for the end of the RL stage
PACKAGES = ("igpo_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "sentencepiece", "numpy")


def accuracy_with_interval(accuracy: float, problems: int) -> dict[str, Any]:
    return {"accuracy": accuracy, "interval95": wilson(accuracy, problems), "problems": problems}


def environment() -> dict[str, Any]:
    """Returns devices, versions, and the commit of the package's repository (None outside of one)."""
    return {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "commit": _commit(),
    }


def _commit() -> str | None:
    here = pathlib.Path(__file__).parent
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True)
    except OSError:  # no git on this host
        return None
    return done.stdout.strip() or None


def decoding(experiment: Experiment) -> dict[str, Any]:
    """Returns the samplers of rollouts and of evaluations, and the keys in which they differ."""
    config = experiment.config
    rollout, evaluation = dataclasses.asdict(config.sampler), dataclasses.asdict(config.evaluation.decode)
    differences = [key for key in rollout if rollout[key] != evaluation[key]]
    return {"rollout": rollout, "evaluation": evaluation, "differences": differences}


def summarize(experiment: Experiment) -> dict[str, Any]:
    """Returns the contents of result.json, computed from the run's metrics.jsonl."""
    rows = read_rows(experiment.workdir / "metrics.jsonl")
    evaluations = {stage: [row for row in rows if row["stage"] == stage and "eval/accuracy" in row] for stage in STAGES}

    def accuracy(stage: str, index: int) -> dict[str, Any] | None:
        if not evaluations[stage]:
            return None
        row = evaluations[stage][index]
        return accuracy_with_interval(row["eval/accuracy"], int(row["eval/problems"]))

    result = {
        "task": experiment.config.task.name,
        "seed": experiment.config.seed,
        "inpainting": experiment.config.inpainting.enabled,
        "fingerprint": experiment.fingerprint,
        "data": experiment.data,
        "updates": max((row["step"] for row in rows), default=0),
        "after_sft": accuracy("sft", -1),
        "before_rl": accuracy("rl", 0),
        "after_rl": accuracy("rl", -1),
    }
    losses = [row["heldout/loss"] for row in rows if "heldout/loss" in row]
    if losses:
        result["heldout_loss"] = {"first": losses[0], "last": losses[-1]}
    rollouts = [row for row in rows if "reward/first_try" in row]
    if rollouts:
        result["rl_start"] = _rollout_means(rollouts[:EDGE_ROLLOUTS])
        result["rl_end"] = _rollout_means(rollouts[-EDGE_ROLLOUTS:])
    result["wall_seconds"] = {
        stage: sum(row.get("time/total", 0.0) for row in rows if row["stage"] == stage) for stage in STAGES
    }
    return result | {"decode": decoding(experiment)} | environment()


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
    """Returns the share of all-wrong groups in which hints led to a correct answer; None without such groups."""
    tried = [row for row in rollouts if row.get("hint/rescue_rate") is not None]
    groups = [row["groups/all_wrong_before"] for row in tried]
    if not sum(groups):
        return None
    return float(np.average([row["hint/rescue_rate"] for row in tried], weights=groups))


def write_result(experiment: Experiment) -> pathlib.Path:
    path = experiment.workdir / "result.json"
    atomic_write(path, json.dumps(summarize(experiment), indent=2))
    return path
