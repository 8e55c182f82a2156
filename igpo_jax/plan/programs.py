"""Compiles the programs of a training run to measure the memory, FLOPs, memory traffic and communication that each program
needs on one device. Allocates no arrays."""

import dataclasses
import math
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from igpo_jax import config as configuration
from igpo_jax.config import Config
from igpo_jax.data.pipeline import SFTBatch
from igpo_jax.diffusion.corruption import Corruption
from igpo_jax.diffusion.denoise import DecodeState
from igpo_jax.diffusion.sampler import denoise_block
from igpo_jax.diffusion.sampler_error import PROBED, block_errors
from igpo_jax.diffusion.unmasking import DecodeConfig
from igpo_jax.model import transformer
from igpo_jax.model.fitting import fit_to_devices
from igpo_jax.model.sharding import Params, shard_bytes
from igpo_jax.model.transformer import ModelConfig
from igpo_jax.plan.hlo_cost import Cost, program_cost
from igpo_jax.rl.hints import inpaint
from igpo_jax.rl.likelihood import GroupBatch
from igpo_jax.rl.objective import LogProbs, compute_logprobs
from igpo_jax.rl.parts import part_programs
from igpo_jax.rl.update import make_update
from igpo_jax.run.layout import check_divisibility, row_lengths, with_layout
from igpo_jax.run.microbatch_choice import base_copy_stays, parts_of, with_microbatches
from igpo_jax.runtime.buckets import path_of
from igpo_jax.runtime.checks import present
from igpo_jax.runtime.chips import CHIPS, Chip
from igpo_jax.runtime.files import first_line
from igpo_jax.runtime.mesh import BATCH, batch_size_divisor
from igpo_jax.stages.sft import heldout_bound, make_sft_update
from igpo_jax.tokenizers import EOS, MASK, PAD, UNKNOWN, has_tokenizer, load_tokenizer
from igpo_jax.training.policy import Policy, abstract_attach, in_compute_dtype, make_cast
from igpo_jax.training.state import TrainState, make_optimizer

GIB = 2**30
LLADA_8B = ModelConfig(
    vocab_size=126464, mask_id=126336, eos_id=126081, eot_id=126348,
    width=4096, layers=32, heads=32, kv_heads=32, mlp_width=12288,
    never_drawn=((126080, 126081), (126082, 126336), (126337, 126348), (126349, 126464)),
)  # fmt: skip


QWEN3_SMALL = ModelConfig(
    vocab_size=151936, mask_id=151669, eos_id=151643, eot_id=151645,
    width=1024, layers=28, heads=16, kv_heads=8, head_dim=128, mlp_width=3072,
    rope_theta=1e6, norm_epsilon=1e-6, tied_head=True, qk_norm=True,
    never_drawn=((151644, 151645), (151646, 151667), (151670, 151936)),
)  # fmt: skip


Report = Callable[[str], None]  # tells the user what is about to be compiled, because it may take minutes


@dataclasses.dataclass(frozen=True)
class Program:
    name: str
    function: Any  # jitted
    arguments: tuple  # of a call in the run, with shapes and shardings in place of arrays
    resident: dict[str, Any]  # name -> shapes of arrays in memory during the call; `measure` does not count arguments twice
    used: bool  # whether the run calls the program
    mesh: Mesh
    per_iteration: int = 0  # calls in an RL iteration that has one batch of prompts and no second attempts


