"""Parses arithmetic in plain text or LaTeX to exact values, without `eval`.

expression = term (("+" | "-") term)*
term       = factor (("*" | "/") factor)*        adjacent factors are multiplied if either is in brackets
factor     = ("+" | "-") factor | atom ("^" factor)?
atom       = number | mixed number | "(" expression ")" | "\\frac" part part | "\\sqrt" part
"""

import dataclasses
import math
import re
from collections.abc import Callable
from fractions import Fraction

MAX_BITS = 4096  # in a numerator or denominator, so that towers of powers have no value
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
    """Returns the exact value of an arithmetic expression in plain text or LaTeX; None for other texts, or without a value."""
    if len(text) > MAX_CHARS:
        return None
    try:
        parser = _Parser(_tokens(text))
        value = parser.expression()
        return Number(value, tuple(parser.literals)) if parser.at_end() else None
    except (_NoValue, ZeroDivisionError):
        return None


class _NoValue(Exception):
    pass


def _tokens(text: str) -> list[str]:
    text = re.sub(r",\s*\\!\s*|\{,\}", ",", text)  # 11,\! 111
    text = re.sub(r"\\left|\\right|\\displaystyle|\\[,!;: ]|~", " ", text)
    tokens: list[str] = []
    end = 0
    while text[end:].strip():
        match = TOKEN.match(text, end)
        if not match:
            raise _NoValue
        token, end = match[match.lastgroup or 0], match.end()
        if token.isdigit() and len(token) > 1 and FRACTIONS.intersection(tokens[-1:]):
            if len(token) > 2:
                raise _NoValue
            tokens += token  # LaTeX reads \frac12 digit by digit: one half
        elif token.isdigit() and len(token) > 1 and FRACTIONS.intersection(tokens[-2:-1]) and tokens[-1].isdigit():
            raise _NoValue
        else:
            tokens.append(token)
    return tokens


class _Parser:
    def __init__(self, tokens: list[str]):
        self._tokens, self._place, self._depth = tokens, 0, 0
        self.literals: list[str] = []

    def at_end(self) -> bool:
        return self._place == len(self._tokens)

    def expression(self) -> Fraction:
        value = self._term()
        while (sign := self._peek()) in ("+", "-", "−", "–"):
            self._place += 1
            term = self._term()
            value = _bounded(value + term if sign == "+" else value - term)
        return value

    def _peek(self) -> str | None:
        return None if self.at_end() else self._tokens[self._place]

    def _take(self) -> str:
        if self.at_end():
            raise _NoValue
        self._place += 1
        return self._tokens[self._place - 1]

    def _term(self) -> Fraction:
        value = self._factor()
        while (token := self._peek()) is not None:
            if token in TIMES or token in OVER:
                self._place += 1
                factor = self._factor()
                value = _bounded(value * factor if token in TIMES else value / factor)
            elif token in "([" or self._tokens[self._place - 1] in ")]":
                if token in "+-−–)]}^":
                    break
                value = _bounded(value * self._factor())
            else:
                break
        return value

    def _factor(self) -> Fraction:
        if self._peek() in ("+", "-", "−", "–"):
            negative = self._take() != "+"
            value = self._deeper(self._factor)
            return -value if negative else value
        value = self._atom()
        if self._peek() == "^":
            self._place += 1
            return _power(value, self._deeper(self._factor))
        return value

    def _deeper(self, rule: Callable[[], Fraction]) -> Fraction:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _NoValue
        value = rule()
        self._depth -= 1
        return value

    def _atom(self) -> Fraction:
        token = self._take()
        if token in OPENING:
            begin = self._place
            value = self._deeper(self.expression)
            if self._take() != OPENING[token] or (token != "{" and "," in "".join(self._tokens[begin : self._place])):
                raise _NoValue  # (1,234) is a pair
            return value
        if token in FRACTIONS:
            numerator = self._deeper(self._atom)
            return _bounded(numerator / self._deeper(self._atom))
        if token == "\\sqrt":
            return _root(self._deeper(self._atom))
        if not (token[0].isdigit() or token[0] == "."):
            raise _NoValue
        value = _literal(token)
        self.literals.append(token)
        if self._peek() in FRACTIONS and "." not in token:  # a mixed number
            value += self._deeper(self._atom)
        return value


def _literal(token: str) -> Fraction:
    mantissa, _, exponent = token.replace("E", "e").partition("e")
    if "," in mantissa and not THOUSANDS.fullmatch(mantissa):
        raise _NoValue
    if abs(int(exponent or 0)) > 400:
        raise _NoValue
    return Fraction(mantissa.replace(",", "").rstrip(".")) * Fraction(10) ** int(exponent or 0)


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise _NoValue
    return value


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator == 2:
        base, exponent = _root(base), exponent * 2
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if exponent.denominator != 1 or abs(exponent) * bits > MAX_BITS or (base == 0 and exponent <= 0):
        raise _NoValue
    return base ** int(exponent)


def _root(value: Fraction) -> Fraction:
    """Returns the square root if it is rational, else raises `_NoValue`."""
    if value < 0:
        raise _NoValue
    root = Fraction(math.isqrt(value.numerator), math.isqrt(value.denominator))
    if root * root != value:
        raise _NoValue
    return root
