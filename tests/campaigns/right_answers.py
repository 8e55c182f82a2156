"""Makes other notations of correct answers, of the kinds in `RIGHT`. Each is right beyond doubt.

A function of `RIGHT` takes a random generator and the golds by shape. It returns (file, gold, right answer), or None if its
draw is not suitable. The gold is a correct answer of a data file, or made of one (a unit added, two joined to an interval).
"""

import random
import re
from collections.abc import Callable
from fractions import Fraction

from answer_meaning import UNITS, plain, tidy
from wrong_answers import LETTERS, Golds, Made, number, numbers, pick, with_unit

ALL = ("number", "number", "formula", "tuple", "interval", "list", "matrix", "union", "relation", "percent")
NOUNS = ("students", "apples", "books", "ways", "people", "marbles", "tickets", "cookies", "integers", "triangles")


def spacing(draw: random.Random, golds: Golds) -> Made:
    gold = pick(draw, golds, *ALL)
    text = gold.text.strip()
    spaces = draw.choice([r"\,", r"\;", "~", r"\!", r"\:", r"\ ", " ", r"\quad "])
    places = [match.end() for match in re.finditer(r"[-+=,(\[](?!\\!)|(?<=[\da-z}])(?=[-+=])|^", text)]
    places = [place for place in places if not _inside_name(text, place)]
    for place in sorted(draw.sample(places, min(len(places), draw.randint(1, 2))), reverse=True):
        text = text[:place] + spaces + text[place:]
    return gold.file, gold.text, text + draw.choice(["", "", spaces])


def _inside_name(text: str, place: int) -> bool:
    """Returns whether a space at this place would break a number, a command or its argument."""
    before, after = text[:place], text[place:]
    thousands = re.search(r"\d(?:,|\{,)$", before) and re.match(r"(?:\\[!,]|\})?\s*\d{3}", after)
    command = re.search(r"\\(?:left|right|[dt]?frac|sqrt|begin|phantom)?$|\\(?:left|right)[(\[]$|\^$|\\sqrt\[$", before)
    exponent = re.search(r"\de-?$", before)
    return bool(thousands or command or exponent or re.match(r"\\?\}", after) and before.endswith("{,"))


def style(draw: random.Random, golds: Golds) -> Made:
    gold = pick(draw, golds, "number", "number", "formula", "tuple", "interval", "word", "choice")
    text = gold.text.strip()
    ways = [
        r"{\bf %s}", r"\large %s", r"\displaystyle %s", r"\boldsymbol{%s}", r"\Large{%s}", r"{\displaystyle %s}",
        r"\bm{%s}",
    ]  # fmt: skip
    if gold.shape in ("word", "choice"):
        text = gold.parts[0]
        ways = [
            r"\text{%s}", r"\textbf{%s}", r"\mathrm{%s}", r"\textrm{%s}", r"\mbox{%s}", r"\textit{%s}", r"\mathbf{%s}",
            "%s",
        ]  # fmt: skip
    elif gold.text.isdigit():
        ways += [
            r"\text{%s}", r"\mathbf{%s}", r"\textbf{%s}", r"\mathrm{%s}", r"{\rm %s}", r"\mathit{%s}", r"\mbox{%s}",
            r"\mathsf{%s}",
        ]  # fmt: skip
    return gold.file, gold.text, draw.choice(ways).replace("%s", text)


def fraction(draw: random.Random, golds: Golds) -> Made:
    gold = pick(draw, golds, *ALL)
    if "frac" not in gold.text or gold.text.count("frac{") != gold.text.count("frac"):
        return None
    text = gold.text
    exact = plain(text) if "," not in text else None
    short = re.sub(r"frac\{(\d)\}\{(\d)\}(?!\d)", r"frac\1\2", text)
    ways = [re.sub(r"\\[dt]?frac", rf"\\{command}", text) for command in ("dfrac", "tfrac", "frac", "cfrac")] + [short, short]
    ways += [re.sub(r"frac\{(\d)\}\{", r"frac\1{", text), re.sub(r"frac\{(\d)\}\{(\d)\}(?!\d)", r"frac \1 \2", text)]
    if exact is not None:
        n, d, k = exact.numerator, exact.denominator, draw.randint(2, 9)
        ways += [f"{n}/{d}", rf"\frac{{{n * k}}}{{{d * k}}}", f"{n * k}/{d * k}"]
        if 10**6 % d == 0:
            ways += [decimal(exact)] * 2
        if n > d > 1:
            ways += [rf"{n // d}\frac{{{n % d}}}{{{d}}}", f"{n // d} {n % d}/{d}"]
    answer = draw.choice(ways)
    return (gold.file, gold.text, answer) if answer != gold.text else None


