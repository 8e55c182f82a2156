"""The configuration of a run: one tree of frozen dataclasses with the names of the command line.

A config file defines `get_config()`, which starts from `base_config()` and sets keys. `parse` turns the result into a `Config`
and checks every value before anything is allocated: single keys by the check beside their field, combinations here.
"""

import dataclasses
import functools
import hashlib
import json
import os
from typing import Any

from ml_collections import ConfigDict

from igpo_jax.diffusion.corruption import CORRUPTIONS
from igpo_jax.diffusion.unmasking import DecodeConfig
from igpo_jax.model.attention import LANES, PLATFORMS
from igpo_jax.model.lora import ALL_LINEAR, LoraConfig, check_model_divides, require_multiples
from igpo_jax.model.transformer import ModelConfig
from igpo_jax.rl.hints import InpaintingConfig
from igpo_jax.rl.objective import ObjectiveConfig
from igpo_jax.runtime.checks import ascending_lengths, at_least, checked, one_of, positive, problem_of
from igpo_jax.runtime.files import RENAMED, renamed
from igpo_jax.runtime.mesh import batch_size_divisor
from igpo_jax.tasks import load_task
from igpo_jax.training.state import OptimizerConfig
from igpo_jax.weights.huggingface import MAX_SIZE, folder_model_config


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """Tokenizer trained on the first stage's problems; a folder `model.path` has its own."""

    kind: str = checked("char", one_of("char", "unigram", "bpe"))
    vocab_size: int = checked(512, at_least(1))
    chat: bool = False  # renders questions as a user's message in the chat template; needs model.path


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """Section `model`: a folder or a shape, and the numerics. `model_config` adds the vocabulary."""

    path: str = ""  # a folder of LLaDA or iLLaDA, from Hugging Face or from igpo_jax.convert; the folder decides the shape
    width: int = 64
    layers: int = 3
    heads: int = 4
    kv_heads: int = 4
    mlp_width: int = 192
    rope_theta: float = ModelConfig.rope_theta
    tied_head: bool = ModelConfig.tied_head
    param_dtype: str = ModelConfig.param_dtype
    compute_dtype: str = ModelConfig.compute_dtype
    remat: str = ModelConfig.remat
    attention: str = ModelConfig.attention
    head_chunk: int = 0  # 0: sized by the memory of a device, see `model.logprobs.with_head_chunk`


@dataclasses.dataclass(frozen=True)
class DataConfig:
    prompt_buckets: tuple[int, ...] = checked((256,), ascending_lengths)  # a batch is padded to the smallest that fits
    overflow: str = checked("error", one_of("error", "drop"))  # for problems whose prompt or solution does not fit


@dataclasses.dataclass(frozen=True)
class EvaluationConfig(DecodeConfig):
    """Decoding of test problems, and their number."""

    problems: int = checked(500, at_least(1))  # the first ones of the test split
    batch_size: int = checked(128, at_least(1))

    @property
    def decode(self) -> DecodeConfig:
        """Sampler settings only, so that equal samplers share compiled programs."""
        return DecodeConfig(**{field.name: getattr(self, field.name) for field in dataclasses.fields(DecodeConfig)})


@dataclasses.dataclass(frozen=True)
class SFTConfig:
    """The supervised stage."""

    updates: int = checked(1000, at_least(0))  # 0: no supervised stage
    batch_size: int = checked(64, at_least(1))
    corruption: str = checked("count", one_of(*CORRUPTIONS))  # see diffusion/corruption.py
    microbatches: int = checked(1, at_least(1))
    checkpoint_every: int = checked(500, at_least(1))  # updates
    heldout: int = checked(0, at_least(0))  # problems excluded from training, for the held-out loss
    eval_every: int = checked(0, at_least(0))  # updates between evaluations (held-out loss, test problems); 0: none
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-3, schedule="cosine", max_grad_norm=1.0)


