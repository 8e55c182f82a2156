"""Parses the text of an answer into a typed value (docs/grading.md)."""

import dataclasses
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from igpo_jax.grading.exact import Number, evaluate
from igpo_jax.grading.units import CURRENCIES, LIMITING, NUMBERS, SCALES, WORDS, Unit, read_unit

MAX_ANSWER_CHARS = 2000  # longer answers are texts
MAX_DEPTH = 8  # of nested brackets
MAX_ITEMS = 400  # of a list
UNICODE = {symbol: f"{written} " for symbol, written in zip(WORDS["unicode"][::2], WORDS["unicode"][1::2], strict=True)}
SUPERSCRIPTS = str.maketrans("²³", "23")
BOLD = re.compile(
    r"(?<![\w)}\]|!'*])\*\*+(?=[^\s*])((?:(?!\*\*|\n\n)[\s\S])*+)(?<=[^\s*])\*\*+|^\s*\*\*+|\*\*+\s*$"
)  # not x**2
FUNCTIONS, GREEK = set(WORDS["functions"]), set(WORDS["greek"])
SYMBOLS = FUNCTIONS | GREEK | set(WORDS["symbols"])
TEXT = re.compile(
    r"\\(?:text(?:rm|bf|it|sf|tt|normal|up|md)?|math(?:rm|up|bf|it|sf|tt|normal)|boldsymbol|bm|textnormal|mbox|hbox|underline|operatorname\*?)"
    r"\s*\{([^{}]*)\}"
)
STYLE = re.compile(
    r"\\\\|\\(?:displaystyle|textstyle|limits|left|right|[bB]ig{1,2}[lrm]?|large|Large|LARGE|small|normalsize|bf|it|rm|sf|tt|bfseries|"
    r"itshape|boldsymbol|bm|math(?:bf|it|sf|tt|normal)|quad|qquad|thinspace)(?![a-zA-Z])\s*|\\[,!;:> ]|~|\\(?=\s|$)"
)
# \quad that separates two values, unlike in x = 2, \quad y = 3
APART = re.compile(
    r"(?<=[\w}\])!])(?<![a-zA-Z]{2})\s*\\q?quad(?![a-zA-Z])\s*(?=\{*(?:\.?\d|\\(?:[dtc]?frac|sqrt|binom|pi)(?![a-zA-Z])))|"
    r"(?<=[a-zA-Z])\s*\\q?quad\s+(?=[a-zA-Z](?![a-zA-Z]))"
)
RENAMED = [(re.compile(pattern), written) for pattern, written in (
    (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"), (r"\\(?:leqslant|leq|le)(?![a-zA-Z])|<=", r"\\le "),
    (r"\\(?:geqslant|geq|ge)(?![a-zA-Z])|>=", r"\\ge "), (r"\\(?:neq|ne)(?![a-zA-Z])|\\not\s*=|!=", r"\\ne "),
    (r"\\lt(?![a-zA-Z])", "<"), (r"\\gt(?![a-zA-Z])", ">"), (r"\\(?:approx|simeq|sim)(?![a-zA-Z])", r"\\approx "),
    (r"^\s*(?:\\text\{)?(?i:negative|minus)\}?\s+(?=[\d\\])", "-"), (r"\\[hv]?phantom\s*(?:\{[^{}]*\}|\S)", " "), (r"\\lbrace(?![a-zA-Z])", r"\\{"), (r"\\rbrace(?![a-zA-Z])", r"\\}"),
    (r"\\text\{(sin|cos|tan|cot|csc|ln|log|arcsin|arccos|arctan|gcd|lcm)\}", r"\\\1 "), (r"(?<=[)\]])\s*U\s*(?=[(\[])", r"\\cup "),
    (r"(?<![a-zA-Z\\])sqrt\(([^()]*)\)", r"\\sqrt{\1}"), (r"(?<![a-zA-Z\\])(sin|cos|tan|ln|log|arcsin|arccos|arctan)(?=\()", r"\\\1"),
    (r"\\[dt]binom(?![a-zA-Z])", r"\\binom"), (r"\{([^{}]*)\\choose(?![a-zA-Z])([^{}]*)\}", r"\\binom{\1}{\2}"),
    (r"\\begin\{array\}\s*\{[^{}]*\}", r"\\begin{pmatrix}"), (r"\\end\{array\}", r"\\end{pmatrix}"), (r"\\\\\[[\w.]*\]", r"\\\\"),
    (r"\\mathbb\s*\{?R\}?", r"(-\\infty, \\infty)"), (r"\{:\}", ":"), (r"^\s*\\therefore(?![a-zA-Z])", ""),
    (r"\\bigcup(?![a-zA-Z])", r"\\cup "), (r"\\varnothing(?![a-zA-Z])", r"\\emptyset "), (r"\\textminus(?![a-zA-Z])", "-"),
    (r"(?:\{\s*\})?\^\s*(?:\{\s*(?:\\circ|\\degree|o)\s*\}|\\circ|\\degree|o(?![a-zA-Z]))|\\degree(?![a-zA-Z])", r"^\\circ "),
    (r"\\(?:lor)(?![a-zA-Z])", r"\\text{or}"), (r"\\(?:land)(?![a-zA-Z])", r"\\text{and}"), (r"\{,\}", ","), (r"\*\*", "^"), ("==", "="),
    (r"(?<![a-zA-Z\\{])(and|or)(?![a-zA-Z}])", r"\\text{\1}"),
)]  # fmt: skip
LEAD = re.compile(
    r"^(?:{so|thus|therefore|hence},?\s+)?(?:{the}\s+)?(?:{final|correct}\s+)?{answer}(?:\s+{is})?\s*[:=]?\s+(?=\S)|^\s*=\s*|"
    r"^\s*\\approx\s*".replace("{", r"(?:\\text\{)?(?:").replace("}", r")\}?"),
    re.IGNORECASE,
)
COMMAND = r"(?:[dtc]?frac|sqrt|left|right|leq?|geq?|neq?|text|boxed|pi|cdot|times|infty|cup|circ)(?![a-zA-Z])"
DOUBLED = re.compile(rf"\\\\(?={COMMAND}|[{{}}$%])")  # \\frac of a doubly escaped text
THOUSANDS = re.compile(r"(?<![\d,.])(\d{1,3})((?:,\d{3})+)(?![\d,]*\d)")
SPACED = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:\s\d{3})+(?![\d.,])")  # 5 000
MIXED = re.compile(r"(?<![\w.,])(\d{1,99})\s+(\d{1,99})/(\d{1,99})(?![\w.,])")  # 5 1/2
REPEATING = re.compile(r"(\d*)\.(\d*)\\(?:overline|bar)\s*(?:\{(\d+)\}|(\d))")  # 0.\overline{3}
PLAIN = re.compile(r"\s*-?(\d{1,99}(?:\.\d{1,99})?)\s*", re.ASCII)
TOKEN = re.compile(r"\\begin\{[a-zA-Z*]*\}|\\end\{[a-zA-Z*]*\}|\\text\{[^{}]*\}|\\[a-zA-Z]+|\\.|\s+|.", re.DOTALL)
OPENING, CLOSING = set("( [ { \\{ \\langle \\lfloor \\lceil".split()), set(") ] } \\} \\rangle \\rfloor \\rceil".split())
SEPARATOR = re.compile(r"[,;]|\\text\{(?:and|or)\}")
RELATION = re.compile(r"=|<|>|\\(?:le|ge|ne|in|approx)")
NAME = re.compile(
    r"(?:m\s*)?(?:\\(?:angle|triangle|overline|vec|hat|Delta)\s*)?(?:\\[a-zA-Z]+|[a-zA-Z]{1,3}|\{[a-zA-Z]+\}|[a-zA-Z]{4,}(?:\s+[a-zA-Z]+)*)"
    r"(?:_(?:\{(?:[^{}]|\{[^{}]*\})*\}|\w))?'*(?:\^\{?(?:\\prime|'|-1)\}?)?(?:\s*\(\s*[-\w]+(?:\s*,\s*[-\w]+)*\s*\))?|\((?:\s*+(?:[a-zA-Z]|\\[a-z]++)(?:_\w)?+\s*+,?+)++\)|"
    r"(?:\\text\{[^{}]*\}\s*)+(?:[A-Z]{1,4})?|\|[A-Z]{2,}\||\[[A-Z]{3,}\]"
)
BASED = re.compile(
    r"(-?)\s*[({]?\s*(?:\\text\{)?([0-9A-Za-z.]+)\}?\s*[)}]?\s*(?:_\s*\{?\s*|\(\s*(?=\\text\{base))(?:\\text\{base\}\s*)?(?:\\text\{)?(\w+)"
    r"\}?\s*[})]?", re.ASCII,
)  # fmt: skip
CLOCK = re.compile(r"(\d{1,2})(?::(\d\d)(?::(\d\d))?)?\s*(?:([aApP])\.?\s*[mM]\.?)?")
RATIO = re.compile(r"[-\d./]+(?:\s*:\s*[-\d./]+)+")
CHOICE = re.compile(r"(?:[oO]ption|[cC]hoice)?\s*\(?\s*([A-Z])\s*\)?\s*[.:)]?")
PERCENT = re.compile(r"(?:\\?%|(?:\\text\{)?(?i:percentage|percent|pct)\}?)\s*$")
WORDS_BEGIN = re.compile(
    r"(?<=[\d})\]!a-z])(?:\s*\\text\{[^{}]*\}|\s*\^\\circ|(?<![a-zA-Z\\])\s*[a-zA-Z]{2,}|(?<=\s)[a-zA-Z]{2,}|(?<=[\d}])\s+[mgL](?![a-zA-Z])|(?<=\d)\s*/\s*[a-z]{3,}|\s*¢)"
    r"(?:\\text\{[^{}]*\}|\s|[a-zA-Z'.-]+|/|\^\s*\{?\s*-?\d\s*\}?|\\circ|\^)*+$"
)
RUN = re.compile(r"(?<![a-zA-Z\\])[a-zA-Z]+")
ARTICLE = re.compile(r"(?i)^[\"“”` ]*(?:\\text\{)?(?:the|an?)\}?\s+(?=\\text\{|[a-z]{4})")
NO_TERM = re.compile(r"\\(?:sum|prod|int|lim)(?![a-zA-Z])(?:\s*[_^]\s*(?:\{[^{}]*\}|\S))*\s*$")  # pt in \sum_k pt is a product
KEPT = re.compile(  # 5 1/2 is not 51/2, 1 .5 is not 1.5, 2 e3 is not 2e3, \sin h is not \sinh
    r"(?<=[\d.])\s+(?=[\d.]|[eE][-+\d])|(?<=\d[eE])\s+(?=[-+\d])|(\\[a-zA-Z]+)\s+(?=[a-zA-Z])"
)