def decimal(exact: Fraction) -> str:
    """Writes a fraction whose decimal ends within six places."""
    whole, places = divmod(abs(exact) * 10**6, 10**6)
    return "-" * (exact < 0) + f"{whole}.{int(places):06}".rstrip("0").rstrip(".")


def bracket(draw: random.Random, golds: Golds) -> Made:
    gold = pick(draw, golds, "tuple", "interval", "union", "formula", "number")
    text = gold.text.replace(r"\left", "").replace(r"\right", "")
    if gold.shape in ("number", "formula") and not re.search(r"[(\[]", text):
        if draw.random() < 0.8 or "," in text:
            return None
        way = draw.choice(["(%s)", r"\left(%s\right)", r"\left( %s \right)", r"\bigl(%s\bigr)"])
        return gold.file, gold.text, way % text.strip()
    if r"\sqrt[" in text:
        return None
    before, after = draw.choice(
        [(r"\left", r"\right"), (r"\bigl", r"\bigr"), (r"\Big", r"\Big"), (r"\big", r"\big"), ("", ""), (r"\left", r"\right")]
    )
    space = draw.choice(["", " "]) if before else ""
    text = re.sub(r"([(\[])", rf"{re.escape(before)}\1{space}", text)
    return gold.file, gold.text, re.sub(r"([)\]])", rf"{re.escape(after)}\1", text)


def thousands(draw: random.Random, golds: Golds) -> Made:
    gold, exact = number(draw, golds, 1000)
    if exact.denominator > 1:
        return None
    marks = [",", "{,}", r",\!", r"\,", r"\ ", " ", ""]
    answer = f"{int(exact):,}".replace(",", draw.choice(marks))
    return (gold.file, gold.text, answer) if answer != gold.text else None


def zeros(draw: random.Random, golds: Golds) -> Made:
    gold = pick(draw, golds, "number", "unit", "percent", "tuple")
    if not re.fullmatch(r"[-\d.]+", gold.parts[0]) or gold.text.count(gold.parts[0]) > 1:
        return None
    text = gold.parts[0]
    longer = text + ("" if "." in text else ".") + "0" * draw.randint(1, 3)
    if re.match(r"-?0\.", text) and draw.random() < 0.5:
        longer = text.replace("0.", ".", 1)
    return gold.file, gold.text, gold.text.replace(text, longer, 1)


def punctuation(draw: random.Random, golds: Golds) -> Made:
    gold = pick(draw, golds, *ALL, "word", "choice", "unit", "base")
    ways = ["%s.", "%s .", "%s\\", "%s\\\\", "{{%s}}", "{%s}", " %s ", "%s\n", "{ %s }"]
    ways += ["= %s", "=%s"] if gold.shape in ("number", "formula", "percent", "unit") else []
    return gold.file, gold.text, draw.choice(ways).replace("%s", gold.text.strip().removesuffix("."))


