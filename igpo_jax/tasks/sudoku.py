"""4x4 Sudoku task. A grid is written as sixteen digits, row by row, with 0 for an empty cell. The rewards follow d1 (arXiv
2504.12216), except that every valid grid is accepted, not only the reference solution.

The test split is read from a file with the columns puzzle and solution, or generated. The reference solution fills one cell per
line and ends with the answer, which is the completed grid."""

import functools
import itertools
import random
import re
from typing import Any

from igpo_jax.tasks.decontamination import Content
from igpo_jax.tasks.problem import Problem
from igpo_jax.tasks.puzzles import load_puzzles, puzzle_defaults, puzzle_id
from igpo_jax.tasks.rows import columns_in

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
ANSWER = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.DOTALL)
NO_CELL = re.compile(  # sizes and counts such as 4x4 and 16 cells, but not the 1 in "4 2 3 1 rows"
    r"\b\d+\s*(?:x|×|\\times|by|-by-)\s*\d+\b"
    r"|(?<![\d_|,][ ])\b\d{1,2}[ -]*(?:rows?|columns?|cols?|box(?:es)?|blocks?|(?:sub)?grids?|cells?|digits?|numbers?)\b",
    re.IGNORECASE,
)
ROW_LABEL = re.compile(  # Row 1:, R1, 2nd row, and the numbers of a list
    r"\b(?:(?:row|line)[\s_#]*|r)(?:[1-4]|one|two|three|four)\b\s*[).]?|^[ \t]*[1-4][.):]\s"
    r"|\b(?:first|second|third|fourth|last|[1-4](?:st|nd|rd|th))\s+(?:row|line)\b|\b(?:and|is|then)\b",
    re.IGNORECASE | re.MULTILINE,
)
MARKUP = re.compile(r"\\(?:begin|end)\s*\{\w*\*?\}(?:\s*\{[clr|\s]*\})?|\\[a-zA-Z]+|\\\\|<br\s*/?>")
WORD = re.compile(r"(?<!\w)\w*[^\W\d_]\w*")
EMPTY = (6, 10)  # range of the number of empty cells in a drawn puzzle
REWARD_OPTIONS = ()
defaults = functools.partial(puzzle_defaults, "sudoku")


def extract_answer(text: str) -> str | None:
    """Returns the last complete grid inside <answer> tags, as 16 digits. If there is no complete grid, returns the last
    incomplete grid, with 0 for each empty cell. If there is no grid of 16 cells, but the completion ends in the middle of a
    grid, after at least four of its cells, returns these cells followed by zeros. Otherwise, returns None."""
    segments = [part for answer in ANSWER.findall(text) for part in WORD.split(_without_labels(answer))]
    found = [grid for segment in segments for grid in _grids(segment)]
    complete = [grid for grid in found if "0" not in grid]
    if found:
        return (complete or found)[-1]
    *before, last = ["".join(itertools.chain(*_cells(segment))) for segment in segments] or [""]
    is_cut_off = "</answer>" not in text.rpartition("<answer>")[2] and all(len(cells) < 4 for cells in before)
    return last.ljust(16, "0") if is_cut_off and 4 <= len(last) < 16 else None


def _without_labels(answer: str) -> str:
    """Returns an answer without the digits that are not cells. Markup and labels such as "Row 1:" separate the rows of a grid,
    so they become line breaks. Sizes and counts, such as 4x4 and 16 cells, do not separate rows, so they become the word x."""
    return MARKUP.sub("\n", ROW_LABEL.sub("\n", NO_CELL.sub(" x ", answer)))


def _cells(segment: str) -> list[list[str]]:
    """Returns one list for each line that has cells. The list contains the groups of adjacent cells in this line. Within a
    group, 0, a full stop and an underscore all stand for an empty cell, and are returned as 0. However, if a group does not
    have 1, 4 or 16 cells, full stops and underscores at its ends are removed, because they are punctuation."""
    lines = [re.findall("[0-9._]+", line) for line in segment.splitlines()]
    groups = [[group if len(group) in (1, 4, 16) else group.strip("._") for group in line] for line in lines]
    return [[re.sub("[._]", "0", group) for group in line if group] for line in groups if any(line)]


def _grids(segment: str) -> list[str]:
    """Returns the grids in a text that contains no words. If the text has exactly 16 cells, they are one grid. Otherwise, a
    grid is a group of 16 adjacent cells, or four consecutive lines of four cells each, counted from the last line."""
    lines = _cells(segment)
    cells = "".join(itertools.chain(*lines))
    if len(cells) == 16:
        return [cells]
    found: list[str] = []
    rows: list[str] = []
    for line in reversed(lines):
        found += [group for group in reversed(line) if len(group) == 16]
        row = "".join(line)
        rows = [row, *rows] if len(row) == 4 else []
        if len(rows) == 4:
            found.append("".join(rows))
            rows = []
    return found[::-1]


