"""Configuration and protocol of an evaluation. The protocol records the settings that affect the results."""

import dataclasses
import os
from collections.abc import Collection, Sequence
from typing import Any

from ml_collections import ConfigDict

from igpo_jax.api import default_dtype
from igpo_jax.config import MeshConfig, RewardConfig, parse, without_new_keys
from igpo_jax.diffusion.unmasking import DecodeConfig
from igpo_jax.run.bucket_runs import run_folder
from igpo_jax.run.experiment import read_run_config
from igpo_jax.runtime.buckets import all_files, path_of
from igpo_jax.runtime.checks import require
from igpo_jax.runtime.files import read_json, wrap_read_errors
from igpo_jax.tasks import load_task
from igpo_jax.tasks.benchmark import benchmark
from igpo_jax.tasks.own_code import own_code
from igpo_jax.tasks.problem import Problem, problems_fingerprint
from igpo_jax.weights.digest import files_digest, model_files, network_digest


def base_evaluation() -> ConfigDict:
    """Returns a configuration of an evaluation with default values for all keys."""
    decode = dataclasses.asdict(DecodeConfig(completion_length=256, block_length=32, steps=128))
    del decode["temperature"]  # each benchmark has its own
    values = {
        "model": "",  # a run's or a model's folder, or the id of a model in the Hugging Face cache
        "stage": "",  # sft | rl, for a run, or one checkpoint, such as rl-40; by default the newest of the last stage
        "adapters": "",  # a folder in PEFT's format
        "dtype": "",  # float32 | bfloat16, for computation; by default float32 on CPUs and older GPUs (T4), otherwise bfloat16
        "chat": True,  # put questions as a user's message into the chat template
        "prefix": "",  # beginning of each answer, appended to the prompt
        "decode": decode,
        "seed": 0,  # of the sampler
        "prompt_buckets": (128, 256, 384, 640),  # a batch is padded to the smallest that holds its longest prompt
        "batch_size": 64,  # completions
        # These have the defaults of a training run.
        "reward": {key: getattr(RewardConfig, key) for key in ("function", "workers", "deadline_seconds", "after_eos")},
        "mesh": dataclasses.asdict(MeshConfig()),
        "benchmarks": {},  # name of a benchmark -> what `benchmark` returns
    }
    return ConfigDict(values)


def run_evaluation(workdir: str, stage: str | None, section: str = "evaluation", trust: Collection[str] = ()) -> ConfigDict:
    """Returns the configuration that evaluates a training run on its own test problems. `section` is the section of the run's
    configuration with the decoding settings, "evaluation" or "sampler". Raises ValueError if the run's task or reward function
    is neither part of this package nor in `trust`, or if a value of the run's configuration is invalid. The number of grading
    processes is limited to the number of CPUs, or to the default of `RewardConfig.workers` if this default is larger."""
    run, config = read_run_config(workdir, trust, graded=True), base_evaluation()
    with wrap_read_errors(f"{workdir}/config.json"):
        parse(run)
    config.update({"model": workdir, "stage": stage or "", "chat": run.tokenizer.chat, "seed": 0})
    config.prompt_buckets = tuple(run.data.prompt_buckets)
    config.decode.update({key: run[section][key] for key in config.decode})
    config.batch_size = run.evaluation.batch_size
    config.reward.update({key: run.reward[key] for key in config.reward})
    config.reward.workers = min(run.reward.workers, max(RewardConfig.workers, os.cpu_count() or 1))
    config.dtype = run.model.compute_dtype
    part = benchmark(run.task.to_dict(), temperature=run[section].temperature, problems=run.evaluation.problems)
    config.benchmarks[run.task.name.rpartition(".")[2]] = part
    return config


def decode_config(config: ConfigDict, name: str) -> DecodeConfig:
    """Returns the decoding settings for a benchmark's completions."""
    return DecodeConfig(**config.decode.to_dict() | {"temperature": config.benchmarks[name].temperature})


def benchmark_protocol(config: ConfigDict, name: str, problems: Sequence[Problem]) -> dict[str, Any]:
    """Returns all settings that affect the results of a benchmark, except the model."""
    part = config.benchmarks[name].to_dict()
    task = part["task"]
    deciding = ("name", "prompt", *load_task(task["name"]).REWARD_OPTIONS)  # the other keys select problems, see `data`
    protocol: dict[str, Any] = {"task": {key: task[key] for key in deciding if key in task}}
    protocol["reward"] = {key: config.reward[key] for key in ("function", "deadline_seconds", "after_eos")}
    if code := _code(task, protocol["reward"]):
        protocol["code"] = code
    protocol |= {"dtype": config.dtype or default_dtype(), "draws": part["draws"], "problems": len(problems)}
    protocol["data"] = problems_fingerprint((p.id, p.question, p.answer) for p in problems)
    protocol["decode"] = without_new_keys(config.decode.to_dict()) | {"temperature": part["temperature"]}
    prompts = {"chat": config.chat, "prefix": config.prefix, "prompt_length": max(config.prompt_buckets)}
    return protocol | prompts | {"seed": config.seed}


def _code(task: dict[str, Any], reward: dict[str, Any]) -> list[str]:
    """Returns "MODULE HASH" for each of the user's own modules. No dict, because the names of modules may contain dots."""
    return [f"{module} {digest}" for module, digest in own_code({"task": task, "reward": reward}).items()]


def require_same_code(config: ConfigDict, name: str, protocol: dict[str, Any]) -> None:
    """Raises ValueError if the user's own code that grades a benchmark is not that of the benchmark's protocol any more."""
    is_same = _code(config.benchmarks[name].task.to_dict(), protocol["reward"]) == protocol.get("code", [])
    changed = f"benchmark {name}: the code of its task or reward has changed since the evaluation began"
    require(is_same, f"{changed}; restore it and run the same command again, or give another --output")


def weights_digest(origin: dict) -> str:
    """Returns a hash of the weights of a model, see `files_digest`. For a run, the hash covers the files of the loaded
    checkpoint, so it differs between checkpoints."""
    if "step" in origin:
        return files_digest(all_files(path_of(origin["path"]) / "checkpoints" / origin["stage"] / str(origin["step"])))
    folders = (origin[key] for key in ("path", "adapters") if key in origin)
    return files_digest({file: size for folder in folders for file, size in model_files(folder).items()})


def base_digest(origin: dict) -> str:
    """Returns a hash of the base model of a run that trains adapters, and "" for other models."""
    if "step" not in origin:
        return ""
    values = read_json(run_folder(origin["path"]) / "config.json")  # parsing it would ask for trust again
    model, lora = (values.get(section, {}) for section in ("model", "lora"))  # without a key, its value is the default
    return network_digest(model["path"]) if lora.get("rank") and model.get("path") else ""
