"""Mathematical problems with worked solutions, from any of the formats of sources.py: GSM8K, MATH, MetaMathQA, OpenR1, ...

Prompts and demonstrations are templates in the configuration. Hints are cut from the demonstration, never from what gives
the answer away: the line of the template that states it, and in the solution the content of the last box, or the last
occurrence of the number.
"""

import re

from igpo_jax.grading import reference_code as reference_rules
from igpo_jax.grading.answers import equal, extract
from igpo_jax.tasks.problem import Problem
from igpo_jax.tasks.sources import Counts, Record, load_sources

# The paper's (igpo_method.md 2.1), and without the accident that the released code has in place of \b.
BOXED_PROMPT = (
    "Respond in the following format:\n<reasoning>\n...\n</reasoning>\n<answer>\n\\boxed{<Your answer>}\n</answer>\n\n\n"
    "{question}"
)
RELEASED_PROMPT = BOXED_PROMPT.replace("\\boxed", "\boxed")
BOXED_DEMONSTRATION = "<reasoning>\n{solution}\n</reasoning>\n<answer>\n\\boxed{{answer}}\n</answer>"
RELEASED_DEMONSTRATION = "<reasoning>\n{response}"
PLAIN_PROMPT = "Question: {question}\nAnswer: "
PLAIN_DEMONSTRATION = "{solution}\n#### {answer}"

REWARD_OPTIONS = ("answer", "reference_code")


def defaults(**values) -> dict:
    """The section `task` of a configuration, with `values` in it.

    sft, rl, test: sources, "format:path,..."; sft is rl unless given. prompt: with {question}. demonstration: with
    {solution} and {answer}, or {response}, the solution as the file has it. answer: where completions state it, a rule of
    `answers.extract`. released: grade by the released code's rules. fields: of the format jsonl.
    """
    return {
        "name": "math",
        "sft": "",
        "rl": "",
        "test": "",
        "prompt": BOXED_PROMPT,
        "demonstration": BOXED_DEMONSTRATION,
        "answer": "box",
        "reference_code": False,
        "fields": {"id": "id", "question": "question", "answer": "answer", "solution": "solution"},
        "max_malformed_lines": 0,
    } | values


def load(task, split: str, seed: int) -> list[Problem]:
    """Problems of one split, in the order of their files.

    Args:
        seed: unused, the data is given.

    Raises:
        ValueError: see `load_counted`.
    """
    return load_counted(task, split)[0]


def load_counted(task, split: str) -> tuple[list[Problem], list[Counts]]:
    """Problems of one split, and what was kept of each of its sources.

    Raises:
        ValueError: a file that cannot be used, naming file and line, or a template that lacks its part.
    """
    if "{question}" not in task.prompt:
        raise ValueError(f"task.prompt={task.prompt!r} lacks {{question}}")
    if task.answer not in ("box", "number", "any"):
        raise ValueError(f"task.answer={task.answer!r} is none of box, number, any")
    key = "rl" if split == "sft" and not task.sft else split
    if not task[key]:
        raise ValueError(f"task.{key} is empty; give sources such as math:PATH, separated by commas")
    records, counts = load_sources(task[key], task.fields.to_dict(), task.max_malformed_lines)
    return [_problem(record, task) for record in records], counts


def extract_answer(text: str, answer: str = "box", reference_code: bool = False) -> str | None:
    """The answer that a completion gives."""
    return extract(text, answer) if not reference_code else reference_rules.first_box(text) or None


def reward(problem: Problem, text: str, answer: str = "box", reference_code: bool = False) -> float:
    """1.0 where a completion states the right answer."""
    if reference_code:
        return float(reference_rules.correct(problem.answer, text))
    stated = extract(text, answer)
    return float(stated is not None and equal(problem.answer, stated))


def _problem(record: Record, task) -> Problem:
    trace, spans = demonstration(record, task.demonstration)
    return Problem(
        id=record.id,
        question=task.prompt.replace("{question}", record.question),
        answer=record.answer,
        trace=trace if record.solution else "",
        answer_spans=spans if record.solution else (),
        demonstration=trace,
    )


def demonstration(record: Record, template: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    """A record in the template, and the spans of it that give the answer away."""
    values = {"{solution}": record.solution, "{answer}": record.answer, "{response}": record.response}
    text, spans = "", []
    for part in re.split(r"(\{solution\}|\{answer\}|\{response\})", template):
        begin = len(text)
        text += values.get(part, part)
        if part == "{solution}":
            spans += [(begin + first, begin + last) for first, last in record.spans]
        elif part == "{answer}":
            spans.append((begin, len(text)))
    # Of the template's answer, the whole line: it says "here it comes".
    stated = [span for span in spans if span[1] - span[0] == len(record.answer) and text[slice(*span)] == record.answer]
    if "{answer}" in template and stated:
        first, last = stated[-1]
        line_end = text.find("\n", last)
        spans[spans.index((first, last))] = (text.rfind("\n", 0, first) + 1, len(text) if line_end < 0 else line_end)
    return text, tuple(spans)
