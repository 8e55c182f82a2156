"""Grades stored generations with several graders side by side. Needs no model and no device.

Accuracies use all samples of a problem. The paired tests use only the first sample of each problem, because McNemar's test
needs independent observations. If a grader fails on a text or exceeds its time limit, the text is left out of this grader's
accuracy and paired tests."""

import collections
import importlib.metadata
import itertools
import json
import os
import pathlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from tqdm import tqdm

import igpo_jax
from igpo_jax.evaluate.benchmark import finished_rows
from igpo_jax.evaluate.generations import Generation, find_files, protocol_of, protocol_rule, read_generations
from igpo_jax.runtime.checks import require
from igpo_jax.runtime.files import as_json_lines, atomic_write, place_name, read_json, renamed, wrap_read_errors
from igpo_jax.runtime.progress import progress
from igpo_jax.runtime.statistics import mcnemar, mean_interval
from igpo_jax.tasks.problem import Problem
from igpo_jax.tasks.reward_pool import RewardPool

GRADERS = ("igpo_jax", "math_verify", "reference_code")  # functions of graders.py
WRITTEN = ("disagreements.jsonl", "regrade.json")
DEADLINE_SECONDS = 15.0  # per text; longer than math-verify's own limits for the two parsings and a comparison
WORKERS = min(16, os.cpu_count() or 1)
GRADED_AT_ONCE = 128  # texts between updates of the progress bar
KINDS = 30  # printed kinds of disagreement
SHOWN = 3  # printed texts of each kind of disagreement
SHOWN_CHARS = 200  # printed characters at the end of a text

OUTCOMES = ("right", "wrong", "timeout", "error")
Verdicts = dict[str, list[str]]  # column -> the outcome for each generation: one of `OUTCOMES`, or "" if the file has no score


def regrade(path: pathlib.Path, rule: str | None, benchmarks: Sequence[str], output: pathlib.Path | None) -> str:
    """Grades the generations of a file or folder (see `find_files`), and returns the results as text. `rule` is the argument
    `rule` of `igpo_jax.grade`. If `rule` is None, the rule is taken from the evaluation's protocol, or is "any" if there is no
    protocol with a rule. If `output` is given, writes regrade.json and disagreements.jsonl into this folder. Raises ValueError
    if one of the two exists already, or if a file is unusable."""
    if output and (earlier := [output / name for name in WRITTEN if (output / name).exists()]):
        raise ValueError(f"{earlier[0]} exists already; give another --output")
    files, left_out = find_files(path, benchmarks)
    read = {file: read_generations(file) for file in files}
    for file in files:
        require_finished(file)
    if output:
        output.mkdir(parents=True, exist_ok=True)
    results, disagreements, printed = {}, [], []
    with progress(sum(map(len, read.values())) * len(GRADERS), 0, "graded", unit=" verdicts") as bar:
        for file, generations in read.items():
            used = rule or protocol_rule(file) or "any"
            verdicts = grade_all(generations, used, bar) | stored_verdicts(generations)
            result = {"file": place_name(file), "rule": used, **compare_graders(generations, verdicts)}
            rows = differing(generations, verdicts)
            results[file.stem] = result | {"disagreements": sum(row["differ"] for row in rows)}
            disagreements += [{"benchmark": file.stem, **row} for row in rows]
            printed.append(as_text(results[file.stem] | {"file": str(file)}, rows))
            if protocol_of(file).is_file() and protocol_rule(file) is None:
                printed.append(
                    f"The task of {file.stem} is not math, for which these graders are made; its own verdicts are stored."
                )
    printed += [f"Not regraded: {name}, which {reason}." for name, reason in left_out.items()]
    if output:
        card: dict[str, Any] = {"results": results, "not_regraded": left_out, "deadline_seconds": DEADLINE_SECONDS}
        card["versions"] = {"igpo_jax": igpo_jax.__version__, "math-verify": importlib.metadata.version("math-verify")}
        card["date"] = datetime.now(UTC).isoformat(timespec="seconds")
        atomic_write(output / "disagreements.jsonl", as_json_lines(disagreements))
        atomic_write(output / "regrade.json", json.dumps(card, indent=2, ensure_ascii=False))
        printed.append(f"All numbers: {output / 'regrade.json'}. All texts: {output / 'disagreements.jsonl'}.")
    return "\n\n".join(printed)


