"""Finds the final answer of a completion, and decides whether two answers are equal.

`equal` compares plain numbers by value. It compares other answers as normalized texts and, if these differ, with math-verify.
math-verify may be slow, and its time limits silently fail in threads. Therefore, answers are graded in separate processes
(tasks/reward_pool.py)."""

import functools
import logging
import math
import re
import time
from fractions import Fraction
from typing import Any

from igpo_jax.grading.exact import Number, evaluate

MAX_ANSWER_CHARS = 2000  # longer answers are not given to math-verify
TAIL_CHARS = 20_000  # characters that are read at a completion's end
MAX_NESTED_BOXES = 50
MATH_VERIFY_SECONDS = 2  # limit for each parsing and each comparison; math-verify accepts only whole seconds
BARE = re.compile(r"[^\s$\\{}]+")  # content of a box without braces
SPECIAL = re.compile(r"<\|[^<>|]{1,40}\|>")
AFTER_HASHES = re.compile(r"####\s*([^#\n]+)")
NUMBER = re.compile(r"(?:(?<![\d)])[-−])?\$?(?:\d+(?:,\d+)*(?:\.\d+)?|\.\d+)(?:/\d+)?")  # 9-5 holds 9 and 5, not -5
UNITS = re.compile(r"\\(?:text|mathrm|textrm|mbox|textbf)\s*\{([^{}]*)\}(?:\s*\^\s*(?:\{?\d\}?|\\circ))?")
NAME = re.compile(r"\\?[a-zA-Z]+(?:_\{?\w+\}?)?'?(?:\s*\(\s*\w+(?:\s*,\s*\w+)*\s*\))?")
FUNCTION = re.compile(r"\\?(?:sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|frac)")  # "sin x = 5" does not state x
RELATION = re.compile(r"\\(?:neq?|neg|not|leq?|geq?|lt|gt)(?![a-zA-Z])|[<>≠≤≥]")
CLOCK = re.compile(r"(\d{1,2}):(\d\d)(?::(\d\d))?\s*(?:\\text\s*\{)?\s*(?:([aApP])\.?\s*[mM]\.?)?\s*\}?")
# Words that change the value of a number next to them, and so are not its unit.
SCALES = set(
    "one two three four five six seven eight nine ten hundred thousand million billion trillion dozen gross half halve third "
    "quarter fourth fifth sixth seventh eighth ninth tenth twelfth sixteenth hundredth thousandth millionth billionth pi or "
    "and minus negative plus not over squared cubed factorial inverse mod modulo remainder alpha beta gamma delta theta lambda "
    "sigma phi omega log ln sin cos tan exp sqrt wrong except".split()
)
JOINING = {"or", "and"}
SHORT_UNITS = set(
    "mm cm dm km in ft yd mi mg kg lb lbs oz ml dl cl pt qt gal hr hrs min mins sec secs ms mph kph rpm hz khz am pm rad deg "
    "usd gb mb kb sq cu pts mol kj kw kwh pa kpa th st nd rd of an".split()
)
UNIT_WORDS = re.compile(
    r"(?<=[\d}])\s*(?:[a-zA-Z]{2,}\.?|\b[a-zA-Z]{1,4}\s*\^\s*\{?[23]\}?)(?:[\s/]+(?:[a-zA-Z]{2,}\.?))*(?:\s*\^\s*\{?[23]\}?)?$"
)
STYLED = re.compile(
    r"\\(?:text(?:rm|bf|it|sf|tt|normal)?|math(?:rm|bf|it|sf|tt)|mbox|hbox|boldsymbol|bm)\s*\{([^{}a-zA-Z\\]*|[eixyz])\}"
)
MIXED = re.compile(r"(?<![\w.,])(\d{1,99})\s+(\d{1,99})/(\d{1,99})(?![\w.,])")  # 5 1/2
SPACED = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:\s\d{3})+(?![\d.,])")  # 5 000
# Expressions that math-verify could take seconds to evaluate
WILD = (
    r"\d{400,}",  # must be first, because the other patterns take seconds on so many consecutive digits
    r"\^\s*\{?\s*[-+]?\d{5,}",  # 2^{1000000000}
    r"\d\s*\^\s*\{[^{}]*\^",  # towers of powers
    r"(?<!\d)\d{4,}\s*!|!\s*!\s*!",
    r"\\binom\s*\{?\s*\d{5,}|\\binom\s*\{\s*\d+\s*\}\s*\{\s*\d{5,}",
    r"\\(?:sum|prod|int)",
    r"\\sqrt\s*\[\s*\d{4,}",
    r"(?:[(\[{]\s*){30}",
    r"(?:\\[dt]?frac\s*\{[^{}]*\}\s*\{\s*){8}",
)


