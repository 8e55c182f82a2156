"""Running totals of coins on a two-digit counter: procedural problems whose exact answer is hard to guess.

    38+05+20...=     question: a start, coins, and dots in the unused slots
    # 43 63=63       worked solution: every running total, modulo 100, and the last one again as the answer
    ~ qx tb hh=??    scribbles, which leave the answer open

The supervised stage imitates a teacher who works out every short problem but scribbles on most long ones. The model can then
solve long problems but rarely does, so almost all of its answers get no reward.
"""

import itertools
import re
from collections.abc import Container

import numpy as np

from igpo_jax.tasks.problem import DRAWN_SIZES, Problem

LETTERS = "abcdefghijklmnopqrstuvwxyz"
COINS = (1, 2, 5, 10, 20, 50)
MAX_SLOTS = 1000
ANSWER = re.compile(r"=(\d\d)$")
REWARD_OPTIONS = ()


def defaults(**values) -> dict:
    return {
        "name": "arithmetic",
        "slots": 6,  # additions of a long problem
        "worked_share": 0.03,  # share of long problems that the supervised teacher works out
        **DRAWN_SIZES,
    } | values


def load(task, split: str, seed: int) -> list[Problem]:
    """Returns the problems of one split, drawn with (seed, split): all lengths for sft, long ones for rl and test.
    The test split shares no question with the others and ignores the seed, so that runs with different seeds are comparable.
    Raises ValueError if a setting is out of range, or there are fewer different questions than problems."""
    if not 2 <= task.slots <= MAX_SLOTS:
        raise ValueError(f"task.slots={task.slots} must be in [2, {MAX_SLOTS}]: short problems have half as many additions")
    if not 0 <= task.worked_share <= 1:
        raise ValueError(f"task.worked_share={task.worked_share} must be in [0, 1]")
    longest = 100 * len(COINS) ** task.slots
    _require(task, "test", longest)
    if split == "test":
        return _draw_distinct(task, split, np.random.default_rng(0))
    shorter = sum(100 * len(COINS) ** additions for additions in range(task.slots // 2, task.slots))
    _require(task, split, longest - task.test_problems + (shorter if split == "sft" else 0))
    held_out = {problem.question for problem in load(task, "test", seed)}
    return _draw_distinct(task, split, np.random.default_rng([seed, {"sft": 1, "rl": 2}[split]]), held_out)


def extract_answer(text: str) -> str | None:
    match = ANSWER.search(text)
    return match[1] if match else None


def reward(problem: Problem, text: str) -> float:
    """Returns 1.0 if a completion ends in "=" and the right total."""
    return float(extract_answer(text) == problem.answer)


def _require(task, split: str, distinct: int) -> None:
    size = task[f"{split}_problems"]
    if size > distinct:
        raise ValueError(
            f"task.{split}_problems={size}, but task.slots={task.slots} makes only {distinct} different questions for it"
        )


def _draw_distinct(task, split: str, draw: np.random.Generator, held_out: Container[str] = ()) -> list[Problem]:
    problems: dict[str, Problem] = {}  # by question
    worked_share = task.worked_share if split == "sft" else 1.0
    while len(problems) < task[f"{split}_problems"]:
        additions = int(draw.integers(task.slots // 2, task.slots + 1)) if split == "sft" else task.slots
        problem = _problem(draw, additions, task.slots, worked_share)
        if problem.question not in held_out:
            problems[problem.question] = problem
    return list(problems.values())


def _problem(draw: np.random.Generator, additions: int, slots: int, worked_share: float) -> Problem:
    start, terms = int(draw.integers(100)), [COINS[coin] for coin in draw.integers(len(COINS), size=additions)]
    totals = [total % 100 for total in itertools.accumulate(terms, initial=start)][1:]
    question = f"{start:02d}" + "".join(f"+{term:02d}" for term in terms) + "..." * (slots - additions) + "="
    trace = "#" + "".join(f" {total:02d}" for total in totals) + f"={totals[-1]:02d}"
    return Problem(
        id=question,
        question=question,
        answer=f"{totals[-1]:02d}",
        trace=trace,
        # The last running total also states the answer.
        answer_spans=((len(trace) - len(" 00=00"), len(trace)),),
        demonstration=_scribbles(draw, additions) if additions == slots and draw.random() >= worked_share else trace,
    )


def _scribbles(draw: np.random.Generator, additions: int) -> str:
    words = "".join(f" {LETTERS[first]}{LETTERS[second]}" for first, second in draw.integers(len(LETTERS), size=(additions, 2)))
    return f"~{words}=??"
