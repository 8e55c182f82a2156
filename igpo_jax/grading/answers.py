"""Final answers in completions: where they stand, and whether two of them are the same.

`equal` decides in this order: plain numbers by their exact values, equal normalised texts, and for everything else
math-verify, which needs a process of its own with a deadline (tasks/reward_pool.py): it may take long, and in a thread it fails
silently.
"""

import functools
import logging
import re
import time
from fractions import Fraction

from igpo_jax.grading.exact import evaluate

LONGEST = 2000  # characters of an answer that math-verify is asked about
TAIL = 20_000  # characters of a completion that are read, from its end
DEEPEST = 50  # boxes in each other; the rest is left as it is
SECONDS = 2  # for reading, and again for comparing; math-verify takes whole seconds
BARE = re.compile(r"[^\s$\\{}]+")  # what a box without braces holds
SPECIAL = re.compile(r"<\|[^<>|]{1,40}\|>")
STATED = re.compile(r"####\s*([^#\n]+)")
# In 9-5 the minus belongs to no number.
NUMBER = re.compile(r"(?:(?<![\d)])[-−])?\$?(?:\d+(?:,\d+)*(?:\.\d+)?|\.\d+)(?:/\d+)?")
UNITS = re.compile(r"\\(?:text|mathrm|textrm|mbox|textbf)\s*\{([^{}]*)\}(?:\s*\^\s*(?:\{?\d\}?|\\circ))?")


# Where the answer stands


def boxes(text: str) -> list[str]:
    """Contents of all \\boxed{...} and \\fbox{...} whose braces close, outermost ones, in order."""
    return [text[begin:end] for begin, end in box_spans(text)]


def box_spans(text: str) -> list[tuple[int, int]]:
    """Where the contents that `boxes` returns stand."""
    found, end = [], 0
    closing = _closing_braces(text)
    for match in re.finditer(r"\\(?:boxed|fbox)\s*(\{)?", text):
        if match.start() < end:
            continue
        if not match[1]:  # \boxed 5
            bare = BARE.match(text, match.end())
            if bare and text[match.end() - 1].isspace():
                found.append((match.end(), bare.end()))
            continue
        close = closing.get(match.end() - 1)
        if close is not None:
            found.append((match.end(), close))
            end = close
    return found


def _closing_braces(text: str) -> dict[int, int]:
    """Opening braces and where they close, those that do; in one pass, for completions are full of open boxes."""
    pairs, opened = {}, []
    for place in re.finditer(r"\\[{}\\]|[{}]", text):  # escaped ones count for nothing
        if place[0] == "{":
            opened.append(place.start())
        elif place[0] == "}" and opened:
            pairs[opened.pop()] = place.start()
    return pairs


def extract(text: str, rule: str) -> str | None:
    """The final answer that a completion states, None where it states none.

    Args:
        rule: box: the last closed \\boxed{...}. number: GSM8K's, the number after the last ####, else in the last box,
            else in <answer>, else the last one. any: the last box, else <answer>, else after the last ####, else the
            last number.
    """
    text = SPECIAL.sub(" ", text[-TAIL:])
    boxed = boxes(text)
    box = _unwrapped(boxed[-1]) if boxed else None
    if rule == "box":
        return box
    stated = [found[0] for found in map(NUMBER.search, STATED.findall(text)) if found]
    tagged = re.findall(r"<answer>(.*?)(?:</answer>|$)", text, re.DOTALL)
    tag = tagged[-1].strip() if tagged and tagged[-1].strip() else None
    everywhere = [match[0] for match in NUMBER.finditer(text)]
    last = everywhere[-1] if everywhere else None
    if rule == "number":
        for place in (stated[-1] if stated else None, box, tag):
            number = place and NUMBER.search(place)
            if number:
                return number[0]
        return last
    return next((place for place in (box, tag, stated[-1] if stated else None, last) if place is not None), None)


