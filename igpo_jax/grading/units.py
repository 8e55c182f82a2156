"""Reads units of measurement and other words that may follow a number. A unit has dimensions and a conversion factor. The words
are listed in words.txt and explained in docs/grading.md."""

import collections
import pathlib
import re
from fractions import Fraction

Unit = tuple[tuple[tuple[str, int], ...], Fraction]  # (dimension, exponent) pairs, and the conversion factor
NOUN: Unit = ((), Fraction(1))  # unit of counted nouns, which are not compared
CURRENCIES = ("\\$", "€", "£", "¥", "₹")
POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
SPEEDS = {"mph": ("mi", "h"), "kph": ("km", "h"), "fps": ("ft", "s")}
FRACTION = re.compile(
    r"(?!(?:mon|bir|dea|pa|ba|mo|mou|clo|my|leng|dep|wid|boo|nor|sou|too|you|tee)ths?).*ths?|.*illions?"
)  # words such as elevenths


def _read_words() -> tuple[dict[str, list[str]], dict[str, list[tuple[str, Fraction, int]]]]:
    """Reads words.txt. Returns {section: words of this section}, and {name of a unit: [(dimension, factor, power), ...]}."""
    sections, units = collections.defaultdict[str, list[str]](list), dict[str, list[tuple[str, Fraction, int]]]()
    for line in pathlib.Path(__file__).with_name("words.txt").read_text(encoding="utf-8").splitlines():
        section, _, words = line.partition(": ")
        kind, _, dimension = section.partition(" ")
        sections[section] += words.split()
        for names in map(str.split, words.split(", ") if kind in ("unit", "units", "scales") else ()):
            factor = Fraction(names.pop(0)) if kind != "units" else Fraction(1)
            forms = [name + s for name in names for s in ("", "s", "es") if not s or len(name) > 1]
            units |= {form: [(dimension or names[-1] if kind != "scales" else "", factor, 1)] for form in forms}
    return sections, units | {name: [units[over][0], (*units[under][0][:2], -1)] for name, (over, under) in SPEEDS.items()}


WORDS, _UNITS = _read_words()
SCALES = {name: parts[0][1] for name, parts in _UNITS.items() if not parts[0][0]}  # million: 1000000
UNITS = {name: parts for name, parts in _UNITS.items() if parts[0][0]}
NUMBERS = dict(zip(WORDS["numbers"] + WORDS["tens"], [*range(20), *range(20, 100, 10)], strict=True))
LIMITING = {*WORDS["limiting"], *NUMBERS, *SCALES}  # words that change the meaning of a number, so they are no units
NOUNS, AFTER = set(WORDS["nouns"]), set(WORDS["after"])


def read_unit(phrase: str, is_one: bool = False) -> Unit | None:
    """Returns the unit in the phrase after a number, such as "square feet", "km/h" or "^\\circ". Returns `NOUN` for a counted
    noun, such as "red marbles". The noun must be plural, or singular if `is_one` is True. Returns None for other phrases, such
    as "elevenths" or "or more"."""
    is_text = "\\text" in phrase
    phrase = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", re.sub(r"\^\s*\\circ\s*([CF]\b)?", r" degrees \1 ", phrase))
    phrase = re.sub(
        r"(?i)degrees\s+(c\b|celsius|f\b|fahrenheit)", lambda m: "celsius" if m[1][0] in "cC" else "fahrenheit", phrase
    )
    words = re.findall(r"\\\$|[a-zA-Z¢'-]+|/|\^\s*\{?\s*-?\d\s*\}?|\S", re.sub(r"\.(?=\s|$)", " ", phrase))
    for end in range(len(words), 0, -1):
        unit = _unit(words[:end], is_text)
        if unit and (end == len(words) or (words[end] in AFTER and _is_harmless(words[end:]))):
            return unit
    if words[:1] and words[0] in AFTER | {"/"} and _is_harmless(words[1:]):  # of $5 per hour
        return None if "cent" in words else NOUN
    words = [word for word in words if word.lower() not in POWERS and not word.startswith("^")]  # "square units", "units^2"
    ends = [place for place, word in enumerate(words) if place + 1 == len(words) or words[place + 1] in AFTER]
    is_noun = len(words) <= 6 and _is_harmless(words) and any(_is_plural(words[end].lower() + "s" * is_one) for end in ends)
    return NOUN if is_noun or phrase.strip() in ("st", "nd", "rd", "th") else None


def _unit(words: list[str], is_text: bool) -> Unit | None:
    powers, factor, sign, power, last = collections.Counter[str](), Fraction(1), 1, 1, None
    for word in words:
        is_prefixed = len(word) == 1 or re.fullmatch("[MNG].", word)  # Mg is not mg, Nm is not nm
        name = word if word in UNITS or is_prefixed else word.lower()
        if word in ("/", "per", "a", "an") and last:
            sign, last = -1, None
            continue
        if word.lower() in POWERS and not last:
            power = POWERS[word.lower()]
            continue
        if re.fullmatch(r"\^\D*\d\D*", word) and last:
            power = int(re.sub(r"[^\d-]", "", word)) - 1
        elif (
            name in UNITS
            and (not last or (is_text and len(word) == 1))
            and (len(word) > 1 or is_text or word in (*CURRENCIES, *"¢mgL"))
        ):
            last = UNITS[name]
        else:
            return None
        for dimension, size, direction in last:
            powers[dimension] += direction * sign * power
            factor *= size ** (direction * sign * power)
        power = 1
    return (tuple(sorted((name, n) for name, n in powers.items() if n)), factor) if last else None


def _is_harmless(words: list[str]) -> bool:
    parts = [part for word in words for part in re.split("[-']", word.lower())]
    is_limiting = any(
        {part, part.removesuffix("s"), part.removesuffix("es")} & LIMITING or FRACTION.fullmatch(part) for part in parts
    )
    return all(re.fullmatch(r"[a-zA-Z'-]+", word) for word in words) and not is_limiting


def _is_plural(word: str) -> bool:
    return word in NOUNS or (len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")))
