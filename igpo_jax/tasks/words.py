"""Word problems in the manner of GSM8K: a procedural story with a question, and a solution of one equation a line.

    Anna buys 3 packs of 12 pens at the market. Her brother owns 7 pens. She gives half of her pens to Ben. How many pens
    does Anna have now?

    Anna buys 3 * 12 = 36 pens.
    She keeps 36 / 2 = 18 pens.
    #### 18

Some questions have a sentence with a number that nobody needs. The supervised stage learns from a teacher who works out
every shorter problem, but hardly ever one of the longest: there the answer is left open, "#### ?".
"""

import operator
import random
import re
from typing import NamedTuple

from igpo_jax.tasks.problem import Problem

MOST = 999  # of every number
MOST_STEPS = 1000  # of a problem
TRIES = 20  # draws of the numbers of an ending, before the story is told anew
PATIENCE = 1000  # questions in a row that are known already, before it is clear that there are no others
OPEN = "#### ?"
ANSWER = re.compile(r"^#### ([0-9]+)$", re.MULTILINE)
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}
EQUATION = re.compile(r"\[(\w+) (.) (\w+)\]")
ONE = re.compile(r"\b1 ([a-z]+)s\b")  # whatever is counted has a plural in -s

REWARD_OPTIONS = ()

# What stands in braces: numbers that are drawn from these ranges, words of the family, and who the story is about. In
# equations `total` is what there was before, and `part` the result of the equation before.
RANGES = {"start": (10, 90), "few": (2, 9), "some": (2, 12), "more": (1, 60), "speed": (5, 20), "price": (30, 300)}
ASIDE = range(4, 61)
WOMEN = ("Anna", "Clara", "Emma", "Ida", "Lena", "Mia", "Nora", "Ruth", "Sofia", "Zoe")
MEN = ("Ben", "Felix", "Ivan", "Jonas", "Leo", "Max", "Noah", "Omar", "Paul", "Tom")
HER = {"she": "she", "She": "She", "her": "her", "Her": "Her", "sibling": "brother"}
HIS = {"she": "he", "She": "He", "her": "his", "Her": "His", "sibling": "sister"}


class Part(NamedTuple):
    """text: of the question. numbers: keys of RANGES in it. steps: operand, sign, operand and sentence of the solution."""

    text: str
    numbers: list[str]
    steps: list[tuple[str, str, str, str]]


class Family(NamedTuple):
    """words: choices for the words in braces. asides: sentences with a number that is not needed."""

    words: dict[str, list[str]]
    openings: list[Part]
    events: list[Part]
    endings: list[Part]
    asides: tuple[str, ...]


def _family(words: dict[str, str], asides: tuple[str, ...], **parts: tuple[str, ...]) -> Family:
    parsed = {role: [_part(*part.split(" | ")) for part in of] for role, of in parts.items()}
    return Family({name: choices.split() for name, choices in words.items()}, asides=asides, **parsed)


def _part(text: str, *lines: str) -> Part:
    steps = [(*EQUATION.search(line).groups(), EQUATION.sub("{equation}", line)) for line in lines]
    return Part(text, [name for name in RANGES if f"{{{name}}}" in text], steps)


