"""What the programs of a run need on a device, found by compiling them from shapes alone: nothing is allocated."""

import dataclasses
import math
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from igpo_jax import config as configuration
from igpo_jax.config import Settings
from igpo_jax.data.pipeline import SFTBatch
from igpo_jax.diffusion.inpainting import inpaint
from igpo_jax.diffusion.sampler import sample
from igpo_jax.model import lora as lora_module
from igpo_jax.model import transformer
from igpo_jax.model.transformer import ModelConfig
from igpo_jax.rl.likelihood import GroupBatch, Scores, score
from igpo_jax.rl.step import make_update
from igpo_jax.runtime.chips import CHIPS, Chip, device_memory_gib
from igpo_jax.runtime.hlo_cost import Cost, program_cost
from igpo_jax.runtime.mesh import BATCH, batch_size_divisor, slice_count
from igpo_jax.sft import make_sft_update
from igpo_jax.training import abstract_state, make_compute_cast, make_optimizer

GIB = 2**30
MOST = 0.9  # of the memory: fragmentation and what the runtime itself holds come on top of what the compiler counts
LLADA_8B = ModelConfig(
    vocab_size=126464,
    mask_id=126336,
    eos_id=126081,
    eot_id=126348,
    width=4096,
    layers=32,
    heads=32,
    kv_heads=32,
    mlp_width=12288,
)


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled program of a run. lower: traces it. resident: what lies on the devices meanwhile and is none of its
    arguments, {name: pytree of shapes with shardings}. used: whether this run has it at all. per_iteration: how often an
    iteration of the RL stage runs it, if no group is all wrong. twice: what is given to it as two arguments and lies
    there once."""

    name: str
    lower: Callable[[], Any]
    resident: dict[str, Any]
    used: bool
    per_iteration: int = 0
    twice: Any = None


def planned_model(settings: Settings) -> tuple[ModelConfig, str]:
    """The network of a run whose tokenizer has not been trained or whose weights are elsewhere; and where its shape is
    from."""
    path, values = settings.model["path"], settings.model
    numerics = {key: values[key] for key in ("param_dtype", "compute_dtype", "remat", "attention")}
    if not path:
        size = -(-settings.tokenizer.vocab_size // 8) * 8
        return configuration.own_model(settings, vocab_size=size, mask_id=1, eos_id=2), "the configuration"
    try:
        return configuration.folder_model(settings), path
    except ValueError:
        return dataclasses.replace(LLADA_8B, **numerics), f"LLaDA-8B, since {path!r} is not here"


def programs(settings: Settings, model: ModelConfig, mesh: Mesh) -> list[Program]:
    """Every program of a run that takes more than a moment, with the shapes and shardings it has there."""
    rl, sft, lora, objective = settings.rl, settings.sft, settings.lora, settings.objective
    n, g, at_once = rl.prompts, rl.group_size, rl.prompts // rl.rollout_slices
    prompt_length, length = settings.data.prompt_buckets[-1], settings.rollout_decode.completion_length

    def array(shape, dtype, spec=P(BATCH)):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    def tokens(*shape):
        return array(shape, jnp.int32)

    def prompts(rows):
        return tokens(rows, prompt_length), array((rows, prompt_length), jnp.bool_)

    def everywhere(make):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), jax.eval_shape(make))

    key = everywhere(lambda: jax.random.key(0))
    params = transformer.abstract(model, mesh)
    if lora is None:
        frozen, reference = None, transformer.abstract(dataclasses.replace(model, param_dtype=model.compute_dtype), mesh)
        acting = reference
    else:
        adapters = lora_module.abstract(model, lora, mesh)
        frozen = reference = params
        acting = params | {"blocks": params["blocks"] | {"adapters": adapters}}
    copied = lora is None and model.compute_dtype != model.param_dtype
    sft_optimizer = make_optimizer(settings.sft_optimizer, max(sft.updates, 1), model, lora)
    rl_optimizer = make_optimizer(settings.rl_optimizer, max(rl.iterations, 1) * objective.inner_steps, model, lora)
    sft_state, state = (abstract_state(optimizer, model, mesh, lora) for optimizer in (sft_optimizer, rl_optimizer))
    training = {"training state": state} | ({"reference": reference} if lora is None else {})

    def lower_sample(rows, decode):
        keys = everywhere(lambda: jax.random.split(jax.random.key(0), rows))
        return sample.lower(acting, *prompts(rows), tokens(rows, length), keys, model, decode)

    def lower_inpaint():
        host = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in (
            ((at_once,), jnp.uint32), ((at_once * g, length), jnp.int32), ((at_once, length), jnp.int32),
            ((at_once,), jnp.int32), ((at_once, length), jnp.bool_),
        )]  # fmt: skip
        return inpaint.lower(key, *host, g, settings.inpainting)

    groups = GroupBatch(
        *prompts(n),
        problem_id=array((n,), jnp.uint32),
        completions=tokens(n, g, length),
        hint=array((n, g, length), jnp.bool_),
        in_loss=array((n, g, length), jnp.bool_),
        advantages=array((n, g), jnp.float32),
    )
    masks = 1 if objective.estimator == "mean_field" else objective.inner_steps
    number, flag = (array((masks, n, g, length), dtype, P(None, BATCH)) for dtype in (jnp.float32, jnp.bool_))
    scores = Scores(old=number, reference=number, masked=flag, in_loss=flag, entropy=number)

    update = make_update(rl_optimizer, model, objective, mesh, rl.microbatches, lora)
    sft_update = make_sft_update(sft_optimizer, model, sft.corruption, sft.microbatches, mesh, lora)
    cast = make_compute_cast(model, mesh)

    def lower_update():
        return update.lower(state, groups, scores, jax.ShapeDtypeStruct((), jnp.int32), frozen)

    def lower_sft():
        batch = SFTBatch(*prompts(sft.batch_size), tokens(sft.batch_size, length))
        return sft_update.lower(sft_state, batch, key, frozen)

    def lower_score():
        return score.lower(acting, reference, groups, key, model, objective, mesh)

    in_rl, in_sft = rl.iterations > 0, sft.updates > 0
    found = [
        Program("sft", lower_sft, {}, in_sft),
        Program(
            "sample", lambda: lower_sample(at_once * g, settings.rollout_decode), training, in_rl, rl.rollout_slices
        ),
        Program("inpaint", lower_inpaint, {"policy": acting} | training, in_rl),
        Program("score", lower_score, training, in_rl, 1, twice=frozen),
        Program("update", lower_update, {"reference": reference} if lora is None else {}, in_rl, objective.inner_steps),
        Program("evaluate", lambda: lower_sample(settings.evaluation.batch_size, settings.eval_decode), training, True),
    ]
    if copied:
        resident = training | {"training state": (state.opt_state, state.step)}
        found.insert(1, Program("cast", lambda: cast.lower(params), resident, in_rl, 1))
    return found


def measure(program: Program, mesh: Mesh) -> dict[str, Any]:
    """Compiles a program; what it needs on one device: sizes in GiB, FLOPs, bytes, and an estimate of its time.

    Returns:
        A record for JSON. Where the compiler finds that it does not fit: `error`, and `peak_gib` as far as it says.
    """
    begin = time.perf_counter()
    resident = {name: shard_bytes(tree) / GIB for name, tree in program.resident.items()}
    record = {"name": program.name, "used": program.used, "per_iteration": program.per_iteration}
    record["resident_gib"] = resident
    others = sum(resident.values())
    try:
        with jax.set_mesh(mesh):
            compiled = program.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        used = re.search(r"Used ([\d.]+)([GM]) of", str(error))
        peak = float(used[1]) / (1 if used[2] == "G" else 1024) + others if used else math.inf
        return record | {"peak_gib": peak, "error": str(error).splitlines()[0][:300]}
    seconds = time.perf_counter() - begin
    memory = compiled.memory_analysis()
    own = {
        "arguments_gib": memory.argument_size_in_bytes - shard_bytes(program.twice),
        "outputs_gib": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporary_gib": memory.temp_size_in_bytes,
        "code_gib": memory.generated_code_size_in_bytes,
    }
    cost = program_cost(compiled.as_text())
    record |= {name: size / GIB for name, size in own.items()}
    return record | {
        "peak_gib": sum(own.values()) / GIB + others,
        "flops": cost.flops,
        "bytes": cost.bytes,
        "received_bytes": {f"{kind}{' between slices' if far else ''}": n for (kind, far), n in cost.received.items()},
        "compile_seconds": seconds,
        **estimate(cost, CHIPS.get(mesh.devices.flat[0].device_kind)),
    }


def estimate(cost: Cost, chip: Chip | None) -> dict[str, float]:
    """Seconds of one run at the chip's published peaks, and the share of them that communication takes if nothing of it
    is hidden behind computing; empty where the peaks are not known."""
    if chip is None:
        return {}
    working = max(cost.flops / chip.flops, cost.bytes / chip.hbm)
    exchanging = sum(n / (chip.dcn if far else chip.ici) for (_, far), n in cost.received.items())
    total = max(working + exchanging, 1e-12)
    return {"estimated_seconds": total, "communication_share": exchanging / total}


def shard_bytes(tree: Any) -> int:
    """Bytes of one device's part of a tree of shapes with shardings."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def plan(settings: Settings, mesh: Mesh, only: Sequence[str] = (), report=lambda record: None) -> dict[str, Any]:
    """Compiles the programs of a run and judges whether they fit.

    Args:
        only: names of programs; all by default.
        report: is told of every record as soon as it is there.
    """
    model, shape_from = planned_model(settings)
    configuration.check_divisibility(settings, model, mesh)
    device = mesh.devices.flat[0]
    wanted = programs(settings, model, mesh)
    unknown = set(only) - {program.name for program in wanted}
    if unknown:
        raise ValueError(f"--programs={','.join(only)}: there are {', '.join(p.name for p in wanted)}")
    records = []
    for program in wanted:
        if not only or program.name in only:
            records.append(measure(program, mesh))
            report(records[-1])
    memory = device_memory_gib(device)
    peak = max((record["peak_gib"] for record in records if record["used"]), default=0.0)
    return {
        "device": device.device_kind,
        "devices": mesh.devices.size,
        "slices": slice_count(list(mesh.devices.flat)),
        "mesh": dict(mesh.shape),
        "model": shape_from,
        "memory_gib": memory,
        "peak_gib": peak,
        "fits": peak <= MOST * memory,
        "programs": records,
        "advice": advice(settings, model, mesh, records),
    }


