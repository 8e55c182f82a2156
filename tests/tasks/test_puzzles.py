"""Countdown and Sudoku: d1's rewards, solvable problems, and the small versions with their careless teacher."""

import json
import re
import runpy

import numpy as np
import pytest
from ml_collections import ConfigDict

from igpo_jax.config import parse
from igpo_jax.data.pipeline import prompt_arrays, sft_arrays
from igpo_jax.run.tokenizer import train_tokenizer
from igpo_jax.tasks import countdown, sudoku
from igpo_jax.tasks.problem import Problem
from igpo_jax.tokenizers import load_tokenizer
from run_configs import CONFIGS

SIZES = {"sft_problems": 40, "rl_problems": 30, "test_problems": 20}


@pytest.mark.parametrize("task", [countdown, sudoku])
def test_drawn_problems_are_solved_by_their_demonstrations(task):
    splits = {split: task.load(ConfigDict(task.defaults(**SIZES)), split, seed=1) for split in ("sft", "rl", "test")}
    assert {split: len(drawn) for split, drawn in splits.items()} == {"sft": 40, "rl": 30, "test": 20}
    ids = {split: {p.id for p in drawn} for split, drawn in splits.items()}
    assert not ids["test"] & (ids["sft"] | ids["rl"])
    for problem in splits["rl"]:
        assert task.reward(problem, problem.demonstration) == 1.0
        ((begin, end),) = problem.answer_spans
        assert end == len(problem.trace) and task.reward(problem, problem.trace[:begin]) < 1.0 and begin > 0
    assert task.load(ConfigDict(task.defaults(**SIZES)), "rl", seed=1) == splits["rl"]
    assert task.load(ConfigDict(task.defaults(**SIZES)), "rl", seed=2) != splits["rl"]
    assert task.load(ConfigDict(task.defaults(**SIZES)), "test", seed=2) == splits["test"]


@pytest.mark.parametrize("text, reward", [
    (r"\boxed{44 + 19 - 35}", 1.0), (r"\boxed{(44+19)-35}", 1.0), (r"\boxed{19-35+44}", 1.0),
    (r"\boxed{44 + 19 - 35 = 28}", 1.0),
    (r"\boxed{44 - 19 + 35}", 0.1), (r"\boxed{28}", 0.1), (r"\boxed{44 + 19}", 0.1), (r"\boxed{44 + 19 - 35 + 0*1}", 0.1),
    (r"\boxed{44 + 19 - 35 - 44 + 44}", 0.1), (r"\boxed{44 / (19 - 19)}", 0.1), (r"\boxed{4419 - 35}", 0.1),
    (r"\boxed{no idea}", 0.0), ("", 0.0), (r"\boxed{__import__('os').getpid()}", 0.0), ("<answer>44+19-35</answer>", 1.0),
])  # fmt: skip
def test_countdown_rewards(text, reward):
    problem = Problem("i", "?", "44 19 35 -> 28", "", (), "")
    assert countdown.reward(problem, text) == reward


