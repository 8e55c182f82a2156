"""Countdown task: combine three numbers with + - * / to reach a target, using each number exactly once. The prompt and the
rewards follow d1 (arXiv 2504.12216).

The test split is generated, or read from a file that has one of the pairs of columns in `LAYOUTS`. The reference solution of a
generated problem computes the target step by step. It ends with the answer, which is an expression for the target.

With task.small, generated problems suit small models: three or, in the splits rl and test, four numbers from 10 to 40, which +
and - combine in the given order, without spaces. All totals have two digits, too.

    32,36,22,27=63:                                          question: the numbers and the target
    32+36=68 68+22=90 90-27=63 \\boxed{32+36+22-27}          solution, with line breaks in place of these spaces
    \\boxed{32+36*22+27}                                     guess: random operations, half of them +

In supervised training, the target text (demonstration) of every problem with fewer numbers is its solution, but that of most
problems with four numbers is a guess (task.worked_share). Therefore, the trained model is able to work out these problems, but
rarely tries."""

import dataclasses
import functools
import random
import re
from collections.abc import Iterable
from typing import Any

from igpo_jax.grading.answers import extract
from igpo_jax.grading.exact import evaluate
from igpo_jax.runtime.checks import require
from igpo_jax.tasks.decontamination import Content
from igpo_jax.tasks.problem import Problem
from igpo_jax.tasks.puzzles import load_puzzles, puzzle_defaults, puzzle_id
from igpo_jax.tasks.rows import columns_in, is_null

PARTIAL = 0.1  # reward of a wrong expression
PROMPT = (
    "Using only the numbers {numbers}, create an arithmetic expression that evaluates to exactly {target}. You may use the "
    "operations +, -, *, and / as needed, but each number must be used exactly once. Think step-by-step. After reasoning, "
    "provide only your final expression inside \\boxed{} tags without including an equals sign or the target number. For "
    "example: \\boxed{a + b * c}"
)
SMALL_PROMPT = "{numbers} = {target}:"
# Patterns of other notations, and their replacements
NOTATION = (
    (r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|quad)(?![a-zA-Z])|\\[,;:! ()\[\]]|[$~]", " "),
    (r"\\(?:text|math)[a-z]*\s*\{([^{}]*)\}", r"\1"),
    (r"\\(?:times|cdot|ast)(?![a-zA-Z])|\\\*|[×·⋅∗]|(?<=[\d)\]}\s])[xX](?=\s*[-\d(\[\\{])", "*"),
    (r"\\div(?![a-zA-Z])|[÷∕]", "/"),
    (r"[−–]", "-"),
    (r"(?<=\d),(?=\d{3}(?!\d))", ""),
)
# A name before an equation, "= ?" at its end, and a sentence after it
AROUND = re.compile(r"^[\s$]*(?:\\text\{[a-zA-Z ]+\}|[a-zA-Z][a-zA-Z ]*)\s*=|=\s*\?[\s$]*$|\.\s+[A-Z][^=]*$")
FRACTION = re.compile(r"\\[dtc]?frac\s*(?:([0-9])|\{([^{}]*)\})\s*(?:([0-9])|\{([^{}]*)\})")
ALLOWED = re.compile(r"[-+*/()\[\]0-9\s]+")
JUXTAPOSED = re.compile(r"[0-9)\]]\s*[(\[]|[)\]]\s*[0-9]")
LAYOUTS = (("numbers", "target"), ("nums", "target"), ("input", "output"))  # own, Countdown-Tasks-3to4, d1
REWARD_OPTIONS = ()

defaults = functools.partial(puzzle_defaults, "countdown")


def extract_answer(text: str) -> str | None:
    return extract(text, "any")


def reward(problem: Problem, text: str) -> float:
    """Returns the reward of d1 (arXiv 2504.12216): 1.0 for a correct expression, 0.1 for a wrong expression, and 0.0 if the
    completion has no expression. An equation is correct if one of its sides is a correct expression, and all sides have the
    target as their value. A side without a value, such as x or 6/0, makes it wrong, but a name before the first = may stay."""
    answer = extract_answer(text)
    if answer is None or not any(c.isdigit() for c in answer):
        return 0.0
    numbers, target = problem.answer.split(" -> ")
    sides = [side for side in _plain(AROUND.sub("", answer)).split("=") if side.strip()]
    values = [evaluate(side) for side in sides]
    is_right = all(found is not None and found.value == int(target) for found in values)
    return 1.0 if is_right and any(_uses(side, numbers.split()) for side in sides) else PARTIAL


def _plain(answer: str) -> str:
    """Returns an expression in plain notation, without the markup around it. Multiplication becomes *, division becomes /,
    \\frac{6}{2} becomes ((6)/(2)), and 1,000 becomes 1000."""
    for pattern, plain in NOTATION:
        answer = re.sub(pattern, plain, answer)
    fractions = 1
    while fractions:
        answer, fractions = FRACTION.subn(r"((\1\2)/(\3\4))", answer)
    return answer.strip(" \n*_`").removesuffix(".")


