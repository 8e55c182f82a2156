"""Measures whether hints reveal the answer: 10,000 canvases from GSM8K and MATH, made as in a run.

    python tests/campaigns/hints.py --gsm8k=gsm8k_train.jsonl --math=math_train7500.jsonl [--output=FILE]

The following must stay hidden (docs/method.md section 6): the template's answer line, the content of the last box or, without
a box, the last occurrence of the answer, and everything equal to the answer in a box, right after an equals sign, and among the
numbers of the last sentence and the last line. This script finds these places with plain string operations, not with
igpo_jax/tasks/answer_spans.py, and compares them with the tokenizer's offsets, not with the arrays that hide them:

    leaks       canvases with a token that overlaps such a span; exit status 1 unless 0
    residual    canvases whose hint text contains the answer anyway, because the trace also has it elsewhere

Both are measured again under REF, the released code's switches, which must leak: otherwise this script could not detect a
leak. Prints one JSON line per data set and switch, then a table.
"""

import argparse
import dataclasses
import datetime
import functools
import itertools
import json
import pathlib
import platform
import re
import sys
import tempfile
from fractions import Fraction

sys.path.append(str(pathlib.Path(__file__).parents[1] / "helpers"))

import jax
import numpy as np
from ml_collections import ConfigDict

from igpo_jax.data.pipeline import PromptBatch, prompt_arrays, take_rows
from igpo_jax.rl.hints import InpaintingConfig, inpaint
from igpo_jax.tasks import math
from igpo_jax.tasks.problem import Problem
from igpo_jax.tokenizers import Tokenizer, load_tokenizer, train_sentencepiece
from tokenizer_files import write_tokenizer

LENGTH = 256
MASK = -1  # not a token id
PAPER = InpaintingConfig()
REFERENCE_CODE = InpaintingConfig(exclude_answer=False, round_up=True, stretch=True)
NUMBER = re.compile(r"(?<![\d.])(?<!\d,)(?:(?:[1-9]\d{0,2}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?!\d)|\.\d+)")


@functools.cache
def answer_spans(kind: str, problem: Problem) -> list[tuple[int, int]]:
    """Returns the spans of a trace that must be hidden, from its text: the template's line, the answer in the solution."""
    text, answer = problem.trace, problem.answer
    line = text.rindex("\\boxed{")
    solution = text[: text.rindex("\n</reasoning>")]
    boxes, numbers = box_contents(solution), numbers_equal(solution, answer)
    # Of numbers after an equals sign, those that a text, a unit or nothing follows are results, but not factors or summands.
    results = [
        (begin, end)
        for begin, end in numbers
        if solution[max(0, begin - 20) : begin].rstrip(" &$-").endswith(("=", "\\approx", "\\equiv"))
        and re.match(r"\s*(?:$|[.,;]?\s*(?:$|\n|\\\\|\$|[a-zA-Z]{3})|\\text|\\\]|=)", solution[end : end + 20])
    ]
    bare = solution.rstrip().rstrip(".!?$")
    sentence = max(
        bare.rfind(mark + sign + space) for mark in ".!?" for sign in ("", "$", "$$", ")", "}", "\\]") for space in " \n"
    )
    last = min(bare.rfind("\n"), sentence)
    found = [(line, text.index("\n", line)), *results, *(span for span in numbers if span[0] > last)]
    found += [span for span in boxes if span in numbers or same(solution[slice(*span)], answer)]
    found += boxes[-1:] if kind == "math" else numbers[-1:]
    # Formulas that are the answer letter for letter: after an equals sign, and in the last sentence.
    for match in re.finditer(r"[=$]\s*([^=$\n]*[^=$\n\s.,])[.,]?\s*(?=[=$\n]|\\\\|$)", solution):
        if same(match[1], answer) and (match[0][0] == "=" or match.start() > last):
            found.append(match.span(1))
    return found


def same(text: str, answer: str) -> bool:
    return text.replace(" ", "") == answer.replace(" ", "")


def numbers_equal(text: str, answer: str) -> list[tuple[int, int]]:
    """Returns the spans of all whole numbers of a text that equal a numerical answer."""
    bare = answer.replace("\\!", "").replace(" ", "").replace("$", "").replace("\\", "")
    if not NUMBER.fullmatch(bare.removeprefix("-")):
        return []
    wanted, found = value(bare), []
    for match in NUMBER.finditer(text):
        begin = match.start()
        inside_word = re.search(r"(?<!\\)\b[a-zA-Z]\w*$", text[max(0, begin - 20) : begin]) and not text[:begin].endswith("x")
        negative = re.search(r"(?:^|[^\w)}\] ] ?)-$", text[max(0, begin - 3) : begin]) is not None
        if not inside_word and value(match[0]) * (-1 if negative else 1) == wanted:
            found.append(match.span())
    return found