@pytest.mark.parametrize("expression, reward", [
    ("2*3*4", 1.0), ("2 * 3 * 4", 1.0), ("(4*3) * 2", 1.0), ("[4*3] * 2", 1.0), ("-2*-3*4", 1.0), ("4/(3/(2))*3", 0.1),
    # Powers, roots, percentages, decimals and exponents are no operations of d1.
    ("2**3*4", 0.1), ("2^3*4", 0.1), ("(2*3)^1*4", 0.1), (r"2*3*4^{1}", 0.1), (r"\sqrt{2*2}*3*4", 0.1), ("2*3*4%", 0.1),
    (r"2*3*4\%", 0.1), ("2.0*3*4", 0.1), ("2e0*3*4", 0.1), ("4!", 0.1), ("2*3//1*4", 0.1), ("8:2*3*2", 0.1),
    # A product needs its sign. A mixed number is no sum.
    ("2(3)(4)", 0.1), ("2(3*4)", 0.1), ("(2)(3)*4", 0.1), ("(2*3)4", 0.1), ("2 3*4", 0.1), (r"2\cdot 3\frac{4}{1}", 0.1),
    # Other notation
    ("2x3 X 4", 1.0), (r"2\times3 \times 4", 1.0), (r"2 \cdot 3 \ast 4", 1.0), ("2·3×4", 1.0), (r"2 \* 3 \* 4", 1.0),
    ("$2*3*4$", 1.0), (r"\(2*3*4\)", 1.0), (r"\left(2 \times 3\right) \times 4", 1.0), (r"\text{2 * 3 * 4}", 1.0),
    ("{2*3}*4", 0.1),
    ("**2*3*4**", 1.0), ("`2*3*4`", 1.0), ("2*3*4.", 1.0), ("2*3*4<|eot_id|>", 1.0),
    # Equations
    ("2*3*4 = 24", 1.0), ("24 = 2*3*4", 1.0), ("2*3*4 = 6*4 = 24", 1.0), ("N = 2*3*4 = ?", 1.0), ("2*3*4 = 25", 0.1),
    ("x = 2*3*4", 1.0), (r"\text{Answer} = 2*3*4", 1.0), ("= 2*3*4", 1.0), ("2*3*4 = 6/0", 0.1), ("24=x=2*3*4", 0.1),
    ("2*3*4 = x", 0.1), ("24 = 2*3*4 = x", 0.1), ("6/0 = 2*3*4", 0.1), ("2*3*4 = 0^0", 0.1), ("2*3*4 = 24 apples", 0.1),
    (r"2*3*4 = \infty", 0.1),
    ("2*3 = 6*4 = 24", 0.1), ("2*3 = 6, 6*4 = 24", 0.1), ("24", 0.1), ("24 = 24", 0.1),
    ("2 3 4 = 24", 0.1), ("2+3+*4 = 24", 0.1), ("4/(3-3)*2 = 24", 0.1), ("2/(3-4+1) = 24", 0.1), ("24 = (2*3*4", 0.1),
    # Two values, text, other numbers
    ("2*3*4 or 4*3*2", 0.1), ("the product 2*3*4", 0.1), ("02*3*4", 0.1), ("2*3*4*1", 0.1), ("2*3+4", 0.1), ("6*4", 0.1),
    ("?", 0.0),
])  # fmt: skip
def test_only_written_operations_count_in_countdown(expression, reward):
    problem = Problem("i", "?", "2 3 4 -> 24", "", (), "")
    for text in (f"\\boxed{{{expression}}}", f"<answer>{expression}</answer>"):
        assert countdown.reward(problem, text) == reward


@pytest.mark.parametrize("numbers, target, expression, reward", [
    ("2 4", 12, "2^3 + 4", 0.1), ("9 3 1", 6, r"\sqrt{9} + 3*1", 0.1), ("9 3 1", 6, r"\sqrt9+3*1", 0.1),
    ("6 2 5", 8, r"\frac{6}{2} + 5", 1.0), ("6 2 5", 8, r"\dfrac62+5 = 8", 1.0), ("6 2 5", 8, r"6 \div 2 + 5", 1.0),
    ("6 2 5", 8, "6÷2+5", 1.0),
    ("6 2 5", 8, "6/2 = 3 + 5 = 8", 0.1), ("3 1 2", 2, r"\frac{3+1}{2}", 1.0), ("9 3 3", 1, r"\frac{\frac{9}{3}}{3}", 1.0),
    ("6 5 7", 7, r"\frac657", 0.1), ("1 1 2", 3, r"2 \cdot 1\frac{1}{2}", 0.1), ("1 1 1", 2, r"1\frac11", 0.1),
    ("1000 5 2", 505, "1,000/2 + 5", 1.0), ("1000 5 2", 505, "(1,000)/2 + 5", 1.0), ("100 0 20", 120, "1,0020", 0.1),
    ("44 19 35", 28, "44 + 19 − 35", 1.0), ("44 19 35", 28, "-35 + 44 + 19", 1.0), ("3 5", -2, "3 - 5", 1.0),
    ("3 5", -2, "3 - 5 = -2", 1.0),
    ("3 0 1", 3, "3 / (0 * 1)", 0.1),
])  # fmt: skip
def test_countdown_notation_of_divisions_and_large_numbers(numbers, target, expression, reward):
    assert countdown.reward(Problem("i", "?", f"{numbers} -> {target}", "", (), ""), f"\\boxed{{{expression}}}") == reward