def name(draw: random.Random, golds: Golds) -> Made:
    gold = pick(draw, golds, "number", "number", "number", "formula", "tuple", "matrix", "unit", "percent")
    text = gold.text.strip().removesuffix(".")
    free = [letter for letter in LETTERS if letter not in re.sub(r"\\[a-z]+|\\begin\{\w+\}", "", text)]
    names = [*draw.sample(free, 3), r"\text{Area}", "f(3)", "x_1", r"\text{Total}", r"\text{Answer}"]
    if gold.shape in ("unit", "percent"):
        names = [*names[:3], r"\text{Total}", r"\text{Answer}"]
    if gold.shape == "formula":
        names = ["f(x)", "y"] if re.search("(?<![a-z])x", text) and "y" not in text else [r"\text{Answer}", r"\text{Result}"]
    if gold.shape == "tuple":
        names = ["(x,y)", "(a,b)"] if len(gold.parts) == 2 else ["(x,y,z)"] if len(gold.parts) == 3 else [r"\mathbf{v}"]
    if gold.shape == "matrix":
        names = [r"\mathbf{v}", r"\mathbf{A}", "A"]
    return gold.file, gold.text, f"{draw.choice(names)}{draw.choice([' = ', '=', '= '])}{text}"


def sentence(draw: random.Random, golds: Golds) -> Made:
    gold = pick(draw, golds, "number", "number", "formula", "tuple", "interval", "choice", "unit")
    text = gold.text.strip().removesuffix(".")
    words = draw.choice(
        ["The answer is", "the answer is", "Therefore, the answer is", "The final answer is", "Answer:", "So the answer is"]
    )
    ways = [
        f"{words} {text}", f"{words} ${text}$", rf"\text{{{words} }}{text}", rf"\text{{{words} }} {text}",
        f"{words} {text}.",
    ]  # fmt: skip
    return gold.file, gold.text, draw.choice(ways)


def math_mode(draw: random.Random, golds: Golds) -> Made:
    gold = pick(draw, golds, *ALL, "unit", "base")
    text = gold.text.strip().removesuffix(".")
    return (
        gold.file,
        gold.text,
        draw.choice(["$%s$", r"\(%s\)", r"\[%s\]", "$$%s$$", "$ %s $", r"\( %s \)"]).replace("%s", text),
    )


def degree(draw: random.Random, golds: Golds) -> Made:
    golds_in_degrees = [gold for gold in golds.get("unit", []) if gold.parts[1] == "deg"]
    gold = draw.choice(golds_in_degrees) if golds_in_degrees and draw.random() < 0.6 else number(draw, golds)[0]
    text = gold.parts[0]
    if re.search(r"[,$/]|\d\\frac", text):
        return None
    stated = gold.text if gold.shape == "unit" else rf"{text}^\circ"
    ways = [
        r"%s^\circ", r"%s^{\circ}", r"%s{}^\circ", r"%s^o", "%s°", "%s degrees", r"%s \text{ degrees}", r"%s\degree",
    ]  # fmt: skip
    answer = draw.choice([*ways, r"%s ^\circ", r"%s~\text{degrees}", r"%s\,^\circ", r"{%s}^\circ"]).replace("%s", text)
    return (gold.file, stated, answer) if answer != stated else None


def base(draw: random.Random, golds: Golds) -> Made:
    gold = pick(draw, golds, "base", "number") if golds.get("base") else pick(draw, golds, "number")
    digits, of = gold.parts if gold.shape == "base" else (gold.text, str(draw.randint(5, 9)))
    if not digits.isdigit() or max(digits) >= of and len(of) == 1:
        return None
    stated = gold.text if gold.shape == "base" else f"{digits}_{of if len(of) == 1 else f'{{{of}}}'}"
    word = dict(zip("23456789", "two three four five six seven eight nine".split(), strict=True)).get(of, of)
    ways = [f"{digits}_{{{of}}}", f"({digits})_{{{of}}}", rf"{digits}_{{\text{{{of}}}}}", rf"\text{{{digits}}}_{{{of}}}"]
    ways += [
        f"{digits} _{{{of}}}", rf"{digits}_{{\text{{{word}}}}}", rf"({digits})_{{\text{{{word}}}}}",
        f"${digits}_{{{of}}}$",
    ]  # fmt: skip
    ways += [f"({digits})_{of}", f"{digits}_{of}"] if len(of) == 1 else []
    answer = draw.choice([way for way in ways if way != stated])
    return gold.file, stated, answer


