"""tests/campaigns/answers.py makes the answers that it says, counts them rightly, and its wrong answers are wrong."""

import collections
import pathlib
import sys
from fractions import Fraction

import pytest

sys.path.append(str(pathlib.Path(__file__).parents[1] / "campaigns"))
import answers
from answer_meaning import leaves, plain, read, same, surely_differ, value
from hostile_answers import hostile
from igpo_jax.tasks.reward_pool import Verdict
from right_answers import RIGHT
from wrong_answers import WRONG

TEXTS = (
    "5", "12", "101", "340", "1204", "9600", "31415", "880000", "-7", "64", r"\frac{3}{4}", r"-\frac{5}{2}", "2.5",
    "0.125", r"8\text{ cm}", r"45^\circ",
    r"20 \text{ dollars}", "(3, -1)", r"\left( 2, \frac{1}{2}, 7 \right)", "[0, 4)", r"(-\infty, 2)", r"[1,3] \cup (5, 8)",
    "x = 6", "y = 2x+1", "2, 3, 9", r"\{4,5,7\}", r"\text{A,C}", r"\text{B}", r"\text{even}", "204_5", r"25\%", "x^2-3x+1",
    r"2\sqrt{3}", "3+4i", r"\begin{pmatrix} 1 & 2 \\ -3 & 4 \end{pmatrix}", r"\frac{1}{x+2}", r"\frac{\pi}{6}",
    "15000", "x^3-8", "4a^2+b^2", "7-2x^5", "y = x^2-4", "6x^2+11x", r"5-3\sqrt{2}", "2-9i", r"\sqrt{5}+1",
    r"\text{C}", "1011_2", "33_4", r"30^\circ", r"60^\circ", "120^{\\circ}", "(-2, 5)", "[2,9]",
)  # fmt: skip
GOLDS = answers.by_shape(dict.fromkeys(TEXTS, "inline"))
PER_KIND = 10


def all_made(part: str) -> list[dict[str, str]]:
    return answers.made(part, GOLDS, PER_KIND * len(answers.PARTS[part]), 0)


@pytest.mark.parametrize("part, kinds", [("wrong", WRONG), ("right", RIGHT)])
def test_every_kind_has_its_share_and_the_seed_decides(part, kinds):
    rows = all_made(part)
    assert [row["kind"] for row in rows] == [kind for kind in kinds for _ in range(PER_KIND)]
    assert len({(row["kind"], row["gold"], row["answer"]) for row in rows}) == len(rows) and rows == all_made(part)
    assert all(row["gold"] != row["answer"] and row["file"] == "inline" and row["part"] == part for row in rows)
    assert rows != answers.made(part, GOLDS, PER_KIND * len(kinds), 1)


@pytest.mark.slow
def test_too_few_golds_are_an_error():
    with pytest.raises(ValueError, match="fewer than 2 different numbers among the golds"):
        answers.made("wrong", answers.by_shape({"15": "inline"}), 130, 0)
    with pytest.raises(ValueError, match="only 20 of 25 wrong answers of kind 'sign'; give more golds"):
        answers.made("wrong", answers.by_shape(dict.fromkeys(["15", "16", "17", "18", "19"], "inline")), 325, 0)


@pytest.mark.parametrize("kind", ["sign", "digit", "swap", "element"])
def test_wrong_answers_have_other_values(kind):
    for row in [row for row in all_made("wrong") if row["kind"] == kind]:
        (shape, parts), (other_shape, others) = (
            read(row["gold"]),
            read(row["answer"].replace("−", "-").replace(r"\text{-}", "-")),
        )
        values = leaves(shape, parts), leaves(other_shape, others)
        if None in values:  # letters and equations, whose texts differ
            assert parts != others
        else:
            equal = [same(one, other) for one, other in zip(*values, strict=len(values[0]) == len(values[1]))]
            assert len(values[0]) != len(values[1]) or not all(equal), row


def test_right_answers_have_the_same_values():
    """Covers the kinds that the campaign's own reader knows."""
    compared = collections.Counter()
    for row in all_made("right"):
        values = [value(row[name]) for name in ("gold", "answer")]
        if None not in values and row["kind"] in ("fraction", "thousands", "zeros", "code", "product", "commuted"):
            assert same(*values), row
            compared[row["kind"]] += 1
    assert len(compared) == 6 and compared.total() > 35, compared