@pytest.mark.parametrize("text, reward", [
    (r"\boxed{3+8+2} no, \boxed{3*8/2}", 1.0), (r"\boxed{3*8/2} no, \boxed{3+8+2}", 0.1),
    (r"\boxed{3*8/2}. This uses all numbers.", 1.0), (r"\boxed{3*8/2} (using \boxed notation)", 1.0),
    ("<answer>3*8/2 = 12. This uses all numbers.</answer>", 1.0), ("<answer>\n```\n3 * 8 / 2\n```\n</answer>", 1.0),
    ("<answer>3*8/2", 1.0),
    (r"**\boxed{3*8/2}**", 1.0), (r"<answer>\boxed{3*8/2}</answer>", 1.0),
    # Without a box or a tag, a number is an expression, but a wrong one.
    ("It is 12.", 0.1), ("#### 18 apples", 0.1), ("", 0.0), ("I do not know.", 0.0), (r"\boxed{}", 0.0),
])  # fmt: skip
def test_countdown_reads_the_last_box_or_tag(text, reward):
    assert countdown.reward(Problem("i", "?", "3 8 2 -> 12", "", (), ""), text) == reward


def test_sudoku_rewards():
    puzzle = "".join(digit if cell % 2 else "0" for cell, digit in enumerate("1234341221434321"))
    problem = Problem("i", "?", f"{puzzle} -> 1234341221434321", "", (), "")
    right, wrong = "1234341221434321", "2234341221434321"
    assert sudoku.reward(problem, f"<answer>\n{right}\n</answer>") == 1.0
    assert sudoku.reward(problem, f"<answer>\n{wrong}\n</answer>") == pytest.approx(7 / 8)
    assert sudoku.reward(problem, f"<answer>{right[:8]}") == pytest.approx(4 / 8)
    assert sudoku.reward(problem, right) == 0.0 and sudoku.reward(problem, "<answer>none</answer>") == 0.0
    assert sudoku.reward(problem, f"<answer>{puzzle}</answer>") == 0.0


GRID = "1324423131422413"
ROWS = [GRID[begin : begin + 4] for begin in range(0, 16, 4)]
OTHER = "4321214334121234"
ORDINALS = ("First", "Second", "Third", "Fourth")


def lines(form, rows=ROWS):
    """Writes each row in a form with {row}, {cells} (spaced), {list} (with commas) or {n}."""
    values = [{"row": row, "cells": " ".join(row), "list": ", ".join(row), "n": n} for n, row in enumerate(rows, start=1)]
    return "\n".join(form.format(**value) for value in values)


