"""Rewards as in the paper's reference code (docs/method.md section 8). The answer of a completion is its first \\boxed{...}.
Two answers are equal if their normalized texts are equal. A format reward is added.

The faults of the reference code are kept, so that results are comparable: 5.0 does not equal 5, 1,000 does not equal 1000, and
5 km/h does not equal 5km/h, because 5 km/h cannot be normalized."""

import re

BRACE = re.compile("[{}]")  # the reference code also counts escaped braces


def correct(gold: str, text: str) -> bool:
    """Returns whether the first \\boxed{...} of a completion contains the correct answer. Compares normalized texts. If one of
    the two texts cannot be normalized, compares the original texts."""
    answer = first_box(text)
    if answer is None:
        return False
    try:
        return normalize(answer) == normalize(gold)
    except (ValueError, IndexError):
        return answer == gold


def first_box(text: str) -> str | None:
    """Returns the content of the first \\boxed{...} in a text, or "" if the text has no box or its braces do not close. If this
    box contains further boxes, returns the content of the last inner box, or None if the braces of the last inner box do not
    close."""
    rest = text.partition("\\boxed{")[2]
    content = rest[: max(_closing_brace(rest, 0, 1), 0)].strip()
    answer = _last_inner_box(content)
    tag = None if answer else re.search(r"<answer>(.*?)</answer>", content, re.DOTALL)
    return tag[1].strip() if tag else answer


def _closing_brace(text: str, begin: int, depth: int) -> int:
    """Returns the position of the first closing brace, at or after `begin`, that closes all open braces. Returns -1 if there is
    none. `depth` is the number of braces that are open before `begin`."""
    for brace in BRACE.finditer(text, begin):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0 and brace[0] == "}":
            return brace.start()
    return -1


def _last_inner_box(content: str) -> str | None:
    """Searches the content of a box for further boxes, and returns the content of the last one. Returns all of `content` if it
    contains no box. For an \\fbox{...}, the result includes the command and its braces. Returns None if the braces of the last
    box do not close."""
    if "\\boxed " in content:
        return content.rpartition("\\boxed ")[2].partition("$")[0]
    begin = content.rfind("\\boxed" if "\\boxed" in content else "\\fbox")
    if begin < 0:
        return content
    end = _closing_brace(content, begin, 0)
    if end < 0:
        return None
    name = "\\boxed{"
    return content[begin + len(name) : end] if content.startswith(name, begin) else content[begin : end + 1]


def normalize(text: str) -> str:
    """Normalizes an answer in the same way as the reference code. Raises ValueError if the answer contains `\\text{ ` more than
    once. Also raises ValueError if the answer has exactly one slash, and this slash is not between two integers, as in x/y and
    5 km/h. Raises IndexError if nothing follows a \\sqrt or \\frac."""
    text = text.replace("\n", "").replace("\\!", "").replace("\\\\", "\\")
    text = text.replace("tfrac", "frac").replace("dfrac", "frac").replace("\\left", "").replace("\\right", "")
    text = text.replace("^{\\circ}", "").replace("^\\circ", "").replace("\\$", "")
    if "\\text{ " in text:
        text, _ = text.split("\\text{ ")  # drops a unit on the right
    text = text.replace("\\%", "").replace("\\%", "")  # twice, because removing the first one from \\%% leaves another one
    text = text.replace(" .", " 0.").replace("{.", "{0.")
    if text.startswith("."):
        text = "0" + text
    sides = text.split("=")
    if len(sides) == 2 and len(sides[0]) <= 2:
        text = sides[1]
    text = _braced_fractions(_braced_roots(text).replace(" ", ""))
    if text == "0.5":
        return "\\frac{1}{2}"
    if text.count("/") == 1:
        numerator, denominator = map(int, text.split("/"))
        if text == f"{numerator}/{denominator}":  # not +1/2 or 01/2
            return f"\\frac{{{numerator}}}{{{denominator}}}"
    return text


def _braced_roots(text: str) -> str:
    """Returns a text with the missing braces of LaTeX roots, so \\sqrt2 becomes \\sqrt{2}."""
    head, *parts = text.split("\\sqrt")
    return head + "".join(f"\\sqrt{part}" if part[0] == "{" else f"\\sqrt{{{part[0]}}}{part[1:]}" for part in parts)


def _braced_fractions(text: str) -> str:
    """Returns a text with the missing braces of LaTeX fractions, so \\frac12 becomes \\frac{1}{2}, and \\frac1{72} becomes
    \\frac{1}{72}. Returns the text unchanged if only a single character follows a \\frac."""
    head, *parts = text.split("\\frac")
    for part in parts:
        if part[0] != "{":
            if len(part) == 1:
                return text
            denominator = part[1:] if part[1] == "{" else f"{{{part[1]}}}{part[2:]}"
            part = f"{{{part[0]}}}{denominator}"
        head += f"\\frac{part}"
    return head


def format_reward(text: str) -> float:
    """Returns a reward from 0 to 0.75. Each of the four tags of the paper's format adds 0.125 if it occurs exactly once, and a
    \\boxed adds 0.25."""
    tags = ("<reasoning>\n", "</reasoning>", "<answer>\n", "</answer>")
    return 0.125 * sum(text.count(tag) == 1 for tag in tags) + 0.25 * ("\\boxed{" in text)
