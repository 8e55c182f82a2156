"""Decides whether two answers are equal. Each pair of answer types has its own rule (docs/grading.md). Only formulas are
compared with SymPy and math-verify. Both libraries may be slow, and math-verify's time limits silently fail in threads.
Therefore, answers are graded in separate processes (tasks/reward_pool.py)."""

import cmath
import collections
import dataclasses
import functools
import itertools
import logging
import math
import re
import time
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from igpo_jax.grading.exact import Number
from igpo_jax.grading.typed import ARTICLE, Answer, condensed, is_name, is_reversed, letters, read
from igpo_jax.grading.units import WORDS

MATH_VERIFY_SECONDS = 2  # limit for each parsing and each comparison; math-verify accepts only whole seconds
SUM_OF_NAMES = re.compile(r"[a-zA-Z](?:\s*\+\s*[a-zA-Z])+\s*=")
ORDERED = re.compile(r"<|>|\\[lgn]e ")
# Formulas that math-verify misreads or may take seconds to evaluate. They are only compared as texts.
COSTLY = [re.compile(pattern, re.DOTALL) for pattern in (
    r"\d{400,}",  # must be first, because the other patterns take seconds on so many consecutive digits
    r"\^\s*\{?\s*[-+]?\d{5,}|[eE]-?\d{4,}",  # 2^{1000000000}
    r"\d\s*\^\s*\{[^{}]*\^|\^\s*\{.*\^\s*\{?\d{3}|(?:\^\s*\{?\s*\w+\s*){3}",  # towers of powers
    r"(?<!\d)\d{4,}\s*\)?\s*!|!\s*\)*\s*!|\^\s*\{?[^{}()]*\}?\s*!|\^\s*\{[^{}]*(?:!|\\times|\\cdot|\\binom|\*)",
    r"\d\s*\^[^()a-z]*\)\s*\^|\)\s*\^\s*\{?\s*\d{3}|\\(?:exp|sinh|cosh|tanh|Gamma)[^a-z]*(?:\d{4}|\^)",
    r"\\binom\s*\{[^{}]*[a-z][^{}]*\}\s*\{\s*\d{3}", r"\\binom\s*\{?\s*\d{5,}|\\binom\s*\{\s*\d+\s*\}\s*\{\s*\d{5,}|\\binom[^a-z]*\^",
    r"\\(?:sum|prod|int|[bp]?mod)(?![a-z])|\\frac\s*\{\s*(?:d|\\partial)[^{}]*\}\s*\{\s*(?:d|\\partial)", r"\\sqrt\s*\[\s*\d{4,}", r"'|\\prime|[^\d\s]\s*\^\s*\\circ|(?<![a-zA-Z\\])[fgh](?:\^\s*\{?-1\}?)?\s*\(", r"(?:[(\[{]\s*){30}",
)]  # fmt: skip
NUMERIC = {"number", "percent"}  # kinds whose answers are compared by value, also if their texts look the same
CASED = re.compile("[a-z]+|[A-Z][a-z]*|[A-Z]+")  # not nRT
SHORT = set(WORDS["short"])
TOLERANCE = Fraction(1, 10**12)  # relative, for values of formulas; decimals in formulas have 15 digits
MAX_DEPTH = 12  # of brackets in a formula
MAX_REWRITTEN = 12  # formulas of a list that may be written differently in the other list
MISREAD = [(re.compile(pattern), written) for pattern, written in (  # by math-verify's parser
    (r"\\frac\s*(\\[a-zA-Z]+|\w)\s*(\\[a-zA-Z]+|\w)", r"\\frac{\1}{\2}"), (r"(\d+(?:\.\d+)?)\s*\^\s*\\circ", r"(\\frac{\1\\pi}{180})"),
    (r"\s*(?:\\cdot|\\times|\*)\s*(?=i(?![a-zA-Z]))", ""), (r"\\exp\s*\{", "e^{"), (r"\\hbar(?![a-zA-Z])", " h_{0} "), (r"\\pi\s*(?=\()", r"\\pi\\cdot "),
)]  # fmt: skip