@dataclasses.dataclass(frozen=True)
class RLConfig:
    """The RL stage; each iteration is one rollout and objective.inner_steps updates."""

    iterations: int = checked(100, at_least(0))  # 0: no RL stage
    prompts: int = checked(16, at_least(1))  # N, per rollout
    group_size: int = checked(8, at_least(2, "an advantage needs at least 2 completions to compare"))  # G
    rollout_chunks: int = checked(1, at_least(1))  # sampled one after the other, to save memory
    microbatches: int = checked(1, at_least(1))
    checkpoint_every: int = checked(20, at_least(1))  # iterations
    eval_every: int = checked(20, at_least(0))  # iterations; 0: only before and after the stage
    show_every: int = checked(10, at_least(1))  # iterations between rollouts saved for the report
    # An iteration samples at most this many batches of `prompts`, until `prompts` groups are neither all correct nor all wrong.
    dynamic_batches: int = checked(1, at_least(1))
    # With sampler.cache: iterations between measurements of its error (0: none), and the error (KL between a token's exact
    # and cached distributions, nats) above which rollouts are exact until the next measurement (0: no limit).
    probe_every: int = checked(20, at_least(0))
    probe_limit: float = checked(0.0, at_least(0))
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=5e-7)


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """Grading of completions, in separate processes."""

    # "package.module:name" of a function (problem, text) -> float; "": the task's
    function: str = checked("", lambda value: " is not package.module:name" if value and ":" not in value else "")
    workers: int = checked(2, at_least(1))
    deadline_seconds: float = checked(5.0, positive)  # per answer
    scale: float = checked(1.0, positive)  # factor of the function's value; reference code: 3
    format: bool = False  # add up to 0.75 for the paper's tags and a box; reference code: True
    after_eos: bool = False  # also grade the text after the first EOS; reference code: True


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Number of devices per mesh axis, see `runtime.mesh.make_mesh`."""

    data: int = 1
    fsdp: int = -1  # -1: the rest
    tensor: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Configuration of a run. Field names are the keys of the command line; defaults are those of `base_config`."""

    seed: int = checked(0, at_least(0))
    task: ConfigDict  # keys as in `defaults` of the task's module
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: NetworkConfig = NetworkConfig()
    lora: LoraConfig | None = None  # None: rank 0, all parameters are trained; else adapters of a frozen model
    data: DataConfig = DataConfig()
    sampler: DecodeConfig = DecodeConfig(completion_length=256, block_length=32, steps=128, temperature=1.2)  # of rollouts
    evaluation: EvaluationConfig = EvaluationConfig(completion_length=256, block_length=32, steps=128)
    sft: SFTConfig = SFTConfig()
    rl: RLConfig = RLConfig()
    inpainting: InpaintingConfig = InpaintingConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    reward: RewardConfig = RewardConfig()
    mesh: MeshConfig = MeshConfig()
    checkpoints_kept: int = checked(2, at_least(1))
    skip_limit: int = checked(5, at_least(1))  # consecutive updates skipped for a non-finite loss or gradient that end a run


NO_ADAPTERS: Any = {"rank": 0, "alpha": 64.0, "targets": ALL_LINEAR}  # the section lora if `Config.lora` is None


def _defaults(task: dict[str, Any]) -> Config:
    """Returns every key with its default; `lora` is a dict."""
    return Config(task=task, lora=NO_ADAPTERS)


def base_config(**task) -> ConfigDict:
    """Returns all keys with their defaults; setting an unknown key is an error.

    Args:
        task: the section `task`, see the task's `defaults`.
    """
    return ConfigDict(dataclasses.asdict(_defaults(task))).lock()


def parse(values: ConfigDict) -> Config:
    """Returns the typed form of a configuration.

    Raises:
        ValueError: a value is invalid; the message names the key.
    """
    task = values.get("task", {}).get("name", "")
    if not isinstance(task, str):
        raise ValueError(f"task.name={task!r} is no text")
    config = _build(_defaults(load_task(task).defaults()), values.to_dict(), "")
    adapters: Any = config.lora
    lora = _construct(LoraConfig, adapters, "lora") if adapters["rank"] else None
    config = dataclasses.replace(config, task=values.task, lora=lora)
    _check(config)
    return config


def _build(default: Any, value: Any, name: str) -> Any:
    """Returns `value` in the structure of `default`: dataclasses for its dataclasses, after a check of keys and types.

    ConfigDict itself accepts None and bool for any type, and any elements of a tuple.

    Args:
        name: dotted key; "" for the whole configuration.
    """
    fields = {field.name: field for field in dataclasses.fields(default)} if dataclasses.is_dataclass(default) else {}
    defaults = {key: getattr(default, key) for key in fields} if fields else default
    if isinstance(defaults, dict) and isinstance(value, dict):
        prefix = f"{name}." if name else ""
        for key in defaults.keys() ^ value.keys():
            raise ValueError(f"{prefix}{key} is missing" if key in defaults else f"{prefix}{key}: there is no such key")
        parts = {key: _build(defaults[key], value[key], f"{prefix}{key}") for key in defaults}
        for key, field in fields.items():
            if problem := problem_of(field, parts[key]):
                raise ValueError(f"{prefix}{key}={parts[key]!r}{problem}")
        return _construct(type(default), parts, name) if fields else parts
    several = isinstance(defaults, tuple | list) and isinstance(value, tuple | list)
    for part, kind in [(part, type(defaults[0])) for part in value] if several else [(value, type(defaults))]:
        number = kind is float and type(part) is int
        if (type(part) is not kind and not number) or part != part:
            raise ValueError(f"{name}={value!r}: {part!r} is no {kind.__name__}")
        if type(part) is int and abs(part) > MAX_SIZE:
            raise ValueError(f"{name}={value!r} does not lie within {MAX_SIZE}")
    return tuple(value) if isinstance(defaults, tuple) else value


