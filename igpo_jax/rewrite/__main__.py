"""python -m igpo_jax.rewrite --problems=FORMAT:PATH,... --tokenizer=PATH --output=DIR [--endpoint=URL --model=M]

Makes concise solutions of verbose ones, for supervised training whose lengths fit the model: a language model behind an
OpenAI-compatible endpoint rewrites them, or, without --endpoint, fixed rules leave out what is superfluous. Kept is
what the grader finds to have the right answer and what is short enough. The same command goes on where it was
interrupted.

DIR gets settings.json, replies.jsonl (each reply as it comes), kept.jsonl (a source of the format jsonl), card.json and
card.html.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from absl import app, flags, logging
from tqdm import tqdm

from igpo_jax.grading.answers import extract
from igpo_jax.rewrite.card import make_card, write_card
from igpo_jax.rewrite.condense import condense
from igpo_jax.rewrite.endpoint import Messages, Reply, ask_all
from igpo_jax.runtime.files import atomic_write, parse_json, require_same_identity
from igpo_jax.tasks.problem import Problem, problems_fingerprint
from igpo_jax.tasks.reward_pool import RewardPool
from igpo_jax.tasks.sources import Record, load_sources
from igpo_jax.tokenizers import Tokenizer, load_tokenizer

PROBLEMS = flags.DEFINE_string(
    "problems", None, "Sources, format:path,...; their solutions are rewritten.", required=True
)
FIELDS = flags.DEFINE_list("fields", [], "Of the format jsonl, what its fields are called: question=...,answer=...")
OUTPUT = flags.DEFINE_string("output", None, "The folder to write.", required=True)
TOKENIZER = flags.DEFINE_string("tokenizer", None, "The model's folder, or its tokenizer's file.", required=True)
MIN_TOKENS = flags.DEFINE_integer("min_tokens", 1, "Shorter solutions are not kept.", lower_bound=1)
MAX_TOKENS = flags.DEFINE_integer(
    "max_tokens", 960, "Longer solutions are not kept; of sft_math.py's 1024 it leaves room for the tags.", lower_bound=1
)
ANSWER = flags.DEFINE_enum(
    "answer", None, ["box", "number", "any"], "Where a solution states its answer; by default box of replies, else any."
)
LIMIT = flags.DEFINE_integer("limit", None, "Only the first problems.", lower_bound=1)
WORKERS = flags.DEFINE_integer("workers", 2, "Processes that grade.", lower_bound=1)

ENDPOINT = flags.DEFINE_string(
    "endpoint", None, "Such as http://localhost:8000/v1; by default $OPENAI_BASE_URL, and fixed rules without."
)
MODEL = flags.DEFINE_string("model", None, "As the endpoint calls it; by default $OPENAI_MODEL.")
KEY_FILE = flags.DEFINE_string(
    "key_file", None, "A file with the endpoint's key; by default the key is $OPENAI_API_KEY."
)
REQUESTS = flags.DEFINE_integer("requests", 16, "At once.", lower_bound=1)
TIMEOUT = flags.DEFINE_float("timeout", 300.0, "Seconds that one attempt may take.", lower_bound=0.01)
RETRIES = flags.DEFINE_integer("retries", 5, "Further attempts at a request that failed.", lower_bound=0)
TEMPERATURE = flags.DEFINE_float("temperature", None, "By default the endpoint's own.")
REPLY_TOKENS = flags.DEFINE_integer("reply_tokens", None, "The most tokens of a reply, by the endpoint's count.")

INSTRUCTION = """\
You shorten solutions of mathematical problems. You are given a problem, a correct but verbose solution, and the final
answer.
Rewrite the solution concisely:
- Keep every essential step and formula, so that each step follows from the ones before.
- Merge what is explained in several sentences into one rigorous mathematical statement.
- Leave out reflection, doubts, detours, checks, repetitions and restatements of the problem.
- Do not change the method, and add nothing.
- End with the given final answer as \\boxed{answer}.
Reply with the rewritten solution only."""
REQUEST = "Problem:\n{question}\n\nSolution:\n{solution}\n\nFinal answer: {answer}"

DEADLINE = 5.0  # seconds for grading one solution
GRADED_AT_ONCE = 512

# What can become of a problem; the first ones are kept.
KEPT = ("rewritten", "shortened", "unchanged")
REJECTED = (
    "no solution", "unanswered", "refused or empty", "cut off", "no answer", "wrong answer", "grader's time-out",
    "grader's error", "too short", "too long", "not shorter",
)  # fmt: skip
Outcome = tuple[str, str, str]  # one of these, the original, and what is made of it


def main(_):
    logging.set_verbosity(logging.WARNING)  # each request is reported at INFO
    # A shell without job control has its background commands ignore ^C, and asyncio would leave it so.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # asyncio knows how to end on ^C
    try:
        print(json.dumps(rewrite(), indent=2, ensure_ascii=False))
    except ValueError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; what has been replied is saved, the same command goes on")


def rewrite() -> dict[str, Any]:
    """What the command does; returns the card.

    Raises:
        ValueError: names the flag, file or endpoint that cannot be used.
    """
    begin = time.monotonic()
    if MIN_TOKENS.value > MAX_TOKENS.value:
        raise ValueError(f"--min_tokens={MIN_TOKENS.value} is more than --max_tokens={MAX_TOKENS.value}")
    address = os.environ.get("OPENAI_BASE_URL", "") if ENDPOINT.value is None else ENDPOINT.value
    model = (MODEL.value or os.environ.get("OPENAI_MODEL") or None) if address else None
    if address and not model:
        raise ValueError("--model=NAME is missing (or OPENAI_MODEL): which of the endpoint's models shall rewrite")
    if not address and MODEL.value:
        raise ValueError("--model is given without --endpoint=URL (or OPENAI_BASE_URL)")
    records, counts = load_sources(PROBLEMS.value, _fields(FIELDS.value))
    tokenizer, of_tokenizer = _tokenizer(TOKENIZER.value)
    rule = ANSWER.value or ("box" if address else "any")
    settings = {
        "problems": problems_fingerprint(records),
        "endpoint": _public(address) if address else None,
        "model": model,
        "temperature": TEMPERATURE.value if address else None,
        "reply_tokens": REPLY_TOKENS.value if address else None,
        "instruction": INSTRUCTION if address else None,
        "request": REQUEST if address else None,
        "prompt_sha256": hashlib.sha256(f"{INSTRUCTION}\n{REQUEST}".encode()).hexdigest() if address else None,
        "answer": rule,
        "min_tokens": MIN_TOKENS.value,
        "max_tokens": MAX_TOKENS.value,
        "tokenizer": of_tokenizer,
    }
    folder = pathlib.Path(OUTPUT.value)
    require_same_identity(folder / "settings.json", settings, "rewriting")
    records = records[: LIMIT.value]

    replies: dict[str, Reply] = {}
    unanswered: dict[str, str] = {}
    gone = ""
    dropped: Counter[str] | None = None
    with contextlib.closing(
        RewardPool("igpo_jax.tasks.math:reward", {"answer": rule}, WORKERS.value, DEADLINE)
    ) as pool:
        if address:
            replies, unanswered, gone = _replies(folder / "replies.jsonl", records, address, model)
            outcomes = judge_replies(records, replies, rule, pool)
        else:
            outcomes, dropped = condense_all(records, rule, pool)

    rows, examples, lengths = [], [], []
    names: Counter[str] = Counter()
    for record, (name, original, text) in zip(records, outcomes, strict=True):
        before, after = len(tokenizer.encode(original)), len(tokenizer.encode(text))
        name = bounded(name, before, after)
        names[name] += 1
        if name in KEPT:
            row = {"id": record.id, "question": record.question, "answer": record.answer, "solution": text}
            rows.append({**row, "tokens": after, "original_tokens": before})
            lengths.append((before, after))
            if after < before:
                examples.append((record.question, original, text))
    atomic_write(folder / "kept.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    card = make_card(
        outcomes={name: names[name] for name in sorted(names, key=(KEPT + REJECTED).index)},
        kept=len(rows),
        lengths=lengths,
        replies=[replies[record.id] for record in records if record.id in replies],
        unanswered=unanswered,
        dropped=dropped,
    )
    card |= {
        "sources": [str(count) for count in counts],
        "limit": LIMIT.value,
        "settings": settings,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - begin, 1),
    }
    write_card(folder, card, examples)
    if gone:
        raise ValueError(f"{gone}. {len(replies)} replies are saved and judged; the same command goes on")
    return card


def bounded(name: str, before: int, after: int) -> str:
    """The outcome, given the lengths in tokens of the original and of what would be kept."""
    if name not in KEPT:
        return name
    if after < MIN_TOKENS.value:
        return "too short"
    if after > MAX_TOKENS.value:
        return "too long"
    return "not shorter" if name == "rewritten" and after >= before else name


# By a language model


def judge_replies(records: Sequence[Record], replies: dict[str, Reply], rule: str, pool: RewardPool) -> list[Outcome]:
    """Outcomes, "rewritten" where the reply states the right answer, else why not."""
    names, texts = [], []
    for record in records:
        reply = replies.get(record.id)
        text = reply["text"].rpartition("</think>")[2].strip() if reply else ""  # a model's own thought is no rewrite
        if not record.solution:
            name = "no solution"
        elif reply is None:
            name = "unanswered"
        elif reply["refused"]:
            name = "refused or empty"
        elif reply["finish_reason"] == "length":
            name = "cut off"
        else:
            name = "rewritten" if text else "refused or empty"
        names.append(name)
        texts.append(text)
    asked = [i for i, name in enumerate(names) if name == "rewritten"]
    for i, trouble in zip(asked, grade([(records[i], texts[i]) for i in asked], rule, pool), strict=True):
        names[i] = trouble or names[i]
    return [(name, record.solution, text) for name, record, text in zip(names, records, texts, strict=True)]


def _replies(
    path: pathlib.Path, records: Sequence[Record], address: str, model: str
) -> tuple[dict[str, Reply], dict[str, str], str]:
    """Asks what has no reply yet. Returns replies by id, reasons by the id of what was asked and not answered, and why
    not all was asked."""
    key = os.environ.get("OPENAI_API_KEY") or "none"  # servers of one's own want none
    if KEY_FILE.value:
        try:
            key = pathlib.Path(KEY_FILE.value).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--key_file={KEY_FILE.value} cannot be read: {error}") from None
    options = {"temperature": TEMPERATURE.value, "max_tokens": REPLY_TOKENS.value}
    options = {name: value for name, value in options.items() if value is not None}
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"{path}: another process is writing it") from None
        replies = {reply["id"]: reply for reply in read_replies(file)}
        wanted = [record for record in records if record.solution and record.id not in replies]
        total = sum(bool(record.solution) for record in records)
        with _bar(total, total - len(wanted), "rewritten") as bar:

            def save(reply: Reply) -> None:
                file.write((json.dumps(reply) + "\n").encode())
                file.flush()
                os.fsync(file.fileno())
                replies[reply["id"]] = reply
                bar.update()

            if not wanted:
                return replies, {}, ""
            unanswered, gone = ask_all(
                ((record.id, messages(record)) for record in wanted),
                save,
                address=address,
                model=model,
                key=key,
                requests=REQUESTS.value,
                timeout=TIMEOUT.value,
                retries=RETRIES.value,
                **options,
            )
    if unanswered and not gone:
        print(f"{len(unanswered)} problems got no reply; the same command asks them again", file=sys.stderr)
    return replies, unanswered, gone


def read_replies(file) -> list[Reply]:
    """Of a binary file that is open for reading and appending. A last line that was cut off is removed.

    Raises:
        ValueError: a line before the last is no reply.
    """
    file.seek(0)
    replies, end = [], 0
    lines = file.read().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            reply = parse_json(line, "a reply")
            if not _is_reply(reply):
                raise ValueError
        except ValueError:
            if any(lines[number:]):
                raise ValueError(f"{file.name}, line {number} is no reply; repair or remove this line") from None
            break
        replies.append(reply)
        end += len(line) + 1
    size = file.tell()
    file.truncate(min(end, size))
    if size < end:  # only the line's end was cut off
        file.write(b"\n")
        file.flush()
    return replies


def _is_reply(value: Any) -> bool:
    kinds = {"id": str, "text": str, "refused": bool, "finish_reason": str | None, "attempts": int}
    kinds |= {"prompt_tokens": int | None, "completion_tokens": int | None}
    return isinstance(value, dict) and all(key in value and isinstance(value[key], kind) for key, kind in kinds.items())


def messages(record: Record) -> Messages:
    """What the model is asked."""
    values = {"{question}": record.question, "{solution}": record.solution, "{answer}": record.answer}
    parts = re.split(r"(\{question\}|\{solution\}|\{answer\})", REQUEST)
    request = "".join(values.get(part, part) for part in parts)
    return [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": request}]


# By rules


def condense_all(records: Sequence[Record], rule: str, pool: RewardPool) -> tuple[list[Outcome], Counter[str]]:
    """Outcomes, "shortened" or "unchanged" where the original states the right answer, else why not; and of what was
    left out, how many sentences by which rule.

    Where only a last line that `Record.solution` lacks states the answer (#### 72), the original is with this line.
    """
    originals = [record.solution for record in records]
    troubles = grade(list(zip(records, originals, strict=True)), rule, pool)
    for i, record in enumerate(records):
        if troubles[i] and record.solution and record.response.startswith(record.solution):
            originals[i] = record.response
    again = [i for i, record in enumerate(records) if originals[i] != record.solution]
    for i, trouble in zip(again, grade([(records[i], originals[i]) for i in again], rule, pool), strict=True):
        troubles[i] = trouble

    condensed, shorter = [], []
    for record, original in zip(records, originals, strict=True):
        solution, spans = without_thought(record)
        text, left_out = condense(record.question, solution, spans)
        if solution != record.solution:
            left_out = [("thought", record.solution[: -len(solution)]), *left_out]
        condensed.append(left_out)
        shorter.append(text + original[len(record.solution) :])
    tried = [i for i, left_out in enumerate(condensed) if left_out and not troubles[i]]
    confirmed = grade([(records[i], shorter[i]) for i in tried], rule, pool)
    fine = {i for i, trouble in zip(tried, confirmed, strict=True) if not trouble}

    outcomes, dropped = [], Counter()
    for i, record in enumerate(records):
        if not record.solution or troubles[i]:
            outcomes.append((troubles[i] if record.solution else "no solution", originals[i], ""))
        elif i in fine:
            outcomes.append(("shortened", originals[i], shorter[i]))
            dropped.update(rule for rule, _ in condensed[i])
        else:
            outcomes.append(("unchanged", originals[i], originals[i]))
    return outcomes, dropped


def without_thought(record: Record) -> tuple[str, Sequence[tuple[int, int]]]:
    """The solution and its spans; of openr1's, whose solution lacks the marker, what follows </think> if that states
    the answer."""
    after = record.response.rpartition("</think>")[2].strip()
    begin = len(record.solution) - len(after)
    if "</think>" not in record.response or not record.spans or not record.solution.endswith(after):
        return record.solution, record.spans
    if min(first for first, _ in record.spans) < begin:
        return record.solution, record.spans
    return after, [(first - begin, last - begin) for first, last in record.spans]


# Grading


def grade(answers: Sequence[tuple[Record, str]], rule: str, pool: RewardPool) -> list[str]:
    """Of each text, "" where it states the record's answer, else why not."""
    problems = [(Problem(record.id, "", record.answer, "", (), ""), text) for record, text in answers]
    troubles = []
    with _bar(len(problems), 0, "graded") as bar:
        for begin in range(0, len(problems), GRADED_AT_ONCE):
            some = problems[begin : begin + GRADED_AT_ONCE]
            for (_, text), verdict in zip(some, pool(some), strict=True):
                match verdict.outcome:
                    case "timeout":
                        troubles.append("grader's time-out")
                    case "error":
                        troubles.append("grader's error")
                    case _ if verdict.reward == 1.0:
                        troubles.append("")
                    case _:
                        troubles.append("wrong answer" if extract(text, rule) else "no answer")
            bar.update(len(some))
    return troubles


# Flags and files


def _fields(flag: Sequence[str]) -> dict[str, str]:
    fields = {"id": "id", "question": "question", "answer": "answer", "solution": "solution"}
    for part in flag:
        name, equals, of_file = part.partition("=")
        if name not in fields or not of_file:
            raise ValueError(f"--fields has {part!r}; give NAME=FIELD, where NAME is one of {', '.join(fields)}")
        fields[name] = of_file
    return fields


def _tokenizer(path: str) -> tuple[Tokenizer, str]:
    """The tokenizer, and the sha256 of its file."""
    found = pathlib.Path(path)
    if found.is_dir():
        file = next(iter([*found.glob("tokenizer.json"), *found.glob("*.model")]), found)
    else:
        file = found
    # Lengths do not depend on what masks, so that any id will do.
    tokenizer = load_tokenizer(path, 0 if file.suffix == ".json" else None)
    return tokenizer, hashlib.sha256(file.read_bytes()).hexdigest()


def _public(address: str) -> str:
    """Without a user's name and password."""
    parts = urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _bar(total: int, done: int, what: str) -> tqdm:
    """As runtime.metrics.progress, which needs jax."""
    interval = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(total=total, initial=done, desc=what, mininterval=interval, disable=done == total)


def _parse_flags(arguments: list[str]) -> list[str]:
    """As command_line.parse_flags, which needs jax."""
    try:
        return flags.FLAGS(arguments)
    except flags.Error as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    app.run(main, flags_parser=_parse_flags)
