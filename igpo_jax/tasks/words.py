"""Word problems like those of GSM8K: a generated story with a question, and a solution with one equation per line.

    Anna buys 3 packs of 12 pens at the market. Her brother owns 7 pens. She gives half of her pens to Ben. How many pens
    does Anna have now?

    Anna buys 3 * 12 = 36 pens.
    She keeps 36 / 2 = 18 pens.
    #### 18

Some questions contain an irrelevant sentence. In supervised training, the target text (demonstration) of every shorter problem
is its solution. Among the longest problems, only a few have a solution as demonstration. The demonstration of the others is
"#### ?", which gives no answer."""

import operator
import pathlib
import random
import re
from typing import NamedTuple

from igpo_jax.runtime.checks import require
from igpo_jax.tasks.problem import DRAWN_SIZES, Problem

MAX_NUMBER = 999
MAX_STEPS = 1000
MOST_EQUATIONS = 2 * 10**6  # of a split; a stranger's run may ask for it, and an equation takes 40 µs
ENDING_TRIES = 20  # draws of an ending's numbers before the story is redrawn
MAX_REPEATS = 1000  # consecutive draws without a new question, after which the supply is considered exhausted
OPEN = "#### ?"
ANSWER = re.compile(r"^#### ([0-9]+)$", re.MULTILINE)
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}
EQUATION = re.compile(r"\[(\w+) (.) (\w+)\]")
ONE = re.compile(r"\b1 ([a-z]+)s\b")  # every noun after a number has a plural in -s
REWARD_OPTIONS = ()

# Values of the names in braces in word_stories.txt.
RANGES = {"start": (10, 90), "few": (2, 9), "some": (2, 12), "more": (1, 60), "speed": (5, 20), "price": (30, 300)}
ASIDE = range(4, 61)
WOMEN = ("Anna", "Clara", "Emma", "Ida", "Lena", "Mia", "Nora", "Ruth", "Sofia", "Zoe")
MEN = ("Ben", "Felix", "Ivan", "Jonas", "Leo", "Max", "Noah", "Omar", "Paul", "Tom")
HER = {"she": "she", "She": "She", "her": "her", "Her": "Her", "sibling": "brother"}
HIS = {"she": "he", "She": "He", "her": "his", "Her": "His", "sibling": "sister"}


class Family(NamedTuple):
    words: dict[str, list[str]]  # choices for the words in braces
    openings: list[list[str]]  # text of the question, sentences of the solution with their equations
    events: list[list[str]]
    endings: list[list[str]]
    asides: list[str]  # irrelevant sentences with a number


class FilledPart(NamedTuple):
    sentence: str  # of the question
    lines: list[str]  # of the solution
    total: int  # amount after this part


def _families() -> list[Family]:
    families: list[Family] = []
    for line in pathlib.Path(__file__).with_name("word_stories.txt").read_text(encoding="utf-8").splitlines():
        kind, _, text = line.partition(": ")
        parts = text.split(" | ")
        if kind.startswith("family "):
            words = dict(part.split(" = ") for part in parts)
            families.append(Family({name: choices.split() for name, choices in words.items()}, [], [], [], []))
        elif kind == "asides":
            families[-1].asides.extend(parts)
        elif kind in ("opening", "event", "ending"):
            getattr(families[-1], f"{kind}s").append(parts)
    return families


FAMILIES = _families()


def defaults(**values) -> dict:
    return {
        "name": "words",
        "steps": 4,  # equations of the longest problems
        "distractors": 0.3,  # probability of an irrelevant sentence
        "worked_share": 0.03,  # share of the longest problems whose demonstration is the solution
        **DRAWN_SIZES,
    } | values