COLLECTING = _family(
    {"things": "pens stickers marbles cards stamps beads", "packs": "packs bags sets", "place": "market fair school"},
    openings=(
        "{name} has {start} {things}.",
        "{name} buys {few} {packs} of {some} {things} at the {place}. | {name} buys [few * some] {things}.",
    ),
    events=(
        "{friend} gives {more} {things} to {name}. | Now {she} has [total + more] {things}.",
        "On the way {she} loses {more} {things}. | {She} still has [total - more] {things}.",
        "Then {she} gets {few} {packs} of {some} {things}. | The {packs} hold [few * some] {things}. | "
        "So {she} has [total + part] {things}.",
        "{She} gives {some} {things} to each of {few} friends. | {She} gives away [few * some] {things}. | "
        "{She} keeps [total - part] {things}.",
        "{She} gives half of {her} {things} to {friend}. | {She} keeps [total / 2] {things}.",
        "{She} sorts {her} {things} evenly into {few} piles and keeps one. | One pile has [total / few] {things}.",
    ),
    endings=(
        "How many {things} does {name} have now?",
        "{friend} has {few} times as many {things} as {name}. How many {things} do they have together? | "
        "{friend} has [total * few] {things}. | Together they have [total + part] {things}.",
        "{She} sells all {her} {things} for {few} dollars each. How many dollars does {she} get? | "
        "{She} gets [total * few] dollars.",
        "{She} shares {her} {things} equally among {few} friends. How many {things} does each friend get? | "
        "Each friend gets [total / few] {things}.",
    ),
    asides=("{Her} {sibling} owns {aside} {things}.", "The {place} is {aside} years old.", "{friend} is {aside} years old."),
)
SAVING = _family(
    {"gift": "scarf book kite lamp game puzzle", "wish": "bike drum tent camera guitar desk", "place": "market fair zoo"},
    openings=(
        "{name} has {start} dollars in {her} piggy bank.",
        "{name} saves {some} dollars a week for {few} weeks. | {name} saves [some * few] dollars.",
    ),
    events=(
        "{She} gets {more} dollars from {her} grandmother. | Then {she} has [total + more] dollars.",
        "{She} spends {more} dollars on a {gift} for {friend}. | That leaves [total - more] dollars.",
        "{She} washes {few} cars for {some} dollars each. | The cars bring [few * some] dollars. | "
        "So {she} has [total + part] dollars.",
        "{She} buys {few} tickets for {some} dollars each. | The tickets cost [few * some] dollars. | "
        "{She} has [total - part] dollars left.",
        "{She} spends half of {her} money at the {place}. | {She} keeps [total / 2] dollars.",
        "{Her} father doubles {her} money. | That makes [total * 2] dollars.",
    ),
    endings=(
        "How many dollars does {name} have now?",
        "{She} wants a {wish} for {price} dollars. How many dollars does {she} still need? | "
        "{She} still needs [price - total] dollars.",
        "A {wish} costs {few} times as much money as {name} has. How many dollars does the {wish} cost? | "
        "The {wish} costs [total * few] dollars.",
        "{name} spends all {her} money in {few} weeks, the same amount every week. How many dollars is that a week? | "
        "That is [total / few] dollars a week.",
    ),
    asides=("{Her} {sibling} has {aside} dollars.", "{friend} is {aside} years old.", "{name} lives in house {aside}."),
)
TRAVEL = _family(  # the total is the way home
    {"unit": "kilometer mile", "place": "lake castle harbor airport"},
    openings=(
        "{name} leaves home and drives {start} {unit}s.",
        "{name} leaves home and cycles for {few} hours at {speed} {unit}s an hour. | {name} cycles [few * speed] {unit}s.",
    ),
    events=(
        "Then {she} takes a bus {more} {unit}s farther. | Now {she} is [total + more] {unit}s from home.",
        "Then {she} goes {more} {unit}s back. | Now {she} is [total - more] {unit}s from home.",
        "Then {she} rides on for {few} hours at {speed} {unit}s an hour. | {She} rides [few * speed] {unit}s. | "
        "So {she} is [total + part] {unit}s from home.",
        "Then {she} rides back for {few} hours at {speed} {unit}s an hour. | {She} rides back [few * speed] {unit}s. | "
        "So {she} is [total - part] {unit}s from home.",
        "Then {she} goes half of the way home. | That leaves [total / 2] {unit}s.",
        "Then {she} takes a train until the way home is {few} times as long. | It is [total * few] {unit}s now.",
    ),
    endings=(
        "How many {unit}s is {name} from home now?",
        "{friend} is {few} times as far from home as {name}. How many {unit}s is {friend} from home? | "
        "{friend} is [total * few] {unit}s from home.",
        "Then {she} travels home in {few} days. How many {unit}s does {she} travel a day? | "
        "{She} travels [total / few] {unit}s a day.",
        "Every {unit} of the way home takes {few} minutes. How many minutes does the way home take? | "
        "The way home takes [total * few] minutes.",
    ),
    asides=("The {place} is {aside} {unit}s away.", "The bus has the number {aside}.", "It is {aside} degrees outside."),
)
RECIPES = _family(
    {"things": "cookies muffins pancakes rolls waffles tarts", "place": "kitchen garden hall"},
    openings=(
        "{name} bakes {start} {things} for a party.",
        "{name} bakes {few} trays of {some} {things}. | {name} bakes [few * some] {things}.",
        "A recipe is for {some} {things}, and {name} uses it {few} times. | {name} makes [some * few] {things}.",
    ),
    events=(
        "Then {she} bakes {more} {things} more. | That makes [total + more] {things}.",
        "{friend} takes {more} {things} home. | That leaves [total - more] {things}.",
        "{friend} brings {few} plates of {some} {things}. | {friend} brings [few * some] {things}. | "
        "Together that makes [total + part] {things}.",
        "Then {few} guests eat {some} {things} each. | The guests eat [few * some] {things}. | "
        "That leaves [total - part] {things}.",
        "The guests in the {place} eat half of the {things}. | They leave [total / 2] {things}.",
    ),
    endings=(
        "How many {things} are left in the end?",
        "{She} puts {few} {things} into each bag. How many bags does {she} need? | {She} needs [total / few] bags.",
        "{She} sells the {things} for {few} dollars each. How many dollars does {she} get? | "
        "{She} gets [total * few] dollars.",
    ),
    asides=("A bakery sells {aside} {things} a day.", "The oven is {aside} years old.", "{friend} is {aside} years old."),
)
WORK = _family(  # the total is what is done on the last day so far
    {"do": "paint load pack sort clean stack", "things": "crates plates toys tiles mugs signs"},
    openings=(
        "On the first day {name} {do}s {start} {things}.",
        "On the first day {name} {do}s {some} {things} an hour for {few} hours. | "
        "On the first day {name} {do}s [some * few] {things}.",
    ),
    events=(
        "The next day {she} {do}s {more} {things} more. | That day {she} {do}s [total + more] {things}.",
        "The next day {she} {do}s {more} {things} fewer. | That day {she} {do}s [total - more] {things}.",
        "The next day {she} {do}s as many {things}, and then {some} {things} an hour for {few} hours. | "
        "In these hours {she} {do}s [some * few] {things}. | That day {she} {do}s [total + part] {things}.",
        "The next day {she} {do}s twice as many {things}. | That day {she} {do}s [total * 2] {things}.",
        "The next day {she} {do}s a third as many {things}. | That day {she} {do}s [total / 3] {things}.",
    ),
    endings=(
        "How many {things} does {name} {do} on the last day?",
        "On the last day {she} works for {few} hours. How many {things} does {she} {do} an hour on that day? | "
        "{She} {do}s [total / few] {things} an hour.",
        "{friend} {do}s {few} times as many {things} as {name} on the last day. How many {things} is that? | "
        "{friend} {do}s [total * few] {things}.",
    ),
    asides=("{Her} {sibling} works {aside} hours a week.", "It is {aside} degrees warm.", "{friend} is {aside} years old."),
)
FAMILIES = (COLLECTING, SAVING, TRAVEL, RECIPES, WORK)


