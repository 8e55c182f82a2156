"""The configuration of a run: its defaults, its validation, and where a bare file name is looked up.

A config file defines `get_config()`, which starts from `base_config()` and sets what it needs. `parse` turns the result
into typed, frozen sections and checks every value before anything is allocated.
"""

import dataclasses
import functools
import hashlib
import json
import math
import os
import pathlib
from typing import Any

from ml_collections import ConfigDict

from igpo_jax.diffusion.corruption import CORRUPTIONS
from igpo_jax.diffusion.unmasking import DecodeConfig
from igpo_jax.model.attention import LANES, PLATFORMS
from igpo_jax.model.lora import ALL_LINEAR, LoraConfig, check_model_divides, require_multiples
from igpo_jax.model.transformer import ModelConfig
from igpo_jax.rl.hints import InpaintingConfig
from igpo_jax.rl.objective import ObjectiveConfig
from igpo_jax.runtime.files import RENAMED, renamed
from igpo_jax.runtime.mesh import batch_size_divisor
from igpo_jax.tasks import load_task
from igpo_jax.training.state import OptimizerConfig
from igpo_jax.weights.huggingface import MAX_SIZE, folder_model_config


@dataclasses.dataclass(frozen=True)
class SFTConfig:
    """The supervised stage; 0 updates leave it out."""

    updates: int
    batch_size: int
    corruption: str = "count"  # count | independent, see diffusion/corruption.py
    microbatches: int = 1
    checkpoint_every: int = 500  # updates
    heldout: int = 0  # problems of the split that are not trained on, for the held-out loss
    eval_every: int = 0  # updates between evaluations: the held-out loss, and test problems by generation; 0: none


@dataclasses.dataclass(frozen=True)
class RLConfig:
    """The RL stage; each iteration is one rollout and objective.inner_steps updates; 0 iterations leave it out."""

    iterations: int
    prompts: int  # N, per rollout
    group_size: int = 8  # G
    rollout_chunks: int = 1  # one after the other, to save memory
    microbatches: int = 1
    checkpoint_every: int = 20  # iterations
    eval_every: int = 20  # iterations; 0: only before and after the stage
    show_every: int = 10  # iterations between rollouts that are kept for the report
    # At most so many batches of `prompts` are sampled in an iteration, until there are `prompts` groups that are neither all
    # correct nor all wrong.
    dynamic_batches: int = 1
    # With sampler.cache: iterations between measurements of its error, 0: none; and the error (KL of the exact and the cached
    # distribution of a token, in nats) above which rollouts are exact until it is measured again, 0: never.
    probe_every: int = 20
    probe_limit: float = 0.0


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    problems: int  # of the test split, from its beginning
    batch_size: int


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """How completions are graded, in processes of their own."""

    function: str = ""  # "package.module:name" of one's own, (problem, text) -> float; "": the task's
    workers: int = 2
    deadline_seconds: float = 5.0  # for one answer
    scale: float = 1.0  # of what the function says; REF: 3
    format: bool = False  # add up to 0.75 for the paper's tags and a box; REF: True
    after_eos: bool = False  # also grade what follows the first EOS; REF: True

    def __post_init__(self):
        if self.function and ":" not in self.function:
            raise ValueError(f"function={self.function!r} is not package.module:name")
        if self.workers < 1 or not 0 < self.deadline_seconds < math.inf or not 0 < self.scale < math.inf:
            raise ValueError("workers must be at least 1, deadline_seconds and scale positive")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    prompt_buckets: tuple[int, ...]  # ascending; a batch is padded to the smallest that holds it
    overflow: str = "error"  # error | drop: problems whose prompt or solution does not fit


@dataclasses.dataclass(frozen=True)
class Settings:
    """A validated configuration. `model` lacks its vocabulary until the tokenizer is known: see `model_config`."""

    seed: int
    task: ConfigDict
    tokenizer: ConfigDict
    model: dict[str, Any]
    lora: LoraConfig | None  # None: all parameters are trained
    data: DataConfig
    rollout_decode: DecodeConfig
    eval_decode: DecodeConfig
    sft: SFTConfig
    sft_optimizer: OptimizerConfig
    rl: RLConfig
    rl_optimizer: OptimizerConfig
    inpainting: InpaintingConfig
    objective: ObjectiveConfig
    reward: RewardConfig
    evaluation: EvalConfig
    mesh: dict[str, int]
    checkpoints_kept: int
    skip_limit: int


