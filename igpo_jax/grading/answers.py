"""Finds the final answer of a completion (docs/grading.md)."""

import functools
import re

from igpo_jax.grading.typed import BOLD, is_stated, read
from igpo_jax.grading.units import LIMITING

TAIL_CHARS = 20_000  # number of characters at the end of a completion that are read
MAX_NESTED_BOXES = 50
MAX_STATED_CHARS = 200  # length limit for a text that is an answer as a whole
BOX = re.compile(r"\\(?:boxed|fbox)\s*\{?")
BARE = re.compile(r"[-−]?\\?\$?(?:\d[^\s$\\{}]*|[a-zA-Z](?![a-zA-Z]))")  # content of a box without braces
SPECIAL = re.compile(r"<\|[^<>|]{1,40}\|>")
UNDERLINED = re.compile(r"(?<!\w)__(?=\w)|(?<=\w)__(?!\w)")
TAG = re.compile(r"<answer>(.*?)(?=</|<answer>|$)", re.DOTALL | re.IGNORECASE)
PLACEHOLDER = re.compile(r"[\s.…]*|<[^<>]*>|\\l?dots")  # content of a box that is no answer
HASHES = re.compile(r"####[ \t]*([^#\n]+)")
NUMBER = re.compile(
    r"(?:(?<![\w)])[-−–])?(?:\\?\$)?(?<![a-zA-Z_])(?:\d++(?:(?:,|\{,\}|\\,)\d{3})+(?:\.\d+)?(?!\d)|\d++\s\d+/\d+|\d++(?:\.\d+)?|(?<!\d)\.\d+)"
    r"(?:[eE][-+]?\d+)?(?:/\d+)?(?:\s*\\?%|\s+(?:hundred|thousand|million|billion|trillion|dozen|lakh|crore)\b)?"
)  # 9-5 holds 9 and 5, not -5
ALONE = re.compile(rf"(?<![\^_{{\[(<])(?:{NUMBER.pattern})(?![\w^_}}\])])")  # a number that is no part of a formula
ANNOUNCED = re.compile(
    r"(?i)\banswer(?:\s+is|\s*+[:=])\s*+:?+\s*+(\\\[[\s\S]*?\\\]|\$\$[\s\S]*?\$\$|\S.*?)(?=\.?[ \t]*+(?:\n|$)|\.\s)"
)
FINAL = re.compile(ANNOUNCED.pattern.replace("answer", "final answer"))
# What makes a number at the beginning of a text a part of an operation or a range, as in "18 times 2", "18 eggs to 20 eggs",
# "18 out of 20" and, after OPERATED, "18^2 eggs"; but not in "18 eggs out of 20"
BEGIN = re.compile(rf"(?:\$|\\[(\[]|\s)*+({NUMBER.pattern})(?:\$|\s*\\[)\]])*")
JOINED = re.compile(
    r"(?i),?\s+(?:(?:[a-z]+\s+)?(?:times|(?:up\s+)?to|through|till|until|by|choose)|per|(?:out\s+)?of|from|into|"
    r"for\s+(?:every|each)|in(?=\D*[\d.,]+\W*$))\s+(?:the\s+)?(?:\\?[$(\[]|\s)*[-−]?\.?\d"
)
OPERATED = re.compile(
    r"\s*(?!\^\s*\\circ)(?:[+*/^×·÷]|\\(?:times|cdot|div)(?![a-zA-Z]))\s*[\\($\d]|[-−–:]?\d|\s*:\s*[\d.]+\W*$"
)
REMARK = re.compile(r"\s+\(|,?\s+(?:because|since|as|for)\s")
HEADING = re.compile(r"\d{1,2}(?:\.\d+)?[.):]?\s+(?:-\s+)?[A-Z]|\d{1,2}:")
HEADINGS = set("solution answer final step steps explanation conclusion summary result".split())
UNREAD = re.compile(r"[-$\d]|(?:[a-z]+\s+){1,3}[-$]?\d")  # a #### line such as "at least 5"
NO_ANSWER = {"problem", "step", "question", "part", "cannot"}  # a number in a text with one of these words is no answer
# Possessive, because a text that can be read in several ways would take exponential time.
_BETWEEN = r"(?:[\s$,;()\[\]{}]|\\(?:quad|text)?+|quad|and|or)"
JOINT = re.compile(rf"{_BETWEEN}*(?:and|or|,){_BETWEEN}*\\(?:boxed|fbox)\s*\{{?")
MATH = re.compile(
    r"\$\$(.+?)\$\$|(?<!\\)\$([^$\n]+)\$(?:\s*(?:\\?%|percent\b|pct\b|miles\b))?|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL
)


def boxes(text: str) -> list[str]:
    """Returns the content of each outermost, closed \\boxed{...} and \\fbox{...} in a text, in order."""
    return [text[begin:end] for begin, end in box_spans(text)]


