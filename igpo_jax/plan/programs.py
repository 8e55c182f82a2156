"""What the programs of a run need on a device, found by compiling them from shapes alone: nothing is allocated."""

import dataclasses
import math
import pathlib
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from igpo_jax import config as configuration
from igpo_jax.config import Config
from igpo_jax.data.pipeline import SFTBatch
from igpo_jax.diffusion.corruption import Corruption
from igpo_jax.diffusion.sampler import DecodeState, denoise_block
from igpo_jax.diffusion.sampler_error import PROBED, block_errors
from igpo_jax.model import lora as lora_module
from igpo_jax.model import transformer
from igpo_jax.model.transformer import ModelConfig
from igpo_jax.plan.hlo_cost import Cost, program_cost
from igpo_jax.rl.hints import inpaint
from igpo_jax.rl.likelihood import GroupBatch
from igpo_jax.rl.objective import LogProbs, compute_logprobs
from igpo_jax.rl.update import make_update
from igpo_jax.runtime.chips import CHIPS, Chip
from igpo_jax.runtime.mesh import BATCH, batch_size_divisor
from igpo_jax.stages.sft import heldout_bound, make_sft_update
from igpo_jax.training.policy import make_cast
from igpo_jax.training.state import abstract_state, make_optimizer

GIB = 2**30
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
    """One compiled program of a run. arguments: as a run calls `function` with them, arrays as shapes with shardings.
    resident: what lies on the devices meanwhile, {name: pytree of such shapes}; the same object is the same array, and what
    is an argument, too, is counted there. used: whether this run has it at all. per_iteration: how often an iteration of
    the RL stage runs it, if no group is all wrong and one batch of prompts is enough."""

    name: str
    function: Any
    arguments: tuple
    resident: dict[str, Any]
    used: bool
    per_iteration: int = 0


