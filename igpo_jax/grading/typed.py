"""Reads an answer as a typed value: number, percentage, list, tuple, set, interval, relation, base-n number, clock time, ratio,
word or formula. docs/grading.md lists what is read, and all that is dropped."""

import dataclasses
import re
from collections.abc import Callable
from fractions import Fraction

from igpo_jax.grading.exact import Number, evaluate
from igpo_jax.grading.units import CURRENCIES, LETTERS, LIMITING, SCALES, Phrase, read_unit

MAX_DEPTH = 8  # of nested brackets
MAX_ITEMS = 400  # of a list

WORD_NUMBERS = dict(zip(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
    "nineteen twenty thirty forty fifty sixty seventy eighty ninety".split(), [*range(21), *range(30, 100, 10)], strict=True,
))  # fmt: skip
UNICODE = {
    "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "÷": r"\div ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ",
    "°": r"^\circ ", "π": r"\pi ", "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "±": r"\pm ",
    "²": "^2", "³": "^3", "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}",
    "⟨": r"\langle ", "⟩": r"\rangle ", "√": r"\sqrt ", "θ": r"\theta ", "∠": r"\angle ", "\u00a0": " ", "\u2009": " ", "’": "'",
}  # fmt: skip
STYLE = re.compile(
    r"\\\\|\\(?:displaystyle|textstyle|scriptstyle|limits|left|right|[bB]ig{1,2}[lrm]?|Bigg?[lrm]?|large|Large|LARGE|small|normalsize|bf|it|rm|"
    r"sf|tt|bfseries|itshape|rmfamily|boldsymbol|bm|math(?:bf|it|sf|tt|normal|bb)|phantom|hspace\s*\{[^{}]*\}|quad|qquad|thinspace|"
    r"enspace)(?![a-zA-Z])\s*|\\[,!;:>]|\\ |~|\\(?=\s|$)"
)
TEXT = re.compile(r"\\(?:text(?:rm|bf|it|sf|tt|normal|up|md)?|math(?:rm|up|bf|it|sf|tt|normal)|boldsymbol|bm|textnormal|mbox|hbox|operatorname\*?)\s*\{([^{}]*)\}")
RENAMED = [
    (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"), (r"\\(?:leqslant|leq|le)(?![a-zA-Z])|<=", r"\\le "),
    (r"\\(?:geqslant|geq|ge)(?![a-zA-Z])|>=", r"\\ge "), (r"\\(?:neq|ne)(?![a-zA-Z])|\\not\s*=|!=", r"\\ne "),
    (r"\\lt(?![a-zA-Z])", "<"), (r"\\gt(?![a-zA-Z])", ">"), (r"\\(?:approx|simeq|sim|thickapprox)(?![a-zA-Z])", r"\\approx "),
    (r"\\bigcup(?![a-zA-Z])", r"\\cup "), (r"\\(?:varnothing)(?![a-zA-Z])", r"\\emptyset "), (r"\\textminus(?![a-zA-Z])", "-"),
    (r"\\lbrace(?![a-zA-Z])", r"\\{"), (r"\\rbrace(?![a-zA-Z])", r"\\}"), (r"\\(?:dots|cdots|ldots)(?![a-zA-Z])", r"\\dots "),
    (r"(?:\{\s*\})?\^\s*(?:\{\s*(?:\\circ|\\degree|o)\s*\}|\\circ|\\degree|o(?![a-zA-Z]))|\\degree(?![a-zA-Z])", r"^\\circ "),
    (r"\\lor(?![a-zA-Z])", r"\\text{or}"), (r"\\land(?![a-zA-Z])", r"\\text{and}"), (r"\{,\}", ","), (r"\*\*", "^"), ("==", "="),
]  # fmt: skip
LEAD = re.compile(
    r"(?i)^(?:(?:so|thus|therefore|hence),?\s+)?(?:the\s+)?(?:final\s+|correct\s+)?answer(?:\s+is)?\s*[:=]?\s+(?=\S)|^\s*=\s*|^\s*\\approx\s*"
)
DOUBLED = re.compile(r"\\\\(?=(?:[dtc]?frac|sqrt|left|right|leq?|geq?|neq?|text|boxed|pi|cdot|times|infty|cup|circ)(?![a-zA-Z])|[{}$%])")
THOUSANDS = re.compile(r"(?<![\d,.])(\d{1,3})((?:,\d{3})+)(?![\d,]*\d)")
SPACED = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:\s\d{3})+(?![\d.,])")  # 5 000
MIXED = re.compile(r"(?<![\w.,])(\d{1,99})\s+(\d{1,99})/(\d{1,99})(?![\w.,])")  # 5 1/2
REPEATING = re.compile(r"(\d*)\.(\d*)\\(?:overline|bar)\s*(?:\{(\d+)\}|(\d))")
TOKEN = re.compile(r"\\begin\{[a-zA-Z*]*\}|\\end\{[a-zA-Z*]*\}|\\text\{[^{}]*\}|\\[a-zA-Z]+|\\.|\s+|.", re.DOTALL)
OPEN = {"(": ")", "[": "]", "{": "}", "\\{": "\\}", "\\langle": "\\rangle", "\\lfloor": "\\rfloor", "\\lceil": "\\rceil"}
CLOSE = set(OPEN.values())
SEPARATORS = re.compile(r"[,;]|\\text\{(?:and|or)\}")
RELATIONS = re.compile(r"=|<|>|\\(?:le|ge|ne|in|approx)\s*")
NAME = re.compile(
    r"(?:m\s*)?(?:\\(?:angle|triangle|overline|vec|hat)\s*)?(?:\\[a-zA-Z]+|[a-zA-Z]{1,3}|\{[a-zA-Z]+\}|[a-zA-Z]{4,}(?:\s+[a-zA-Z]+)*)"
    r"(?:_(?:\{[^{}]*\}|\w))?'*(?:\^\{?(?:\\prime|')\}?)?(?:\s*\(\s*[-\w]+(?:\s*,\s*[-\w]+)*\s*\))?|\((?:\s*[a-zA-Z](?:_\w)?\s*,?)+\)|"
    r"(?:\\text\{[^{}]*\}\s*)+|\|[a-zA-Z]\|"
)
FUNCTIONS = set("sin cos tan cot sec csc log ln exp sqrt frac arcsin arccos arctan sinh cosh tanh lim sum prod int max min gcd lcm".split())
BASED = re.compile(r"(-?)\s*(?:\(\s*([0-9A-Za-z.]+)\s*\)|\\text\{([0-9A-Za-z.]+)\}|([0-9A-Za-z.]+))\s*_\s*\{?\s*(?:\\text\{(\w+)\}|(\d+))\s*\}?")
IN_BASE = re.compile(r"(-?)([0-9A-F.]+)\s*(?:\(\s*)?(?:(?:in\s+)?base[\s-]*(\d+|\w+)|in\s+(binary|octal|hexadecimal))(?:\s*\))?")
CLOCK = re.compile(r"(\d{1,2}):(\d\d)(?::(\d\d))?\s*(?:([aApP])\.?\s*[mM]\.?)?")
RATIO = re.compile(r"[-\d./]+(?:\s*:\s*[-\d./]+)+")
CHOICE = re.compile(r"(?:(?i:option|choice)\s*)?\(?\s*([A-Z])\s*\)?\s*[.:)]?")
PERCENT = re.compile(r"(?:\\?%|(?i:percentage|percent|pct))\s*$")
INFINITY = re.compile(r"([-+]?)\s*\\infty")


