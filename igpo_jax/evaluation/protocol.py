"""What an evaluation asks, and how: its configuration, and the part of it that decides the verdicts."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from igpo_jax.diffusion.sampler import DecodeConfig
from igpo_jax.tasks import load_task
from igpo_jax.tasks.problem import Problem, fingerprint


def base_evaluation() -> ConfigDict:
    """Every key of an evaluation's configuration, with its default."""
    decode = dataclasses.asdict(DecodeConfig(completion_length=256, block_length=32, steps=128))
    config = ConfigDict(
        {
            "model": "",  # a run's folder, or a model's
            "stage": "",  # of a run: sft | rl; by default the last
            "adapters": "",  # a folder in PEFT's format
            "chat": True,  # questions become a user's message in the chat template
            "prefix": "",  # what every answer begins with, part of the prompt
            "decode": decode,
            "seed": 0,
            "prompt_buckets": (640,),
            "batch_size": 64,
            "reward": {"workers": 2, "deadline_seconds": 5.0},
            "mesh": {"data": 1, "fsdp": -1, "tensor": 1},
        }
    )
    config.benchmarks = ConfigDict()
    return config


def benchmark(task: dict[str, Any], *, draws: int = 1, temperature: float = 0.0, problems: int = 0) -> ConfigDict:
    """One benchmark of an evaluation: the task's section, how many completions of each problem, at which temperature, and of
    how many problems from the beginning (0: all)."""
    return ConfigDict({"task": task, "draws": draws, "temperature": temperature, "problems": problems})


def protocol_of(config: ConfigDict, name: str, problems: Sequence[Problem]) -> dict[str, Any]:
    """All that decides the verdicts of a benchmark, but for the model."""
    part = config.benchmarks[name].to_dict()
    elsewhere = ("sft", "rl", "test", "max_malformed_lines")  # where problems are from; `data` says which they are
    task = {key: value for key, value in part["task"].items() if not key.startswith(elsewhere)}
    return {
        "task": task,
        "draws": part["draws"],
        "problems": len(problems),
        "data": fingerprint((p.id, p.question, p.answer) for p in problems),
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