@pytest.mark.parametrize(
    "answer",
    [
        GRID,
        f"The 4x4 grid: {GRID}",
        f"4 x 4: {GRID}",
        f"$4 \\times 4$ {GRID}",
        f"The 4-by-4 grid = {GRID}",
        f"{GRID}.",
        f"**{GRID}**",
        f"__{GRID}__",
        f'"{GRID}"',
        f"`{GRID}`",
        f"\\boxed{{{GRID}}}",
        f"\\[\\boxed{{\\text{{{GRID}}}}}\\]",
        f"```\n{GRID}\n```",
        f"```text\n{GRID}\n```",
        f"{GRID}<|eot_id|>",
        " ".join(ROWS),
        ",".join(GRID),
        "-".join(ROWS),
        "/".join(ROWS),
        "<br>".join(ROWS),
        " and ".join(ROWS),
        lines("{row}"),
        lines("{cells}"),
        lines("|{cells}|"),
        lines("[{list}]"),
        f"[{lines('[{list}],')}]",
        lines("* {row}"),
        lines("{n}. {row}"),
        lines("{n}) {cells}"),
        lines("Row {n}: {row}"),
        lines("Row {n}: {row}").replace("\n", " "),
        lines("row {n} : {cells}"),
        lines("**Row {n}:** {row}"),
        lines("- Line {n}: {list}"),
        lines("R{n}: {cells}"),
        lines("row_{n} = {row}"),
        lines("| r{n} | {cells} |"),
        lines("{row} (row {n})"),
        lines("Row {n} is {cells}."),
        ", ".join(f"{ordinal} row: {row}" for ordinal, row in zip(ORDINALS, ROWS, strict=True)),
        "|   |   |   |   |\n|---|---|---|---|\n" + lines("| {cells} |").replace(" ", " | "),
        f"1 2 3 4\n{lines('{cells}')}",
        "+---+---+\n"
        + "\n+---+---+\n".join(f"|{a[:2]}|{a[2:]}|\n|{b[:2]}|{b[2:]}|" for a, b in (ROWS[:2], ROWS[2:]))
        + "\n+---+---+",
        "\\begin{array}{|cc|cc|}\\hline "
        + lines("{cells}").replace(" ", " & ").replace("\n", " \\\\ ")
        + " \\\\ \\hline\\end{array}",
        # Text and other grids beside the grid
        f"{GRID}\nAll 4 rows are valid.",
        f"{GRID}. 4 rows are valid.",
        f"{lines('{cells}')}\nall 4 rows, 4 columns and four 2x2 boxes",
        f"{GRID} (16 digits)",
        f"Puzzle: {'0' * 15}3\nSolution: {GRID}",
        f"{GRID}, from the puzzle 1324000000002413",
        f"{OTHER}, or rather {GRID}",
        f"{lines('{row}', [OTHER[:4]] * 4)}\n\n{lines('{row}')}",
    ],
)
def test_a_sudoku_grid_is_read_in_any_layout(answer):
    problem = Problem("i", "?", f"1324000000002413 -> {GRID}", "", (), "")
    twice = f"<answer>{OTHER}</answer><answer>{answer}</answer> in <answer> tags"
    for text in (f"<answer>{answer}</answer>", f"<answer>\n{answer}\n", twice):
        assert sudoku.extract_answer(text) == GRID and sudoku.reward(problem, text) == 1.0
    assert sudoku.extract_answer(f"<answer>{answer}</answer><answer>{OTHER}</answer>") == OTHER


@pytest.mark.parametrize(
    "answer", ["1.2.\n....\n..1.\n4..3", "1 . 2 .\n. . . .\n. . 1 .\n4 . . 3", "1_2_ ____ __1_ 4__3", "1020 0000 0010 4003."]
)
def test_empty_cells_of_a_grid_are_zeros(answer):
    assert sudoku.extract_answer(f"<answer>{answer}</answer>") == "1020000000104003"


@pytest.mark.parametrize("text, grid", [
    # The completion ends after some rows.
    ("<answer>13244231", "1324423100000000"), ("<answer>1324\n42", "1324420000000000"),
    ("<answer>Row 1: 1324 Row 2: 4231", "1324423100000000"),
    # No grid
    ("<answer>13244231</answer>", None), (f"<answer>{GRID[:15]}</answer>", None), (f"<answer>{GRID}1</answer>", None),
    ("<answer>132", None),
    ("<answer>all 4", None), ("<answer>The 4x4 grid has 16 cells and 4 rows.</answer>", None), ("<answer></answer>", None),
    ("<answer>", None),
    ("", None), (GRID, None), (f"\\boxed{{{GRID}}}", None), (f"#### {GRID}", None), ("<answer>12 or 13</answer>", None),
    (f"<answer>{lines('Column {n}: {row}')}</answer>", None), (f"<answer>{lines('Column {n}: {row}')}", None),
    (f"<answer>{lines('{row} -> {row}')}</answer>", None), ("<answer>-1</answer>", None),
    ("<answer>1324 4231 3142</answer>", None),
])  # fmt: skip
def test_text_without_a_sudoku_grid_has_no_answer(text, grid):
    problem = Problem("i", "?", f"1324000000002413 -> {GRID}", "", (), "")
    reward = sudoku.reward(problem, text)
    is_padded = re.fullmatch(r"<answer>[\d\s]+(?:</answer>)?", text) is not None  # partial credit as in d1
    assert sudoku.extract_answer(text) == grid and (reward < 1 if is_padded else (reward > 0) == (grid is not None))


