"""Makes wrong answers from correct ones, of the kinds in `WRONG`. Each is wrong beyond doubt.

A function of `WRONG` takes a random generator and the golds by shape. It returns (file, gold, wrong answer), or None if its
draw may be right. The gold is a correct answer of a data file, or made of one (a unit added, two joined to an interval).
"""

import random
import re
from collections.abc import Callable
from fractions import Fraction

from answer_meaning import (
    RELATION,
    RELATIONS,
    UNITS,
    Gold,
    differ_in_order,
    plain,
    read,
    same,
    split,
    surely_differ,
    tidy,
    value,
)  # fmt: skip

Golds = dict[str, list[Gold]]
Made = tuple[str, str, str] | None

LETTERS = "xyzabcnkmpqrst"
FRONT = (
    "at least", "at most", "less than", "more than", "fewer than", "greater than", "no more than", "not", "minus", "negative",
    "twice", "half of", "half", "double", "triple", "three times", "ten times", "a quarter of", "a third of", "over", "under",
    "above", "below", "up to", "nearly", "almost", "anything but", "the square of", "the square root of", "the cube of",
    "the reciprocal of", "the negative of", "one more than", "one less than", "two plus", "the opposite of", "a hundred",
    "a dozen times", "square root of", "cube root of", "any number except", "never", "not equal to", "the logarithm of",
)  # fmt: skip
FRONT_SIGNS = (
    r"\neq %s", r"\ne %s", r"\ge %s", r"\geq %s", r"\le %s", "<%s", ">%s", r"\pm %s", r"\sqrt{%s}", r"\log %s", r"\ln %s",
    r"\frac{1}{%s}", r"\sin %s", "2^{%s}", "2 - %s", r"\sqrt[3]{%s}", r"\not= %s", r"\lt %s",
)  # fmt: skip
BEHIND = (
    "elevenths", "halves", "thirds", "tenths", "hundredths", "sevenths", "twelfths", "lakh", "crore", "dozen", "hundred",
    "thousand", "million", "billion", "trillion", "or more", "or less", "or fewer", "or greater", "and up",
    "at least", "at most", "doubled", "tripled", "halved", "squared", "cubed", "factorial", "times two", "times ten",
    "times itself", "minus one", "minus 1", "plus one", "plus two", "and a half", "and a quarter", "point five", "false",
    "is false", "is wrong", "is incorrect", "is not the answer", "(wrong)", "th root", "th root of 2", "below zero",
    "out of 97", "divided by 2", "over two", "to the fourth power", "or 97", "and 97", "choose 2", "hundred thousand",
    "dozens", "millions",
)  # fmt: skip
BEHIND_SIGNS = (
    "k", "!", r"\ldots", r"\cdots", ", \\ldots", r" + \ldots", "^2", "^3", "x", "y", "n", r"\pi", "i", r"\sqrt{2}", r" \pm 1",
    "^{-1}", " x^2", "/97", r"\div 97", " + 1", " - 1", r"\cdot 97", "ab", r"\theta", "e", r" \cdot 10^3", "e3", " : 97",
)  # fmt: skip
NEGATIONS = ("not", "anything but", "never", "everything except", "all but", "neither", "certainly not", "anything other than")
COMPARISONS = ("at least", "at most", "less than", "more than", "not", "twice", "half of", "greater than", "anything but")
NAMES = (
    ("f(x)", "g(x)", "h(x)"), ("f(2)", "f(3)", "f(4)"), ("x_1", "x_2", "x_3"), ("a_n", "b_n", "a_{n+1}"),
    ("P(A)", "P(B)", "P(C)"),
    (r"\angle ABC", r"\angle ABD", r"\angle BCD"), ("AB", "AC", "BC"), (r"\sin x", r"\cos x", r"\tan x"),
    (r"\text{Area}", r"\text{Perimeter}", r"\text{Volume}"), (r"\text{area}", r"\text{length}", r"\text{width}"),
    ("f(x)", "f'(x)", "f^{-1}(x)"), (r"\alpha", r"\beta", r"\gamma"), ("E[X]", r"\text{Var}(X)", "P(X)"), ("x^2", "x", "x^3"),
    (r"\text{mean}", r"\text{median}", r"\text{mode}"), ("|x|", "x", "|y|"), ("S_5", "S_6", "S_7"), ("r", "d", "h"),
)  # fmt: skip
DIGITS = "0123456789ABCDEFGHIJ"