def box_contents(text: str) -> list[tuple[int, int]]:
    """Returns the spans of the contents of all outermost closed boxes, without surrounding spaces."""
    found, place = [], 0
    while match := re.compile(r"\\(?:boxed|fbox)\{").search(text, place):
        begin = place = match.end()
        depth = 1
        for end in range(begin, len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0) if text[end - 1] != "\\" else 0
            if depth == 0:
                content, place = text[begin:end], end
                found.append((begin + len(content) - len(content.lstrip()), begin + len(content.rstrip())))
                break
    return found


def value(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))


@dataclasses.dataclass(frozen=True)
class Canvas:
    """places: trace positions of the shown tokens. hints: texts of contiguous shown tokens."""

    problem: Problem
    places: np.ndarray
    hints: list[str]


def canvases(
    problems: list[Problem],
    arrays: PromptBatch,
    tokenizer: Tokenizer,
    key: jax.Array,
    group: int,
    cfg: InpaintingConfig,
) -> list[Canvas]:
    """Makes `group` canvases per problem, and finds the trace position of each hint: a second call with the same draws writes
    positions instead of tokens."""
    blank = np.full((len(problems) * group, arrays.trace.shape[1]), MASK, np.int32)
    places = np.broadcast_to(np.arange(blank.shape[1], dtype=np.int32), arrays.trace.shape)
    made = [
        np.asarray(inpaint(key, arrays.problem_id, blank, trace, arrays.trace_length, arrays.hintable, cfg)[0])
        for trace in (arrays.trace, places)
    ]
    found = []
    for row, (tokens, places) in enumerate(zip(*made, strict=True)):
        problem, shown = row // group, np.flatnonzero(tokens != MASK)
        if not np.array_equal(tokens[shown], arrays.trace[problem][places[shown]]):
            raise AssertionError("a hint is not the token of the trace that it should be")
        runs = np.split(shown, np.flatnonzero(np.diff(shown) > 1) + 1) if len(shown) else []
        found.append(Canvas(problems[problem], places[shown], [tokenizer.decode(tokens[run]) for run in runs]))
    return found


def touches(canvas: Canvas, offsets: list[tuple[int, int]], spans: list[tuple[int, int]]) -> bool:
    """Returns whether a shown token overlaps a span."""
    shown = [offsets[place] for place in canvas.places]
    return any(begin < last and end > first for begin, end in shown for first, last in spans)


def says(hints: list[str], answer: str) -> bool:
    """Returns whether a hint contains the answer as a number, or otherwise as a text, ignoring spaces."""
    bare = answer.replace(" ", "").replace("$", "").replace("\\!", "")
    if re.fullmatch(r"-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)", bare):
        wanted = abs(value(bare.lstrip("-")))
        return any(value(match[0]) == wanted for hint in hints for match in NUMBER.finditer(hint))
    return any(bare in hint.replace(" ", "") for hint in hints)


def count(kind: str, made: list[Canvas], tokenizer: Tokenizer) -> dict:
    """Counts leaks and residual matches; an answer is short if it has one character besides signs and dollars."""
    leaks, residual, of = 0, {True: 0, False: 0}, {True: 0, False: 0}
    encoded = {}
    for canvas in made:
        problem = canvas.problem
        if problem.id not in encoded:
            encoded[problem.id] = tokenizer.encode_with_offsets(problem.trace)[1], answer_spans(kind, problem)
        leaks += touches(canvas, *encoded[problem.id])
        short = len(problem.answer.strip("$-+ \\")) == 1
        of[short] += 1
        residual[short] += says(canvas.hints, problem.answer)
    total = max(len(made), 1)
    return {
        "canvases": len(made),
        "problems": len(encoded),
        "leaks": leaks,
        "residual": sum(residual.values()) / total,
        "residual_one_character": residual[True] / max(of[True], 1),
        "canvases_one_character": of[True],
        "residual_longer": residual[False] / max(of[False], 1),
        "canvases_longer": of[False],
        "hint_tokens": float(np.mean([len(canvas.places) for canvas in made])),
        "canvases_without_hints": sum(not len(canvas.places) for canvas in made),
    }