def defaults(**values) -> dict:
    """The section `task` of a configuration."""
    sizes = {"sft_problems": 60_000, "rl_problems": 4_000, "test_problems": 500}
    return {"name": "words", "steps": 4, "distractors": 0.3, "worked_share": 0.03, **sizes} | values


def load(task, split: str, seed: int) -> list[Problem]:
    """Problems of one split, drawn from (seed, split).

    Args:
        task: `steps`, the equations of the longest problems; `distractors`, the probability of a sentence that is not
            needed; `worked_share`, the share of the longest problems that the teacher of the supervised stage works out;
            `sft_problems`, `rl_problems`, `test_problems`, the sizes of the splits.
        split: sft (2 to `steps` steps), rl or test (`steps` steps; the test split shares no question with the others).
        seed: of the run; the test split does not depend on it, so that runs with different seeds are compared on it.

    Raises:
        ValueError: a value that cannot work, or there are not so many questions.
    """
    steps, distractors, worked_share, size = task.steps, task.distractors, task.worked_share, task[f"{split}_problems"]
    if not 2 <= steps <= MOST_STEPS:
        raise ValueError(f"task.steps={steps} must be at least 2, and at most {MOST_STEPS}")
    if not (0 <= distractors <= 1 and 0 <= worked_share <= 1):
        raise ValueError(f"task.distractors={distractors} and task.worked_share={worked_share} must lie in [0, 1]")
    held_out = set() if split == "test" else {problem.question for problem in load(task, "test", seed)}
    draw, problems, known = random.Random(f"{split} {0 if split == 'test' else seed}"), {}, 0
    while len(problems) < size:
        equations = draw.randint(2, steps) if split == "sft" else steps
        worked = split != "sft" or equations < steps or draw.random() < worked_share
        problem = _problem(draw, equations, distractors, worked)
        new = problem.question not in held_out and problem.question not in problems
        known = 0 if new else known + 1
        if new:
            problems[problem.question] = problem
        elif known == PATIENCE:
            raise ValueError(
                f"task.{split}_problems={size}, but with task.steps={steps} there are hardly more than {len(problems)} "
                "different questions for it"
            )
    return list(problems.values())