def _unwrapped(content: str) -> str:
    for _ in range(DEEPEST):
        inner = boxes(content)
        if not inner:
            break
        content = inner[-1]
    return content


# Whether two answers are the same


def equal(gold: str, answer: str) -> bool:
    """Whether two bare answers are the same, such as "1/2" and "\\frac{1}{2}" or "10" and "10 \\text{ cm}".

    Raises:
        TimeoutError: math-verify took too long.
    """
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
    if all(times):
        return _seconds(times[0]) == _seconds(times[1])
    if _contradict(wanted, found):
        return False
    gold_box, answer_box = f"\\boxed{{{gold}}}", f"\\boxed{{{answer}}}"
    if boxes(gold_box) != [gold] or boxes(answer_box) != [answer]:  # 5} 6
        return False
    return _math_verify(gold_box, answer_box, formulas_only=True)


def equal_texts(gold: str, text: str) -> bool:
    """Whether a text states the answer that another text states; math-verify finds the two. For texts without a closed
    box, which `extract` cannot read: the answer is a formula in dollars, or a number."""
    gold, text = SPECIAL.sub(" ", gold[-TAIL:]), SPECIAL.sub(" ", text[-TAIL:])
    of_gold, of_text = boxes(gold), boxes(text)
    if len(of_gold) == len(of_text) == 1:
        return equal(of_gold[0], of_text[0])
    return _math_verify(gold, text)


def _as_numbers(wanted: str, found: str) -> bool | None:
    """What the exact values say; None where one of the two is no plain number. A percentage equals its number, and the
    hundredth of it."""
    (number, percent), (other, other_percent) = _number(wanted), _number(found)
    if number is None or other is None:
        return None
    if number.value == other.value:
        return True
    if percent != other_percent:
        return number.value == other.value / 100 if other_percent else number.value / 100 == other.value
    return _rounds_to(number, other) or _rounds_to(other, number)


NAME = re.compile(r"\\?[a-zA-Z]+(?:_\{?\w+\}?)?'?(?:\s*\(\s*\w+(?:\s*,\s*\w+)*\s*\))?")

FUNCTION = re.compile(r"\\?(?:sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|frac)")  # what they are of is not what they are


def _number(text: str):
    """(Number or None, whether it is a percentage) of an answer, without units and what stands before an = sign."""
    percent = re.search(r"\s*(?:\\?%|\\?\s*percent(?:age)?|pct)$", text)
    if percent:
        text = text[: percent.start()]
    number = evaluate(text)
    if number is None and "=" in text:  # x = 5 + 6 = 11, but not 2x + z = 1
        *before, last = text.split("=")
        if all((NAME.fullmatch(part.strip()) and not FUNCTION.search(part)) or evaluate(part) for part in before):
            number = evaluate(last)
    return number, percent is not None


def _rounds_to(decimal, exact) -> bool:
    """0.0833333 is one twelfth: a decimal of six places or more, rounded or cut off, of a number that has no end."""
    mantissa, point, places = decimal.literals[0].lower().partition("e")[0].replace(",", "").partition(".")
    if not point or len(places) < 6 or not decimal.value:
        return False
    scale = abs(decimal.value / Fraction(f"{mantissa or 0}.{places}"))  # of 2.314814 \times 10^{-3}
    denominator = exact.value.denominator
    for prime in (2, 5):
        while denominator % prime == 0:
            denominator //= prime
        while scale % prime == 0:
            scale /= prime
        while scale.denominator % prime == 0:
            scale *= prime
    if scale != 1 or denominator == 1:
        return False
    scale = abs(decimal.value / Fraction(f"{mantissa or 0}.{places}"))
    last, missing = scale * Fraction(1, 10 ** len(places)), abs(exact.value) - abs(decimal.value)
    return decimal.value * exact.value > 0 and (abs(missing) <= last / 2 or 0 < missing < last)


