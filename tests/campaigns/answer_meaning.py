"""Reads answers independently of the package: their shape, their parts, and the values of the parts.

The campaign answers.py uses it to be sure that a made answer is wrong. `surely_differ` needs to read both answers.
"""

import cmath
import dataclasses
import math
import random
import re
from fractions import Fraction

NUMBER = r"-?\s*\$?\s*(?:\d+(?:\.\d+)?|\.\d+)"
FRACTION = re.compile(r"(-?)(\d*)\\frac(?:\{(-?\d+)\}|(\d))(?:\{(\d+)\}|(\d))")
TEXT = r"\\(?:text|textnormal|mbox|mathrm|textbf)\s*\{"
BASE = re.compile(r"(-?)([0-9A-Z.]+)_\{?(\d+)\}?")
RELATIONS = {
    "<": "<", ">": ">", "=": "=", r"\le": "<=", r"\leq": "<=", r"\ge": ">=", r"\geq": ">=", r"\ne": "!=", r"\neq": "!=",
}  # fmt: skip
RELATION = re.compile(r"\\(?:leq?|geq?|neq?)(?![a-zA-Z])|[<>=]")
GREEK = "alpha beta gamma delta theta lambda omega phi tau zeta rho sigma hbar mu".split()
FUNCTIONS = {
    "sin": cmath.sin, "cos": cmath.cos, "tan": cmath.tan, "cot": lambda x: 1 / cmath.tan(x), "sec": lambda x: 1 / cmath.cos(x),
    "csc": lambda x: 1 / cmath.sin(x), "log": lambda x: cmath.log(x) / math.log(10), "ln": cmath.log, "exp": cmath.exp,
    "arcsin": cmath.asin, "arctan": cmath.atan, "arccos": cmath.acos,
}  # fmt: skip
Leaf = Fraction | tuple[complex, ...]

# Unit: dimension, factor to the dimension's first unit, spellings. Without a factor, no other unit measures the same.
UNITS: dict[str, tuple[str, Fraction | None, tuple[str, ...]]] = {
    "mm": ("length", Fraction(1), ("mm", "millimeters")), "cm": ("length", Fraction(10), ("cm", "centimeters")),
    "m": ("length", Fraction(1000), ("m", "meters")), "km": ("length", Fraction(10**6), ("km", "kilometers")),
    "in": ("feet", Fraction(1), ("inches", "in")), "ft": ("feet", Fraction(12), ("feet", "ft")),
    "yd": ("feet", Fraction(36), ("yards",)), "mi": ("feet", Fraction(63360), ("miles",)),
    "cm^2": ("area", Fraction(1), ("cm^2", "square centimeters")), "m^2": ("area", Fraction(10**4), ("m^2", "square meters")),
    "ft^2": ("square feet", None, ("square feet",)), "in^2": ("square inches", None, ("square inches",)),
    "cm^3": ("volume", Fraction(1), ("cm^3", "cubic centimeters")), "m^3": ("volume", Fraction(10**6), ("m^3", "cubic meters")),
    "s": ("time", Fraction(1), ("seconds",)), "min": ("time", Fraction(60), ("minutes", "min")),
    "h": ("time", Fraction(3600), ("hours",)), "day": ("time", Fraction(86400), ("days",)),
    "week": ("time", Fraction(604800), ("weeks",)), "year": ("year", None, ("years",)), "month": ("month", None, ("months",)),
    "g": ("mass", Fraction(1), ("g", "grams")), "kg": ("mass", Fraction(1000), ("kg", "kilograms")),
    "lb": ("pounds", None, ("pounds",)), "oz": ("ounces", None, ("ounces",)),
    "cent": ("money", Fraction(1), ("cents",)), "dollar": ("money", Fraction(100), ("dollars",)),
    "euro": ("euros", None, ("euros",)), "mL": ("liquid", Fraction(1), ("mL", "milliliters")),
    "L": ("liquid", Fraction(1000), ("L", "liters")), "gal": ("gallons", None, ("gallons",)),
    "m/s": ("m/s", None, ("m/s", "meters per second")), "km/h": ("km/h", None, ("km/h", "kilometers per hour")),
    "mph": ("mph", None, ("mph", "miles per hour")), "deg": ("degrees", None, ("degrees",)),
    "rad": ("radians", None, ("radians",)),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Gold:
    """A correct answer as it stands in a data file."""

    text: str
    file: str
    shape: str  # of `read`
    parts: tuple[str, ...]


def tidy(text: str) -> str:
    """Removes dollar signs around formulas, spacing and sizes, and writes all fractions as \\frac."""
    text = text.strip().removesuffix(".").strip()
    text = re.sub(r",\s*\\!\s*|\{,\}", ",", text)
    text = re.sub(r"\\(?:left|right|displaystyle|quad)(?![a-zA-Z])|(?<!\\)\\[,;:! ]|(?<!\\)\$|~", " ", text)
    text = re.sub(r"\\[dtc]frac", r"\\frac", text)
    text = re.sub(r",?\s*\\text\s*\{\s*,?\s*(?:and|or)\s*\}", ",", text)
    return re.sub(r"\s+", " ", text).strip()


def plain(text: str) -> Fraction | None:
    """Reads an integer, a decimal, a fraction or a mixed number."""
    text = tidy(text)
    text = text if re.search(r"\d,?\s+\d", text) else re.sub(r"\s|\\\$", "", text)  # 5 6 and 5, 600 are no numbers
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text) if re.fullmatch(r"-?\d{1,3}(,\d{3})+(\.\d+)?", text) else text
    if match := FRACTION.fullmatch(text):
        sign, whole, *_ = match.groups()
        top, bottom = int(match[3] or match[4]), int(match[5] or match[6])
        if not bottom or (whole and top < 0):
            return None
        return (int(whole or 0) + Fraction(top, bottom)) * (-1 if sign else 1)
    if match := re.fullmatch(r"(-?\d+)/(\d+)", text):
        return Fraction(int(match[1]), int(match[2])) if int(match[2]) else None
    return Fraction(text) if re.fullmatch(r"-?(?:\d+(?:\.\d+)?|\.\d+)(?:e-?\d{1,2})?", text) else None