def pick(draw: random.Random, golds: Golds, *shapes: str) -> Gold:
    """Draws a gold. Each of the shapes that occur is equally likely."""
    return draw.choice(golds[draw.choice([shape for shape in shapes if golds.get(shape)])])


def number(draw: random.Random, golds: Golds, least: int = 3, whole: bool = False) -> tuple[Gold, Fraction]:
    """Draws a number of at least `least`, and by `whole` an integer without separators."""
    for _ in range(1000):
        gold = pick(draw, golds, "number")
        found = plain(gold.text)
        if found is not None and found >= least and (not whole or gold.text.isdigit()):
            return gold, found
    raise ValueError(f"no number of at least {least} among the golds")


def numbers(draw: random.Random, golds: Golds, count: int) -> tuple[Gold, list[str]]:
    """Draws distinct numbers, as texts from the smallest on, and the gold that one of them is from."""
    found: dict[Fraction, Gold] = {}
    for _ in range(1000):
        gold, exact = number(draw, golds, least=-1000)
        if len(gold.text) < 16 and "," not in gold.text and "$" not in gold.text:
            found[exact] = gold
        if len(found) == count:
            return gold, [tidy(found[exact].text) for exact in sorted(found)]
    raise ValueError(f"fewer than {count} different numbers among the golds")


def styled(draw: random.Random, words: str) -> str:
    """Writes words plainly or as LaTeX text."""
    return (
        draw.choice(["%s", "%s", r"\text{%s}", r"\text{%s }", r"\mathrm{%s}~", r"\textbf{%s}", r"\mbox{%s }", r"\textit{%s}\,"])
        % words
    )


def with_unit(draw: random.Random, text: str, unit: str) -> str:
    """Writes a number with a unit of `UNITS`."""
    spelling = draw.choice(UNITS[unit][2])
    if unit == "deg":
        return draw.choice([rf"{text}^\circ", rf"{text}^{{\circ}}", rf"{text} \text{{ degrees}}", f"{text} degrees"])
    if unit in ("dollar",) and draw.random() < 0.3:
        return rf"\${text}"
    name, power, digit = spelling.partition("^")
    ways = [rf"{text} \text{{ {name}}}{power}{digit}", rf"{text}\text{{ {name}}}{power}{digit}", f"{text} {spelling}"]
    return draw.choice([*ways, rf"{text}\,\mathrm{{{name}}}{power}{digit}"] if " " not in name else ways)


def unit(draw: random.Random, golds: Golds) -> Made:
    if golds.get("unit") and draw.random() < 0.35:
        gold = pick(draw, golds, "unit")
        stated, (text, name) = gold.text, gold.parts
    else:
        gold, _ = number(draw, golds)
        text, name = tidy(gold.text).replace(r"\$", ""), draw.choice(list(UNITS))
        stated = with_unit(draw, text, name)
    exact = plain(text)
    if not exact:
        return None
    dimension = UNITS[name][0]
    near = [other for other in UNITS if other != name and UNITS[other][0] == dimension]
    other = draw.choice(near if near and draw.random() < 0.4 else [other for other in UNITS if other != name])
    if UNITS[other][0] == dimension and draw.random() < 0.3:  # converted with a wrong factor
        factor = UNITS[name][1] / UNITS[other][1] * draw.choice([Fraction(1, 10), 10, 100])
        if factor != 1 and (exact * factor).denominator == 1:
            return gold.file, stated, with_unit(draw, str(exact * factor), other)
    return gold.file, stated, with_unit(draw, text, other)


def name(draw: random.Random, golds: Golds) -> Made:
    if golds.get("relation") and draw.random() < 0.3:
        gold = pick(draw, golds, "relation")
        left, relation, right = gold.parts
        if relation != "=" or not re.fullmatch("[a-zA-Z]", left) or left in right:
            return None
        other = draw.choice([letter for letter in LETTERS if letter != left.lower() and letter not in right])
        return gold.file, gold.text, f"{other} = {right}"
    if draw.random() < 0.2:  # two names exchanged
        gold, (one, two) = numbers(draw, golds, 2)
        a, b = draw.sample(LETTERS, 2)
        return gold.file, f"{a} = {one}, {b} = {two}", draw.choice([f"{a} = {two}, {b} = {one}", f"{b} = {one}, {a} = {two}"])
    gold = pick(draw, golds, "number", "formula")
    text = tidy(gold.text)
    free = [letter for letter in LETTERS if letter not in re.sub(r"\\[a-z]+", "", text)]
    one, two = draw.sample(draw.choice([*NAMES, free, free, free]), 2)
    if (
        "d" in (one, two)
        and "d" in text
        or gold.shape == "formula"
        and re.search("[a-zA-Z]", re.sub(r"\\[a-zA-Z]+", "", one)) is None
    ):
        return None
    return gold.file, f"{one} = {text}", f"{two} = {text}"


