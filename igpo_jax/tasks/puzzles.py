"""Code shared by puzzle tasks. The test split is read from a JSON Lines file or generated. Other splits are generated."""

import random
from collections.abc import Callable
from typing import Any

from igpo_jax.tasks.problem import Problem, read_jsonl


def puzzle_defaults(name: str, **values) -> dict[str, Any]:
    """Returns the section `task` of a puzzle's configuration. The key `test` is the path of a file, or "" for a generated test
    split."""
    sizes = {"sft_problems": 20_000, "rl_problems": 4_000, "test_problems": 256}
    return {"name": name, "test": "", "max_malformed_lines": 0, **sizes} | values


def load_puzzles(
    task,
    split: str,
    seed: int,
    read: Callable[[str, int, dict[str, Any]], Problem],  # (place for messages, line number, row); raises ValueError
    drawn: Callable[[random.Random, set[str]], Problem | None],  # (generator, ids of test problems); None rejects a draw
) -> list[Problem]:
    """Returns the puzzles of one split. Reads the test split from its file if the configuration names one. Otherwise, draws the
    puzzles at random; `seed` is ignored for the test split."""
    if split == "test" and task.test:
        lines = read_jsonl(task.test, task.max_malformed_lines)
        return [read(f"{task.test}, line {number}", number, row) for number, row in lines]
    held_out = set() if split == "test" else {problem.id for problem in load_puzzles(task, "test", seed, read, drawn)}
    draw = random.Random(f"{split} {0 if split == 'test' else seed}")
    problems: dict[str, Problem] = {}
    while len(problems) < task[f"{split}_problems"]:
        problem = drawn(draw, held_out)
        if problem is not None:
            problems[problem.id] = problem
    return list(problems.values())
