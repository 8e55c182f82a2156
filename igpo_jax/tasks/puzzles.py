"""What puzzles have in common: their test split is a file (JSON lines) or is drawn, the others are always drawn."""

import random
from collections.abc import Callable
from typing import Any

from igpo_jax.tasks.problem import Problem, read_jsonl


def puzzle_defaults(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """The section `task` of a configuration; test: a file, or "" for drawn puzzles."""
    sizes = {"sft_problems": 20_000, "rl_problems": 4_000, "test_problems": 256}
    return {"name": name, "test": "", "max_malformed_lines": 0, **sizes} | values


def load_puzzles(
    task,
    split: str,
    seed: int,
    read: Callable[[str, int, dict[str, Any]], Problem],
    drawn: Callable[[random.Random, set[str]], Problem | None],
) -> list[Problem]:
    """Problems of one split, drawn from (seed, split) or read.

    Args:
        read: (where it stands, line number, row of the file) -> a problem; raises ValueError for another row.
        drawn: (draws, ids that are held out) -> a problem, or None where the draw is no use.

    Raises:
        ValueError: a file that cannot be used; names file and line.
    """
    if split == "test" and task.test:
        rows = read_jsonl(task.test, task.max_malformed_lines)
        return [read(f"{task.test}, line {number}", number, row) for number, row in rows]
    held_out: set[str] = set()
    if split != "test":
        held_out = {problem.id for problem in load_puzzles(task, "test", seed, read, drawn)}
    draw, problems = random.Random(f"{split} {0 if split == 'test' else seed}"), {}
    while len(problems) < task[f"{split}_problems"]:
        problem = drawn(draw, held_out)
        if problem is not None:
            problems[problem.id] = problem
    return list(problems.values())