@dataclasses.dataclass(frozen=True)
class Answer:
    value: "Value"
    name: str = ""  # the name before "=", such as x or f(x)
    unit: Phrase | None = None
    latex: str = ""  # the normalized text


@dataclasses.dataclass(frozen=True)
class Quantity:
    number: Number
    percent: bool = False


@dataclasses.dataclass(frozen=True)
class Formula:
    latex: str


@dataclasses.dataclass(frozen=True)
class Text:
    text: str  # normalized for comparison


@dataclasses.dataclass(frozen=True)
class Based:
    digits: str
    base: int


@dataclasses.dataclass(frozen=True)
class Clock:
    seconds: int
    has_half: bool  # a.m. or p.m. is stated, or the hour is 0 or above 12


@dataclasses.dataclass(frozen=True)
class Ratio:
    terms: tuple[Fraction, ...]


@dataclasses.dataclass(frozen=True)
class Bracketed:
    """A tuple or an interval."""

    brackets: str  # such as "(]"
    items: tuple[Answer, ...]


@dataclasses.dataclass(frozen=True)
class Group:
    """Items in any order: a list, a set, or the union of several intervals."""

    kind: str  # list | set | union
    items: tuple[Answer, ...]


@dataclasses.dataclass(frozen=True)
class Unequal:
    """x \\ne 3."""

    value: Answer


