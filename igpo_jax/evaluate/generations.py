"""Reads generations (texts that a model wrote) from files. A file has one of three formats: the JSON Lines file of a benchmark
that igpo_jax evaluated, a samples file that EleutherAI's lm-evaluation-harness writes with --log_samples, or JSON Lines with
the keys gold (or answer) and text (or completion). The keys of the first line determine the format."""

import collections
import dataclasses
import math
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from igpo_jax.grading import RULES
from igpo_jax.runtime.checks import require
from igpo_jax.runtime.files import (
    exact_number,
    hub_blobs,
    is_inside,
    numbered_lines,
    parse_json,
    read_json,
    require_plain_name,
    require_unicode,
    wrap_read_errors,
)
from igpo_jax.tasks.reward_pool import OUTCOMES

MOST_FILTERS = 16  # of a harness file; every filter has columns in the table, and every pair of columns a test
LONGEST_FILTER = 100  # characters of a filter's name
SEVERAL_ANSWERS = ("countdown", "sudoku")  # tasks that accept other answers than the one in the file
HARNESS_SCORES = ("exact_match", "math_verify")  # metrics of the harness that are 0 or 1 for each text
FORMATS = "an evaluation's row has 'completions', a row of lm-evaluation-harness 'resps', other rows 'gold' and 'text'"

Rows = Iterator[tuple[str, dict[str, Any]]]  # (place for error messages, row)


@dataclasses.dataclass(frozen=True)
class Generation:
    id: str  # of the problem; several samples of one problem have the same id
    sample: int  # number of the sample, from 0
    gold: str
    text: str
    stored: dict[str, bool]  # name -> score in the file


Placed = Iterator[tuple[str, Generation]]  # (place for error messages, generation)


def _require_inside(file: pathlib.Path, folder: pathlib.Path) -> None:
    """Raises ValueError if a symbolic link in the path of `file` leads out of `folder`, which may come from an untrusted
    source. Without this check, regrading could copy the text of any file into its results. Links into the blobs of Hugging
    Face's cache are allowed."""
    allowed = is_inside(file, folder) or any(is_inside(file, blobs) for blobs in hub_blobs(folder))
    require(allowed, f"{file} leads to {os.path.realpath(file)}, outside of {folder}; remove the link")


def find_files(path: pathlib.Path, benchmarks: Sequence[str]) -> tuple[list[pathlib.Path], dict[str, str]]:
    """Returns the files to read, and a dict {benchmark: reason} of the benchmarks that cannot be regraded. `path` is a file,
    the folder of an evaluation, or a folder that holds exactly one evaluation or one samples file. `benchmarks` selects
    benchmarks of an evaluation; if `benchmarks` is empty, all are selected. Raises ValueError if there is nothing to read."""
    if not path.is_dir():
        require(path.is_file(), f"--regrade={path}: there is no such file or folder")
        require(not benchmarks, "--benchmarks selects benchmarks of an evaluation's folder, and --regrade is a file")
        return [path], {}
    if not (path / "protocol.json").is_file():
        found = sorted(file.parent for file in path.glob("evaluations/*/protocol.json"))
        found += sorted([*path.glob("samples_*.jsonl"), *path.glob("*/samples_*.jsonl")])
        none = f"{path} holds no evaluation (protocol.json) and no samples_*.jsonl; give a JSON Lines file itself"
        require(found, none)
        require(len(found) == 1, f"{path} holds several generations; give one of: {', '.join(map(str, found))}")
        require_unicode([str(found[0])])
        _require_inside(found[0], path)
        return find_files(found[0], benchmarks)
    tasks = _tasks(path)
    unknown = ", ".join(sorted(set(benchmarks) - tasks.keys()))
    require(not unknown, f"--benchmarks={unknown}: {path} has {', '.join(tasks)}")
    left_out = {name: "has no rows" for name in tasks if not (path / f"{name}.jsonl").is_file()}
    left_out |= {name: "accepts several answers" for name, task in tasks.items() if task.get("name") in SEVERAL_ANSWERS}
    left_out = {name: reason for name, reason in left_out.items() if not benchmarks or name in benchmarks}
    files = [path / f"{name}.jsonl" for name in benchmarks or tasks if name not in left_out]
    for file in files:
        _require_inside(file, path)
    reasons = "; ".join(f"{name} {reason}" for name, reason in left_out.items())
    samplers = " (--sampler-error: give a file in its folder exact or fast)" if (path / "exact").is_dir() else ""
    require(files, f"{path} has no benchmark to regrade: {reasons}{samplers}")
    return files, left_out


