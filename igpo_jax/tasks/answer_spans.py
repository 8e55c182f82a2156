"""Finds the character spans of a worked solution that state its answer. With inpainting.exclude_answer, hints do not show these
spans (docs/method.md section 6)."""

import functools
import itertools
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction

from igpo_jax.grading.answers import box_spans
from igpo_jax.grading.equality import equal
from igpo_jax.grading.units import WORDS

log = logging.getLogger(__name__)

Span = tuple[int, int]

# Answers of at most SHORT characters are found in any text, in any notation. Longer ones are found only unchanged if they have
# more than MOST_ANSWER characters, or if the product of the lengths of answer and text exceeds MOST_WORK, because the time to
# search for a long answer is proportional to this product.
MOST_COMPARED = 100  # texts of a solution that are compared by `equal`; further ones count as answers
SLOW, MOST_SLOW = 0.5, 60.0  # seconds of one comparison of answers, and of all slow ones in a process
SHORT, MOST_ANSWER, MOST_WORK = 50, 1000, 10**7

NUMBER_WORDS = [*WORDS["numbers"], WORDS["tens"][0]]  # zero to twenty
VALUE = re.compile(r"([-+]?)(?:\\[dtc]?frac(\d|{\d+})(\d|{\d+})|(\d+)/(\d+)|(?=\.?\d)([\d,]*(?:\.\d+)?))(%?)")
STYLE = re.compile(r"\\(?:text(?:bf|rm|it)?|mbox|math(?:rm|bf))\s*\{([^{}]*)\}")
RELATION = r"(?:=|\\(?:approx|equiv|simeq|cong|in)(?![a-zA-Z])|[≈≡])"
STATEMENT = re.compile(  # what precedes a result, including spaces, markup and opening signs of formulas
    rf"(?:{RELATION}|####|<answer>|(?i:\banswer)(?:\*\*)?\s*(?:is|was|:)(?:\s*:)?)"
    r"(?:[\s&:*~]|\\[,;:!() \[]|\\(?:displaystyle|q?quad)(?![a-zA-Z])|\\(?:boxed|fbox)\s*{|\$(?!\.?\d))*"
)
CLAUSE = re.compile(  # brackets, LaTeX's spaces, and signs that end a clause outside of brackets
    rf"(?P<open>\\?{{|[(\[]|\\begin)|(?P<close>\\?}}|[)\]]|\\end)|(?P<space>\\[,;:! $%&])|{RELATION}|\\\\|\\[()\[\]]"
    r"|\\(?:neq?|[lg]eq?|[lg]t)(?![a-zA-Z])|[$\n<>&≠≤≥]|\*\*|[.,;:!?](?=\s|$|\*)"
)
REMARK = re.compile(  # a unit or other text after a result
    r"\\(?:text\w*|mbox|q?quad|hspace|[bp]?mod|implies|to|(?:R|r|Longr)ightarrow)(?![a-zA-Z])|(?<=\d)\s+\("
    r"|(?<=[\d\s])[a-zA-Z]{2,}|(?<=\s)a\s|[-/](?=[a-zA-Z]{2})"
)
ARITHMETIC = re.compile(
    r"(?:[-+*/(){}\d\s.−×÷·]|\^\{?\d|\\(?:[dt]?frac|cdot|times|div|left|right)(?![a-zA-Z])|\\[,;:! ])+[\d)}]"
)
SYMBOL = re.compile(r"\\[a-z]+|[a-z]|\d+(?:\.\d+)?")
NOTATION = re.compile(r"\\(?:[dtc]?frac|text(?:bf|rm|it)?|mbox|math(?:rm|bf)|cdot|times|left|right|q?quad|boxed|displaystyle)")
OPENING = re.compile(r"\\\$|\$+|\\[(\[]")  # an escaped dollar sign, or what begins a formula
CLOSING = re.compile(r"\$+|\\[)\]]")
CONTENT = re.compile(r"(?:[^\s.,;:*]|\.(?=\d))(?:.*[^\s.,;:*&\\])?", re.DOTALL)
SENTENCE_END = re.compile(r"[.!?](?<!Mr\.)(?<!Mrs\.)(?<!Ms\.)(?<!Dr\.)(?<!St\.)(?:[\"'”)*$}\]]|\\[\])])*\s+(?=[^a-z\s])")
OPERAND = re.compile(r"[\w)}\]]\s?\Z")  # before a minus sign that is not the sign of the number after it
WORD = re.compile(r"(?<![\\\w])[a-zA-Z]\w*\Z")
SIDE_BEGIN = re.compile(r"(?:^|[\n&,;:=$({\[≈]|(?<![\\a-zA-Z])[a-zA-Z]{2,}|\\[\\(\[])\s*\Z")
SIDE_END = re.compile(rf"\s*&?{RELATION}")


