"""Task of adding up coin values modulo 100. The problems are generated, and their answers are hard to guess.

    38+05+20...=     question: a start value, a coin in each used slot, and dots in each unused slot
    # 43 63=63       worked solution: every running total, modulo 100, and the last total again as the answer
    ~ qx tb hh=??    scribbles: random letters that give no answer

In supervised training, the target text (demonstration) of every short problem is its worked solution, but the target of most
long problems is scribbles. Therefore, the trained model is able to solve long problems, but rarely tries. Almost all of its
answers to long problems get no reward."""

import itertools
import re

import numpy as np

from igpo_jax.runtime.checks import require
from igpo_jax.tasks.problem import DRAWN_SIZES, Problem

LETTERS = "abcdefghijklmnopqrstuvwxyz"
COINS = (1, 2, 5, 10, 20, 50)
MAX_SLOTS = 1000
MOST_ADDITIONS = 10**7  # of a split; a stranger's run may ask for it, and an addition takes 2 µs
ANSWER = re.compile(r"=(\d\d)$")
REWARD_OPTIONS = ()


def defaults(**values) -> dict:
    return {
        "name": "arithmetic",
        "slots": 6,  # number of additions in a long problem
        "worked_share": 0.03,  # share of long problems whose demonstration is the solution, not scribbles
        **DRAWN_SIZES,
    } | values


def load(task, split: str, seed: int) -> list[Problem]:
    """Draws the problems of one split at random. `seed` is ignored for the test split. A problem has task.slots // 2 to
    task.slots additions in the split sft, and exactly task.slots additions in the splits rl and test. Raises ValueError if a
    setting is out of range, or if there are not enough different questions."""
    slots, size, is_sft = task.slots, task[f"{split}_problems"], split == "sft"
    if not 2 <= slots <= MAX_SLOTS:
        raise ValueError(f"task.slots={slots} must be in [2, {MAX_SLOTS}]: short problems have half as many additions")
    too_many = f"task.{split}_problems={size} times task.slots={slots} must be at most {MOST_ADDITIONS}"
    require(size * slots <= MOST_ADDITIONS, too_many)
    if not 0 <= task.worked_share <= 1:
        raise ValueError(f"task.worked_share={task.worked_share} must be in [0, 1]")
    held_out = set() if split == "test" else {problem.question for problem in load(task, "test", seed)}
    lengths = range(slots // 2 if is_sft else slots, slots + 1)  # numbers of additions
    distinct = sum(100 * len(COINS) ** additions for additions in lengths) - len(held_out)
    if size > distinct:
        raise ValueError(
            f"task.{split}_problems={size}, but task.slots={slots} makes only {distinct} different questions for it"
        )
    draw = np.random.default_rng(0 if split == "test" else [seed, {"sft": 1, "rl": 2}[split]])
    problems: dict[str, Problem] = {}
    while len(problems) < size:
        additions = int(draw.integers(lengths.start, lengths.stop)) if is_sft else slots
        problem = _problem(draw, additions, slots, task.worked_share if is_sft else 1.0)
        if problem.question not in held_out:
            problems[problem.question] = problem
    return list(problems.values())


def extract_answer(text: str) -> str | None:
    match = ANSWER.search(text)
    return match[1] if match else None


def reward(problem: Problem, text: str) -> float:
    """Returns 1.0 if a completion ends with "=" and the correct total, else 0.0."""
    return float(extract_answer(text) == problem.answer)


def _problem(draw: np.random.Generator, additions: int, slots: int, worked_share: float) -> Problem:
    start, terms = int(draw.integers(100)), [COINS[coin] for coin in draw.integers(len(COINS), size=additions)]
    totals = [f"{total % 100:02d}" for total in itertools.accumulate(terms, initial=start)][1:]
    question = f"{start:02d}" + "".join(f"+{term:02d}" for term in terms) + "..." * (slots - additions) + "="
    trace = demonstration = f"# {' '.join(totals)}={totals[-1]}"
    if additions == slots and draw.random() >= worked_share:
        letters = draw.integers(len(LETTERS), size=(additions, 2))
        demonstration = f"~ {' '.join(LETTERS[first] + LETTERS[second] for first, second in letters)}=??"
    last = len(trace) - len(" 00=00")  # the last running total also states the answer
    return Problem(question, question, totals[-1], trace, ((last, len(trace)),), demonstration)
