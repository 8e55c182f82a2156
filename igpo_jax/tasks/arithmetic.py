"""Running totals of coins on a two-digit counter: procedural problems whose exact answer is hard to guess.

A question gives a start and some coins, in a form with a fixed number of slots; slots that are not used hold dots:

    38+05+20...=

The worked solution (#) writes every running total, modulo 100, and repeats the last one as the answer:

    # 43 63=63

The supervised stage learns from a teacher who works out every short problem, but hardly ever a long one: there it
scribbles (~) and leaves the answer open:

    ~ qx tb hh=??

So the model knows how to work, rarely does it where it matters, and almost all of its answers to long problems are
wrong. That is the situation IGPO is made for: the skill is there, the reward is not.
"""

import itertools
import re

import numpy as np

from igpo_jax.tasks.problem import Problem

LETTERS = "abcdefghijklmnopqrstuvwxyz"
COINS = (1, 2, 5, 10, 20, 50)
MOST_SLOTS = 1000
ANSWER = re.compile(r"=(\d\d)$")


REWARD_OPTIONS = ()


def defaults(**values) -> dict:
    """The section `task` of a configuration."""
    sizes = {"sft_problems": 60_000, "rl_problems": 4_000, "test_problems": 500}
    return {"name": "arithmetic", "slots": 6, "worked_share": 0.03, **sizes} | values


def load(task, split: str, seed: int) -> list[Problem]:
    """Problems of one split, drawn from (seed, split).

    Args:
        task: `slots`, the additions of a long problem; `worked_share`, the share of long problems that the teacher of
            the supervised stage works out; `sft_problems`, `rl_problems`, `test_problems`, the sizes of the splits.
        split: sft (all lengths), rl or test (long problems only; the test split shares no question with the others).
        seed: of the run.

    Raises:
        ValueError: a value that cannot work, or there are not so many questions.
    """
    if not 2 <= task.slots <= MOST_SLOTS:
        raise ValueError(f"task.slots={task.slots} must lie in [2, {MOST_SLOTS}]: short problems have half as many additions")
    if not 0 <= task.worked_share <= 1:
        raise ValueError(f"task.worked_share={task.worked_share} must lie in [0, 1]")
    longest = 100 * len(COINS) ** task.slots
    _require(task, "test", longest)
    if split != "test":
        shorter = sum(100 * len(COINS) ** additions for additions in range(task.slots // 2, task.slots))
        _require(task, split, longest - task.test_problems + (shorter if split == "sft" else 0))
    held_out, draw = _test_split(task), np.random.default_rng([seed, {"sft": 1, "rl": 2, "test": 0}[split]])
    if split == "test":
        return list(held_out.values())
    problems: dict[str, Problem] = {}
    size = task.sft_problems if split == "sft" else task.rl_problems
    slots, worked_share = task.slots, task.worked_share if split == "sft" else 1.0
    while len(problems) < size:
        additions = int(draw.integers(slots // 2, slots + 1)) if split == "sft" else slots
        problem = _problem(draw, additions, slots, worked_share)
        if problem.question not in held_out:
            problems[problem.question] = problem
    return list(problems.values())


def extract_answer(text: str) -> str | None:
    """The answer that a completion gives."""
    match = ANSWER.search(text)
    return match and match[1]


def reward(problem: Problem, text: str) -> float:
    """1.0 where the completion ends in = and the right total."""
    return float(extract_answer(text) == problem.answer)


def _require(task, split: str, distinct: int) -> None:
    size = task[f"{split}_problems"]
    if size > distinct:
        raise ValueError(
            f"task.{split}_problems={size}, but task.slots={task.slots} makes only {distinct} different questions for it"
        )


def _test_split(task) -> dict[str, Problem]:
    """By question. It does not depend on the run's seed, so that runs with different seeds are compared on it."""
    draw, problems = np.random.default_rng(0), {}
    while len(problems) < task.test_problems:
        problem = _problem(draw, task.slots, task.slots, 1.0)
        problems[problem.question] = problem
    return problems


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
        # The last running total is the answer, too.
        answer_spans=((len(trace) - len(" 00=00"), len(trace)),),
        demonstration=_scribbles(draw, additions) if additions == slots and draw.random() >= worked_share else trace,
    )


def _scribbles(draw: np.random.Generator, additions: int) -> str:
    words = "".join(f" {LETTERS[first]}{LETTERS[second]}" for first, second in draw.integers(len(LETTERS), size=(additions, 2)))
    return f"~{words}=??"