@dataclasses.dataclass(frozen=True)
class Answer:
    # The kind decides what `value` holds. number | percent: a Number. formula: LaTeX. text: text normalized for comparison.
    # based: (digits, base). clock: (seconds, whether a.m. or p.m. is known). ratio: fractions. tuple (also an interval): its
    # two brackets. unequal: the Answer that a variable does not equal. list | set | union: None; items may be in any order.
    kind: str
    value: Any = None
    items: tuple["Answer", ...] = ()
    name: str = ""  # before "=", such as x or f(x)
    unit: Unit | None = None
    latex: str = ""  # the normalized text
    sides: tuple["Answer", ...] = ()  # exact sides of an equation without variables, except the last, which is this answer
    rounding: "Answer | None" = None  # the side after \\approx


def is_stated(answer: Answer) -> bool:
    """Returns whether an answer is a value and not a sentence. An answer is a sentence in three cases: it is a text of several
    words; one of its items, such as an element of a list, is such a text; or some of its items are words and others are not."""
    is_words = answer.kind == "text" and not re.fullmatch(r"[a-zA-Z]+", _unworded(answer.latex))
    words = [item.kind == "text" and len(item.value) > 1 for item in answer.items]
    return not is_words and all(is_stated(item) for item in answer.items) and len(set(words)) < 2


