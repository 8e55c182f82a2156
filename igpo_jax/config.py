"""The configuration of a run: a tree of frozen dataclasses whose field names are the keys on the command line.

A config file defines `get_config()`, which starts from `base_config()` and sets keys. `parse` converts the result to a `Config`
and checks every value before memory is allocated. The check of a single key is written beside the key's field. Functions of
this module check combinations of keys."""

import dataclasses
import hashlib
import json
import os
from typing import Any

from ml_collections import ConfigDict

from igpo_jax.diffusion.corruption import CORRUPTIONS
from igpo_jax.diffusion.unmasking import DecodeConfig
from igpo_jax.model.lora import ALL_LINEAR, LoraConfig
from igpo_jax.model.transformer import AUTO, ModelConfig
from igpo_jax.rl.hints import NOISE_KEYS, InpaintingConfig
from igpo_jax.rl.objective import ObjectiveConfig
from igpo_jax.runtime.buckets import require_model
from igpo_jax.runtime.checks import (
    MOST_DEADLINE,
    MOST_IDS,
    MOST_PROBLEMS,
    MOST_ROWS,
    ascending_lengths,
    at_least,
    check_fields,
    checked,
    one_of,
    positive,
    require,
    within,
)
from igpo_jax.runtime.files import RENAMED, renamed
from igpo_jax.tasks import load_task
from igpo_jax.tasks.benchmark import BenchmarkConfig, default_benchmarks, used_benchmarks, with_problems
from igpo_jax.tasks.reward_terms import term_error
from igpo_jax.tokenizers import ids_never_drawn
from igpo_jax.training.state import OptimizerConfig
from igpo_jax.weights.huggingface import MAX_SIZE, folder_model_config


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """Section `tokenizer` of the configuration: a tokenizer that is trained on the problems of the first stage. If `model.path`
    is set, no tokenizer is trained, and the tokenizer in the folder `model.path` is used."""

    kind: str = checked("char", one_of("char", "unigram", "bpe"))  # a token is a character, or a piece that SentencePiece finds
    vocab_size: int = checked(512, at_least(1, most=MOST_IDS))  # the most entries
    chat: bool = False  # renders questions as a user's message in the chat template; needs model.path


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """Section `model` of the configuration: the folder or the shape of the network, and its numerical settings. This section
    does not contain the vocabulary, which the function `model_config` adds."""

    # A folder from Hugging Face or from igpo_jax.convert, or the id of a model in the Hugging Face cache; it decides the shape.
    path: str = ""
    width: int = 64  # size of the hidden states
    layers: int = 3  # blocks of attention and MLP
    heads: int = 4  # attention heads of queries
    kv_heads: int = 4  # heads of keys and values, a divisor of `heads`
    mlp_width: int = 192  # size of the MLPs' hidden layers
    rope_theta: float = ModelConfig.rope_theta  # base of the rotary embedding
    tied_head: bool = ModelConfig.tied_head  # the output head is the embedding
    param_dtype: str = ModelConfig.param_dtype  # float32 | bfloat16, of the parameters; bfloat16 needs adapters (lora.rank)
    # "int8": the frozen matrices under adapters (lora.rank) are quantized when they are loaded, see model/int8.py. "": they
    # have the dtype param_dtype.
    base_dtype: str = ModelConfig.base_dtype
    compute_dtype: str = ModelConfig.compute_dtype  # float32 | bfloat16, of activations
    # What the backward pass recomputes to save memory. none: nothing; dots: all but products with weights; full: layers
    remat: str = ModelConfig.remat
    # xla | cudnn | splash, see model/attention.py; auto: the kernel for these devices if it supports the model, otherwise xla
    attention: str = AUTO
    head_chunk: int = 0  # positions whose logits exist at a time; 0: as many as suit a device, see model/fitting.py


@dataclasses.dataclass(frozen=True)
class DataConfig:
    prompt_buckets: tuple[int, ...] = checked((256,), ascending_lengths)  # a batch is padded to the smallest length that fits
    # A problem whose prompt or demonstration does not fit. error: ends the run; drop: is dropped; truncate: a long demonstration is
    # cut, and a problem with a long prompt is dropped
    overflow: str = checked("error", one_of("error", "drop", "truncate"))


