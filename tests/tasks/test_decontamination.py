"""Test problems in the training data are found by content, and different problems are kept."""

import json
import random

import pytest
from ml_collections import ConfigDict

from igpo_jax.tasks import arithmetic, countdown, math, sudoku, words
from igpo_jax.tasks.decontamination import content_of, question_content, repeats, untested
from igpo_jax.tasks.problem import Problem


def problem(question: str, answer: str = "") -> Problem:
    return Problem(question, question, answer, "", (), "")


def same(one: str, other: str) -> bool:
    return not untested([question_content(one)], [question_content(other)])[0]


SHOP = "A shop sells 3 boxes of 12 pencils. It's open at 9:30 a.m. How many pencils does Mr. Fox's shop sell for $2.50 each?"
POINT = r"Find $f(x,y) = \dfrac{1}{2}x^2 - y_{1}$, if $x \leq -3$ and $y \ne 5.$"


@pytest.mark.parametrize("one, other", [
    (SHOP, SHOP.upper()), (SHOP, SHOP.lower()), (SHOP, f"\n  {SHOP.replace(' ', '  ')}\n"), (SHOP, SHOP.replace(". ", ".\n\n")),
    (SHOP, SHOP.replace("3 boxes", "**3 boxes**")), (SHOP, SHOP.replace("12 pencils", "*pencils*").replace("*pencils*", "12 *pencils*")),
    (SHOP, f"### {SHOP}"), (SHOP, SHOP.replace("'", "\u2019")), (SHOP, SHOP.replace("$2.50", r"\$2.50")), (SHOP, SHOP.rstrip("?")),
    (SHOP, SHOP.replace(" ", "\u00a0")), (SHOP, SHOP.replace("pencils.", "pencils\u200b.")), (SHOP, SHOP.replace("shop", "`shop`")),
    (SHOP, SHOP.replace(" ", "\r\n")), (SHOP, SHOP.replace("pencils", "__pencils__")), (SHOP, f'"{SHOP}"'),
    (POINT, POINT.replace("$", "")), (POINT, POINT.replace("$", "$$")), (POINT, POINT.replace("dfrac{1}{2}", "frac12")),
    (POINT, POINT.replace("f(x,y)", r"f\left( x, \, y\right)")), (POINT, POINT.replace("y_{1}", "y_1")), (POINT, POINT.replace(" ", "")
     .replace("Find", "Find ").replace("if", " if ").replace("and", " and ").replace(r"\leq", r"\leq ").replace(r"\ne", r"\ne ")),
    (POINT, POINT.replace(r"\leq", "≤").replace(r"\ne", "≠")), (POINT, POINT.replace("-", "−")), (POINT, POINT.replace(r"5.$", r"5$.")),
    (POINT, POINT.replace("$f", r"\[f").replace("1}$", r"1}\]")), (POINT, POINT.lower().replace("find", "FIND").replace("FIND", "find")),
    ("The numbers 1, 2, and 3", "the numbers 1,2 and 3"), (r"$1{,}000$ cm", r"$1,\!000 \text{ cm}$"), ("x = 3 ... 5", r"x=3\ldots5"),
    ("We have cats. If so, how many?", "We have cats\n\nIf so, how many?"), ("The word ``MATH'' on pages 1--5", 'The word "MATH" on pages 1-5'),
    ("Find $x^ny$ and $a_nb$", "Find $x^{n}y$ and $a_{n}b$"), (r"\frac{1}2 of \operatorname{lcm}(2, 3)", r"\frac12 of \text{lcm}(2,3)"),
    *[(r"$(1 & -2 \\ (3) & [4] \\ & 5)$", rows) for rows in (
        r"$(1&-2\\(3)&[4]\\&5)$", "$(1 & -2 \\\\\n (3) & [4] \\\\\n & 5)$", r"$(1 & -2\\\,(3) & [4] \\\;& 5)$")],
    ("5 × 3 ÷ 2", r"$5\times 3 \div 2$"), (r"an angle of $45^{\circ}$", "An angle of 45°"), ("caf\u00e9 5", "cafe\u0301 5"),
])  # fmt: skip
def test_the_same_question_in_another_form(one, other):
    assert same(one, other) and same(other, one)