def equal(gold: str, answer: str) -> bool:
    """Returns whether two answers are equal, such as "1/2" and "\\frac{1}{2}", or "10" and "10 \\text{ cm}". Raises
    TimeoutError if math-verify takes more than `MATH_VERIFY_SECONDS`."""
    return same(_read_gold(gold), read(answer))


_read_gold = functools.lru_cache(maxsize=1024)(read)  # all completions of a group share the correct answer


def same(gold: Answer, answer: Answer) -> bool:
    """Returns whether two answers are equal. Names, such as x in x = 5, are compared only if both answers have one. Units, too,
    are compared only if both answers have one."""
    kinds = gold.kind, answer.kind
    if not gold.latex or gold.latex == answer.latex:
        return bool(gold.latex)
    if not NUMERIC.intersection(kinds) and _equal_texts(gold.latex, answer.latex):
        return True
    if not _is_consistent(gold) or not _is_consistent(answer):
        return False
    is_renamed = gold.name != answer.name and not _equal_texts(gold.name, answer.name)
    if is_renamed and kinds == ("formula", "formula") and "=" in gold.latex and "=" in answer.latex:
        return len(gold.name) < 2 and len(answer.name) < 2 and _equal_equations(gold.latex, answer.latex)
    if gold.name and answer.name and is_renamed:
        return False
    if kinds == ("number", "formula") and not gold.name and SUM_OF_NAMES.match(answer.value):  # m + n = 5
        return same(gold, read(answer.value.partition("=")[2]))
    factor = Fraction(1)
    if gold.unit and answer.unit and gold.unit[0] and answer.unit[0]:
        factor = answer.unit[1] / gold.unit[1]
        if gold.unit[0] != answer.unit[0]:
            return False
    if NUMERIC.issuperset(kinds):
        return _equal_numbers(gold, answer, factor)
    if factor != 1:
        return False
    return _equal_values(gold, answer) if gold.kind == answer.kind else _equal_types(gold, answer) or _equal_types(answer, gold)


def _equal_texts(one: str, other: str) -> bool:
    """Returns whether two texts are equal, apart from their notation and the case of words (`_equal_words`)."""
    first, second = condensed(one), condensed(other)
    if first == second or first.casefold() != second.casefold() or not re.fullmatch(r"[a-zA-Z.,'-]{2,}", first):
        return bool(first) and first == second
    words = [_words(text) for text in (one, other)]
    return len(words[0]) == len(words[1]) and all(map(_equal_words, *words))


def _words(text: str) -> list[tuple[str, bool]]:
    """Returns the words of a text, each with whether it is written in \\text."""
    parts = re.findall(r"(\\text(?=\{))?([^\\}]+)", ARTICLE.sub("", text))
    return [(word, bool(marked)) for marked, part in parts for word in re.findall("[a-zA-Z]+", part)]


def _equal_words(one: tuple[str, bool], other: tuple[str, bool]) -> bool:
    """Returns whether two words, each with whether it is written in \\text, are equal. Ignores the case if it is lower, upper
    or that of a name, and if the letters are surely no product of variables such as AB or nRT. This is the case for three or
    more letters if one of the words is written in \\text, for four or more letters if none is all capitals, and for the short
    words of words.txt."""
    words = one[0], other[0]
    if one[0] == other[0] or one[0].casefold() != other[0].casefold() or not all(map(CASED.fullmatch, words)):
        return one[0] == other[0]
    is_text = len(one[0]) > 2 and (one[1] or other[1])
    return is_text or one[0].lower() in SHORT or (len(one[0]) > 3 and not any(map(str.isupper, words)))


def _equal_values(gold: Answer, answer: Answer) -> bool:
    """Returns whether two answers of the same type are equal."""
    one, other = gold.value, answer.value
    if gold.kind == "formula":
        if "=" in one and "=" in other:
            return _equal_equations(one, other)
        sides = [text.split("=") for text in (one, other)]  # xy is not x = y
        values = [side for part in sides for side in [s for s in part if not is_name(s.strip())] or part[-1:]]
        return all(_equal_formulas(values[0], side) for side in values[1:])  # (x+1)^2 = x^2+2x+1
    if gold.kind in ("list", "set", "union"):
        return _in_any_order(gold.items, answer.items)
    if gold.kind == "clock":
        return (one[0] - other[0]) % (86400 if one[1] and other[1] else 43200) == 0
    if gold.kind == "ratio":
        return (
            len(one) == len(other)
            and all(a * other[0] == b * one[0] for a, b in zip(one, other, strict=True))
            and any(one) == any(other)
        )
    if gold.kind == "unequal":
        return same(one, other)
    return one == other and _in_order(gold.items, answer.items)  # texts, numbers in a base, tuples with their brackets