def require_finished(file: pathlib.Path) -> None:
    """Raises ValueError if `file` belongs to an evaluation, see `protocol_of`, and lines are missing or invalid."""
    protocol = protocol_of(file)
    if protocol.is_file():
        with wrap_read_errors(protocol):
            part = renamed(read_json(protocol))["protocol"].get(file.stem)
            known = part is None or {"draws", "problems"} <= part.keys()
        require(known, f"{protocol}: draws or problems of {file.stem} is missing; restore the file from a copy")
        if part is not None:
            finished_rows(file, part)


def grade_all(generations: Sequence[Generation], rule: str, bar: tqdm) -> Verdicts:
    """Grades generations with every grader, in worker processes. Returns {grader: list of the outcomes for all generations}."""
    answers = [(Problem(one.id, "", one.gold, "", (), ""), one.text) for one in generations]
    found: Verdicts = {}
    for name in GRADERS:
        options = {"rule": rule} if name == "igpo_jax" else {}
        pool = RewardPool(f"igpo_jax.evaluate.graders:{name}", options, WORKERS, DEADLINE_SECONDS)
        found[name] = []
        try:
            for begin in range(0, len(answers), GRADED_AT_ONCE):
                chunk = pool(answers[begin : begin + GRADED_AT_ONCE])
                found[name] += [("right" if v.reward else "wrong") if v.outcome == "ok" else v.outcome for v in chunk]
                bar.update(len(chunk))
        finally:
            pool.close()
    return found


def stored_verdicts(generations: Sequence[Generation]) -> Verdicts:
    """Returns the scores that are stored in the file of the generations, converted to verdicts. The result has one column for
    each kind of score."""
    columns = dict.fromkeys(name for one in generations for name in one.stored)
    words = {True: "right", False: "wrong", None: ""}
    return {f"stored {name}": [words[one.stored.get(name)] for one in generations] for name in columns}


def compare_graders(generations: Sequence[Generation], verdicts: Verdicts) -> dict[str, Any]:
    """Returns the accuracy of each grader, and a paired test for each pair of graders. `verdicts` has one column for each
    grader. Each kind of score that is stored in the file is treated as a grader, too."""
    numbers: dict[str, int] = {}
    problems = np.array([numbers.setdefault(one.id, len(numbers)) for one in generations])
    first = np.array([one.sample == 0 for one in generations])
    value = {"right": 1.0, "wrong": 0.0}
    values = {name: np.array([value.get(v, np.nan) for v in column]) for name, column in verdicts.items()}
    graders = {}
    for name, column in verdicts.items():
        graders[name] = accuracy(values[name], problems)
        graders[name] |= {outcome: column.count(outcome) for outcome in OUTCOMES[2:]}
    pairs = [
        {"first": one, "second": other, **paired_test(values[one][first], values[other][first])}
        for one, other in itertools.combinations(verdicts, 2)
    ]
    return {"problems": int(first.sum()), "texts": len(generations), "graders": graders, "pairs": pairs}


def accuracy(values: np.ndarray, problems: np.ndarray) -> dict[str, Any]:
    """Returns the accuracy of texts according to one grader: the share of right texts per problem, averaged over problems, with
    a 95 % confidence interval, see `mean_interval`.

    values: float [texts], 1 for right, 0 for wrong, NaN for no verdict. problems: int [texts], index of each text's problem."""
    known = ~np.isnan(values)
    counts = np.bincount(problems[known])
    means = np.bincount(problems[known], values[known])[counts > 0] / counts[counts > 0]
    found = {"verdicts": int(known.sum()), "right": int(values[known].sum()), "accuracy": None, "interval95": None}
    if not means.size:
        return found
    return found | {"accuracy": float(means.mean()), "interval95": mean_interval(means, int(counts.max()))}


