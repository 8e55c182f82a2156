"""Code shared by puzzle tasks. The test split is read from a file or generated. Other splits are generated."""

import random
from collections.abc import Callable
from typing import Any

from igpo_jax.tasks.problem import Problem
from igpo_jax.tasks.rows import is_null, read_rows


def puzzle_defaults(name: str, **values) -> dict[str, Any]:
    """Returns the section `task` of a puzzle's configuration. The key `test` is the path of a file, or "" for a generated test
    split."""
    sizes = {"sft_problems": 20_000, "rl_problems": 4_000, "test_problems": 256}
    return {"name": name, "test": "", "max_malformed_lines": 0, **sizes} | values


def puzzle_id(row: dict[str, Any], number: int) -> str:
    """Returns the id of a puzzle from a file: the value of the column id, or the number of the row if there is none."""
    return str(number if is_null(row.get("id")) or row["id"] == "" else row["id"])


def load_puzzles(
    task,
    split: str,
    seed: int,
    read: Callable[[str, int, dict[str, Any]], Problem],  # arguments: see `read_rows`; raises ValueError
    drawn: Callable[[random.Random, set[str]], Problem | None],  # (generator, ids of test problems); None rejects a draw
) -> list[Problem]:
    """Returns the puzzles of one split. Reads the test split from its file if the configuration names one. Otherwise, draws the
    puzzles at random; `seed` is ignored for the test split."""
    if split == "test" and task.test:
        return [read(*row) for row in read_rows(task.test, task.max_malformed_lines)]
    held_out = set() if split == "test" else {problem.id for problem in load_puzzles(task, "test", seed, read, drawn)}
    draw = random.Random(f"{split} {0 if split == 'test' else seed}")
    problems: dict[str, Problem] = {}
    while len(problems) < task[f"{split}_problems"]:
        problem = drawn(draw, held_out)
        if problem is not None:
            problems[problem.id] = problem
    return list(problems.values())