def _equal_types(one: Answer, other: Answer) -> bool:
    """Returns whether two answers of different types are equal. Each pair of types is handled in one order only, so `same` also
    calls this function with the answers swapped."""
    kinds = one.kind, other.kind
    if kinds == ("number", "formula"):
        if letters(other.value) or _is_costly(other.value):
            return False
        value, exact = _closed_value(other.value), one.value.value
        if value is None:
            return _equal_formulas(f"\\frac{{{exact.numerator}}}{{{exact.denominator}}}", other.value)
        return _is_near(value[1], Fraction(0)) and (_is_near(exact, value[0]) or _rounds_to(one.value, value[0]))
    if kinds == ("ratio", "number"):
        return len(one.value) == 2 and one.value[1] != 0 and one.value[0] / one.value[1] == other.value.value
    if kinds == ("list", "tuple"):
        names = [item.name for item in one.items]  # x = 1, y = 2
        return other.value == "()" and not is_reversed(names) and _in_order(one.items, other.items)
    if kinds == ("tuple", "formula"):
        return bool(ORDERED.search(other.value)) and _equal_formulas(one.latex, other.value)
    return set(kinds) in ({"list", "set"}, {"list", "union"}) and _in_any_order(one.items, other.items)


def _equal_numbers(gold: Answer, answer: Answer, factor: Fraction) -> bool:
    """Returns whether two numbers or percentages are equal. The answer is first multiplied by the unit conversion `factor`. A
    rounded number equals the exact one (`_rounds_to`). 50% equals both 50 and 0.5."""
    first, second = gold.value, answer.value
    if first.value == second.value * factor:
        return True
    if gold.kind != answer.kind:
        return first.value == second.value / 100 if answer.kind == "percent" else first.value / 100 == second.value
    pairs = [(a, b.value) for a, b in ((first, second), (second, first)) if _without_tens(b.value.denominator) > 1]
    return factor == 1 and any(_rounds_to(*pair) for pair in pairs)


def _rounds_to(decimal: Number, exact: Fraction) -> bool:
    """Returns whether rounding or truncating `exact`, such as 1/12, gives `decimal`, such as 0.0833333. Returns False if
    `decimal` has fewer than six decimal places."""
    literal = decimal.literals[0].lower().partition("e")[0] if decimal.literals else ""
    whole, _, places = literal.replace(",", "").partition(".")
    if len(places) < 6 or not decimal.value:
        return False
    last = abs(decimal.value) / int(whole + places)  # one unit of the last decimal place, as a power of ten
    missing = abs(exact) - abs(decimal.value)
    is_near = decimal.value * exact > 0 and (abs(missing) <= last / 2 or 0 < missing < last)
    return is_near and _without_tens(last.numerator) == _without_tens(last.denominator) == 1


def _without_tens(number: int) -> int:
    """Returns a positive integer without its prime factors 2 and 5."""
    return number // math.gcd(number, 10 ** number.bit_length())


def _in_order(gold: Sequence[Answer], answer: Sequence[Answer]) -> bool:
    return len(gold) == len(answer) and all(map(same, gold, answer))


def _in_any_order(gold: Sequence[Answer], answer: Sequence[Answer]) -> bool:
    written = [[item.latex if item.kind in NUMERIC else condensed(item.latex) for item in items] for items in (gold, answer)]
    texts = collections.Counter(written[0]) & collections.Counter(written[1])
    left = []
    for items, names in zip((gold, answer), written, strict=True):
        found = collections.Counter(texts)
        left.append([i for i, name in zip(items, names, strict=True) if not found[name] or found.subtract([name])])
    if len(gold) != len(answer) or sum(item.kind not in (*NUMERIC, "text") for item in left[0]) > MAX_REWRITTEN:
        return False
    for item in left[0]:
        place = next((place for place, other in enumerate(left[1]) if same(item, other)), None)
        if place is None:
            return False
        left[1].pop(place)
    return True


