"""Word problems like GSM8K's: a procedural story with a question, and a solution with one equation per line.

    Anna buys 3 packs of 12 pens at the market. Her brother owns 7 pens. She gives half of her pens to Ben. How many pens
    does Anna have now?

    Anna buys 3 * 12 = 36 pens.
    She keeps 36 / 2 = 18 pens.
    #### 18

Some questions have a sentence with a number that is not needed. The supervised stage imitates a teacher who works out
every shorter problem but few of the longest; for the others the answer is left open, "#### ?".
"""

import operator
import random
import re
from typing import NamedTuple

from igpo_jax.tasks.problem import Problem

MAX_NUMBER = 999
MAX_STEPS = 1000
ENDING_TRIES = 20  # draws of an ending's numbers before the story is redrawn
MAX_REPEATS = 1000  # known questions drawn in a row before the supply counts as exhausted
OPEN = "#### ?"
ANSWER = re.compile(r"^#### ([0-9]+)$", re.MULTILINE)
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}
EQUATION = re.compile(r"\[(\w+) (.) (\w+)\]")
ONE = re.compile(r"\b1 ([a-z]+)s\b")  # every counted noun has a plural in -s
REWARD_OPTIONS = ()

# Braces hold numbers drawn from these ranges, a family's words, and the person of the story. In equations, `total` is the
# amount so far and `part` the result of the previous equation.
RANGES = {"start": (10, 90), "few": (2, 9), "some": (2, 12), "more": (1, 60), "speed": (5, 20), "price": (30, 300)}
ASIDE = range(4, 61)
WOMEN = ("Anna", "Clara", "Emma", "Ida", "Lena", "Mia", "Nora", "Ruth", "Sofia", "Zoe")
MEN = ("Ben", "Felix", "Ivan", "Jonas", "Leo", "Max", "Noah", "Omar", "Paul", "Tom")
HER = {"she": "she", "She": "She", "her": "her", "Her": "Her", "sibling": "brother"}
HIS = {"she": "he", "She": "He", "her": "his", "Her": "His", "sibling": "sister"}


class Part(NamedTuple):
    text: str  # of the question
    numbers: list[str]  # keys of RANGES in `text`
    steps: list[tuple[str, str, str, str]]  # operand, sign, operand, sentence of the solution


class Family(NamedTuple):
    words: dict[str, list[str]]  # choices for the words in braces
    openings: list[Part]
    events: list[Part]
    endings: list[Part]
    asides: tuple[str, ...]  # sentences with a number that is not needed


class FilledPart(NamedTuple):
    sentence: str  # of the question
    lines: list[str]  # of the solution
    total: int  # amount after this part


def _family(words: dict[str, str], asides: tuple[str, ...], **roles: tuple[str, ...]) -> Family:
    parts = {role: [_part(*text.split(" | ")) for text in texts] for role, texts in roles.items()}
    return Family({name: choices.split() for name, choices in words.items()}, asides=asides, **parts)


