"""The lines of text that `evaluate` prints at its end."""

import pytest

from igpo_jax.evaluate.summaries import card_lines, diff_lines

ONE = {"problems": 1319, "draws": 1, "ungraded": 0, "pass@1": 0.721, "interval95": [0.696, 0.744]}


@pytest.mark.parametrize(
    "numbers, expected",
    [
        (ONE, "72.1% of 1,319 problems (95% interval 69.6 to 74.4)"),
        (
            ONE | {"draws": 16, "pass@16": 0.9, "ungraded": 1200},
            "72.1% of 1,319 problems (95% interval 69.6 to 74.4), mean of 16 draws; pass@16 90.0%; "
            "1,200 completions without a verdict",
        ),
        (ONE | {"draws": 2, "pass@2": None, "interval95": None}, "72.1% of 1,319 problems, mean of 2 draws"),
        (ONE | {"pass@1": None, "interval95": None, "ungraded": 1319}, "no verdict on any of 1,319 problems"),
    ],
)
def test_a_benchmark_has_a_line(numbers, expected):
    assert card_lines({"benchmarks": {"gsm8k": numbers}}) == [f"gsm8k: {expected}"]


def test_published_numbers_follow_their_benchmark():
    card = {"benchmarks": {"gsm8k": ONE, "amc": ONE}, "published": {"gsm8k": ["LLaDA: 70", "LLaDA-1.5: 80"]}}
    assert [line.partition(":")[0] for line in card_lines(card)] == ["gsm8k", "  published", "  published", "amc"]
    assert card_lines(card)[1] == "  published: LLaDA: 70"


PAIRED = {"one": 0.5, "other": 0.625, "difference": 0.125, "interval95": [-0.05, 0.3], "p_value": 0.2109375}
PAIRED |= {"better": 3, "worse": 1, "problems": 16, "left_out": 0}
TEXT = "50.0% -> 62.5% (+12.5 points, 95% interval -5.0 to +30.0, p = 0.21; 3 problems better, 1 worse, of 16)"


def test_two_evaluations_have_a_line_for_each_benchmark():
    found = {"amc": None, "sums": PAIRED, "math": PAIRED | {"left_out": 1100}}
    left_out = TEXT.replace("of 16)", "of 16; 1,100 left out, without a verdict)")
    assert diff_lines(found) == ["amc: only one of the two evaluations has it", f"sums: {TEXT}", f"math: {left_out}"]


def test_a_comparison_of_samplers_has_two_lines():
    numbers = {"accuracy": PAIRED, "changed_texts": 0.25, "logits": None}
    numbers |= {"exact": {"evaluations": 24.0, "flops": 3e9}, "fast": {"evaluations": 16.0, "flops": 1e9}}
    cost = "network evaluations divided by 1.50, FLOPs divided by 3.00"
    expected = [f"sums: exact sampler -> this sampler: {TEXT}", f"  25.0% of the texts differ; {cost}"]
    assert card_lines({"benchmarks": {"sums": numbers}}) == expected
