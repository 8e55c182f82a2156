"""What an evaluation asks, and how: its configuration, and the part of it that decides the verdicts."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from igpo_jax.api import default_dtype
from igpo_jax.diffusion.unmasking import DecodeConfig
from igpo_jax.run.experiment import read_run_config
from igpo_jax.tasks import load_task
from igpo_jax.tasks.problem import Problem, problems_fingerprint

SAMPLED = 2**16  # bytes of a piece of a file


def base_evaluation() -> ConfigDict:
    """Every key of an evaluation's configuration, with its default."""
    decode = dataclasses.asdict(DecodeConfig(completion_length=256, block_length=32, steps=128))
    del decode["temperature"]  # each benchmark has its own
    config = ConfigDict(
        {
            "model": "",  # a run's folder, or a model's
            "stage": "",  # of a run: sft | rl; by default the last
            "adapters": "",  # a folder in PEFT's format
            "dtype": "",  # float32 | bfloat16, what the network computes in; by default bfloat16, on CPUs float32
            "chat": True,  # questions become a user's message in the chat template
            "prefix": "",  # what every answer begins with, part of the prompt
            "decode": decode,
            "seed": 0,
            "prompt_buckets": (640,),
            "batch_size": 64,
            # As in the configuration of a run.
            "reward": {"function": "", "workers": 2, "deadline_seconds": 5.0, "after_eos": False},
            "mesh": {"data": 1, "fsdp": -1, "tensor": 1},
        }
    )
    config.benchmarks = ConfigDict()
    return config


def benchmark(task: dict[str, Any], *, draws: int = 1, temperature: float = 0.0, problems: int = 0) -> ConfigDict:
    """One benchmark of an evaluation: the task's section, how many completions of each problem, at which temperature, and of
    how many problems from the beginning (0: all)."""
    return ConfigDict({"task": task, "draws": draws, "temperature": temperature, "problems": problems})


def of_run(workdir: str, stage: str | None, section: str = "evaluation") -> ConfigDict:
    """The evaluation that a run makes of itself, decoding as in a section of its configuration: evaluation | sampler."""
    run, config = read_run_config(workdir), base_evaluation()
    config.update({"model": workdir, "stage": stage or "", "chat": run.tokenizer.chat, "seed": 0})
    config.prompt_buckets = tuple(run.data.prompt_buckets)
    config.decode.update({key: run[section][key] for key in config.decode})
    config.batch_size = run.evaluation.batch_size
    config.reward.update({key: run.reward[key] for key in config.reward})
    config.dtype = run.model.compute_dtype
    part = benchmark(run.task.to_dict(), temperature=run[section].temperature, problems=run.evaluation.problems)
    config.benchmarks[run.task.name.rpartition(".")[2]] = part
    return config


def decode_of(config: ConfigDict, name: str) -> DecodeConfig:
    """How a benchmark's completions are decoded."""
    return DecodeConfig(**config.decode.to_dict() | {"temperature": config.benchmarks[name].temperature})


def protocol_of(config: ConfigDict, name: str, problems: Sequence[Problem]) -> dict[str, Any]:
    """All that decides the verdicts of a benchmark, but for the model."""
    part = config.benchmarks[name].to_dict()
    task = load_task(part["task"]["name"])
    deciding = ("name", "prompt", *task.REWARD_OPTIONS)  # `data` says which the problems are
    return {
        "task": {key: part["task"][key] for key in deciding if key in part["task"]},
        "reward": {key: config.reward[key] for key in ("function", "deadline_seconds", "after_eos")},
        "dtype": config.dtype or default_dtype(),
        "draws": part["draws"],
        "problems": len(problems),
        "data": problems_fingerprint((p.id, p.question, p.answer) for p in problems),
        "decode": config.decode.to_dict() | {"temperature": part["temperature"]},
        "chat": config.chat,
        "prefix": config.prefix,
        "prompt_length": max(config.prompt_buckets),
        "seed": config.seed,
    }


def load_problems(config: ConfigDict, name: str) -> list[Problem]:
    """Those of a benchmark.

    Raises:
        ValueError: its file cannot be used; the message names the benchmark.
    """
    part = config.benchmarks[name]
    try:
        problems = load_task(part.task.name).load(part.task, "test", 0)
    except ValueError as error:
        raise ValueError(f"benchmark {name}: {error}") from None
    problems = problems[: part.problems or None]
    return [dataclasses.replace(p, trace="", answer_spans=()) for p in problems]


def weights_digest(origin: dict) -> str:
    """Of the files that a model was read from: their names and sizes, and of each its ends and some of it between. What is
    trained again differs; a copy does not."""
    folder, digest = pathlib.Path(origin["path"]), hashlib.sha256()
    if "step" in origin:
        files = [*(folder / "checkpoints" / origin["stage"] / str(origin["step"])).rglob("*")]
    else:
        files = [file for of in (folder, origin.get("adapters")) if of for file in pathlib.Path(of).glob("*")]
    for file in sorted(file for file in files if file.is_file()):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as opened:
            for place in range(0, size, max(SAMPLED, size // 16)):
                opened.seek(place)
                digest.update(opened.read(SAMPLED))
            opened.seek(max(0, size - SAMPLED))
            digest.update(opened.read(SAMPLED))
    return digest.hexdigest()[:16]
