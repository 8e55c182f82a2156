"""Grading of completions. Does not import JAX."""

from igpo_jax.grading.answers import extract
from igpo_jax.grading.equality import equal


def grade(gold: str, text: str, rule: str = "any") -> bool:
    """Returns whether the answer that a text states equals the correct answer `gold`. `rule` is a rule of `answers.extract`.
    Raises TimeoutError if math-verify took too long."""
    answer = extract(text, rule)
    return answer is not None and equal(gold, answer)