def reward(problem: Problem, text: str) -> float:
    """Returns 1.0 for any valid completed grid, because a puzzle may have several solutions. For another grid, returns the
    share of the puzzle's empty cells that are filled in as in the nearest solution, but at most 0.99. This share is d1's reward
    (arXiv 2504.12216), except that d1 compares with only one solution. If there is no grid, returns 0.0. However, an answer
    that consists only of digits is first cut or padded with zeros to 16 digits, as in d1."""
    puzzle, _ = problem.answer.split(" -> ")
    grid = extract_answer(text)
    if grid is not None and right(grid, puzzle):
        return 1.0
    digits = re.sub(r"\s", "", "".join(ANSWER.findall(text)[-1:]))
    if grid is None and re.fullmatch("[0-9]+", digits):  # d1 cuts or pads answers to 16 digits
        grid = digits[:16].ljust(16, "0")
    if grid is None:
        return 0.0
    empty = [cell for cell in range(16) if puzzle[cell] == "0"]
    nearest = max(sum(grid[cell] == solution[cell] for cell in empty) for solution in solutions(puzzle))
    return min(0.99, nearest / max(len(empty), 1))


def right(grid: str, puzzle: str) -> bool:
    """Returns whether a completed grid follows the rules of Sudoku and keeps the puzzle's given digits."""
    if not re.fullmatch(r"[1-4]{16}", grid) or any(p not in ("0", g) for g, p in zip(grid, puzzle, strict=True)):
        return False
    return all(len({grid[cell] for cell in unit}) == 4 for unit in UNITS)


@functools.cache
def grids() -> list[str]:
    """Returns all 288 completed 4x4 grids."""
    rows = ["".join(row) for row in itertools.permutations("1234")]
    halves = [a + b for a, b in itertools.product(rows, repeat=2) if not {*a[:2]} & {*b[:2]}]
    return [grid for grid in map("".join, itertools.product(halves, repeat=2)) if right(grid, "0" * 16)]


@functools.lru_cache(maxsize=1024)
def solutions(puzzle: str) -> list[str]:
    """Returns all completed grids that keep the puzzle's given digits."""
    return [grid for grid in grids() if right(grid, puzzle)]


def _read(place: str, number: int, row: dict[str, Any]) -> Problem:
    try:
        puzzle, solution = (str(row[name]).strip() for name in columns_in(row, ("puzzle", "solution")))
    except ValueError as error:
        raise ValueError(f"{place}: no 4x4 puzzle with its solution: {error}") from None
    if not re.fullmatch(r"[0-4]{16}", puzzle) or not right(solution, puzzle):
        reason = f": {puzzle!r:.40} and {solution!r:.40}"
        if re.fullmatch(r"[0-9]{1,15}", puzzle):
            reason = f": {puzzle} has {len(puzzle)} digits; if its first zeros are lost, write the column as text"
        raise ValueError(f"{place}: no 4x4 puzzle with its solution{reason}")
    return _problem(puzzle_id(row, number), puzzle, solution, random.Random(number))


def content(task, problem: Problem) -> Content:
    """Returns the content of a problem: the digits of the puzzle, without its solution. Problems with the same content count as
    equal (decontamination.py)."""
    return problem.answer.split(" -> ")[0], ""


def _drawn(draw: random.Random, held_out: set[Content]) -> Problem | Content:
    solution = draw.choice(grids())
    empty = draw.sample(range(16), draw.randint(*EMPTY))
    puzzle = "".join("0" if cell in empty else digit for cell, digit in enumerate(solution))
    return (puzzle, "") if (puzzle, "") in held_out else _problem(puzzle, puzzle, solution, draw)


def _problem(name: str, puzzle: str, solution: str, draw: random.Random) -> Problem:
    cells = [cell for cell in range(16) if puzzle[cell] == "0"]
    draw.shuffle(cells)
    steps = "".join(f"row {cell // 4 + 1}, column {cell % 4 + 1}: {solution[cell]}\n" for cell in cells)
    trace = f"{steps}<answer>\n{solution}\n</answer>"
    question, answer = PROMPT.replace("{puzzle}", puzzle), f"{puzzle} -> {solution}"
    return Problem(name, question, answer, trace, ((len(steps), len(trace)),), demonstration=trace)


load = functools.partial(load_puzzles, read=_read, drawn=_drawn, content=content)
