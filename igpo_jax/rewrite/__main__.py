"""python -m igpo_jax.rewrite --problems=FORMAT:PATH,... --tokenizer=PATH --output=DIR [--endpoint=URL --model=M]

Makes concise solutions for supervised training. With --endpoint, a language model behind an OpenAI-compatible API rewrites the
given solutions; without --endpoint, the solutions are only filtered. Keeps a solution if its length is within the limits and
the grader finds the right answer in it. A rewritten solution must also be shorter than the original. Run the same command again
to resume after an interruption.

Exits with status 1 if the endpoint is unavailable or answers for at most half of the problems, or if no solution is kept. If
fewer than half of the problems get no reply, prints their number. Run the same command again to request these replies.

Writes to the folder DIR: settings.json, replies.jsonl (each reply as it arrives), kept.jsonl (the kept solutions, as a data
source of the format jsonl), card.json and card.html."""

from igpo_jax.runtime import interrupts

if __name__ == "__main__":  # before the slow imports
    interrupts.install("interrupted; the replies so far are saved, run the same command to resume")

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import sys
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import IO, Any

from absl import flags, logging

from igpo_jax.cli import define_json, escape_controls, parse_flags, run_command
from igpo_jax.grading.answers import extract
from igpo_jax.rewrite.card import card_lines, make_card, write_card
from igpo_jax.rewrite.endpoint import NO_KEY, Endpoint, Reply, ask_all, check_address, check_header, require_reply, without_key
from igpo_jax.runtime.bucket_folders import opened_output
from igpo_jax.runtime.buckets import path_of, small_files
from igpo_jax.runtime.checks import require
from igpo_jax.runtime.files import (
    atomic_write,
    numbered_lines,
    open_without_links,
    parse_json,
    place_name,
    require_same_identity,
)
from igpo_jax.runtime.hub import how_to_get
from igpo_jax.runtime.progress import progress
from igpo_jax.tasks.problem import Problem, problems_fingerprint
from igpo_jax.tasks.reward_pool import RewardPool
from igpo_jax.tasks.sources import Record, load_sources
from igpo_jax.tokenizers import VOCABULARY, Tokenizer, load_tokenizer

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
JSON = define_json()
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
REJECTED = ("no solution", "unanswered", "refused or empty", "cut off", "no answer", "wrong answer", "grader's time-out",
            "grader's error", "too short", "too long", "not shorter")  # fmt: skip
