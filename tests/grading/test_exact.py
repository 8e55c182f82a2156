from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igpo_jax.grading.exact import evaluate

integers = st.integers(-(10**12), 10**12)


@pytest.mark.parametrize("text, value", [
    ("7,425,000", 7425000), ("1,000.5", Fraction(2001, 2)), (".5", Fraction(1, 2)), ("5.", 5), ("-5", -5), ("−5", -5),
    ("1/3", Fraction(1, 3)), (r"\frac{1}{2}", Fraction(1, 2)), (r"\frac12", Fraction(1, 2)), (r"\dfrac{-3}{4}", Fraction(-3, 4)),
    (r"1\frac{1}{2}", Fraction(3, 2)), ("918\\frac{1}{2}", Fraction(1837, 2)), (r"-\frac{3}{4}", Fraction(-3, 4)),
    ("3.54e-07", Fraction(177, 5 * 10**8)), (r"3.54*10^{-7}", Fraction(177, 5 * 10**8)), (r"2.5 \times 10^{3}", 2500),
    ("(2+3)*4", 20), ("2(3)", 6), ("(2)(3)", 6), ("2-3-4", -5), ("8/4/2", 1), ("2+3*4", 14), ("3^2^2", 81), ("-2^2", -4),
    ("2^-3", Fraction(1, 8)), (r"\sqrt{4}", 2), ("4^{1/2}", 2), (r"\left( \frac{1}{3} \right)", Fraction(1, 3)),
    ("23{,}000", 23000), (r"11,\! 111,\! 111", 11111111), ("[2 + {3}]", 5), (r"6 \div 4", Fraction(3, 2)),
])  # fmt: skip
def test_values(text, value):
    assert evaluate(text).value == value


@pytest.mark.parametrize("text", [
    "", " ", "x", "1 2", "1,22", "1,2345", "(1,2)", "(1,234)", "1/0", "0^0", "5!", "2x", "1e999999", "9^{9^{9^9}}", "2^{100000}",
    "10^{-1000000000}", r"\sqrt{2}", r"\sqrt{-4}", "(" * 100 + "1" + ")" * 100, "1" * 600, "(1", "1)", "+", r"\frac{1}", "a/b",
    r"\frac{1}{2}{3}", "2^{1/3}", "__import__('os')", "1;2", r"\frac123", "--" * 80 + "1",
])  # fmt: skip
def test_what_has_no_value(text):
    assert evaluate(text) is None


@given(integers, integers, integers.filter(bool))
def test_it_agrees_with_fractions(a, b, c):
    assert evaluate(f"{a} + {b} * {c}").value == a + b * c
    assert evaluate(f"({a} - {b}) / {c}").value == Fraction(a - b, c)
    assert evaluate(f"\\frac{{{a}}}{{{c}}}").value == Fraction(a, c)
    assert evaluate(f"{a:,}").value == a


@given(st.decimals(allow_nan=False, allow_infinity=False, places=6, min_value=-(10**9), max_value=10**9))
def test_decimals_are_exact(number):
    assert evaluate(f"{number:f}").value == Fraction(number)


@given(st.text(alphabet="0123456789+-*/^(){}.,e\\frac sqrt", max_size=60))
def test_anything_gives_a_value_or_none(text):
    found = evaluate(text)
    assert found is None or isinstance(found.value, Fraction)


def test_literals_are_the_numbers_as_they_were_written():
    assert evaluate("(44 + 19) - 1,000").literals == ("44", "19", "1,000")
