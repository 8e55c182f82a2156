"""The released code's rewards (REF; igpo_method.md 4), for comparisons with it: first box, a textual normaliser, a format reward.

What is wrong with them is part of them: 5.0 is not 5, and 1,000 not 1000.
"""

import re

from igpo_jax.grading.answers import boxes


def correct(gold: str, text: str) -> bool:
    """Whether the first \\boxed{...} of a completion is the answer, after normalising both."""
    return equal(first_box(text), gold)


def first_box(text: str) -> str:
    """Its content; empty where there is none, or its braces do not close."""
    begin = text.find("\\boxed{")
    found = boxes(text[begin:]) if begin >= 0 and text[begin:].startswith("\\boxed{") else []
    closes = bool(found) and text[begin + len("\\boxed{") :].startswith(found[0])
    if not closes:
        return ""
    inner = boxes(found[0])
    return inner[-1] if inner else found[0]


def equal(one: str, other: str) -> bool:
    try:
        return normalise(one) == normalise(other)
    except (ValueError, IndexError):
        return one == other


def normalise(text: str) -> str:
    """The order of the steps matters.

    Raises:
        ValueError: text after more than one unit.
    """
    text = text.replace("\n", "").replace("\\!", "").replace("\\\\", "\\")
    text = text.replace("tfrac", "frac").replace("dfrac", "frac").replace("\\left", "").replace("\\right", "")
    text = text.replace("^{\\circ}", "").replace("^\\circ", "").replace("\\$", "")
    if "\\text{ " in text:
        text, _ = text.split("\\text{ ")  # a unit, on the right
    text = text.replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.")
    if not text:
        return text
    if text[0] == ".":
        text = "0" + text
    sides = text.split("=")
    if len(sides) == 2 and len(sides[0]) <= 2:
        text = sides[1]
    text = re.sub(r"\\sqrt([^{])", r"\\sqrt{\1}", text).replace(" ", "")
    text = _braced_fractions(text)
    if text == "0.5":
        return "\\frac{1}{2}"
    slash = re.fullmatch(r"(-?\d+)/(-?\d+)", text)
    if slash and all(part == str(int(part)) for part in slash.groups()):
        return f"\\frac{{{slash[1]}}}{{{slash[2]}}}"
    return text


def _braced_fractions(text: str) -> str:
    """\\frac12 and \\frac1{72} with all their braces."""
    head, *parts = text.split("\\frac")
    for part in parts:
        if part[:1] == "{" or len(part) < 2:
            head += "\\frac" + part
        elif part[1] == "{":
            head += f"\\frac{{{part[0]}}}{part[1:]}"
        else:
            head += f"\\frac{{{part[0]}}}{{{part[1]}}}{part[2:]}"
    return head


def format_reward(text: str) -> float:
    """0 to 0.75 for the tags of the paper's format, each once, and a box."""
    tags = ("<reasoning>\n", "</reasoning>", "<answer>\n", "</answer>")
    return 0.125 * sum(text.count(tag) == 1 for tag in tags) + 0.25 * ("\\boxed{" in text)