Value = Quantity | Formula | Text | Based | Clock | Ratio | Bracketed | Group | Unequal


def read(text: str) -> Answer:
    """Reads the text of an answer. Raises RecursionError only for brackets that are nested deeper than any answer's."""
    return _read(normalize(text), 0)


def is_stated(answer: Answer) -> bool:
    """Returns whether an answer is more than words: no part of it is a text of several words."""
    if isinstance(answer.value, Text):
        return bool(re.fullmatch(r"[a-zA-Z]+", answer.value.text))
    items = answer.value.items if isinstance(answer.value, (Bracketed, Group)) else ()
    return all(is_stated(item) for item in items)


def normalize(text: str) -> str:
    """Writes an answer in one notation, and drops spacing and style commands, math delimiters, "the answer is", and a final full
    stop."""
    text = re.sub(r"<\|[^<>|]{1,40}\|>", " ", text)
    text = "".join(UNICODE.get(c, c) for c in text)
    text = text if "\\begin" in text else DOUBLED.sub(r"\\", text)
    text = re.sub(r"^\s*(?:\*\*|__|`+)\s*(.*?)\s*(?:\*\*|__|`+)\s*$", r"\1", text, flags=re.DOTALL)
    text = re.sub(r"\\(?:boxed|fbox)(?![a-zA-Z])", "", text)
    text = re.sub(r",\s*\\!\s*", ",", text)
    text = re.sub(r"(?<!\\)\\[()\[\]]|(?<!\\)\$", " ", text).replace("\\$", "\\$ ")
    text = text if "\\begin" in text else re.sub(r"\\\\\s*$", "", text.rstrip())
    for _ in range(3):
        text = TEXT.sub(_words, text)
    text = STYLE.sub(_unstyled, text)
    for pattern, written in RENAMED:
        text = re.sub(pattern, written, text)
    text = re.sub(r"(?<![a-zA-Z\\{])(and|or)(?![a-zA-Z}])", r"\\text{\1}", text)
    previous = None
    while previous != text:  # "The answer is: $5$."
        previous = text
        text = re.sub(r"(?<=[^.\\])[.,;:]$", "", text.strip()).strip()
        text = LEAD.sub("", text)
        inner = re.fullmatch(r"\{((?:[^{}]|\{[^{}]*\})*)\}", text)
        text = inner[1] if inner and "," not in inner[1] else text
    text = REPEATING.sub(_repeating, text)
    text = MIXED.sub(lambda m: f"{m[1]}\\frac{{{m[2]}}}{{{m[3]}}}" if int(m[2]) < int(m[3]) else m[0], text)
    return SPACED.sub(lambda m: re.sub(r"\s", "", m[0]), text)


def _unstyled(match: re.Match) -> str:
    if match[0] == "\\\\":  # a row of a matrix ends
        return match[0]
    return "" if match[0].startswith(("\\left", "\\right", "\\!", "\\math")) else " "


def _words(match: re.Match) -> str:
    """Splits \\text{...} into one \\text for each word. Other characters leave the \\text."""
    content = match[1]
    if not re.search(r"[a-zA-Z]", content):
        return content if re.search(r"\S", content) else " "

    def word(found: re.Match) -> str:
        letter = found[0]
        after_number = re.search(r"[\d})]\s*$", match.string[: match.start()]) and content.strip() == letter
        if len(letter) == 1 and not (after_number and letter in LETTERS):
            return letter
        return f"\\text{{{letter}}}"

    return re.sub(r"(?<![\\a-zA-Z])[a-zA-Z](?:[a-zA-Z'-]|\.(?=[a-zA-Z]))*", word, content.replace("\n", " "))