def protocol_of(file: pathlib.Path) -> pathlib.Path:
    """Returns the protocol.json of the evaluation that wrote the generations in `file`. It does not exist if `file` belongs to
    no evaluation. With --sampler-error, an evaluation has its protocol beside the folders exact and fast of its generations."""
    folder = pathlib.Path(os.path.abspath(file.parent))
    is_of_sampler = folder.name in ("exact", "fast") and not (folder / "protocol.json").is_file()
    return (folder.parent if is_of_sampler else folder) / "protocol.json"


def protocol_rule(file: pathlib.Path) -> str | None:
    """Returns the rule by which the evaluation of a benchmark found the final answers in texts (the argument `rule` of
    `igpo_jax.grade`). `file` holds the benchmark's generations, and its `protocol_of` records the rule. Returns None if `file`
    does not belong to an evaluation, or if the benchmark's task is not math. Other tasks have no such rule."""
    protocol = protocol_of(file)
    task = _tasks(protocol.parent).get(file.stem, {}) if protocol.is_file() else {}
    rule = task.get("answer") if task.get("name") == "math" else None
    require(rule in (None, *RULES), f"{protocol}: the rule {repr(rule)[:100]} of {file.stem} is none of {', '.join(RULES)}")
    return rule


def _tasks(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Returns {benchmark: task} for all benchmarks in the folder of an evaluation. A task is the section `task` of the
    benchmark's protocol. The name of a built-in task is returned without the name of its package."""
    file = folder / "protocol.json"
    values = read_json(file)
    with wrap_read_errors(file):
        tasks = {name: dict(part["task"]) for name, part in values["protocol"].items()}
    for name, task in tasks.items():
        require_plain_name(name, file)
        if isinstance(task.get("name"), str):
            task["name"] = task["name"].removeprefix("igpo_jax.tasks.")
    return tasks


def read_generations(file: pathlib.Path) -> list[Generation]:
    """Returns all generations in a file, in the order of the file. Raises a ValueError that names the file, the line and the
    key if a line is unusable, or if lines with the same id have different gold answers."""
    _, first = next(_rows(file), ("", {}))
    require(first, f"{file}: the file has no rows")
    if "completions" in first:
        read = _evaluation
    elif "resps" in first:
        read = _harness
    else:
        known = first.keys() & {"gold", "answer", "text", "completion"}
        require(known, f"{file}, line 1: unknown format with the keys {', '.join(first)}; {FORMATS}")
        read = _plain
    generations, golds = [], dict[str, str]()
    for place, generation in read(_rows(file)):
        require(generation.gold, f"{place}: the gold answer is empty")
        other = golds.setdefault(generation.id, generation.gold)
        same = f"{place}: the id {generation.id!r} has come before with the gold answer {other!r}, not {generation.gold!r}"
        require(other == generation.gold, same)
        generations.append(generation)
    return generations


def _rows(file: pathlib.Path) -> Rows:
    with file.open("rb") as opened:
        for number, line in numbered_lines(opened, file):
            if line.strip():
                place = f"{file}, line {number}"
                row = parse_json(line, place, exact_number)
                require(isinstance(row, dict), f"{place}: not a JSON object")
                yield place, row


def _evaluation(rows: Rows) -> Placed:
    places: dict[str, str] = {}
    for place, row in rows:
        name, gold = _string(row, place, "id"), _string(row, place, "answer").strip()
        twice = f"{place}: the id {name!r} has come before, in {places.get(name)}, so the problem would count twice"
        require(name not in places, f"{twice}; move this file away and run its evaluation again")
        places[name] = place
        for number, completion in enumerate(_list(row, place, "completions")):
            place_of_one = f"{place}: completions[{number}]"
            require(isinstance(completion, dict), f"{place_of_one} is not an object")
            correct, outcome = completion.get("correct"), completion.get("outcome", "ok")
            require(correct is None or isinstance(correct, bool), f"{place_of_one}: 'correct' is neither true nor false")
            require(outcome in OUTCOMES, f"{place_of_one}: 'outcome' is none of {', '.join(OUTCOMES)}")
            stored = {"correct": correct} if correct is not None and outcome == "ok" else {}
            yield place, Generation(name, number, gold, _string(completion, place_of_one, "text"), stored)


def _harness(rows: Rows) -> Placed:
    """Yields the generations in the rows of an lm-evaluation-harness samples file. The harness writes one row for each document
    and filter. All rows of a document contain the same texts, so only the first row of a document yields generations. For each
    filter, the harness scores only one answer per document. This score is stored with the first text of the document."""
    documents: dict[str, tuple[str, str, list[str], dict[str, bool]]] = {}
    filters = collections.defaultdict[str, list[str]](list)  # of each document so far
    known = set[str]()  # filters of all documents
    for place, row in rows:
        name, gold = _string(row, place, "doc_id"), _harness_gold(row, place)
        texts = _list(row, place, "resps")
        texts = texts[0] if len(texts) == 1 else []
        generated = isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts)
        require(generated, f"{place}: 'resps' is not [[text, ...]]; only tasks that generate text can be regraded")
        first = documents.setdefault(name, (place, gold, texts, {}))
        differing = "'target'" if first[1] != gold else "'resps'" if first[2] != texts else ""
        require(not differing, f"{place}: {differing} of doc_id {name} differs from {first[0]}; give the file of one run")
        used = row.get("filter", f"filter {len(filters[name]) + 1}")  # old versions do not name the filter
        plain = isinstance(used, str) and len(used) <= LONGEST_FILTER
        require(plain, f"{place}: the filter {repr(used)[:LONGEST_FILTER]} is no text of at most {LONGEST_FILTER} characters")
        known.add(used)
        require(len(known) <= MOST_FILTERS, f"{place}: {used!r} is filter {len(known)} of the file; at most {MOST_FILTERS}")
        require(used not in filters[name], f"{place}: doc_id {name} has come before with the filter {used!r}")
        filters[name].append(used)
        for metric in HARNESS_SCORES:
            score = row.get(metric)
            require(isinstance(score, int | float | None), f"{place}: {metric!r} is {type(score).__name__}, not a number")
            if score in (0, 1):
                first[3][f"{metric},{used}"] = bool(score)
    for name, (place, gold, texts, scores) in documents.items():
        for number, text in enumerate(texts):
            yield place, Generation(name, number, gold, text, {} if number else scores)