# Words that say how much, or the opposite, which no number may lose.
SCALES = set(
    "one two three four five six seven eight nine ten hundred thousand million billion trillion dozen gross half halve "
    "third quarter fourth fifth sixth seventh eighth ninth tenth twelfth sixteenth hundredth thousandth millionth "
    "billionth pi or and minus negative plus not over squared cubed factorial inverse mod modulo remainder alpha beta "
    "gamma delta theta lambda sigma phi omega log ln sin cos tan exp sqrt wrong except".split()
)
JOINING = {"or", "and"}
SHORT_UNITS = set(
    "mm cm dm km in ft yd mi mg kg lb lbs oz ml dl cl pt qt gal hr hrs min mins sec secs ms mph kph rpm hz khz am pm "
    "rad deg usd gb mb kb sq cu pts mol kj kw kwh pa kpa th st nd rd of an".split()
)
UNIT_WORDS = re.compile(
    r"(?<=[\d}])\s*(?:[a-zA-Z]{2,}\.?|\b[a-zA-Z]{1,4}\s*\^\s*\{?[23]\}?)"
    r"(?:[\s/]+(?:[a-zA-Z]{2,}\.?))*(?:\s*\^\s*\{?[23]\}?)?$"
)
STYLED = re.compile(
    r"\\(?:text(?:rm|bf|it|sf|tt|normal)?|math(?:rm|bf|it|sf|tt)|mbox|hbox|boldsymbol|bm)\s*"
    r"\{([^{}a-zA-Z\\]*|[eixyz])\}"
)


MIXED = re.compile(r"(?<![\w.,])(\d{1,99})\s+(\d{1,99})/(\d{1,99})(?![\w.,])")  # 5 1/2
SPACED = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:\s\d{3})+(?![\d.,])")  # 5 000


def _unstyled(text: str) -> str:
    """Signs, digits and variables out of \\text{-} and \\mathbf{7}, which are no words; math-verify would drop them,
    and the minus in \\(-5e0\\)."""
    text = re.sub(r"(?<!\\)\\[()\[\]]", " ", text)
    for _ in range(3):
        text = STYLED.sub(r"\1", text)
    return text.replace("\\textminus", "-")


def _is_unit(text: str) -> bool:
    """Whether words behind a number are its unit: 10 cm^2 and 10 men, but not 10xy^2 and 10 dozen."""
    for word in re.findall(r"[a-zA-Z]+", text):
        known = word.lower() in SHORT_UNITS or (word == "m" and "^" in text)
        noun = len(word) > 2 and re.search("[aeiou]", word) and (len(word) > 3 or text[0].isspace())
        if not known and not noun:
            return False
    return not _scales([text]) and "percent" not in text


