"""Benchmarks: test problems of a task, with the number of completions per problem and the sampling temperature. A run evaluates
benchmarks during training (`evaluation.benchmarks`), and the command `evaluate` evaluates finished models on them."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from ml_collections import ConfigDict

from igpo_jax.runtime.checks import MOST_PROBLEMS, MOST_ROWS, at_least, checked, not_negative, require
from igpo_jax.tasks import load_task
from igpo_jax.tasks.decontamination import content_of, warn_of_repeats
from igpo_jax.tasks.problem import Problem

MOST_BENCHMARKS = 1000  # of a run, whose config.json may be a stranger's; reading one takes up to 1 ms


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Configuration of a benchmark. The problems are those of the task's split test."""

    task: ConfigDict  # keys as in the section `task` of a run
    draws: int = checked(1, at_least(1, most=MOST_ROWS))  # completions per problem; the accuracy is their average
    temperature: float = checked(0.0, not_negative)  # with which tokens are drawn; 0: the likeliest tokens
    problems: int = checked(0, at_least(0, most=MOST_PROBLEMS))  # the first ones of the test split; 0: all


def benchmark(task: dict[str, Any], **settings) -> ConfigDict:
    """Returns the section of a configuration that describes one benchmark. `task` has the same keys as the section `task` in a
    run's configuration, and `settings` are other keys of `BenchmarkConfig`."""
    return ConfigDict(dataclasses.asdict(BenchmarkConfig(task=task, **settings)))


def with_problems(benchmarks: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the sections of those benchmarks that have problems: all except those of the task math without a file."""
    return {name: part for name, part in benchmarks.items() if part["task"]["name"] != "math" or part["task"].get("test")}


def require_names(benchmarks: Collection[str]) -> None:
    """Raises ValueError if a run has more than `MOST_BENCHMARKS` benchmarks, or if a name of a benchmark is empty or not
    printable. The names of metrics contain these names."""
    number = len(benchmarks)
    require(number <= MOST_BENCHMARKS, f"evaluation.benchmarks has {number} benchmarks; at most {MOST_BENCHMARKS} are possible")
    for name in benchmarks:
        require(name and name.isprintable(), f"evaluation.benchmarks has the name {name!r}; use printable characters")


def default_benchmarks(evaluation: Any) -> dict[str, BenchmarkConfig]:
    """Returns benchmarks with the same names and tasks as in the section `evaluation` of a run's configuration, and with default
    values of all other keys. Returns {} if the section has no dict of benchmarks. Raises ValueError if a benchmark has no valid
    task, or if the names are invalid (see `require_names`)."""
    benchmarks = evaluation.get("benchmarks") if isinstance(evaluation, dict) else None
    benchmarks, defaults = benchmarks if isinstance(benchmarks, dict) else {}, {}
    require_names(benchmarks)
    for name, part in benchmarks.items():
        task = part.get("task") if isinstance(part, dict) else None
        module = task.get("name") if isinstance(task, dict) else None
        if not isinstance(module, str):
            raise ValueError(f"evaluation.benchmarks.{name} has no task; a configuration file makes it with `benchmark`")
        defaults[name] = BenchmarkConfig(task=load_task(module).defaults())
    return defaults


def used_benchmarks(benchmarks: Mapping[str, BenchmarkConfig]) -> dict[str, BenchmarkConfig]:
    """Returns the benchmarks that a run evaluates (see `with_problems`). Their tasks, which are dicts, become ConfigDicts, as the
    functions of tasks need them. Raises ValueError if the number of generated problems is invalid."""
    used = {}
    for name, part in with_problems({name: vars(part) for name, part in benchmarks.items()}).items():
        size = part["task"].get("test_problems", 1)
        valid = f"evaluation.benchmarks.{name}.task.test_problems={size} must be within [1, {MOST_PROBLEMS}]"
        require(1 <= size <= MOST_PROBLEMS, valid)
        used[name] = BenchmarkConfig(**part | {"task": ConfigDict(part["task"])})
    return used


def load_benchmark(name: str, part: ConfigDict | BenchmarkConfig) -> list[Problem]:
    """Returns all test problems of a benchmark, without their traces (reference solutions). Logs a warning if a problem occurs
    several times. If the problems cannot be loaded, raises a ValueError that names the benchmark."""
    task = load_task(part.task.name)
    try:
        problems = task.load(part.task, "test", 0)
    except ValueError as error:
        raise ValueError(f"benchmark {name}: {error}") from None
    if part.task.get("test"):
        warn_of_repeats(f"benchmark {name}", list(map(content_of(task, part.task), problems)))
    return [dataclasses.replace(problem, trace="", answer_spans=()) for problem in problems]
