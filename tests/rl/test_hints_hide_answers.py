"""No token of an answer is ever a hint: real records, a real tokenizer, a run's arrays, hundreds of draws."""

import importlib.util
import json
import pathlib
import re

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from igpo_jax.data.pipeline import prompt_arrays
from igpo_jax.tasks import math
from igpo_jax.tasks.answer_spans import answer_spans
from igpo_jax.tokenizers import load_tokenizer, train_sentencepiece
from tokenizer_files import write_tokenizer

ROOT = pathlib.Path(__file__).parents[2]
LENGTH, GROUP = 96, 40
LONG = "We add one to it again and again. " * 30
# problem, solution, answer (in the solution's last box)
MATH = {
    "several times": ("What is 1+2?", "First 3, then $3$ and 3 again: 1+2=3. So \\boxed{3} it is, and 3 = 3.", "3"),
    "at the beginning": ("Which one?", "\\boxed{x+1} is right, for it is the only one that there is of them.", "x+1"),
    "inside text": ("Which words?", "We say \\text{that it is \\boxed{\\text{not so}} here}, no.", "\\text{not so}"),
    "two boxes": ("What is 2+2?", "Not \\boxed{5}, but it is surely \\boxed{4}. That is what we have learned.", "4"),
    "nested braces": ("Half?", "A half, hence \\boxed{\\frac{1}{\\sqrt{2}}}. That is all.", "\\frac{1}{\\sqrt{2}}"),
    "spaces in the box": ("Seven?", "It is certainly $\\boxed{ 7 }$, as we have seen many times before.", "7"),
    "beyond the canvas": ("Long?", LONG + "So it is \\boxed{31}.", "31"),
    "long after the answer": ("Early?", "So it is \\boxed{31}. " + LONG, "31"),
    "no box": ("Nothing?", "Nobody knows what it is, and nobody will say so in a box.", "8"),
    "boxed twice": ("What is 1+270?", "Hence, it is \\boxed{271}. Then we check it, and so $1 + 270 = \\boxed{271}$.", "271"),
    "after a root sign": ("Which root?", "It is $x = √5$, and √5 √5 is 5. We have \\boxed{√5}.", "√5"),
    "several results": ("Cost?", "They pay 2*4=$8.\nOf 8 friends, each pays 8-0 = 8 dollars.\nThe answer is 8, not 9.", "8"),
    "empty box": ("Empty?", "Here is what we found after all: \\boxed{}.", "0"),
}  # fmt: skip


def load_hints():
    specification = importlib.util.spec_from_file_location("hints", ROOT / "tests" / "campaigns" / "hints.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


hints = load_hints()


@pytest.fixture(scope="module", params=["unigram", "bpe", "byte-level"])
def world(request, tmp_path_factory):
    """{kind: problems}, and a tokenizer whose tokens cross the borders of answers."""
    folder = tmp_path_factory.mktemp("hints")
    rows = [{"problem": p, "solution": s, "answer": a, "id": name} for name, (p, s, a) in MATH.items()]
    (folder / "math.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"math": hints.load("math", str(folder / "math.jsonl"))}
    data["gsm8k"] = hints.load("gsm8k", str(ROOT / "tests" / "tasks" / "gsm8k_sample.jsonl"))
    texts = [problem.trace for problems in data.values() for problem in problems]
    if request.param == "byte-level":
        special = write_tokenizer(folder, vocab_size=700, texts=texts * 5)
        return data, load_tokenizer(folder / "tokenizer.json", special["<|mdm_mask|>"])
    train_sentencepiece(texts * 5, folder / "tokenizer.model", kind=request.param, vocab_size=700)
    return data, load_tokenizer(folder / "tokenizer.model")


RESULTS = [
    "= {}",
    "$x = {}$",
    "\\boxed{{{}}}",
    "${} = x$",
    "The answer is {}.",
    "&= {} \\\\",
    "\\approx {},",
    "=${}.",
    "= {} dollars",
]
OTHERS = ["She had {} apples.", "Then 7 more come.", "It is √2 or 1{} or {}.5.", "For $x > 3$ we go on."]


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2000), st.lists(st.sampled_from(RESULTS + OTHERS), min_size=1, max_size=8), st.sampled_from([" ", "\n"]))
def test_no_result_that_equals_the_answer_is_hintable(world, answer, parts, space):
    solution = (
        space.join(part.format(answer, answer) for part in parts) + f"{space}So it is {answer}, and no more than {answer}."
    )
    spans = answer_spans(solution, str(answer))
    trace = f"<reasoning>\n{solution}\n</reasoning>\n<answer>\n\\boxed{{{answer}}}\n</answer>"
    shift, line = len("<reasoning>\n"), trace.rindex("\\boxed{")
    hidden = [(begin + shift, end + shift) for begin, end in spans] + [(line, trace.index("\n", line))]
    problem = hints.Problem("i", "q", str(answer), trace, tuple(hidden), trace)
    _, arrays = prompt_arrays(
        [problem], world[1], prompt_length=64, completion_length=2048, exclude_answer=True, overflow="error"
    )  # fmt: skip
    assert hints.exposed("gsm8k", [problem], arrays, world[1]) == 0
    if space == "\n":  # in one line, every number that equals the answer is hidden
        given = sum(part.startswith("She") for part in parts)
        assert sum(not any(b <= place < e for b, e in spans) for place in starts_of(f"had {answer} a", solution)) == given


def starts_of(text, solution):
    return [match.start() + 4 for match in re.finditer(re.escape(text), solution)]


