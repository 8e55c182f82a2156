"""Graders that the function `regrade` compares. Each grader is a reward function (problem, text, **options) -> float. This
module does not import JAX, because worker processes import this module."""

import logging
import time

from math_verify import parse, verify

from igpo_jax.grading import grade
from igpo_jax.grading.reference_code import correct
from igpo_jax.tasks.problem import Problem

MATH_VERIFY_SECONDS = 5  # math-verify's default limit for each parsing and each comparison


def igpo_jax(problem: Problem, text: str, rule: str) -> float:
    return float(grade(problem.answer, text, rule))


def math_verify(problem: Problem, text: str) -> float:
    """Grades a text with math-verify's default settings, as its README describes. A gold answer without LaTeX delimiters is put
    into \\boxed{}, because math-verify misreads bare LaTeX. Raises TimeoutError if math-verify reaches its time limit. Without
    this error, a timeout would count as a wrong answer, because math-verify returns the same result in both cases."""
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it logs every timeout
    gold, begin = problem.answer, time.monotonic()
    delimited = "\\boxed" in gold or gold.count("$") > 1
    verdict = verify(parse(gold if delimited else f"\\boxed{{{gold}}}"), parse(text))
    if not verdict and time.monotonic() - begin >= MATH_VERIFY_SECONDS:
        raise TimeoutError(f"math-verify took more than {MATH_VERIFY_SECONDS} s")
    return float(verdict)


def reference_code(problem: Problem, text: str) -> float:
    return float(correct(problem.answer, text))