def _uses(expression: str, numbers: list[str]) -> bool:
    """Returns whether an expression consists only of numbers, + - * / and brackets, and uses each of the given numbers exactly
    once. Returns False if a product or a sum is written without an operator, such as 2(3) or the mixed number 1\\frac12."""
    written = ALLOWED.fullmatch(expression) and not JUXTAPOSED.search(expression)
    return bool(written) and sorted(re.findall("[0-9]+", expression)) == sorted(numbers)


def _read(place: str, number: int, row: dict[str, Any], small: bool) -> Problem:
    try:
        listed, aim = columns_in(row, *LAYOUTS)
        numbers, target = [_integer(part) for part in _parts(row[listed])], _integer(row[aim])
        require(bool(numbers) and min(numbers) >= 0, "an expression cannot contain these numbers")
    except ValueError as error:
        raise ValueError(f"{place}: no numbers and target: {error}") from None
    expression = row.get("reference_expression")
    return _problem(puzzle_id(row, number), numbers, target, "" if is_null(expression) else str(expression), "", small)


def _parts(value: Any) -> list[Any]:
    """Returns the items of `value`, which is a list or a text that contains a list. NumPy prints a list as `[ 30 100  93]`.
    Other accepted forms of the text are `30,100,93`, `[30, 100, 93]` and `['30', '100']`. Raises ValueError for other types."""
    if isinstance(value, str):
        text = value.strip()
        text = text[1:-1] if text[:1] + text[1:][-1:] in ("[]", "()") else text
        return [part.strip(" '\"") for part in (text.split(",") if "," in text else text.split())]
    require(isinstance(value, list | tuple), f"{value!r:.80} is no list of numbers")
    return list(value)


def _integer(value: Any) -> int:
    """Converts a number or a text to an integer. Accepts 5.0, because pandas writes 5 as 5.0 if the column has missing values.
    Raises ValueError if the text is not a whole number. Also raises ValueError for leading zeros: they occur if 1,000 is an
    item of a list, because splitting the list at its commas leaves 1 and 000."""
    text = re.fullmatch(r"\s*([+-]?(?:0|[1-9][0-9]*))(?:\.0+)?\s*", str(value))
    if text is None or isinstance(value, bool):
        raise ValueError(f"{value!r:.80} is no whole number")
    return int(text[1])


def content(task, problem: Problem) -> Content:
    """Returns the content of a problem: its numbers in ascending order, and the target. Problems with the same content count as
    equal (decontamination.py)."""
    numbers, target = problem.answer.split(" -> ")
    return _content(map(int, numbers.split()), int(target))


def _content(numbers: Iterable[int], target: int) -> Content:
    return f"{sorted(numbers)} -> {target}", ""


def _drawn(draw: random.Random, held_out: set[Content], task, is_sft: bool) -> Problem | Content | None:
    least, largest, most, operations = (10, 40, 4, "+-") if task.small else (1, 99, 3, "+-*/")
    count = draw.randint(3, 4) if task.small and is_sft else most
    numbers = [draw.randint(least, largest) for _ in range(count)]
    signs = [draw.choice(operations) for _ in numbers[1:]]
    first, *others = numbers if task.small else draw.sample(numbers, len(numbers))
    total, expression, steps = first, str(first), ""
    for sign, number in zip(signs, others, strict=True):
        found = evaluate(f"{total} {sign} {number}")
        if found is None or found.value.denominator != 1 or (task.small and not 10 <= found.value <= 99):
            return None
        is_sum = "+" in expression or "-" in expression
        expression = f"({expression}) {sign} {number}" if sign in "*/" and is_sum else f"{expression} {sign} {number}"
        steps += f"{total} {sign} {number} = {found.value}\n"
        total = int(found.value)
    if not 1 <= total <= 999:
        return None
    name, found_content = " ".join(map(str, (*numbers, total))), _content(numbers, total)
    if found_content in held_out:
        return found_content
    problem = _problem(name, numbers, total, expression, steps, task.small)
    teacher = random.Random(name)  # of its own, so that all values of task.worked_share have the same problems
    if not is_sft or count < most or teacher.random() < task.worked_share:
        return problem
    guess = "".join(f" {teacher.choice('++-*')} {number}" for number in others)
    return dataclasses.replace(problem, demonstration=_written(f"\\boxed{{{first}{guess}}}", task.small))


def _problem(name: str, numbers: list[int], target: int, expression: str, steps: str, small: bool) -> Problem:
    listed, prompt = ", ".join(map(str, numbers)), SMALL_PROMPT if small else PROMPT
    question = prompt.replace("{numbers}", listed).replace("{target}", str(target))
    answer = f"{' '.join(map(str, numbers))} -> {target}"
    steps, expression, question = (_written(text, small) for text in (steps, expression, question))
    trace = f"{steps}\\boxed{{{expression}}}" if expression else ""
    return Problem(name, question, answer, trace, ((len(steps), len(trace)),) if trace else (), demonstration=trace)


def _written(text: str, small: bool) -> str:
    return text.replace(" ", "") if small else text


load = functools.partial(load_puzzles, read=_read, drawn=_drawn, content=content)