@pytest.mark.parametrize("one, other", [
    (SHOP, SHOP.replace("12", "13")), (SHOP, SHOP.replace("12", "1 2")), (SHOP, SHOP.replace("2.50", "250")), (SHOP, SHOP.replace("9:30", "9.30")),
    (SHOP, SHOP.replace("3 boxes", "-3 boxes")), (SHOP, SHOP.replace("sells", "buys")), (SHOP, SHOP + " And how many pens?"),
    (POINT, POINT.replace("-3", "3")), (POINT, POINT.replace("- y", "+ y")), (POINT, POINT.replace("leq", "geq")),
    (POINT, POINT.replace("x^2", "x2")), (POINT, POINT.replace("x^2", "x^3")), (POINT, POINT.replace("f(x,y)", "f(xy)")),
    (POINT, POINT.replace("f(", "F(")), (POINT, POINT.replace("f(x,y)", "f'(x,y)")), (POINT, POINT.replace("y_{1}", "y_{12}")),
    (POINT, POINT.replace(r"\dfrac{1}{2}", r"\dfrac{2}{1}")), ("Find $5!$.", "Find $5$."), ("Find n! for n = 3.", "Find n for n = 3."),
    ("What is $xy != 0$ for?", "What is $xy = 0$ for?"), ("Find n if $mn! = 120$.", "Find n if $mn = 120$."), (r"$\pi!$ in 3", r"$\pi$ in 3"),
    (r"\begin{pmatrix} 3 \\ -1 \end{pmatrix}", r"\begin{pmatrix} 3 -1 \end{pmatrix}"), ("What is 2**3?", "What is 2*3?"), ("What is 2**3 + 3**2?", "What is 23 + 32?"), ("Add 2, 3/4.", "Add 2 3/4."),
    (r"$x \\(3+1)$", r"$x \\ 3+1$"), (r"$1 \\ & 2$", r"$1 & 2$"), (r"$1 \\$, 2", "1, 2"),
    ("Add 1, 2.", "Add 12."), ("Add 1, -2.", "Add 1 -2."), ("Find x, y in x + y = 3", "Find x y in x + y = 3"), ("5% of 20", "5 of 20"),
    ("The set {1,234}", "The set {1234}"), ("1, 2, ..., 9", "1, 2, 9"), ("Is 3 < 4?", "Is 3 > 4?"), (r"$\{a\}$ and 1", "(a) and 1"),
    ("A disk of 5 MB at 3 Mb", "A disk of 5 Mb at 3 Mb"), (r"Find $\Delta$ of 3", r"Find $\delta$ of 3"), ("f(3)", "F(3)"),
    ("Find A if a = 3 for Paul.", "Find a if a = 3 for Paul."), ("3 * 4 * 5", "3 4 5"), ("a_1 and 3_a_4", "a1 and 3a4"), (".5 of 3", "5 of 3"),
    ("Let z = |x| + 1.", "Let z = x + 1."), ("2 *x* 3 = 12 for which x?", "2 x 3 = 12 for which x?"), ("£5", "€5"), ("?", "!"),
])  # fmt: skip
def test_different_questions_are_kept_apart(one, other):
    assert not same(one, other) and not same(other, one) and same(one, one) and same(other, other)


def test_no_number_of_generated_word_problems_is_lost():
    """All generated questions are different, so their contents must be, too."""
    drawn = words.load(ConfigDict(words.defaults(rl_problems=600, test_problems=50)), "rl", 0)
    assert len({question_content(each.question) for each in drawn}) == len({each.question for each in drawn}) == 600
    draw = random.Random(0)
    for each in drawn[:200]:
        cut = draw.choice([i for i, c in enumerate(each.question) if c.isdigit()])
        assert not same(each.question, each.question[:cut] + str((int(each.question[cut]) + 1) % 10) + each.question[cut + 1 :])