def base(draw: random.Random, golds: Golds) -> Made:
    if golds.get("base") and draw.random() < 0.3:
        gold = pick(draw, golds, "base")
        stated, (digits, of) = gold.text, gold.parts
        if not digits.isdigit():
            return None
    else:
        gold, exact = number(draw, golds, 11, whole=True)
        if exact > 10**6:
            return None
        of, digits, rest = str(draw.randint(2, 9)), "", int(exact)
        while rest:
            rest, last = divmod(rest, int(of))
            digits = f"{last}{digits}"
        stated = draw.choice([f"{digits}_{of}", f"{digits}_{{{of}}}"])
    if len(digits.lstrip("0")) < 2:
        return None
    other = draw.choice([str(b) for b in range(2, 13) if str(b) != of])
    answers = [f"{digits}_{other}", f"{digits}_{{{other}}}", f"({digits})_{other}", f"{digits} in base {other}", digits]
    answers += [rf"{digits}_{{\text{{{other}}}}}", rf"\text{{{digits}}}_{other}", rf"{digits} \text{{ base }} {other}"]
    if draw.random() < 0.7:
        return gold.file, stated, draw.choice(answers)
    answers = answers[:4] if other != "10" else []
    if set(digits) <= set("01"):
        answers += [f"{digits} in binary", rf"{digits} \text{{ in binary}}", f"0b{digits}"]
    answers += [f"{digits} in hexadecimal", f"0x{digits}"]
    return gold.file, digits, draw.choice(answers)


def word_before(draw: random.Random, golds: Golds) -> Made:
    chance = draw.random()
    if chance < 0.1 and (golds.get("word") or golds.get("choice")):
        gold = pick(draw, golds, "word", "choice")
        if gold.parts[0] == "neither":
            return None
        return gold.file, gold.text, f"{styled(draw, draw.choice(NEGATIONS))} {gold.text}"
    if chance < 0.25 and (golds.get("formula") or golds.get("unit")):
        gold = pick(draw, golds, "formula", "unit")
        if not value(gold.parts[0]):
            return None
        return gold.file, gold.text, f"{styled(draw, draw.choice(COMPARISONS))} {gold.text}"
    if chance < 0.3 and (golds.get("tuple") or golds.get("list")):
        gold = pick(draw, golds, "tuple", "list")
        return gold.file, gold.text, f"{styled(draw, draw.choice(NEGATIONS[:2]))} {gold.text}"
    gold, _ = number(draw, golds)
    if draw.random() < 0.2:
        return gold.file, gold.text, draw.choice(FRONT_SIGNS) % tidy(gold.text)
    words = draw.choice(FRONT)
    words = words.capitalize() if draw.random() < 0.15 else words
    if gold.text.isdigit() and draw.random() < 0.2:
        return gold.file, gold.text, rf"\text{{{words} {gold.text}}}"
    return gold.file, gold.text, f"{styled(draw, words)} {draw.choice(['%s', '%s', '$%s$']) % gold.text}"


def word_behind(draw: random.Random, golds: Golds) -> Made:
    gold, exact = number(draw, golds)
    if exact in (3, 97) or gold.text.startswith(r"\$"):
        return None
    if draw.random() < 0.25:
        sign = draw.choice(BEHIND_SIGNS)
        if exact.denominator > 1 and (not gold.text.endswith("}") or "ldots" in sign or "cdots" in sign):
            return None
        return gold.file, gold.text, gold.text + sign
    words = draw.choice(BEHIND)
    if words.startswith(("th root", "point", "choose")) and not gold.text.isdigit():
        return None
    if gold.text.isdigit() and draw.random() < 0.2:
        return gold.file, gold.text, rf"\text{{{gold.text} {words}}}"
    space = draw.choice(["", " "]) if draw.random() < 0.3 else " "
    written = styled(draw, words)
    return (
        gold.file,
        gold.text,
        gold.text + (space if "\\" in written else " ") + written.removesuffix("~").replace("mathrm", "text"),
    )