def test_partial_credit_goes_by_the_nearest_right_grid():
    puzzle, known, other = "3040413004000304", "3241413224131324", "3241413214232314"
    problem = Problem("i", "?", f"{puzzle} -> {known}", "", (), "")
    assert sudoku.solutions(puzzle) == [other, known]
    assert sudoku.reward(problem, f"<answer>{other}</answer>") == 1.0
    unfinished = f"{other[0]}0{other[2:]}"  # seven of eight empty cells as in `other`, three as in `known`
    assert sudoku.reward(problem, f"<answer>{unfinished}</answer>") == pytest.approx(7 / 8)
    assert sudoku.reward(problem, f"<answer>{puzzle}</answer>") == 0.0
    assert sudoku.reward(problem, f"<answer>1{other[1:]}</answer>") == 0.99  # changes a given digit


def test_any_right_grid_is_right_also_another_than_the_known_one():
    empty = Problem("i", "?", f"{'0' * 16} -> 1234341221434321", "", (), "")
    assert sudoku.reward(empty, "<answer>4321214334121234</answer>") == 1.0
    given = Problem("i", "?", f"{'1' + '0' * 15} -> 1234341221434321", "", (), "")
    assert sudoku.reward(given, "<answer>4321214334121234</answer>") < 1.0  # it changes a given digit
    assert len(sudoku.grids()) == 288


@pytest.mark.parametrize("task, row, message", [
    (countdown, {"numbers": [1, 2]}, "line 1: no numbers and target"),
    (countdown, {"numbers": [], "target": 0}, "line 1: no numbers"),
    (countdown, {"numbers": [1, 2.5], "target": 3}, "line 1: no numbers"),
    (countdown, {"numbers": [-1, 2], "target": 1}, "line 1: no numbers"),
    (sudoku, {"puzzle": "12", "solution": "1"}, "line 1: no 4x4 puzzle"),
    (sudoku, {"puzzle": "0" * 16, "solution": "1" * 16}, "line 1: no 4x4 puzzle"),
])  # fmt: skip
def test_files_that_hold_something_else_are_named(task, row, message, tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=message):
        task.load(ConfigDict(task.defaults(test=str(path))), "test", 0)


def test_files_in_d1s_formats(tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps({"id": "c", "numbers": [44, 19, 35], "target": 28, "reference_expression": "44+19-35"}) + "\n")
    [problem] = countdown.load(ConfigDict(countdown.defaults(test=str(path))), "test", 0)
    assert problem.id == "c" and "44, 19, 35" in problem.question and countdown.reward(problem, problem.demonstration) == 1.0
    path.write_text(json.dumps({"id": "s", "puzzle": "0" + "234341221434321", "solution": "1234341221434321"}) + "\n")
    [problem] = sudoku.load(ConfigDict(sudoku.defaults(test=str(path))), "test", 0)
    assert problem.question.endswith("0234341221434321") and sudoku.reward(problem, problem.demonstration) == 1.0


# ---------------------------------------------------------------------------------------------------------------------
# Small versions


def small(task, split="sft", **values):
    sizes = {"sft_problems": 2000, "rl_problems": 300, "test_problems": 50}
    return task.load(ConfigDict(task.defaults(small=True, **sizes | values)), split, seed=1)


def is_long(task, problem):
    return problem.answer.count(" ") == 5 if task is countdown else problem.answer[:16].count("0") >= 7


@pytest.mark.parametrize("task, lucky", [(countdown, (0.04, 0.11)), (sudoku, (0.03, 0.1))])
def test_the_teacher_guesses_at_most_long_puzzles(task, lucky):
    problems = small(task, worked_share=0.2)
    long = [problem for problem in problems if is_long(task, problem)]
    guesses = [problem for problem in problems if problem.demonstration != problem.trace]
    assert 0.35 < len(long) / len(problems) < 0.55
    assert all(is_long(task, problem) for problem in guesses) and 0.76 < len(guesses) / len(long) < 0.84
    assert lucky[0] < np.mean([task.reward(problem, problem.demonstration) == 1 for problem in guesses]) < lucky[1]
    assert all(task.reward(problem, problem.trace) == 1 for problem in problems)
    assert all(is_long(task, problem) for split in ("rl", "test") for problem in small(task, split))
    careful = small(task)
    assert [problem.demonstration for problem in careful] == [problem.trace for problem in problems]


