"""Decides whether a training run fits into device memory, and finds the configuration changes that save the most memory."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from igpo_jax.config import Config
from igpo_jax.data.buckets import bucket_of, rollout_batches
from igpo_jax.model import transformer
from igpo_jax.model.sharding import shard_bytes
from igpo_jax.model.transformer import ModelConfig
from igpo_jax.plan.programs import GIB, Fitted, Report, checkpoint_bytes, fitted, gpu_hosts, measure, program_of, programs
from igpo_jax.run.microbatch_choice import base_copy_stays, training_share
from igpo_jax.runtime.chips import device_memory_gib
from igpo_jax.runtime.mesh import batch_size_divisor, slice_count
from igpo_jax.training.policy import Policy

MOST = 0.9  # largest usable share of the memory, because the compiler counts neither fragmentation nor the runtime's memory


def plan(
    config: Config,
    mesh: Mesh,
    only: Sequence[str] = (),
    report: Report = lambda line: None,
    lengths: np.ndarray | None = None,
) -> dict[str, Any]:
    """Compiles the programs that a training run calls, or the programs named in `only`. Returns a dict with the measurements of
    each program, whether the run fits into memory, and advice on saving memory. Calls `report` with a line of text before each
    compilation. Raises ValueError if `only` contains an unknown name, or if a configured size cannot be divided evenly over the
    mesh. `lengths`, int [n], are prompt lengths in tokens. They are used to choose the settings of sampling (`fitted`) and to
    estimate rollouts (`typical_rollout`)."""
    run = fitted(config, mesh, lengths)
    config, model = run.config, run.model
    device = mesh.devices.flat[0]
    memory, records = device_memory_gib(device), []
    known = programs(run)
    if set(only) - {program.name for program in known}:
        raise ValueError(f"--programs={','.join(only)}: there are {', '.join(p.name for p in known)}")
    wanted = [program for program in known if (program.name in only if only else program.used)]
    for number, program in enumerate(wanted, 1):
        report(f"compiling {program.name} ({number} of {len(wanted)})")
        records.append(measure(program))
    peak = max((record["peak_gib"] for record in records if record["used"]), default=0.0)
    result: dict[str, Any] = {"device": device.device_kind, "devices": mesh.devices.size}
    result |= {"slices": slice_count(list(mesh.devices.flat)), "hosts": len(set(gpu_hosts(mesh))) or 1}
    result |= {"mesh": dict(mesh.shape), "model": run.shape_from, "attention": model.attention}
    result |= {"layout": config.sampler.layout, "sampling_mesh": dict(run.sampling_mesh.shape)}
    microbatches = (config.rl if config.rl.iterations else config.sft).microbatches
    result |= {"rollout_chunks": config.rl.rollout_chunks, "microbatches": microbatches}
    result["base_copy_stays"] = base_copy_stays(config, model, mesh, run.sampling_mesh)
    result |= {"evaluation_batch_size": config.evaluation.batch_size}
    result |= {"iterations": config.rl.iterations, "sft_updates": config.sft.updates}
    result |= {"checkpoint_gb": checkpoint_bytes(run) / 1e9}
    result |= {
        "checkpoints_kept": config.checkpoints_kept,
        "memory_gib": memory,
        "peak_gib": peak,
        "fits": peak <= MOST * memory,
    }
    if lengths is not None and (rollouts := typical_rollout(run, records, lengths, report)):
        result["rollouts"] = rollouts
    return result | {"programs": records, "advice": advice(config, model, mesh, records)}


def typical_rollout(
    run: Fitted, records: list[dict[str, Any]], lengths: np.ndarray, report: Report = lambda line: None
) -> dict[str, Any] | None:
    """Estimates rollouts whose prompts have the given `lengths` in tokens, int [n]. Returns a dict with the mean number of
    positions per sequence (prompt, padding and completion), the largest number of positions, the mean seconds per call of the
    program named sample, and the share of the time of scores and updates that they take if prompts have these lengths.

    Compiles this program for the smallest prompt bucket. `records` must contain its measurements for the largest bucket. The
    seconds for other buckets are interpolated linearly, because nearly all computation is proportional to the number of
    positions. Returns None if there is no RL stage, if there is only one bucket, if the compiled programs have no estimated
    time, or if all prompts are too long."""
    config = run.config
    buckets, length = config.data.prompt_buckets, config.sampler.completion_length
    largest = [
        record["estimated_seconds"] for record in records if record["name"] == "sample" and "estimated_seconds" in record
    ]
    fitting = lengths[lengths <= buckets[-1]]
    if not config.rl.iterations or not largest or len(buckets) == 1 or not fitting.size:
        return None
    smallest = dataclasses.replace(config, data=dataclasses.replace(config.data, prompt_buckets=buckets[:1]))
    report("compiling sample for the smallest prompt bucket")
    shortest = measure(program_of(run._replace(config=smallest), "sample"))
    if "estimated_seconds" not in shortest:
        return None
    seconds = [shortest["estimated_seconds"], *largest]
    batches = rollout_batches(fitting, config.rl.prompts, config.rl.rollout_chunks)
    padded = [bucket_of(batch.max(), buckets) for batch in batches]
    expected = float(np.mean(np.interp(padded, [buckets[0], buckets[-1]], seconds)))
    means = {"mean_positions": float(np.mean(padded)) + length, "estimated_seconds": expected}
    share = training_share(config, run.model, run.mesh, lengths)
    return means | {"most_positions": buckets[-1] + length, "training_share": share}


def remat_choice(
    config: Config, mesh: Mesh, known: dict[str, dict[str, Any]] | None = None, lengths: np.ndarray | None = None
) -> dict[str, Any]:
    """Compiles the update of the run's last stage with each value of model.remat. Returns {"programs": {value: measurements},
    "choice": value}. The choice is the value with the shortest estimated time among the values that fit into memory, or None if
    no value fits. `known` is {value: measurements} for the values that have already been compiled. `lengths` are those of
    `plan`."""
    name = "update" if config.rl.iterations else "sft"
    memory, records = device_memory_gib(mesh.devices.flat[0]), {}
    for remat in ("none", "dots", "full"):
        changed = dataclasses.replace(config, model=dataclasses.replace(config.model, remat=remat))
        records[remat] = (known or {}).get(remat) or measure(program_of(fitted(changed, mesh, lengths), name))
    fitting = [remat for remat, record in records.items() if record["peak_gib"] <= MOST * memory]
    # If the chip is unknown, there are no estimates, and this selects the first value that fits, which recomputes least.
    choice = min(fitting, key=lambda remat: records[remat].get("estimated_seconds", math.inf), default=None)
    return {"choice": choice, "programs": records}


def advice(config: Config, model: ModelConfig, mesh: Mesh, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns at most three changes that would save the most memory in the program with the highest peak memory use. Each
    change concerns the configuration or doubles the number of devices. The savings are estimated from array shapes."""
    used = [record for record in records if record["used"]]
    if not used:
        return []
    fullest = max(used, key=lambda record: record["peak_gib"])
    name, rl, sft, lora = fullest["name"], config.rl, config.sft, config.lora
    shards, rows = mesh.shape["tensor"], batch_size_divisor(mesh)
    length = config.data.prompt_buckets[-1] + config.sampler.completion_length
    parameters = shard_bytes(transformer.abstract(dataclasses.replace(model, param_dtype="bfloat16"), mesh)) // 2
    trained = parameters if lora is None else shard_bytes(Policy(model, lora).abstract(mesh)) // 4
    resident = sum(fullest["resident_gib"].values()) * GIB
    temporary = fullest.get("temporary_gib", fullest["peak_gib"] - resident / GIB) * GIB
    compute = 2 if model.compute_dtype == "bfloat16" else 4
    stage, section = ("sft", sft) if name == "sft" else ("rl", rl)
    saving: dict[str, float] = {}
    if lora is None and config.model.path:
        kept = 4 * parameters + 4 * trained + 2 * trained  # a bfloat16 base replaces master weights and two moments
        saving["config.lora.rank=128 with config.model.param_dtype=bfloat16: train adapters"] = kept
    if lora is not None and not model.base_dtype:
        one = 2 if model.param_dtype == "bfloat16" else 4
        saving["config.model.base_dtype=int8: quantize the frozen weights"] = (one - 1) * parameters
    if section.optimizer.first_moment_dtype == "float32":
        saving[f"config.{stage}.optimizer.first_moment_dtype=bfloat16"] = 2 * trained
    if name == "evaluate" and config.evaluation.batch_size % (2 * rows) == 0:
        saving[f"config.evaluation.batch_size={config.evaluation.batch_size // 2}"] = temporary / 2
    at_once = rl.prompts // rl.rollout_chunks
    if name == "sample" and at_once % 2 == 0 and at_once // 2 * rl.group_size % rows == 0:
        saving[f"config.rl.rollout_chunks={rl.rollout_chunks * 2}"] = temporary / 2
    if name in ("update", "score", "sft"):
        at_once = (sft.batch_size if name == "sft" else rl.prompts) // section.microbatches
        local = at_once // rows
        carried = local * length * model.width * compute * model.layers  # residual stream between layers
        if model.remat != "full" and name != "score":
            inside = (2 * model.width + 2 * model.query_width + 3 * model.mlp_width) // shards
            saving["config.model.remat=full: recompute layers"] = local * length * inside * compute * model.layers
        if at_once % (2 * rows) == 0:
            halved = temporary / 2 if name == "score" else carried / 2
            saving[f"config.{stage}.microbatches={section.microbatches * 2}: half the rows at a time"] = halved
        positions = local * config.sampler.completion_length
        chunk = min(model.head_chunk or positions, positions)
        if chunk >= 2:
            saving[f"config.model.head_chunk={chunk // 2}"] = 4 * model.vocab_size // shards * chunk / 2
    if mesh.shape["fsdp"] % 2 == 0 and model.kv_heads % (2 * shards) == 0 and model.vocab_size % (2 * shards) == 0:
        heads = 2 * model.width * model.vocab_size * compute // shards
        saving[f"config.mesh.tensor={shards * 2}: matrices are gathered in halves"] = heads / 2
    saving["twice the devices"] = resident / 2 + fullest.get("arguments_gib", 0.0) * GIB / 2 + temporary / 4
    best = sorted(saving, key=lambda change: saving[change], reverse=True)[:3]
    return [{"change": change, "saves_about_gib": saving[change] / GIB} for change in best]
