"""Extraction and equality of answers, and the reference code's rules.

math-verify runs in the main thread, as in a worker.
"""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igpo_jax.grading import equality, grade, reference_code
from igpo_jax.grading.answers import boxes, extract
from igpo_jax.grading.equality import equal


def box(text: str) -> str:
    return f"\\boxed{{{text}}}"


@pytest.mark.parametrize("text, found", [
    (r"a \boxed{5} b \boxed{\frac{1}{2}}", ["5", r"\frac{1}{2}"]), (r"\boxed{\boxed{5}}", [r"\boxed{5}"]),
    (r"\fbox{7} and \boxed 5", ["7"]), (r"so \boxed 5", ["5"]), (r"\boxed{5", []), (r"\boxed{\{1, 2\}}", [r"\{1, 2\}"]), ("", []),
    (r"\boxed", []),
    (r"\boxed{5} \boxed{6", ["5"]), (r"\boxed {5}", ["5"]), (r"\boxed{}", [""]),
])  # fmt: skip
def test_boxes_are_balanced_and_in_order(text, found):
    assert boxes(text) == found


@pytest.mark.parametrize("text", [
    box("5") * 2500, r"\boxed{" * 2500 + "5" + "}" * 2500, r"\boxed{" * 2500, "{" * 9999 + "}" * 9999,
])  # fmt: skip
def test_many_boxes_are_no_trouble(text):
    """Extraction is linear in the braces and does not recurse: evaluation calls it in its own process."""
    begin = time.monotonic()
    extract(text, "any")
    assert time.monotonic() - begin < 2


@pytest.mark.parametrize(
    "text",
    ["9" * 20_000, "0" * 20_000 + "/11", "1 " * 9999, "}" * 20_000, "5 " + "apples " * 20 + "!", "5 cm" + "^2 " * 99 + "!"],
)
def test_long_answers_are_decided_at_once(text):
    begin = time.monotonic()
    assert not equal("x+1", text) and not equal("5", text)
    assert time.monotonic() - begin < 4


@pytest.mark.parametrize("rule, text, answer", [
    ("box", r"\boxed{3} then \boxed{5}", "5"), ("box", r"\boxed{\boxed{5}}", "5"), ("box", "<answer>5</answer>", None),
    ("box", "#### 5", None), ("box", r"\boxed{7<|eot_id|>}", "7"), ("box", "", None),
    ("number", "so 1250\n#### 1,250", "1,250"), ("number", r"\boxed{72} dollars, i.e. 12*6", "72"),
    ("number", "<answer>72</answer> in 3 days", "72"), ("number", "\\boxed{72}\n#### Step", "72"),
    ("number", "The answer is 18, #### Answer", "18"), ("number", "9-5=4", "4"), ("number", "none", None),
    ("number", "\\boxed{71}\n#### 72", "72"), ("number", "<answer>71</answer> \\boxed{72}", "72"),
    ("number", "#### 1/3", "1/3"), ("number", "It is 4-9 = -5 degrees", "-5"), ("number", "1300-1250", "1250"),
    ("any", "<answer>x^2</answer>", "x^2"), ("any", "#### 5", "5"), ("any", "it is 5 or 6", "6"),
    ("any", "<answer> \\boxed{4}", "4"),
    ("any", "<answer>\nunclosed", "unclosed"),
])  # fmt: skip
def test_extraction(rule, text, answer):
    assert extract(text, rule) == answer