def vector(draw: random.Random, golds: Golds) -> Made:
    gold = pick(draw, golds, "tuple", "matrix")
    if gold.shape == "matrix":
        kind = draw.choice(["bmatrix", "bmatrix", "pmatrix"])
        text = tidy(gold.text).replace("pmatrix", kind)
        text = text.replace(r" \\ ", draw.choice([r"\\", r" \\ ", "\\\\\n"])).replace(" & ", draw.choice(["&", " & "]))
        return (gold.file, gold.text, text) if text != gold.text else None
    inner = ", ".join(gold.parts)
    if r"\pi" in inner:  # polar coordinates are no vector
        return None
    return (
        gold.file,
        gold.text,
        draw.choice([r"\langle %s\rangle", r"\langle %s \rangle", r"\left\langle %s \right\rangle"]) % inner,
    )


def inequality(draw: random.Random, golds: Golds) -> Made:
    gold = pick(draw, golds, "interval", "union", "number")
    if gold.shape == "union":
        text = gold.text
        ways = [
            text.replace(r"\cup", r"\bigcup"), text.replace(r"\cup", r"\,\cup\,"), rf"x \in {text}",
            text.replace(r"\infty", "+\\infty"),
        ]  # fmt: skip
        answer = draw.choice(ways[:3] if re.search(r"-\s*\\infty", text) else ways)
        return gold.file, gold.text, answer
    if gold.shape == "number":
        gold, (low, high) = numbers(draw, golds, 2)
        opening, closing = draw.choice(["[]", "[)", "(]"])
        stated = f"{opening}{low}, {high}{closing}"
    else:
        stated, (opening, low, high, closing) = gold.text, gold.parts
    if draw.random() < 0.2:
        return gold.file, stated, rf"x \in {stated}"
    less, equal = "<", draw.choice([r"\le", r"\leq", "≤", "<="])
    signs = [equal if opening == "[" else less, equal if closing == "]" else less]
    if "infty" in low and "infty" in high:
        return gold.file, stated, rf"x \in {tidy(stated)}"
    if "infty" in high:
        sign = {"<": ">", r"\le": r"\ge", r"\leq": r"\geq", "≤": "≥", "<=": ">="}[signs[0]]
        return gold.file, stated, draw.choice([f"x {sign} {low}", f"{low} {signs[0]} x"])
    if "infty" in low:
        return gold.file, stated, f"x {signs[1]} {high}"
    return gold.file, stated, f"{low} {signs[0]} x {signs[1]} {high}"


def code(draw: random.Random, golds: Golds) -> Made:
    gold = pick(draw, golds, "formula", "relation")
    text = re.sub(r"\^\s*(\d)(?!\d)", r"^{\1}", gold.text) if draw.random() < 0.3 else gold.text
    if text == gold.text and "\\" not in text:
        text = re.sub(r"\^\s*(?:\{(\d+)\}|(\d))", lambda match: f"**{match[1] or match[2]}", gold.text)
    return (gold.file, gold.text, text) if text != gold.text else None


def product(draw: random.Random, golds: Golds) -> Made:
    gold = pick(draw, golds, "formula")
    mark = draw.choice([r"\cdot ", r" \cdot ", r"\times ", "*", " * ", r" \times "])
    answer = re.sub(r"(?<![\w^_{\\])(\d+)\s*(?=[a-z(i]|\\pi|\\sqrt)(?!left)", lambda match: match[1] + mark, gold.text)
    return (gold.file, gold.text, answer) if answer != gold.text else None


def commuted(draw: random.Random, golds: Golds) -> Made:
    gold = pick(draw, golds, "formula")
    body = tidy(gold.text)
    depth, cuts = 0, [0]
    for place, letter in enumerate(body):
        depth += (letter in "([{") - (letter in ")]}")
        if letter in "+-" and not depth and place and body[place - 1] not in "^_":
            cuts.append(place)
    terms = [body[begin:end].strip() for begin, end in zip(cuts, [*cuts[1:], len(body)], strict=True)]
    if len(terms) < 2 or any(len(term) < 1 for term in terms) or re.search("sin|cos|log|ln|int|sum|circ", body):
        return None
    terms = [term if term[0] in "+-" else f"+{term}" for term in terms]
    draw.shuffle(terms)
    answer = " ".join(f"{term[0]} {term[1:].strip()}" for term in terms).removeprefix("+ ")
    return (gold.file, gold.text, re.sub("^- ", "-", answer)) if re.sub(r"\s", "", answer) != re.sub(r"\s", "", body) else None