def _repeating(match: re.Match) -> str:
    whole, fixed, repeated = match[1] or "0", match[2], match[3] or match[4]
    nines = int("9" * len(repeated) + "0" * len(fixed))
    value = Fraction(int(whole + fixed + repeated) - int(whole + fixed), nines)
    return f"\\frac{{{value.numerator}}}{{{value.denominator}}}"


def split(text: str, is_separator: Callable[[str], bool]) -> tuple[list[str], list[str]]:
    """Splits a text at the separators that stand outside of all brackets. Returns the parts and the separators."""
    parts, found, depth = [""], [], 0
    thousands = {place for number in THOUSANDS.finditer(text) for place in range(*number.span())}
    for match in TOKEN.finditer(text):
        token = match[0]
        if token in OPEN or token.startswith("\\begin"):
            depth += 1
        elif token in CLOSE or token.startswith("\\end"):
            depth -= 1
        if depth <= 0 and is_separator(token) and match.start() not in thousands:
            found.append(token.strip())
            parts.append("")
        else:
            parts[-1] += token
    return [part.strip() for part in parts], found


def _read(text: str, depth: int) -> Answer:
    text = text.strip()
    if depth > MAX_DEPTH or not text:
        return Answer(Text(condensed(text)), latex=text)
    if "\\begin" in text:
        return Answer(_value(text), latex=text)
    parts, _ = split(text, lambda token: bool(SEPARATORS.fullmatch(token)))
    parts = [part for part in parts if part]
    if 1 < len(parts) <= MAX_ITEMS:
        return _group("list", [_read(part, depth + 1) for part in parts], text)
    text = parts[0] if len(parts) == 1 else text
    sides, relations = split(text, lambda token: bool(RELATIONS.fullmatch(token)))
    if relations:
        return _relation(sides, relations, text, depth)
    united, _ = split(text, lambda token: token == "\\cup")
    if 1 < len(united) <= MAX_ITEMS:
        return _group("union", [_read(part, depth + 1) for part in united], text)
    return _bracketed(text, depth) or _plus_minus(text, depth) or _measured(text)


def _group(kind: str, items: list[Answer], text: str) -> Answer:
    """Joins items. A name that only the first item has holds for all: x = 1, 2."""
    flat = [item for part in items for item in (part.value.items if isinstance(part.value, Group) else (part,))]
    return Answer(Group(kind, tuple(flat)), latex=text)


def _relation(sides: list[str], relations: list[str], text: str, depth: int) -> Answer:
    formula = Answer(Formula(text) if is_math(text) else Text(condensed(text)), latex=text)
    if set(relations) <= {"=", "\\approx"}:
        return _chain(sides, relations, text, depth) or formula
    names = [side for side in sides if is_name(side)]
    name = names[0] if names else ""
    if relations == ["\\in"] and name == sides[0]:
        return dataclasses.replace(_read(sides[1], depth + 1), name=condensed(name), latex=text)
    if relations == ["\\ne"] and name:
        other = sides[1] if sides[0] == name else sides[0]
        return Answer(Unequal(_read(other, depth + 1)), condensed(name), latex=text)
    up, down = {"<", "\\le"}, {">", "\\ge"}
    if set(relations) <= down:
        sides, relations = sides[::-1], [{">": "<", "\\ge": "\\le"}[relation] for relation in relations[::-1]]
    if not set(relations) <= up or len(relations) > 2 or not all(sides):
        return formula
    if len(relations) == 2 and (is_name(sides[1]) or not evaluate(sides[1])):
        low, name, high = sides
        ends = ["[" if relations[0] == "\\le" else "(", "]" if relations[1] == "\\le" else ")"]
    elif len(relations) == 1 and name and sides[0] == name:
        low, high, ends = "-\\infty", sides[1], ["(", "]" if relations[0] == "\\le" else ")"]
    elif len(relations) == 1 and name:
        low, high, ends = sides[0], "\\infty", ["[" if relations[0] == "\\le" else "(", ")"]
    else:
        return formula
    items = _read(low, depth + 1), _read(high, depth + 1)
    return Answer(Bracketed("".join(ends), items), condensed(name), latex=text)


