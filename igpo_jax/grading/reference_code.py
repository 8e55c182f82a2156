"""Rewards as in the paper's reference code (docs/method.md section 8). The answer is the first \\boxed{...}, answers are
compared as normalized texts, and there is a format reward. The faults of the reference code are kept for comparison: 5.0 does
not equal 5, and 1,000 does not equal 1000."""

import re

from igpo_jax.grading.answers import boxes


def correct(gold: str, text: str) -> bool:
    """Returns whether the first \\boxed{...} of a completion equals the correct answer. Compares the normalized texts, or the
    original texts if normalization fails."""
    answer = first_box(text)
    try:
        return normalize(answer) == normalize(gold)
    except (ValueError, IndexError):
        return answer == gold


def first_box(text: str) -> str:
    """Returns the content of the first \\boxed{...} in a text, or "" if there is no box or if its braces do not close."""
    _, opening, rest = text.partition("\\boxed{")
    found = boxes(opening + rest)
    if not found or not rest.startswith(found[0]):
        return ""
    inner = boxes(found[0])
    return inner[-1] if inner else found[0]


def normalize(text: str) -> str:
    """Normalizes an answer in the same way as the reference code. Raises ValueError if the answer contains `\\text{ ` more than
    once."""
    text = text.replace("\n", "").replace("\\!", "").replace("\\\\", "\\")
    text = text.replace("tfrac", "frac").replace("dfrac", "frac").replace("\\left", "").replace("\\right", "")
    text = text.replace("^{\\circ}", "").replace("^\\circ", "").replace("\\$", "")
    if "\\text{ " in text:
        text, _ = text.split("\\text{ ")  # a unit, on the right
    text = text.replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.")
    if text.startswith("."):
        text = "0" + text
    sides = text.split("=")
    if len(sides) == 2 and len(sides[0]) <= 2:
        text = sides[1]
    text = _braced_fractions(re.sub(r"\\sqrt([^{])", r"\\sqrt{\1}", text).replace(" ", ""))
    if text == "0.5":
        return "\\frac{1}{2}"
    slash = re.fullmatch(r"(-?\d+)/(-?\d+)", text)
    if slash and all(part == str(int(part)) for part in slash.groups()):
        return f"\\frac{{{slash[1]}}}{{{slash[2]}}}"
    return text


def _braced_fractions(text: str) -> str:
    """Adds the missing braces to LaTeX fractions such as \\frac12 and \\frac1{72}."""
    head, *parts = text.split("\\frac")
    for part in parts:
        if part[:1] != "{" and len(part) > 1:
            denominator = part[1:] if part[1] == "{" else f"{{{part[1]}}}{part[2:]}"
            part = f"{{{part[0]}}}{denominator}"
        head += f"\\frac{part}"
    return head


def format_reward(text: str) -> float:
    """Returns a reward from 0 to 0.75. Each of the four tags of the paper's format adds 0.125 if it occurs exactly once, and a
    \\boxed adds 0.25."""
    tags = ("<reasoning>\n", "</reasoning>", "<answer>\n", "</answer>")
    return 0.125 * sum(text.count(tag) == 1 for tag in tags) + 0.25 * ("\\boxed{" in text)
