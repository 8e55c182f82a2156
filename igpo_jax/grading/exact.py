"""Parses arithmetic in plain text or LaTeX to exact values, without `eval`.

expression = term (("+" | "-") term)*
term       = factor (("*" | "/") factor)*        adjacent factors are multiplied if either is in brackets
factor     = ("+" | "-") factor | atom ("^" factor)?
atom       = number | mixed number | "(" expression ")" | "\\frac" part part | "\\sqrt" part"""

import dataclasses
import math
import re
from collections.abc import Callable
from fractions import Fraction

from igpo_jax.runtime.checks import require

MAX_BITS = 4096  # of a numerator or denominator; for larger results `evaluate` returns None
MAX_DEPTH = 60  # of nested brackets
MAX_CHARS = 500  # in an expression

TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)|(?P<name>\\?[a-zA-Z]+)|(?P<symbol>[-+*/^(){}\[\]−–·×÷]))"
)
THOUSANDS = re.compile(r"[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?")
TIMES, OVER = {"*", "·", "×", "\\times", "\\cdot", "\\ast"}, {"/", "÷", "\\div"}
FRACTIONS = {"\\frac", "\\dfrac", "\\tfrac", "\\cfrac"}
OPENING = {"(": ")", "{": "}", "[": "]"}


@dataclasses.dataclass(frozen=True)
class Number:
    value: Fraction
    literals: tuple[str, ...]  # the numbers of the expression as written, in order


def evaluate(text: str) -> Number | None:
    """Returns the exact value of an arithmetic expression in plain text or LaTeX, or None if the text is not an arithmetic
    expression or has no value, such as 1/0."""
    try:
        require(len(text) <= MAX_CHARS, "the text is too long")
        parser = _Parser(_tokens(text))
        value = parser.expression()
        require(parser.peek() is None, "the expression does not end here")
    except (ValueError, ZeroDivisionError):
        return None
    return Number(value, tuple(parser.literals))


def _tokens(text: str) -> list[str]:
    text = re.sub(r",\s*\\!\s*|\{,\}", ",", text)  # 11,\! 111
    text = re.sub(r"\\left|\\right|\\displaystyle|\\[,!;: ]|~", " ", text)
    tokens: list[str] = []
    end = 0
    while text[end:].strip():
        match = TOKEN.match(text, end)
        if not match:
            raise ValueError("this is no token of an expression")
        token, end = match[match.lastgroup or 0], match.end()
        several = token.isdigit() and len(token) > 1
        if several and FRACTIONS.intersection(tokens[-1:]):
            require(len(token) == 2, "LaTeX reads \\frac123 as 1/2 and 3")
            tokens += token  # LaTeX reads \frac12 digit by digit: one half
        else:
            after_numerator = several and FRACTIONS.intersection(tokens[-2:-1]) and tokens[-1].isdigit()
            require(not after_numerator, "LaTeX reads \\frac1 23 as 1/2 and 3")
            tokens.append(token)
    return tokens


class _Parser:
    def __init__(self, tokens: list[str]):
        self._tokens, self._place, self._depth = tokens, 0, 0
        self.literals: list[str] = []

    def expression(self) -> Fraction:
        value = self._term()
        while (sign := self.peek()) in ("+", "-", "−", "–"):
            self._place += 1
            term = self._term()
            value = _bounded(value + term if sign == "+" else value - term)
        return value

    def peek(self) -> str | None:
        """Returns the next token of the expression, or None at its end."""
        return self._tokens[self._place] if self._place < len(self._tokens) else None

    def _take(self) -> str:
        require(self._place < len(self._tokens), "the expression is cut off")
        self._place += 1
        return self._tokens[self._place - 1]

    def _term(self) -> Fraction:
        value = self._factor()
        while (token := self.peek()) is not None:
            if token in TIMES or token in OVER:
                self._place += 1
                factor = self._factor()
                value = _bounded(value * factor if token in TIMES else value / factor)
            elif (token in "([" or self._tokens[self._place - 1] in ")]") and token not in "+-−–)]}^":
                value = _bounded(value * self._factor())
            else:
                break
        return value

    def _factor(self) -> Fraction:
        if self.peek() in ("+", "-", "−", "–"):
            negative = self._take() != "+"
            value = self._deeper(self._factor)
            return -value if negative else value
        value = self._atom()
        if self.peek() == "^":
            self._place += 1
            return _power(value, self._deeper(self._factor))
        return value

    def _deeper(self, rule: Callable[[], Fraction]) -> Fraction:
        self._depth += 1
        require(self._depth <= MAX_DEPTH, "the brackets are nested too deeply")
        value = rule()
        self._depth -= 1
        return value

    def _atom(self) -> Fraction:
        token = self._take()
        if token in OPENING:
            begin = self._place
            value = self._deeper(self.expression)
            require(self._take() == OPENING[token], "the brackets do not match")
            require(token == "{" or "," not in "".join(self._tokens[begin : self._place]), "(1,234) is a pair")
            return value
        if token in FRACTIONS:
            numerator = self._deeper(self._atom)
            return _bounded(numerator / self._deeper(self._atom))
        if token == "\\sqrt":
            return _root(self._deeper(self._atom))
        require(token[0].isdigit() or token[0] == ".", "a number is missing")
        value = _literal(token)
        self.literals.append(token)
        if self.peek() in FRACTIONS and "." not in token:  # a mixed number
            value += self._deeper(self._atom)
        return value


def _literal(token: str) -> Fraction:
    mantissa, _, digits = token.lower().partition("e")
    require("," not in mantissa or THOUSANDS.fullmatch(mantissa), "the commas do not separate thousands")
    exponent = int(digits or 0)
    require(abs(exponent) <= 400, "the power of ten is too large")
    return Fraction(mantissa.replace(",", "").rstrip(".")) * Fraction(10) ** exponent


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
