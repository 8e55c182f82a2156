"""Shortens a worked solution by rules alone: what repeats the question, checks what needs no check, says a thing twice
or says nothing is left out. Whole sentences go, none is reworded, and the one that states the answer stays as it is.

A rule that is in doubt keeps the sentence: in solutions written by people hardly anything is superfluous.
"""

import functools
import itertools
import re
from collections.abc import Iterator, Sequence

Span = tuple[int, int]

RULES = ("thought", "filler", "restatement", "detour", "duplicate")


def condense(question: str, trace: str, spans: Sequence[Span]) -> tuple[str, list[tuple[str, str]]]:
    """A shorter trace, and what was left out as (rule, sentence), in the order of leaving out.

    Args:
        spans: of `trace`, in characters, what states the answer. These texts are in the result, which is never longer
            than `trace`. Without any, nothing is left out.
    """
    dropped: list[tuple[str, str]] = []
    if not spans:
        return trace, dropped
    trace, spans = _after_thought(trace, spans, dropped)
    while True:  # a sentence may have been needed by one that has gone
        before = len(dropped)
        trace, spans = _pass(question, trace, spans, dropped)
        if len(dropped) == before:
            return trace, dropped


def _after_thought(trace: str, spans: Sequence[Span], dropped: list) -> tuple[str, list[Span]]:
    """Of <think> thought </think> solution only the solution, if it states the answer."""
    begin = trace.rfind("</think>") + len("</think>")
    if begin < len("</think>") or min(first for first, _ in spans) < begin:
        return trace, list(spans)
    begin += len(trace[begin:]) - len(trace[begin:].lstrip())
    dropped.append(("thought", trace[:begin].rstrip()))
    return trace[begin:], [(first - begin, last - begin) for first, last in spans]


def _pass(question: str, trace: str, spans: Sequence[Span], dropped: list) -> tuple[str, list[Span]]:
    """Applies each rule once; returns the text and where it states the answer."""
    pieces = list(sentences(trace))
    begins = [0]
    for body, gap in pieces:
        begins.append(begins[-1] + len(body) + len(gap))
    fixed = [any(first < end and begin < last for first, last in spans) for begin, end in itertools.pairwise(begins)]
    bodies = [body for body, _ in pieces]
    found = ["" for _ in bodies]  # the rule that drops it
    for i, body in enumerate(bodies):
        if fixed[i]:
            continue
        alone = not any(REFERS.match(after) for after in bodies[i + 1 : i + 2])
        if MARKER.fullmatch(body):
            found[i] = "thought"
        elif _says_nothing(body) or (alone and _names_the_aim(body, question)):
            found[i] = "filler"
        elif alone and _restates(body, question):
            found[i] = "restatement"
    _mark_detours(question, pieces, fixed, found)
    _mark_duplicates(bodies, fixed, found)

    text, moved = "", []
    gap_before = ""
    for i, (body, gap) in enumerate(pieces):
        if found[i]:
            dropped.append((found[i], body))
            gap_before = max(gap_before, gap, key=lambda space: (space.count("\n"), -len(space)))
            continue
        text += gap_before if text else ""
        moved += [
            (len(text) + max(first - begins[i], 0), len(text) + min(last, begins[i] + len(body)) - begins[i])
            for first, last in spans
            if first < begins[i] + len(body) and begins[i] < last
        ]
        text += body
        gap_before = gap
    if found and not found[-1]:
        text += gap_before
    return text, moved


# Sentences

ATOM = re.compile(
    r"\\begin\s*\{(?P<environment>[^{}]*)\}.*?\\end\s*\{(?P=environment)\}|\\\[.*?\\\]|\\\(.*?\\\)|\$\$.*?\$\$"
    r"|(?<![\\$])\$(?!\$)(?:\\.|[^$\\])*?\$|\[asy\].*?\[/asy\]|\\.|</?think>|[.!?]+[\"')\]*}]*|\n\s*|[{}]",
    re.DOTALL,
)
ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|vs|cf|etc|Mr|Mrs|Ms|Dr|St|approx|No|Fig|Eq|Thm)|\b[A-Za-z]|(?:^|\n)\s*\d+)\.$"
)
MARKER = re.compile(r"</?think>")


def sentences(text: str) -> Iterator[tuple[str, str]]:
    """(sentence, white space after it); all together they are `text`. A sentence holds formulas, environments and
    braces whole; a line is a sentence where the next one begins like a sentence."""
    begin = depth = 0
    for place in ATOM.finditer(text):
        atom, end = place[0], place.end()
        depth = max(0, depth + {"{": 1, "}": -1}.get(atom, 0))
        if end == begin or depth:
            continue
        if MARKER.fullmatch(atom):
            if text[begin : place.start()].strip():
                yield _split(text[begin : place.start()])
                begin = place.start()
            ends = True
        elif atom[0] in ".!?":
            rest = text[end : end + 40]
            ends = not rest or (rest[0].isspace() and not ABBREVIATION.search(text[begin : place.start() + 1]))
            ends = ends and not re.match(r"\s+[a-z]", rest)
        elif atom[0] == "\n":
            line = text[begin : place.start()].rstrip()
            ends = atom.count("\n") > 1 or line[-1:] in tuple(".!?:") or re.match(r"[A-Z0-9*#>-]", text[end : end + 1])
            ends = bool(ends) and bool(line)
        else:
            continue
        if ends:
            end += len(text[end:]) - len(text[end:].lstrip())
            yield _split(text[begin:end])
            begin = end
    if begin < len(text):
        yield _split(text[begin:])


