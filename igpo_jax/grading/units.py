"""Units of answers: a table with the dimension and factor of each unit, and the words that may follow a number without changing
its value (docs/grading.md)."""

import collections
import re
from fractions import Fraction
from typing import NamedTuple

# dimension, factor, names. Units of the same dimension are converted exactly.
TABLE = """
length 1 m meter metre | length 1/100 cm centimeter centimetre | length 1/1000 mm millimeter millimetre
length 1000 km kilometer kilometre | length 127/5000 in inch inches | length 381/1250 ft foot feet
length 1143/1250 yd yard | length 201168/125 mi mile | length 1/1000000000 nm nanometer
time 1 s sec second | time 1/1000 ms millisecond | time 60 min minute | time 3600 h hr hour | time 86400 day | time 604800 wk week
calendar 1 month mo | calendar 12 year yr | calendar 120 decade | calendar 1200 century centuries
mass 1 g gm gram | mass 1000 kg kilogram kilo | mass 1/1000 mg milligram | mass 1000000 ton tonne
mass 45359237/100000 lb pound | mass 45359237/1600000 oz ounce
volume 1 L l liter litre | volume 1/1000 ml mL milliliter millilitre | volume 1/10 dl deciliter
gallon 1 gal gallon | gallon 1/4 qt quart | gallon 1/8 pt pint | gallon 1/16 cup | gallon 1/256 tbsp tablespoon
gallon 1/768 tsp teaspoon | dollar 1 dollar usd buck | dollar 1/100 cent ¢ penny pennies | euro 1 euro eur | sterling 1 gbp
yen 1 yen | yuan 1 yuan rmb | rupee 1 rupee rs | angle 1 degree deg | radian 1 radian rad | celsius 1 celsius | fahrenheit 1 fahrenheit
energy 1 J joule | energy 1000 kJ kilojoule | power 1 W watt | power 1000 kW kilowatt | force 1 N newton | pressure 1 Pa pascal
frequency 1 Hz hertz | voltage 1 V volt | current 1 A ampere amp | temperature 1 K kelvin | charge 1 C coulomb
acre 1 acre | hectare 1 hectare | byte 1 byte | byte 1000 kb kilobyte | byte 1000000 mb megabyte | byte 1000000000 gb gigabyte
"""
SPEEDS = {"mph": ("mi", "h"), "kph": ("km", "h"), "kmh": ("km", "h"), "fps": ("ft", "s")}
LETTERS = set("mgshLlNJWVAKC")  # units of one letter, read only inside \text{...} or \mathrm{...}
CURRENCIES = {"\\$": "dollar", "€": "euro", "£": "gbp", "¥": "yen", "₹": "rupee"}
SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12, "lakh": 10**5,
          "crore": 10**7}  # fmt: skip
POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
TAIL = set("of old long tall wide high deep away apart each total altogether in left remaining per a an for from on at".split())
# Words that change what a number says, so that a phrase with one of them is no unit.
LIMITING = set(
    "zero one two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty sixty seventy eighty ninety "
    "half halves quarter quarters third thirds dozen dozens hundred hundreds thousand thousands million millions billion billions "
    "trillion trillions gross score scores tens lakh lakhs crore crores myriads "
    "more less fewer least most than not no never or and but plus minus over under above below squared cubed doubled tripled "
    "halved factorial inverse reciprocal mod modulo remainder base bases binary decimal octal hexadecimal root roots power powers log "
    "logarithm wrong false true incorrect except about approximately nearly almost roughly between negative positive pi percent "
    "percents percentage pct twice thrice double triple exponent is was are equals minuses pluses divided multiplied "
    "increased decreased added subtracted".split()
)
PARTS = re.compile(r"(?:th|rd|nd|st)s$")  # elevenths
NOUN_THS = set("months births deaths paths baths moths cloths mouths myths lengths depths widths booths".split())
IRREGULAR = set("people men women children feet teeth geese mice fish sheep deer oxen cattle dice".split())
ORDINAL = re.compile(r"st|nd|rd|th")