CUT_OFF = ("length", "max_tokens", "max_output_tokens", "model_length")  # values of finish_reason, by endpoint
Judged = tuple[str, str, str]  # outcome, original solution, new solution


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)  # each request is reported at INFO
    try:
        with opened_output(OUTPUT.value) as (folder, _):
            card = rewrite(folder)
        lines = [json.dumps(card, indent=2)] if JSON.value else card_lines(card, OUTPUT.value)
        print(escape_controls("\n".join(lines)))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def rewrite(folder: pathlib.Path) -> dict[str, Any]:
    """Runs the command, writes its files to `folder`, and returns the contents of card.json. If a flag, a file or the endpoint
    is unusable, raises a ValueError that names it. If no solution is kept, writes the files and then raises ValueError."""
    begin = time.monotonic()
    least, most = MIN_TOKENS.value, MAX_TOKENS.value
    require(least <= most, f"--min_tokens={least} is more than --max_tokens={most}")
    endpoint = _endpoint()
    records, counts = load_sources(PROBLEMS.value, _fields(FIELDS.value), key="--problems")
    path = small_files(TOKENIZER.value)
    absent = f"--tokenizer: there is no file or folder {TOKENIZER.value!r}{how_to_get(TOKENIZER.value, '--tokenizer')}"
    require(path.exists(), absent)
    tokenizer = load_tokenizer(TOKENIZER.value, 0)  # lengths do not depend on the mask token, so any id works
    # Two files belong to a vocab.json, and the digest of the tokenizer is that of both.
    is_whole = tokenizer.file.name != VOCABULARY
    digest = hashlib.sha256(tokenizer.file.read_bytes()).hexdigest() if is_whole else tokenizer.digest
    rule = ANSWER.value or ("box" if endpoint else "any")
    settings = {"problems": problems_fingerprint(records), **_endpoint_settings(endpoint), "answer": rule}
    settings |= {"min_tokens": least, "max_tokens": most, "tokenizer": digest}
    output = path_of(OUTPUT.value)  # `folder` may be a copy of this folder in a bucket, without its HTML files
    results = [output / name for name in ("replies.jsonl", "kept.jsonl", "card.json", "card.html")]
    require_same_identity(folder / "settings.json", settings, "rewriting", results)
    records = records[: LIMIT.value]

    replies: dict[str, Reply] = {}
    unanswered: dict[str, str] | None = None
    stopped = ""
    with contextlib.closing(RewardPool("igpo_jax.tasks.math:reward", {"answer": rule}, WORKERS.value, DEADLINE)) as pool:
        if endpoint:
            replies, unanswered, stopped = _replies(folder / "replies.jsonl", records, endpoint)
            judged = judge_replies(records, replies, rule, pool)
        else:
            judged = judge_solutions(records, rule, pool)

    if stopped and not replies:
        raise ValueError(f"{stopped} (endpoint {settings['endpoint']}). No reply is saved; run the same command to try again")
    rows, examples = [], []
    outcomes: Counter[str] = Counter()
    measured = judge_lengths(judged, tokenizer, least, most)
    for record, (_, original, text), (outcome, before, after) in zip(records, judged, measured, strict=True):
        outcomes[outcome] += 1
        if outcome in KEPT:
            row = {"id": record.id, "question": record.question, "answer": record.answer, "solution": text}
            rows.append({**row, "tokens": after, "original_tokens": before})
            if after < before:
                examples.append((record.question, original, text))
    atomic_write(folder / "kept.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    ordered = {name: outcomes[name] for name in KEPT + REJECTED if outcomes[name]}
    card = make_card(ordered, rows, [replies[record.id] for record in records if record.id in replies], unanswered)
    sources = ((count, *count.source.partition(":")) for count in counts)  # the card names files without the path to them
    named = [str(dataclasses.replace(count, source=f"{kind}:{place_name(path)}")) for count, kind, _, path in sources]
    card |= {"sources": named, "limit": LIMIT.value, "settings": settings}
    card |= {"date": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": round(time.monotonic() - begin, 1)}
    write_card(folder, card, examples)
    saved = f"{len(replies)} replies are saved and judged; run the same command to resume"
    require(not stopped, f"{stopped} (endpoint {settings['endpoint']}). {saved}")
    found = ", ".join(f"{name}: {number}" for name, number in ordered.items())
    require(rows, f"{folder / 'kept.jsonl'} is empty, because none of {len(records)} solutions is kept ({found})")
    return card


def _endpoint_settings(endpoint: Endpoint | None) -> dict[str, Any]:
    """Returns the settings of the endpoint that affect its replies. If there is no endpoint, all values are None."""
    if endpoint is None:
        return dict.fromkeys(("endpoint", "model", "temperature", "reply_tokens", "instruction", "request", "prompt_sha256"))
    sampling = {"temperature": TEMPERATURE.value, "reply_tokens": REPLY_TOKENS.value}
    prompt = {"instruction": INSTRUCTION, "request": REQUEST}
    sha256 = hashlib.sha256(f"{INSTRUCTION}\n{REQUEST}".encode()).hexdigest()
    named = {"endpoint": without_key(endpoint.address, endpoint.key), "model": endpoint.model}
    return {**named, **sampling, **prompt, "prompt_sha256": sha256}


def judge_replies(records: Sequence[Record], replies: dict[str, Reply], rule: str, pool: RewardPool) -> list[Judged]:
    """Judges the reply to each problem. Returns (outcome, original solution, new solution) for each problem. The outcome is
    "rewritten" if the reply states the right answer, and otherwise the reason for rejecting the reply."""
    judged: list[Judged] = []
    for record in records:
        reply = replies.get(record.id)
        text = reply["text"].rpartition("</think>")[2].strip() if reply else ""  # without the model's thinking
        if not record.solution:
            outcome = "no solution"
        elif reply is None:
            outcome = "unanswered"
        elif not reply["refused"] and ((reply["finish_reason"] or "").lower() in CUT_OFF or "<think>" in text):
            outcome = "cut off"
        else:
            outcome = "rewritten" if text and not reply["refused"] else "refused or empty"
        judged.append((outcome, record.solution, text))
    grade(records, judged, [i for i, (outcome, _, _) in enumerate(judged) if outcome == "rewritten"], rule, pool)
    return judged


def _replies(path: pathlib.Path, records: Sequence[Record], endpoint: Endpoint) -> tuple[dict[str, Reply], dict[str, str], str]:
    """Requests the replies that replies.jsonl does not contain yet, and saves them. Returns three values: {problem id: reply},
    {problem id: error} for problems without a reply, and a text. The text is the reason why the endpoint is unavailable, or ""
    if the endpoint is available. An endpoint also counts as unavailable if it answers for at most half of the problems. Raises
    ValueError if the file is a symbolic link, which `open_without_links` would replace by an empty file."""
    require(not path.is_symlink(), f"{path} is a symbolic link; put the file itself in its place")
    with open_without_links(path, "a+b") as file:
        saved = read_replies(file)  # those of earlier versions may have the key
        replies = {reply["id"]: reply | {"text": without_key(reply["text"], endpoint.key)} for reply in saved}
        missing = [record for record in records if record.solution and record.id not in replies]
        total = sum(bool(record.solution) for record in records)
        with progress(total, total - len(missing), "rewritten") as bar:

            def save(reply: Reply) -> None:
                file.write((json.dumps(reply) + "\n").encode())
                file.flush()
                os.fsync(file.fileno())
                replies[reply["id"]] = reply
                bar.update()

            if not missing:
                return replies, {}, ""
            system = {"role": "system", "content": INSTRUCTION}
            requests = ({"role": "user", "content": REQUEST.format_map(vars(record))} for record in missing)
            conversations = ((record.id, [system, request]) for record, request in zip(missing, requests, strict=True))
            unanswered, stopped = ask_all(conversations, save, endpoint, REQUESTS.value)
    if not stopped and 2 * len(unanswered) >= total:
        reason, _ = Counter(unanswered.values()).most_common(1)[0]
        stopped = f"{len(unanswered)} of {total} problems got no reply; the most frequent error: {reason}"
    if unanswered and not stopped:
        print(f"{len(unanswered)} problems got no reply; run the same command to ask again", file=sys.stderr)
    return replies, unanswered, stopped


def read_replies(file: IO[bytes]) -> list[Reply]:
    """Reads and returns the replies in replies.jsonl. `file` is this file, opened for reading and appending. Removes a last
    line that was cut off, so that it has no line end, from the file. Raises ValueError if another line is not a reply, or if
    two replies have the same id."""
    file.seek(0)
    replies, end = [], 0
    lines: dict[str, int] = {}
    for number, line in numbered_lines(file, file.name):
        try:
            reply = parse_json(line, "invalid")
            require_reply(reply)
        except ValueError as error:
            if line.endswith(b"\n"):
                raise ValueError(f"{file.name}, line {number} is not a reply ({error}); repair or remove this line") from None
            break
        twice = f"{file.name}, line {number}: the id {repr(reply['id'])[:100]} has come before, in line {lines.get(reply['id'])}"
        require(reply["id"] not in lines, f"{twice}; remove one of the two lines")
        lines[reply["id"]] = number
        replies.append(reply)
        end += len(line.removesuffix(b"\n")) + 1
    size = file.tell()
    file.truncate(min(end, size))
    if size < end:  # only the line's end was cut off
        file.write(b"\n")
        file.flush()
    return replies


def judge_solutions(records: Sequence[Record], rule: str, pool: RewardPool) -> list[Judged]:
    """Judges the given solutions. Returns (outcome, original solution, new solution) for each record. If a solution states the
    right answer, its outcome is "unchanged", or "shortened" if a model's thinking was removed from it. Otherwise, its outcome
    is the reason for rejecting it.

    `Record.solution` may lack the last line of the original text, such as #### 72. If only this line states the answer, the
    line is added to the solution again."""
    judged: list[Judged] = []
    for record in records:
        text = without_thought(record)
        outcome = "unchanged" if text == record.solution else "shortened"
        judged.append((outcome if record.solution else "no solution", record.solution, text))
    grade(records, judged, [i for i, record in enumerate(records) if record.solution], rule, pool)
    again = []
    for i, (outcome, solution, _) in enumerate(judged):
        whole = records[i].response
        if outcome not in KEPT and solution and whole.startswith(solution) and whole != solution:
            judged[i] = ("unchanged", whole, whole)
            again.append(i)
    grade(records, judged, again, rule, pool)
    return judged


def without_thought(record: Record) -> str:
    """Returns the solution of a record, without a model's thinking where possible. In the format openr1, a solution begins with
    such thinking, but has lost its <think> tags. If the text after the thinking states the answer, returns only this text."""
    after = record.response.rpartition("</think>")[2].strip()
    begin = len(record.solution) - len(after)
    has_thought = "</think>" in record.response and record.solution.endswith(after)
    return after if has_thought and record.spans and min(record.spans)[0] >= begin else record.solution


def judge_lengths(judged: Sequence[Judged], tokenizer: Tokenizer, least: int, most: int) -> list[tuple[str, int, int]]:
    """Returns (outcome, tokens of the original solution, tokens of the new solution) for each judged solution. Rejects a new
    solution that has fewer than `least` or more than `most` tokens, and a rewritten solution that is not shorter than the
    original. Both numbers of tokens are 0 if the solution was rejected before, or if a text is too long for the tokenizer."""
    measured = []
    for outcome, original, text in judged:
        before = after = 0
        if outcome in KEPT:
            try:
                before, after = len(tokenizer.encode(original)), len(tokenizer.encode(text))
            except ValueError:
                outcome = "too long"
            else:
                if not least <= after <= most:
                    outcome = "too short" if after < least else "too long"
                elif outcome == "rewritten" and after >= before:
                    outcome = "not shorter"
        measured.append((outcome, before, after))
    return measured


def grade(records: Sequence[Record], judged: list[Judged], indices: Sequence[int], rule: str, pool: RewardPool) -> None:
    """Grades the new solutions at the given indices of `judged`, and updates `judged`. If a solution does not state the right
    answer, its outcome becomes the reason for rejecting it."""
    with progress(len(indices), 0, "graded") as bar:
        for begin in range(0, len(indices), GRADED_AT_ONCE):
            chunk = indices[begin : begin + GRADED_AT_ONCE]
            answers = [(Problem(records[i].id, "", records[i].answer, "", (), ""), judged[i][2]) for i in chunk]
            for i, verdict in zip(chunk, pool(answers), strict=True):
                outcome, original, text = judged[i]
                if verdict.outcome != "ok":
                    outcome = "grader's time-out" if verdict.outcome == "timeout" else "grader's error"
                elif verdict.reward != 1.0:
                    outcome = "wrong answer" if extract(text, rule) else "no answer"
                judged[i] = (outcome, original, text)
            bar.update(len(chunk))


def _endpoint() -> Endpoint | None:
    """Returns the endpoint that flags and environment variables give, or None if they give no address. Raises ValueError if the
    address is malformed or is given without a model, if --model is given without an address, if the key file cannot be read, or
    if the key or an environment variable cannot be sent in a header."""
    address = (os.environ.get("OPENAI_BASE_URL", "") if ENDPOINT.value is None else ENDPOINT.value).strip()
    if not address:
        require(not MODEL.value, "--model is given without --endpoint=URL (or OPENAI_BASE_URL)")
        return None
    check_address(address)
    model = MODEL.value or os.environ.get("OPENAI_MODEL", "")
    require(model, "--model=NAME is missing (or OPENAI_MODEL): which of the endpoint's models is to rewrite")
    source, key = "OPENAI_API_KEY", os.environ.get("OPENAI_API_KEY", "")
    if KEY_FILE.value:
        try:
            source, key = f"--key_file={KEY_FILE.value}", pathlib.Path(KEY_FILE.value).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--key_file={KEY_FILE.value} cannot be read: {error}") from None
    key = key.strip() or NO_KEY  # a file may end with a line break
    check_header(source, key)
    for name in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):  # which openai reads
        check_header(name, os.environ.get(name, ""))
    for line in os.environ.get("OPENAI_CUSTOM_HEADERS", "").split("\n"):  # openai also strips each of these lines
        check_header("OPENAI_CUSTOM_HEADERS", line.strip())
    given = {"temperature": TEMPERATURE.value, "max_tokens": REPLY_TOKENS.value}
    options = {name: value for name, value in given.items() if value is not None}
    return Endpoint(address, model, key, TIMEOUT.value, RETRIES.value, options)


def _fields(flag: Sequence[str]) -> dict[str, str]:
    fields = {name: name for name in ("id", "question", "answer", "solution")}
    for part in flag:
        name, _, field = part.partition("=")
        known = f"give NAME=FIELD, where NAME is one of {', '.join(fields)}"
        require(name in fields and field, f"--fields has {part!r}; {known}")
        fields[name] = field
    return fields


if __name__ == "__main__":
    run_command(main, parse_flags)