def _split(piece: str) -> tuple[str, str]:
    body = piece.rstrip()
    return body, piece[len(body) :]


# What a sentence says

NEGATION = re.compile(r"\b(?:not|no|cannot|never|neither|nor|without|\w+n['’]t)\b", re.IGNORECASE)


@functools.lru_cache(maxsize=4096)
def _words(text: str) -> tuple[str, ...]:
    """Words, numbers and signs, without punctuation and the ways to set a formula."""
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text.lower())
    text = re.sub(r"\\(?:left|right|,|;|!|\(|\)|\[|\])|[$*{}]", " ", text) if "\\" in text else text.replace("$", " ")
    return tuple(re.findall(r"\d+(?:\.\d+)?|\\?[a-z]+(?:['’][a-z]+)?|[-+=<>/^*×÷|]", text))


def _values(text: str) -> list[str]:
    """What a step can be about: numbers, in figures or words, single letters, commands such as \\pi."""
    return [word for word in _words(text) if word[0].isdigit() or len(word) == 1 or word[0] == "\\" or word in NUMERALS]


NUMERALS = set(
    "zero one two three four five six seven eight nine ten eleven twelve half third quarter twice double triple".split()
)


def _introduces(body: str) -> bool:
    """Whether something follows that cannot stand alone."""
    return body.rstrip("* ").endswith((":", ",", "(", "="))


REFERS = re.compile(
    r"(?:this|that|these|those|it|they|in other words|here|i\.e\.|(?:\w+ ){1,2}do (?:this|that|so))\b", re.IGNORECASE
)  # to the one before


# Rules. Each says of a sentence whether it can go.

INTERJECTION = r"(?:okay|ok|alright|all right|hm+|well|right|yes|yeah|great|good|perfect|so|now|first|oh)"
EMPTY = re.compile(
    rf"(?:{INTERJECTION}[,.! ]*)*(?:(?:let's|let us|let me|i'll|i will|we'll)\s+(?:see|think|begin|start|get started|"
    r"(?:think|see|go|work|reason)(?: about| through)?(?: (?:this|it|that|the problem))?|break (?:this|it|that) down|"
    r"(?:solve|tackle|approach|analyze) (?:this|it|the problem|this problem))"
    r"(?:,? (?:step[- ]by[- ]step|carefully|again|now))*)?[\s,.!:…]*",
    re.IGNORECASE,
)
AIM = re.compile(
    rf"(?:(?:{INTERJECTION}|the problem says|basically)[,. ]+)*(?:i|we)(?:'m|'re| am| are)?\s+"
    r"(?:need|have|want|wish|asked|trying|supposed|going|looking|want)\s+(?:to|for)\s+"
    r"(?:find|figure out|determine|calculate|compute|solve|answer|know|work out)\b",
    re.IGNORECASE,
)


def _says_nothing(body: str) -> bool:
    """Okay. Let's think step by step."""
    return bool(EMPTY.fullmatch(body.replace("’", "'"))) and body[0].isalpha() and body[-1] in ".!…"


def _names_the_aim(body: str, question: str) -> bool:
    """I need to find what the question asks for."""
    text = body.replace("’", "'")
    aim = AIM.match(text)
    if not aim or _introduces(body) or "=" in body:
        return False
    known = set(_words(question)) | {"i"}
    return all(value in known for value in _values(body)) and _share(text[aim.end() :], question, 1) >= 0.7


def _restates(body: str, question: str) -> bool:
    """What is in the question nearly word by word, and computes nothing."""
    words = _words(body)
    if len(words) < 6 or _introduces(body) or "=" in body or CONCLUDES.match(body):
        return False
    known = set(_words(question))
    if any(value not in known for value in _values(body)):
        return False
    if len(NEGATION.findall(body)) > len(NEGATION.findall(question)):
        return False
    plain = [word for word in words if word.isalpha()]  # a formula of the question may be there to be worked on
    return sum(word in known for word in plain) >= 0.9 * len(plain) and _share(body, question, 3) >= 0.8


CONCLUDES = re.compile(r"(?:so|thus|hence|therefore|then|this means|it follows|we see|we get|we have)\b", re.IGNORECASE)


def _share(body: str, question: str, n: int) -> float:
    """How many of the runs of n words are in the question, too."""
    runs, known = (
        {tuple(words[i : i + n]) for i in range(len(words) - n + 1)} for words in map(_words, (body, question))
    )
    return len(runs & known) / len(runs) if runs else 0.0