Unit = tuple[tuple[tuple[str, int], ...], Fraction]  # powers of dimensions, and the factor


class Phrase(NamedTuple):
    unit: Unit | None  # None for a counted noun, which is compared with nothing


def _table() -> dict[str, tuple[str, Fraction]]:
    names: dict[str, tuple[str, Fraction]] = {}
    for entry in TABLE.replace("\n", "|").split("|"):
        if entry.strip():
            dimension, factor, *words = entry.split()
            for word in words:
                names[word] = dimension, Fraction(factor)
                if len(word) > 2:
                    names[f"{word}s"] = names[word]
                    names[f"{word}es"] = names[word]
    names |= {name: names[name[:-1]] for name in ("lbs", "hrs", "mins", "secs", "yds", "kgs", "cms", "kms")}
    return names


UNITS = _table()
DIMENSION_OF_SYMBOL = {symbol: UNITS[name] for symbol, name in CURRENCIES.items()}


def read_unit(phrase: str) -> Phrase | None:
    """Returns the unit or counted noun that a phrase after a number states, such as "square feet", "km/h", "^\\circ" or "red
    marbles". Returns None if the phrase is neither, such as "elevenths" or "or more"."""
    in_text = "\\text" in phrase
    phrase = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", re.sub(r"\^\s*\{?\s*(\\circ)\s*\}?", r" \1 ", phrase)).strip()
    phrase = re.sub(r"\\circ\s*([CF])?(?![a-zA-Z])", lambda m: {"C": "celsius", "F": "fahrenheit"}.get(m[1], "degrees"), phrase)
    if ORDINAL.fullmatch(phrase):
        return Phrase(None)
    words = re.findall(r"[a-zA-Z¢'-]+|/|\^\s*\{?\s*-?\d\s*\}?|\S", re.sub(r"\.(?=\s|$)", " ", phrase))
    if words and words[0] == "degrees" and len(words) > 1 and words[1].lower() in ("celsius", "fahrenheit"):
        words = [words[1], *words[2:]]
    for end in range(len(words), 0, -1):
        unit = _unit(words[:end], in_text)
        rest = words[end:]
        if unit and (not rest or (rest[0] in TAIL and _harmless(rest))):
            return Phrase(unit)
    is_noun = bool(words) and len(words) <= 6 and _harmless(words) and any(_is_plural(word) for word in words)
    return Phrase(None) if is_noun and (len(words[0]) > 2 or words[0] in TAIL) else None


def _unit(words: list[str], in_text: bool) -> Unit | None:
    powers: collections.Counter[str] = collections.Counter()
    factor, sign, power, pending = Fraction(1), 1, 1, None

    def close() -> None:
        nonlocal factor, power, pending
        if pending:
            for dimension, size, direction in pending:
                powers[dimension] += direction * power
                factor *= size ** (direction * power)
        power, pending = 1, None

    for word in words:
        lower = word if word in UNITS else word.lower()
        if word in ("/", "per") or (word in ("a", "an") and pending):
            close()
            sign = -1
        elif lower in POWERS and not pending:
            power = POWERS[lower]
        elif word.startswith("^") and pending:
            power = int(re.sub(r"[^\d-]", "", word))
        elif lower in SPEEDS and not pending:
            over, under = (UNITS[name] for name in SPEEDS[lower])
            pending = [(*over, 1), (*under, -1)]
        elif lower in UNITS and not pending and (len(word) > 1 or in_text or word == "¢"):
            pending = [(*UNITS[lower], sign)]
        else:
            return None
    complete = pending is not None
    close()
    return (tuple(sorted((name, n) for name, n in powers.items() if n)), factor) if complete else None


def _harmless(words: list[str]) -> bool:
    return all(
        re.fullmatch(r"[a-zA-Z'-]+", word)
        and word.lower() not in LIMITING
        and not (PARTS.search(word.lower()) and word.lower() not in NOUN_THS)
        for word in words
    )


def _is_plural(word: str) -> bool:
    word = word.lower()
    return word in IRREGULAR or (len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")))