@pytest.mark.parametrize("text, shape, parts", [
    ("1,234", "number", ("1,234",)), (r"(1, \frac12)", "tuple", ("1", r"\frac12")), ("[0,1)", "interval", ("[", "0", "1", ")")),
    (r"6\text{ cm}^2", "unit", ("6", "cm^2")), ("30^{\\circ}", "unit", ("30", "deg")), ("204_{5}", "base", ("204", "5")),
    (r"2 \text{ and } 3", "list", ("2", "3")), (r"x \le 5", "relation", ("x", r"\le", "5")), (r"\text{(B)}", "choice", ("B",)),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", "matrix", ("1", "2")), (r"3 \pm 1", "other", ()), (r"\{1,2\}", "set", ("1", "2")),
    ("(2,1]", "tuple", ()), (r"(0,1) \cup (2,3]", "union", ("(0,1)", "(2,3]")), (r"\mbox{four}", "other", ()),
])  # fmt: skip
def test_the_campaign_reads_shapes(text, shape, parts):
    assert read(text) == (shape, parts) or (not parts and read(text)[0] in (shape, "other"))


@pytest.mark.parametrize("text, exact", [
    (r"-\frac{3}{4}", Fraction(-3, 4)), (r"2\frac{1}{3}", Fraction(7, 3)), (r"\frac12", Fraction(1, 2)), (r"\$1,\!250", 1250),
    ("3.5e2", 350), ("7/0", None), ("1 2", None), ("54, 803", None), ("12,34", None), ("", None),
])  # fmt: skip
def test_the_campaign_reads_numbers(text, exact):
    assert plain(text) == exact


@pytest.mark.parametrize("one, other, differ", [
    ("5", "6", True), ("5", "5.0", False), ("50", r"50\%", False), (r"50\%", "0.5", False), ("1,2", "2,1", False),
    ("(x+1)^2", "x^2+2x+1", False), ("(x+1)^2", "x^2+2x+2", True), (r"30^\circ", r"\frac{\pi}{6}", False),
    (r"\text{even}", r"\text{odd}", True), ("what?", "5", False), (r"\frac{2}{\sqrt{2}}", r"\sqrt2", False),
    ("x = 5", "5", False),
])  # fmt: skip
def test_only_sure_differences_count(one, other, differ):
    assert surely_differ(one, other) == surely_differ(other, one) == differ


def test_counts_and_targets():
    rows = [{"kind": kind, "gold": "5", "answer": "6"} for kind in ["a"] * 100 + ["b"] * 1900]
    refused, accepted, late = Verdict(0.0, "ok"), Verdict(1.0, "ok"), Verdict(0.0, "timeout", "late")
    results, listed = answers.counted("wrong", rows, [accepted, *[refused] * 1999])
    assert [(r["kind"], r["answers"], r["false"], r["ok"]) for r in results] == [
        ("a", 100, 1, True),
        ("b", 1900, 0, True),
        ("all", 2000, 1, True),
    ]
    assert listed == [{**rows[0], "outcome": "ok"}]
    results, _ = answers.counted("wrong", rows, [accepted, accepted, *[refused] * 1998])
    assert [(r["false"], r["ok"]) for r in results] == [(2, False), (0, True), (2, True)]  # 2 % of a kind
    results, _ = answers.counted("right", rows, [*[refused] * 5, *[accepted] * 1995])
    assert [(r["false"], r["ok"]) for r in results] == [(5, True), (0, True), (5, True)]
    results, listed = answers.counted("wrong", rows, [late, *[refused] * 1999])
    assert [r["ok"] for r in results] == [False, True, False] and listed[0]["outcome"] == "timeout"


def test_hostile_texts_are_100_and_always_the_same():
    rows = hostile()
    assert len(rows) == len({row["id"] for row in rows}) == len({row["pred"] for row in rows}) == 100 and rows == hostile()
    assert all(row["gold"] and row["expected"] is False and len(row["pred"]) <= 25_000 for row in rows)