def planned_model(config: Config) -> tuple[ModelConfig, str]:
    """Returns the configuration of a run's network, and a text that says where this configuration comes from. Reads the
    tokenizer in the model's folder, if there is one, but not the weights. Raises ValueError if the model's folder exists but
    cannot be used."""
    path = config.model.path
    if not path:
        size = -(-config.tokenizer.vocab_size // 8) * 8
        model = configuration.own_model(config, vocab_size=size, mask_id=MASK, eos_id=EOS)
        return dataclasses.replace(model, never_drawn=((PAD, PAD + 1), (UNKNOWN, UNKNOWN + 1))), "the configuration"
    if not path_of(path).exists():
        numerics = {key: getattr(config.model, key) for key in configuration.NUMERICS}
        assumed = (QWEN3_SMALL, "Qwen3-0.6B") if "Qwen3-0.6B" in path else (LLADA_8B, "LLaDA-8B")
        return dataclasses.replace(assumed[0], **numerics), f"{assumed[1]} (assumed: folder {path!r} not found)"
    model = present(configuration.folder_model(config))
    if has_tokenizer(path):
        model = configuration.with_tokenizer(model, load_tokenizer(path, model.mask_id), path)
    return model, path


class Fitted(NamedTuple):
    """The configuration, model and meshes of a run. The settings that depend on the devices are chosen as in a real run."""

    config: Config
    model: ModelConfig
    mesh: Mesh
    sampling_mesh: Mesh
    shape_from: str  # see `planned_model`


def fitted(config: Config, mesh: Mesh, lengths: np.ndarray | None = None) -> Fitted:
    """Returns the configuration, model and meshes that a real run would use on the devices of `mesh`, see `with_layout`. Raises
    ValueError if a size cannot be divided evenly over the mesh."""
    model, shape_from = planned_model(config)
    model = fit_to_devices(model, mesh, row_lengths(config))
    check_divisibility(config, model, mesh)
    config, sampling_mesh = with_layout(with_microbatches(config, model, mesh, lengths), model, mesh, lengths)
    return Fitted(config, model, mesh, sampling_mesh, shape_from)


class Shapes:
    """Shapes and shardings of a training run's arrays. An array that occurs in several places is represented by the same
    `jax.ShapeDtypeStruct` object in all of them, so that `measure` counts the array once."""

    def __init__(self, run: Fitted):
        config, model, mesh, self.sampling_mesh, _ = run
        rl, sft = config.rl, config.sft
        self.config, self.model, self.mesh = config, model, mesh
        self.policy = policy = Policy(model, config.lora)
        self.prompt_length, self.length = config.data.prompt_buckets[-1], config.sampler.completion_length
        self.sft_optimizer = make_optimizer(sft.optimizer, max(sft.updates, 1), policy)
        self.rl_optimizer = make_optimizer(rl.optimizer, max(rl.iterations, 1) * config.objective.inner_steps, policy)
        self.sft_state = TrainState.abstract(self.sft_optimizer, policy, mesh)
        self.rl_state = TrainState.abstract(self.rl_optimizer, policy, mesh)
        self.base = policy.abstract_base(mesh)
        frozen: dict[str, Any] = {} if config.lora is None else {"frozen": self.base}
        if config.lora is None:
            self.reference: Any = transformer.abstract(in_compute_dtype(model), mesh)
        else:
            self.reference = abstract_attach(present(self.base), policy.abstract(mesh)) if sft.enabled else self.base
        self.sft_resident = {"training state": self.sft_state} | frozen
        self.rl_resident = {"training state": self.rl_state, "reference": self.reference} | frozen
        self.sampling_base = policy.abstract_base(self.sampling_mesh)
        if base_copy_stays(config, model, mesh, self.sampling_mesh):
            self.rl_resident["copy of frozen"] = self.sampling_base
        key = jax.eval_shape(lambda: jax.random.key(0))
        self.key = host(key.dtype, *key.shape)

    def for_sampling(self, state: TrainState) -> Params:
        """Returns the shapes of the parameters that the sampler uses, given the shapes of a training state."""
        if self.sampling_mesh == self.mesh:
            return self.policy.abstract_sampling(state.params, self.base, self.mesh)
        trained = self.policy.abstract(self.sampling_mesh)
        return self.policy.abstract_sampling(trained, self.sampling_base, self.sampling_mesh)

    def rows(self, dtype, *shape: int, mesh: Mesh | None = None) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh or self.mesh, P(BATCH)))

    def sft_batch(self, rows: int, mesh: Mesh | None = None) -> SFTBatch:
        tokens, mask = (self.rows(dtype, rows, self.prompt_length, mesh=mesh) for dtype in (jnp.int32, jnp.bool_))
        return SFTBatch(tokens, mask, self.rows(jnp.int32, rows, self.length, mesh=mesh))

    def sampling(self, rows: int, decode: DecodeConfig, params: Params) -> tuple:
        """Returns the shapes of the arguments of `denoise_block` and `block_errors` for a batch of `rows` completions."""
        state = DecodeState.abstract(rows, self.prompt_length, decode, self.sampling_mesh)
        return params, state, host(jnp.int32), self.model, decode


