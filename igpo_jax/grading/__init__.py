"""Grading of completions (docs/grading.md). This package does not import JAX."""

from igpo_jax.grading import reference_code
from igpo_jax.grading.answers import extract
from igpo_jax.grading.equality import equal

RULES = ("box", "number", "any", "reference_code")


def grade(gold: str, text: str, rule: str = "any") -> bool:
    """Returns whether the final answer in the completion `text` equals the correct answer `gold`. `rule` determines how the
    final answer is found: "box", "number" or "any" (docs/grading.md). With the rule "reference_code", completions are graded as
    in the paper's code (docs/method.md section 8). Raises ValueError for an unknown rule, and TimeoutError if the comparison of
    two formulas takes too long."""
    if rule not in RULES:
        raise ValueError(f"rule={rule!r} is none of {', '.join(RULES)}")
    if rule == "reference_code":
        return reference_code.correct(gold, text)
    answer = extract(text, rule)
    return answer is not None and equal(gold, answer)