# Someone talks to himself.
MONOLOGUE = re.compile(
    r"(?:(?:but|so|okay|ok|oh|well|now|actually|and)[,. ]+)*(?:wait\b|hm+\b|hold on\b|just to (?:be sure|be safe|"
    r"make sure|confirm|double[- ]?check),|to double[- ]?check|"
    r"(?:let me|let's|i'll|i should|i can|maybe i should)\s+(?:(?:just|also|quickly)\s+)?"
    r"(?:double[- ]?check|re-?check|check|verify|re-?verify|make sure|confirm|re-?read|reconsider|go over)\b|"
    r"does (?:that|this|it) make sense|is (?:that|this|it) (?:right|correct)|"
    r"(?:that|this) (?:(?:seems|looks|is) (?:right|correct|good|fine|reasonable)|makes sense)[.!]?$)",
    re.IGNORECASE,
)
# What people write as well; it is idle only after the answer.
SECOND_WAY = re.compile(
    r"(?:alternatively|another (?:way|approach|method)|as a check|"
    r"(?:we can|we can also|to|let us) (?:check|verify|confirm)|checking\b|a quick check)",
    re.IGNORECASE,
)
# Such a check belongs to the proof: a root may be extraneous, a bound not attained.
PROVES = re.compile(
    r"\b(?:satisf\w+|works?|original|valid|defined|attain\w*|achiev\w+|possible|exists?|converges?)\b", re.IGNORECASE
)
CHANGES = re.compile(
    r"\b(?:mistake|wrong|incorrect|error|instead|should be|should have|fails?|failed|extraneous|contradict\w*|"
    r"only|unless|except|impossible|miss(?:ed|ing)|forgot|correct(?:ion|ed|ing)|rather|however|"
    r"too (?:big|small|large|many|few|much|high|low))\b",
    re.IGNORECASE,
)
RESUMES = re.compile(
    r"(?:so|thus|hence|therefore|then|next|now|finally|the (?:final )?answer|"
    r"in (?:conclusion|summary|total)|\*\*|case|step)\b",
    re.IGNORECASE,
)


def _mark_detours(question: str, pieces: list, fixed: list[bool], found: list[str]) -> None:
    """Wait, let me check this: ..., to the end of the paragraph or to where the solution goes on.

    It goes only if it changes nothing: it takes nothing back, and no number or letter that is new in it comes again.
    A check or a second way after the answer goes with all that follows.
    """
    bodies = [body for body, _ in pieces]
    last_use = {value: i for i, body in enumerate(bodies) for value in _values(body)}
    seen = set(_values(question))
    i = 0
    while i < len(bodies):
        text, end = bodies[i].replace("’", "'"), i
        check = PROVES if SECOND_WAY.match(text) else CHANGES if MONOLOGUE.match(text) else None
        if check and not any(fixed[i:]) and not any(NEGATION.search(b) or check.search(b) for b in bodies[i:]):
            end = len(bodies)
        elif not fixed[i] and not found[i] and MONOLOGUE.match(text):
            longest = i + 1
            while longest < len(bodies) and "\n\n" not in pieces[longest - 1][1] and not fixed[longest]:
                if RESUMES.match(bodies[longest]) or MONOLOGUE.match(bodies[longest]):
                    break
                longest += 1
            end = next((end for end in (longest, i + 1) if _idle(bodies[i:end], end, seen, last_use)), i)
        if end > i:
            found[i:end] = ["detour"] * (end - i)
            i = end
            continue
        seen.update(_values(bodies[i]))
        i += 1


def _idle(bodies: list[str], end: int, seen: set[str], last_use: dict[str, int]) -> bool:
    text = " ".join(bodies)
    if NEGATION.search(text) or CHANGES.search(text) or _introduces(bodies[-1]):
        return False
    return all(value in seen or last_use[value] < end for body in bodies for value in _values(body))


# Under another assumption the same sentence is another step.
BRANCHES = re.compile(
    r"\b(?:cases?|if|suppose|assume|otherwise|second|third|other|another|similar|similarly|likewise|again|also|"
    r"remaining|each|either|both)\b",
    re.IGNORECASE,
)


def _mark_duplicates(bodies: list[str], fixed: list[bool], found: list[str]) -> None:
    """A sentence that leaves words out of an earlier one and says nothing else: same values, negations and order."""
    earlier: list[tuple[tuple[str, ...], list[str], int]] = []
    for i, body in enumerate(bodies):
        if found[i]:
            continue
        words, values, negations = _words(body), _values(body), len(NEGATION.findall(body))
        if BRANCHES.search(body) or re.match(r"[-*#\d]|step\b", body, re.IGNORECASE):
            earlier.clear()
        elif len(words) >= 4 and not fixed[i] and not _introduces(body):
            for other, its_values, its_negations in earlier:
                if values == its_values and negations == its_negations and _in_order(words, other):
                    found[i] = "duplicate"
                    break
        if not found[i]:
            earlier.append((words, values, negations))


def _in_order(some: Sequence[str], others: Sequence[str]) -> bool:
    rest = iter(others)
    return all(word in rest for word in some)