SAME = [
    ("5", "5.0"), ("1000", "1,000"), ("5", r"\$5"), ("5", "$5$"), ("0.5", r"\frac{1}{2}"), (r"\frac12", "1/2"),
    ("5", "x = 5"),
    ("50", r"50\%"), ("0.5", r"50\%"), ("28%", "28 pct"), ("5", r"5 \text{ cm}"), ("10", r"10\text{ cm}^{2}"),
    ("10", "10 weeks"),
    ("90", r"90^\circ"), (r"\text{A}", "A"), ("A", r"\text{(A)}"), ("11", "x = 5+5+1 = 11"),
    (r"\frac{1}{12}", "0.0833333"),
    (r"\frac{1}{432}", r"2.314814814815 \times 10^{-3}"), ("1.5", r"1\frac12"), ("7425000", "7,425,000"),
    ("204_5", "204_{5}"),
    (r"\frac{\sqrt{3}}{2}", r"\frac{3}{2\sqrt{3}}"), ("x+1", "1+x"), ("[0,1]", "[0, 1]"),
    (r"\left(1,2\right)", "(1,2)"),
    ("20:34", r"08:34 \text{P.M.}"), (r"3\sqrt{13}", r"\sqrt{117}"), ("23000", r"\$23{,}000"), ("-5", "−5"),
    ("5", r"\boxed{5}"),
    ("-5", r"\text{-}5"), ("67", r"6\mathbf{7}"), ("6x", r"6\text{x}"), ("2+3i", r"3\mathrm{i}+2"),
    ("5000", "5 000"), ("11/2", "5 1/2"),
    (r"\approx 8.24 \text{ mph}", "8.24"), ("-5", r"\(-5e0\)"), (r"19\frac{104}{125}", "x = 19 104/125"),
    ("10", "10 men"), ("10", "10 cm^2"), ("10", "10kg"), ("7", "7th"), ("10", r"10 \text{ pairs}"),
    (r"x\text{ or }y", r"x, y"),
]  # fmt: skip
OTHER = [
    ("5", "6"), ("5", "-5"), ("5", "50"), ("0.1", "0.1000000000000000000000000001"), ("1/3", "0.3333"),
    ("1/3", "0.333334"),
    ("1/2^{98}", "1/2^{99}"), ("204_5", "204_2"), ("4210_7", "4210"), ("(1,2)", "-(1,2)"), ("(1,2)", "(2,1)"),
    ("1000", "1,00"),
    ("10", "10 million"), ("3", "3 dozen"), ("5", ""), ("", "5"), ("[0,1]", "[0,1)"), ("x+1", "x+2"),
    (r"\sqrt{2}", r"\sqrt{3}"),
    ("1234", "(1,234)"), (r"2007+\frac\pi 2", r"-2007+\frac\pi 2"), ("5", "x"), ("2x+z=1", "1"), ("0.64N", "0.64"),
    ("5", "5!"),
    (r"\approx 8.24 \text{ mph}", r"-\approx 8.24 \text{ mph}"), (r"\approx 8.24", "-8.24"), ("5", r"\(-5e0\)"),
    ("19104/125", "19 104/125"),
    # math-verify cannot parse these and would search them for a number.
    ("5", "6 | 5"), ("5", "6 & 5"), ("5", "wrong: 6 ... 5 /"), ("5", "6 5 a/"), ("5", "{6 5"), ("5", "5} 6"),
    ("5", "6/ 5 /"),
    # A word, a style or a space changes the value.
    ("5", r"\text{-}5"), ("5", r"\mathbf{-}5"), ("5", r"\text{minus }5"), ("5", r"\text{negative }5"),
    ("5", r"\textminus 5"),
    ("6", r"6\text{7}"), ("6", r"6\mathrm{i}"), ("5", r"\text{log }5"), (r"\sqrt{2}", r"\text{-}\sqrt{2}"),
    ("10", r"10\text{ million}"),
    ("51/2", "5 1/2"), (r"\frac{51}{2}", r"5\ 1/2"), ("12", "1 2"), ("56", "5~6"), ("10", "10 over two"),
    ("10", "10 halves"),
    ("10", "10 tenths"), ("10", "10 minus one"), ("10", "10 squared"), ("6xy", "6"), ("10ab", "10"), ("10", "10t"),
    ("10 x^2", "10"),
    ("10", "10xy^3"), ("7", r"\neq 7"), ("5", r"\le 5"), ("5", r"\geq 5"), ("6", r"\text{not }6"), ("6 theta", "6"),
]  # fmt: skip


@pytest.mark.parametrize("gold, answer", SAME)
def test_the_same(gold, answer):
    assert equal(gold, answer)


@pytest.mark.parametrize("gold, answer", OTHER)
def test_not_the_same(gold, answer):
    assert not equal(gold, answer)


NUMBER = st.one_of(
    st.integers(-(10**9), 10**9).map(str),
    st.integers(1000, 10**9).map(lambda n: f"{n:,}"),
    st.decimals(-9999, 9999, places=3, allow_nan=False).map(lambda d: f"{d:f}"),
    st.tuples(st.integers(-999, 999), st.integers(1, 999)).map(lambda t: f"\\frac{{{t[0]}}}{{{t[1]}}}"),
    st.tuples(st.integers(-999, 999), st.integers(1, 999)).map(lambda t: f"{t[0]}/{t[1]}"),
)


