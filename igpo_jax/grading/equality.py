"""Decides whether two answers are equal: one short rule for each pair of types (docs/grading.md). Only formulas are compared by
math-verify, which may be slow and whose time limits silently fail in threads. Therefore, answers are graded in separate
processes (tasks/reward_pool.py)."""

import functools
import logging
import math
import re
import time
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from igpo_jax.grading.exact import Number
from igpo_jax.grading.typed import (
    Answer,
    Based,
    Bracketed,
    Clock,
    Formula,
    Group,
    Quantity,
    Ratio,
    Text,
    Unequal,
    condensed,
    letters,
    read,
)

MAX_ANSWER_CHARS = 2000  # longer answers are only compared as texts
MATH_VERIFY_SECONDS = 2  # limit for each parsing and each comparison; math-verify accepts only whole seconds
# Formulas that math-verify could take seconds to evaluate; they are only compared as texts
COSTLY = (
    r"\d{400,}",  # must be first, because the other patterns take seconds on so many consecutive digits
    r"\^\s*\{?\s*[-+]?\d{5,}",  # 2^{1000000000}
    r"\d\s*\^\s*\{[^{}]*\^|\^\s*\{(?:[^{}]|\{[^{}]*\})*\^\s*\{?\d{3}",  # towers of powers
    r"(?<!\d)\d{4,}\s*!|!\s*!\s*!",
    r"\\binom\s*\{?\s*\d{5,}|\\binom\s*\{\s*\d+\s*\}\s*\{\s*\d{5,}",
    r"\\(?:sum|prod|int)",
    r"\\sqrt\s*\[\s*\d{4,}",
    r"(?:[(\[{]\s*){30}",
    r"(?:\\frac\s*\{[^{}]*\}\s*\{\s*){8}",
)


def equal(gold: str, answer: str) -> bool:
    """Returns whether two answers are equal, such as "1/2" and "\\frac{1}{2}", or "10" and "10 \\text{ cm}". Raises
    TimeoutError if math-verify took more than `MATH_VERIFY_SECONDS`."""
    if not gold.strip() or not answer.strip():
        return False
    if max(len(gold), len(answer)) > MAX_ANSWER_CHARS:
        return condensed(gold) == condensed(answer)
    return same(_read_gold(gold), read(answer))


_read_gold = functools.lru_cache(maxsize=1024)(read)  # all completions of a group share the correct answer


def same(gold: Answer, answer: Answer) -> bool:
    """Returns whether two answers are equal. Names before "=" and units are compared if both answers state one."""
    text = condensed(gold.latex)
    if text and text == condensed(answer.latex):
        return not isinstance(gold.value, Text) or bool(gold.value.text)
    if gold.name and answer.name and gold.name != answer.name:
        return _is_equation(gold, answer) and _equal_formulas(gold.latex, answer.latex)
    factor = Fraction(1)
    if gold.unit and answer.unit and gold.unit.unit and answer.unit.unit:
        if gold.unit.unit[0] != answer.unit.unit[0]:
            return False
        factor = answer.unit.unit[1] / gold.unit.unit[1]
    one, other = gold.value, answer.value
    if isinstance(one, Formula) and isinstance(other, Formula) and gold.name != answer.name and _is_equation(gold, answer):
        return _equal_formulas(gold.latex, answer.latex)
    if isinstance(one, Quantity) and isinstance(other, Quantity):
        return _equal_quantities(one, other, factor)
    if factor != 1:
        return False
    if type(one) is type(other):
        return _equal_values(one, other)
    return _equal_across(gold, answer)