def planned_model(config: Config) -> tuple[ModelConfig, str]:
    """The network of a run whose tokenizer has not been trained or whose weights are elsewhere; and where its shape is
    from.

    Raises:
        ValueError: the model's folder is there and cannot be used.
    """
    path, values = config.model.path, config.model
    numerics = {key: getattr(values, key) for key in configuration.NUMERICS}
    if not path:
        size = -(-config.tokenizer.vocab_size // 8) * 8
        return configuration.own_model(config, vocab_size=size, mask_id=1, eos_id=2), "the configuration"
    if not pathlib.Path(path).exists():
        return dataclasses.replace(LLADA_8B, **numerics), f"LLaDA-8B, since {path!r} is not here"
    return configuration.folder_model(config), path


def programs(config: Config, model: ModelConfig, mesh: Mesh) -> list[Program]:
    """Every program of a run that takes more than a moment, with the shapes and shardings it has there."""
    rl, sft, lora, objective = config.rl, config.sft, config.lora, config.objective
    n, g, at_once = rl.prompts, rl.group_size, rl.prompts // rl.rollout_chunks
    prompt_length, length = config.data.prompt_buckets[-1], config.sampler.completion_length

    def array(shape, dtype, spec=P(BATCH)):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    def tokens(*shape):
        return array(shape, jnp.int32)

    def prompts(rows):
        return tokens(rows, prompt_length), array((rows, prompt_length), jnp.bool_)

    def replicated_shapes(make):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), jax.eval_shape(make))

    key = replicated_shapes(lambda: jax.random.key(0))
    sft_optimizer = make_optimizer(config.sft.optimizer, max(sft.updates, 1), model, lora)
    rl_optimizer = make_optimizer(config.rl.optimizer, max(rl.iterations, 1) * objective.inner_steps, model, lora)
    sft_state, state = (abstract_state(optimizer, model, mesh, lora) for optimizer in (sft_optimizer, rl_optimizer))
    base_params = None if lora is None else transformer.abstract(model, mesh)
    copied = lora is None and model.compute_dtype != model.param_dtype
    copy = dataclasses.replace(model, param_dtype=model.compute_dtype)

    def acting_of(state):
        if lora is not None:
            return attach_abstract(base_params, state.params)
        return transformer.abstract(copy, mesh) if copied else state.params

    acting = acting_of(state)
    if lora is None:
        reference = transformer.abstract(copy, mesh)
    else:
        reference = attach_abstract(base_params, lora_module.abstract(model, lora, mesh)) if sft.updates else base_params
    training = {"training state": state, "reference": reference} | ({} if lora is None else {"frozen": base_params})

    def host(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype)

    def sampling(rows, decode, acting=acting):
        keys = replicated_shapes(lambda: jax.random.split(jax.random.key(0), rows))
        canvas = tokens(rows, length)
        state = DecodeState(*prompts(rows), canvas, keys, canvas, canvas, array((rows,), jnp.bool_), tokens(rows))
        return acting, state, host((), jnp.int32), model, decode

    hints = (
        host((at_once,), jnp.uint32),
        host((at_once * g, length), jnp.int32),
        host((at_once, length), jnp.int32),
        host((at_once,), jnp.int32),
        host((at_once, length), jnp.bool_),
    )
    ratios = host((), jnp.float32), host((), jnp.float32)
    gives_hints = config.inpainting.policy != "none"
    groups = GroupBatch.abstract(mesh, n, g, prompt_length, length)
    logprobs = LogProbs.abstract(mesh, groups, objective)
    update = make_update(rl_optimizer, model, objective, mesh, rl.microbatches, lora)
    sft_update = make_sft_update(sft_optimizer, model, sft.corruption, sft.microbatches, mesh, lora)
    sft_batch = SFTBatch(*prompts(sft.batch_size), tokens(sft.batch_size, length))
    scoring = (acting, reference, groups, key, model, objective, mesh, rl.microbatches)
    sample_decode, eval_decode = config.sampler, config.evaluation.decode
    blocks = rl.rollout_chunks * sample_decode.blocks
    in_rl, everything = rl.iterations > 0, training | {"policy": acting}
    rows = config.evaluation.batch_size
    in_sft = sft.updates > 0 and sft.eval_every > 0
    supervised = {"training state": sft_state} | ({} if lora is None else {"frozen": base_params})
    last_state, beside = (state, training) if in_rl else (sft_state, supervised)
    found = [
        Program("sample", denoise_block, sampling(at_once * g, sample_decode), training, in_rl, blocks),
        Program("inpaint", inpaint, (key, *hints, config.inpainting, ratios), everything, in_rl and gives_hints),
        Program("score", compute_logprobs, scoring, training, in_rl, 1),
        Program("update", update, (state, groups, logprobs, host((), jnp.int32), base_params), training, in_rl, objective.inner_steps),
        Program("evaluate", denoise_block, sampling(rows, eval_decode, acting_of(last_state)), beside, in_rl or in_sft),
    ]
    if sample_decode.cache != "none":
        number = batch_size_divisor(mesh) * -(-PROBED // batch_size_divisor(mesh))
        found.insert(1, Program("probe", block_errors, sampling(number, sample_decode), training, in_rl and rl.probe_every > 0))
    if copied:
        found.insert(0, Program("cast", make_cast(model, mesh), (last_state.params,), beside, in_rl or in_sft, 1))
    if in_sft and sft.heldout:
        masks = Corruption(array((rows, length), jnp.bool_), array((rows,), jnp.float32))
        arguments = (acting_of(sft_state), *prompts(rows), tokens(rows, length), masks, model)
        found.insert(0, Program("heldout", heldout_bound, arguments, supervised, True))
    if sft.updates or sft.batch_size // sft.microbatches % batch_size_divisor(mesh) == 0:
        found.insert(0, Program("sft", sft_update, (sft_state, sft_batch, key, base_params), {}, sft.updates > 0))
    return found


def attach_abstract(base_params: Any, adapters: Any) -> Any:
    """As `lora.attach`, which scales the adapters: there they are new arrays, which the compiler counts as temporary."""
    return base_params | {"blocks": base_params["blocks"] | {"adapters": adapters}}


def measure(program: Program, mesh: Mesh) -> dict[str, Any]:
    """Compiles a program; what it needs on one device: sizes in GiB, FLOPs, bytes, and an estimate of its time.

    Returns:
        A record for JSON. Where the compiler finds that it does not fit: `error`, and `peak_gib` as far as it says.
    """
    begin = time.perf_counter()
    arguments = abstract_leaves(program.arguments)
    resident, seen = {}, {id(leaf) for leaf in arguments}
    for name, tree in program.resident.items():
        leaves = [leaf for leaf in abstract_leaves(tree) if id(leaf) not in seen]
        seen |= {id(leaf) for leaf in leaves}
        if leaves:
            resident[name] = shard_bytes(leaves) / GIB
    record = {"name": program.name, "used": program.used, "per_iteration": program.per_iteration}
    record["resident_gib"] = resident
    others = sum(resident.values())
    try:
        with jax.set_mesh(mesh):
            compiled = program.function.lower(*program.arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        used = re.search(r"Used ([\d.]+)([GM]) of", str(error))
        if "RESOURCE_EXHAUSTED" not in str(error) or not used:
            raise
        peak = float(used[1]) / (1 if used[2] == "G" else 1024) + others
        return record | {"peak_gib": peak, "error": str(error).splitlines()[0][:300]}
    seconds = time.perf_counter() - begin
    memory = compiled.memory_analysis()
    twice = shard_bytes(arguments) - shard_bytes({id(leaf): leaf for leaf in arguments})  # one array, two arguments
    own = {
        "arguments_gib": memory.argument_size_in_bytes - twice,
        "outputs_gib": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporary_gib": memory.temp_size_in_bytes,
        "code_gib": memory.generated_code_size_in_bytes,
    }
    record |= {name: size / GIB for name, size in own.items()}
    record |= {"peak_gib": sum(own.values()) / GIB + others, "compile_seconds": seconds}
    try:
        cost = program_cost(compiled.as_text())
    except ValueError as error:  # the memory is known all the same
        return record | {"cost_error": str(error)}
    return record | {
        "flops": cost.flops,
        "bytes": cost.bytes,
        "received_bytes": {f"{kind}{' between slices' if far else ''}": n for (kind, far), n in cost.received.items()},
        **estimate(cost, CHIPS.get(mesh.devices.flat[0].device_kind)),
    }


def abstract_leaves(tree: Any) -> list[jax.ShapeDtypeStruct]:
    """Those that lie on devices already; configurations and what comes from the host are passed over."""
    leaves = jax.tree.leaves(tree)
    return [x for x in leaves if isinstance(x, jax.ShapeDtypeStruct) and x.sharding is not None]


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
