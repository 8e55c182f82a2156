"""Which GPUs LLaDA-8B trains on: for each task and each set of GPUs, the first settings of a list that fit into memory, and the
estimated time. `python benchmarks/plans.py --gpus` runs this and writes the table into BUILD.md."""

import dataclasses
import json
import pathlib
import runpy
from typing import Any

import jax
from jax.sharding import Mesh

from igpo_jax import config as configuration
from igpo_jax.model.sharding import shard_bytes
from igpo_jax.plan.advice import MOST
from igpo_jax.plan.devices import topology_devices
from igpo_jax.plan.programs import GIB, abstract_leaves, fitted, iteration_seconds, measure, programs
from igpo_jax.plan.text import table
from igpo_jax.runtime.checks import present
from igpo_jax.runtime.chips import device_memory_gib
from igpo_jax.runtime.mesh import make_mesh

ROOT = pathlib.Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "plan-gpus.json"
CARDS = {
    "1 x 24 GB": "rtx4090:1",
    "1 x 48 GB": "l40s:1",
    "1 x 80 GB": "h100:1",
    "8 x 40 GB": "a100-40gb:8",
    "8 x 80 GB": "h100:8",
    "8 x 141 GB": "h200:8",
}


@dataclasses.dataclass(frozen=True)
class Task:
    config: str
    programs: tuple[str, ...]  # that the task runs
    smaller: tuple[str, ...]  # overrides that need less and less memory and change only how batches are split
    adapters: bool = True  # then the frozen weights may be int8, on a single GPU


ROLLOUTS = ("cast", "sample", "inpaint", "score", "update", "evaluate")
SUPERVISED = ("sft", "cast", "heldout", "evaluate")
RL = ("", *(f"rl.rollout_chunks={n} rl.microbatches={n} evaluation.batch_size={512 // n}" for n in (16, 32, 64)))
SFT = ("", *(f"sft.microbatches={n} evaluation.batch_size={64 // n * 8}" for n in (8, 64)))
TASKS = {
    "RL, adapters": Task("math.py", ROLLOUTS, RL),
    "RL, all parameters": Task("math.py:full", ROLLOUTS, RL, adapters=False),
    "SFT, adapters": Task("sft_math.py", SUPERVISED, SFT),
    "SFT, all parameters": Task("sft_math.py:full", SUPERVISED, SFT, adapters=False),
    "generate": Task("math.py", ("evaluate",), ("evaluation.batch_size=8", "evaluation.batch_size=1")),
}


def load(task: Task, overrides: str) -> configuration.Config:
    """Reads a task's configuration and sets overrides such as "rl.microbatches=16 model.base_dtype=int8"."""
    name, _, variant = task.config.partition(":")
    values = runpy.run_path(str(ROOT / "configs" / name))["get_config"](*filter(None, [variant]))
    for override in overrides.split():
        key, _, value = override.partition("=")
        values.update_from_flattened_dict({key: int(value) if value.isdecimal() else value})
    return configuration.parse(values)


def settings(task: Task, devices: int) -> list[str]:
    """Returns the overrides to try, the fastest first."""
    tried = list(task.smaller)
    if task.adapters and devices == 1:
        tried += [f"{overrides} model.base_dtype=int8".strip() for overrides in task.smaller]
    return tried


def measure_task(task: Task, overrides: str, mesh: Mesh) -> dict[str, Any]:
    """Compiles a task's programs until one does not fit. Returns the largest need in GiB, whether all fit, and, if so, the
    programs' records."""
    config = load(task, overrides)
    run = fitted(config, mesh)
    config, model = run.config, run.model
    limit, records = MOST * device_memory_gib(mesh.devices.flat[0]), []
    wanted = [program for program in programs(run) if program.name in task.programs]
    # What is held without any temporary array; compiling the program would only add to it.
    held = max(shard_bytes({id(x): x for x in abstract_leaves((p.arguments, p.resident))}) for p in wanted) / GIB
    if held > limit:
        return {"overrides": overrides, "limit_gib": limit, "peak_gib": held, "fits": False, "attention": model.attention}
    for program in wanted:
        record = measure(program)
        if task.config == "math.py" and task.programs == ("evaluate",):  # a process that only generates holds nothing else
            record["peak_gib"] -= sum(record["resident_gib"].values())
        records.append(record)
        if record["peak_gib"] > limit:
            break
    peak = max(record["peak_gib"] for record in records)
    return {
        "overrides": overrides, "limit_gib": limit, "peak_gib": peak, "fits": peak <= limit, "attention": model.attention,
        "programs": records, "seconds": seconds(config, records),
    }  # fmt: skip


def seconds(config: configuration.Config, records: list[dict[str, Any]]) -> float:
    """Returns the estimated time of an RL iteration without second attempts, of a supervised update, or, if there is neither, of
    one batch of completions."""
    by_name = {record["name"]: record for record in records}
    if "sft" in by_name:
        return by_name["sft"]["estimated_seconds"]
    if "sample" not in by_name:
        return by_name["evaluate"]["estimated_seconds"] * config.evaluation.decode.blocks
    return present(iteration_seconds(records))


def compile_all() -> None:
    """Tries the settings of each task on each set of GPUs, and writes all attempts."""
    rows = []
    for name, task in TASKS.items():
        for cards, topology in CARDS.items():
            mesh = make_mesh(devices=topology_devices(topology, 1))
            attempts: list[dict[str, Any]] = []
            for overrides in settings(task, mesh.devices.size):
                attempts.append(measure_task(task, overrides, mesh))
                latest = attempts[-1]
                fits = "fits" if latest["fits"] else "does not fit"
                print(f"{name}, {cards}: {overrides or 'as configured'}: {latest['peak_gib']:.1f} GiB, {fits}", flush=True)
                if latest["fits"]:
                    break
            rows.append({"task": name, "config": task.config, "cards": cards, "topology": topology, "attempts": attempts})
            RESULT.write_text(json.dumps({"jax": jax.__version__, "rows": rows}, indent=1), encoding="utf-8")


def _seconds(seconds: float) -> str:
    return f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:.1f}"


def gpu_table() -> str:
    """Returns the Markdown table of the last attempts."""
    cells = []
    for row in json.loads(RESULT.read_text(encoding="utf-8"))["rows"]:
        last = row["attempts"][-1]
        need = f"{last['peak_gib']:.1f} of {last['limit_gib']:.1f}"
        if not last["fits"]:
            cells.append([row["task"], row["cards"], row["topology"], f"no: needs {need}", "", ""])
            continue
        overrides = " ".join(f"`--config.{override}`" for override in last["overrides"].split()) or "none"
        cells.append([row["task"], row["cards"], row["topology"], need, overrides, _seconds(last["seconds"])])
    return "\n".join(table(("LLaDA-8B", "GPUs", "planned for", "peak, GiB per GPU", "overrides", "est. s"), cells))