class _Evaluation:
    """Evaluates a formula at a random point: expression = term (+- term)*; a term is a product of powers."""

    def __init__(self, text: str, point: int):
        self.tokens = re.findall(r"\\[a-zA-Z]+|\d+(?:\.\d+)?|\.\d+|\S", text)
        self.place, self.point = 0, point

    def peek(self) -> str:
        return self.tokens[self.place] if self.place < len(self.tokens) else ""

    def take(self) -> str:
        self.place += 1
        return self.tokens[self.place - 1]  # an IndexError at the end

    def whole(self) -> complex:
        value = self.sum()
        if self.peek():
            raise ValueError("not read to its end")
        return value

    def sum(self) -> complex:
        value = self.term()
        while self.peek() in ("+", "-"):
            value = value + self.term() if self.take() == "+" else value - self.term()
        return value

    def term(self) -> complex:
        value = self.factor()
        while token := self.peek():
            if token in ("*", r"\cdot", r"\times", "/"):
                value = value / self.factor() if self.take() == "/" else value * self.factor()
            elif token in ("(", "{") or re.fullmatch(r"[a-zA-Z]", token) or token[0] == "\\" and token != r"\pm":
                value *= self.factor()
            else:
                return value
        return value

    def factor(self) -> complex:
        if self.peek() == "-":
            self.take()
            return -self.factor()
        value = self.atom()
        while self.peek() in ("^", "!"):
            if self.take() == "!":
                value = math.gamma(value.real + 1)
            else:
                value = complex(value) ** (self.atom() if self.peek() != "-" else self.factor())
        return value

    def group(self, closing: str) -> complex:
        value = self.sum()
        if self.take() != closing:
            raise ValueError("a bracket is not closed")
        return value

    def digit_or_atom(self) -> complex:
        """Reads the argument of a command, which is one digit or a group: \\frac12 is one half."""
        if re.fullmatch(r"\d\d+", token := self.peek()):
            self.tokens[self.place : self.place + 1] = list(token)
        return self.atom()

    def atom(self) -> complex:
        token = self.take()
        if token in ("(", "{"):
            return self.group(")" if token == "(" else "}")
        if re.fullmatch(r"[\d.]+", token):
            return complex(float(token))
        name = token.removeprefix("\\")
        if token == r"\frac":
            above = self.digit_or_atom()
            return above / self.digit_or_atom()
        if token == r"\sqrt":
            degree = 2.0 + 0j
            if self.peek() == "[":
                self.take()
                degree = self.group("]")
            return self.digit_or_atom() ** (1 / degree)
        if token[0] == "\\" and name in FUNCTIONS:
            power = 1.0 + 0j
            if self.peek() == "^":
                self.take()
                power = self.atom()
            return FUNCTIONS[name](self.factor()) ** power
        if token in (r"\pi", r"\infty", r"\circ"):
            return {r"\pi": math.pi, r"\infty": 7.3e40, r"\circ": math.pi / 180}[token]
        if token == "i":
            return 1j
        if re.fullmatch(r"[a-zA-Z]", token) or name in GREEK:
            if self.peek() == "_":
                self.take()
                name += f"_{self.take()}"
                while name.count("{") > name.count("}"):
                    name += self.take()
            return complex(random.Random(f"{name} {self.point}").uniform(0.3, 2.5))
        raise ValueError(f"{token} is not read")


