"""Code shared by the puzzle tasks (countdown and sudoku). The test split is read from a file or generated. Other splits are
generated."""

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
    """Returns the section `task` of a configuration with the defaults of the puzzle task `name`, updated with `values`. The key
    `test` is the path of a file with the test split, or "" if the test split is generated."""
    return {
        "name": name,  # a task of this package (igpo_jax/tasks), or an importable module
        "test": "",  # path of the test split; "" draws it
        "max_malformed_lines": 0,  # lines of a file that may be dropped because they cannot be read
        "sft_problems": 20_000,  # problems that are drawn for the supervised stage
        "rl_problems": 4_000,  # problems that are drawn for the RL stage
        "test_problems": 256,  # problems that are drawn for the test split
        "small": False,  # a version for small models: shorter and easier puzzles, see igpo_jax/tasks
        "worked_share": 1.0,  # share of the longest puzzles whose demonstration is the solution, not a guess
    } | values


def puzzle_id(row: dict[str, Any], number: int) -> str:
    """Returns the id of a puzzle in a file: the value of the column id or, if this value is missing, the row number."""
    return str(number if is_null(row.get("id")) or row["id"] == "" else row["id"])


def load_puzzles(
    task,
    split: str,
    seed: int,
    read: Callable[[str, int, dict[str, Any], bool], Problem],  # see below; raises ValueError
    drawn: Callable[[random.Random, set[Content], Any, bool], Problem | Content | None],  # see below
    content: Callable[[Any, Problem], Content],
) -> list[Problem]:
    """Returns the puzzles of one split. If task.test is the path of a file, reads the puzzles of the test split from this file.
    All other puzzles are drawn at random. `seed` is ignored for the test split.

    `read` converts a row of the file to a puzzle, given the arguments of `read_rows` and task.small. `drawn` draws a puzzle,
    given a random generator, the contents of the test puzzles, `task`, and whether the split is sft. It returns one of three
    values: the puzzle; only the content of the puzzle, if a test puzzle has the same content; or None, if the random choices do
    not make a valid puzzle."""
    if split == "test" and task.test:
        puzzles: dict[str, Problem] = {}
        for place, number, row in read_rows(task.test, task.max_malformed_lines):
            puzzle = read(place, number, row, task.small)
            if puzzle.id in puzzles:
                raise ValueError(f"{place}: the id {puzzle.id!r} has come before")
            puzzles[puzzle.id] = puzzle
        return list(puzzles.values())
    size = task[f"{split}_problems"]
    require(size <= MOST_PUZZLES, f"task.{split}_problems={size} must be at most {MOST_PUZZLES}")
    require(0 <= task.worked_share <= 1, f"task.worked_share={task.worked_share} must be in [0, 1]")
    held_out: set[Content] = set()
    if split != "test":
        held_out = {content(task, problem) for problem in load_puzzles(task, "test", seed, read, drawn, content)}
    draw = random.Random(f"{split} {0 if split == 'test' else seed}")
    problems: dict[str, Problem] = {}
    tested = 0
    while len(problems) < size:
        problem = drawn(draw, held_out, task, split == "sft")
        if isinstance(problem, Problem):
            problems[problem.id] = problem
        tested += isinstance(problem, tuple)
    if tested and task.test:
        log.warning("%d drawn puzzles of the split %s are in %s; others were drawn instead", tested, split, task.test)
    return list(problems.values())
