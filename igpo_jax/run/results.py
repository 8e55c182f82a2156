"""result.json: the numbers that a run ends with, and what is needed to judge them."""

import dataclasses
import json
import pathlib
import platform
import subprocess
from importlib import metadata

import jax
import numpy as np

from igpo_jax.run.experiment import Experiment
from igpo_jax.run.metrics import read_rows
from igpo_jax.runtime.files import atomic_write
from igpo_jax.runtime.statistics import wilson

STAGES = ("sft", "rl")
START = 4  # rollouts that count as the start of the RL stage
PACKAGES = ("igpo_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "sentencepiece", "numpy")


def accuracy_with_interval(accuracy: float, problems: int) -> dict:
    return {"accuracy": accuracy, "interval95": wilson(accuracy, problems), "problems": problems}


def environment() -> dict:
    """Device and versions; the commit of the package's repository, where it is one."""
    device = jax.devices()[0]
    return {
        "device": f"{jax.device_count()} x {device.device_kind}",
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
    except OSError:  # no git here
        return None
    return done.stdout.strip() or None


def decoding(experiment: Experiment) -> dict:
    """How rollouts and evaluations decode, and in which keys the two differ."""
    rollout, evaluation = (
        dataclasses.asdict(decode) for decode in (experiment.settings.rollout_decode, experiment.settings.eval_decode)
    )
    differences = [key for key in rollout if rollout[key] != evaluation[key]]
    return {"rollout": rollout, "evaluation": evaluation, "differences": differences}


def summarise(experiment: Experiment) -> dict:
    """The run's numbers, from its own log."""
    rows = read_rows(experiment.workdir / "metrics.jsonl")
    evaluations = {stage: [row for row in rows if row["stage"] == stage and "eval/accuracy" in row] for stage in STAGES}
    rollouts = [row for row in rows if "reward/first_try" in row]

    def mean(rows, name):
        values = [row[name] for row in rows if row.get(name) is not None]
        return float(np.mean(values)) if values else None

    def accuracy_of(row):
        return accuracy_with_interval(row["eval/accuracy"], int(row["eval/problems"]))

    result = {
        "task": experiment.settings.task.name,
        "seed": experiment.settings.seed,
        "inpainting": experiment.settings.inpainting.enabled,
        "fingerprint": experiment.fingerprint,
        "data": experiment.data,
        "updates": max((row["step"] for row in rows), default=0),
        "after_sft": accuracy_of(evaluations["sft"][-1]) if evaluations["sft"] else None,
        "before_rl": accuracy_of(evaluations["rl"][0]) if evaluations["rl"] else None,
        "after_rl": accuracy_of(evaluations["rl"][-1]) if evaluations["rl"] else None,
    }
    losses = [row["heldout/loss"] for row in rows if "heldout/loss" in row]
    if losses:
        result["heldout_loss"] = {"first": losses[0], "last": losses[-1]}
    if rollouts:
        for name, part in (("rl_start", rollouts[:START]), ("rl_end", rollouts[-START:])):
            result[name] = {
                "rollouts": len(part),
                "all_wrong_groups": mean(part, "groups/all_wrong_before"),
                "all_wrong_groups_after_rescue": mean(part, "groups/all_wrong_after"),
                "rescue_rate": rescue_rate(part),
                "reward_first_try": mean(part, "reward/first_try"),
            }
    result["wall_seconds"] = {
        stage: sum(row.get("time/total", 0.0) for row in rows if row["stage"] == stage) for stage in STAGES
    }
    return result | {"decode": decoding(experiment)} | environment()


def rescue_rate(rollouts: list[dict]) -> float | None:
    """Of all groups that were all wrong, the share in which hints led to a right answer; None where there was none."""
    tried = [row for row in rollouts if row.get("hint/rescue_rate") is not None]
    groups = [row["groups/all_wrong_before"] for row in tried]
    if not sum(groups):
        return None
    return float(np.average([row["hint/rescue_rate"] for row in tried], weights=groups))


def write_result(experiment: Experiment) -> pathlib.Path:
    path = experiment.workdir / "result.json"
    atomic_write(path, json.dumps(summarise(experiment), indent=2))
    return path