def advice(settings: Settings, model: ModelConfig, mesh: Mesh, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The three changes of the configuration that save most where the run needs most, from arithmetic over shapes."""
    used = [record for record in records if record["used"]]
    if not used:
        return []
    fullest = max(used, key=lambda record: record["peak_gib"])
    rl, sft, lora, objective = settings.rl, settings.sft, settings.lora, settings.objective
    shards, rows = mesh.shape["fsdp"] * mesh.shape["tensor"], batch_size_divisor(mesh)
    length = settings.data.prompt_buckets[-1] + settings.rollout_decode.completion_length
    parameters = shard_bytes(transformer.abstract(dataclasses.replace(model, param_dtype="bfloat16"), mesh)) // 2
    trained = parameters if lora is None else shard_bytes(lora_module.abstract(model, lora, mesh)) // 4
    temporary = fullest.get("temporary_gib", 0.0) * GIB
    compute = 2 if model.compute_dtype == "bfloat16" else 4
    saving: dict[str, float] = {}
    if lora is None and settings.model["path"]:
        kept = 4 * parameters + 4 * trained + 2 * trained  # master weights and two moments become a bfloat16 base
        saving["config.lora.rank=128 with config.model.param_dtype=bfloat16: train adapters"] = kept
    optimizer = settings.rl_optimizer if rl.iterations else settings.sft_optimizer
    if optimizer.first_moment_dtype == "float32":
        stage = "rl" if rl.iterations else "sft"
        saving[f"config.{stage}.optimizer.first_moment_dtype=bfloat16"] = 2 * trained
    if fullest["name"] in ("sample", "evaluate"):
        if fullest["name"] == "evaluate":
            size = settings.evaluation.batch_size
            change = f"config.evaluation.batch_size={size // 2}"
        else:
            size = rl.prompts // rl.rollout_slices * rl.group_size
            change = f"config.rl.rollout_slices={rl.rollout_slices * 2}"
        if size % (2 * rows) == 0:
            saving[change] = temporary / 2
    if fullest["name"] in ("update", "score", "sft"):
        stage, size = ("sft", sft.batch_size) if fullest["name"] == "sft" else ("rl", rl.prompts)
        parts = (sft if stage == "sft" else rl).microbatches
        local = size // parts // rows
        carried = local * length * model.width * compute * model.layers  # the stream at the border of each layer
        if model.remat != "full" and fullest["name"] != "score":
            inside = (4 * model.width + 3 * model.mlp_width) // mesh.shape["tensor"]
            saving["config.model.remat=full: recompute layers"] = local * length * inside * compute * model.layers
        if size // parts % (2 * rows) == 0 and fullest["name"] != "score":
            saving[f"config.{stage}.microbatches={parts * 2}: half the activations"] = carried / 2
        logits = 4 * model.vocab_size // mesh.shape["tensor"]
        positions = local * settings.rollout_decode.completion_length
        if stage == "rl":
            chunk = min(objective.token_chunk, positions)
            saving[f"config.objective.token_chunk={chunk // 2}"] = logits * chunk / 2
    if mesh.shape["fsdp"] % 2 == 0 and model.kv_heads % (2 * mesh.shape["tensor"]) == 0:
        heads = 2 * model.width * model.vocab_size * compute // mesh.shape["tensor"]
        saving[f"config.mesh.tensor={mesh.shape['tensor'] * 2}: matrices are gathered in halves"] = heads / 2
    saving["twice the devices"] = sum(
        fullest["resident_gib"].values(), fullest.get("arguments_gib", 0.0)
    ) * GIB / 2 + temporary / 4
    best = sorted(saving, key=saving.get, reverse=True)[:3]
    return [{"change": change, "saves_about_gib": saving[change] / GIB} for change in best]