def sign(draw: random.Random, golds: Golds) -> Made:
    gold = pick(
        draw, golds, "number", "number", "formula", "tuple", "list", "unit", "percent", "interval", "relation", "matrix"
    )
    text = gold.text
    places = [match.start() for match in re.finditer(r"(?<![-−\w{}\\^_.\s$])\s*(?=[\d\\a-z(])", text)]
    places = [place for place in places if not re.match(r"\s*\\(?:left|right|text|infty|begin|end|cup|[^a-z$])", text[place:])]
    minuses = [match.start() for match in re.finditer("-", text)]
    if minuses and (draw.random() < 0.6 or not places):
        place = draw.choice(minuses)
        before, after = text[:place].rstrip(), text[place + 1 :]
        plus = bool(before) and (before[-1].isalnum() or before[-1] in ")}")
        answer = text[:place] + "+" * plus + after
    elif places:
        place = draw.choice(places if gold.shape in ("tuple", "list", "matrix", "interval") else places[:1])
        mark = draw.choice(["-", "-", "−", r"\text{-}", "- "]) if gold.shape == "number" else "-"
        answer = text[:place] + mark + text[place:]
        if mark != "-":
            return (gold.file, text, answer) if surely_differ(text, text[:place] + "-" + text[place:]) else None
    else:
        return None
    return (gold.file, text, answer) if _differs_in_place(text, answer) else None


def _differs_in_place(gold: str, answer: str) -> bool:
    """Returns whether two answers of one shape differ at a place where order counts, or as sets where it does not."""
    (shape, parts), (other_shape, others) = read(gold), read(answer)
    if shape in ("list", "set", "base", "unit") or shape != other_shape:
        return (
            shape == other_shape
            and parts[1:] * (shape == "unit") == others[1:] * (shape == "unit")
            and surely_differ(gold, answer)
        )
    if shape == "relation":
        return _other_equation(parts, others)
    if shape == "matrix":
        parts, others = (tuple(entry for row in rows for entry in row.split("&")) for rows in (parts, others))
    if shape == "interval":
        parts, others = parts[1:3], others[1:3]
    known = shape in ("number", "formula", "tuple", "percent", "interval", "matrix")
    return known and len(parts) == len(others) and differ_in_order(parts, others)


def _other_equation(parts: tuple[str, ...], others: tuple[str, ...]) -> bool:
    """Returns whether two equations have different solutions: their differences of both sides are no multiples."""
    if parts[1] != others[1]:
        return False
    sides = [value(f"({left}) - ({right})") for left, _, right in (parts, others)]
    if not all(isinstance(side, tuple) for side in sides):
        return False
    (a, b), (c, d) = sides
    return abs(a * d - b * c) > 1e-6 * (abs(a * d) + abs(b * c))


def digit(draw: random.Random, golds: Golds) -> Made:
    gold = pick(
        draw, golds, "number", "number", "formula", "tuple", "list", "unit", "percent", "interval", "base", "matrix", "relation"
    )
    places = [match.start() for match in re.finditer(r"\d", gold.text)]
    if not places:
        return None
    text, place, other = gold.text, draw.choice(places), draw.choice(DIGITS[:10])
    way = draw.choice(["changed", "changed", "added", "removed", "moved"])
    if way == "changed":
        answer = text[:place] + other + text[place + 1 :]
    elif way == "added":
        answer = text[:place] + other + text[place:]
    elif way == "removed":
        answer = text[:place] + text[place + 1 :]
    else:
        answer = moved(draw, text) if gold.shape in ("number", "unit", "percent") else text
    if re.search(r"\d,\d", text) or not answer:  # 1,234 without a digit is a list
        return None
    values = plain(text), plain(answer)
    if None not in values and abs(values[0] - values[1]) < abs(values[0]) / 10**5 and values[0].denominator > 1:
        return None  # a rounded value
    return (gold.file, text, answer) if _differs_in_place(text, answer) else None


def moved(draw: random.Random, text: str) -> str:
    """Moves or sets the decimal point of the first number."""
    match = re.search(r"\d+(?:\.\d+)?", text)
    if not match or "frac" in text or "/" in text:
        return text
    exact = Fraction(match[0]) * draw.choice([Fraction(1, 10), Fraction(1, 100), 10, 100])
    whole, places = divmod(abs(exact) * 10**6, 10**6)
    return text[: match.start()] + f"{whole}.{int(places):06}".rstrip("0").rstrip(".") + text[match.end() :]