@given(NUMBER, NUMBER)
def test_numbers_are_the_same_where_their_values_are(one, other):
    """Integers, decimals and fractions are equal exactly if their values are."""
    from igpo_jax.grading.exact import evaluate

    values = evaluate(one).value, evaluate(other).value
    assert equal(one, other) == (values[0] == values[1])
    assert equal(one, one) and equal(one, f"x = {one}") and equal(f"${one}$", one)


@settings(deadline=None, max_examples=300)
@given(
    st.text(max_size=80),
    st.sampled_from(["5", r"\frac{1}{2}", "x+1", "(1,2)"]),
    st.sampled_from(["box", "number", "any"]),
)
def test_no_text_breaks_anything(text, gold, rule):
    for candidate in (text, box(text), f"<answer>{text}"):
        found = extract(candidate, rule)
        if found is not None:
            assert equal(gold, found) in (True, False)


def test_texts_without_boxes_are_read_as_a_whole():
    assert grade("9", "so the answer is $3^2$", "any") and not grade("9", "so the answer is $10$", "any")
    assert not grade("2", r"$\frac{1+\sqrt{5}}{2}$", "any") and not grade("(0,9)", "[0,9)", "any")


def test_an_unknown_rule_is_an_error():
    with pytest.raises(ValueError, match="rule='last' is none of box, number, any, reference_code"):
        grade("5", "5", "last")


# The reference code's rules: vectors computed by its functions (docs/method.md section 8)


@pytest.mark.parametrize("text, gold, reward", [
    (box("5.0"), "5", 0), (box("1,000"), "1000", 0), (box(r"\$5"), "5", 3), (box("$5"), "5", 0),
    (box("0.5"), r"\frac{1}{2}", 3),
    (box("-0.5"), r"-\frac{1}{2}", 0), (box("1/2"), r"\frac{1}{2}", 3), (box("x=5"), "5", 3), (box("xy=5"), "5", 3),
    (box(r"50\%"), "50", 3), (box("50%"), "50", 0), (box(r"5 \text{ cm}"), "5", 3), (box(r"5\text{cm}"), "5", 0),
    (box(r"\text{(A)}"), "(A)", 0), (f"{box('3')} then {box('5')}", "5", 0), (f"{box('5')} then {box('3')}", "5", 3),
    (box(box("5")), "5", 3), (r"unclosed \boxed{5", "5", 0), (r"\boxed 5", "5", 0), ("<answer>5</answer>", "5", 0),
    (r"\fbox{5}", "5", 0), (box(r"90^\circ"), "90", 3), (box(".5"), "0.5", 3), ("", "", 3),
])  # fmt: skip
def test_released_rewards(text, gold, reward):
    assert 3 * reference_code.correct(gold, text) == reward


@pytest.mark.parametrize("text, reward", [
    ("<reasoning>\na\n</reasoning>\n<answer>\n\\boxed{5}\n</answer>", 0.75),
    ("<reasoning>a</reasoning><answer>\\boxed{5}</answer>", 0.5),
    ("\\boxed{5}", 0.25), ("<reasoning>\n<reasoning>\n\\boxed{5}", 0.25), ("", 0.0),
])  # fmt: skip
def test_released_format_rewards(text, reward):
    assert reference_code.format_reward(text) == reward


@given(st.text(alphabet="\\fractextboxed{}= .5/0x$", max_size=40))
def test_the_released_rules_take_any_text(text):
    assert reference_code.correct("5", box(text)) in (True, False)


def test_an_answer_that_takes_too_long_has_no_verdict_and_does_not_spoil_the_next(monkeypatch):
    """On a timeout math-verify returns an empty result, as for a text that it cannot parse."""
    monkeypatch.setattr(equality, "MATH_VERIFY_SECONDS", 0)
    with pytest.raises(TimeoutError):
        equal("x", r"\sqrt{x^2}")  # equal for positive numbers, so their values do not decide it
    monkeypatch.undo()
    assert equal("x^2+17y", "17y+x^2")