def extract_answer(text: str) -> str | None:
    """The answer that a completion gives."""
    found = ANSWER.findall(text)
    return found[-1] if found else None


def reward(problem: Problem, text: str) -> float:
    """1.0 where the last line "#### ..." of a completion has the right number."""
    return float(extract_answer(text) == problem.answer)


class Told(NamedTuple):
    """A part with its numbers: of the question, of the solution, and what there is now."""

    sentence: str
    lines: list[str]
    total: int


def _problem(draw: random.Random, equations: int, distractors: float, worked: bool) -> Problem:
    family = draw.choice(FAMILIES)
    # She and he, so that a pronoun says who is meant.
    (name, friend), pronouns = (draw.choice(WOMEN), draw.choice(MEN)), HER
    if draw.random() < 0.5:
        (name, friend), pronouns = (friend, name), HIS
    words = {key: draw.choice(choices) for key, choices in family.words.items()}
    words |= pronouns | {"name": name, "friend": friend}
    story = None
    while story is None:
        story = _story(draw, family, words, equations)
    sentences = [told.sentence for told in story]
    solution = ONE.sub(r"1 \1", "\n".join(line for told in story for line in told.lines))
    used = set(map(int, re.findall("[0-9]+", f"{sentences} {solution}")))
    unused = [number for number in ASIDE if number not in used]
    if draw.random() < distractors and unused:
        words["aside"] = draw.choice(unused)
        sentences.insert(draw.randrange(1, len(sentences)), draw.choice(family.asides).format_map(words))
    question, answer = ONE.sub(r"1 \1", " ".join(sentences)), str(story[-1].total)
    trace = f"{solution}\n#### {answer}"
    # The result of the last equation is the answer, too.
    result = solution.rindex("= ") + len("= ")
    return Problem(
        id=question,
        question=question,
        answer=answer,
        trace=trace,
        answer_spans=((result, result + len(answer)), (len(solution) + 1, len(trace))),
        demonstration=trace if worked else OPEN,
    )


def _story(draw: random.Random, family: Family, words: dict[str, str], equations: int) -> list[Told] | None:
    """An opening, events and an ending with so many equations; None where the ending's does not come out."""
    opening, ending = draw.choice(family.openings), draw.choice(family.endings)
    left = equations - len(opening.steps) - len(ending.steps)
    if left < 1:
        return None
    story = [_tell(draw, opening, 0, words)]
    while left:
        event = draw.choice(family.events)
        told = _tell(draw, event, story[-1].total, words) if len(event.steps) <= left else None
        if told:
            story.append(told)
            left -= len(event.steps)
    for _ in range(TRIES):
        told = _tell(draw, ending, story[-1].total, words)
        if told:
            return [*story, told]
    return None


def _tell(draw: random.Random, part: Part, total: int, words: dict[str, str]) -> Told | None:
    """None where an equation comes out as no whole number, or as one that is too small or too large."""
    values = {"2": 2, "3": 3, "total": total} | {name: draw.randint(*RANGES[name]) for name in part.numbers}
    total, lines = values.get("start", total), []
    for left, sign, right, line in part.steps:
        a, b = values[left], values[right]
        total = values["part"] = OPERATIONS[sign](a, b)
        if not 1 <= total <= MOST or (sign == "/" and a % b):
            return None
        lines.append(line.format(**words, equation=f"{a} {sign} {b} = {total}"))
    return Told(part.text.format(**words, **values), lines, total)
