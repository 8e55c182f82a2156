"""Evaluates arithmetic in plain text or LaTeX to exact values, without `eval`.

sum     = product (("+" | "-") product)*
product = signed (("*" | "/") signed)*        adjacent factors are multiplied if one is in brackets
signed  = ("+" | "-") signed | atom ("^" signed)?
atom    = number | mixed number | "(" sum ")" | "\\frac" atom atom | "\\sqrt" atom"""

import dataclasses
import math
import re
from fractions import Fraction

from igpo_jax.runtime.checks import require

MAX_BITS = 4096  # of a numerator or denominator; for larger results `evaluate` returns None
MAX_DEPTH = 60  # of nested brackets and signs
MAX_CHARS = 500  # in an expression
TOKEN = re.compile(r"\s*((?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|\\?[a-zA-Z]+|[-+*/^(){}\[\]])")
THOUSANDS = re.compile(r"[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?")
REWRITTEN = [(re.compile(pattern), written) for pattern, written in (
    (r",\s*\\!\s*|\{,\}", ","), (r"\\left|\\right|\\displaystyle|\\[,!;: ]|~", " "), (r"[−–]", "-"),
    (r"[·×]|\\(?:times|cdot|ast)(?![a-zA-Z])", "*"), (r"÷|\\div(?![a-zA-Z])", "/"), (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
    (r"\\frac\s*(\d)\s*(\d)(?!\d)", r"\\frac{\1}{\2}"),
)]  # fmt: skip
CLOSING = {"(": ")", "{": "}", "[": "]"}


@dataclasses.dataclass(frozen=True)
class Number:
    value: Fraction
    literals: tuple[str, ...]  # the numbers of the expression as written, in order


def evaluate(text: str) -> Number | None:
    """Returns the exact value of an arithmetic expression in plain text or LaTeX. Returns None if the text is not an arithmetic
    expression, or if the expression has no rational value, such as 1/0 and \\sqrt2."""
    for pattern, written in REWRITTEN if len(text) <= MAX_CHARS else ():
        text = pattern.sub(written, text)
    try:
        parser = _Parser(text)
        value = parser.sum()
        require(not parser.next, "the expression does not end here")
    except (ValueError, ZeroDivisionError):
        return None
    return Number(value, tuple(parser.literals))


class _Parser:
    def __init__(self, text: str):
        require(len(text) <= MAX_CHARS and not TOKEN.sub("", text).strip(), "the text is no expression")
        self.tokens, self.literals, self.depth = TOKEN.findall(text)[::-1], list[str](), 0
        self.last = ""  # token taken last

    @property
    def next(self) -> str:
        return self.tokens[-1] if self.tokens else ""

    def take(self) -> str:
        require(bool(self.tokens), "the expression is cut off")
        self.last = self.tokens.pop()
        return self.last

    def sum(self) -> Fraction:
        value = self.product()
        while self.next and self.next in "+-":
            value += self.product() if self.take() == "+" else -self.product()
        return _bounded(value)

    def product(self) -> Fraction:
        value = self.signed()
        while self.next and (self.next in "*/([" or (self.last in ")]" and self.next not in "+-)]}^")):
            if self.next == "/":
                self.take()
                value /= self.signed()
            else:
                value *= self.signed() if self.next != "*" or self.take() else 0
            _bounded(value)
        return value

    def signed(self) -> Fraction:
        self.depth += 1
        require(self.depth <= MAX_DEPTH, "the brackets are nested too deeply")
        if self.next and self.next in "+-":
            value = self.signed() if self.take() == "+" else -self.signed()
        else:
            value = self.atom()
            if self.next == "^":
                self.take()
                value = _power(value, self.signed())
        self.depth -= 1
        return value

    def atom(self) -> Fraction:
        token = self.take()
        if token in CLOSING:
            begin, value = len(self.literals), self.sum()
            require(self.take() == CLOSING[token], "the brackets do not match")
            require(token == "{" or not any("," in literal for literal in self.literals[begin:]), "(1,234) is a pair")
            return value
        if token == "\\frac":
            numerator = self.part()
            return _bounded(numerator / self.part())
        if token == "\\sqrt":
            return _root(self.part())
        require(token[0] in ".0123456789", "a number is missing")
        self.literals.append(token)
        value = _literal(token)
        return value + self.atom() if self.next == "\\frac" and "." not in token else value  # a mixed number

    def part(self) -> Fraction:
        """Parses an operand of \\frac or \\sqrt, and returns its value. Raises ValueError for a number of several digits
        without braces, because LaTeX does not read such a number as one operand: \\frac123 means 1/2 followed by 3."""
        require(len(self.next) == 1 or self.next.startswith("\\"), "braces are missing")
        return self.atom()


def _literal(token: str) -> Fraction:
    mantissa, _, digits = token.lower().partition("e")
    require("," not in mantissa or THOUSANDS.fullmatch(mantissa) is not None, "the commas do not separate thousands")
    require(abs(int(digits or 0)) <= 400, "the power of ten is too large")
    return Fraction(mantissa.replace(",", "").rstrip(".")) * Fraction(10) ** int(digits or 0)


def _bounded(value: Fraction) -> Fraction:
    require(max(value.numerator.bit_length(), value.denominator.bit_length()) <= MAX_BITS, "the number has too many digits")
    return value


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator == 2:
        base, exponent = _root(base), exponent * 2
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    require(exponent.denominator == 1 and abs(exponent) * bits <= MAX_BITS, "the power is irrational or too large")
    require(base != 0 or exponent > 0, "this power of 0 has no value")
    return base ** int(exponent)


def _root(value: Fraction) -> Fraction:
    """Returns the square root of a fraction. Raises ValueError if the root is not rational."""
    require(value >= 0, "the root of a negative number is not real")
    root = Fraction(math.isqrt(value.numerator), math.isqrt(value.denominator))
    require(root * root == value, "the root is irrational")
    return root