def _defaults(cls, **values) -> dict[str, Any]:
    """The dataclass's fields as a dict; `values` for those without a default."""
    return dataclasses.asdict(cls(**values))


def base_config(**task) -> ConfigDict:
    """Every key there is, with its default; setting a key that is not here is an error.

    Args:
        task: the section `task`, see the task's `defaults`.
    """
    decode = _defaults(DecodeConfig, completion_length=256, block_length=32, steps=128)
    config = ConfigDict(
        {
            "seed": 0,
            "task": task,
            # What is trained on the questions; not used where model.path brings a tokenizer. chat: questions become a
            # user's message in the chat template.
            "tokenizer": {"kind": "char", "vocab_size": 512, "chat": False},
            "model": {
                # A folder of LLaDA or iLLaDA, from Hugging Face or from igpo_jax.convert; it decides the shape.
                "path": "",
                "width": 64,
                "layers": 3,
                "heads": 4,
                "kv_heads": 4,
                "mlp_width": 192,
                "rope_theta": 500_000.0,
                "tied_head": False,
                "param_dtype": "float32",
                "compute_dtype": "float32",
                "remat": "none",
                "attention": "xla",
                "head_chunk": 0,  # sized by the memory of a device, see `placement.with_head_chunk`
            },
            # rank 0: all parameters are trained. Otherwise the model is frozen, and adapters of its matrices are trained.
            "lora": {"rank": 0, "alpha": 64.0, "targets": ALL_LINEAR},
            "data": _defaults(DataConfig, prompt_buckets=(256,)),
            # How rollouts are decoded, and how answers are decoded in evaluations: same keys, same type.
            "sampler": {**decode, "temperature": 1.2},
            "evaluation": {**decode, **_defaults(EvalConfig, problems=500, batch_size=128)},
            "sft": {
                **_defaults(SFTConfig, updates=1000, batch_size=64),
                "optimizer": _defaults(OptimizerConfig, learning_rate=1e-3, schedule="cosine", max_grad_norm=1.0),
            },
            "rl": {
                **_defaults(RLConfig, iterations=100, prompts=16),
                "optimizer": _defaults(OptimizerConfig, learning_rate=5e-7),
            },
            "inpainting": _defaults(InpaintingConfig),
            "objective": _defaults(ObjectiveConfig),
            "reward": _defaults(RewardConfig),
            "mesh": {"data": 1, "fsdp": -1, "tensor": 1},
            "checkpoints_kept": 2,
            # An update whose loss or gradient is not finite is skipped; so many in a row end the run.
            "skip_limit": 5,
        }
    )
    return config.lock()


def parse(config: ConfigDict) -> Settings:
    """Typed sections of a configuration.

    Raises:
        ValueError: a value that cannot work; the message names the key.
    """
    _check_types(config)

    def section(name: str, cls, values=None):
        try:
            return cls(**(values or {key: value for key, value in config[name].items() if key != "optimizer"}))
        except ValueError as error:
            raise ValueError(f"config.{name}: {error}") from None

    decode_keys = [field.name for field in dataclasses.fields(DecodeConfig)]
    evaluation = config.evaluation.to_dict()
    settings = Settings(
        seed=config.seed,
        task=config.task,
        tokenizer=config.tokenizer,
        model=config.model.to_dict(),
        lora=section("lora", LoraConfig) if config.lora.rank else None,
        data=DataConfig(tuple(config.data.prompt_buckets), config.data.overflow),
        rollout_decode=section("sampler", DecodeConfig),
        eval_decode=section("evaluation", DecodeConfig, {key: evaluation[key] for key in decode_keys}),
        sft=section("sft", SFTConfig),
        sft_optimizer=section("sft", OptimizerConfig, config.sft.optimizer.to_dict()),
        rl=section("rl", RLConfig),
        rl_optimizer=section("rl", OptimizerConfig, config.rl.optimizer.to_dict()),
        inpainting=section("inpainting", InpaintingConfig),
        objective=section("objective", ObjectiveConfig),
        reward=section("reward", RewardConfig),
        evaluation=EvalConfig(evaluation["problems"], evaluation["batch_size"]),
        mesh=config.mesh.to_dict(),
        checkpoints_kept=config.checkpoints_kept,
        skip_limit=config.skip_limit,
    )
    _check(settings)
    return settings


