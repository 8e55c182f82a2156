"""Finds the final answer of a completion (docs/grading.md)."""

import re

from igpo_jax.grading.equality import equal
from igpo_jax.grading.typed import is_stated, read
from igpo_jax.grading.units import LIMITING

__all__ = ["box_spans", "boxes", "equal", "extract"]

TAIL_CHARS = 20_000  # characters that are read at a completion's end
MAX_NESTED_BOXES = 50
MAX_STATED_CHARS = 200  # of a text that is an answer as a whole
BOX = re.compile(r"\\(?:boxed|fbox)\s*\{?")
BARE = re.compile(r"[-−]?\\?\$?(?:\d[^\s$\\{}]*|[a-zA-Z](?![a-zA-Z]))")  # content of a box without braces
SPECIAL = re.compile(r"<\|[^<>|]{1,40}\|>")
MARKDOWN = re.compile(r"(?<![\w)}])\*\*+|\*\*+(?![\w({\\])|(?<!\w)__(?=\w)|(?<=\w)__(?!\w)")  # not in x**2
TAG = re.compile(r"<answer>(.*?)(?:</|<answer>|$)", re.DOTALL)
PLACEHOLDER = re.compile(r"[\s.…]*|<[^<>]*>|\\l?dots")  # content of a box that is no answer
HASHES = re.compile(r"####[ \t]*([^#\n]+)")
NUMBER = re.compile(
    r"(?:(?<![\w)])[-−])?(?:\\?\$)?(?<![a-zA-Z_])(?:\d+(?:,\d{3})+(?:\.\d+)?(?!\d)|\d+(?:\.\d+)?|(?<!\d)\.\d+)(?:[eE][-+]?\d+)?(?:/\d+)?"
    r"(?:\s*\\?%|\s+(?:hundred|thousand|million|billion|trillion|dozen|lakh|crore)\b)?"
)  # 9-5 holds 9 and 5, not -5
ANNOUNCED = re.compile(r"(?i)\banswer(?:\s+is|\s*[:=])\s*:?\s*(\S.*?)(?=\.?\s*(?:\n|$)|\.\s)")
FINAL = re.compile(ANNOUNCED.pattern.replace("answer", "final answer"))
REMARK = re.compile(r"\s+\(|[.,;:!?]\s")
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
    """Returns (begin, end) of the content of each outermost, closed \\boxed{...} and \\fbox{...} in a text, in order. A closing tag
    such as </answer> closes an open box. A number or letter after \\boxed without braces is a box if there is no other."""
    found: list[tuple[int, int]] = []
    bare: list[tuple[int, int]] = []
    closing, end = _closing_braces(text), 0
    for match in BOX.finditer(text):
        if match.start() < end:
            continue
        opening = match.end() - 1
        if text[opening] == "{":
            tag_end = text.find("</", opening)
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
    text = MARKDOWN.sub("", SPECIAL.sub(" ", text[-TAIL_CHARS:]))
    spans = box_spans(text)
    is_open = _is_open(text, spans[-1][1] if spans else 0)
    spans = [span for span in spans if not PLACEHOLDER.fullmatch(text[slice(*span)])]
    box = _joined(text, spans) if spans and not is_open else None
    if rule == "box":
        return box
    is_numeric = rule == "number"
    tags = [tag for tag in TAG.finditer(text) if not PLACEHOLDER.fullmatch(BOX.sub("", tag[1]).strip(" \n}"))]
    tag = _unmarked(tags[-1][1]) if tags else ""
    lines = (_stated(_unmarked(line), is_numeric, is_line=True) for line in HASHES.findall(text))
    concluded = [box, tag] if not tags or (box and spans[-1][1] > tags[-1].start()) else [tag, box]
    if is_numeric:
        places = (_stated(place, is_numeric) for place in concluded if place)
        return next(filter(None, (*lines, *places)), None) or _last_value(text, formulas=False)
    final = FINAL.findall(text, max([0, *(span[1] for span in spans[-1:]), *(tag.end() for tag in tags[-1:])]))
    if final and any(concluded) and not is_open and is_stated(read(final[-1])):
        return final[-1]
    if any(concluded) or (spans and is_open):
        found = concluded[0] if concluded[0] or (spans and is_open) else concluded[1]
        return found if found is None or found == box else _stated(found, is_numeric) or found
    line = next(filter(None, lines), None)
    announced = ANNOUNCED.findall(text)
    if line or announced:
        return line or _stated(announced[-1], is_numeric) or _last_value(announced[-1]) or announced[-1]
    whole = _unmarked(text)
    is_short = len(whole) <= MAX_STATED_CHARS and "\n" not in whole
    return whole if whole and is_short and is_stated(read(whole)) else _last_value(text)


def _joined(text: str, spans: list[tuple[int, int]]) -> str:
    """Returns the content of the last box, or a list of the last boxes if only commas, "and" or "or" stand between them."""
    first = len(spans) - 1
    while first and JOINT.fullmatch(text[spans[first - 1][1] + 1 : spans[first][0]][:MAX_STATED_CHARS]):
        first -= 1
    return ", ".join(dict.fromkeys(_inner(text[slice(*span)]).strip() for span in spans[first:]))


def _is_open(text: str, begin: int) -> bool:
    """Returns whether a box begins after `begin` and never closes: the last answer of the text is cut off."""
    return any(text[match.end() - 1] == "{" and "</" not in text[match.end() :] for match in BOX.finditer(text, begin))


def _inner(content: str) -> str:
    for _ in range(MAX_NESTED_BOXES):
        inner = boxes(content)
        if not inner:
            break
        content = inner[-1]
    return content


def _unmarked(text: str) -> str:
    """Returns the content of boxed{4} without a backslash, and of backticks."""
    return re.sub(r"(?<![\\\w])(?:boxed|fbox)\{([^{}]*)\}?", r"\1", text).strip().strip("`").strip()


def _stated(place: str, is_numeric: bool, is_line: bool = False) -> str | None:
    """Returns what a short text states: the whole text, the part after "answer is", the part before a remark, or its only number
    if no word changes that number. Returns None if it states no answer, or with `is_numeric` no number. A `####` line may be a
    heading, so it must begin with its answer; if that cannot be read, the answer is the line."""
    beginning = REMARK.split(place)[0]
    for part in (place, *ANNOUNCED.findall(place)[-1:], beginning if beginning != place else ""):
        answer = read(part)
        is_number = answer.kind in ("number", "percent", "formula") if is_numeric else is_stated(answer)
        if is_number and (any(c.isdigit() for c in part) or not (is_numeric or is_line or part == beginning != place)):
            return None if is_line and re.match(r"\d{1,2}[.)]\s+[A-Z]", place) else part
    numbers = {match[0].strip() for match in NUMBER.finditer(place)}
    words = re.findall(r"[a-z]+", place.lower())
    if is_line:
        is_answer = re.match(r"[-$\d]", place) or (numbers and len(words) < 5 and LIMITING.intersection(words))
        return place if is_answer and not re.match(r"\d{1,2}[.)]\s+[A-Z]", place) else None
    return numbers.pop() if len(numbers) == 1 and len(words) > 1 and not LIMITING.intersection(words) else None


def _last_value(text: str, formulas: bool = True) -> str | None:
    """Returns the last formula between dollar signs or \\( and \\), or the number after it."""
    maths, numbers = list(MATH.finditer(text)) if formulas else [], list(NUMBER.finditer(text))
    if maths and not (numbers and numbers[-1].end() > maths[-1].end()):
        return maths[-1][0]
    return numbers[-1][0].strip() if numbers else None
