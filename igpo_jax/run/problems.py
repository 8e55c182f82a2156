"""Loads the problems of a run."""

import dataclasses
import functools
import itertools

import numpy as np

from igpo_jax.config import Config
from igpo_jax.data.pipeline import PromptBatch
from igpo_jax.diffusion.unmasking import DecodeConfig
from igpo_jax.tasks import load_task
from igpo_jax.tasks.benchmark import load_benchmark
from igpo_jax.tasks.decontamination import Content, content_of, untested, warn_of_repeats
from igpo_jax.tasks.problem import Problem
from igpo_jax.tasks.reward_pool import RewardPool
from igpo_jax.tasks.sources import SourceCounts

BENCHMARK = "benchmark "  # beginning of the name of a split that is a benchmark of the section `evaluation`
Splits = dict[str, list[Problem]]  # sft | rl | test | benchmark NAME -> problems


@dataclasses.dataclass(frozen=True)
class ProblemSet:
    """Problems and their encoded prompts in the same order. Prompts are padded to the largest length in data.prompt_buckets."""

    problems: list[Problem]
    prompts: PromptBatch

    @functools.cached_property
    def by_id(self) -> dict[int, Problem]:
        return dict(zip(self.prompts.problem_id.tolist(), self.problems, strict=True))

    def rows_of(self, problem_id: np.ndarray) -> np.ndarray:
        """Returns the indices in `problems`, int [n], of the problems with the given ids, uint32 [n]."""
        order = np.argsort(self.prompts.problem_id)
        return order[np.searchsorted(self.prompts.problem_id, problem_id, sorter=order)]


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Test problems, with the settings with which they are sampled and graded."""

    data: ProblemSet
    decode: DecodeConfig
    draws: int  # completions per problem
    pool: RewardPool


def load_run_problems(config: Config) -> tuple[Splits, dict[str, int], dict[str, list[SourceCounts]]]:
    """Loads the problems of the splits that the run uses (sft, rl, test) and of its benchmarks. Drops training problems that are
    also in the test split or in a benchmark, even if evaluations use only a part of these. Logs a warning if a file contains
    the same problem several times. Raises a ValueError that names the file and the line if the data is invalid.

    Returns three dicts whose keys are splits. Their values are the problems, the number of dropped problems, and the row counts
    of the data files. The second dict leaves out splits without dropped problems, and the third dict leaves out generated
    splits."""
    problems, contents, counts = _load_splits(config)
    dropped: dict[str, int] = {}
    tested, benchmarks = list(contents["test"]), Splits()
    for name, part in config.evaluation.benchmarks.items():
        found = load_benchmark(name, part)
        tested += map(content_of(load_task(part.task.name), part.task), found)
        benchmarks[BENCHMARK + name] = found[: part.problems or None]
    for split in [split for split in problems if split != "test"]:
        kept = list(itertools.compress(problems[split], untested(contents[split], tested)))
        if not kept:
            raise ValueError(f"all {len(problems[split])} problems of the split {split} are in the test split (task.test), too")
        if len(kept) < len(problems[split]):
            dropped[split] = len(problems[split]) - len(kept)
        problems[split] = kept
    # Evaluations use no solutions. Without its solution, no test problem is dropped because the solution is too long.
    test = problems["test"][: config.evaluation.problems]
    problems["test"] = [dataclasses.replace(problem, trace="", answer_spans=()) for problem in test]
    return problems | benchmarks, dropped, counts


def _load_splits(config: Config) -> tuple[Splits, dict[str, list[Content]], dict[str, list[SourceCounts]]]:
    """Returns three dicts whose keys are splits. Their values are the problems, the contents of the problems (see
    `decontamination`), and the row counts of the data files. The third dict leaves out generated splits. If several splits have
    the same files, these files are read only once."""
    task = load_task(config.task.name)
    content = content_of(task, config.task)
    stages = {"sft": config.sft.enabled, "rl": config.rl.iterations > 0, "test": True}
    problems: Splits = {}
    contents: dict[str, list[Content]] = {}
    counts: dict[str, list[SourceCounts]] = {}
    read: dict[str, str] = {}  # sources -> the split that has them
    for split in [split for split, used in stages.items() if used]:
        if not hasattr(task, "sources"):  # a task that generates its problems
            problems[split] = task.load(config.task, split, config.seed)
        elif (same := read.setdefault(task.sources(config.task, split), split)) != split:
            problems[split], contents[split], counts[split] = problems[same], contents[same], counts[same]
            continue
        else:
            problems[split], counts[split] = task.load_counted(config.task, split)
        contents[split] = list(map(content, problems[split]))
        if split in counts or config.task.get(split):  # the file of a test split of puzzles
            warn_of_repeats(f"the split {split}", contents[split])
    return problems, contents, counts