def choice(draw: random.Random, golds: Golds) -> Made:
    gold = pick(draw, golds, "choice")
    letter = draw.choice("ABCDE") if draw.random() < 0.7 else gold.parts[0]
    stated = draw.choice([letter, rf"\text{{{letter}}}", rf"\text{{({letter})}}", f"({letter})"])
    ways = [
        "%s.", "Option %s", "(%s)", "%s)", r"\text{(%s)}", r"\text{%s}", r"\textbf{(%s)}", r"\mathbf{%s}",
        r"\mathrm{(%s)}", "option %s",
    ]  # fmt: skip
    ways += [
        r"\text{Option %s}", r"\text{%s.}", r"\textbf{%s}", "choice %s", "$%s$", r"\text{Choice (%s)}", "%s",
        r"\mathrm{%s}",
    ]  # fmt: skip
    answer = draw.choice(ways).replace("%s", letter)
    return (gold.file, stated, answer) if answer != stated else None


def special(draw: random.Random, golds: Golds) -> Made:
    """Repeating decimals, the empty set, and mixed numbers; made from the data's small numbers."""
    gold, exact = number(draw, golds, 1)
    digits = str(exact.numerator % 999 or 5)
    if draw.random() < 0.1:
        one, two = draw.sample([r"\emptyset", r"\varnothing", r"\{\}", r"\{ \}"], 2)
        return gold.file, one, two
    if set(digits) == {"9"}:
        return None
    repeated = Fraction(int(digits), 10 ** len(digits) - 1)
    whole = draw.choice([0, 0, 1, 2])
    repeated += whole
    stated = rf"\frac{{{repeated.numerator}}}{{{repeated.denominator}}}"
    ways = [rf"{whole}.\overline{{{digits}}}", rf"{whole}.\overline{{{digits * 2}}}"] + [rf"{whole}.\overline{digits}"] * (
        len(digits) == 1
    )
    answer = draw.choice(ways)
    return (gold.file, stated, answer) if draw.random() < 0.7 else (gold.file, answer, stated)


def unit_added(draw: random.Random, golds: Golds) -> Made:
    gold, exact = number(draw, golds, 2)
    text = tidy(gold.text)
    if re.search(r"[$,/]|\d\\frac", text) or "e" in text:
        return None
    if draw.random() < 0.4 and exact.denominator == 1:
        noun = draw.choice(NOUNS)
        return gold.file, gold.text, draw.choice([f"{text} {noun}", rf"{text} \text{{ {noun}}}", rf"{text}\text{{ {noun}}}"])
    if draw.random() < 0.3:
        return (
            gold.file,
            gold.text,
            draw.choice([rf"\${text}", rf"\$ {text}", f"${text}", rf"{text} \text{{ dollars}}", f"{text} dollars"]),
        )
    return gold.file, gold.text, with_unit(draw, text, draw.choice([unit for unit in UNITS if unit not in ("deg", "rad")]))


def unit_scale(draw: random.Random, golds: Golds) -> Made:
    """The same quantity in another unit, or the same unit spelled otherwise."""
    gold, exact = number(draw, golds, 1)
    if exact > 10**4 or 10**3 % exact.denominator:
        return None
    unit = draw.choice([name for name, (_, factor, _) in UNITS.items() if factor])
    dimension, factor, _ = UNITS[unit]
    others = [name for name, (other, _, _) in UNITS.items() if other == dimension]
    other = draw.choice(others)
    converted = exact * factor / UNITS[other][1]
    if 10**6 % converted.denominator or converted > 10**9:
        return None
    stated, answer = with_unit(draw, decimal(exact), unit), with_unit(draw, decimal(converted), other)
    return (gold.file, stated, answer) if stated != answer else None