def box_spans(text: str) -> list[tuple[int, int]]:
    """Returns (begin, end) of the content of each outermost, closed \\boxed{...} and \\fbox{...} in a text, in order. A closing
    tag such as </answer> also closes a box. If there is no such box, returns the spans of numbers and letters that follow
    \\boxed or \\fbox without braces, as in \\boxed 5."""
    found: list[tuple[int, int]] = []
    bare: list[tuple[int, int]] = []
    closing, end, tag = _closing_braces(text), 0, 0
    for match in BOX.finditer(text):
        if match.start() < end:
            continue
        opening = match.end() - 1
        if text[opening] == "{":
            tag = text.find("</", opening) if 0 <= tag < opening else tag
            end = closing.get(opening, tag)
            if end >= 0:
                found.append((opening + 1, end))
            end = max(end, 0)
        elif text[opening].isspace() and (word := BARE.match(text, match.end())):
            bare.append(word.span())
    return found or bare


def _closing_braces(text: str) -> dict[int, int]:
    """Returns {position of an opening brace: position of its closing brace}. Makes a single pass over the text, because a
    completion may contain thousands of unclosed boxes."""
    pairs: dict[int, int] = {}
    opened: list[int] = []
    escaped = 0  # open \{
    for place in re.finditer(r"\\[{}\\]|[{}]", text):
        if place[0] == "{":
            opened.append(place.start())
        elif place[0] == "\\{":
            escaped += 1
        elif place[0] == "\\}" and escaped:
            escaped -= 1
        elif place[0] in ("}", "\\}") and opened:  # \boxed{5\}
            pairs[opened.pop()] = place.end() - 1
    return pairs


def extract(text: str, rule: str) -> str | None:
    """Returns the final answer of a completion, or None if the completion has no answer. `rule` is one of:

    box: the content of the last \\boxed{...}, or None if a later box is never closed.
    number (GSM8K): the first of these that exists: the first #### line with a number, the last box or <answer> (whichever is
        later), the text after "answer is", the last number.
    any: the first of these that exists: the last box or <answer> (whichever is later) or a "final answer is" after it, the
        first #### line, the text after "answer is", the whole text if it is a short answer, the last formula, the last number.

    These lists ignore a #### line such as "at least 5", which contains a number but states no value. Such a line is used only
    if the first two items (rule number) or the first three items (rule any) do not exist. The answer is then the whole line,
    which equals only the identical text."""
    text = SPECIAL.sub(" ", re.sub(r"\s{20,}", "\n", text[-TAIL_CHARS:]))
    text = UNDERLINED.sub("", BOLD.sub(r"\1", text)) if "**" in text or "__" in text else text
    if rule != "box":
        text = text.rpartition("</think>")[2] if text[-9:] != "</think>" else text
        text = re.sub(r"<<[^<>]*>>", "", text) if "<<" in text else text  # GSM8K's calculator
        if text.count("boxed{") > text.count("\\boxed{") or "fbox{" in text:
            text = re.sub(r"(?<![\\\w])(boxed|fbox)\{", r"\\\1{", text)
    spans = box_spans(text)
    is_open = _is_open(text, spans[-1][1] if spans else 0)
    spans = [span for span in spans if not PLACEHOLDER.fullmatch(text[slice(*span)])]
    box = (_joined(text, spans) if rule != "number" else _inner(text[slice(*spans[-1])])) if spans and not is_open else None
    if rule == "box":
        return box
    tags = [tag for tag in TAG.finditer(text) if not PLACEHOLDER.fullmatch(BOX.sub("", tag[1]).strip(" \n}"))]
    tag = tags[-1][1].strip().strip("`") if tags and (not spans or spans[-1][1] < tags[-1].start()) else None
    concluded = tag or box
    if rule == "any" and (concluded or (spans and is_open)):
        final = FINAL.findall(text, max([0, *(span[1] for span in spans[-1:]), *(tag.end() for tag in tags[-1:])]))
        if final and concluded and not is_open and is_stated(read(final[-1])):
            return final[-1]
        return (_stated(concluded, rule) if concluded and concluded != box else None) or concluded
    lines = [line.partition("<")[0].strip() for line in HASHES.findall(text)]
    line = next((stated for stated in map(functools.partial(_stated, rule=rule, is_line=True), lines) if stated), None)
    unread = next((line for line in lines if UNREAD.match(line) and not HEADING.match(line)), None)
    announced = ANNOUNCED.findall(text)[-1:]
    if rule == "number":
        first = line or (concluded and (_stated(concluded, rule) or concluded)) or unread
        return first or next((_announced(part, rule) or part for part in announced), None) or _last_value(text, rule)
    if line or announced:
        is_limited = announced and LIMITING.intersection(re.findall("[a-z]+", announced[0].lower()))
        value = None if is_limited else _last_value(announced[0], rule) if announced else None
        return line or _announced(announced[0], rule) or value or announced[0]
    whole = text.strip()
    is_answer = (
        len(whole) <= MAX_STATED_CHARS and "\n" not in whole and is_stated(read(whole)) and not whole[1:].strip(".").isalpha()
    )
    return unread or (whole if whole and is_answer else _last_value(text, rule))