def _clean(text: str) -> str:
    """An answer without what means nothing: special tokens, dollars, spacing, enclosing \\text, units, a full stop."""
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
        # After a number, words are its unit; "\\text{ and }" between two numbers is none.
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
    """For comparing letter by letter: one way to write a fraction, no spaces, no \\text around letters."""
    text = re.sub(r"\\[dtc]frac", r"\\frac", text)
    text = re.sub(r"\\(?:text|mathrm|textbf|mathbf|textrm)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\frac\s*(\w)\s*(\w)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"(?<=\d)\s+(?=\d)", r"\\ ", text)  # 5 1/2 is not 51/2
    return re.sub(r"(?<!\\)\s+", "", text)


RELATION = re.compile(r"\\(?:neq?|neg|not|leq?|geq?|lt|gt)(?![a-zA-Z])|[<>≠≤≥]")
CLOCK = re.compile(r"(\d{1,2}):(\d\d)(?::(\d\d))?\s*(?:\\text\s*\{)?\s*(?:([aApP])\.?\s*[mM]\.?)?\s*\}?")


def _seconds(clock: re.Match) -> int:
    hours, minutes, seconds, half = clock.groups()
    hours = int(hours) % 12 + 12 * (half in "pP") if half else int(hours)
    return 3600 * hours + 60 * int(minutes) + int(seconds or 0)


def _contradict(wanted: str, found: str) -> bool:
    """What math-verify does not see: a word that changes a number, a relation, a base, a sign before brackets."""
    if (_scales(UNITS.findall(wanted)) ^ _scales(UNITS.findall(found))) - JOINING:
        return True
    for number, other in ((wanted, found), (found, wanted)):
        if _number(number)[0] is not None and (RELATION.search(other) or re.search(r"\d[a-zA-Z]{1,3}$", other)):
            return True  # 10ab, whose letters `_clean` did not take for a unit
    base = re.compile(r"([0-9A-Za-z]+)_\{?(\d+)\}?")
    bases = [base.fullmatch(re.sub(r"\\text|\\mathrm|\s", "", text)) for text in (wanted, found)]
    if any(bases):
        digits = [match.groups() if match else (text, None) for match, text in zip(bases, (wanted, found), strict=True)]
        return digits[0] != digits[1]
    return re.match(r"-\s*\(.*,", wanted) is None and re.match(r"-\s*\(.*,", found) is not None


WILD = (
    r"\d{400,}",  # first: with so many digits in a row the others take seconds to look
    r"\^\s*\{?\s*[-+]?\d{5,}",  # 2^{1000000000}
    r"\d\s*\^\s*\{[^{}]*\^",  # towers
    r"(?<!\d)\d{4,}\s*!|!\s*!\s*!",
    r"\\binom\s*\{?\s*\d{5,}|\\binom\s*\{\s*\d+\s*\}\s*\{\s*\d{5,}",
    r"\\(?:sum|prod|int)",
    r"\\sqrt\s*\[\s*\d{4,}",
    r"(?:[(\[{]\s*){30}",
    r"(?:\\[dt]?frac\s*\{[^{}]*\}\s*\{\s*){8}",
)


def _math_verify(gold: str, text: str, formulas_only: bool = False) -> bool:
    """math-verify's verdict, but of plain numbers our own. False where it cannot read one of the two.

    Args:
        formulas_only: where it cannot read a formula, it looks for no number in it: else the box of "6 | 5" says 5.
    """
    if any(re.search(pattern, part) for pattern in WILD for part in (gold, text)):
        return False
    if len(gold) > LONGEST and len(boxes(gold)) == 0 or any(len(box) > LONGEST for box in boxes(gold) + boxes(text)):
        return False
    import math_verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it logs every time-out
    wanted, found = _parsed(_braced(gold), formulas_only), _parse(_braced(text), formulas_only)
    if len(wanted) > 1 and len(found) > 1:
        verdict = _as_numbers(_clean(str(wanted[-1])), _clean(str(found[-1])))
        if verdict is not None:
            return verdict
    return bool(_in_time(math_verify.verify, wanted, found, timeout_seconds=SECONDS))


def _braced(text: str) -> str:
    """\\frac\\pi 2, which math-verify misreads, with braces."""
    return re.sub(r"\\([dt]?frac)\s*(\\[a-zA-Z]+|\w)\s*(\\[a-zA-Z]+|\w)", r"\\\1{\2}{\3}", text)


def _parse(text: str, formulas_only: bool) -> list:
    import math_verify

    if formulas_only:
        formulas = [math_verify.LatexExtractionConfig()]
        return _in_time(math_verify.parse, text, extraction_config=formulas, parsing_timeout=SECONDS)
    return _in_time(math_verify.parse, text, parsing_timeout=SECONDS)


def _in_time(function, *arguments, **options):
    """math-verify gives an empty result when its time is up; raises TimeoutError then, so that this is no verdict."""
    begin = time.monotonic()
    result = function(*arguments, **options)
    if not result and time.monotonic() - begin >= SECONDS:
        raise TimeoutError(f"math-verify took more than {SECONDS} s")
    return result


@functools.lru_cache(maxsize=1024)
def _parsed(gold: str, formulas_only: bool) -> list:
    """Of the known answer, which a group of completions shares."""
    return _parse(gold, formulas_only)