def _chain(sides: list[str], relations: list[str], text: str, depth: int) -> Answer | None:
    """Reads x = 5 + 6 = 11 or 1/3 \\approx 0.33. Returns None if the sides are no names and no equal numbers, as in 2 = 3 and
    2x + z = 1."""
    if not all(sides):
        return None
    rounded = relations.count("\\approx")
    if rounded and (rounded > 1 or relations[-1] != "\\approx"):
        return None
    names = [side for side in sides if is_name(side)]
    values = [side for side in sides if not is_name(side)]
    if len(names) > 1 or not values:
        return None
    answers = [_read(value, depth + 1) for value in values]
    numbers = [answer.value.number.value / (100 if answer.value.percent else 1) if isinstance(answer.value, Quantity) else None
               for answer in answers]  # fmt: skip
    exact = numbers[:-1] if rounded and len(values) > 1 else numbers
    if any(number is None for number in numbers) and len(values) > 1:
        closed = all(not letters(value) or value.startswith("\\lim") for value in values)
        return dataclasses.replace(answers[-1 - rounded], name=condensed("".join(names)), latex=text) if closed else None
    if len(set(exact)) > 1 or (len(exact) < len(numbers) and not _is_rounding(values[-1], exact[0])):
        return Answer(Text(condensed(text)), latex=text)
    chosen = answers[len(exact) - 1]
    return dataclasses.replace(chosen, name=condensed("".join(names)), latex=text)


def _is_rounding(decimal: str, exact: Fraction | None) -> bool:
    number = evaluate(re.sub(r"\\text\{[^{}]*\}|\\?%|\\\$", "", decimal).strip())
    places = len(decimal.partition(".")[2].strip(" })")) if "." in decimal else 0
    return exact is not None and number is not None and abs(number.value - exact) <= Fraction(1, 2 * 10**places)


def _bracketed(text: str, depth: int) -> Answer | None:
    match = re.fullmatch(r"(\\\{|\\langle|[\[({])\s*(.*?)\s*(\\\}|\\rangle|[\])}])", text, re.DOTALL)
    if not match:
        return None
    opening, content, closing = match.groups()
    inside, level = TOKEN.findall(text), 0
    for place, token in enumerate(inside):
        level += (token in OPEN) - (token in CLOSE)
        if level == 0 and place < len(inside) - 1:
            return None  # (1,2),(3,4) and (x+1)(x+2)
    if not re.search(r",\s", content):  # (1,234) is a pair, but (12,000, 5) is not a triple
        content = content.replace(",", ", ")
    parts, _ = split(content, lambda token: token in (",", ";") or bool(re.fullmatch(r"\\text\{(?:and|or)\}", token)))
    parts = [part for part in parts if part]
    is_set = opening in ("\\{", "{") and closing in ("\\}", "}")
    if is_set and not parts:
        return Answer(Formula("\\emptyset"), latex=text)
    if len(parts) < 2 or len(parts) > MAX_ITEMS:
        is_plain = len(parts) == 1 and (is_set or (opening == "(" and closing == ")"))
        return _read(parts[0], depth + 1) if is_plain else None
    items = [_read(part, depth + 1) for part in parts]
    if is_set:
        return _group("set", items, text)
    brackets = ("(" if opening == "\\langle" else opening) + (")" if closing == "\\rangle" else closing)
    return Answer(Bracketed(brackets, tuple(items)), latex=text)


def _plus_minus(text: str, depth: int) -> Answer | None:
    if not re.search(r"\\(?:pm|mp)(?![a-zA-Z])", text):
        return None
    plus = re.sub(r"^\s*\+", "", re.sub(r"\\mp(?![a-zA-Z])", "-", re.sub(r"\\pm(?![a-zA-Z])", "+", text)))
    minus = re.sub(r"^\s*\+", "", re.sub(r"\\mp(?![a-zA-Z])", "+", re.sub(r"\\pm(?![a-zA-Z])", "-", text)))
    return _group("list", [_read(plus, depth + 1), _read(minus, depth + 1)], text)