def exposed(kind: str, problems: list[Problem], arrays: PromptBatch, tokenizer: Tokenizer) -> int:
    """Counts hintable tokens that overlap a span, over all problems: a proof that no number of draws could give."""
    found = 0
    for problem, hintable in zip(problems, arrays.hintable, strict=True):
        offsets, spans = tokenizer.encode_with_offsets(problem.trace)[1], answer_spans(kind, problem)
        for (begin, end), may in zip(offsets, hintable, strict=False):
            found += bool(may) and any(begin < last and end > first for first, last in spans)
    return found


def load(kind: str, path: str) -> list[Problem]:
    """Loads problems with the defaults of the task math; skips those without a solution, which have nothing to hint."""
    task = ConfigDict(math.defaults(rl=f"{kind}:{path}"))
    return [problem for problem in math.load(task, "rl", 0) if problem.trace]


def trained_tokenizers(data: dict[str, list[Problem]], vocabulary: int) -> dict[str, Tokenizer]:
    """Trains a SentencePiece and a byte-level tokenizer on all traces."""
    traces = [problem.trace for problems in data.values() for problem in problems]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        train_sentencepiece(traces, folder / "tokenizer.model", kind="unigram", vocab_size=vocabulary)
        pieces = load_tokenizer(folder / "tokenizer.model")
        special = write_tokenizer(folder, vocab_size=vocabulary, texts=traces)
        return {"SentencePiece": pieces, "byte-level": load_tokenizer(folder / "tokenizer.json", special["<|mdm_mask|>"])}


def main(arguments: list[str] | None = None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gsm8k", required=True)
    parser.add_argument("--math", required=True)
    parser.add_argument("--canvases", type=int, default=10_000, help="half of them from each data set")
    parser.add_argument("--group", type=int, default=1, help="canvases of a problem")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--output", type=pathlib.Path, help="a file for the JSON lines")
    given = parser.parse_args(arguments)
    data = {"gsm8k": load("gsm8k", given.gsm8k), "math": load("math", given.math)}
    results = []
    for (form, tokenizer), (switch, cfg) in itertools.product(
        trained_tokenizers(data, given.vocabulary).items(), (("PAPER", PAPER), ("REF", REFERENCE_CODE))
    ):
        for kind, problems in data.items():
            kept, arrays = prompt_arrays(
                problems, tokenizer, prompt_length=640, completion_length=LENGTH, exclude_answer=cfg.exclude_answer,
                overflow="drop",
            )  # fmt: skip
            number = given.canvases // 2 // given.group
            chosen = np.random.default_rng(0).choice(len(kept), number, replace=number > len(kept))
            some = [kept[i] for i in chosen]
            made = canvases(some, take_rows(arrays, chosen), tokenizer, jax.random.key(0), given.group, cfg)
            before_answer = np.arange(LENGTH) < arrays.trace_length[:, None]
            result = {
                "name": f"{kind} {switch} {form}", "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "device": jax.devices()[0].device_kind, "python": platform.python_version(), "jax": jax.__version__,
                "length": LENGTH, "vocabulary": tokenizer.vocab_size, "settings": dataclasses.asdict(cfg),
                "hintable_tokens_of_all_problems": int((arrays.hintable & before_answer).sum()),
                "all_problems": len(kept), "exposed_tokens_of_all_problems": exposed(kind, kept, arrays, tokenizer),
                **count(kind, made, tokenizer),
            }  # fmt: skip
            excluding = cfg.exclude_answer
            leaking = result["leaks"] + result["exposed_tokens_of_all_problems"]
            result["ok"] = leaking == 0 if excluding else result["leaks"] > 0
            results.append(result)
            print(json.dumps(result), flush=True)
    columns = ("canvases", "leaks", "residual", "residual_one_character", "residual_longer", "hint_tokens", "ok")
    print("\n| | " + " | ".join(column.replace("_", " ") for column in columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for result in results:
        cells = [f"{100 * result[c]:.1f} %" if c.startswith("residual") else f"{result[c]:.4g}" for c in columns[1:-1]]
        row = [result["name"], str(result["canvases"]), *cells, "yes" if result["ok"] else "NO"]
        print(f"| {' | '.join(row)} |")
    if given.output:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text("".join(json.dumps(result) + "\n" for result in results))
    return results


if __name__ == "__main__":
    sys.exit(0 if all(result["ok"] for result in main()) else 1)