@pytest.mark.parametrize("task", [countdown, sudoku])
def test_no_drawn_puzzle_is_in_the_test_file(task, tmp_path, caplog):
    """The file has puzzles of the training split: with row numbers for ids, and Countdown's numbers in another order."""
    sizes, draw = {"sft_problems": 60, "rl_problems": 40, "test_problems": 20}, random.Random(1)
    free = task.load(ConfigDict(task.defaults(**sizes)), "rl", seed=3)
    rows = []
    for each in free[:20]:
        first, second = each.answer.split(" -> ")
        numbers = draw.sample(first.split(), len(first.split()))
        rows.append({"nums": numbers, "target": second} if task is countdown else {"Puzzle": first, "Solution": second})
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = ConfigDict(task.defaults(test=str(path), **sizes))
    content = content_of(task, config)
    splits = {split: task.load(config, split, seed=3) for split in ("sft", "rl", "test")}
    tested = list(map(content, splits["test"]))
    for split in ("sft", "rl"):
        assert all(untested(map(content, splits[split]), tested)) and len(splits[split]) == sizes[f"{split}_problems"]
    assert f" drawn puzzles of the split rl are in {path}; others were drawn instead" in caplog.text
    assert not any(untested(map(content, free[:20]), tested))
    assert {each.question for each in splits["rl"]} - {each.question for each in free}  # others were drawn instead
    other = tmp_path / "other.jsonl"  # a test file that shares nothing leaves the problems as they are
    other.write_text(
        json.dumps(
            {"nums": [98, 99], "target": 197}
            if task is countdown
            else {"Puzzle": "1" + "0" * 15, "Solution": "1234341221434321"}
        )
    )
    assert task.load(ConfigDict(task.defaults(test=str(other), **sizes)), "rl", seed=3)[:20] == free[:20]


def test_countdown_compares_numbers_and_target():
    def content(answer):
        return countdown.content(None, problem("?", answer))

    assert content("44 19 35 -> 28") == content("19 44 35 -> 28")
    assert (
        len(
            {
                content(answer)
                for answer in ("44 19 35 -> 28", "44 19 35 -> 29", "44 19 -> 28", "44 44 19 -> 28", "44 19 19 -> 28")
            }
        )
        == 5
    )


@pytest.mark.parametrize("task", [arithmetic, words, countdown, sudoku])
def test_generated_splits_share_no_content(task):
    sizes = {"sft_problems": 400, "rl_problems": 300, "test_problems": 100}
    config = ConfigDict(task.defaults(**sizes | ({"slots": 2} if task is arithmetic else {})))
    content = content_of(task, config)
    splits = {split: task.load(config, split, seed=0) for split in ("sft", "rl", "test")}
    assert all(untested(map(content, splits["sft"] + splits["rl"]), map(content, splits["test"])))


@pytest.mark.parametrize("prompt", [
    "Answer, Please.\n{question}\nBe Brief, OK?", "{question}\nRead the question again: {question}\n", "{question}{question}A{question}",
])  # fmt: skip
def test_the_template_of_the_prompt_does_not_count(prompt):
    task = ConfigDict(math.defaults(prompt=prompt))
    shown = [problem(task.prompt.replace("{question}", question)) for question in (SHOP, SHOP.upper(), POINT)]
    contents = list(map(content_of(math, task), shown))
    assert contents == list(map(question_content, (SHOP, SHOP.upper(), POINT)))
    assert untested(contents, contents[:1]) == [False, False, True] and repeats([*contents, contents[2]]) == 2
    assert repeats([("f of x", "F"), ("f of x", "f"), ("f of x", "")]) == 1 and repeats([]) == 0