def order(draw: random.Random, golds: Golds) -> Made:
    gold = pick(draw, golds, "tuple", "tuple", "interval", "union", "matrix", "number")
    if gold.shape == "number":
        if draw.random() < 0.5:
            gold, (one, two) = numbers(draw, golds, 2)
            return gold.file, f"({one}, {two})", f"({two}, {one})"
        gold, (one, two, *_) = numbers(draw, golds, 3)
        return gold.file, f"({one}, {two}, {_[0]})", draw.choice([f"({two}, {one}, {_[0]})", f"({_[0]}, {two}, {one})"])
    if gold.shape == "union":
        pieces = list(gold.parts)
        place = draw.randrange(len(pieces))
        ends = split(pieces[place][1:-1])
        pieces[place] = f"{pieces[place][0]}{ends[1]}, {ends[0]}{pieces[place][-1]}"
        return gold.file, gold.text, r" \cup ".join(pieces)
    if gold.shape == "interval":
        opening, low, high, closing = gold.parts
        return gold.file, gold.text, f"{opening}{high}, {low}{closing}"
    rows = list(gold.parts)
    one, two = draw.sample(range(len(rows)), 2) if len(rows) > 1 else (0, 0)
    swapped = rows.copy()
    swapped[one], swapped[two] = rows[two], rows[one]
    if gold.shape == "tuple":
        return (gold.file, gold.text, f"({', '.join(swapped)})") if differ_in_order(tuple(rows), tuple(swapped)) else None
    if "&" in rows[0] and draw.random() < 0.5:  # columns
        swapped = [" & ".join(row.split("&")[1::-1] + row.split("&")[2:]) for row in rows]
    answer = r"\begin{pmatrix} " + r" \\ ".join(swapped) + r" \end{pmatrix}"
    return (gold.file, gold.text, answer) if _differs_in_place(gold.text, answer) else None


def endpoint(draw: random.Random, golds: Golds) -> Made:
    gold = pick(draw, golds, "interval", "union", "number", "number")
    if gold.shape == "number":
        gold, (low, high) = numbers(draw, golds, 2)
        opening, closing = draw.choice(["[]", "[)", "(]", "()"])
        stated = f"{opening}{low}, {high}{closing}"
        if stated[0] + stated[-1] == "()":  # otherwise a point
            stated = f"{low} < x < {high}"
        pieces = [f"{opening}{low}, {high}{closing}"]
    else:
        stated, pieces = gold.text, [tidy(piece) for piece in tidy(gold.text).split(r"\cup")]
    ends = [end for piece in pieces for end in split(piece[1:-1])]
    place, right = draw.randrange(len(pieces)), draw.random() < 0.5
    piece = pieces[place]
    end = split(piece[1:-1])[right]
    if "infty" in end or ends.count(end) > 1:
        return None
    other = {"(": "[", "[": "(", ")": "]", "]": ")"}
    piece = piece[:-1] + other[piece[-1]] if right else other[piece[0]] + piece[1:]
    if len(pieces) == 1 and "infty" not in piece and draw.random() < 0.4:
        low, high = split(piece[1:-1])
        signs = [r"\le" if mark in "[]" else "<" for mark in (piece[0], piece[-1])]
        return gold.file, stated, f"{low} {signs[0]} x {signs[1]} {high}"
    if piece[0] + piece[-1] == "()" and len(pieces) == 1:
        piece = rf"\left{piece[:-1]}\right)"
    return gold.file, stated, r" \cup ".join(pieces[:place] + [piece] + pieces[place + 1 :])


