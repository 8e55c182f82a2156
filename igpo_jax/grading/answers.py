"""Finds the final answer of a completion (docs/grading.md)."""

import re

from igpo_jax.grading.equality import equal
from igpo_jax.grading.typed import is_stated, read

__all__ = ["box_spans", "boxes", "equal", "extract"]

TAIL_CHARS = 20_000  # characters that are read at a completion's end
MAX_NESTED_BOXES = 50
MAX_STATED_CHARS = 200  # of a text that is an answer as a whole
BOX = re.compile(r"\\(?:boxed|fbox)\s*\{?")
BARE = re.compile(r"[-−]?\\?\$?(?:\d[^\s$\\{}]*|[a-zA-Z](?![a-zA-Z]))")  # content of a box without braces
SPECIAL = re.compile(r"<\|[^<>|]{1,40}\|>")
TAG = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.DOTALL)
HASHES = re.compile(r"####[ \t]*([^#\n]+)")
NUMBER = re.compile(
    r"(?:(?<![\w)])[-−])?(?:\\?\$)?(?<![a-zA-Z_])(?:\d+(?:,\d{3})+(?:\.\d+)?(?!\d)|\d+(?:\.\d+)?|(?<!\d)\.\d+)(?:[eE][-+]?\d+)?(?:/\d+)?"
    r"(?:\s*\\?%|\s+(?:hundred|thousand|million|billion|trillion|dozen|lakh|crore)\b)?"
)  # 9-5 holds 9 and 5, not -5
FINAL = re.compile(r"(?i)\bfinal answer is\s*:?\s*(\S.*?)(?=\.?\s*(?:\n|$)|\.\s)")  # few-shot format of MATH
ANNOUNCED = re.compile(r"(?i)\banswer(?:\s+is|\s*[:=])\s*:?\s*(\S.*?)(?=\.?\s*(?:\n|$)|\.\s)")
JOINT = re.compile(
    r"(?:[\s$,;()\[\]\\{}]|\\?quad|\\text|and|or)*(?:and|or|,)(?:[\s$,;()\[\]\\{}]|\\?quad|\\text|and|or)*\\(?:boxed|fbox)\s*\{?"
)
MATH = re.compile(
    r"\$\$(.+?)\$\$|(?<!\\)\$([^$\n]+)\$(?:\s*(?:\\?%|percent\b|pct\b|miles\b))?|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL
)


def boxes(text: str) -> list[str]:
    """Returns the contents of all outermost, closed \\boxed{...} and \\fbox{...} in a text, in order."""
    return [text[begin:end] for begin, end in box_spans(text)]


def box_spans(text: str) -> list[tuple[int, int]]:
    """Returns (begin, end) of the content of each outermost, closed \\boxed{...} and \\fbox{...} in a text, in order. </answer>
    closes an open box. A number or letter after \\boxed without braces is a box if there is no other."""
    found: list[tuple[int, int]] = []
    bare: list[tuple[int, int]] = []
    closing, end = _closing_braces(text), 0
    for match in BOX.finditer(text):
        if match.start() < end:
            continue
        opening = match.end() - 1
        if text[opening] == "{":
            tag_end = text.find("</answer>", opening)
            end = closing.get(opening, tag_end)
            if end >= 0:
                found.append((opening + 1, end))
            end = max(end, 0)
        elif text[opening].isspace() and (word := BARE.match(text, match.end())):
            bare.append(word.span())
    return found or bare