def _check_types(config: ConfigDict) -> None:
    """Every key that there is, with a value of its default's type; ConfigDict lets None and bool pass, and what is in a tuple."""
    name = config.get("task", {}).get("name", "")
    if not isinstance(name, str):
        raise ValueError(f"task.name={name!r} is no text")
    _check_section(config.to_dict(), base_config(**load_task(name).defaults()).to_dict(), "")


def _check_section(values: dict[str, Any], defaults: dict[str, Any], prefix: str) -> None:
    for key in defaults.keys() ^ values.keys():
        raise ValueError(f"{prefix}{key} is missing" if key in defaults else f"{prefix}{key}: there is no such key")
    for key, default in defaults.items():
        value, name = values[key], f"{prefix}{key}"
        if isinstance(default, dict) and isinstance(value, dict):
            _check_section(value, default, f"{name}.")
            continue
        several = isinstance(default, tuple | list) and isinstance(value, tuple | list)
        for part, kind in [(part, type(default[0])) for part in value] if several else [(value, type(default))]:
            number = kind is float and type(part) is int
            if (type(part) is not kind and not number) or part != part:
                raise ValueError(f"{name}={value!r}: {part!r} is no {kind.__name__}")
            if type(part) is int and abs(part) > MAX_SIZE:
                raise ValueError(f"{name}={value!r} does not lie within {MAX_SIZE}")


NUMERICS = ("param_dtype", "compute_dtype", "remat", "attention", "head_chunk")
SHAPE_KEYS = ("width", "layers", "heads", "kv_heads", "mlp_width", "rope_theta", "tied_head")