@functools.lru_cache(maxsize=1 << 14)  # the stages load the same files
def answer_spans(text: str, answer: str) -> tuple[Span, ...]:
    """Returns the character spans of a solution that state its answer, as sorted and disjoint (begin, end) pairs. A span is
    found if its text equals the answer (see `states`) and is one of the following:

    - the content of a \\boxed{...} or \\fbox{...}
    - the result after a relation sign, "answer is", "answer:", "####" or "<answer>"
    - the whole left side of a relation
    - any number, word or formula of the last sentence or line

    If the answer is too long (`MOST_ANSWER`, `MOST_WORK`), returns only the spans where the answer occurs character by
    character."""
    if _is_long(text, answer):
        return tuple(_unchanged(text, answer))
    ended = text.rstrip()
    sentences = [match.end() for match in SENTENCE_END.finditer(ended)]
    last = min(ended.rfind("\n") + 1, sentences[-1] if sentences else 0)
    candidates = list(_candidates(text, 3 * len(answer) + 60, last))
    compared = itertools.count()

    def compare(answer: str, content: str) -> bool:
        return next(compared) >= MOST_COMPARED or _patient_equal(answer, content)

    verdicts = {text[slice(*span)]: False for span in candidates}
    verdicts = {content: states(content, answer, compare) for content in verdicts}
    found = [span for span in candidates if verdicts[text[slice(*span)]]]
    for begin, end in occurrences(text, answer):
        if begin >= last or (SIDE_END.match(text, end) and SIDE_BEGIN.search(text[max(0, begin - 20) : begin])):
            found.append((begin, end))
    return tuple(merged(found))


def occurrences(text: str, answer: str) -> list[Span]:
    """Returns the character spans of an answer in a text, as sorted and disjoint (begin, end) pairs. If the answer is a number,
    finds all numbers of the same value, in any notation. Otherwise, finds the text of the answer, with any spacing. Ignores
    matches that are part of a longer number or word. If the answer is too long (`MOST_ANSWER`, `MOST_WORK`), returns only the
    spans where the answer occurs character by character."""
    if _is_long(text, answer):
        return _unchanged(text, answer)
    pattern, found = _pattern(answer), []
    for match in pattern.finditer(text) if pattern else ():
        begin, end = match.span()
        if match.lastgroup and match["sign"] and max(_values(answer)) >= 0:
            if not OPERAND.search(text[max(0, begin - 2) : begin]):  # 5 is in 9-5, but not in "it is -5"
                continue
            begin = match.end("sign")
        if not (match.lastgroup and WORD.search(text[max(0, begin - 20) : begin])):
            found.append((begin, end))
    return merged(found)


