"""Hypothesis strategies for answers: texts that might break a grader, and numbers in many notations."""

from fractions import Fraction

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

# Separated by spaces; pieces that contain a space follow.
PIECES = (
    r"\frac \frac{ \dfrac12 \frac{1}{0} { } }} {{ \boxed{ \boxed \fbox{ \left( \right) \left \text{ \mathrm{ \sqrt "
    r"\sqrt[3]{ ^{ _{ ^ _ % \% \text{kg} ° ^\circ $ $$ \$ #### <answer> </answer> <|eot_id|> <| \\ & \begin{pmatrix} "
    r"\end{pmatrix} \begin \end \infty ! !! − – ½ ٣ ７ ² √ \x e999999 1e-999 ^{9^{9^9}} 10^{10^{10}} , 1,000 ( ) [ ] "
    r"\binom{99999}{4444} \{ \} \cup \pm = == < \le \neq or and x y i \pi \sin \log_ \sum_{k=1}^{9} \int \lim | / * + "
    r"- . ... : ; 0 1 7 12 0.5 -3 204_5 08:30 A (B)"
).split(" ") + [" ", "\n", "\t", "\x00", "\u200b", "\u2028", "9" * 300, "0" * 450, "\\", "'", '"']

_soup = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=5)), max_size=20).map("".join)
_repeated = st.tuples(st.sampled_from(PIECES), st.integers(2, 3000)).map(lambda pair: (pair[0] * pair[1])[:20_000])
_nested = st.tuples(
    st.sampled_from([
        (r"\boxed{", "}"), ("(", ")"), ("{", "}"), (r"\frac{1}{", "}"), (r"\sqrt{", "}"), (r"\text{", "}"), ("-", ""),
    ]),
    st.integers(2, 2500), st.integers(0, 3),
).map(lambda drawn: drawn[0][0] * drawn[1] + "5" + drawn[0][1] * (drawn[1] - drawn[2]))  # fmt: skip
_digits = st.integers(1, 6000).flatmap(lambda n: st.sampled_from(["7" * n, "1." + "3" * n, "1/" + "9" * n, f"2^{{{'9' * n}}}"]))
soups = st.one_of(_soup, _soup, _soup, st.text(max_size=60), _repeated, _nested, _digits)
_completions = st.sampled_from([r"\boxed{%s}", r"So it is \boxed{%s}.", "<answer>%s</answer>", "#### %s", "%s"])
texts = st.tuples(soups, _completions).map(lambda pair: pair[1].replace("%s", pair[0]))
"""Completions: a soup where an answer is expected."""

values = st.one_of(
    st.integers(-200, 200).map(Fraction),
    st.integers(-(10**7), 10**7).map(Fraction),
    st.fractions(-60, 60, max_denominator=60),
    st.tuples(st.integers(-(10**5), 10**5), st.integers(1, 4)).map(lambda pair: Fraction(pair[0], 10 ** pair[1])),
)

STYLES = (
    "%s", "%s", "$%s$", "{%s}", r"\left(%s\right)", "(%s)", "x = %s", r"\displaystyle %s", " %s ", "%s.",
    r"%s \text{ people}", "%s units", r"\boxed{%s}", r"\(%s\)", r"%s\text{ apples}", r"%s\,",
)  # fmt: skip
BARE_STYLES = (r"\text{%s}", r"\mathbf{%s}", r"\textbf{%s}", r"\mathrm{%s}", r"\$%s")  # for digits and signs only


@st.composite
def written(draw, value: Fraction) -> str:
    """Draws an exact notation of a number; no percent sign, no rounding."""
    n, d, k = value.numerator, value.denominator, draw(st.integers(2, 9))
    sign, size = "-" if n < 0 else "", abs(n)
    ways = [f"{n * k}/{d * k}", f"\\frac{{{n * k}}}{{{d * k}}}"]
    ways += [f"{sign}\\dfrac{{{size}}}{{{d}}}", f"\\tfrac{{{n}}}{{{d}}}"]
    if d == 1:
        ways += [str(n), str(n), f"{n}.0", f"{n}.00", f"{n}e0", f"{n} \\times 10^{{0}}", f"{n + k} - {k}"]
        ways += [f"{n:,}".replace(",", mark) for mark in (",", "{,}", r",\!", r"\,")]
    elif size > d:
        ways += [f"{sign}{size // d}\\frac{{{size % d}}}{{{d}}}", f"{sign}{size // d} {size % d}/{d}"]
    if 10**4 % d == 0:
        ways += [f"{sign}{size * 10**4 // d // 10**4}.{size * 10**4 // d % 10**4:04}"] * 2
    text = draw(st.sampled_from(ways))
    if not set(text) - set("0123456789-."):
        text = draw(st.sampled_from([text, text, text.replace("-", "−"), text.replace("-", r"\text{-}")]))
        style = draw(st.sampled_from(STYLES + BARE_STYLES))
    else:
        pairs = ("(%s)", r"\left(%s\right)") if "," in text else ()  # (1,234) is a pair
        styles = [style for style in STYLES if style not in pairs]
        style = draw(st.sampled_from(styles))
    return style.replace("%s", text)


@st.composite
def same_numbers(draw) -> tuple[str, str]:
    """Draws two notations of one value."""
    value = draw(values)
    return draw(written(value)), draw(written(value))


@st.composite
def other_numbers(draw) -> tuple[str, str]:
    """Draws notations of two different values, close to each other as wrong answers are. Excludes a decimal that equals a
    fraction to six places, which counts as right."""
    value = draw(values)
    n, d = value.numerator, value.denominator
    digits = str(abs(n))
    place = draw(st.integers(0, len(digits) - 1))
    changed = int(digits[:place] + draw(st.sampled_from("0123456789")) + digits[place + 1 :])
    others = [-value, value + 1, value - 1, value * 10, value / 10, value * 100, value + Fraction(1, 10**4)]
    others += [Fraction(d, n or 7), Fraction(n), Fraction(changed, d), Fraction(n, d + 1)]
    others += [Fraction(int(f"{abs(n)}{d}")), Fraction(round(value * 1000), 1000)]
    other = draw(st.sampled_from([x for x in others if x != value]))
    return draw(written(value)), draw(written(other))


def collected(strategy, number: int, number_of_seed: int = 0) -> list:
    """Returns up to `number` examples of a strategy, the same at every call; fewer if hypothesis finds no more."""
    found = []

    @seed(number_of_seed)
    @settings(
        max_examples=number,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(example):
        found.append(example)

    collect()
    return found