def value(text: str) -> Leaf | None:
    """Returns the exact value of a plain number, the values at two points of a formula, or None."""
    number = plain(text)
    if number is not None:
        return number
    try:
        found = tuple(_Evaluation(tidy(text).replace(r"\$", ""), point).whole() for point in (0, 1))
    except (ValueError, ZeroDivisionError, OverflowError, IndexError, RecursionError):
        return None
    return found if all(cmath.isfinite(x) for x in found) else None


def same(one: Leaf, other: Leaf) -> bool:
    """Returns whether two values may be equal."""
    if isinstance(one, Fraction) and isinstance(other, Fraction):
        return one == other
    pairs = zip(*(2 * [complex(leaf)] if isinstance(leaf, Fraction) else leaf for leaf in (one, other)), strict=True)
    return all(abs(a - b) <= 1e-6 * max(abs(a), abs(b), 1e-30) for a, b in pairs)


def split(text: str, mark: str = ",") -> list[str]:
    """Splits at a mark outside of all brackets."""
    parts, depth, begin = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if not depth and text.startswith(mark, place):
            parts.append(text[begin:place].strip())
            begin = place + len(mark)
    return [*parts, text[begin:].strip()]


def unit_of(words: str) -> str | None:
    words = " ".join(words.lower().replace(".", "").split())
    names = {spelling.lower(): unit for unit, (_, _, spellings) in UNITS.items() for spelling in spellings}
    return names.get(words) or names.get(f"{words}s") or {"centimeter": "cm"}.get(words)


def is_interval(text: str, pairs: bool = False) -> bool:
    """Returns whether a bracketed pair can only be an interval of real numbers; with `pairs`, (1,2) is one too."""
    parts = split(text[1:-1])
    if not (len(parts) == 2 and text[0] in "([" and text[-1] in ")]"):
        return False
    if text[0] + text[-1] == "()" and "infty" not in text and not pairs:
        return False
    ends = [value(part) for part in parts]
    if None in ends or re.search(r"(?<![\\a-zA-Z])[a-zA-Z]", text):
        return False
    low, high = (float(end) if isinstance(end, Fraction) else end[0].real for end in ends if end is not None)
    return low < high


def read(text: str) -> tuple[str, tuple[str, ...]]:
    """Returns the shape of an answer, and its parts as texts: ("interval", ("[", "0", "1", ")"))."""
    body = tidy(text)
    if r"\pm" in body or r"\mp" in body:
        return "other", ()
    if r"\cup" in body:
        pieces = [piece.strip() for piece in body.split(r"\cup")]
        return ("union", tuple(pieces)) if all(piece and is_interval(piece, True) for piece in pieces) else ("other", ())
    if match := re.fullmatch(r"\\begin\{pmatrix\}(.*)\\end\{pmatrix\}", body):
        return "matrix", tuple(row.strip() for row in match[1].split(r"\\"))
    if match := BASE.fullmatch(re.sub(rf"{TEXT}(\w+)\}}", r"\1", body).replace(" ", "")):
        return "base", (match[1] + match[2], match[3])
    if match := re.fullmatch(rf"(.*?)(?:\^\s*\{{?\s*\\circ\s*\}}?|{TEXT}([^{{}}]*)\}}(?:\^\{{?(\d)\}}?)?)", body):
        unit = "deg" if match[2] is None else unit_of(match[2] + (f"^{match[3]}" if match[3] else ""))
        if unit and plain(match[1]) is not None:
            return "unit", (match[1].strip(), unit)
    if match := re.fullmatch(r"(.*?)\s*\\%", body):
        return ("percent", (match[1],)) if plain(match[1]) is not None else ("other", ())
    relations = RELATION.findall(body)
    if relations:
        sides = tuple(side.strip() for side in RELATION.split(body))
        if len(relations) > 1 or any(value(side) is None for side in sides):
            return "other", ()
        return "relation", (sides[0], relations[0], sides[1])
    return _read_words(body) or _read_parts(body)