def _check(settings: Settings) -> None:
    def require(condition: bool, message: str):
        if not condition:
            raise ValueError(message)

    load_task(settings.task.name)
    sft, rl, data, model = settings.sft, settings.rl, settings.data, settings.model
    require(rl.group_size >= 2, f"rl.group_size={rl.group_size}: an advantage needs at least 2 completions to compare")
    for name, stage, rows in (("sft", sft, "batch_size"), ("rl", rl, "prompts")):
        size = getattr(stage, rows)
        require(size >= 1, f"{name}.{rows}={size} must be at least 1")
        require(
            stage.microbatches >= 1 and size % stage.microbatches == 0,
            f"{name}.{rows}={size} is not a multiple of {name}.microbatches={stage.microbatches}",
        )
        require(stage.checkpoint_every >= 1, f"{name}.checkpoint_every={stage.checkpoint_every} must be at least 1")
    require(
        rl.rollout_chunks >= 1 and rl.prompts % rl.rollout_chunks == 0,
        f"rl.prompts={rl.prompts} is not a multiple of rl.rollout_chunks={rl.rollout_chunks}",
    )
    require(sft.heldout >= 0 and sft.eval_every >= 0, "sft.heldout and sft.eval_every must not be negative")
    require(sft.updates >= 0 and rl.iterations >= 0, "sft.updates and rl.iterations must not be negative")
    require(sft.updates + rl.iterations > 0, "sft.updates=0 and rl.iterations=0 leave nothing to do")
    require(settings.seed >= 0, f"seed={settings.seed} must not be negative")
    for split, used in (("sft", sft.updates), ("rl", rl.iterations), ("test", True)):
        size = settings.task.get(f"{split}_problems", 1)
        require(not used or size >= 1, f"task.{split}_problems={size} must be at least 1")
    for name, decode in (("sampler", settings.rollout_decode), ("evaluation", settings.eval_decode)):
        _check_used(name, decode)
    if model["path"]:
        # A shape that the folder overrules would be a key that does nothing.
        defaults = base_config()
        for name, keys in (("model", SHAPE_KEYS), ("tokenizer", ("kind", "vocab_size"))):
            for key in keys:
                value = getattr(settings, name)[key]
                require(
                    value == defaults[name][key],
                    f"{name}.{key}={value!r} and model.path={model['path']!r} are both given; the folder decides {name}.{key}",
                )
    hints = settings.inpainting
    hides_answers = hints.exclude_answer and hints.policy != "none" and hints.source == "solution"
    require(
        not (hides_answers and "{response}" in settings.task.get("demonstration", "")),
        "task.demonstration has {response}, whose answers are not known to stand anywhere, and inpainting.exclude_answer=True "
        "hides answers; use {solution} and {answer}",
    )
    require(settings.tokenizer.vocab_size >= 1, f"tokenizer.vocab_size={settings.tokenizer.vocab_size} must be at least 1")
    kind = settings.tokenizer.kind
    require(kind in ("char", "unigram", "bpe"), f"tokenizer.kind={kind!r} is not 'char', 'unigram' or 'bpe'")
    require(
        settings.lora is None or model["path"],
        f"lora.rank={settings.lora and settings.lora.rank} needs a model to adapt: model.path",
    )
    require(
        settings.lora is not None or model["param_dtype"] == "float32",
        "model.param_dtype=bfloat16 and lora.rank=0: bfloat16 cannot hold the small steps of training; train adapters "
        "(lora.rank) or keep float32 parameters (model.compute_dtype may be bfloat16)",
    )
    try:
        own_model(settings, vocab_size=1, mask_id=0, eos_id=0)
    except ValueError as error:
        raise ValueError(f"model.{error}") from None
    require(rl.eval_every >= 0 and rl.show_every >= 1, "rl.eval_every must be at least 0, rl.show_every at least 1")
    require(rl.dynamic_batches >= 1, f"rl.dynamic_batches={rl.dynamic_batches} must be at least 1")
    require(rl.probe_every >= 0 and rl.probe_limit >= 0, "rl.probe_every and rl.probe_limit must not be negative")
    require(
        not rl.probe_limit or (rl.probe_every > 0 and settings.rollout_decode.cache != "none"),
        "rl.probe_limit needs a cache whose error is measured: sampler.cache and rl.probe_every",
    )
    require(sft.corruption in CORRUPTIONS, f"sft.corruption={sft.corruption!r} is none of {', '.join(CORRUPTIONS)}")
    require(data.overflow in ("error", "drop"), f"data.overflow={data.overflow!r} is neither 'error' nor 'drop'")
    buckets = data.prompt_buckets
    require(
        len(buckets) > 0 and all(size > 0 for size in buckets) and list(buckets) == sorted(set(buckets)),
        f"data.prompt_buckets={buckets} must be ascending positive lengths",
    )
    rollout, evaluation = settings.rollout_decode, settings.eval_decode
    require(
        rollout.completion_length == evaluation.completion_length,
        f"sampler.completion_length={rollout.completion_length} and evaluation.completion_length="
        f"{evaluation.completion_length} differ; prompts and completions of a run have one length",
    )
    require(
        settings.evaluation.problems >= 1 and settings.evaluation.batch_size >= 1,
        "evaluation.problems and evaluation.batch_size must be at least 1",
    )
    require(settings.checkpoints_kept >= 1, f"checkpoints_kept={settings.checkpoints_kept} must be at least 1")
    require(settings.skip_limit >= 1, f"skip_limit={settings.skip_limit} must be at least 1")


def _check_used(section: str, decode: DecodeConfig) -> None:
    """Keys of a sampler that do nothing in it are at their defaults."""
    default = {field.name: field.default for field in dataclasses.fields(DecodeConfig)}
    for key, used, needs in (
        ("refresh", decode.cache != "none", "cache"),
        ("threshold", decode.commit == "threshold", "commit='threshold'"),
        ("factor", decode.commit == "factor", "commit='factor'"),
        ("fallback", decode.commit != "schedule", "commit"),
    ):
        value = getattr(decode, key)
        if not used and value != default[key]:
            raise ValueError(f"{section}.{key}={value!r} does nothing without {section}.{needs}; leave it out")


def folder_model(settings: Settings) -> ModelConfig | None:
    """The network of the folder `model.path`; None where there is none. Its end of turn is the tokenizer's to say."""
    values = settings.model
    if not values["path"]:
        return None
    return folder_model_config(
        values["path"], **{key: values[key] for key in NUMERICS}
    )


