"""Different formulas never become the same text, whichever macros, braces, spaces and letters they have."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igpo_jax.grading import grade
from igpo_jax.grading.equality import equal
from igpo_jax.grading.typed import condensed

# Pairs of different answers: one pair in a line, joined by <<
DIFFERENT = r"""
e^{xy} << e^{x}y
2^{nm} << 2^{n}m
Pe^{rt} << Pe^{r}t
y=e^{xt} << y=e^{x}t
a_{n}b << a_{nb}
2^{ni} << 2^{n}i
\sin^{n}x << \sin^{nx}
\sum_{k=1}^{n} k << \sum_{k=1}^{nk}
\sum_{i=1}^n e^{ab} << \sum_{i=1}^n e^{a}b
5-3 << 5\cdot-3
10-7 << 10\cdot-7
x-1 << x\cdot-1
2\sqrt3-1 << 2\sqrt3\cdot-1
1.25 << 1\cdot.25
1.25 << 1 .25
1.25 << 1\,.25
1.25 << 1. 25
2000 << 2 e3
3\frac12 << 3\cdot\frac12
3\frac12\% << 3\cdot\frac12\%
\$3\frac12 << \$3\cdot\frac12
(3\frac12,1) << (3\cdot\frac12,1)
y=3\frac12 << y=3\cdot\frac12
3\,\frac12 << 3\cdot\frac12
3~\frac12 << 3\cdot\frac12
3 1/2 << 3\cdot\frac12
3\frac12 << 3\quad\frac12
3\frac12 << 3\qquad{\frac12}
\frac12 << \frac1\quad2
5000 << 5\quad 000
ab << a\quad b
\int_0^1 x\cdot-1\,dx << \int_0^1 x-1\,dx
5!-3 << 5!\cdot-3
\sinh x << \sin h x
.5 << \left.5\right.
15 << 1\therefore5
15 << 1\phantom{0}5
-1 << 2**-3
x-1 << x**-1
2[x+1] << [x+1]**2
2x << 2 ** x
xy << x ** y
3\frac12 << 3 ** \frac12
2x << x **2
2x << x** 2
1.5 << 1\boxed.5
xy << x=y
AB << S=T
a_nb << a_n=b
f(x) << f=(x)
2|x| << |x|**2
5!2 << 5!**2
10^8 << 10²³
xyz << a xyz
\begin{pmatrix}1 \\ 2\end{pmatrix} << \begin{pmatrix}1 2\end{pmatrix}
ab << AB
xy << Xy
x-y << X-Y
nRT << nrt
\text{nRT} << \text{nrt}
e-x << E-x
abc << ABC
abcd << ABCD
(ab,c) << (AB,c)
y=ab << y=AB
AB=5 << ab=5
\text{AB} << \text{ab}
a+b+c << a+b+C
5 mg << 5 Mg
5\text{ mg} << 5\text{ Mg}
5\text{ ms} << 5\text{ Ms}
5\text{ s} << 5\text{ S}
5\text{ m} << 5\text{ M}
5 nm << 5 Nm
1/0 << 2/0
\frac10 << \frac20
\frac{x}{0} << \frac{2x}{0}
\ln 0 << \csc 0
x=1/0 << x=2/0
(1/0,1) << (2/0,1)
\infty << 2\infty
"""
EQUAL = r"""
Monday << monday
Yes << yes
no << No
\text{Yes} << yes
\text{Monday} << MONDAY
\text{Bob} << bob
\text{no solution} << No Solution
\text{New York} << new york
\text{Area}=5 << area=5
\text{the East} << east
x^{n} << x^n
x_{\alpha}y << x_\alpha y
v_{\text{max}} << v_\text{max}
2\cdot x << 2x
x\cdot y\cdot z << xyz
\pi r^2 << \pi\cdot r^2
5 kg << 5 Kg
5 cm << 5 CM
5 MB << 5000 kB
60 mph << 60 MPH
x=2,\quad y=3 << (2,3)
(2, 2), (6, 2) << \boxed{(2, 2)} \quad \text{and} \quad \boxed{(6, 2)}
2, 3 << 2 \quad \text{or} \quad 3
2, 3 << 2 or \quad 3
5\quad\text{cm} << 5
5 << \quad 5
1/2 << \left.\frac12\right.
5 << \therefore 5
2^{-3} << 2**-3
8 << 2 ** 3
5 << **5**.
\text{ellipse} << an **ellipse**
AB << S=AB
|x| << **|x|**
10^{23} << 10²³
ce^{-2x} << Ce^{-2x}
1/0 << 1/0
(1, \infty) << (1,+\infty)
"""


def pairs(text: str) -> list[list[str]]:
    return [line.split(" << ") for line in text.strip().split("\n")]


def graded(gold: str, answer: str) -> bool:
    return grade(gold, f"\\boxed{{{answer}}}", "box")


@pytest.mark.parametrize("one, other", pairs(DIFFERENT))
def test_different_answers_are_different_in_both_directions(one, other):
    assert not graded(one, other) and not graded(other, one)


@pytest.mark.parametrize("one, other", pairs(EQUAL))
def test_other_notations_are_equal_in_both_directions(one, other):
    assert graded(one, other) and graded(other, one)


LETTERS = st.text("abmnprtxyz", min_size=2, max_size=3)
FRAMES = st.sampled_from(["%s", "(%s,1)", "y=%s", r"\{%s,2\}", r"\sum_{k}%s", r"\sqrt{%s}", "q+%s"])


@settings(deadline=None, max_examples=30)
@given(LETTERS, st.sampled_from("^_"), st.sampled_from(["2", "e", "a", r"\sin"]), FRAMES)
def test_letters_behind_the_braces_are_no_part_of_an_exponent_or_index(letters, mark, base, frame):
    inside, outside = f"{base}{mark}{{{letters}}}", f"{base}{mark}{{{letters[:-1]}}}{letters[-1]}"
    assert not equal(frame % inside, frame % outside) and not equal(frame % outside, frame % inside)


@settings(deadline=None, max_examples=30)
@given(LETTERS, st.data(), FRAMES)
def test_letters_of_a_product_keep_their_case(letters, data, frame):
    place = data.draw(st.integers(0, len(letters) - 1))
    other = letters[:place] + letters[place].upper() + letters[place + 1 :]
    assert not equal(frame % letters, frame % other) and not equal(frame % other, frame % letters)
    assert not equal(frame % letters, frame % letters.upper())


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 99), st.integers(1, 99), st.sampled_from([r"\cdot", r"\cdot ", "·", r"\times"]), FRAMES)
def test_a_product_with_a_negative_number_is_no_difference(one, other, sign, frame):
    assert not equal(frame % f"{one}-{other}", frame % f"{one}{sign}-{other}")
    assert not equal(frame % f"{one}{sign}-{other}", frame % f"{one}-{other}")


SYMBOLS = [
    "a",
    "b",
    "n",
    "1",
    "2",
    ".5",
    "e",
    "+",
    "-",
    "^",
    "_",
    r"\cdot ",
    r"\times ",
    r"\sin ",
    r"\pi ",
    r"\frac12",
    "!",
    "|",
    "'",
]


@given(st.lists(st.sampled_from(SYMBOLS), min_size=1, max_size=7), st.lists(st.sampled_from(SYMBOLS), min_size=1, max_size=7))
def test_equal_texts_have_the_same_symbols(one, other):
    """These symbols have no braces to drop, so only the spaces after commands may go."""
    texts = ["".join(symbols) for symbols in (one, other)]
    plain = [re.sub(r"(?<!\\)\s|^\++", "", re.sub(r"(\\[a-z]+)\s+", r"\1;", text)) for text in texts]
    assert (condensed(texts[0]) == condensed(texts[1])) == (plain[0] == plain[1])
