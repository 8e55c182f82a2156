"""Keeps the problems of the test split out of training. Problems are compared by their contents instead of their ids, because
ids may be row numbers.

The content of a problem is a pair (text, capitals). `text` is the problem in a normalized form, and `capitals` is the part of
the problem in which upper and lower case have a meaning (see `question_content`), or "". A task may define the content in a
function content(task, problem). Two problems count as equal if their texts are equal and their capitals are equal. If the
capitals of one problem are "", only the texts are compared."""

import logging
import re
import types
import unicodedata
from collections.abc import Callable, Collection, Iterable
from typing import Any

from igpo_jax.tasks.problem import Problem

log = logging.getLogger(__name__)

Content = tuple[str, str]

LETTERS = r"(?![a-zA-Z])"  # the end of a LaTeX command
SAME = str.maketrans(
    dict.fromkeys("“”„«»", '"')
    | dict.fromkeys("‘’ʼ′", "'")
    | dict.fromkeys("–—−‐‑", "-")
    | dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad")
    | {"…": "...", "×": "\\times ", "÷": "\\div ", "·": "\\cdot ", "⋅": "\\cdot ", "≤": "\\le ", "≥": "\\ge ", "≠": "\\ne "}
    | {"π": "\\pi ", "∞": "\\infty ", "°": "^\\circ "}
)
# Rewrites of layout, markup and synonyms: (characters, pattern, replacement). A match contains at least one of the characters.
# Digits and signs stay, but two or three hyphens become one dash. The second backslash of a line break begins no command.
REWRITES = tuple(
    (frozenset(needed), re.compile(pattern, re.MULTILINE), plain)
    for needed, pattern, plain in (
        ("`'", r"``|''", '"'),
        ("-", r"-{2,3}", "-"),
        ("\\", r"(\\\\)\[\d\w*\]", r"\1"),
        ("\\", r"\\(begin|end)\{(\w+)\*\}", r"\\\1{\2}"),
        ("<&#`", r"<br\s*/?>|&nbsp;|^[ \t]*#{1,6}[ \t]+|`+", " "),
        (",", r"(?<=\d)(?:,\\!|\{,\})(?=\d{3}(?!\d))", ","),
        ("*", r"(?<![\w*)\]}])\*\*(?=[^\s*])([^*\n]+)(?<=\S)\*\*(?![\w*(])", r"\1"),  # **bold**, but not 2**3
        ("*_", r"(?<!\S)(?<![\d)]\s)([*_])([^\W\d_][^*_\n]{2,}?)\1(?=[\s.,;:?!]|$)", r"\2"),  # *emphasis*, but not 2 * x * y
        ("*_", r"(?<!\S)([*_])([^\W\d_]{4}[^*_\n]*?)\1(?=[\s.,;:?!]|$)", r"\2"),
        ("_", r"(?<!\w)__(?=[^\s_])([^_\n]+)(?<=\S)__(?!\w)", r"\1"),
        ("\\$~", r"(?<!\\)((?:\\\\)*)\\(?:[,;:! ()\[\]]|\$)|\$|(?<=\S)~(?=\S)", r"\1 "),
        ("\\", rf"\\(?:q?quad|left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|newline|noindent){LETTERS}", " "),
        ("\\", r"\\(?:text(?:bf|it|rm|normal)?|mathrm|operatorname|emph|mbox)\s*\{([^{}]*)\}", r" \1 "),
        ("\\", rf"\\[dtc]frac{LETTERS}", r"\\frac"),
        ("\\", rf"\\(leq|geq|neq){LETTERS}", lambda found: f"\\{found[1][:2]} "),
        (".\\", rf"\.{{3,}}|\\[lc]?dots{LETTERS}", r"\\dots "),
        ("\\", r"(?<!\\)\\([%#&_])", r"\1"),
        ("\\", r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        ("\\", r"\\sqrt\s*(\d)", r"\\sqrt{\1}"),
        ("\\", r"\\frac\s*(?:\{(\w)\}\s*(\w)|(\w)\s*\{(\w)\})", r"\\frac{\1\3}{\2\4}"),
        ("_^", r"([_^])\s*(?:\{\s*(\w|\\circ)\s*\}|(\w))", r"\1\2\3 "),
    )
)
TOKEN = re.compile(r"\\[a-zA-Z]+|\\.|\d+(?:\.\d+)?|\.\d+|[^\W\d_]+|\S")
PUNCTUATION = frozenset('.,;:?!"')
OPENING = frozenset("\"'([{")


def content_of(module: types.ModuleType, task: Any) -> Callable[[Problem], Content]:
    """Returns a function that maps a problem of a task to its content (text, capitals). The function is `content` of the task's
    module if the module defines it. Otherwise, the content is the unchanged question and ""."""
    if hasattr(module, "content"):
        return lambda problem: module.content(task, problem)
    return lambda problem: (problem.question, "")


def untested(contents: Iterable[Content], test: Iterable[Content]) -> list[bool]:
    """Returns a list with one bool per problem, True if no test problem has the same content. `contents` holds the contents of
    the problems, and `test` holds the contents of the test problems."""
    tested: dict[str, set[str]] = {}
    for text, capitals in test:
        tested.setdefault(text, set()).add(capitals)

    def is_tested(text: str, capitals: str) -> bool:
        known = tested.get(text, set())
        return bool(known) and (not capitals or capitals in known or "" in known)

    return [not is_tested(*content) for content in contents]


def repeats(contents: Collection[Content]) -> int:
    """Returns the number of problems that repeat the content of another problem: the number of all problems minus the number of
    different contents."""
    capitals_of: dict[str, set[str]] = {}
    for text, capitals in contents:
        capitals_of.setdefault(text, set()).add(capitals)
    return len(contents) - sum(max(1, len(capitals - {""})) for capitals in capitals_of.values())


def warn_of_repeats(where: str, contents: Collection[Content]) -> None:
    """Logs a warning if several problems have the same content. `where` is the name of the set of problems in the message, such
    as "the split rl"."""
    if repeated := repeats(contents):
        same = "the question of an earlier one, compared as for the test split"
        log.warning("%d of %d problems of %s have %s; all are kept", repeated, len(contents), where, same)


def question_content(question: str) -> Content:
    """Returns the content (text, capitals) of a question.

    `text` consists of the words and formulas of the question. Words are in lower case; LaTeX commands keep their case.
    Markdown, LaTeX layout, and punctuation next to words are removed. Spacing, dashes and quotes are unified. Numbers, signs,
    brackets, and punctuation within formulas and lists are kept.

    `capitals` consists of the single letters and the short words, such as MB, in their original case (see `_capitals`). It is
    "" if the whole question is in upper case or in lower case."""
    text = unicodedata.normalize("NFC", question).translate(SAME)
    characters = set(text)
    for needed, pattern, plain in REWRITES:
        if not needed.isdisjoint(characters):  # most texts have few of them
            text, changes = pattern.subn(plain, text)
            characters = set(text) if changes else characters
    tokens = TOKEN.findall(text)
    kept = [token for i, token in enumerate(tokens) if token not in PUNCTUATION or _counts(tokens, i)]
    folded = " ".join(token if token[0] == "\\" else token.casefold() for token in kept)
    words = [token for token in kept if token[0].isalpha()]
    letters = "".join(words)
    is_uniform = (letters.islower() or letters.isupper()) and any(len(word) > 1 for word in words)
    return folded or question, "" if is_uniform else _capitals(tokens)


def _counts(tokens: list[str], i: int) -> bool:
    """Returns whether the punctuation mark `tokens[i]` has a mathematical meaning. An exclamation mark has such a meaning if it
    is a factorial or part of an operator such as !=. Any other mark has such a meaning if it stands between two numbers, single
    letters or symbols."""
    before, after = tokens[i - 1] if i else "", tokens[i + 1] if i + 1 < len(tokens) else ""
    if tokens[i] == "!":
        follows = before[-1:].isdigit() or before in (")", "]", "}", "|", "!") or (len(before) == 1 and before.isalpha())
        return follows or before[:1] == "\\" or (after != "" and after in "=+-*/^<>")  # n!, \\pi!, mn! = 120, sum != 0
    is_word = [not side or side in PUNCTUATION or (side.isalpha() and len(side) > 1) for side in (before, after)]
    return not any(is_word)


def _capitals(tokens: list[str]) -> str:
    """Returns the single letters and the words of two or three letters among the tokens of a question, separated by spaces.
    Their case is kept, because it may have a meaning, as in x and X, or in mb and MB. The capital at the beginning of a
    sentence has no meaning. Therefore, two kinds of words become lower case: words of two or three letters of which only the
    first is a capital, such as "Is" and "The", and the article "A" at the beginning of a sentence or after a colon."""
    short, is_first = [], True
    for i, token in enumerate(tokens):
        if token.isalpha() and len(token) < 4:
            after = "".join(tokens[i + 1 : i + 2])
            is_article = is_first and token == "A" and after.isalpha() and len(after) > 1
            short.append(token.lower() if is_article or (len(token) > 1 and token.istitle()) else token)
        if token not in OPENING:
            is_first = token in (".", "?", "!", ":")
    return " ".join(short)
