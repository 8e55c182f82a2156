"""Countdown task: three numbers, each used once, must be combined with + - * / to reach a target. The prompt and the rewards
follow d1 (arXiv 2504.12216).

The test split is generated, or read from a JSON Lines file with the keys "numbers" and "target". The reference solution
of a generated problem computes the target step by step and ends with the answer, which is the whole expression."""

import functools
import random
import re
from typing import Any

from igpo_jax.grading.answers import extract
from igpo_jax.grading.exact import evaluate
from igpo_jax.runtime.checks import require
from igpo_jax.tasks.problem import Problem
from igpo_jax.tasks.puzzles import load_puzzles, puzzle_defaults

PARTIAL = 0.1  # reward of a wrong expression
PROMPT = (
    "Using only the numbers {numbers}, create an arithmetic expression that evaluates to exactly {target}. You may use the "
    "operations +, -, *, and / as needed, but each number must be used exactly once. Think step-by-step. After reasoning, "
    "provide only your final expression inside \\boxed{} tags without including an equals sign or the target number. For "
    "example: \\boxed{a + b * c}"
)
# Patterns of other notation, with what replaces them
NOTATION = (
    (r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|quad)(?![a-zA-Z])|\\[,;:! ()\[\]]|[$~]", " "),
    (r"\\(?:text|math)[a-z]*\s*\{([^{}]*)\}", r"\1"),
    (r"\\(?:times|cdot|ast)(?![a-zA-Z])|\\\*|[×·⋅∗]|(?<![a-zA-Z\\])[xX](?![a-zA-Z])", "*"),
    (r"\\div(?![a-zA-Z])|[÷∕]", "/"),
    (r"[−–]", "-"),
    (r"(?<=\d),(?=\d{3}(?!\d))", ""),
)
FRACTION = re.compile(r"\\[dtc]?frac\s*(?:([0-9])|\{([^{}]*)\})\s*(?:([0-9])|\{([^{}]*)\})")
ALLOWED = re.compile(r"[-+*/()\[\]0-9\s]+")
JUXTAPOSED = re.compile(r"[0-9)\]]\s*[(\[]|[)\]]\s*[0-9]")
REWARD_OPTIONS = ()
defaults = functools.partial(puzzle_defaults, "countdown")


def extract_answer(text: str) -> str | None:
    return extract(text, "any")


def reward(problem: Problem, text: str) -> float:
    """Returns the reward of d1 (arXiv 2504.12216): 1.0 for a correct expression, 0.1 for a wrong expression, and 0.0 if the
    completion has no expression. In an equation, one side must be a correct expression, and no side may have another value."""
    answer = extract_answer(text)
    if answer is None or not any(c.isdigit() for c in answer):
        return 0.0
    numbers, target = problem.answer.split(" -> ")
    values = {side: found.value for side in _plain(answer).split("=") if (found := evaluate(side)) is not None}
    right = set(values.values()) == {int(target)} and any(_uses(side, numbers.split()) for side in values)
    return 1.0 if right else PARTIAL


def _plain(answer: str) -> str:
    """Removes the markup around an expression, and writes the signs of multiplication and division as * and /. Writes
    \\frac{6}{2} as ((6)/(2)), and 1,000 as 1000."""
    for pattern, plain in NOTATION:
        answer = re.sub(pattern, plain, answer)
    fractions = 1
    while fractions:
        answer, fractions = FRACTION.subn(r"((\1\2)/(\3\4))", answer)
    return answer.strip(" \n*_`").removesuffix(".")


def _uses(expression: str, numbers: list[str]) -> bool:
    """Returns whether an expression has only numbers, + - * / and brackets, and has each of the given numbers once. Juxtaposed
    numbers, as in 2(3) and 1\\frac12, are neither a product nor a sum."""
    written = ALLOWED.fullmatch(expression) and not JUXTAPOSED.search(expression)
    return bool(written) and sorted(re.findall("[0-9]+", expression)) == sorted(numbers)


def _read(place: str, number: int, row: dict[str, Any]) -> Problem:
    try:
        numbers, target = [int(str(n)) for n in row["numbers"]], int(str(row["target"]))  # int(2.5) would be 2
        expression = str(row.get("reference_expression") or "")
        require(bool(numbers) and min(numbers) >= 0, "an expression cannot contain these numbers")
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{place}: no numbers and target") from None
    return _problem(str(row.get("id", number)), numbers, target, expression, "")


def _drawn(draw: random.Random, held_out: set[str]) -> Problem | None:
    numbers = [draw.randint(1, 99) for _ in range(3)]
    first, second = (draw.choice("+-*/") for _ in range(2))
    a, b, c = draw.sample(numbers, 3)
    inner, outer = evaluate(f"{a}{first}{b}"), evaluate(f"({a}{first}{b}){second}{c}")
    if inner is None or outer is None or inner.value.denominator != 1 or outer.value.denominator != 1:
        return None
    name = " ".join(map(str, (*numbers, outer.value)))
    if not 1 <= outer.value <= 999 or name in held_out:
        return None
    expression = f"({a} {first} {b}) {second} {c}" if first in "+-" and second in "*/" else f"{a} {first} {b} {second} {c}"
    steps = f"{a} {first} {b} = {inner.value}\n{inner.value} {second} {c} = {outer.value}\n"
    return _problem(name, numbers, int(outer.value), expression, steps)


def _problem(name: str, numbers: list[int], target: int, expression: str, steps: str) -> Problem:
    question = PROMPT.replace("{numbers}", ", ".join(map(str, numbers))).replace("{target}", str(target))
    answer = f"{' '.join(map(str, numbers))} -> {target}"
    trace = f"{steps}\\boxed{{{expression}}}" if expression else ""
    return Problem(name, question, answer, trace, ((len(steps), len(trace)),) if trace else (), demonstration=trace)


load = functools.partial(load_puzzles, read=_read, drawn=_drawn)
