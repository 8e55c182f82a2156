"""GSM8K: grade-school word problems with worked solutions (Cobbe et al. 2021), from JSONL files in their own format.

A line has `question` and `answer` (or, in some copies, `problem` and `raw_answer`); the answer is the solution, with
calculator annotations <<48/2=24>>, then a line `#### 24`. The annotations are
for a calculator that we do not have and are removed. The last line is never a hint.
"""

import re
from decimal import Decimal, InvalidOperation

from igpo_jax.tasks.problem import Problem, read_jsonl

FIELDS = (("question", "answer"), ("problem", "raw_answer"))
ANNOTATION = re.compile(r"<<[^<>]*>>")
STATED = re.compile(r"####\s*([^#\n]+)")
NUMBER = re.compile(r"(?:(?<!\d)-)?\$?\d[\d,]*(?:\.\d+)?")  # in 9-5 the minus belongs to no number


def load(task, split: str, seed: int) -> list[Problem]:
    """Problems of one split, in file order.

    Args:
        task: `train_path` (splits sft and rl), `test_path`, `max_malformed_lines`.
        seed: unused, the data is given.

    Raises:
        ValueError: a file that cannot be used, or an answer without its #### line; names file and line.
    """
    key = "test_path" if split == "test" else "train_path"
    if not task[key]:
        raise ValueError(f"task.{key} is empty; give the path of GSM8K's {key.removesuffix('_path')}.jsonl")
    name = key.removesuffix("_path")
    rows = read_jsonl(task[key], FIELDS, task.max_malformed_lines)
    return [_problem(row, f"gsm8k-{name}-{index}", task[key]) for index, row in enumerate(rows)]


def reward(problem: Problem, text: str) -> float:
    """1.0 where the stated answer (after the last ####, otherwise the last number) equals the gold answer."""
    stated = STATED.findall(text)
    numbers = NUMBER.findall(stated[-1] if stated else text)
    if not numbers:
        return 0.0
    found = _number(numbers[0] if stated else numbers[-1])
    return float(found is not None and found == _number(problem.answer))


def _problem(row: dict, identifier: str, path: str) -> Problem:
    question, worked = (row["question"], row["answer"]) if "question" in row else (row["problem"], row["raw_answer"])
    solution, separator, answer = worked.rpartition("####")
    if not separator:
        raise ValueError(f"{path}: the answer of {identifier} (counted from 0) has no #### line")
    statement = f"#### {answer.strip()}"
    trace = ANNOTATION.sub("", solution).strip() + "\n" + statement
    return Problem(
        id=identifier,
        question=f"Question: {question.strip()}\nAnswer: ",
        answer=answer.strip(),
        trace=trace,
        answer_spans=((len(trace) - len(statement), len(trace)),),
        demonstration=trace,
    )


def _number(text: str) -> Decimal | None:
    try:
        return Decimal(text.replace(",", "").replace("$", ""))
    except InvalidOperation:
        return None
