"""4x4 Sudoku task. A grid is written as sixteen digits, row by row, with 0 for an empty cell. The rewards follow d1 (arXiv
2504.12216), except that every valid grid is accepted, not only the reference solution.

The test split is read from a file with the columns puzzle and solution, or generated. The reference solution fills one cell per
line and ends with the answer, which is the completed grid.

With task.small, generated puzzles suit small models. They have 4 to 8 empty cells and, in the splits rl and test, at least 7.
Each puzzle is solved in two rounds: the first one fills all cells with only one possible digit, and the second one the rest.

    4201102401030000                                     question: the puzzle
    4231132421430002 <answer> 4231132421433412 </answer> solution, with line breaks in place of spaces: both rounds
    <answer> 4231132441232431 </answer>                  guess: completes every row regardless of the columns and boxes

In supervised training, the target text (demonstration) of every puzzle with at most 6 empty cells is its solution, but that of
most others is a guess (task.worked_share). Therefore, the trained model is able to work out these puzzles, but rarely tries."""

import dataclasses
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
SMALL_PROMPT = "{puzzle}\n"
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
DIGITS = "1234"
# Numbers of empty cells in a drawn puzzle: the fewest, those from which a puzzle is long, and the most
EMPTY, SMALL_EMPTY = (6, 6, 10), (4, 7, 8)
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


def _read(place: str, number: int, row: dict[str, Any], small: bool) -> Problem:
    try:
        puzzle, solution = (str(row[name]).strip() for name in columns_in(row, ("puzzle", "solution")))
    except ValueError as error:
        raise ValueError(f"{place}: no 4x4 puzzle with its solution: {error}") from None
    if not re.fullmatch(r"[0-4]{16}", puzzle) or not right(solution, puzzle):
        reason = f": {puzzle!r:.40} and {solution!r:.40}"
        if re.fullmatch(r"[0-9]{1,15}", puzzle):
            reason = f": {puzzle} has {len(puzzle)} digits; if its first zeros are lost, write the column as text"
        raise ValueError(f"{place}: no 4x4 puzzle with its solution{reason}")
    return _problem(puzzle_id(row, number), puzzle, solution, random.Random(number), small)


def content(task, problem: Problem) -> Content:
    """Returns the content of a problem: the digits of the puzzle, without its solution. Problems with the same content count as
    equal (decontamination.py)."""
    return problem.answer.split(" -> ")[0], ""


def _drawn(draw: random.Random, held_out: set[Content], task, is_sft: bool) -> Problem | Content | None:
    solution = draw.choice(grids())
    fewest, long, most = SMALL_EMPTY if task.small else EMPTY
    empty = draw.sample(range(16), draw.randint(fewest if is_sft else long, most))
    puzzle = "".join("0" if cell in empty else digit for cell, digit in enumerate(solution))
    if (puzzle, "") in held_out:
        return puzzle, ""
    if task.small and _rounds(puzzle, solution)[1:] != [solution]:  # two rounds, so that all solutions have one length
        return None
    problem = _problem(puzzle, puzzle, solution, draw, task.small)
    teacher = random.Random(puzzle)
    if not is_sft or len(empty) < long or teacher.random() < task.worked_share:
        return problem
    return dataclasses.replace(problem, demonstration=_answer(_guess(puzzle, teacher)))


def _guess(puzzle: str, teacher: random.Random) -> str:
    """Completes every row of a puzzle at random with the digits that it lacks, regardless of the columns and boxes."""
    rows = [puzzle[begin : begin + 4] for begin in range(0, 16, 4)]
    missing = [teacher.sample(sorted({*DIGITS} - {*row}), row.count("0")) for row in rows]
    return "".join(digits.pop() if cell == "0" else cell for row, digits in zip(rows, missing, strict=True) for cell in row)


def _answer(grid: str) -> str:
    return f"<answer>\n{grid}\n</answer>"


def _problem(name: str, puzzle: str, solution: str, draw: random.Random, small: bool) -> Problem:
    cells = [cell for cell in range(16) if puzzle[cell] == "0"]
    draw.shuffle(cells)
    steps = "".join(f"row {cell // 4 + 1}, column {cell % 4 + 1}: {solution[cell]}\n" for cell in cells)
    if small:
        steps = "".join(f"{grid}\n" for grid in _rounds(puzzle, solution) if grid != solution)
    trace = steps + _answer(solution)
    question, answer = (SMALL_PROMPT if small else PROMPT).replace("{puzzle}", puzzle), f"{puzzle} -> {solution}"
    return Problem(name, question, answer, trace, ((len(steps), len(trace)),), demonstration=trace)


def _rounds(puzzle: str, solution: str) -> list[str]:
    """Returns the grids after each round of filling a puzzle, until it is solved or guessing is needed. A round fills all cells
    with only one possible digit, which is the one that does not occur in the row, column and box of the cell."""
    rounds, grid = [], puzzle
    while True:
        taken = [{grid[other] for unit in UNITS if cell in unit for other in unit} for cell in range(16)]
        forced = [grid[cell] == "0" and len({*DIGITS} - taken[cell]) == 1 for cell in range(16)]
        if not any(forced):
            return rounds
        grid = "".join(solution[cell] if forced[cell] else grid[cell] for cell in range(16))
        rounds.append(grid)


load = functools.partial(load_puzzles, read=_read, drawn=_drawn, content=content)