def read(text: str) -> Answer:
    """Parses the text of an answer, and returns it as a typed `Answer`."""
    if len(text) > MAX_ANSWER_CHARS:
        return Answer("text", condensed(text), latex=text)
    plain = PLAIN.fullmatch(text)  # the most frequent answers need none of the rules
    if plain:
        return Answer("number", Number(Fraction(plain[0].strip()), (plain[1],)), latex=plain[0].strip())
    return _read(normalize(text), 0)


def normalize(text: str) -> str:
    """Returns the text of an answer in a uniform notation. Removes spacing commands, styles, math delimiters, the words "the
    answer is", and a final full stop."""
    text = re.sub(r"<\|[^<>|]{1,40}\|>|\s+", " ", text)
    text = re.sub("[²³]{2,}", lambda m: f"^{{{m[0].translate(SUPERSCRIPTS)}}}", text)
    text = "".join(UNICODE.get(c, c) for c in re.sub(r"√\s*(\w+)", r"\\sqrt{\1}", text))
    text = re.sub(r"\{\s*\\(?:rm|bf|it|tt|sf)\s+([^{}]*)\}", r"\\text{\1}", text)
    text = re.sub(r"^\s*(?:__|`+)|(?:__|`+)\s*$", "", BOLD.sub(r"\1", text))
    text = re.sub(r"\\(?:boxed|fbox)(?![a-zA-Z])", " ", text)
    text = re.sub(r"\\\\\s*$", "", text if "\\begin" in text else DOUBLED.sub(r"\\", text))
    text = re.sub(r"(?<!\\)\\[()\[\]]|(?<!\\)\$", " ", re.sub(r",\s*\\!\s*", ",", text)).replace("\\$", "\\$ ")
    for _ in range(3):
        text = TEXT.sub(_words, text)
    text = re.sub(r"(\\text\{[^{}]*\})\s*\\q?quad(?![a-zA-Z])|\\(?:left|right)\s*\.", r"\1 ", text)
    text = APART.sub(r"\\apart ", text)
    text = STYLE.sub(lambda m: m[0] if m[0] == "\\\\" else "" if re.match(r"\\(?:left|right|!|math)", m[0]) else " ", text)
    for pattern, written in RENAMED:
        text = pattern.sub(written, text)
    previous = None
    while previous != text:  # "The answer is: {5}."
        previous = text
        text = LEAD.sub("", re.sub(r"(?<=[^.\\])[.,;:]$", "", text.strip()).strip())
        inner = re.fullmatch(r"\{((?:[^{}]|\{[^{}]*\})*)\}", text)
        text = inner[1] if inner and "," not in THOUSANDS.sub("", inner[1]) else text
    text = MIXED.sub(
        lambda m: f"{m[1]}\\frac{{{m[2]}}}{{{m[3]}}}" if int(m[2]) < int(m[3]) else m[0], REPEATING.sub(_fraction, text)
    )
    return SPACED.sub(lambda m: re.sub(r"\s", "", m[0]), text)