def boxes(text: str) -> list[str]:
    """Returns the contents of all outermost, closed \\boxed{...} and \\fbox{...} in a text, in order."""
    return [text[begin:end] for begin, end in box_spans(text)]


def box_spans(text: str) -> list[tuple[int, int]]:
    """Returns (begin, end) of the content of each outermost, closed \\boxed{...} and \\fbox{...} in a text, in order."""
    found: list[tuple[int, int]] = []
    closing, end = _closing_braces(text), 0
    for match in re.finditer(r"\\(?:boxed|fbox)\s*\{?", text):
        if match.start() < end:
            continue
        bare = BARE.match(text, match.end()) if text[match.end() - 1].isspace() else None  # \boxed 5
        if bare:
            found.append((match.end(), bare.end()))
        elif match.end() - 1 in closing:
            end = closing[match.end() - 1]
            found.append((match.end(), end))
    return found


def _closing_braces(text: str) -> dict[int, int]:
    """Maps the position of each opening brace to the position of its closing brace. Makes a single pass over the text, because
    a completion may contain thousands of unclosed boxes."""
    pairs: dict[int, int] = {}
    opened: list[int] = []
    for place in re.finditer(r"\\[{}\\]|[{}]", text):  # the first alternative skips escaped braces
        if place[0] == "{":
            opened.append(place.start())
        elif place[0] == "}" and opened:
            pairs[opened.pop()] = place.start()
    return pairs


def extract(text: str, rule: str) -> str | None:
    """Returns the final answer of a completion, or None if the completion has no answer. `rule` names a list of candidates. The
    answer is the first candidate that exists.

    box: the content of the last closed \\boxed{...}.
    number (GSM8K): the number after the last ####, the number in the last box, the number in <answer>, the last number.
    any: the content of the last box, the content of <answer>, the number after the last ####, the last number."""
    text = SPECIAL.sub(" ", text[-TAIL_CHARS:])
    boxed = boxes(text)
    box = _unwrapped(boxed[-1]) if boxed else None
    if rule == "box":
        return box
    hashed = _last([found[0] for found in map(NUMBER.search, AFTER_HASHES.findall(text)) if found])
    tag = (_last(re.findall(r"<answer>(.*?)(?:</answer>|$)", text, re.DOTALL)) or "").strip() or None
    last = _last([match[0] for match in NUMBER.finditer(text)])
    if rule == "number":
        numbers = (NUMBER.search(place) for place in (hashed, box, tag) if place)
        return next((number[0] for number in numbers if number), last)
    return next((place for place in (box, tag, hashed, last) if place is not None), None)


def _last(found: list[str]) -> str | None:
    return found[-1] if found else None


def _unwrapped(content: str) -> str:
    for _ in range(MAX_NESTED_BOXES):
        inner = boxes(content)
        if not inner:
            break
        content = inner[-1]
    return content


def equal(gold: str, answer: str) -> bool:
    """Returns whether two answers are equal, such as "1/2" and "\\frac{1}{2}", or "10" and "10 \\text{ cm}". Raises
    TimeoutError if math-verify took more than `MATH_VERIFY_SECONDS`."""
    gold, answer = _unstyled(_unwrapped(gold)), _unstyled(_unwrapped(answer))
    wanted, found = _clean(gold), _clean(answer)
    if not wanted or not found:
        return wanted == found
    verdict = _as_numbers(wanted, found)
    if verdict is not None:
        return verdict
    if _condensed(wanted) == _condensed(found):
        return True
    times = [CLOCK.fullmatch(text) for text in (wanted, found)]
    if times[0] and times[1]:
        return _seconds(times[0]) == _seconds(times[1])
    if _contradict(wanted, found):
        return False
    gold_box, answer_box = f"\\boxed{{{gold}}}", f"\\boxed{{{answer}}}"
    if boxes(gold_box) != [gold] or boxes(answer_box) != [answer]:  # unbalanced braces, such as 5} 6
        return False
    if max(len(gold), len(answer)) > MAX_ANSWER_CHARS or _is_costly(gold_box) or _is_costly(answer_box):
        return False
    return _same_parsed(_parse_gold(gold_box), _parse(answer_box))