def _measured(text: str) -> Answer:
    """Reads a single value with its unit."""
    special = _special(text)
    if special:
        return Answer(special, latex=text)
    core, unit = text, None
    for symbol, name in CURRENCIES.items():
        sign = re.match(rf"(-?)\s*{re.escape(symbol)}\s*", core)
        if sign:
            core, unit = sign[1] + core[sign.end() :], read_unit(name)
        elif core.endswith(symbol):
            core, unit = core[: -len(symbol)].rstrip(), read_unit(name)
    percent = PERCENT.search(core)
    if percent:
        number = _number(_unworded(core[: percent.start()]))
        return Answer(Quantity(number, True) if number else Text(condensed(text)), latex=text)
    value = _value(core)
    if not isinstance(value, Quantity):
        begin = _unit_begin(core)
        phrase = read_unit(core[begin:]) if begin else None
        found = _value(core[:begin].strip()) if phrase else None
        if phrase and not isinstance(found, Text) and not (isinstance(found, Formula) and _is_argument(core[:begin])):
            return Answer(found, unit=phrase if phrase.unit else unit or phrase, latex=text)
    return Answer(value, unit=unit, latex=text)


def _unit_begin(text: str) -> int | None:
    """Returns where the words after a value begin, or None."""
    match = re.search(
        r"(?<=[\d})\]!a-z])(?:\s*\\text\{[^{}]*\}|\s*\^\\circ|(?<![a-zA-Z\\])\s*[a-zA-Z]{2,}|(?<=\s)[a-zA-Z]{2,}|\s*¢)"
        r"(?:\\text\{[^{}]*\}|\s|[a-zA-Z'.-]+|/|\^\s*\{?\s*-?\d\s*\}?|\\circ|\^)*$",
        text,
    )
    return match.start() if match else None


def _is_argument(text: str) -> bool:
    """Returns whether a trailing degree sign belongs to a function's argument, as in \\sin 30^\\circ."""
    return bool(re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", text))


def _value(text: str) -> Value:
    number = _number(text)
    if number:
        return Quantity(number)
    return Formula(text) if is_math(text) else Text(condensed(text))


def _number(text: str) -> Number | None:
    """Returns the value of arithmetic, of a number word, or of a number with a scale, as in 2 million."""
    plain = _unworded(text)
    number = evaluate(plain)
    if number is None and plain.lower() in WORD_NUMBERS:
        return Number(Fraction(WORD_NUMBERS[plain.lower()]), ())
    scaled = re.fullmatch(r"(.*?)\s*([a-zA-Z]+)", plain, re.DOTALL) if number is None else None
    if scaled and scaled[2].lower().removesuffix("s") in SCALES:
        number = _number(scaled[1])
        factor = SCALES[scaled[2].lower().removesuffix("s")]
        return Number(number.value * factor, ()) if number else None
    return number


def _unworded(text: str) -> str:
    return re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text).strip()


def _special(text: str) -> Value | None:
    """Reads an infinity, a number in a base, a clock time, a ratio or a choice letter."""
    infinite = INFINITY.fullmatch(text)
    if infinite:
        return Formula("-\\infty" if infinite[1] == "-" else "\\infty")
    based = BASED.fullmatch(text)
    plain = _unworded(text)
    worded = IN_BASE.fullmatch(re.sub(r"\s+", " ", plain))
    if based and any(c.isdigit() for c in text.partition("_")[0]) or worded:
        sign, *rest = (based or worded).groups()
        digits, base = (rest[0] or rest[1] or rest[2], rest[3] or rest[4]) if based else (rest[0], rest[1] or rest[2])
        named = {"binary": 2, "octal": 8, "hexadecimal": 16} | WORD_NUMBERS
        radix = int(base) if base.isdigit() and len(base) < 4 else named.get(base.lower(), 0)
        digits = f"{sign}{digits.upper().lstrip('0') or '0'}"
        if radix == 10 and evaluate(digits):
            return Quantity(evaluate(digits))
        return Based(digits, radix)
    clock = CLOCK.fullmatch(re.sub(r"\s+", " ", plain.replace("\\", "")))
    if clock:
        hours, minutes, seconds, half = clock.groups()
        hour = int(hours) % 12 + 12 * (half in "pP") if half else int(hours)
        return Clock(3600 * hour + 60 * int(minutes) + int(seconds or 0), bool(half) or not 0 < hour < 13)
    if RATIO.fullmatch(plain):
        terms = [evaluate(part) for part in plain.split(":")]
        return Ratio(tuple(term.value for term in terms)) if all(terms) else None
    choice = CHOICE.fullmatch(plain)
    return Text(choice[1]) if choice else None


