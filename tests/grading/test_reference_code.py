"""The reference code's rules for boxes and normalized texts: vectors computed by its functions (docs/method.md section 8)."""

import pytest

from igpo_jax.grading import reference_code


@pytest.mark.parametrize("answer, gold, equal", [
    # A slash between integers is a fraction.
    ("1/2", "1/2", True), ("1/2", r"\frac12", True), ("-1/2", r"\frac{-1}{2}", True), ("-1/2", r"-\frac{1}{2}", False),
    ("1/ 2", r"\frac{1}{2}", True), ("x=1/2", r"\frac{1}{2}", True), ("01/2", "1/2", False), ("+1/2", "1/2", False),
    # One other slash: the original texts are compared.
    ("x/y", "x/y", True), (" x/y ", "x/y", True), ("x / y", "x/y", False), ("5 km/h", "5 km/h", True), ("5km/h", "5 km/h", False),
    (r"5 \text{km/h}", r"5\text{km/h}", False), (r"5 \text{ km/h}", "5", True), (r"\pi/2", r"\pi/2", True),
    (r"\pi/2", r"\frac{\pi}{2}", False), (r"\frac{1}{2}/3", r"\frac12/3", False), (r"\dfrac{1}{x/y}", r"\frac{1}{x/y}", False),
    ("5/", "5/", True), ("5 /", "5/", False), ("5", "x/y", False),
    # Several slashes mean nothing.
    ("1/2/3", "1 / 2 / 3", True), ("a/b/c", "a / b / c", True),
    # Roots and fractions without an argument; a \frac with a single character leaves all fractions as they are.
    (r"\sqrt2", r"\sqrt{2}", True), (r"2\sqrt", r"2\sqrt", True), (r"2\sqrt", r"2 \sqrt", False),
    (r"2\frac", r"2 \frac", False), (r"\frac12 + \frac3", r"\frac12+\frac3", True), (r"\frac12 + \frac3", r"\frac{1}{2}+\frac3", False),
    # Units
    (r"5 \text{ m} \text{ s}", "5", False), ("5", r"5 \text{ cm}", True),
    # Spaces at the ends of a box
    (" .5", "0.5", True), (" x=5", "5", True),
])  # fmt: skip
def test_normalized_texts(answer, gold, equal):
    assert reference_code.correct(gold, f"\\boxed{{{answer}}}") == equal


@pytest.mark.parametrize("text, gold, equal", [
    (r"\boxed{\fbox{5}}", "5", False), (r"\boxed{\fbox{5}}", r"\fbox{5}", True), (r"\boxed{\boxed{\boxed{5}}}", "5", True),
    (r"\boxed{x=\boxed{5}}", "5", True), (r"\boxed{\boxed 5}", "5", True), (r"\boxed{\boxed{3}, \boxed{5}}", "5", True),
    (r"\boxed{\boxed}", r"\boxed", False), (r"\boxed{\boxed}", "", False),
    (r"\boxed{\left\{5\right.}", r"\{5.", False), (r"\boxed{\{1,2\}}", r"\{1,2\}", True),  # escaped braces count
    (r"\boxed{<answer>5</answer>}", "5", False), (r"\boxed{\boxed<answer>5</answer>}", "5", True),
    (r"\boxed {5}", "5", False), ("none", r"\text{ cm}", True),
])  # fmt: skip
def test_boxes_within_boxes(text, gold, equal):
    assert reference_code.correct(gold, text) == equal