def _joined(text: str, spans: list[tuple[int, int]]) -> str:
    """Returns the content of the last box. If the last boxes are separated only by commas, "and" or "or", returns the contents
    of all these boxes, joined with commas."""
    first = len(spans) - 1
    while first and JOINT.fullmatch(text[spans[first - 1][1] + 1 : spans[first][0]][:MAX_STATED_CHARS]):
        first -= 1
    return ", ".join(dict.fromkeys(_inner(text[slice(*span)]).strip() for span in spans[first:]))


def _is_open(text: str, begin: int) -> bool:
    """Returns whether a box begins after the position `begin` and is never closed, as in a completion that was cut off in the
    middle of its answer."""
    last_tag = text.rfind("</")
    return any(text[match.end() - 1] == "{" and last_tag < match.end() for match in BOX.finditer(text, begin))


def _inner(content: str) -> str:
    """Returns `content` without the boxes that enclose all of it, so \\boxed{5} becomes 5. If there is text outside of a box,
    as in -\\boxed{5}, the box is kept."""
    for _ in range(MAX_NESTED_BOXES):
        spans, stripped = box_spans(content), content.strip()
        if len(spans) != 1 or not BOX.match(stripped) or spans[0][1] != len(content.rstrip()) - 1:
            break
        content = content[slice(*spans[0])]
    return content


def _stated(place: str, rule: str, is_line: bool = False) -> str | None:
    """Returns the answer in a short text, or None if there is no answer.

    Tries the whole text, the part after "answer is", the part after a label, and the part before a remark. Returns the first of
    these parts that is a value. With the rule `number`, only numbers and formulas are values. If no part is a value, returns
    the formula in the text. If the text has no formula, returns the number in the text. If a number follows the last formula,
    returns this number instead of the formula. Returns None if there are several such formulas or numbers, or if a word of the
    text, such as "least", may change their meaning.

    `is_line` means that the text is a #### line. Such a line has no answer if it looks like a heading, or if no part is a
    value."""
    label, _, after = place.rpartition(": ")
    begin = BEGIN.match(place)
    words = set(re.findall(r"[a-z]+", place.lower()))
    parts = [
        place,
        *ANNOUNCED.findall(place)[-1:],
        *([after] if label.upper() != label.lower() and not is_line and not LIMITING & words else []),
        *REMARK.split(place)[:1],
    ]
    for part in parts if not (is_line and HEADING.match(place)) else ():
        answer = read(part) if part else None
        is_number = answer and (answer.kind in ("number", "percent", "formula") if rule == "number" else is_stated(answer))
        if is_number and (re.search(r"\d|\\", part) or (rule == "any" and part == place and not words & HEADINGS)):
            return part
    formulas = [match[0] for match in MATH.finditer(place)]
    if (
        is_line
        or words & (LIMITING | NO_ANSWER)
        or (begin and JOINED.match(place, begin.end()))
        or ("\\" in place and not formulas)
    ):
        return None
    if formulas and not NUMBER.search(place.rpartition(formulas[-1])[2]):
        return formulas[0] if len(formulas) == 1 else None
    place = place.rpartition(formulas[-1])[2] if formulas else place
    numbers = {match[0].strip() for match in ALONE.finditer(place)}
    return numbers.pop() if len(numbers) == 1 and len(words) > 1 else None


def _announced(part: str, rule: str) -> str | None:
    """Returns the answer in `part`, which is the text after "answer is". If `_stated` finds no answer, returns the number at
    the start of `part`, such as 18 in "18, which is 9 times 2". Returns `part` itself, which equals no number, if this number
    continues as an operation or a range, as in "18 times 2". Returns None if `part` does not begin with a number, or if the
    words after the number change its meaning."""
    begin = BEGIN.match(part)
    if begin and JOINED.match(part, begin.end()):
        return part
    stated = _stated(part, rule)
    if stated or not begin:
        return stated
    words = re.findall("[a-z]+", part[begin.end() :].lower())[:3]
    if OPERATED.match(part, begin.end()):
        return part
    return begin[1].strip() if not LIMITING.intersection(words) else None


def _last_value(text: str, rule: str) -> str | None:
    """Returns the last formula between math delimiters, such as $x$ or \\(x\\), or the last number if it comes later. Returns
    None if the text has neither."""
    formulas, numbers = list(MATH.finditer(text)), list(NUMBER.finditer(text))
    if formulas and not (numbers and numbers[-1].end() > formulas[-1].end()):
        if rule == "any" or read(formulas[-1][0]).kind in ("number", "percent", "formula"):
            return formulas[-1][0]
    return numbers[-1][0].strip() if numbers else None