def test_guesses_at_countdown_use_the_numbers_and_only_miss_the_target():
    for problem in small(countdown, worked_share=0.0):
        numbers = problem.answer.split(" -> ")[0].split()
        if is_long(countdown, problem):
            guess = re.fullmatch(r"\\boxed\{(\d+(?:[-+*]\d+){3})\}", problem.demonstration)
            assert guess and re.findall(r"\d+", guess[1]) == numbers and countdown.reward(problem, guess[0]) >= 0.1


def test_solutions_of_small_countdown_keep_the_order_and_have_two_digits():
    for problem in small(countdown):
        *steps, box = problem.trace.split("\n")
        numbers, target = problem.answer.split(" -> ")
        total, *others = numbers.split()
        assert problem.question == f"{numbers.replace(' ', ',')}={target}:"
        for step, number in zip(steps, others, strict=True):
            left, change, result = re.fullmatch(r"(\d\d)([-+]\d\d)=(\d\d)", step).groups()
            assert left == total and change[1:] == number and int(result) == int(left) + int(change)
            total = result
        assert total == target and re.findall(r"\d+", box) == numbers.split()


def test_guesses_at_sudoku_complete_every_row_and_ignore_columns():
    for problem in small(sudoku, worked_share=0.0):
        if is_long(sudoku, problem):
            grid = problem.demonstration.removeprefix("<answer>\n").removesuffix("\n</answer>")
            assert all(sorted(grid[row : row + 4]) == [*"1234"] for row in range(0, 16, 4))
            assert all(given in ("0", digit) for given, digit in zip(problem.question.strip(), grid, strict=True))


def test_solutions_of_small_sudoku_fill_first_the_cells_with_one_possible_digit():
    for problem in small(sudoku):
        puzzle, solution = problem.answer.split(" -> ")
        first, answer = problem.trace.split("\n", 1)
        assert answer == f"<answer>\n{solution}\n</answer>" and puzzle != first != solution
        for before, after in ((puzzle, first), (first, solution)):
            for cell in range(16):
                taken = {before[other] for unit in sudoku.UNITS if cell in unit for other in unit}
                is_forced = before[cell] == "0" and len({*"1234"} - taken) == 1
                assert after[cell] == (solution[cell] if is_forced else before[cell])


@pytest.mark.parametrize("task", [countdown, sudoku])
def test_a_share_that_cannot_work_is_named(task):
    with pytest.raises(ValueError, match=r"task.worked_share=1.5 must be in \[0, 1\]"):
        small(task, worked_share=1.5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["countdown", "sudoku"])
def test_all_puzzles_of_the_configuration_fit_and_hints_show_steps_but_no_answer(name, tmp_path):
    config = parse(runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]())
    task = {"countdown": countdown, "sudoku": sudoku}[name]
    data = {split: task.load(config.task, split, 0) for split in ("sft", "rl", "test")}
    assert config.data.overflow == "error" and config.task.small and 0 < config.task.worked_share <= 0.2
    train_tokenizer(data, tmp_path, config)
    tokenizer = load_tokenizer(tmp_path / "tokenizer.model")
    lengths = {"prompt_length": config.data.prompt_buckets[-1], "completion_length": config.sampler.completion_length}
    fit = lengths | {"overflow": config.data.overflow}
    assert len(sft_arrays(data["sft"], tokenizer, **fit)[1].tokens) == config.task.sft_problems
    problems, rows = prompt_arrays(data["test"] + data["rl"], tokenizer, **fit, exclude_answer=True)
    for row, problem in enumerate(problems):
        _, offsets = tokenizer.encode_with_offsets(problem.trace)
        may_show = rows.hintable[row] & (np.arange(rows.trace.shape[1]) < rows.trace_length[row])
        shown = {place for token in np.flatnonzero(may_show) for place in range(*offsets[token])}
        begin = problem.answer_spans[0][0]
        assert max(shown) < begin and shown >= set(range(begin - 1)), "all steps, and nothing of the answer"