def _construct(cls: type, values: dict[str, Any], name: str) -> Any:
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"config.{name.partition('.')[0]}: {error}") from None


NUMERICS = ("param_dtype", "compute_dtype", "remat", "attention", "head_chunk")
SHAPE_KEYS = ("width", "layers", "heads", "kv_heads", "mlp_width", "rope_theta", "tied_head")


def _require(condition: object, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check(config: Config) -> None:
    """Checks across keys and sections."""
    sft, rl, hints = config.sft, config.rl, config.inpainting
    for rows, size, parts, number in (
        ("sft.batch_size", sft.batch_size, "sft.microbatches", sft.microbatches),
        ("rl.prompts", rl.prompts, "rl.microbatches", rl.microbatches),
        ("rl.prompts", rl.prompts, "rl.rollout_chunks", rl.rollout_chunks),
    ):
        _require(size % number == 0, f"{rows}={size} is not a multiple of {parts}={number}")
    _require(sft.updates + rl.iterations > 0, "sft.updates=0 and rl.iterations=0 leave nothing to do")
    for split, used in (("sft", sft.updates), ("rl", rl.iterations), ("test", True)):
        size = config.task.get(f"{split}_problems", 1)
        _require(not used or size >= 1, f"task.{split}_problems={size} must be at least 1")
    _check_model(config)
    hides_answers = hints.exclude_answer and hints.policy != "none" and hints.source == "solution"
    _require(
        not (hides_answers and "{response}" in config.task.get("demonstration", "")),
        "task.demonstration has {response}, whose answers are not known to stand anywhere, and inpainting.exclude_answer=True "
        "hides answers; use {solution} and {answer}",
    )
    for name, decode in (("sampler", config.sampler), ("evaluation", config.evaluation)):
        _check_unused(name, decode)
    _require(
        not rl.probe_limit or (rl.probe_every > 0 and config.sampler.cache != "none"),
        "rl.probe_limit needs a cache whose error is measured: sampler.cache and rl.probe_every",
    )
    length, evaluated = config.sampler.completion_length, config.evaluation.completion_length
    _require(
        length == evaluated,
        f"sampler.completion_length={length} and evaluation.completion_length={evaluated} differ; prompts and completions of "
        "a run have one length",
    )


def _check_model(config: Config) -> None:
    """Checks of the sections model, tokenizer and lora together."""
    model, adapted = config.model, config.lora is not None
    if model.path:
        # The folder decides the shape, so a key that differs would have no effect.
        for name, section, keys in (("model", model, SHAPE_KEYS), ("tokenizer", config.tokenizer, ("kind", "vocab_size"))):
            for key in keys:
                value = getattr(section, key)
                _require(
                    value == getattr(type(section), key),
                    f"{name}.{key}={value!r} and model.path={model.path!r} are both given; the folder decides {name}.{key}",
                )
    _require(not adapted or model.path, f"lora.rank={config.lora and config.lora.rank} needs a model to adapt: model.path")
    _require(
        adapted or model.param_dtype == "float32",
        "model.param_dtype=bfloat16 and lora.rank=0: bfloat16 cannot hold the small steps of training; train adapters "
        "(lora.rank) or keep float32 parameters (model.compute_dtype may be bfloat16)",
    )
    try:
        own_model(config, vocab_size=1, mask_id=0, eos_id=0)
    except ValueError as error:
        raise ValueError(f"model.{error}") from None


def _check_unused(section: str, decode: DecodeConfig) -> None:
    """Raises ValueError for a key that has no effect in this sampler and is not at its default."""
    for key, used, needs in (
        ("refresh", decode.cache != "none", "cache"),
        ("threshold", decode.commit == "threshold", "commit='threshold'"),
        ("factor", decode.commit == "factor", "commit='factor'"),
        ("fallback", decode.commit != "schedule", "commit"),
    ):
        value = getattr(decode, key)
        if not used and value != getattr(DecodeConfig, key):
            raise ValueError(f"{section}.{key}={value!r} does nothing without {section}.{needs}; leave it out")


def folder_model(config: Config) -> ModelConfig | None:
    """Returns the network of the folder `model.path`, None without one. `with_tokenizer` sets its end of turn."""
    if not config.model.path:
        return None
    return folder_model_config(config.model.path, **{key: getattr(config.model, key) for key in NUMERICS})


def model_config(config: Config, tokenizer) -> ModelConfig:
    """Returns the network of the run. Rounds up the vocabulary of a trained tokenizer, so that a tensor axis of 2, 4 or 8
    divides the head."""
    from_folder = folder_model(config)
    if from_folder is not None:
        return with_tokenizer(from_folder, tokenizer, config.model.path)
    size = -(-tokenizer.vocab_size // 8) * 8
    return own_model(config, vocab_size=size, mask_id=tokenizer.mask_id, eos_id=tokenizer.eos_id)


def with_tokenizer(model: ModelConfig, tokenizer, folder: str | os.PathLike) -> ModelConfig:
    """Returns the network of a folder, with the end of turn of the folder's tokenizer.

    Raises:
        ValueError: network and tokenizer do not match.
    """
    if tokenizer.eos_id != model.eos_id:
        raise ValueError(
            f"{folder}: eos_token_id of config.json is {model.eos_id}, that of the tokenizer {tokenizer.eos_id}; the one "
            "ends a row, the other pads it"
        )
    if tokenizer.vocab_size > model.vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer has ids up to {tokenizer.vocab_size - 1}, the model {model.vocab_size} embeddings"
        )
    return dataclasses.replace(model, eot_id=tokenizer.eot_id)


def own_model(config: Config, **vocabulary: int) -> ModelConfig:
    """Returns the network with the shape of the section `model`; vocabulary: vocab_size, mask_id and eos_id."""
    keys: dict[str, Any] = vocabulary | {key: value for key, value in vars(config.model).items() if key != "path"}
    return ModelConfig(**keys)


def from_json(values: dict[str, Any]) -> ConfigDict:
    """Inverts `to_json`; keys missing in files of earlier versions get their defaults."""
    values = renamed(values)
    config = base_config(**load_task(values["task"]["name"]).defaults(**values["task"]))
    config.update(values)
    return config


def to_json(config: ConfigDict) -> dict[str, Any]:
    """Returns the configuration as config.json reads back: tuples become lists."""
    return json.loads(json.dumps(config.to_dict()))


# Keys that affect where and in how many parts a run computes, but not the result; a run may resume with other values.
RESUMABLE_KEYS = ("mesh.data", "mesh.fsdp", "mesh.tensor", "model.remat", "model.attention", "model.head_chunk")
RESUMABLE_KEYS += ("rl.rollout_chunks", "rl.microbatches", "sft.microbatches", "evaluation.batch_size")
RESUMABLE_KEYS += ("reward.workers", "reward.deadline_seconds", "skip_limit")


def fingerprint(config: ConfigDict) -> str:
    """Returns a hash of all keys that affect results, i.e. all but `RESUMABLE_KEYS`."""
    values = to_json(config)
    for key in RESUMABLE_KEYS:
        *sections, name = key.split(".")
        del functools.reduce(lambda part, section: part[section], sections, values)[name]
    values = renamed(values, {new: old for old, new in RENAMED.items()})  # runs of earlier versions keep their fingerprint
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def check_divisibility(config: Config, model: ModelConfig, mesh) -> None:
    """Checks that all sizes split over devices divide evenly, and that the attention runs on these devices.

    Raises:
        ValueError: names the config keys that conflict.
    """
    sft, rl = config.sft, config.rl
    sizes = {"evaluation.batch_size": config.evaluation.batch_size}
    if sft.updates:
        sizes["sft.batch_size / sft.microbatches"] = sft.batch_size // sft.microbatches
    if rl.iterations:
        sizes["rl.prompts / rl.microbatches"] = rl.prompts // rl.microbatches
        sizes["rl.prompts * rl.group_size / rl.rollout_chunks"] = rl.prompts // rl.rollout_chunks * rl.group_size
    rows = batch_size_divisor(mesh)
    require_multiples([(name, size, "mesh.data * mesh.fsdp", rows) for name, size in sizes.items()])
    check_model_divides(model, mesh, config.lora)
    platform, possible = mesh.devices.flat[0].platform, PLATFORMS[model.attention]
    if platform not in possible:
        raise ValueError(f"model.attention={model.attention!r} runs on {' and '.join(possible)}, not on {platform}")
    if model.attention == "splash":
        length = config.sampler.completion_length
        parts = [(f"a prompt bucket + {length}", size + length) for size in config.data.prompt_buckets]
        parts.append(("the head size", model.head_size))
        require_multiples([(name, size, "the lanes of model.attention='splash'", LANES) for name, size in parts])
