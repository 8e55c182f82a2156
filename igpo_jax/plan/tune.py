"""Finds settings that fit into memory and for which an RL iteration is estimated to be fastest (`plan --tune`).

Changes only settings that do not affect what a run computes, unless approximate samplers are allowed. Ranks the combinations of
sampler settings by the estimates of run/layout.py, and compiles the sampler for the few best combinations. Also compiles the
update with each value of model.remat."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from igpo_jax.config import Config
from igpo_jax.plan.advice import MOST, remat_choice
from igpo_jax.plan.programs import GIB, Fitted, Report, fitted, measure, program_of
from igpo_jax.run.layout import Choice, rollout_loads, sampling_choices, sampling_seconds
from igpo_jax.run.microbatch_choice import training_share
from igpo_jax.runtime.checks import require
from igpo_jax.runtime.chips import CHIPS, device_memory_gib
from igpo_jax.runtime.mesh import batch_size_divisor

COMPILED = 3  # number of ways to sample that are compiled


class Way(NamedTuple):
    """A candidate for the sampler settings. `config` is the run's configuration with the candidate's layout, number of chunks
    and cache. `choice` contains the estimated time and memory."""

    config: Config
    choice: Choice


def tune(config: Config, mesh: Mesh, lengths: np.ndarray | None, approximate: bool, report: Report) -> dict[str, Any]:
    """Finds the fastest settings. `lengths`, int [n], are prompt lengths in tokens, see `rollout_loads`. If `approximate` is
    True, cached samplers are also tried. Calls `report` with a line of text before each compilation. Raises ValueError if there
    is no RL stage, if the chip is unknown, or if no settings fit into memory.

    Returns:
        A dict: `overrides` are the command-line flags that select the fastest settings. `before` and `after` are the estimated
        seconds that each part of an iteration (rollout, score and update) takes without and with these flags. `fits_before` is
        True if the run fits into memory without the flags. `rejected` are the reasons why other settings were rejected."""
    require(config.rl.iterations > 0, "--tune is for the RL stage, and rl.iterations is 0")
    kind = mesh.devices.flat[0].device_kind
    require(kind in CHIPS, f"--tune needs a known chip, not {kind}")
    rejected: list[str] = []
    before = fitted(config, mesh, lengths)
    start = {name: _measured(before, name, report) for name in ("sample", "score", "update")}
    limit = MOST * device_memory_gib(mesh.devices.flat[0])
    rollout = rollout_seconds(before, start["sample"], lengths)
    rest = {name: _seconds(before, start[name], lengths) for name in ("score", "update")}
    result: dict[str, Any] = {"before": {"rollout": rollout, **rest}, "fits_before": _peak(start) <= limit}

    sampler, best = before.config, (rollout if start["sample"]["peak_gib"] <= limit else np.inf)
    for way in ways_to_sample(config, before, lengths, approximate, rejected):
        run = fitted(way.config, mesh, lengths)
        record = _measured(run, "sample", report)
        seconds, told = rollout_seconds(run, record, lengths), f"{_named(way)} (compiled)"
        if record["peak_gib"] > limit:
            rejected.append(f"{told}: needs {record['peak_gib']:.1f} of {limit:.1f} GiB")
        elif seconds < best:
            sampler, best = run.config, seconds
        else:
            rejected.append(f"{told}: {seconds:.1f} s per rollout instead of {best:.1f}")
    after = dataclasses.replace(config, sampler=sampler.sampler, rl=sampler.rl)
    after, records = _faster_update(after, mesh, start, limit, rejected, report)
    require(best < np.inf and _peak(records) <= limit, "no setting fits; see the advice of plan without --tune")
    run = fitted(after, mesh, lengths)
    result["after"] = {"rollout": best, **{name: _seconds(run, records[name], lengths) for name in ("score", "update")}}
    return result | {"overrides": overrides(config, after), "rejected": rejected}


def ways_to_sample(
    config: Config, before: Fitted, lengths: np.ndarray | None, approximate: bool, rejected: list[str]
) -> Iterator[Way]:
    """Yields the combinations of layout, number of chunks and cache for which sampling is estimated to be fastest, at most
    `COMPILED` of them. Leaves out the combination in the current configuration. Appends the reasons for rejecting other
    combinations to `rejected`."""
    samplers = [config.sampler]
    if approximate:
        samplers.append(dataclasses.replace(config.sampler, cache="dual", commit="threshold"))
    ways: dict[tuple, Way] = {}
    limit = MOST * device_memory_gib(before.mesh.devices.flat[0]) * GIB
    for sampler in samplers:
        free = dataclasses.replace(sampler, layout="auto"), dataclasses.replace(config.rl, rollout_chunks=0)
        opened = dataclasses.replace(config, sampler=free[0], rl=free[1])
        for choice in sampling_choices(opened, before.model, before.mesh, lengths):
            chosen = dataclasses.replace(sampler, layout=choice.layout)
            changed = dataclasses.replace(
                config, sampler=chosen, rl=dataclasses.replace(config.rl, rollout_chunks=choice.chunks)
            )
            way, key = Way(changed, choice), (choice.layout, choice.chunks, sampler.cache)
            if choice.memory > limit:
                rejected.append(f"{_named(way)}: needs about {choice.memory / GIB:.1f} of {limit / GIB:.1f} GiB")
            elif key not in ways or choice.seconds < ways[key].choice.seconds:
                ways[key] = way
    present = (before.config.sampler.layout, before.config.rl.rollout_chunks, before.config.sampler.cache)
    ranked = sorted((way for key, way in ways.items() if key != present), key=lambda way: way.choice.seconds)
    rejected += [f"{_named(way)}: estimated {way.choice.seconds:.1f} s per rollout" for way in ranked[COMPILED:]]
    yield from ranked[:COMPILED]


def _named(way: Way) -> str:
    shared = way.choice.mesh.shape["tensor"]
    cache = f", sampler.cache={way.config.sampler.cache}" * (way.config.sampler.cache != "none")
    return f"layout {way.choice.layout} ({shared} devices per copy), {way.choice.chunks} chunks{cache}"


def rollout_seconds(run: Fitted, record: dict[str, Any], lengths: np.ndarray | None) -> float:
    """Returns the estimated seconds of a rollout. `record` describes the sampler compiled for the largest prompt bucket and has
    its estimated time. For a batch in a smaller bucket, this time is multiplied by (estimate for that bucket) / (estimate for
    the largest bucket), where both estimates come from run/layout.py. Returns infinity if `record` has no estimated time, for
    example because the sampler does not compile. `lengths` are prompt lengths, see `rollout_loads`."""
    if "estimated_seconds" not in record:
        return np.inf
    loads = rollout_loads(run.config, run.config.rl.rollout_chunks, lengths)
    shares = sum(times * sampling_seconds(run.model, run.sampling_mesh, load) for load, times in loads)
    largest = sampling_seconds(run.model, run.sampling_mesh, loads[-1][0])
    return record["estimated_seconds"] * run.config.sampler.blocks * shares / largest


def _faster_update(
    config: Config, mesh: Mesh, start: dict[str, Any], limit: float, rejected: list[str], report: Report
) -> tuple[Config, dict[str, Any]]:
    """Returns the configuration with the fastest value of model.remat that fits into memory, and the measurements of the
    programs named score and update. If no value of model.remat fits, tries again with more microbatches. If nothing fits,
    returns `config` and `start`."""
    parts, known = config.rl.microbatches, {config.model.remat: start["update"]}
    while True:
        found = remat_choice(_with(config, config.model.remat, parts), mesh, known)
        choice, records = found["choice"], found["programs"]
        for remat, record in records.items():
            told = f"model.remat={remat}, {parts} microbatches (compiled)"
            if record["peak_gib"] > limit:
                rejected.append(f"{told}: needs {record['peak_gib']:.1f} of {limit:.1f} GiB")
            elif remat != choice:
                rejected.append(f"{told}: {record.get('estimated_seconds', np.inf):.2f} s per update")
        rows = config.rl.prompts // (2 * parts)
        if choice or config.rl.prompts % (2 * parts) or rows % batch_size_divisor(mesh):
            break
        parts, known = 2 * parts, {}
    if choice is None:
        return config, start
    chosen, same = _with(config, choice, parts), parts == config.rl.microbatches
    return chosen, {
        "update": records[choice],
        "score": start["score"] if same else _measured(fitted(chosen, mesh), "score", report),
    }


def _with(config: Config, remat: str, microbatches: int) -> Config:
    rl = dataclasses.replace(config.rl, microbatches=microbatches)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, remat=remat), rl=rl)


def _measured(run: Fitted, name: str, report: Report) -> dict[str, Any]:
    report(f"compiling {name}")
    return measure(program_of(run, name))


def _seconds(run: Fitted, record: dict[str, Any], lengths: np.ndarray | None) -> float:
    """Returns the estimated seconds per iteration of the scores or updates that `record` describes for the largest bucket."""
    share = training_share(run.config, run.model, run.mesh, lengths)
    return share * record["per_iteration"] * record.get("estimated_seconds", np.inf)


def _peak(records: dict[str, Any]) -> float:
    return max(record["peak_gib"] for record in records.values())


def overrides(before: Config, after: Config) -> list[str]:
    """Returns the command-line flags that change the configuration `before` into `after`."""
    flags = []
    for name in ("sampler", "rl", "model"):
        one, other = getattr(before, name), getattr(after, name)
        for field in dataclasses.fields(one):
            value = getattr(other, field.name)
            if value != getattr(one, field.name):
                flags.append(f"--config.{name}.{field.name}={value}")
    return flags