def _equal_equations(gold: str, answer: str) -> bool:
    """Returns whether two equations are equivalent, such as y = 2x + 3 and 2x - y = -3. If the equations have one side in
    common, their other sides must be equal."""
    sides = [{condensed(side): side for side in text.split("=")} for text in (gold, answer)]
    shared, *rest = (set(sides[0]) & set(sides[1]), *(set(side) - set(other) for side, other in (sides, sides[::-1])))
    if shared and shared != {"0"}:
        return rest == [set(), set()] or (
            len(rest[0]) == len(rest[1]) == 1 and same(read(sides[0][rest[0].pop()]), read(sides[1][rest[1].pop()]))
        )
    if not letters(gold) or not letters(answer) or _is_costly(gold) or _is_costly(answer):
        return False
    one, other = _parse(gold), _parse(answer)
    ratios = [] if one is None or other is None else _values_at_points(one, other)
    if not ratios or not all(map(abs, ratios[0])):
        return _equal_formulas(gold, answer)
    return all(abs(a * ratios[0][1] - b * ratios[0][0]) <= 1e-6 * abs(a * ratios[0][1]) for a, b in ratios)


def _values_at_points(one: Any, other: Any) -> list[tuple[complex, complex]]:
    """Evaluates two expressions at four fixed points. Returns a list with a pair of values for each point, or an empty list if
    a value is not finite. The value of an equation is the difference between its sides."""
    found = []
    for point in range(1, 5):
        values = []
        for expression in (one, other):
            try:
                difference = expression.lhs - expression.rhs if hasattr(expression, "lhs") else expression
                symbols = sorted((one.free_symbols | other.free_symbols), key=str)
                place = {symbol: 0.37 + 0.61 * ((7 * point * (number + 2)) % 11) / 7 for number, symbol in enumerate(symbols)}
                values.append(complex(difference.subs(place).evalf(30)))
            except (ArithmeticError, AttributeError, TypeError, ValueError):
                return []
        if not all(map(cmath.isfinite, values)):
            return []
        found.append((values[0], values[1]))
    return found


def _is_consistent(answer: Answer) -> bool:
    """Returns whether the sides of an answer such as 1/4 + 1/12 = 1/3 \\approx 0.33 are consistent. All exact sides must be
    equal, and the side after \\approx must be a rounding of them. Returns False for 2 = 3."""
    last = dataclasses.replace(answer, sides=(), rounding=None, name="")
    return _is_rounded(answer) and all(same(side, last) for side in answer.sides)


def _is_rounded(answer: Answer) -> bool:
    """Returns whether the side after \\approx is a rounding of the answer, as in 1/3 \\approx 0.33. Returns True if the answer
    has no \\approx."""
    decimal = answer.rounding
    if decimal is None or decimal.kind not in ("number", "percent"):
        return decimal is None
    if answer.kind in ("number", "percent"):
        exact = answer.value.value / (100 if answer.kind == "percent" else 1)
    else:
        value = _closed_value(answer.value) if answer.kind == "formula" and not _is_costly(answer.value) else None
        exact = value[0] if value and not value[1] else None
    places = (
        len(decimal.value.literals[-1].partition(".")[2]) + 2 * (decimal.kind == "percent") if decimal.value.literals else 0
    )
    value = decimal.value.value / (100 if decimal.kind == "percent" else 1)
    return exact is not None and abs(value - exact) <= Fraction(1, 2 * 10**places)