def model_config(settings: Settings, tokenizer) -> ModelConfig:
    """The network of the run. A vocabulary of our own is rounded up, so that a head can be split over a tensor axis of
    2, 4 or 8."""
    of_folder = folder_model(settings)
    if of_folder is not None:
        return with_tokenizer(of_folder, tokenizer, settings.model["path"])
    size = -(-tokenizer.vocab_size // 8) * 8
    return own_model(settings, vocab_size=size, mask_id=tokenizer.mask_id, eos_id=tokenizer.eos_id)


def with_tokenizer(model: ModelConfig, tokenizer, folder: str | os.PathLike) -> ModelConfig:
    """The network of a folder, with the end of turn that the folder's tokenizer knows.

    Raises:
        ValueError: the two do not belong together.
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


def own_model(settings: Settings, **vocabulary: int) -> ModelConfig:
    """The network that the section `model` describes by itself."""
    return ModelConfig(**vocabulary, **{key: value for key, value in settings.model.items() if key != "path"})


def from_json(values: dict[str, Any]) -> ConfigDict:
    """The reverse of `to_json`; keys that came into being later have their defaults."""
    values = renamed(values)
    config = base_config(**load_task(values["task"]["name"]).defaults(**values["task"]))
    config.update(values)
    return config


def to_json(config: ConfigDict) -> dict[str, Any]:
    """As it reads back from config.json: tuples become lists."""
    return json.loads(json.dumps(config.to_dict()))


# Where and in what portions a run computes, not what: it may be continued with other values.
RESUMABLE_KEYS = ("mesh.data", "mesh.fsdp", "mesh.tensor", "model.remat", "model.attention", "model.head_chunk")
RESUMABLE_KEYS += ("rl.rollout_chunks", "rl.microbatches", "sft.microbatches", "evaluation.batch_size")
RESUMABLE_KEYS += ("reward.workers", "reward.deadline_seconds", "skip_limit")


def fingerprint(config: ConfigDict) -> str:
    """Of everything that decides the result, see `RESUMABLE_KEYS`."""
    values = to_json(config)
    for key in RESUMABLE_KEYS:
        *sections, name = key.split(".")
        del functools.reduce(dict.get, sections, values)[name]
    values = renamed(values, {new: old for old, new in RENAMED.items()})  # so that runs of earlier versions keep theirs
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def resolve_config_path(argument: str) -> str:
    """`math.py` or `math.py:variant` -> a path: as given if it exists or has a folder, else in ./configs or the
    repository's configs/.

    Raises:
        ValueError: there is no such file; the message lists what there is.
    """
    name, colon, variant = argument.partition(":")
    folders = [pathlib.Path("configs"), pathlib.Path(__file__).parents[1] / "configs"]
    candidates = [pathlib.Path(name)] + ([folder / name for folder in folders] if "/" not in name else [])
    for path in candidates:
        if path.is_file():
            return f"{path}{colon}{variant}"
    known = sorted({path.name for folder in folders for path in folder.glob("*.py")})
    raise ValueError(f"no config file {name!r} here, nor in configs/; there are: {', '.join(known)}")


def check_divisibility(settings: Settings, model: ModelConfig, mesh) -> None:
    """Everything that is spread over devices divides evenly.

    Raises:
        ValueError: names the two config keys that do not fit together.
    """
    sft, rl = settings.sft, settings.rl
    sizes = {"evaluation.batch_size": settings.evaluation.batch_size}
    if sft.updates:
        sizes["sft.batch_size / sft.microbatches"] = sft.batch_size // sft.microbatches
    if rl.iterations:
        sizes["rl.prompts / rl.microbatches"] = rl.prompts // rl.microbatches
        sizes["rl.prompts * rl.group_size / rl.rollout_chunks"] = rl.prompts // rl.rollout_chunks * rl.group_size
    rows = batch_size_divisor(mesh)
    require_multiples([(name, size, "mesh.data * mesh.fsdp", rows) for name, size in sizes.items()])
    check_model_divides(model, mesh, settings.lora)
    platform, possible = mesh.devices.flat[0].platform, PLATFORMS[model.attention]
    if platform not in possible:
        raise ValueError(f"model.attention={model.attention!r} runs on {' and '.join(possible)}, not on {platform}")
    if model.attention == "splash":
        length = settings.rollout_decode.completion_length
        sizes = [(f"a prompt bucket + {length}", size + length) for size in settings.data.prompt_buckets]
        sizes.append(("the head size", model.head_size))
        require_multiples([(name, size, "the lanes of model.attention='splash'", LANES) for name, size in sizes])