class DecodeSection(DecodeConfig):
    """Base class of the sections of the configuration that contain sampler settings in addition to their own keys."""

    @property
    def decode(self) -> DecodeConfig:
        """Sampler settings of this section, without its other keys. Sections with equal sampler settings share compiled
        programs."""
        return DecodeConfig(**{field.name: getattr(self, field.name) for field in dataclasses.fields(DecodeConfig)})


@dataclasses.dataclass(frozen=True)
class SamplerConfig(DecodeSection):
    """Section `sampler` of the configuration: the settings of rollouts."""

    # Layout of the weights on the devices while rollouts and evaluations sample. "train": the layout used in training.
    # "replicated": every device has a copy. "tensor": a few devices share a copy. "auto": the fastest layout that fits into
    # memory, see run/layout.py.
    layout: str = checked("auto", one_of("auto", "train", "replicated", "tensor"))


@dataclasses.dataclass(frozen=True)
class EvaluationConfig(DecodeSection):
    """Section `evaluation` of the configuration: the number of test problems, and the sampler settings for test problems."""

    problems: int = checked(500, at_least(1, most=MOST_PROBLEMS))  # the first ones of the test split
    batch_size: int = checked(128, at_least(0, most=MOST_ROWS))  # problems; 0: as many as fit into memory, see run/layout.py
    # Further test sets. evaluation.benchmarks.NAME has the keys of benchmarks.NAME in the section Evaluations below. Each
    # evaluation of the run also evaluates these, with the sampler of this section. Those of the task math without a file are
    # left out.
    benchmarks: dict[str, BenchmarkConfig] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class SFTConfig:
    """Section `sft` of the configuration: the stage of supervised fine-tuning."""

    updates: int = checked(1000, at_least(0))  # of the parameters; 0: no supervised stage, unless `epochs` is set
    # Passes over the training problems, instead of `updates`, which must be 0. 0: `updates` decides
    epochs: int = checked(0, at_least(0))
    batch_size: int = checked(64, at_least(1, most=MOST_ROWS))  # demonstrations per update
    corruption: str = checked("count", one_of(*CORRUPTIONS))  # how demonstrations are masked, see diffusion/corruption.py
    microbatches: int = checked(1, at_least(1))  # parts of a batch that are computed one after the other, to save memory
    checkpoint_every: int = checked(500, at_least(1))  # updates between checkpoints
    heldout: int = checked(0, at_least(0))  # problems excluded from training, for the held-out loss
    eval_every: int = checked(0, at_least(0))  # updates between evaluations (held-out loss, test problems); 0: none
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-3, schedule="cosine", max_grad_norm=1.0)

    @property
    def enabled(self) -> bool:
        return self.updates > 0 or self.epochs > 0

    def with_updates(self, problems: int) -> "SFTConfig":
        """Returns the section with the updates of `epochs` passes over the problems, if it is set. Each leaves out the last
        problems that do not fill a batch, see `data.pipeline.batches`."""
        return dataclasses.replace(self, updates=self.epochs * (problems // self.batch_size)) if self.epochs else self


@dataclasses.dataclass(frozen=True)
class RLConfig:
    """Section `rl` of the configuration: the stage of reinforcement learning. Each iteration consists of one rollout and
    `objective.inner_steps` updates."""

    iterations: int = checked(100, at_least(0))  # rollouts with their updates; 0: no RL stage
    seed: int = checked(0, at_least(0))  # with the configuration's seed, decides prompts and samples: one stage, several runs
    prompts: int = checked(16, at_least(1, most=MOST_ROWS))  # N: problems per rollout
    # G: completions per problem, at least 2
    group_size: int = checked(8, at_least(2, "an advantage needs at least 2 completions to compare", MOST_ROWS))
    # A rollout samples its chunks one after the other, to save memory and to pad short prompts less. 0: the fastest number of
    # chunks, see run/layout.py
    rollout_chunks: int = checked(1, at_least(0))
    microbatches: int = checked(1, at_least(0))  # parts of an update's batch; 0: the fastest number, see run/microbatch_choice.py
    checkpoint_every: int = checked(20, at_least(1))  # iterations between checkpoints
    # Checkpoints of iterations that are multiples of this number are kept for good. 0: only `checkpoints_kept` and the best one
    keep_every: int = checked(0, at_least(0))
    eval_every: int = checked(20, at_least(0))  # iterations between evaluations; 0: only before and after the stage
    show_every: int = checked(10, at_least(1))  # iterations between rollouts saved for the report
    # An iteration samples batches until `prompts` groups have both correct and wrong completions, but at most this many
    # batches.
    dynamic_batches: int = checked(1, at_least(1))
    # Iterations between measurements of the error of a sampler with sampler.cache, which is the KL between a token's exact and
    # cached distributions. 0: no measurements
    probe_every: int = checked(20, at_least(0))
    # Nats. While the last measured error is larger, rollouts use the exact sampler. 0: no limit
    probe_limit: float = checked(0.0, at_least(0))
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=5e-7)


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """Section `reward` of the configuration: grading of completions in separate processes."""

    # "package.module:name" of a function (problem, text) -> float; "" or "task" selects the task's own reward. A sum such as
    # "task + 0.2*package.module:name" adds several functions; the first one decides which completions are correct.
    function: str = checked("", term_error)
    workers: int = checked(2, at_least(1, most=1024))  # processes that grade answers
    # Longest time for grading an answer, which otherwise has no verdict
    deadline_seconds: float = checked(5.0, at_least(0.001, most=MOST_DEADLINE))
    # A run stops if more than this share of the completions of an iteration or evaluation has no verdict, because grading took
    # too long or failed.
    max_ungraded: float = checked(0.2, within(0, 1))
    scale: float = checked(1.0, positive)  # the value of `function` is multiplied by this; reference code: 3
    format: bool = False  # add up to 0.75 for the paper's tags and a box; reference code: True
    after_eos: bool = False  # also grade the text after the first EOS; reference code: True


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Section `mesh` of the configuration: the number of devices along each axis of the device mesh."""

    data: int = 1  # devices that share a batch and have copies of the parameters, such as the slices of a TPU pod
    fsdp: int = -1  # devices that share a batch and the parameters; -1: all remaining devices
    tensor: int = 1  # devices that share the heads, the MLP and the vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Configuration of a run. Field names are the keys on the command line. The default values of the fields are the defaults
    that `base_config` returns."""

    seed: int = checked(0, at_least(0))  # of the drawn problems, the initial parameters and all training
    task: ConfigDict  # keys as in `defaults` of the task's module
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: NetworkConfig = NetworkConfig()
    lora: LoraConfig | None = None  # adapters of a frozen model; None (rank 0): all parameters are trained
    data: DataConfig = DataConfig()
    sampler: SamplerConfig = SamplerConfig(completion_length=256, block_length=32, steps=128, temperature=1.2)  # of rollouts
    evaluation: EvaluationConfig = EvaluationConfig(completion_length=256, block_length=32, steps=128)
    sft: SFTConfig = SFTConfig()
    rl: RLConfig = RLConfig()
    inpainting: InpaintingConfig = InpaintingConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    reward: RewardConfig = RewardConfig()
    mesh: MeshConfig = MeshConfig()
    checkpoints_kept: int = checked(2, at_least(1))  # the newest ones of a stage
    # A run ends after this many consecutive updates with a non-finite loss or gradient.
    skip_limit: int = checked(5, at_least(1))


NO_ADAPTERS: Any = {"rank": 0, "alpha": 64.0, "targets": ALL_LINEAR}  # the section `lora` if `Config.lora` is None
# Keys of the section `model`
NUMERICS = ("param_dtype", "base_dtype", "compute_dtype", "remat", "attention", "head_chunk")
SHAPE_KEYS = ("width", "layers", "heads", "kv_heads", "mlp_width", "rope_theta", "tied_head")
# A run may resume with other values of these keys. They affect how a run computes, but not what it is meant to compute.
RESUMABLE_KEYS = ("mesh.data", "mesh.fsdp", "mesh.tensor", "model.remat", "model.attention", "model.head_chunk")
RESUMABLE_KEYS += ("sampler.layout", "rl.rollout_chunks", "rl.microbatches", "sft.microbatches", "evaluation.batch_size")
RESUMABLE_KEYS += ("reward.workers", "reward.deadline_seconds", "reward.max_ungraded", "skip_limit", "rl.keep_every")
UNSET_KEYS = (("model", "base_dtype"), ("inpainting", "tries"), ("rl", "seed"), ("sft", "epochs"))
UNSET_KEYS += tuple(("inpainting", name) for name in NOISE_KEYS)  # runs of earlier versions lack all of these
NEW_KEYS = ("top_p", "top_k", "tempered_confidence", "alg_temp")  # of samplers; version 0.1.0 lacks them
# Sections and keys that do not affect the supervised stage. The arms of a comparison differ only in these.
RL_KEYS = ("rl", "objective", "inpainting", "task.rl_problems")
RL_KEYS += tuple(f"sampler.{field.name}" for field in dataclasses.fields(DecodeConfig) if field.name != "completion_length")


def base_config(**task) -> ConfigDict:
    """Returns a configuration with defaults for all keys. `task` contains the keys of the section `task`. They are usually
    created by the function `defaults` of a task's module. Setting an unknown key of the returned configuration raises an
    error, except in `evaluation.benchmarks`, which has a key for each benchmark."""
    config = ConfigDict(dataclasses.asdict(Config(task=task, lora=NO_ADAPTERS))).lock()
    config.evaluation.benchmarks.unlock()
    return config


def parse(values: ConfigDict) -> Config:
    """Converts a configuration to a `Config`. If a value is invalid, raises a ValueError that names its key."""
    task = values.get("task", {}).get("name", "")
    require(isinstance(task, str), f"task.name={task!r} is no text")
    given, default = values.to_dict(), Config(task=load_task(task).defaults(), lora=NO_ADAPTERS)
    benchmarks = default_benchmarks(given.get("evaluation"))
    default = dataclasses.replace(default, evaluation=dataclasses.replace(default.evaluation, benchmarks=benchmarks))
    config = _build(default, given, "")
    lora = _construct(LoraConfig, config.lora, "lora") if config.lora["rank"] else None
    evaluation = dataclasses.replace(config.evaluation, benchmarks=used_benchmarks(config.evaluation.benchmarks))
    config = dataclasses.replace(config, task=values.task, lora=lora, evaluation=evaluation)
    _check(config)
    return config


def _build(default: Any, value: Any, name: str) -> Any:
    """Converts nested dicts to dataclasses of the same types as in `default`, and returns the result. Checks all keys and
    types, because ConfigDict accepts None and bool for any type and does not check the elements of tuples. `name` is the dotted
    key of `value`, or "" for the whole configuration."""
    fields = {field.name: field for field in dataclasses.fields(default)} if dataclasses.is_dataclass(default) else {}
    defaults = {key: getattr(default, key) for key in fields} if fields else default
    if isinstance(defaults, dict) and isinstance(value, dict):
        prefix = f"{name}." if name else ""
        for key in defaults.keys() ^ value.keys():
            raise ValueError(f"{prefix}{key} is missing" if key in defaults else f"{prefix}{key}: there is no such key")
        parts = {key: _build(defaults[key], value[key], f"{prefix}{key}") for key in defaults}
        if not fields:
            return parts
        section = _construct(type(default), parts, name)
        if not hasattr(section, "__post_init__"):  # `__post_init__` checks the fields
            check_fields(section, prefix)
        return section
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
        raise ValueError(f"config.{name}.{str(error).removeprefix(f'{name}.')}") from None


def _check(config: Config) -> None:
    """Raises ValueError if the values of several configuration keys are invalid in combination. The keys may be in the same
    section or in different sections."""
    sft, rl, hints = config.sft, config.rl, config.inpainting
    completions = rl.prompts * rl.group_size
    require(completions <= MOST_ROWS, f"rl.prompts * rl.group_size={completions} must be at most {MOST_ROWS}")
    for rows, size, parts, number in (
        ("sft.batch_size", sft.batch_size, "sft.microbatches", sft.microbatches),
        ("rl.prompts", rl.prompts, "rl.microbatches", rl.microbatches),
        ("rl.prompts", rl.prompts, "rl.rollout_chunks", rl.rollout_chunks),
        ("rl.group_size", rl.group_size, "inpainting.tries", hints.tries),
        ("rl.keep_every", rl.keep_every, "rl.checkpoint_every", rl.checkpoint_every),
    ):
        require(not number or size % number == 0, f"{rows}={size} is not a multiple of {parts}={number}")
    require(sft.enabled or rl.iterations > 0, "sft.updates=0 and rl.iterations=0 leave nothing to do")
    both = f"sft.updates={sft.updates} and sft.epochs={sft.epochs} are both given; set one of them to 0"
    require(not (sft.updates and sft.epochs), both)
    for split, used in (("sft", sft.enabled), ("rl", rl.iterations), ("test", True)):
        size = config.task.get(f"{split}_problems", 1)
        require(not used or size >= 1, f"task.{split}_problems={size} must be at least 1")
        require(size <= MOST_PROBLEMS, f"task.{split}_problems={size} must be at most {MOST_PROBLEMS}")
    _check_model(config)
    hides_answers = hints.exclude_answer and hints.policy != "none" and hints.source == "solution"
    unknown = "task.demonstration has {response}, whose answers are not known to stand anywhere"
    conflict = unknown + ", and inpainting.exclude_answer=True hides answers; use {solution} and {answer}"
    require(not hides_answers or "{response}" not in config.task.get("demonstration", ""), conflict)
    for section, decode in (("sampler", config.sampler), ("evaluation", config.evaluation)):
        for key, used, needs in (
            ("refresh", decode.cache != "none", "cache"),
            ("threshold", decode.commit == "threshold", "commit='threshold'"),
            ("factor", decode.commit == "factor", "commit='factor'"),
            ("fallback", decode.commit in ("threshold", "factor"), "commit"),
        ):
            value = getattr(decode, key)
            unused = f"{section}.{key}={value!r} does nothing without {section}.{needs}; leave it out"
            require(used or value == getattr(DecodeConfig, key), unused)
    unmeasured = "rl.probe_limit needs a cache whose error is measured: sampler.cache and rl.probe_every"
    require(not rl.probe_limit or (rl.probe_every > 0 and config.sampler.cache != "none"), unmeasured)
    length, evaluated = config.sampler.completion_length, config.evaluation.completion_length
    lengths = f"sampler.completion_length={length} and evaluation.completion_length={evaluated}"
    require(length == evaluated, f"{lengths} differ; prompts and completions of a run have one length")


def _check_model(config: Config) -> None:
    """Raises ValueError if values of the sections `model`, `tokenizer` and `lora` are invalid in combination."""
    model, adapted = config.model, config.lora is not None
    if model.path:
        # The folder decides the shape, so a key that differs would have no effect.
        for name, section, keys in (("model", model, SHAPE_KEYS), ("tokenizer", config.tokenizer, ("kind", "vocab_size"))):
            for key in keys:
                value = getattr(section, key)
                both = f"{name}.{key}={value!r} and model.path={model.path!r} are both given"
                require(value == getattr(type(section), key), f"{both}; the folder decides {name}.{key}")
    require(not adapted or model.path, f"lora.rank={config.lora and config.lora.rank} needs a model to adapt: model.path")
    imprecise = "model.param_dtype=bfloat16 and lora.rank=0: bfloat16 cannot hold the small steps of training"
    advice = "train adapters (lora.rank) or keep float32 parameters (model.compute_dtype may be bfloat16)"
    require(adapted or model.param_dtype == "float32", f"{imprecise}; {advice}")
    trained = f"model.base_dtype={model.base_dtype!r} and lora.rank=0: only frozen weights can be quantized"
    require(adapted or not model.base_dtype, f"{trained}; train adapters (lora.rank) or leave model.base_dtype out")
    try:
        own_model(config, vocab_size=1, mask_id=0, eos_id=0)
    except ValueError as error:
        raise ValueError(f"model.{error}") from None


def folder_model(config: Config) -> ModelConfig | None:
    """Returns the configuration of the network in the folder `model.path`, or None if `model.path` is empty. The result still
    lacks the end-of-turn token and the ids that the sampler never draws. `with_tokenizer` takes both from the tokenizer."""
    if not config.model.path:
        return None
    require_model(config.model.path, "model.path")
    return folder_model_config(config.model.path, **{key: getattr(config.model, key) for key in NUMERICS})


def model_config(config: Config, tokenizer) -> ModelConfig:
    """Returns the configuration of a run's network. If the run trains its own tokenizer, the vocabulary size is rounded up to a
    multiple of 8, so that 2, 4 or 8 devices can share the output head."""
    from_folder = folder_model(config)
    if from_folder is not None:
        return with_tokenizer(from_folder, tokenizer, config.model.path)
    size = -(-tokenizer.vocab_size // 8) * 8
    model = own_model(config, vocab_size=size, mask_id=tokenizer.mask_id, eos_id=tokenizer.eos_id)
    return dataclasses.replace(model, never_drawn=ids_never_drawn(tokenizer, size))


def with_tokenizer(model: ModelConfig, tokenizer, folder: str | os.PathLike) -> ModelConfig:
    """Returns the network configuration `model` with two additions from the tokenizer: the end-of-turn token, and the ids that
    the sampler never draws. Raises ValueError if the network and the tokenizer do not match. The error message names
    `folder`."""
    ends = f"eos_token_id of config.json is {model.eos_id}, that of the tokenizer {tokenizer.eos_id}"
    require(tokenizer.eos_id == model.eos_id, f"{folder}: {ends}; the one ends a row, the other pads it")
    masks = f"mask_token_id of config.json is {model.mask_id}, that of the tokenizer {tokenizer.mask_id}"
    require(tokenizer.mask_id == model.mask_id, f"{folder}: {masks}")
    ends_turns = f"{folder}: mask_token_id={model.mask_id} is also the end of a turn in the tokenizer"
    require(tokenizer.mask_id != tokenizer.eot_id, ends_turns)
    sizes = f"the tokenizer has ids up to {tokenizer.vocab_size - 1}, the model {model.vocab_size} embeddings"
    require(tokenizer.vocab_size <= model.vocab_size, f"{folder}: {sizes}")
    return dataclasses.replace(model, eot_id=tokenizer.eot_id, never_drawn=ids_never_drawn(tokenizer, model.vocab_size))


def own_model(config: Config, **vocabulary: int) -> ModelConfig:
    """Returns the configuration of a network with the shape given in the section `model`. `vocabulary` contains the vocab_size,
    mask_id and eos_id of the network."""
    keys: dict[str, Any] = vocabulary | {key: value for key, value in vars(config.model).items() if key != "path"}
    return ModelConfig(**keys)


def from_json(values: dict[str, Any]) -> ConfigDict:
    """Converts the JSON value in a config.json, as returned by `to_json`, back to a configuration. Keys that are missing in old
    files get their default values."""
    values = renamed(values)
    config = base_config(**load_task(values["task"]["name"]).defaults(**values["task"]))
    for name, part in default_benchmarks(values.get("evaluation")).items():
        config.evaluation.benchmarks[name] = ConfigDict(dataclasses.asdict(part))
    config.update(values)
    return config


def to_json(config: ConfigDict) -> dict[str, Any]:
    """Returns a configuration as the JSON value that is written to config.json. Tuples become lists. Benchmarks that are not
    evaluated, because they have no file, are left out."""
    values = json.loads(json.dumps(config.to_dict()))
    if used := with_problems(values.get("evaluation", {}).pop("benchmarks", {})):
        values["evaluation"]["benchmarks"] = used
    return values


def fingerprint(config: ConfigDict, stage: str = "rl") -> str:
    """Returns a hash of a configuration. The hash leaves out `RESUMABLE_KEYS`, whose values may change when a run resumes. For
    the stage "sft", the hash also leaves out `RL_KEYS`. A run resumes only from checkpoints with the same hash, so adding a key
    to this module must not change the hash of older configurations."""
    values = to_json(config)
    for key in RESUMABLE_KEYS + (RL_KEYS if stage == "sft" else ()):
        section, _, name = key.rpartition(".")
        (values.get(section, {}) if section else values).pop(name, None)
    for section, name in UNSET_KEYS:
        if not values.get(section, {}).get(name):
            values.get(section, {}).pop(name, None)
    for section in ("sampler", "evaluation"):
        if section in values:
            values[section] = without_new_keys(values[section])
    values = renamed(values, {new: old for old, new in RENAMED.items()})  # runs of earlier versions keep their fingerprint
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def without_new_keys(decode: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings of a sampler without those keys of `NEW_KEYS` that have their default values. Configurations
    of earlier versions lack these keys."""
    return {key: value for key, value in decode.items() if key not in NEW_KEYS or value != getattr(DecodeConfig, key)}
