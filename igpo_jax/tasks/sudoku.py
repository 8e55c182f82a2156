"""4x4 Sudoku task. A grid is written as sixteen digits, row by row, with 0 for an empty cell. The rewards follow d1 (arXiv
2504.12216), but any valid grid is accepted.

The test split is read from a JSON Lines file with the keys puzzle and solution, or generated. The reference solution fills one
cell per line and ends with the answer, the completed grid."""

import functools
import itertools
import random
import re
from typing import Any

from igpo_jax.tasks.problem import Problem
from igpo_jax.tasks.puzzles import load_puzzles, puzzle_defaults

PROMPT = (
    "Please solve the following 4x4 Sudoku puzzle. The puzzle is provided as a 16-character string reading left-to-right, "
    "top-to-bottom, where '0' represents empty cells. Each row, each column and each 2x2 box must hold the digits 1 to 4 once. "
    "Reason step by step, then give the completed grid as a 16-character string between <answer> and </answer>.\n\n{puzzle}"
)
UNITS = [
    *([4 * r + c for c in range(4)] for r in range(4)),
    *([4 * r + c for r in range(4)] for c in range(4)),
    *([4 * (r + i) + c + j for i in range(2) for j in range(2)] for r in (0, 2) for c in (0, 2)),
]
EMPTY = (6, 10)  # range of the number of empty cells in a drawn puzzle
REWARD_OPTIONS = ()
defaults = functools.partial(puzzle_defaults, "sudoku")


def extract_answer(text: str) -> str | None:
    tagged = re.findall(r"<answer>(.*?)(?:</answer>|$)", text, re.DOTALL)
    return "".join(re.findall(r"\d", tagged[-1])) if tagged else None


def reward(problem: Problem, text: str) -> float:
    """Returns 1.0 for any valid completed grid, because a puzzle may have several solutions. Otherwise returns the share of the
    puzzle's empty cells that are filled in as in the known solution (d1's reward, arXiv 2504.12216), but at most 0.99."""
    digits = extract_answer(text) or ""
    puzzle, solution = problem.answer.split(" -> ")
    if right(digits, puzzle):
        return 1.0
    grid = digits[:16].ljust(16, "0")
    empty = [cell for cell in range(16) if puzzle[cell] == "0"]
    return min(0.99, sum(grid[cell] == solution[cell] for cell in empty) / max(len(empty), 1))


def right(grid: str, puzzle: str) -> bool:
    """Returns whether a completed grid follows the rules of Sudoku and keeps the puzzle's given digits."""
    if not re.fullmatch(r"[1-4]{16}", grid) or any(p not in ("0", g) for g, p in zip(grid, puzzle, strict=True)):
        return False
    return all(len({grid[cell] for cell in unit}) == 4 for unit in UNITS)


@functools.cache
def grids() -> list[str]:
    """Returns all 288 completed 4x4 grids."""
    rows = ["".join(row) for row in itertools.permutations("1234")]
    return [g for g in map("".join, itertools.product(rows, repeat=4)) if right(g, "0" * 16)]


def _read(place: str, number: int, row: dict[str, Any]) -> Problem:
    puzzle, solution = str(row.get("puzzle")), str(row.get("solution"))
    if not re.fullmatch(r"[0-4]{16}", puzzle) or not right(solution, puzzle):
        raise ValueError(f"{place}: no 4x4 puzzle with its solution")
    return _problem(str(row.get("id", number)), puzzle, solution, random.Random(number))


def _drawn(draw: random.Random, held_out: set[str]) -> Problem | None:
    solution = draw.choice(grids())
    empty = draw.sample(range(16), draw.randint(*EMPTY))
    puzzle = "".join("0" if cell in empty else digit for cell, digit in enumerate(solution))
    return None if puzzle in held_out else _problem(puzzle, puzzle, solution, draw)


def _problem(name: str, puzzle: str, solution: str, draw: random.Random) -> Problem:
    cells = [cell for cell in range(16) if puzzle[cell] == "0"]
    draw.shuffle(cells)
    steps = "".join(f"row {cell // 4 + 1}, column {cell % 4 + 1}: {solution[cell]}\n" for cell in cells)
    trace = f"{steps}<answer>\n{solution}\n</answer>"
    question, answer = PROMPT.replace("{puzzle}", puzzle), f"{puzzle} -> {solution}"
    return Problem(name, question, answer, trace, ((len(steps), len(trace)),), demonstration=trace)


load = functools.partial(load_puzzles, read=_read, drawn=_drawn)