def _closing_braces(text: str) -> dict[int, int]:
    """Maps the position of each opening brace to the position of its closing brace. Makes a single pass over the text, because
    a completion may contain thousands of unclosed boxes."""
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
    """Returns the final answer of a completion, or None if the completion has no answer.

    box: the content of the last \\boxed{...}. None if a later box never closes.
    number (GSM8K): the number after the first ####, else in the last box or <answer>, else the last number.
    any: the last of box and <answer>, else the text after the first ####, else the text after "the answer is", else the whole
        text if it is short and an answer, else the last formula, else the last number."""
    text = SPECIAL.sub(" ", text[-TAIL_CHARS:])
    spans = box_spans(text)
    box = _joined(text, spans) if spans and not _is_open(text, spans[-1]) else None
    if rule == "box":
        return box
    tags = list(TAG.finditer(text))
    tag = _unmarked(tags[-1][1]) if tags else None
    hashed = HASHES.search(text)
    line = _unmarked(hashed[1]) if hashed else None
    if rule == "number":
        ordered = [box, tag] if not tags or (box and spans[-1][1] > tags[-1].end()) else [tag, box]
        places = (_number_of(place) for place in (line, *ordered) if place)
        return next((place for place in places if place), None) or _last_number(text)
    final = list(FINAL.finditer(text, spans[-1][1] if spans else 0))
    if final and spans and not _is_open(text, spans[-1]) and is_stated(read(final[-1][1])):
        return _unmarked(final[-1][1])
    if tag and (box is None or spans[-1][1] < tags[-1].start()):
        return tag
    if box is not None or (spans and _is_open(text, spans[-1])):
        return box
    if line:
        return line
    announced = ANNOUNCED.findall(text)
    stated = _unmarked(announced[-1]) if announced else None
    if stated:
        return stated if is_stated(read(stated)) else _last_value(stated) or stated
    whole = _unmarked(text)
    if whole and len(whole) <= MAX_STATED_CHARS and "\n" not in whole and is_stated(read(whole)):
        return whole
    return _last_value(text)


def _joined(text: str, spans: list[tuple[int, int]]) -> str:
    """Returns the content of the last box, or a list of the last boxes if only commas, "and" or "or" stand between them."""
    first = len(spans) - 1
    while first and JOINT.fullmatch(text[spans[first - 1][1] + 1 : spans[first][0]]):
        first -= 1
    return ", ".join(_inner(text[slice(*span)]).strip() for span in spans[first:])


def _is_open(text: str, span: tuple[int, int]) -> bool:
    """Returns whether a box begins after a closed box and never closes: the last answer of the text is cut off."""
    return any(text[match.end() - 1] == "{" for match in BOX.finditer(text, span[1]))


def _inner(content: str) -> str:
    for _ in range(MAX_NESTED_BOXES):
        inner = boxes(content)
        if not inner:
            break
        content = inner[-1]
    return content


def _unmarked(text: str) -> str | None:
    """Returns the content of an answer without Markdown, and of boxed{4} without a backslash. Returns None if it is empty."""
    text = re.sub(r"(?<![\\\w])(?:boxed|fbox)\{([^{}]*)\}?", r"\1", text)
    text = re.sub(r"(?<![\w)}*])(\*\*|__)(?=\S)(.+?)(?<=\S)\1(?![\w*])", r"\2", text, flags=re.DOTALL).strip()
    return text.strip("`").strip() or None


def _number_of(place: str) -> str | None:
    """Returns the number that a place states, or None."""
    if read(place).kind in ("number", "percent", "formula") and any(c.isdigit() for c in place):
        return place
    announced = ANNOUNCED.findall(place)
    if announced:
        return _number_of(announced[-1])
    found = [match[0].strip() for match in NUMBER.finditer(place)]
    return found[0] if len(set(found)) == 1 and len(place.split()) > 3 else None


def _last_value(text: str) -> str | None:
    """Returns the last formula between dollar signs or \\( and \\), or the number after it."""
    formulas, numbers = list(MATH.finditer(text)), list(NUMBER.finditer(text))
    if formulas and not (numbers and numbers[-1].end() > formulas[-1].end()):
        return formulas[-1][0]
    return numbers[-1][0].strip() if numbers else None


def _last_number(text: str) -> str | None:
    found = [match[0].strip() for match in NUMBER.finditer(text)]
    return found[-1] if found else None