def _part(text: str, *lines: str) -> Part:
    steps = [(*EQUATION.findall(line)[0], EQUATION.sub("{equation}", line)) for line in lines]
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
TRAVEL = _family(  # total: distance from home
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
        "{She} sells the {things} for {few} dollars each. How many dollars does {she} get? | {She} gets [total * few] dollars.",
    ),
    asides=("A bakery sells {aside} {things} a day.", "The oven is {aside} years old.", "{friend} is {aside} years old."),
)
WORK = _family(  # total: work of the last day so far
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
    """Returns the section `task` of a configuration.

    steps: equations of the longest problems. distractors: probability of a sentence that is not needed. worked_share:
    share of the longest problems that the supervised teacher works out.
    """
    sizes = {"sft_problems": 60_000, "rl_problems": 4_000, "test_problems": 500}
    return {"name": "words", "steps": 4, "distractors": 0.3, "worked_share": 0.03, **sizes} | values


def load(task, split: str, seed: int) -> list[Problem]:
    """Returns the problems of one split, drawn with (seed, split).

    sft has 2 to `steps` steps, rl and test have `steps`. The test split shares no question with the others and ignores the
    seed, so that runs with different seeds can be compared.

    Raises:
        ValueError: a setting out of range, or fewer different questions than problems.
    """
    steps, distractors, worked_share, size = task.steps, task.distractors, task.worked_share, task[f"{split}_problems"]
    if not 2 <= steps <= MAX_STEPS:
        raise ValueError(f"task.steps={steps} must be at least 2, and at most {MAX_STEPS}")
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
        if problem.question not in held_out and problem.question not in problems:
            problems[problem.question] = problem
            repeats = 0
            continue
        repeats += 1
        if repeats == MAX_REPEATS:
            raise ValueError(
                f"task.{split}_problems={size}, but with task.steps={steps} there are hardly more than {len(problems)} "
                "different questions for it"
            )
    return list(problems.values())


def extract_answer(text: str) -> str | None:
    found = ANSWER.findall(text)
    return found[-1] if found else None


def reward(problem: Problem, text: str) -> float:
    """Returns 1.0 if the last line "#### ..." of a completion has the right number."""
    return float(extract_answer(text) == problem.answer)


def _problem(draw: random.Random, equations: int, distractors: float, is_worked: bool) -> Problem:
    family = draw.choice(FAMILIES)
    # A woman and a man, so that pronouns are unambiguous.
    (name, friend), pronouns = (draw.choice(WOMEN), draw.choice(MEN)), HER
    if draw.random() < 0.5:
        (name, friend), pronouns = (friend, name), HIS
    words = {key: draw.choice(choices) for key, choices in family.words.items()}
    words |= pronouns | {"name": name, "friend": friend}
    story = None
    while story is None:
        story = _story(draw, family, words, equations)
    sentences = [part.sentence for part in story]
    solution = ONE.sub(r"1 \1", "\n".join(line for part in story for line in part.lines))
    used = set(map(int, re.findall("[0-9]+", f"{sentences} {solution}")))
    unused = [number for number in ASIDE if number not in used]
    if draw.random() < distractors and unused:
        aside = {"aside": draw.choice(unused)}
        sentences.insert(draw.randrange(1, len(sentences)), draw.choice(family.asides).format_map(words | aside))
    question, answer = ONE.sub(r"1 \1", " ".join(sentences)), str(story[-1].total)
    trace = f"{solution}\n#### {answer}"
    result = solution.rindex("= ") + len("= ")  # the last equation states the answer as well
    return Problem(
        id=question,
        question=question,
        answer=answer,
        trace=trace,
        answer_spans=((result, result + len(answer)), (len(solution) + 1, len(trace))),
        demonstration=trace if is_worked else OPEN,
    )


def _story(draw: random.Random, family: Family, words: dict[str, str], equations: int) -> list[FilledPart] | None:
    """Draws an opening, events and an ending with so many equations in total; None if no numbers fit the ending."""
    opening, ending = draw.choice(family.openings), draw.choice(family.endings)
    left = equations - len(opening.steps) - len(ending.steps)
    first = _fill(draw, opening, 0, words) if left >= 1 else None
    if first is None:
        return None
    story = [first]
    while left:
        event = draw.choice(family.events)
        filled = _fill(draw, event, story[-1].total, words) if len(event.steps) <= left else None
        if filled:
            story.append(filled)
            left -= len(event.steps)
    for _ in range(ENDING_TRIES):
        filled = _fill(draw, ending, story[-1].total, words)
        if filled:
            return [*story, filled]
    return None


def _fill(draw: random.Random, part: Part, total: int, words: dict[str, str]) -> FilledPart | None:
    """Draws a part's numbers; None unless all results are whole and between 1 and `MAX_NUMBER`."""
    values = {"2": 2, "3": 3, "total": total} | {name: draw.randint(*RANGES[name]) for name in part.numbers}
    total, lines = values.get("start", total), []
    for left, sign, right, line in part.steps:
        a, b = values[left], values[right]
        total = values["part"] = OPERATIONS[sign](a, b)
        if not 1 <= total <= MAX_NUMBER or (sign == "/" and a % b):
            return None
        lines.append(line.format(**words, equation=f"{a} {sign} {b} = {total}"))
    return FilledPart(part.text.format(**words, **values), lines, total)