def _harness_gold(row: dict[str, Any], place: str) -> str:
    """Returns the gold answer of a row of lm-evaluation-harness. If `target` contains ####, the gold answer is the text after
    the last ####. If `target` is a single line without \\boxed, the gold answer is the whole `target`. Otherwise, `target` is
    empty or a worked solution, and the gold answer is doc["answer"]."""
    target = _string(row, place, "target").strip()
    if target and "####" not in target and ("\\boxed" in target or "\n" in target):
        target = ""
    doc = row.get("doc")
    if not target and isinstance(doc, dict) and doc.get("answer") not in (None, ""):
        target = _string(doc, f"{place}: doc", "answer")
    needed = "'target' is no answer: it has no '####', is empty or a whole solution; and 'doc' has no key 'answer'"
    require(target, f"{place}: {needed}")
    _, mark, answer = target.rpartition("####")
    require(not mark or "\n" not in answer.strip(), f"{place}: the target has further lines after the answer")
    return answer.strip()


def _plain(rows: Rows) -> Placed:
    samples: dict[str, int] = {}
    for place, row in rows:
        name = _string(row, place, "id") if row.get("id") is not None else place.rpartition(", ")[2]
        samples[name] = samples.get(name, -1) + 1
        gold, text = _string(row, place, "gold", "answer").strip(), _string(row, place, "text", "completion")
        yield place, Generation(name, samples[name], gold, text, {})


def _string(row: dict[str, Any], place: str, *keys: str) -> str:
    """Returns a value of a row as a string. The key of the value is the first of `keys` that the row has. Raises ValueError if
    the row has none of the keys, or if the value is neither a text nor a finite number."""
    key = next((key for key in keys if row.get(key) is not None), None)
    if key is None:
        raise ValueError(f"{place}: the key {' or '.join(map(repr, keys))} is missing")
    value = row[key]
    require(type(value) in (str, int, float), f"{place}: {key!r} is {type(value).__name__}, not text")
    require(type(value) is not float or math.isfinite(value), f"{place}: {key!r} is {value}, which is no finite number")
    return str(value)


def _list(row: dict[str, Any], place: str, key: str) -> list:
    value = row.get(key)
    if not isinstance(value, list) or not value:
        raise ValueError(f"{place}: the key {key!r} is missing or is no list with entries")
    return value
