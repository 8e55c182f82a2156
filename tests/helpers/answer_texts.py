"""Compares whole texts, for test tables whose golds are not bare answers. Runs extract the answer first instead."""

import math_verify

from igpo_jax.grading import answers


def equal_texts(gold: str, text: str) -> bool:
    """Returns whether two texts state the same answer. Unless each has exactly one box, math-verify finds the answers."""
    gold, text = (answers.SPECIAL.sub(" ", part[-answers.TAIL_CHARS :]) for part in (gold, text))
    boxed = answers.boxes(gold), answers.boxes(text)
    if len(boxed[0]) == len(boxed[1]) == 1:
        return answers.equal(boxed[0][0], boxed[1][0])
    if any(answers._is_costly(part) for part in (gold, text)):
        return False
    if len(gold) > answers.MAX_ANSWER_CHARS and not boxed[0]:
        return False
    if any(len(box) > answers.MAX_ANSWER_CHARS for box in (*boxed[0], *boxed[1])):
        return False
    return answers._same_parsed(parse(gold), parse(text))


def parse(text: str) -> list:
    seconds = answers.MATH_VERIFY_SECONDS
    return answers._in_time(math_verify.parse, answers._braced(text), parsing_timeout=seconds)


def reward(problem, text: str) -> float:
    """Grades with `equal_texts`."""
    return float(equal_texts(problem.answer, text))