def _equal_formulas(gold: str, answer: str) -> bool:
    if condensed(gold) == condensed(answer):
        return True
    if bool(ORDERED.search(gold)) != bool(ORDERED.search(answer)) or _is_costly(gold) or _is_costly(answer):
        return False
    variables = letters(gold), letters(answer)
    if bool(variables[0]) != bool(variables[1]) or (variables[0] and not variables[0] & variables[1]):
        return False
    if {"c", "C"} == variables[0] ^ variables[1] and variables[0] & {"x", "t"}:  # a constant of integration
        gold, answer = (re.sub(r"(?<![a-zA-Z\\])C", "c", text) for text in (gold, answer))
    if not variables[0]:
        one, other = _closed_value(gold), _closed_value(answer)
        if one is not None and other is not None:
            return all(map(_is_near, one, other))
    wanted, found = _parse(gold), _parse(answer)
    if wanted is None or found is None:
        return False
    is_relation = hasattr(wanted, "lhs") or hasattr(found, "lhs")
    if not is_relation and any(abs(a - b) > 1e-6 * max(abs(a), abs(b)) for a, b in _values_at_points(wanted, found)):
        return False
    import math_verify
    import sympy

    values = [wanted.doit(), found.doit()]
    endless = [sympy.zoo, sympy.nan, *([sympy.oo, -sympy.oo] if isinstance(wanted, sympy.Expr) else [])]
    if any(value.has(*endless) for value in values):
        return False  # SymPy writes 1/0 and 2/0 in the same way, but they have no value
    if values[0] == values[1]:
        return True

    begin = time.monotonic()
    verdict = math_verify.verify(wanted, found, timeout_seconds=MATH_VERIFY_SECONDS)
    if not verdict and time.monotonic() - begin >= MATH_VERIFY_SECONDS:
        raise TimeoutError(f"math-verify took more than {MATH_VERIFY_SECONDS} s")  # its result does not mean a wrong answer
    return bool(verdict)


def _is_costly(formula: str) -> bool:
    depths = itertools.accumulate((c in "({") - (c in ")}") for c in formula)
    return max(depths, default=0) > MAX_DEPTH or any(pattern.search(formula) for pattern in COSTLY)


def _closed_value(formula: str) -> tuple[Fraction, Fraction] | None:
    """Returns the real and imaginary parts of a formula's value, accurate to 40 digits. Returns None if the formula has
    variables, or if its value is not finite."""
    expression = _parse(formula)
    try:
        value = expression.evalf(40) if getattr(expression, "is_number", False) else None
        parts = value.as_real_imag() if value is not None and value.is_finite else ()
        return (Fraction(str(parts[0])), Fraction(str(parts[1]))) if parts else None
    except (ArithmeticError, AttributeError, TypeError, ValueError):  # SymPy raises them for poles such as \csc 0
        return None


def _is_near(one: Fraction, other: Fraction) -> bool:
    return abs(one - other) <= TOLERANCE * max(abs(one), abs(other)) or max(abs(one), abs(other)) < Fraction(1, 10**100)


@functools.lru_cache(maxsize=1024)  # all completions of a group share the correct answer, and a comparison may parse it twice
def _parse(formula: str) -> Any:
    """Returns a formula as a SymPy expression, or None if it cannot be parsed. Calls math-verify's parser directly instead of
    `math_verify.parse`, which drops units, ignores the case of letters, and takes any number in an unreadable formula as its
    value. Raises TimeoutError if parsing takes more than `MATH_VERIFY_SECONDS`."""
    import sympy
    from latex2sympy2_extended import latex2sympy2
    from math_verify.errors import TimeoutException
    from math_verify.utils import timeout

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it logs every time-out
    for pattern, written in MISREAD:
        formula = pattern.sub(written, formula)
    options = latex2sympy2.NormalizationConfig(units=False, malformed_operators=True, nits=True, boxed="none")
    config = latex2sympy2.ConversionConfig(lowercase_symbols=False)
    try:
        normalized = latex2sympy2.normalize_latex(formula, config=options)
        read_formula = timeout(MATH_VERIFY_SECONDS)(latex2sympy2.latex2sympy)
        expression = read_formula(
            normalized, is_real=True, convert_degrees=False, normalization_config=None, conversion_config=config
        )
        units = {symbol: sympy.I for symbol in expression.free_symbols if symbol.name == "i"}
        return expression.xreplace(units) if units else expression
    except TimeoutException:
        raise TimeoutError(f"the parser took more than {MATH_VERIFY_SECONDS} s") from None
    except Exception:  # the parser and SymPy raise many types for formulas that they cannot read
        return None