def programs(run: Fitted) -> list[Program]:
    """Returns the programs that take most of a training run's time, with the shapes and shardings of their arguments."""
    config, model, mesh, sampling_mesh, _ = run
    shapes, has_rl = Shapes(run), config.rl.iterations > 0
    evaluates = has_rl or (config.sft.enabled and config.sft.eval_every > 0)
    state, resident = (shapes.rl_state, shapes.rl_resident) if has_rl else (shapes.sft_state, shapes.sft_resident)
    params = shapes.for_sampling(state)
    arguments = shapes.sampling(config.evaluation.batch_size, config.evaluation.decode, params)
    evaluate = Program("evaluate", denoise_block, arguments, resident, evaluates, sampling_mesh)
    found = sft_programs(shapes)
    if shapes.policy.makes_copy():
        found.append(
            Program("cast", make_cast(model, mesh), (state.params,), resident, evaluates, mesh, 1 + (sampling_mesh != mesh))
        )
    return [*found, *rl_programs(shapes), evaluate]


def sft_programs(shapes: Shapes) -> list[Program]:
    """Returns the programs of the supervised stage: the update and the loss on held-out problems. Leaves out the update if the
    run has no supervised stage and the configured batch cannot be split over the mesh."""
    config, sft, mesh, found = shapes.config, shapes.config.sft, shapes.mesh, []
    if sft.enabled or sft.batch_size // sft.microbatches % batch_size_divisor(mesh) == 0:
        update = make_sft_update(shapes.sft_optimizer, shapes.policy, sft.corruption, sft.microbatches, mesh)
        arguments = (shapes.sft_state, shapes.sft_batch(sft.batch_size), shapes.key, shapes.base)
        found.append(Program("sft", update, arguments, {}, sft.enabled, mesh))
    if sft.enabled and sft.eval_every and sft.heldout:
        rows = config.evaluation.batch_size
        params, mesh = shapes.for_sampling(shapes.sft_state), shapes.sampling_mesh
        masks = Corruption(shapes.rows(jnp.bool_, rows, shapes.length, mesh=mesh), shapes.rows(jnp.float32, rows, mesh=mesh))
        arguments = (params, *jax.tree.leaves(shapes.sft_batch(rows, mesh)), masks, shapes.model)
        found.append(Program("heldout", heldout_bound, arguments, shapes.sft_resident, True, mesh))
    return found


