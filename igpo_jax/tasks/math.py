"""Mathematical problems with worked solutions, in any format of sources.py: GSM8K, MATH, MetaMathQA, OpenR1 and others.

The configuration has two templates: one for the prompt, and one for the demonstration, which is the target text of supervised
training. By default, the demonstration is the worked solution, followed by the answer. Hints are pieces of the demonstration.
With inpainting.exclude_answer, hints omit all text that gives the answer away: the line of the template that contains the
answer, and the answer spans of the solution (docs/method.md section 6)."""

import re

from igpo_jax.grading import grade
from igpo_jax.grading import reference_code as reference_rules  # `reference_code` is a key of the configuration
from igpo_jax.grading.answers import extract
from igpo_jax.runtime.checks import require
from igpo_jax.tasks.answer_spans import Span, merged
from igpo_jax.tasks.decontamination import Content, question_content
from igpo_jax.tasks.problem import Problem
from igpo_jax.tasks.sources import Record, SourceCounts, download_advice, load_sources

# The paper's prompt (docs/method.md section 4). In the reference code's prompt, the \b of \boxed is a backspace.
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
# Limits that keep the templates of a stranger's run from multiplying each question, and from multiplying a small file.
MOST_TEMPLATE, MOST_FIELDS = 1 << 16, 16  # characters and fields
MOST_TEXT = 1 << 31  # characters that the templates add to all problems of a split


def defaults(**values) -> dict:
    """Returns the section `task` of a configuration with this task's defaults, updated with `values`."""
    return {
        "name": "math",
        "sft": "",  # sources of the supervised stage, "format:path,..."; by default those of `rl`
        "rl": "",  # sources of the RL stage
        "test": "",  # sources of the test split
        "prompt": BOXED_PROMPT,  # template of the prompt, with {question}
        # Template of the target in the supervised stage, with {solution} and {answer}, or with {response} (text of the file)
        "demonstration": BOXED_DEMONSTRATION,
        "answer": "box",  # where a completion has its answer: box | number | any, see docs/grading.md
        "reference_code": False,  # grade by the reference code's rules
        "fields": {
            "id": "id",  # of files of the format jsonl: the column of a problem's id
            "question": "question",  # the column of the question
            "answer": "answer",  # the column of the correct answer
            "solution": "solution",  # the column of the worked solution
        },
        "max_malformed_lines": 0,
    } | values


def sources(task, split: str) -> str:
    """Returns the sources of one split, "format:path,...". The split sft uses the sources of the split rl if it has none of its
    own."""
    return task.rl if split == "sft" and not task.sft else task[split]


def load(task, split: str, seed: int) -> list[Problem]:
    """Returns the problems of one split in file order. `seed` is not used. Raises ValueError if the configuration or a file is
    invalid (see `load_counted`)."""
    return load_counted(task, split)[0]


def load_counted(task, split: str) -> tuple[list[Problem], list[SourceCounts]]:
    """Returns the problems of one split, and the numbers of kept and dropped rows of each source. Raises ValueError if a
    template or task.answer is invalid, or if the split has no sources. If a file is unusable, raises a ValueError that names
    the file and the line."""
    if "{question}" not in task.prompt:
        raise ValueError(f"task.prompt={task.prompt!r} lacks {{question}}")
    for key in ("prompt", "demonstration"):
        fields = len(re.findall(r"\{(?:question|solution|answer|response)\}", task[key]))
        too_long = f"task.{key} has {len(task[key])} characters and {fields} fields; at most {MOST_TEMPLATE} and {MOST_FIELDS}"
        require(len(task[key]) <= MOST_TEMPLATE and fields <= MOST_FIELDS, f"{too_long} are possible")
    if task.answer not in ("box", "number", "any"):
        raise ValueError(f"task.answer={task.answer!r} is none of box, number, any")
    key = "task.rl" if split == "sft" and not task.sft else f"task.{split}"
    if not sources(task, split):
        raise ValueError(f"{key} is empty; give sources such as math:PATH, separated by commas; {download_advice('gsm8k')}")
    records, counts = load_sources(sources(task, split), task.fields.to_dict(), task.max_malformed_lines, key)
    added = len(records) * (len(task.prompt) + len(task.demonstration))
    too_much = f"task.prompt and task.demonstration add {added} characters to {len(records)} problems"
    require(added <= MOST_TEXT, f"{too_much}; at most {MOST_TEXT} are possible; shorten them or use fewer problems")
    return [_problem(record, task) for record in records], counts


def extract_answer(text: str, answer: str = "box", reference_code: bool = False) -> str | None:
    return (reference_rules.first_box(text) or None) if reference_code else extract(text, answer)


def reward(problem: Problem, text: str, answer: str = "box", reference_code: bool = False) -> float:
    """Returns 1.0 if the answer in a completion equals the problem's answer, else 0.0."""
    return float(grade(problem.answer, text, "reference_code" if reference_code else answer))


def content(task, problem: Problem) -> Content:
    """Returns the content of a problem as a pair (text, capitals), see decontamination.py. Problems with equal content count as
    the same problem. The content is computed from the question, without the text that the template task.prompt adds. `text` is
    the normalized question, and `capitals` are its single letters and short words in their original case."""
    parts, question = task.prompt.split("{question}"), problem.question  # the template may repeat the question
    size = (len(question) - len("".join(parts))) // (len(parts) - 1)
    own = question[len(parts[0]) : len(parts[0]) + max(0, size)]
    return question_content(own if task.prompt.replace("{question}", own) == question else question)


def warm_up() -> None:
    """Compares two formulas, so that a worker process has loaded math-verify and SymPy before it grades answers."""
    grade("x^2+1", "\\boxed{1+x^2}", "box")


def _problem(record: Record, task) -> Problem:
    question, (text, spans) = task.prompt.replace("{question}", record.question), demonstration(record, task.demonstration)
    trace, spans = (text, spans) if record.solution else ("", ())
    return Problem(record.id, question, record.answer, trace, spans, demonstration=text)


def demonstration(record: Record, template: str) -> tuple[str, tuple[Span, ...]]:
    """Fills a demonstration template with the texts of a record. Returns the filled text, and the character spans of this text
    that give the answer away."""
    values = {"{solution}": record.solution, "{answer}": record.answer, "{response}": record.response}
    text, spans, answers = "", [], []
    for part in re.split(r"(\{solution\}|\{answer\}|\{response\})", template):
        begin = len(text)
        text += values.get(part, part)
        if part == "{solution}":
            spans += [(begin + first, begin + last) for first, last in record.spans]
        elif part == "{answer}":
            answers.append((begin, len(text)))
    for first, last in answers:  # the whole line, because its other words announce the answer
        line_end = text.find("\n", last)
        spans.append((text.rfind("\n", 0, first) + 1, len(text) if line_end < 0 else line_end))
    return text, tuple(merged(spans))