def relation(draw: random.Random, golds: Golds) -> Made:
    signs = ["<", ">", r"\le", r"\ge", r"\ne", r"\leq", r"\geq", r"\neq"]
    chance = draw.random()
    if chance < 0.25 and golds.get("relation"):
        gold = pick(draw, golds, "relation")
        match = RELATION.search(gold.text)
        others = [sign for sign in signs if RELATIONS[sign] != RELATIONS[match[0]]]
        return gold.file, gold.text, f"{gold.text[: match.start()]}{draw.choice(others)} {gold.text[match.end() :].lstrip()}"
    if chance < 0.45:
        gold, (low, high) = numbers(draw, golds, 2)
        signs = [draw.choice(["<", r"\le"]) for _ in range(2)]
        others = draw.choice(
            [[other, signs[1]] for other in ("<", r"\le") if other != signs[0]] + [[">", ">"], [r"\ge", r"\ge"]]
        )
        return gold.file, f"{low} {signs[0]} x {signs[1]} {high}", f"{low} {others[0]} x {others[1]} {high}"
    gold, _ = number(draw, golds)
    text, letter = tidy(gold.text), draw.choice(LETTERS)
    if chance < 0.6:
        return gold.file, gold.text, draw.choice(["", f"{letter} "]) + f"{draw.choice(signs)} {text}"
    one = draw.choice([*signs, "="])
    two = draw.choice([sign for sign in [*signs, "="] if RELATIONS[sign] != RELATIONS[one]])
    stated, answer = f"{letter} {one} {text}", f"{letter} {two} {text}"
    if RELATIONS[one] in "<><=>=" and "=" != one and draw.random() < 0.3:  # sides exchanged, the sign not
        answer = f"{text} {one} {letter}"
    return gold.file, stated, answer


def element(draw: random.Random, golds: Golds) -> Made:
    gold = pick(draw, golds, "list", "set", "letters", "number", "number", "union", "tuple")
    if gold.shape == "number":
        gold, parts = numbers(draw, golds, draw.randint(2, 5))
        draw.shuffle(parts)
        three_digits = any(re.fullmatch(r"\d{3}", part) for part in parts)  # 54, 803 might be read as 54,803
        write = r"\{%s\}" if three_digits else draw.choice([r"\{%s\}", "%s"])
        stated = write % ", ".join(parts)
    else:
        parts, stated = list(gold.parts), gold.text
        write = {"set": r"\{%s\}", "tuple": "(%s)", "letters": r"\text{%s}"}.get(gold.shape, "%s")
    if gold.shape == "union":
        parts.pop(draw.randrange(len(parts)))
        return gold.file, stated, r" \cup ".join(parts)
    known = [value(part) for part in parts]
    if gold.shape != "letters" and any(same(a, b) for place, a in enumerate(known) for b in known[:place]):
        return None
    if gold.shape == "letters":
        new = draw.choice([letter for letter in "ABCDEFGH" if letter not in parts])
    else:
        new = tidy(number(draw, golds, -1000)[0].text)
        if "," in new or "$" in new or any(same(value(new), leaf) for leaf in known):
            return None
    way, place = draw.choice(["left out", "added", "changed"]), draw.randrange(len(parts))
    if gold.shape == "tuple" and way != "changed" and len(parts) < 3:
        return None
    others = parts[:place] + {"left out": [], "added": [parts[place], new], "changed": [new]}[way] + parts[place + 1 :]
    return gold.file, stated, write % ", ".join(others)


def swap(draw: random.Random, golds: Golds) -> Made:
    shapes = [shape for shape in golds if shape != "other"]
    gold = pick(draw, golds, *shapes)
    other = pick(draw, golds, *(shapes if draw.random() < 0.5 else [gold.shape]))
    return (gold.file, gold.text, other.text) if surely_differ(gold.text, other.text) else None


def false_chain(draw: random.Random, golds: Golds) -> Made:
    gold, exact = number(draw, golds)
    text, other = tidy(gold.text), number(draw, golds)[0]
    near = exact + draw.choice([1, -1, 2, -2, 10])
    wrong = draw.choice([tidy(other.text), str(near)])
    found = plain(wrong)
    if found is None or found == exact:
        return None
    ways = [
        f"{text} = {wrong}", f"{wrong} = {text}", f"x = {text} = {wrong}", f"x = {wrong} = {text}",
        f"{text} = {wrong} = {text}",
    ]  # fmt: skip
    if abs(found - exact) > max(exact / 10, Fraction(1, 2)):
        ways += [rf"{text} \approx {wrong}", rf"{wrong} \approx {text}", rf"x = {text} \approx {wrong}"]
    if exact.denominator == 1:
        ways += [
            f"{exact - 2} + 1 = {text}", f"2 + {exact - 1} = {text}", rf"2 \cdot {exact} = {text}",
            f"{text} = {exact} + 1",
        ]  # fmt: skip
    return gold.file, gold.text, draw.choice(ways)


WRONG: dict[str, Callable[[random.Random, Golds], Made]] = {
    "unit": unit, "name": name, "base": base, "word before": word_before, "word behind": word_behind, "sign": sign,
    "digit": digit, "order": order, "endpoint": endpoint, "relation": relation, "element": element, "swap": swap,
    "false chain": false_chain,
}  # fmt: skip