def _as_numbers(wanted: str, found: str) -> bool | None:
    """Returns whether two answers are equal as numbers, or None if one of them is not a plain number. Two numbers are equal
    if their exact values are equal, or if one `_rounds_to` the other. 50% equals both 50 and 0.5."""
    (number, percent), (other, other_percent) = _number(wanted), _number(found)
    if number is None or other is None:
        return None
    if number.value == other.value:
        return True
    if percent != other_percent:
        return number.value == other.value / 100 if other_percent else number.value / 100 == other.value
    return _rounds_to(number, other) or _rounds_to(other, number)


def _number(text: str) -> tuple[Number | None, bool]:
    """Returns the value of an answer (None if the answer is not a number), and whether the answer is a percentage. Ignores a
    name before an equals sign, as in x = 5."""
    percent = re.search(r"\s*(?:\\?%|\\?\s*percent(?:age)?|pct)$", text)
    if percent:
        text = text[: percent.start()]
    number = evaluate(text)
    if number is None and "=" in text:  # x = 5 + 6 = 11, but not 2x + z = 1
        *before, last = text.split("=")
        if all((NAME.fullmatch(part.strip()) and not FUNCTION.search(part)) or evaluate(part) for part in before):
            number = evaluate(last)
    return number, percent is not None


def _rounds_to(decimal: Number, exact: Number) -> bool:
    """Returns whether rounding or truncating `exact` gives `decimal`, as for 1/12 and 0.0833333. Returns False if `decimal` has
    fewer than six decimal places, or if `exact` is a finite decimal."""
    mantissa, point, places = decimal.literals[0].lower().partition("e")[0].replace(",", "").partition(".")
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


def _unstyled(text: str) -> str:
    """Removes markup, as in \\text{-}, \\mathbf{7}, \\text{x} and \\(...\\), because math-verify would drop a minus sign
    inside the markup."""
    text = re.sub(r"(?<!\\)\\[()\[\]]", " ", text)
    for _ in range(3):
        text = STYLED.sub(r"\1", text)
    return text.replace("\\textminus", "-")


def _is_unit(text: str) -> bool:
    """Returns whether the text after a number is a unit: true for 10 cm^2 and 10 men, false for 10xy^2 and 10 dozen."""
    for word in re.findall(r"[a-zA-Z]+", text):
        known = word.lower() in SHORT_UNITS or (word == "m" and "^" in text)
        noun = len(word) > 2 and re.search("[aeiou]", word) and (len(word) > 3 or text[0].isspace())
        if not known and not noun:
            return False
    return not _scales([text]) and "percent" not in text


def _clean(text: str) -> str:
    """Removes special tokens, dollar signs, spacing, an enclosing \\text, units, and a final full stop from an answer."""
    text = SPECIAL.sub("", text).strip()
    text = re.sub(r",\s*\\!\s*", ",", text)
    text = re.sub(r"\\(?:displaystyle|left|right|,|!|;|:|quad|qquad)(?![a-zA-Z])|~", " ", text)
    text = text.replace("\\$", "").replace("$", "").replace("€", "").replace("£", "").strip()
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?|°|\\degree", "", text)
    text = re.sub(r"^(-?)\s*(?:\\(?:approx|sim|simeq)(?![a-zA-Z])|≈)", r"\1", text)
    text = re.sub(r"(?<=[^.])[.,;]$", "", text.strip()).strip()
    text = MIXED.sub(lambda m: f"{m[1]}\\frac{{{m[2]}}}{{{m[3]}}}" if int(m[2]) < int(m[3]) else m[0], text)
    text = SPACED.sub(lambda m: re.sub(r"\s", "", m[0]), text)
    whole = UNITS.fullmatch(text)
    if whole:
        text = whole[1].strip()
    elif re.search(r"\d", text):
        # \text after a number contains the number's unit, but \text between two numbers may contain "and".
        without = UNITS.sub(" ", text).strip()
        if evaluate(re.sub(r"\\?%$", "", without)) is not None and not _scales(UNITS.findall(text)):
            text = without
        unit = UNIT_WORDS.search(text)
        if unit and evaluate(text[: unit.start()]) is not None and _is_unit(unit[0]):
            text = text[: unit.start()]
    return text.strip()