def _words(match: re.Match) -> str:
    """Returns the replacement for a matched \\text{...}, with one \\text per word. Single letters are written without \\text,
    unless they are units that follow a number, such as m/s."""
    content = match[1].replace("\n", " ")
    is_unit = re.search(r"(?:[\d})]|\\pi)(?:\\[,;:! ]|~|\s)*$", match.string[: match.start()])
    if is_unit and re.fullmatch(r"\s*[mgshLlNJWVAKC](?:\s*/\s*[mgshL]|\^\d)*\s*", content):
        return re.sub(r"([a-zA-Z])", r"\\text{\1}", content)
    word = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z](?:[a-zA-Z'-]|\.(?=[a-zA-Z]))*")
    return word.sub(lambda found: found[0] if len(found[0]) == 1 else f"\\text{{{found[0]}}}", content)


def _fraction(match: re.Match) -> str:
    whole, fixed, repeated = match[1] or "0", match[2], match[3] or match[4]
    value = Fraction(int(whole + fixed + repeated) - int(whole + fixed), int("9" * len(repeated) + "0" * len(fixed)))
    return f"\\frac{{{value.numerator}}}{{{value.denominator}}}"


def _split(text: str, is_separator: Callable[[str], Any]) -> tuple[list[str], list[str]]:
    """Splits a text at all separators that are outside of brackets. Returns the list of parts and the list of separators. A
    comma within a number, such as 1,000, is no separator."""
    parts, found, depth = [""], [], 0
    thousands = {place for number in THOUSANDS.finditer(text) for place in range(*number.span())}
    for match in TOKEN.finditer(text):
        token = match[0]
        depth += token in OPENING or token.startswith("\\begin")
        depth -= token in CLOSING or token.startswith("\\end")
        if depth <= 0 and is_separator(token) and match.start() not in thousands:
            found.append(token)
            parts.append("")
        else:
            parts[-1] += token
    return [part.strip() for part in parts], found


def _read(text: str, depth: int) -> Answer:
    text = text.strip()
    if depth > MAX_DEPTH or not text:
        return Answer("text", condensed(text), latex=text)
    return dataclasses.replace(_typed(text, depth), latex=text)


def _typed(text: str, depth: int) -> Answer:
    for kind, is_separator in (("list", SEPARATOR.fullmatch), ("relation", RELATION.fullmatch), ("union", "\\cup".__eq__)):
        parts, found = _split(text, is_separator)
        if kind == "relation" and found:
            return _relation(parts, found, text, depth)
        parts = [part for part in parts if part]
        if "\\text{and}" in found and re.search(r"<|>|\\[lg]e ", text):  # x > 0 and x < 2
            return Answer("text", condensed(text))
        if found and 1 < len(parts) <= MAX_ITEMS:
            return _group(kind, parts, depth)
    if "\\begin" in text:
        return _value(text)
    if re.search(r"\\(?:pm|mp)(?![a-zA-Z])", text) and not re.match(r"[(\[]|\\[{l]", text):
        plus, minus = (re.sub(r"\\mp(?![a-zA-Z])", low, re.sub(r"\\pm(?![a-zA-Z])", high, text)) for high, low in ("+-", "-+"))
        return _group("list", [plus.lstrip(" +"), minus.lstrip(" +")], depth)
    return _bracketed(text, depth) or _measured(text)


def _group(kind: str, parts: list[str], depth: int) -> Answer:
    items = [_read(part, depth + 1) for part in parts]
    return Answer(kind, items=tuple(i for item in items for i in (item.items if item.kind in ("list", "union") else (item,))))


def _relation(sides: list[str], relations: list[str], text: str, depth: int) -> Answer:
    """Parses a relation such as x = 5, x \\in [1, 2], x \\ne 3 or 1 < x \\le 2, and returns it as an `Answer`. All other
    relations become formulas."""
    if not all(sides):
        return Answer("text", condensed(text))
    if set(relations) <= {"=", "\\approx"}:
        return _chain(sides, relations, text, depth)
    name = next((side for side in sides if is_name(side)), "")
    if relations == ["\\in"] and name == sides[0]:
        return dataclasses.replace(_read(sides[1], depth + 1), name=condensed(name))
    if relations == ["\\ne"] and name:
        return Answer("unequal", _read(sides[sides[0] == name], depth + 1), name=condensed(name))
    if set(relations) <= {">", "\\ge"}:
        sides, relations = sides[::-1], [{">": "<", "\\ge": "\\le"}[relation] for relation in relations[::-1]]
    open_ends = [relation == "<" for relation in relations]
    if not set(relations) <= {"<", "\\le"} or len(relations) > 2 or (len(relations) == 1 and not name):
        return _value(text)
    if len(relations) == 2 and not is_name(sides[1]):
        return _value(text)
    if len(relations) == 2:
        (low, name, high), (left, right) = sides, open_ends
    else:
        low, high = ("-\\infty", sides[1]) if sides[0] == name else (sides[0], "\\infty")
        left, right = (True, open_ends[0]) if sides[0] == name else (open_ends[0], True)
    brackets = "[("[left] + "])"[right]
    return Answer("tuple", brackets, (_read(low, depth + 1), _read(high, depth + 1)), condensed(name))


def _chain(sides: list[str], relations: list[str], text: str, depth: int) -> Answer:
    """Parses a chain of equal values, such as x = 5 + 6 = 11 or 1/3 \\approx 0.33, and returns it as an `Answer`. An equation
    between expressions with variables, such as 2x + z = 1, becomes a formula."""
    rounded = relations[-1] == "\\approx"
    names, values = [side for side in sides if is_name(side)], [side for side in sides if not is_name(side)]
    if len(names) > 1 or not values or "\\approx" in relations[:-1]:
        return _value(text)
    if rounded and is_name(sides[-1]):
        return Answer("text", condensed(text))
    answers = [_read(value, depth + 1) for value in values]
    exact = len(values) - (rounded and len(values) > 1)
    has_variables = any(a.kind in ("formula", "text") and letters(a.latex) and "\\lim" not in a.latex for a in answers)
    if len(values) > 1 and has_variables:
        return Answer("text", condensed(text)) if rounded else _value(text)
    sides = tuple(side for side in answers[: exact - 1] if not re.search(r"\\lim|mod", side.latex))
    named = dataclasses.replace(answers[exact - 1], name=condensed("".join(names)), sides=sides)
    return dataclasses.replace(named, rounding=answers[exact] if answers[exact:] else None)


def _bracketed(text: str, depth: int) -> Answer | None:
    """Parses values in brackets, such as (1, 2), [1, 2), {1, 2}, \\langle 1, 2 \\rangle or (5). Returns None for other
    texts."""
    match = re.fullmatch(r"(\\\{|\\langle|[\[({])\s*(.*?)\s*(\\\}|\\rangle|[\])}])", text, re.DOTALL)
    level = 0
    for token in TOKEN.finditer(text) if match else ():
        level += (token[0] in OPENING) - (token[0] in CLOSING)
        if level == 0 and token.end() < len(text):  # (1,2),(3,4) and (x+1)(x+2)
            return None
    if not match:
        return None
    opening, content, closing = match.groups()
    if not re.search(r",\s", content):  # (1,234) is a pair, but (12,000, 5) is not a triple
        content = content.replace(",", ", ")
    parts = [part for part in _split(content, SEPARATOR.fullmatch)[0] if part]
    is_set = opening in ("\\{", "{") and closing in ("\\}", "}")
    if is_set and not parts:
        return Answer("formula", "\\emptyset")
    if len(parts) == 1 and (is_set or (opening, closing) == ("(", ")")):
        return _read(parts[0], depth + 1)
    if not 1 < len(parts) <= MAX_ITEMS:
        return None
    if is_set:
        return _group("set", parts, depth)
    brackets = opening.replace("\\langle", "(") + closing.replace("\\rangle", ")")
    return Answer("tuple", brackets, tuple(_read(part, depth + 1) for part in parts))


def _measured(text: str) -> Answer:
    """Parses a single value, which may have a unit, and returns it as an `Answer`."""
    special, core, unit = _special(text), text, None
    if special:
        return special
    for symbol in CURRENCIES:
        sign = re.match(rf"(-?)\s*{re.escape(symbol)}\s*", core)
        if sign or core.endswith(symbol):
            core, unit = sign[1] + core[sign.end() :] if sign else core[: -len(symbol)].rstrip(), read_unit(symbol)
    if not unit and "\\$" in core:  # 5 \times \$6
        core, unit = core.replace("\\$", ""), read_unit("\\$")
    percent = PERCENT.search(core)
    if percent:
        number = _number(core[: percent.start()])
        return Answer("percent", number) if number else Answer("text", condensed(text))
    answer, words = _value(core), WORDS_BEGIN.search(core)
    if answer.kind == "number" or not words:
        return dataclasses.replace(answer, unit=unit)
    symbol = re.sub(r"[\s\d.,-]", "", text.replace(core, "")) if unit else ""  # of \$5 per hour
    before = core[: words.start()].strip()
    stated = read_unit(f"{symbol} {words[0]}", is_one=before == "1")
    if stated == read_unit("degrees") and "\\pi" in before:
        return Answer("text", condensed(text))
    found = _value(before) if stated else answer
    is_argument = found.kind == "formula" and re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", before)  # \sin 30^\circ
    is_letter = re.fullmatch(r"\s*[mgL].*", words[0]) and found.kind != "number"  # 2x m is a product
    if stated and found.kind != "text" and not is_argument and not is_letter and not NO_TERM.search(before):
        return dataclasses.replace(found, unit=stated if stated[0] else unit or stated)
    return dataclasses.replace(answer, unit=unit)


def _value(text: str) -> Answer:
    number = _number(text)
    if number:
        return Answer("number", number)
    return Answer("formula", text) if is_math(text) else Answer("text", condensed(text))


def _number(text: str) -> Number | None:
    """Returns the value of an arithmetic expression, of a number word such as twelve, or of a number with a scale word, as in 2
    million. Returns None for other texts."""
    plain = _unworded(text)
    if plain.lower() in NUMBERS:
        return Number(Fraction(NUMBERS[plain.lower()]), ())
    tens, _, ones = plain.lower().replace(" ", "-").partition("-")  # twenty-one
    if NUMBERS.get(tens, 0) >= 20 and 0 < NUMBERS.get(ones, 0) < 10:
        return Number(Fraction(NUMBERS[tens] + NUMBERS[ones]), ())
    scaled = re.fullmatch(r"(.*?)\s*([a-zA-Z]+)", plain, re.DOTALL)
    factor = SCALES.get(scaled[2].lower()) if scaled else None
    if scaled and factor:
        number = _number(scaled[1])
        return Number(number.value * factor, ()) if number else None
    return evaluate(plain)


def _unworded(text: str) -> str:
    return re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text).strip()


def _special(text: str) -> Answer | None:
    """Parses plus or minus infinity, a number with its base, a time of day, a ratio, or the letter of a multiple-choice option.
    Returns None for other texts."""
    plain = re.sub(r"\s+", " ", _unworded(text))
    if re.fullmatch(r"[-+]?\s*\\infty", text):
        return Answer("formula", re.sub(r"[+\s]", "", text))
    based = BASED.fullmatch(text) if re.search(r"\d.*(?:_|base)", text) else None
    if based:
        sign, digits, base = based.groups()
        radix = int(base) if base.isdigit() and len(base) < 4 else NUMBERS.get(base.lower(), 0)
        number = evaluate(sign + digits) if radix == 10 else None
        return Answer("number", number) if number else Answer("based", (sign + (digits.upper().lstrip("0") or "0"), radix))
    clock = CLOCK.fullmatch(plain.replace("\\", ""))
    if clock and (clock[2] or clock[4]):
        hours, minutes, seconds, half = clock.groups()
        hour = int(hours) % 12 + 12 * (half in "pP") if half else int(hours)
        return Answer("clock", (3600 * hour + 60 * int(minutes or 0) + int(seconds or 0), bool(half) or not 0 < hour < 13))
    terms = [evaluate(part) for part in plain.split(":")] if RATIO.fullmatch(plain) else []
    if terms and all(terms):
        return Answer("ratio", [term.value for term in terms if term])
    choice = CHOICE.fullmatch(plain)
    return Answer("text", choice[1]) if choice else None


def is_name(text: str) -> bool:
    """Returns whether one side of an equation is only a name, such as x, f(x), AB:CD or \\text{Area}."""
    pair = re.fullmatch(r"\\frac\{([A-Z]+)\}\{([A-Z]+)\}|(\S+?)\s*:\s*(\S+)", text)
    if pair:
        return all(is_name(part) for part in pair.groups() if part)
    words = {
        word if word.isupper() else word.lower()
        for word in re.findall(r"[a-zA-Z]+", re.sub(r"_\{(?:[^{}]|\{[^{}]*\})*\}", "", _unworded(text)))
    }
    in_order = not text.startswith("(") or not is_reversed(re.findall(r"(?<![\\a-z])[a-z]", text))
    return bool(NAME.fullmatch(text)) and in_order and not words & (FUNCTIONS | LIMITING | {"infty", "pi"} | set(NUMBERS))


def is_reversed(names: list[str]) -> bool:
    """Returns whether the names of coordinates are in reverse alphabetical order, as in (y, x). Returns False for (m, b), the
    usual names of a line's slope and intercept."""
    return len(set(names)) > 1 and names == sorted(names, reverse=True) and names != ["m", "b"]


def is_math(text: str) -> bool:
    """Returns whether math-verify's parser knows every symbol of a text. The parser would silently drop unknown symbols."""
    bare = re.sub(r"_\s*\{\s*\\text\s*\{[^{}]*\}\s*\}", "", re.sub(r"\\(?:begin|end)\{[a-z]*matrix\}", "|", text))
    braces = re.sub(r"[^{}()]", "", re.sub(r"\\.", "", bare).translate(str.maketrans("[]", "()")))
    while re.search(r"\{\}|\(\)", braces):
        braces = re.sub(r"\{\}|\(\)", "", braces)
    runs = [run for run in RUN.findall(bare) if run not in FUNCTIONS]
    is_product = all(len(run) <= 3 - run.isupper() and (run.lower() not in LIMITING or run == "pi") for run in runs)
    is_sentence = re.search(r"(?<![a-zA-Z\\])(?!(?:sin|cos|tan|log|ln)\s)[a-zA-Z]{2,}\s+[a-zA-Z\\\d]", bare)
    is_clean = (
        bare.strip()
        and not braces
        and not is_sentence
        and not re.search(r"(?<![_^\d])\d+\s+\d|\d\s*[_']|[?\"@#`%]|\\[$%{}]", bare)
    )
    return bool(is_clean and is_product and set(re.findall(r"\\([a-zA-Z]+)", bare)) <= SYMBOLS)


def letters(text: str) -> set[str]:
    """Returns the variables of a formula: its Latin and Greek letters, but not e, i and \\pi."""
    text = re.sub(r"\\(?:begin|end)\{[a-z]*matrix\}|\\text\{[^{}]*\}", "", text)
    runs = [run for run in RUN.findall(text) if run not in FUNCTIONS and run != "pi"]
    return ((set(re.findall(r"\\([a-zA-Z]+)", text)) & GREEK) | {letter for run in runs for letter in run}) - {"e", "i"}


def condensed(text: str) -> str:
    """Normalizes a text for literal comparison. The result has no \\text, no article before words, no braces around a single
    symbol, and only those spaces without which the text could be read differently. All other symbols stay as they are."""
    text = ARTICLE.sub("", text)
    text = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", re.sub(r"([_^])\s*(\\text\{[^{}]*\})", r"\1{\2}", text))
    text = text.strip('"“”` ').lstrip("+")
    text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"(?<!\\)\\[,;!: ]|~|\\limits(?![a-zA-Z])", " ", text)
    text = re.sub(r"(\\(?:sum|prod|int))\s*(\^\s*(?:\{[^{}]*\}|\\?\w+))\s*(_\s*(?:\{[^{}]*\}|\w))", r"\1\3\2", text)
    text = re.sub(r"([_^])\s*\{\s*(\\[a-zA-Z]+|[a-zA-Z]|\d)\s*\}", r"\1\2 ", text)
    return re.sub(r"(?<!\\)\s+", "", KEPT.sub(r"\1\\ ", text))