def _read_words(body: str) -> tuple[str, tuple[str, ...]] | None:
    words = re.sub(rf"{TEXT}([^{{}}]*)\}}", r"\1", body).strip()
    if re.fullmatch(r"[A-H]|\([A-H]\)", words):
        return "choice", (words.strip("()"),)
    if re.fullmatch(r"[A-H](,\s*[A-H])+", words):
        return "letters", tuple(letter.strip() for letter in words.split(","))
    numbers = "zero one two three four five six seven eight nine ten".split()
    if re.fullmatch(r"[A-Za-z]{3,}", words) and words != body and words.lower() not in numbers:
        return "word", (words,)
    return None


def _read_parts(body: str) -> tuple[str, tuple[str, ...]]:
    if plain(body) is not None:
        return "number", (body,)
    if len(body) > 2 and body[0] in "([" and body[-1] in ")]" and len(split(body)) == 1:
        parts = tuple(split(body[1:-1]))
        if is_interval(body):
            return "interval", (body[0], *parts, body[-1])
        if body[0] + body[-1] == "()" and len(parts) > 1 and all(value(part) is not None for part in parts):
            return "tuple", parts
    if match := re.fullmatch(r"\\\{(.*)\\\}", body):
        parts = tuple(split(match[1]))
        return ("set", parts) if all(value(part) is not None for part in parts) else ("other", ())
    if len(parts := tuple(split(body))) > 1:
        return ("list", parts) if all(value(part) is not None for part in parts) else ("other", ())
    return ("formula", (body,)) if value(body) is not None else ("other", ())


def leaves(shape: str, parts: tuple[str, ...]) -> list[Leaf] | None:
    """Returns the values in an answer, or None if one of them cannot be read."""
    if shape == "base":
        digits, base = parts
        try:
            return [Fraction(int(digits, int(base)))]
        except ValueError:
            return None
    if shape == "relation":
        ends = [value(parts[0]), value(parts[2])]
        if isinstance(ends[0], Fraction) or re.fullmatch(r"[a-z]", parts[0]):
            return None if None in ends else ends[1:]
        return None
    if shape == "matrix":
        texts = [entry for row in parts for entry in row.split("&")]
    elif shape == "union":
        texts = [end for piece in parts for end in split(piece[1:-1])]
    else:
        texts = list({"unit": parts[:1], "interval": parts[1:3]}.get(shape, parts))
    found = [value(text) for text in texts]
    return None if None in found else found


def surely_differ(one: str, other: str) -> bool:
    """Returns whether the answers differ in any reading: the values in them differ, also as percentages and as radians."""
    (shape, parts), (other_shape, other_parts) = read(one), read(other)
    texts = ("word", "choice", "letters")
    if shape in texts or other_shape in texts:
        said = {text.lower() for text in parts}, {text.lower() for text in other_parts}
        return "other" not in (shape, other_shape) and shape == other_shape and not said[0] & said[1]
    found, others = leaves(shape, parts), leaves(other_shape, other_parts)
    if not found or not others:
        return False
    factors = [Fraction(1)] + [Fraction(100), Fraction(1, 100)] * ("percent" in (shape, other_shape))
    return not any(_same_sets([_times(leaf, factor) for leaf in found], others) for factor in factors) and not (
        "unit" in (shape, other_shape) and shape != other_shape and r"\pi" in one + other
    )


def _times(leaf: Leaf, factor: Fraction) -> Leaf:
    return leaf * factor if isinstance(leaf, Fraction) else tuple(x * float(factor) for x in leaf)


def _same_sets(some: list[Leaf], others: list[Leaf]) -> bool:
    return all(any(same(leaf, other) for other in others) for leaf in some) and all(
        any(same(leaf, other) for leaf in some) for other in others
    )


def differ_in_order(some: tuple[str, ...], others: tuple[str, ...]) -> bool:
    """Returns whether two sequences of formulas differ at some place, with both values known."""
    pairs = [(value(one), value(other)) for one, other in zip(some, others, strict=True)]
    return any(a is not None and b is not None and not same(a, b) for a, b in pairs)