def made(world, kind, cfg):
    """Returns canvases, problems and arrays."""
    problems, tokenizer = world[0][kind], world[1]
    problems, arrays = prompt_arrays(
        problems, tokenizer, prompt_length=640, completion_length=LENGTH, exclude_answer=cfg.exclude_answer,
        overflow="error",
    )  # fmt: skip
    return hints.canvases(problems, arrays, tokenizer, jax.random.key(3), GROUP, cfg), problems, arrays


@pytest.mark.parametrize("kind", ["gsm8k", "math"])
def test_no_token_of_an_answer_is_shown(world, kind):
    canvases, problems, arrays = made(world, kind, hints.PAPER)
    result = hints.count(kind, canvases, world[1])
    assert result["canvases"] == GROUP * len(problems) and result["leaks"] == 0 and result["hint_tokens"] > 5
    assert hints.exposed(kind, problems, arrays, world[1]) == 0
    for canvas in canvases:  # nor do they touch the problem's own spans
        offsets = world[1].encode_with_offsets(canvas.problem.trace)[1]
        assert not hints.touches(canvas, offsets, list(canvas.problem.answer_spans)), canvas.problem.id


@pytest.mark.parametrize("kind", ["gsm8k", "math"])
def test_the_released_switches_show_answers(world, kind):
    canvases, problems, arrays = made(world, kind, hints.REFERENCE_CODE)
    assert hints.count(kind, canvases, world[1])["leaks"] > 0
    assert hints.exposed(kind, problems, arrays, world[1]) > 0


def test_the_cases_are_as_nasty_as_they_say(world):
    data, tokenizer = world
    straddling = set()
    for problem in data["math"]:
        offsets = tokenizer.encode_with_offsets(problem.trace)[1]
        assert (len(offsets) > 2 * LENGTH) == (problem.id in ("beyond the canvas", "long after the answer"))
        for first, last in problem.answer_spans:
            straddling |= {problem.id for begin, end in offsets if begin < first < end or begin < last < end}
    assert len(straddling) >= 2, "tokens reach over the border of an answer"
    canvases, problems, _ = made(world, "math", hints.PAPER)
    shown = {p.id: {place for c in canvases if c.problem is p for place in c.places.tolist()} for p in problems}
    long = next(p for p in problems if p.id == "long after the answer")
    offsets = tokenizer.encode_with_offsets(long.trace)[1]
    after = long.trace.index("31") + 2
    assert any(offsets[place][0] > after for place in shown[long.id]), "hints go on behind the answer in the solution"
    for name in ("no box", "empty box"):  # unknown answer position: only the template's tag may show
        problem = next(p for p in problems if p.id == name)
        first = problem.trace.index(MATH[name][1])
        last = first + len(MATH[name][1])
        offsets = tokenizer.encode_with_offsets(problem.trace)[1]
        assert all(offsets[place][1] <= first or offsets[place][0] >= last for place in shown[name])


def test_an_answer_that_begins_the_trace_leaves_no_hints(world, tmp_path):
    """Uses no template tags, so nothing precedes the last answer, from which chunks could be cut."""
    row = {"problem": "Which one?", "solution": "\\boxed{x+1} is right, as we know it.", "answer": "x+1"}
    (tmp_path / "one.jsonl").write_text(json.dumps(row))
    task = ConfigDict(math.defaults(rl=f"math:{tmp_path / 'one.jsonl'}", demonstration="{solution}"))
    problems, arrays = prompt_arrays(
        math.load(task, "rl", 0), world[1], prompt_length=640, completion_length=LENGTH, exclude_answer=True,
        overflow="error",
    )  # fmt: skip
    canvases = hints.canvases(problems, arrays, world[1], jax.random.key(0), GROUP, hints.PAPER)
    offsets = world[1].encode_with_offsets(problems[0].trace)[1]
    begin = problems[0].trace.index("x+1")
    assert all(offsets[place][1] <= begin for canvas in canvases for place in canvas.places)


@pytest.mark.parametrize("hidden, answer, found", [
    (["12 + 3 = 15"], "3", True), (["12 + 13"], "3", False), (["1,000 apples"], "1000", True), (["is -5"], "5", True),
    (["x + 1"], "x+1", True), (["x", "+1"], "x+1", False), (["x=1, then"], "1", True), ([], "1", False),
    ([r"\frac{1}{2}"], r"\frac{1}{2}", True), (["3.50"], "3.5", True),
])  # fmt: skip
def test_residual_matches(hidden, answer, found):
    assert hints.says(hidden, answer) is found


@pytest.mark.parametrize("kind, solution, answer, hidden", [
    ("gsm8k", "6 and 6, so 6, done", "6", ["\\boxed{6}", "6", "6", "6"]), ("gsm8k", "it is none", "7", ["\\boxed{7}"]),
    ("math", "\\boxed{1} or \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}", ["\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"]),
])  # fmt: skip
def test_the_benchmark_finds_answers_on_its_own(kind, solution, answer, hidden):
    trace = f"<reasoning>\n{solution}\n</reasoning>\n<answer>\n\\boxed{{{answer}}}\n</answer>"
    problem = hints.Problem("i", "q", answer, trace, (), trace)
    assert [trace[slice(*span)] for span in sorted(set(hints.answer_spans(kind, problem)), key=lambda span: -span[0])] == hidden


def test_a_leak_is_noticed():
    problem = hints.Problem("i", "q", "5", "it is 5", (), "")
    canvas = hints.Canvas(problem, np.array([1]), ["5"])
    assert hints.touches(canvas, [(0, 5), (5, 7)], [(6, 7)]) and not hints.touches(canvas, [(0, 5), (5, 6)], [(6, 7)])