def load(task, split: str, seed: int) -> list[Problem]:
    """Draws the problems of one split at random. `seed` is ignored for the test split. A solution has 2 to task.steps equations
    in the split sft, and exactly task.steps equations in the splits rl and test. Raises ValueError if a setting is out of
    range, or if there are not enough different questions."""
    steps, distractors, worked_share, size = task.steps, task.distractors, task.worked_share, task[f"{split}_problems"]
    if not 2 <= steps <= MAX_STEPS:
        raise ValueError(f"task.steps={steps} must be at least 2, and at most {MAX_STEPS}")
    too_many = f"task.{split}_problems={size} times task.steps={steps} must be at most {MOST_EQUATIONS}"
    require(size * steps <= MOST_EQUATIONS, too_many)
    if not (0 <= distractors <= 1 and 0 <= worked_share <= 1):
        raise ValueError(f"task.distractors={distractors} and task.worked_share={worked_share} must be in [0, 1]")
    held_out = set() if split == "test" else {problem.question for problem in load(task, "test", seed)}
    draw = random.Random(f"{split} {0 if split == 'test' else seed}")
    problems: dict[str, Problem] = {}
    repeats = 0
    while len(problems) < size:
        equations = draw.randint(2, steps) if split == "sft" else steps
        is_worked = split != "sft" or equations < steps or draw.random() < worked_share
        problem = _problem(draw, equations, distractors, is_worked)
        repeats += 1
        if problem.question not in held_out and problem.question not in problems:
            problems[problem.question] = problem
            repeats = 0
        if repeats == MAX_REPEATS:
            supply = f"hardly more than {len(problems)} different questions"
            raise ValueError(f"task.{split}_problems={size}, but with task.steps={steps} there are {supply} for it")
    return list(problems.values())


def extract_answer(text: str) -> str | None:
    found = ANSWER.findall(text)
    return found[-1] if found else None


def reward(problem: Problem, text: str) -> float:
    """Returns 1.0 if the last line of the form "#### NUMBER" in a completion gives the correct number, else 0.0."""
    return float(extract_answer(text) == problem.answer)


def _problem(draw: random.Random, equations: int, distractors: float, is_worked: bool) -> Problem:
    family = draw.choice(FAMILIES)
    woman, man = draw.choice(WOMEN), draw.choice(MEN)  # one of each, so that pronouns are unambiguous
    people = HIS | {"name": man, "friend": woman} if draw.random() < 0.5 else HER | {"name": woman, "friend": man}
    words = {key: draw.choice(choices) for key, choices in family.words.items()} | people
    story = None
    while story is None:
        story = _story(draw, family, words, equations)
    sentences = [part.sentence for part in story]
    solution = ONE.sub(r"1 \1", "\n".join(line for part in story for line in part.lines))
    unused = sorted(set(ASIDE) - set(map(int, re.findall("[0-9]+", f"{sentences} {solution}"))))
    if draw.random() < distractors and unused:
        aside = {"aside": draw.choice(unused)}
        sentences.insert(draw.randrange(1, len(sentences)), draw.choice(family.asides).format_map(words | aside))
    question, answer = ONE.sub(r"1 \1", " ".join(sentences)), str(story[-1].total)
    trace = f"{solution}\n#### {answer}"
    result = solution.rindex("= ") + len("= ")  # the last equation also states the answer
    spans = ((result, result + len(answer)), (len(solution) + 1, len(trace)))
    return Problem(question, question, answer, trace, spans, demonstration=trace if is_worked else OPEN)


def _story(draw: random.Random, family: Family, words: dict[str, str], equations: int) -> list[FilledPart] | None:
    """Draws a story with `equations` equations, and returns its parts: an opening, events and an ending. Returns None if no
    suitable numbers were found."""
    opening, ending = draw.choice(family.openings), draw.choice(family.endings)
    left = equations - len(opening[1:]) - len(ending[1:])
    first = _fill(draw, opening, 0, words) if left >= 1 else None
    if first is None:
        return None
    story = [first]
    while left:
        event = draw.choice(family.events)
        filled = _fill(draw, event, story[-1].total, words) if len(event[1:]) <= left else None
        if filled:
            story.append(filled)
            left -= len(event[1:])
    for _ in range(ENDING_TRIES):
        filled = _fill(draw, ending, story[-1].total, words)
        if filled:
            return [*story, filled]
    return None


def _fill(draw: random.Random, part: list[str], total: int, words: dict[str, str]) -> FilledPart | None:
    """Draws the numbers for one part of a story, and returns this part with the numbers and words filled in. `total` is the
    amount before this part. Returns None if the result of an equation is not a whole number from 1 to `MAX_NUMBER`."""
    text, *sentences = part
    values = {"2": 2, "3": 3, "total": total}
    values |= {name: draw.randint(*RANGES[name]) for name in RANGES if f"{{{name}}}" in text}
    total, lines = values.get("start", total), []
    for sentence in sentences:
        left, sign, right = EQUATION.findall(sentence)[0]
        a, b = values[left], values[right]
        total = values["part"] = OPERATIONS[sign](a, b)
        if not 1 <= total <= MAX_NUMBER or (sign == "/" and a % b):
            return None
        lines.append(EQUATION.sub(f"{a} {sign} {b} = {total}", sentence).format(**words))
    return FilledPart(text.format(**words, **values), lines, total)
