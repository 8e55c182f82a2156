"""Noise in the worked solutions from which hints are cut, for experiments with unreliable solutions (docs/method.md section 6)."""

import dataclasses
import random
import re
from collections.abc import Callable

import numpy as np

from igpo_jax.runtime.checks import require
from igpo_jax.tasks.problem import Problem

NUMBER = re.compile(r"(?<!\d)\d{1,18}(?!\d)")
SIGN = r"(?:[-+*/×÷]|\\times|\\cdot|\\div)"
# Between operands, as in 3+4, 2x-1 and a + b, but not in well-known
OPERATOR = re.compile(rf"(?<=[\w)}}]){SIGN}(?=[\d(\\])|(?<=[\w)}}] ){SIGN}(?= )")
WORD = re.compile(r"(?<![\\\w</])[^\W\d_]{2,}(?=[ ,.])")  # no LaTeX command and no tag
SIGNS = ("+", "-", "*", "/")
FILLERS = ("well", "so to speak", "you know", "as usual", "of course", "by the way")
LARGEST_CHANGE = 9  # of a number
LONGEST_TRACE = 1_000_000  # characters; each possible change takes about 200 bytes of memory


def with_noise(problem: Problem, seed: int, numbers: float, operators: float, filler: float) -> Problem:
    """Returns a problem with noise in its trace (worked solution). `numbers` is the share of numbers that are replaced by another
    number, `operators` the share of operators (+ - * / and the like) that are replaced by another operator, and `filler` the
    share of words that are followed by meaningless words. Text that gives the answer away stays the same, and no number is
    replaced by the answer. The noise depends only on the seed, the problem and the shares. With a larger share, the changes of
    a smaller one stay the same, and others are added. Raises ValueError if the trace has more than `LONGEST_TRACE`
    characters."""
    size = len(problem.trace)
    fits = f"problem {problem.id[:100]!r}: its solution has {size} characters; noise is possible in at most {LONGEST_TRACE}"
    require(size <= LONGEST_TRACE, fits)
    kinds: tuple[tuple[str, float, re.Pattern, Callable[[str, random.Random], str]], ...] = (
        ("numbers", numbers, NUMBER, lambda text, draw: _other_number(text, problem.answer, draw)),
        ("operators", operators, OPERATOR, lambda text, draw: draw.choice([sign for sign in SIGNS if sign != text])),
        ("filler", filler, WORD, lambda text, draw: f"{text} {draw.choice(FILLERS)}"),
    )
    trace, changes = problem.trace, []
    hidden = np.zeros(len(trace), bool)
    for begin, end in problem.answer_spans:
        hidden[begin:end] = True
    for kind, share, pattern, change in kinds:
        draw = random.Random(f"{seed} {kind} {problem.id}")
        for match in pattern.finditer(trace) if share else ():
            is_drawn, text = draw.random() < share, change(match[0], draw)
            if is_drawn and not hidden[slice(*match.span())].any():
                changes.append((*match.span(), text))
    moved = np.zeros(len(trace) + 1, int)  # number of characters by which a place moves to the right
    pieces, last = [], 0
    for begin, end, text in sorted(changes):
        pieces += [trace[last:begin], text]
        moved[end] += len(text) - (end - begin)
        last = end
    moved = moved.cumsum()
    spans = tuple((int(begin + moved[begin]), int(end + moved[end])) for begin, end in problem.answer_spans)
    return dataclasses.replace(problem, trace="".join([*pieces, trace[last:]]), answer_spans=spans)


def _other_number(text: str, answer: str, draw: random.Random) -> str:
    while True:
        change = draw.choice((-1, 1)) * draw.randint(1, LARGEST_CHANGE)
        other = str(max(0, int(text) + change)).zfill(len(text))
        if other not in (text, answer):
            return other