def paired_test(one: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    """Compares the verdicts of two graders on the same texts. `one` and `other` are float [texts]: 1 for right, 0 for wrong,
    NaN for no verdict. Returns the number of texts with two verdicts, the number of texts that only the first grader calls
    right, the number of texts that only the second grader calls right, and the exact p-value of McNemar's test."""
    only_first, only_second = int(((one == 1) & (other == 0)).sum()), int(((one == 0) & (other == 1)).sum())
    counts = {"n": int((~np.isnan(one + other)).sum()), "only_first": only_first, "only_second": only_second}
    return counts | {"p_value": mcnemar(only_second, only_first)}


def differing(generations: Sequence[Generation], verdicts: Verdicts) -> list[dict[str, Any]]:
    """Returns the generations on which two graders disagree, or on which a grader fails or exceeds its time limit."""
    rows = []
    for number, one in enumerate(generations):
        found = {name: column[number] for name, column in verdicts.items() if column[number]}
        row = {"id": one.id, "sample": one.sample, "differ": {"right", "wrong"} <= set(found.values()), "verdicts": found}
        if row["differ"] or set(found.values()) & set(OUTCOMES[2:]):
            rows.append(row | {"gold": one.gold, "text": one.text})
    return rows


def as_text(result: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    """Returns the results for one file as text. The text includes examples of each kind of disagreement between graders."""
    head = f"{result['file']}: {result['problems']} problems, {result['texts']} texts, rule of igpo_jax: {result['rule']}"
    table = [("grader", "accuracy", "95 % interval", "right", "verdicts", "timeouts", "errors")]
    for name, found in result["graders"].items():
        shares = ("-", "-")
        if found["accuracy"] is not None:
            shares = (f"{found['accuracy']:.4f}", "[{:.4f}, {:.4f}]".format(*found["interval95"]))
        table.append((name, *shares, *(found[key] for key in ("right", "verdicts", "timeout", "error"))))
    pairs = [("first", "second", "n", "only first right", "only second right", "p (McNemar)")]
    for pair in result["pairs"]:
        p_value = f"{pair['p_value']:.3g}" if pair["p_value"] else "< 1e-300"  # smaller numbers are 0 in float64
        pairs.append((*(pair[key] for key in ("first", "second", "n", "only_first", "only_second")), p_value))
    parts = [head, aligned(table, 1), aligned(pairs, 2)]
    if result["texts"] > result["problems"]:
        parts.append("The accuracies use all samples of a problem, and the pairs use the first one.")
    kinds = collections.defaultdict(list)
    for row in rows:
        kinds[said(row["verdicts"])].append(row)
    parts.append(f"The verdicts differ on {result['disagreements']} texts.")
    for kind, members in sorted(kinds.items(), key=lambda item: -len(item[1]))[:KINDS]:
        parts.append("\n".join([f"{kind} ({len(members)})", *(example(row) for row in members[:SHOWN])]))
    if len(kinds) > KINDS:
        parts.append(f"There are {len(kinds) - KINDS} rarer kinds of disagreement.")
    return "\n\n".join(parts)


def said(verdicts: dict[str, str]) -> str:
    """Returns the verdicts on one text as a string, such as "right: igpo_jax, math_verify; wrong: reference_code"."""
    names = {outcome: [name for name, v in verdicts.items() if v == outcome] for outcome in OUTCOMES}
    return "; ".join(f"{outcome}: {', '.join(found)}" for outcome, found in names.items() if found)


def example(row: dict[str, Any]) -> str:
    name, gold, text = (" ".join(row[key].split()) for key in ("id", "gold", "text"))
    name, gold = (part if len(part) <= SHOWN_CHARS else f"{part[:SHOWN_CHARS]}..." for part in (name, gold))
    text = text if len(text) <= SHOWN_CHARS else f"...{text[-SHOWN_CHARS:]}"
    return f"  id {name}, sample {row['sample']}\n    gold: {gold}\n    text: {text}"


def aligned(table: Sequence[Sequence[Any]], left: int) -> str:
    """Returns a table as text. The first `left` columns are aligned left, and the others are aligned right."""
    widths = [max(len(str(row[i])) for row in table) for i in range(len(table[0]))]
    justify = [str.ljust if i < left else str.rjust for i in range(len(widths))]
    return "\n".join("  ".join(j(str(cell), w) for cell, j, w in zip(row, justify, widths, strict=True)) for row in table)
