"""Code shared by puzzle tasks. The test split is read from a file or generated. Other splits are generated."""

import logging
import random
from collections.abc import Callable
from typing import Any

from igpo_jax.runtime.checks import require
from igpo_jax.tasks.decontamination import Content
from igpo_jax.tasks.problem import Problem
from igpo_jax.tasks.rows import is_null, read_rows

log = logging.getLogger(__name__)
MOST_PUZZLES = 10**5  # of a split; a stranger's run may ask for it, and a puzzle takes up to 1 ms


def puzzle_defaults(name: str, /, **values) -> dict[str, Any]:
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
    drawn: Callable[[random.Random, set[Content]], Problem | Content | None],  # see below
    content: Callable[[Any, Problem], Content],
) -> list[Problem]:
    """Returns the puzzles of one split. Reads the test split from its file if the configuration names one. Otherwise, draws the
    puzzles at random; `seed` is ignored for the test split. `drawn` draws a puzzle, given a random generator and the contents
    of the test puzzles. It returns the puzzle, or only its content if a test puzzle has the same content, or None if the random
    choices do not make a valid puzzle."""
    if split == "test" and task.test:
        puzzles: dict[str, Problem] = {}
        for place, number, row in read_rows(task.test, task.max_malformed_lines):
            puzzle = read(place, number, row)
            if puzzle.id in puzzles:
                raise ValueError(f"{place}: the id {puzzle.id!r} has come before")
            puzzles[puzzle.id] = puzzle
        return list(puzzles.values())
    size = task[f"{split}_problems"]
    require(size <= MOST_PUZZLES, f"task.{split}_problems={size} must be at most {MOST_PUZZLES}")
    held_out: set[Content] = set()
    if split != "test":
        held_out = {content(task, problem) for problem in load_puzzles(task, "test", seed, read, drawn, content)}
    draw = random.Random(f"{split} {0 if split == 'test' else seed}")
    problems: dict[str, Problem] = {}
    tested = 0
    while len(problems) < size:
        problem = drawn(draw, held_out)
        if isinstance(problem, Problem):
            problems[problem.id] = problem
        tested += isinstance(problem, tuple)
    if tested and task.test:
        log.warning("%d drawn puzzles of the split %s are in %s; others were drawn instead", tested, split, task.test)
    return list(problems.values())