def _scales(texts: list[str]) -> set[str]:
    words = [word for text in texts for word in re.findall(r"[a-z]+", text.lower())]
    return SCALES & {form for word in words for form in (word, word.removesuffix("s"))}


def _condensed(text: str) -> str:
    """Normalizes an answer for textual comparison. Writes all fractions in one form, and removes spaces and \\text around
    letters."""
    text = re.sub(r"\\[dtc]frac", r"\\frac", text)
    text = re.sub(r"\\(?:text|mathrm|textbf|mathbf|textrm)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\frac\s*(\w)\s*(\w)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"(?<=\d)\s+(?=\d)", r"\\ ", text)  # 5 1/2 is not 51/2
    return re.sub(r"(?<!\\)\s+", "", text)


def _seconds(clock: re.Match) -> int:
    hours, minutes, seconds, half = clock.groups()
    hours = int(hours) % 12 + 12 * (half in "pP") if half else int(hours)
    return 3600 * hours + 60 * int(minutes) + int(seconds or 0)


def _contradict(wanted: str, found: str) -> bool:
    """Returns whether two answers differ in a number word, a relation sign, a number base, or a sign before brackets.
    math-verify ignores such differences."""
    if (_scales(UNITS.findall(wanted)) ^ _scales(UNITS.findall(found))) - JOINING:
        return True
    for number, other in ((wanted, found), (found, wanted)):
        if _number(number)[0] is not None and (RELATION.search(other) or re.search(r"\d[a-zA-Z]{1,3}$", other)):
            return True  # such as 10ab, whose letters `_clean` did not remove as a unit
    base = re.compile(r"([0-9A-Za-z]+)_\{?(\d+)\}?")
    bases = [base.fullmatch(re.sub(r"\\text|\\mathrm|\s", "", text)) for text in (wanted, found)]
    if any(bases):
        digits = [match.groups() if match else (text, None) for match, text in zip(bases, (wanted, found), strict=True)]
        return digits[0] != digits[1]
    return re.match(r"-\s*\(.*,", wanted) is None and re.match(r"-\s*\(.*,", found) is not None


def _is_costly(text: str) -> bool:
    return any(re.search(pattern, text) for pattern in WILD)


def _same_parsed(wanted: list, found: list) -> bool:
    """Returns whether two results of math-verify's parser are equal. Compares plain numbers by exact value, and all other
    results with math-verify."""
    import math_verify

    if len(wanted) > 1 and len(found) > 1:
        verdict = _as_numbers(_clean(str(wanted[-1])), _clean(str(found[-1])))
        if verdict is not None:
            return verdict
    return bool(_in_time(math_verify.verify, wanted, found, timeout_seconds=MATH_VERIFY_SECONDS))


def _parse(box: str) -> list:
    import math_verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it logs every time-out
    # By default math-verify would search an unreadable formula for a number, and find 5 in "6 | 5".
    formulas = [math_verify.LatexExtractionConfig()]
    return _in_time(math_verify.parse, _braced(box), extraction_config=formulas, parsing_timeout=MATH_VERIFY_SECONDS)


_parse_gold = functools.lru_cache(maxsize=1024)(_parse)  # all completions of a group share the correct answer


def _braced(text: str) -> str:
    """Adds the missing braces to LaTeX such as \\frac\\pi 2, which math-verify misreads."""
    return re.sub(r"\\([dt]?frac)\s*(\\[a-zA-Z]+|\w)\s*(\\[a-zA-Z]+|\w)", r"\\\1{\2}{\3}", text)


def _in_time(function, *arguments, **options) -> Any:
    """Calls a function of math-verify. Raises TimeoutError if the function reaches its time limit, because the empty result
    that math-verify returns in that case does not mean that the answer is wrong."""
    begin = time.monotonic()
    result = function(*arguments, **options)
    if not result and time.monotonic() - begin >= MATH_VERIFY_SECONDS:
        raise TimeoutError(f"math-verify took more than {MATH_VERIFY_SECONDS} s")
    return result