def is_name(text: str) -> bool:
    """Returns whether the side of an equation is a name, such as x, f(x) or \\text{Area}."""
    pair = re.fullmatch(r"\\frac\{([A-Z]+)\}\{([A-Z]+)\}|(\S+?)\s*:\s*(\S+)", text)
    if pair:  # AB:CD
        return all(is_name(part) for part in pair.groups() if part)
    words = re.findall(r"[a-zA-Z]+", re.sub(r"_\{[^{}]*\}", "", _unworded(text)))
    known = FUNCTIONS | LIMITING | {"infty", "pi"} | set(WORD_NUMBERS)
    return bool(NAME.fullmatch(text)) and not known.intersection(word.lower() for word in words)


MATH_COMMANDS = FUNCTIONS | set(
    "frac sqrt pi alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau upsilon phi "
    "varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega hbar ell infty cdot times div ast pm mp cup cap in "
    "subset setminus le ge ne approx to binom choose lfloor rfloor lceil rceil langle rangle overline bar hat vec dot ddot prime circ "
    "angle triangle partial nabla odot emptyset mid vert lvert rvert bmod mod pmod begin end det sgn Re Im text".split()
)
LETTERS_RUN = re.compile(r"(?<!\\)(?<![a-zA-Z])[a-zA-Z]+")


def is_math(text: str) -> bool:
    """Returns whether a text has only symbols that math-verify reads, and so drops nothing."""
    bare = re.sub(r"_\s*\{\s*\\text\s*\{[^{}]*\}\s*\}", "", re.sub(r"\\(?:begin|end)\{[a-z]*matrix\}", "", text))
    commands = set(re.findall(r"\\([a-zA-Z]+)", bare))
    runs = [run for run in LETTERS_RUN.findall(re.sub(r"\\[a-zA-Z]+", " ", bare)) if run not in FUNCTIONS and run != "pi"]
    return (
        "\\text" not in bare
        and commands <= MATH_COMMANDS
        and all(len(run) <= 3 or (run.isupper() and len(run) <= 4) for run in runs)
        and not LIMITING.intersection(run.lower() for run in runs)
        and _is_balanced(bare)
        and not re.search(r"\d\s+\d|[?\"@#`%]|\\\$|\\%", bare)
        and bool(bare.strip())
    )


def _is_balanced(text: str) -> bool:
    depth = 0
    for brace in re.findall(r"\\.|[{}]", text):
        depth += {"{": 1, "}": -1}.get(brace, 0)
        if depth < 0:
            return False
    return depth == 0


def letters(text: str) -> set[str]:
    """Returns the variables of a formula: its letters and Greek letters, but not e, i and \\pi."""
    commands = {c for c in re.findall(r"\\([a-zA-Z]+)", text) if c not in FUNCTIONS and c.lower() in GREEK}
    bare = re.sub(r"\\[a-zA-Z]+", " ", text)
    runs = [run for run in LETTERS_RUN.findall(bare) if run not in FUNCTIONS and run != "pi"]
    return (commands | {letter for run in runs for letter in run}) - {"e", "i", "pi"}


GREEK = set(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau upsilon phi varphi chi psi "
    "omega".split()
)


def condensed(text: str) -> str:
    """Normalizes a text for literal comparison: no \\text, no spaces between words or symbols, no braces around one symbol."""
    text = re.sub(r"\\text\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\[,;!: ]|~|\\(?:limits|cdot|quad)(?![a-zA-Z])", " ", text)
    text = re.sub(r"([_^])\s*\{\s*(\\?[a-zA-Z]+|\d)\s*\}", r"\1\2 ", text)
    text = re.sub(r"(?<=\d)\s+(?=\d)", r"\\ ", text)  # 5 1/2 is not 51/2
    text = re.sub(r"(?<!\\)\s+", "", text)
    return text.casefold() if re.fullmatch(r"[a-zA-Z.,'-]{2,}", text) else text