def _is_long(text: str, answer: str) -> bool:
    return len(answer) > max(SHORT, min(MOST_ANSWER, MOST_WORK // max(len(text), 1)))


def _unchanged(text: str, answer: str) -> list[Span]:
    found, begin = [], text.find(answer)
    while begin >= 0:
        found.append((begin, begin + len(answer)))
        begin = text.find(answer, begin + len(answer))
    return merged(found)


def states(text: str, answer: str, compare: Callable[[str, str], bool] | None = None) -> bool:
    """Returns whether a short text equals an answer. Numbers are compared by value. Other pairs are compared by `equal`, which
    may take milliseconds, or by `compare(answer, text)` if this function is given. To save time, this comparison is made only
    in two cases: the answer is a number and the text is an arithmetic expression, or the answer is not a number and has the
    same symbols as the text. Returns True if `equal` times out."""
    wanted, found = _values(answer), _values(text)
    if text == answer or wanted & found:
        return True
    if found or len(text) > 3 * len(answer) + 60:
        return False
    comparable = ARITHMETIC.fullmatch(text) if wanted else _symbols(text) == _symbols(answer)
    return bool(comparable) and (compare or _patient_equal)(answer, text)


_slow_seconds = 0.0  # of all slow comparisons in this process


def _patient_equal(answer: str, text: str) -> bool:
    """Returns whether a text equals an answer, as decided by `equal`. Returns True if the comparison times out. After more than
    `MOST_SLOW` seconds of slow comparisons in this process, returns True without a comparison, because a file of problems can
    cause thousands of slow comparisons."""
    global _slow_seconds
    if _slow_seconds > MOST_SLOW:
        return True
    begin = time.monotonic()
    try:
        return equal(answer, text)
    except TimeoutError:
        return True
    finally:
        seconds = time.monotonic() - begin
        if seconds > SLOW:
            _slow_seconds += seconds
            if _slow_seconds > MOST_SLOW:
                log.warning("comparing answers takes long; from now on, texts that may be answers count as answers in hints")


def merged(spans: Iterable[Span]) -> list[Span]:
    """Returns the spans in ascending order, after merging those that overlap or touch."""
    found: list[Span] = []
    for begin, end in sorted(spans):
        if found and begin <= found[-1][1]:
            begin, end = found[-1][0], max(end, found.pop()[1])
        found.append((begin, end))
    return found


def in_brackets(text: str, spans: Iterable[Span]) -> str:
    """Returns the text with [[double brackets]] around each of the given spans. The spans must be disjoint."""
    parts, place = [], 0
    for begin, end in sorted(spans):
        parts.append(f"{text[place:begin]}[[{text[begin:end]}]]")
        place = end
    return "".join(parts) + text[place:]


def formulas(text: str, after: int = 0) -> Iterator[Span]:
    """Yields (begin, end) of the content of each formula that is written as $...$, $$...$$, \\(...\\) or \\[...\\]. Skips
    formulas that end at or before the position `after`."""
    place, ends = 0, {"$": 0, r"\)": 0, r"\]": 0}  # the next place of each closing sign, -1 if there is none
    while opening := OPENING.search(text, place):
        begin = place = opening.end()
        if opening[0] == r"\$":
            continue
        sign = {r"\(": r"\)", r"\[": r"\]"}.get(opening[0], "$")
        if 0 <= ends[sign] <= begin:  # not for every opening, because a text may have thousands without an end
            ends[sign] = text.find(sign, begin + 1)
        closing = CLOSING.match(text, ends[sign]) if ends[sign] > 0 else None
        if closing:
            place = closing.end()
            if place > after:
                yield begin, closing.start()


def _candidates(text: str, limit: int, last: int) -> Iterator[Span]:
    places = box_spans(text)
    places += formulas(text, last)
    for match in STATEMENT.finditer(text):
        begin = match.end()
        end = _clause_end(text, begin, min(len(text), begin + limit))
        remark = REMARK.search(text[begin:end])
        places += [(begin, end), (begin, begin + remark.start())] if remark else [(begin, end)]
    for begin, end in places:
        content = CONTENT.search(text, begin, end)
        if content:
            yield content.span()


def _clause_end(text: str, begin: int, limit: int) -> int:
    depth = 0
    for match in CLAUSE.finditer(text, begin, limit):
        depth += bool(match["open"]) - bool(match["close"])
        currency = match[0] == "$" and match.start() == begin
        if depth < 0 or (depth == 0 and not match.lastgroup and not currency):
            return match.start()
    return limit


@functools.lru_cache(maxsize=4096)
def _values(text: str) -> frozenset[Fraction]:
    """Returns the possible values of a number that is given as text: one value, or two values for a percentage (50 and 0.5 for
    50%). Returns an empty set if the text is not a number."""
    if len(text) > 100:
        return frozenset()
    text = re.sub(r"^\s*[a-zA-Z](?:_\w)?\s*=", "", text)  # the name in x = 5
    text = re.sub(r"\{,\}|,\\!", ",", STYLE.sub(lambda style: "" if re.search(r"\d", text) else style[1], text))
    text = re.sub(r"\\[,;:! ]|\^\{?\\circ\}?|[\s$€£°]|\\(?=[$%])", "", text).replace("−", "-").rstrip(".")
    if text.lower() in NUMBER_WORDS:
        return frozenset([Fraction(NUMBER_WORDS.index(text.lower()))])
    match = VALUE.fullmatch(text)
    if not match or ("," in text and not re.fullmatch(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?%?", text)):
        return frozenset()
    sign, top, bottom, over, under, plain, percent = match.groups()
    over, under = (part and part.strip("{}") for part in (top or over, bottom or under))
    if under and not int(under):
        return frozenset()
    value = Fraction(int(over), int(under)) if under else Fraction(plain.replace(",", ""))
    value = -value if sign == "-" else value
    return frozenset([value, value / 100] if percent else [value])


@functools.lru_cache(maxsize=1024)
def _pattern(answer: str) -> re.Pattern | None:
    """Returns a regular expression that finds an answer in a text. For a number, the expression matches all its notations. For
    any other answer, it matches the text of the answer with any spacing. Returns None for an empty answer."""
    values = _values(answer)
    if values:
        shares = [rf"{_notations(100 * value)}\s?\\?%" for value in values if value.denominator > 1]
        numbers = "|".join([*shares, *map(_notations, values)])
        words = "|".join([word for number, word in enumerate(NUMBER_WORDS) if number in values] or ["(?!)"])
        return re.compile(
            rf"(?<![\d.])(?<!\d,(?=\d{{3}}(?!\d)))(?:(?P<sign>[-−]{'' if max(values) < 0 else '?'})"
            rf"(?P<number>\\?[$€£]?(?:{numbers}))(?!\d|\.\d|,\d{{3}}(?!\d))|(?<![\w\\-])(?i:{words})(?![\w-]))"
        )
    bare = STYLE.sub(r"\1", answer).replace("$", "").strip()
    parts = [re.escape(part) for part in re.findall(r"\\[a-zA-Z]+|\w+|\S", bare)]
    text = r"\s*".join(r"\\[dtc]?frac" if part == r"\\frac" else part for part in parts)
    case = "i" if len(bare) > 1 and bare.isalpha() else ""
    return re.compile(rf"(?<![\w\\])(?{case}:{text})(?!(?<=\w)\w)") if parts else None


def _notations(value: Fraction) -> str:
    """Returns a regular expression that matches the absolute value of a number, written as a decimal number or as a
    fraction."""
    top, bottom = abs(value.numerator), value.denominator
    fraction = rf"{top}/{bottom}|\\[dtc]?frac\s*{{?{top}}}?\s*{{?{bottom}}}?"
    places = next((places for places in range(8) if 10**places % bottom == 0), None)
    if places is None:
        return f"(?:{fraction})"
    whole, part = divmod(top * 10**places // bottom, 10**places)
    digits = f"{whole:,}".replace(",", r"(?:,|\{,\}|,\\!\s*)?") if whole else "" if part else "0"
    decimals = rf"\.{part:0{places}}0*" if part else r"(?:\.0+)?"
    return rf"(?:0*{digits}{decimals}{'|' + fraction if places else ''})"


@functools.lru_cache(maxsize=64)
def _symbols(text: str) -> list[str]:
    """Returns the sorted letters, numbers and LaTeX commands of a text. Leaves out the number 1, and commands that only change
    the notation, such as \\frac and \\text."""
    return sorted(part for part in SYMBOL.findall(text.casefold()) if part != "1" and not NOTATION.fullmatch(part))