def _equal_values(one: Any, other: Any) -> bool:
    if isinstance(one, Formula):
        return _equal_formulas(one.latex, other.latex)
    if isinstance(one, Bracketed):
        return one.brackets == other.brackets and _in_order(one.items, other.items)
    if isinstance(one, Group):
        return _in_any_order(one, other)
    if isinstance(one, Clock):
        half_day = 1 if one.has_half and other.has_half else 2
        return (one.seconds - other.seconds) % (86400 // half_day) == 0
    if isinstance(one, Ratio):
        scale = other.terms[0] / one.terms[0] if one.terms[0] and other.terms[0] else 1
        return [scale * term for term in one.terms] == list(other.terms)
    if isinstance(one, Unequal):
        return same(one.value, other.value)
    return one == other  # words, numbers in a base


def _equal_across(gold: Answer, answer: Answer) -> bool:
    """Compares answers of two types."""
    for one, other in ((gold.value, answer.value), (answer.value, gold.value)):
        if isinstance(one, Quantity) and isinstance(other, Formula):
            if one.percent or letters(other.latex):
                return False
            return _equal_formulas(_latex(one.number), other.latex)
        if isinstance(one, Ratio) and isinstance(other, Quantity) and len(one.terms) == 2 and one.terms[1]:
            return one.terms[0] / one.terms[1] == other.number.value
        if isinstance(one, Group) and one.kind != "set" and isinstance(other, Bracketed) and other.brackets == "()":
            return _in_order(one.items, other.items)
        if isinstance(one, Bracketed) and isinstance(other, Formula) and re.search(r"<|>|\\[lg]e ", other.latex):
            return _equal_formulas(gold.latex, answer.latex)
    return False


def _equal_quantities(one: Quantity, other: Quantity, factor: Fraction) -> bool:
    """Compares numbers by value. They are also equal if one is a rounding of the other (`_rounds_to`). 50% equals both 50 and
    0.5."""
    first, second = one.number, other.number
    if factor != 1:
        return first.value == second.value * factor
    if first.value == second.value:
        return True
    if one.percent != other.percent:
        return first.value == second.value / 100 if other.percent else first.value / 100 == second.value
    return _rounds_to(first, second) or _rounds_to(second, first)


def _rounds_to(decimal: Number, exact: Number) -> bool:
    """Returns whether rounding or truncating `exact` gives `decimal`, as for 1/12 and 0.0833333. Returns False if `decimal` has
    fewer than six decimal places, or if `exact` is a finite decimal."""
    literal = decimal.literals[0] if decimal.literals else ""
    mantissa, point, places = literal.lower().partition("e")[0].replace(",", "").partition(".")
    if not point or len(places) < 6 or not decimal.value:
        return False
    scale = abs(decimal.value / Fraction(f"{mantissa or 0}.{places}"))  # 1/1000 for 2.314814 \times 10^{-3}
    power_of_ten = _without_tens(scale.numerator) == _without_tens(scale.denominator) == 1
    if not power_of_ten or _without_tens(exact.value.denominator) == 1:
        return False
    last, missing = scale * Fraction(1, 10 ** len(places)), abs(exact.value) - abs(decimal.value)
    return decimal.value * exact.value > 0 and (abs(missing) <= last / 2 or 0 < missing < last)


def _without_tens(number: int) -> int:
    """Divides a positive number by all of its factors 2 and 5, the prime factors of ten."""
    return number // math.gcd(number, 10 ** number.bit_length())


def _latex(number: Number) -> str:
    literals = number.literals
    if len(literals) == 1 and "." in literals[0] and Fraction(literals[0].replace(",", "")) == number.value:
        return literals[0]  # a decimal, which math-verify compares with six digits
    return f"\\frac{{{number.value.numerator}}}{{{number.value.denominator}}}"


def _in_order(gold: Sequence[Answer], answer: Sequence[Answer]) -> bool:
    return len(gold) == len(answer) and all(map(same, gold, answer))


def _in_any_order(gold: Group, answer: Group) -> bool:
    if (gold.kind == "union") != (answer.kind == "union") and "set" in (gold.kind, answer.kind):
        return False
    left = list(answer.items)
    for item in gold.items:
        found = next((other for other in left if same(item, other)), None)
        if found is None:
            return False
        left.remove(found)
    return not left


def _is_equation(gold: Answer, answer: Answer) -> bool:
    """Returns whether both answers are equations in several variables, such as y = 2x + 3."""
    return all(isinstance(a.value, Formula) and "=" in a.latex and letters(a.latex) for a in (gold, answer))


def _equal_formulas(gold: str, answer: str) -> bool:
    relations = [re.findall(r"<|>|\\[lgn]e ", text) for text in (gold, answer)]
    if bool(relations[0]) != bool(relations[1]) or any(re.search(pattern, t) for t in (gold, answer) for pattern in COSTLY):
        return False
    import math_verify

    wanted, found = _parse_gold(gold), _parse(answer)
    return bool(_in_time(math_verify.verify, wanted, found, timeout_seconds=MATH_VERIFY_SECONDS))


def _parse(formula: str) -> list:
    import math_verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it logs every time-out
    # By default math-verify would drop units, and search an unreadable formula for a number.
    options = math_verify.parser.NormalizationConfig(units=False, malformed_operators=True, nits=True, boxed="last")
    formulas = [math_verify.LatexExtractionConfig(normalization_config=options)]
    # math-verify misreads \frac\pi 2
    braced = re.sub(r"\\frac\s*(\\[a-zA-Z]+|\w)\s*(\\[a-zA-Z]+|\w)", r"\\frac{\1}{\2}", formula)
    braced = re.sub(r"(\d+(?:\.\d+)?)\s*\^\s*\\circ", r"(\\frac{\1\\pi}{180})", braced)
    braced = re.sub(r"\\cdot\s*(?=i(?![a-zA-Z]))", "", braced)
    return _in_time(math_verify.parse, f"\\boxed{{{braced}}}", extraction_config=formulas, parsing_timeout=MATH_VERIFY_SECONDS)


_parse_gold = functools.lru_cache(maxsize=1024)(_parse)  # all completions of a group share the correct answer


def _in_time(function, *arguments, **options) -> Any:
    """Calls a function of math-verify. Raises TimeoutError if the function reaches its time limit, because the empty result
    that math-verify returns in that case does not mean that the answer is wrong."""
    begin = time.monotonic()
    result = function(*arguments, **options)
    if not result and time.monotonic() - begin >= MATH_VERIFY_SECONDS:
        raise TimeoutError(f"math-verify took more than {MATH_VERIFY_SECONDS} s")
    return result