def rl_programs(shapes: Shapes) -> list[Program]:
    config, model, mesh, sampling_mesh = shapes.config, shapes.model, shapes.mesh, shapes.sampling_mesh
    rl, objective, params, decode = config.rl, config.objective, shapes.for_sampling(shapes.rl_state), config.sampler.decode
    scoring_params = shapes.policy.abstract_sampling(shapes.rl_state.params, shapes.base, mesh)
    used, resident, g, length = rl.iterations > 0, shapes.rl_resident, rl.group_size, shapes.length
    at_once = rl.prompts // rl.rollout_chunks
    sampling = shapes.sampling(at_once * g, decode, params)
    found = [Program("sample", denoise_block, sampling, resident, used, sampling_mesh, rl.rollout_chunks * decode.blocks)]
    if decode.cache != "none":
        number = batch_size_divisor(sampling_mesh) * -(-PROBED // batch_size_divisor(sampling_mesh))
        probe = shapes.sampling(number, decode, params)
        found.append(Program("probe", block_errors, probe, resident, used and rl.probe_every > 0, sampling_mesh))
    problems, canvas, trace = host(jnp.uint32, at_once), host(jnp.int32, at_once * g, length), host(jnp.int32, at_once, length)
    trace_length, hintable = host(jnp.int32, at_once), host(jnp.bool_, at_once, length)
    ratios = host(jnp.float32), host(jnp.float32)
    hinting = (shapes.key, problems, canvas, trace, trace_length, hintable, config.inpainting, ratios)
    hinted = used and config.inpainting.policy != "none"
    found.append(Program("inpaint", inpaint, hinting, resident | {"policy": params}, hinted, mesh))
    parts = parts_of(config)
    groups = GroupBatch.abstract(mesh, rl.prompts // parts, g, shapes.prompt_length, length)
    scoring = (scoring_params, shapes.reference, groups, shapes.key, model, objective, mesh, rl.microbatches // parts)
    found.append(Program("score", compute_logprobs, scoring, resident, used, mesh, parts))
    return [*found, *update_programs(shapes, groups, parts, used)]


def update_programs(shapes: Shapes, groups: GroupBatch, parts: int, used: bool) -> list[Program]:
    """Returns the program of an update. If the batch is split into `parts` parts of the shapes `groups`, returns the program
    that adds the gradients of a part, and the program that applies the sum."""
    mesh, objective, resident = shapes.mesh, shapes.config.objective, shapes.rl_resident
    steps, optimizer, state = objective.inner_steps, shapes.rl_optimizer, shapes.rl_state
    part = groups, LogProbs.abstract(mesh, groups, objective), host(jnp.int32), shapes.base
    if parts == 1:
        update = make_update(optimizer, shapes.policy, objective, mesh, shapes.config.rl.microbatches)
        return [Program("update", update, (state, *part), resident, used, mesh, steps)]
    programs, total = part_programs(optimizer, shapes.policy, objective, mesh), shapes.policy.abstract(mesh)
    adding = (total, state.params, *part)
    with jax.set_mesh(mesh):
        _, statistics = jax.eval_shape(programs.add_gradients, *adding)
    return [
        Program("update", programs.add_gradients, adding, resident, used, mesh, parts * steps),
        Program("apply", programs.apply, (state, total, [statistics] * parts), resident, used, mesh, steps),
    ]


def checkpoint_bytes(run: Fitted) -> int:
    """Returns the size of a checkpoint of the run's last stage: parameters or adapters, and the optimizer's moments."""
    shapes = Shapes(run)
    state = shapes.rl_state if run.config.rl.iterations else shapes.sft_state
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in abstract_leaves(state))


def program_of(run: Fitted, name: str) -> Program:
    """Returns the program with the given name."""
    [program] = (program for program in programs(run) if program.name == name)
    return program


def host(dtype, *shape: int) -> jax.ShapeDtypeStruct:
    """Returns a `jax.ShapeDtypeStruct` without sharding. It represents an array in host memory."""
    return jax.ShapeDtypeStruct(shape, dtype)


def measure(program: Program) -> dict[str, Any]:
    """Compiles a program and measures the resources that it needs on one device. Returns a dict of JSON values with the memory
    in GiB, FLOPs, bytes of memory traffic and communication, and estimated seconds. If the compiler rejects the program because
    it is too large, the entry `error` is the compiler's message, and `peak_gib` is computed from this message."""
    begin = time.perf_counter()
    arguments = abstract_leaves(program.arguments)
    resident, seen = {}, {id(leaf) for leaf in arguments}
    for name, tree in program.resident.items():
        leaves = [leaf for leaf in abstract_leaves(tree) if id(leaf) not in seen]
        seen |= {id(leaf) for leaf in leaves}
        if leaves:
            resident[name] = shard_bytes(leaves) / GIB
    others, distinct = sum(resident.values()), shard_bytes({id(leaf): leaf for leaf in arguments})
    record = {"name": program.name, "used": program.used, "per_iteration": program.per_iteration, "resident_gib": resident}
    try:
        with jax.set_mesh(program.mesh):
            compiled = program.function.lower(*program.arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        used = re.search(r"(Used|HLO temporaries) \(?([\d.]+)([GM])\b", str(error))
        if "RESOURCE_EXHAUSTED" not in str(error) or not used:
            raise
        peak = float(used[2]) / (1 if used[3] == "G" else 1024) + others
        if used[1] == "HLO temporaries":  # this number is without the arguments
            peak += distinct / GIB
        return record | {"peak_gib": peak, "error": first_line(error)}
    seconds = time.perf_counter() - begin
    own = read_compiled(compiled, program.mesh, twice=shard_bytes(arguments) - distinct)
    return record | own | {"peak_gib": own["peak_gib"] + others, "compile_seconds": seconds}


def read_compiled(compiled: Any, mesh: Mesh, twice: int = 0) -> dict[str, Any]:
    """Returns a dict with the resources that a compiled program needs on one device: memory in GiB, FLOPs, bytes of memory
    traffic and communication, and estimated seconds. Arrays in memory that the program does not use are not included. If an
    array is passed as several arguments, the compiler counts its memory several times. `twice` is the number of bytes per
    device to subtract for such arrays. If the cost cannot be computed from the HLO text, the entry `cost_error` replaces all
    entries except the memory. `compiled` is a `jax.stages.Compiled`. It is annotated as Any, because that class declares that
    its methods may return None."""
    memory = compiled.memory_analysis()
    own = {
        "arguments_gib": memory.argument_size_in_bytes - twice,
        "outputs_gib": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporary_gib": memory.temp_size_in_bytes,
        "code_gib": memory.generated_code_size_in_bytes,
    }
    record: dict[str, Any] = {name: size / GIB for name, size in own.items()} | {"peak_gib": sum(own.values()) / GIB}
    try:
        cost = program_cost(compiled.as_text(), gpu_hosts(mesh))
    except ValueError as error:  # the memory is known even without the cost
        return record | {"cost_error": str(error)}
    between = " between hosts" if gpu_hosts(mesh) else " between slices"
    received = {f"{kind}{between if far else ''}": n for (kind, far), n in cost.received.items()}
    record |= {"flops": cost.flops, "bytes": cost.bytes, "received_bytes": received}
    return record | estimate(cost, CHIPS.get(mesh.devices.flat[0].device_kind))


def gpu_hosts(mesh: Mesh) -> list[int]:
    """Returns the host number of each GPU in a mesh, or [] if the devices are not GPUs."""
    return [device.process_index for device in mesh.devices.flat if device.platform == "gpu"]


def iteration_seconds(records: list[dict[str, Any]]) -> float | None:
    """Returns the estimated seconds of an RL iteration without second attempts. `records` contains the measurements of the
    compiled programs. Returns None if the chip is unknown, or if no program belongs to an RL iteration."""
    parts = [record for record in records if record["used"] and record["per_iteration"]]
    if not parts or not all("estimated_seconds" in record for record in parts):
        return None
    return sum(record["per_iteration"] * record["estimated_seconds"] for record in parts)


def abstract_leaves(tree: Any) -> list[jax.ShapeDtypeStruct]:
    """Returns the leaves of a pytree that represent arrays on devices: each `jax.ShapeDtypeStruct` with a sharding. Leaves out
    arrays in host memory and configurations."""
    leaves = jax.tree.leaves(tree)
    return [x for x in leaves if isinstance(x, jax.ShapeDtypeStruct) and x.sharding is not None]


def estimate(cost: Cost, chip: Chip | None) -> dict[str, float]:
    """Returns the estimated seconds of one execution of a program, and the share of this time that is spent on communication.
    Assumes the chip's published peak rates, and that communication never overlaps with computation. Returns {} if the chip is
    unknown."""
    if chip is None:
        return {}
    working = max(cost.flops / chip.flops, cost.bytes / chip.hbm)
    exchanging = sum(n / (chip.network if far else chip.link) for (_, far), n in cost.received.items())
    total = max(working + exchanging, 1e-12)
    return {"estimated_seconds": total, "communication_share": exchanging / total}