def permuted(draw: random.Random, golds: Golds) -> Made:
    gold = pick(draw, golds, "list", "set", "number", "letters")
    if gold.shape == "number":
        gold, parts = numbers(draw, golds, draw.randint(2, 5))
        three_digits = any(re.fullmatch(r"\d{3}", part) for part in parts)  # 54, 803 might be read as 54,803
        write = r"\{%s\}" if three_digits else draw.choice([r"\{%s\}", "%s"])
        stated = write % ", ".join(parts)
    else:
        parts, stated = list(gold.parts), gold.text
        write = {"set": r"\{%s\}", "letters": draw.choice([r"\text{%s}", "%s"])}.get(gold.shape, "%s")
    others = draw.sample(parts, len(parts))
    if others == parts:
        return None
    mark = draw.choice([", ", r",\ ", ", "] + [","] * (not any(re.match(r"\d{3}(?!\d)", part) for part in parts)))
    mark = ", " if gold.shape == "letters" else mark
    if write == "%s" and gold.shape != "letters" and draw.random() < 0.2:
        return (
            gold.file,
            stated,
            ", ".join(others[:-1]) + draw.choice([r"\text{ and }", r" \text{ or } ", " and "]) + others[-1],
        )
    return gold.file, stated, write % mark.join(others)


def sums(draw: random.Random, golds: Golds) -> Made:
    gold, (low, high) = numbers(draw, golds, 2)
    letter, term = (
        draw.choice("ijk"),
        draw.choice(["%s^2", r"\frac{1}{%s}", "a_%s", "f(%s)", r"\frac{%s}{2^%s}", "2%s + 1", r"\binom{n}{%s}"]),
    )
    term = term.replace("%s", letter)
    if not (low.isdigit() and high.isdigit()):
        return None
    top = draw.choice(["n", high, r"\infty"]) if draw.random() < 0.8 else "n+1"
    if draw.random() < 0.4:
        term = draw.choice([r"\sin x", "x^2", "e^{-x}", "f(x)", r"\frac{1}{1+x^2}"])
        short = top if len(top) == 1 or top[0] == "\\" else f"{{{top}}}"
        forms = [
            rf"\int_{{{low}}}^{{{top}}} {term} \, dx",
            rf"\int_{{{low}}}^{short} {term}\,dx",
            rf"\int_{{{low}}}^{{{top}}} {term}\; dx",
        ]
        forms += [
            rf"\int_{{{low}}}^{{{top}}} {term} dx",
            rf"\int\limits_{{{low}}}^{{{top}}} {term}\,dx",
            rf"\displaystyle\int_{{{low}}}^{{{top}}} {term} ~dx",
        ]
    else:
        short = top if len(top) == 1 or top[0] == "\\" else f"{{{top}}}"
        command = draw.choice([r"\sum", r"\prod"])
        forms = [rf"{command}_{{{letter}={low}}}^{{{top}}} {term}", rf"{command}_{{{letter}={low}}}^{short} {term}"]
        forms += [rf"{command}_{{{letter} = {low}}}^{{{top}}}{term}", rf"{command}\limits_{{{letter}={low}}}^{{{top}}} {term}"]
        forms += [
            rf"{command}^{{{top}}}_{{{letter}={low}}} {term}",
            rf"\displaystyle {command}_{{{letter}={low}}}^{{{top}}}\, {term}",
        ]
    stated, answer = draw.sample(forms, 2)
    return (gold.file, stated, answer) if stated != answer else None


RIGHT: dict[str, Callable[[random.Random, Golds], Made]] = {
    "spacing": spacing, "style": style, "fraction": fraction, "bracket": bracket, "thousands": thousands, "zeros": zeros,
    "punctuation": punctuation, "name": name, "sentence": sentence, "math mode": math_mode, "degree": degree, "base": base,
    "vector": vector, "inequality": inequality, "code": code, "product": product, "commuted": commuted, "choice": choice,
    "special": special, "unit added": unit_added, "unit scale": unit_scale, "permuted": permuted, "sums": sums,
}  # fmt: skip
