"""python -m igpo_jax.rewrite --problems=FORMAT:PATH,... --tokenizer=PATH --output=DIR [--endpoint=URL --model=M]

Makes concise solutions for supervised training. With --endpoint, a language model behind an OpenAI-compatible API rewrites
the given solutions; without it, they are only filtered. Keeps solutions within the length limits in which the grader
finds the right answer. Run the same command again to resume after an interruption.

Writes to DIR: settings.json, replies.jsonl (each reply as it arrives), kept.jsonl (a source of the format jsonl), card.json
and card.html.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from absl import app, flags, logging
from tqdm import tqdm

from igpo_jax.cli import parse_flags
from igpo_jax.grading.answers import extract
from igpo_jax.rewrite.card import make_card, write_card
from igpo_jax.rewrite.endpoint import Endpoint, Messages, Reply, ask_all
from igpo_jax.runtime.files import atomic_write, parse_json, require_same_identity
from igpo_jax.tasks.problem import Problem, problems_fingerprint
from igpo_jax.tasks.reward_pool import RewardPool
from igpo_jax.tasks.sources import Record, load_sources
from igpo_jax.tokenizers import Tokenizer, load_tokenizer

PROBLEMS = flags.DEFINE_string("problems", None, "Sources of problems with solutions: format:path,...", required=True)
FIELDS = flags.DEFINE_list("fields", [], "Field names of the format jsonl: question=...,answer=...")
OUTPUT = flags.DEFINE_string("output", None, "The folder to write.", required=True)
TOKENIZER = flags.DEFINE_string("tokenizer", None, "The model's folder or its tokenizer file.", required=True)
MIN_TOKENS = flags.DEFINE_integer("min_tokens", 1, "Reject shorter solutions.", lower_bound=1)
MAX_TOKENS = flags.DEFINE_integer(
    "max_tokens", 960, "Reject longer solutions; 960 leaves room for the tags in sft_math.py's 1024.", lower_bound=1
)
ANSWER = flags.DEFINE_enum(
    "answer", None, ["box", "number", "any"], "How a solution gives its answer; by default box with an endpoint, else any."
)
LIMIT = flags.DEFINE_integer("limit", None, "Use only the first problems.", lower_bound=1)
WORKERS = flags.DEFINE_integer("workers", 2, "Number of grading processes.", lower_bound=1)

ENDPOINT = flags.DEFINE_string(
    "endpoint", None, "Such as http://localhost:8000/v1; by default $OPENAI_BASE_URL. Without one, solutions are filtered."
)
MODEL = flags.DEFINE_string("model", None, "The endpoint's name for the model; by default $OPENAI_MODEL.")
KEY_FILE = flags.DEFINE_string("key_file", None, "A file with the endpoint's key; by default the key is $OPENAI_API_KEY.")
REQUESTS = flags.DEFINE_integer("requests", 16, "Concurrent requests.", lower_bound=1)
TIMEOUT = flags.DEFINE_float("timeout", 300.0, "Seconds per attempt.", lower_bound=0.01)
RETRIES = flags.DEFINE_integer("retries", 5, "Further attempts after a failed request.", lower_bound=0)
TEMPERATURE = flags.DEFINE_float("temperature", None, "By default the endpoint's own.")
REPLY_TOKENS = flags.DEFINE_integer("reply_tokens", None, "Maximum tokens of a reply, by the endpoint's count.")

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

# Outcomes of a problem
KEPT = ("rewritten", "shortened", "unchanged")
REJECTED = (
    "no solution", "unanswered", "refused or empty", "cut off", "no answer", "wrong answer", "grader's time-out",
    "grader's error", "too short", "too long", "not shorter",
)  # fmt: skip
Judged = tuple[str, str, str]  # outcome, original solution, new solution


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)  # each request is reported at INFO
    # A shell without job control makes background commands ignore ^C, and asyncio would not change that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # asyncio ends cleanly on ^C
    try:
        print(json.dumps(rewrite(), indent=2, ensure_ascii=False))
    except ValueError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the replies so far are saved, run the same command to resume")


def rewrite() -> dict[str, Any]:
    """Runs the command; returns the card.

    Raises:
        ValueError: names the flag, file or endpoint that cannot be used.
    """
    begin = time.monotonic()
    if MIN_TOKENS.value > MAX_TOKENS.value:
        raise ValueError(f"--min_tokens={MIN_TOKENS.value} is more than --max_tokens={MAX_TOKENS.value}")
    endpoint = _endpoint()
    records, counts = load_sources(PROBLEMS.value, _fields(FIELDS.value))
    tokenizer, tokenizer_sha256 = _tokenizer(TOKENIZER.value)
    rule = ANSWER.value or ("box" if endpoint else "any")
    settings = _settings(endpoint, problems_fingerprint(records), rule, tokenizer_sha256)
    folder = pathlib.Path(OUTPUT.value)
    require_same_identity(folder / "settings.json", settings, "rewriting")
    records = records[: LIMIT.value]

    replies: dict[str, Reply] = {}
    unanswered: dict[str, str] | None = None
    stopped = ""
    pool = RewardPool("igpo_jax.tasks.math:reward", {"answer": rule}, WORKERS.value, DEADLINE)
    with contextlib.closing(pool):
        if endpoint:
            replies, unanswered, stopped = _replies(folder / "replies.jsonl", records, endpoint)
            judged = judge_replies(records, replies, rule, pool)
        else:
            judged = judge_solutions(records, rule, pool)

    rows, examples = [], []
    outcomes: Counter[str] = Counter()
    for record, (outcome, original, text) in zip(records, judged, strict=True):
        before, after = len(tokenizer.encode(original)), len(tokenizer.encode(text))
        outcome = _within_limits(outcome, before, after)
        outcomes[outcome] += 1
        if outcome in KEPT:
            row = {"id": record.id, "question": record.question, "answer": record.answer, "solution": text}
            rows.append({**row, "tokens": after, "original_tokens": before})
            if after < before:
                examples.append((record.question, original, text))
    atomic_write(folder / "kept.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    ordered = {name: outcomes[name] for name in KEPT + REJECTED if outcomes[name]}
    card = make_card(ordered, rows, [replies[record.id] for record in records if record.id in replies], unanswered)
    card |= {
        "sources": [str(count) for count in counts],
        "limit": LIMIT.value,
        "settings": settings,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - begin, 1),
    }
    write_card(folder, card, examples)
    if stopped:
        raise ValueError(f"{stopped}. {len(replies)} replies are saved and judged; run the same command to resume")
    return card


def _settings(endpoint: Endpoint | None, problems: str, rule: str, tokenizer_sha256: str) -> dict[str, Any]:
    """Returns the settings that decide the result."""
    of_endpoint = {
        "endpoint": _without_credentials(endpoint.address) if endpoint else None,
        "model": endpoint.model if endpoint else None,
        "temperature": TEMPERATURE.value if endpoint else None,
        "reply_tokens": REPLY_TOKENS.value if endpoint else None,
        "instruction": INSTRUCTION if endpoint else None,
        "request": REQUEST if endpoint else None,
        "prompt_sha256": hashlib.sha256(f"{INSTRUCTION}\n{REQUEST}".encode()).hexdigest() if endpoint else None,
    }
    limits = {"answer": rule, "min_tokens": MIN_TOKENS.value, "max_tokens": MAX_TOKENS.value, "tokenizer": tokenizer_sha256}
    return {"problems": problems, **of_endpoint, **limits}


def _within_limits(outcome: str, before: int, after: int) -> str:
    """Returns the outcome, given the tokens of the original and of the new solution."""
    if outcome not in KEPT:
        return outcome
    if after < MIN_TOKENS.value:
        return "too short"
    if after > MAX_TOKENS.value:
        return "too long"
    return "not shorter" if outcome == "rewritten" and after >= before else outcome


# With an endpoint


def judge_replies(records: Sequence[Record], replies: dict[str, Reply], rule: str, pool: RewardPool) -> list[Judged]:
    """Judges replies: "rewritten" if the reply states the right answer, else the reason for rejecting it."""
    outcomes, texts = [], []
    for record in records:
        reply = replies.get(record.id)
        text = reply["text"].rpartition("</think>")[2].strip() if reply else ""  # without the model's thinking
        if not record.solution:
            outcome = "no solution"
        elif reply is None:
            outcome = "unanswered"
        elif reply["refused"]:
            outcome = "refused or empty"
        elif reply["finish_reason"] == "length":
            outcome = "cut off"
        else:
            outcome = "rewritten" if text else "refused or empty"
        outcomes.append(outcome)
        texts.append(text)
    complete = [i for i, outcome in enumerate(outcomes) if outcome == "rewritten"]
    for i, trouble in zip(complete, grade([(records[i], texts[i]) for i in complete], rule, pool), strict=True):
        outcomes[i] = trouble or outcomes[i]
    return [(outcome, record.solution, text) for outcome, record, text in zip(outcomes, records, texts, strict=True)]


def _replies(path: pathlib.Path, records: Sequence[Record], endpoint: Endpoint) -> tuple[dict[str, Reply], dict[str, str], str]:
    """Requests the missing replies. Returns all replies by id, and the errors and the reason for stopping from `ask_all`."""
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"{path}: another process is writing it") from None
        replies = {reply["id"]: reply for reply in read_replies(file)}
        missing = [record for record in records if record.solution and record.id not in replies]
        total = sum(bool(record.solution) for record in records)
        with _bar(total, total - len(missing), "rewritten") as bar:

            def save(reply: Reply) -> None:
                file.write((json.dumps(reply) + "\n").encode())
                file.flush()
                os.fsync(file.fileno())
                replies[reply["id"]] = reply
                bar.update()

            if not missing:
                return replies, {}, ""
            conversations = ((record.id, messages(record)) for record in missing)
            unanswered, stopped = ask_all(conversations, save, endpoint, REQUESTS.value)
    if unanswered and not stopped:
        print(f"{len(unanswered)} problems got no reply; run the same command to ask again", file=sys.stderr)
    return replies, unanswered, stopped


def read_replies(file: BinaryIO) -> list[Reply]:
    """Reads replies.jsonl, open for reading and appending, and removes an incomplete last line.

    Raises:
        ValueError: a line before the last is not a reply.
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
                raise ValueError(f"{file.name}, line {number} is not a reply; repair or remove this line") from None
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
    request = REQUEST.format(question=record.question, solution=record.solution, answer=record.answer)
    return [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": request}]


# Without an endpoint


def judge_solutions(records: Sequence[Record], rule: str, pool: RewardPool) -> list[Judged]:
    """Judges the given solutions: "unchanged" if one states the right answer, or "shortened" if a model's thinking before it
    is removed, else the reason for rejecting it.

    If only a last line missing from `Record.solution` states the answer (#### 72), that line is added.
    """
    originals = [record.solution for record in records]
    texts = [without_thought(record) for record in records]
    troubles = grade(list(zip(records, texts, strict=True)), rule, pool)
    for i, record in enumerate(records):
        if troubles[i] and record.solution and record.response.startswith(record.solution):
            originals[i] = texts[i] = record.response
    again = [i for i, record in enumerate(records) if originals[i] != record.solution]
    for i, trouble in zip(again, grade([(records[i], originals[i]) for i in again], rule, pool), strict=True):
        troubles[i] = trouble
    judged = []
    for record, original, text, trouble in zip(records, originals, texts, troubles, strict=True):
        outcome = "unchanged" if text == original else "shortened"
        outcome = trouble or outcome if record.solution else "no solution"
        judged.append((outcome, original, text if outcome in KEPT else ""))
    return judged


def without_thought(record: Record) -> str:
    """Returns the solution; of openr1's, whose <think> markers were removed, only the text after </think> if it states the
    answer."""
    after = record.response.rpartition("</think>")[2].strip()
    begin = len(record.solution) - len(after)
    if "</think>" not in record.response or not record.spans or not record.solution.endswith(after):
        return record.solution
    return record.solution if min(first for first, _ in record.spans) < begin else after


def grade(answers: Sequence[tuple[Record, str]], rule: str, pool: RewardPool) -> list[str]:
    """Returns for each text "" if it states the record's answer, else the reason for rejecting it."""
    problems = [(Problem(record.id, "", record.answer, "", (), ""), text) for record, text in answers]
    troubles = []
    with _bar(len(problems), 0, "graded") as bar:
        for begin in range(0, len(problems), GRADED_AT_ONCE):
            chunk = problems[begin : begin + GRADED_AT_ONCE]
            for (_, text), verdict in zip(chunk, pool(chunk), strict=True):
                match verdict.outcome:
                    case "timeout":
                        troubles.append("grader's time-out")
                    case "error":
                        troubles.append("grader's error")
                    case _ if verdict.reward == 1.0:
                        troubles.append("")
                    case _:
                        troubles.append("wrong answer" if extract(text, rule) else "no answer")
            bar.update(len(chunk))
    return troubles


# Flags and files


def _endpoint() -> Endpoint | None:
    """Returns the endpoint from flags and environment variables; None without an address.

    Raises:
        ValueError: model without address or the reverse, or a key file that cannot be read.
    """
    address = os.environ.get("OPENAI_BASE_URL", "") if ENDPOINT.value is None else ENDPOINT.value
    if not address:
        if MODEL.value:
            raise ValueError("--model is given without --endpoint=URL (or OPENAI_BASE_URL)")
        return None
    model = MODEL.value or os.environ.get("OPENAI_MODEL")
    if not model:
        raise ValueError("--model=NAME is missing (or OPENAI_MODEL): which of the endpoint's models is to rewrite")
    key = os.environ.get("OPENAI_API_KEY") or "none"  # a local server needs none
    if KEY_FILE.value:
        try:
            key = pathlib.Path(KEY_FILE.value).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--key_file={KEY_FILE.value} cannot be read: {error}") from None
    options = {"temperature": TEMPERATURE.value, "max_tokens": REPLY_TOKENS.value}
    options = {name: value for name, value in options.items() if value is not None}
    return Endpoint(address, model, key, TIMEOUT.value, RETRIES.value, options)


def _fields(flag: Sequence[str]) -> dict[str, str]:
    fields = {"id": "id", "question": "question", "answer": "answer", "solution": "solution"}
    for part in flag:
        name, _, field = part.partition("=")
        if name not in fields or not field:
            raise ValueError(f"--fields has {part!r}; give NAME=FIELD, where NAME is one of {', '.join(fields)}")
        fields[name] = field
    return fields


def _tokenizer(path: str) -> tuple[Tokenizer, str]:
    """Returns the tokenizer and the sha256 of its file."""
    found = pathlib.Path(path)
    file = next(iter([*found.glob("tokenizer.json"), *found.glob("*.model")]), found) if found.is_dir() else found
    # Lengths do not depend on the mask token, so any id works.
    tokenizer = load_tokenizer(path, 0 if file.suffix == ".json" else None)
    return tokenizer, hashlib.sha256(file.read_bytes()).hexdigest()


def _without_credentials(address: str) -> str:
    parts = urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _bar(total: int, done: int, what: str) -> tqdm:
    """Returns a progress bar like `runtime.progress`, but without initializing JAX, which would occupy an accelerator."""
    interval = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(total=total, initial=done, desc=what, mininterval=interval, disable=done == total)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
