"""Samples completions for the problems of benchmarks, and grades the completions. The folder of an evaluation holds
protocol.json and, for each benchmark, a JSON Lines file with one line per problem. A finished evaluation also has card.json. An
interrupted evaluation can be resumed. The completions do not depend on the batch size or the device mesh."""

import collections
import contextlib
import itertools
import logging
import math
import pathlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from igpo_jax.api import DiffusionLM
from igpo_jax.chat import completion_text
from igpo_jax.data.buckets import bucket_of
from igpo_jax.data.pipeline import PromptBatch, encode_question, prompt_arrays, require_prompts, take_rows
from igpo_jax.diffusion.batches import Batching, Requests, complete
from igpo_jax.diffusion.denoise import HINT
from igpo_jax.diffusion.sampler import Sample
from igpo_jax.diffusion.unmasking import DecodeConfig
from igpo_jax.evaluate.protocol import decode_config
from igpo_jax.model.sharding import shard_bytes
from igpo_jax.run.layout import rows_that_fit
from igpo_jax.run.metrics import read_rows
from igpo_jax.runtime.checks import present, require
from igpo_jax.runtime.distributed import all_gather_hosts, raise_on_all_hosts, share_rows
from igpo_jax.runtime.files import (
    as_json_lines,
    atomic_write,
    differing_keys,
    open_without_links,
    read_json,
    renamed,
    require_plain_name,
    wrap_read_errors,
)
from igpo_jax.runtime.mesh import batch_size_divisor
from igpo_jax.runtime.progress import progress
from igpo_jax.runtime.statistics import accuracy_interval, paired, problem_means
from igpo_jax.tasks import extracted_answer
from igpo_jax.tasks.grades import FEW, lack_of_verdicts
from igpo_jax.tasks.problem import Problem, problems_fingerprint
from igpo_jax.tasks.reward_pool import OUTCOMES, RewardPool, reward_pool
from igpo_jax.tasks.reward_terms import RewardTerm, reward_terms, weighted_sum
from igpo_jax.tokenizers import warn_of_no_text

CHUNK = 64  # batches whose prompts are copied at a time
MOST_PADDED = 1 << 28  # tokens of the prompts of a benchmark

log = logging.getLogger(__name__)

# Key of a completion in a row -> (description of valid values, check of a value). Rows of earlier versions have no outcome.
COMPLETION_VALUES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "correct": ("true or false", lambda value: isinstance(value, bool)),
    "outcome": (", ".join(OUTCOMES), lambda value: value in OUTCOMES),
    "text": ("text", lambda value: isinstance(value, str)),
    "extracted_answer": ("text or null", lambda value: value is None or isinstance(value, str | int | float)),
    "reward": ("a finite number", lambda value: type(value) in (int, float) and abs(value) < 1e38),  # not NaN either
    "steps": ("a number of steps", lambda value: type(value) is int and 0 <= value < 2**31),
}


def run_benchmark(
    model: DiffusionLM, config: ConfigDict, name: str, problems: Sequence[Problem], folder: pathlib.Path
) -> dict[str, Any]:
    """Samples and grades completions for the problems that are not yet in the JSON Lines file `<folder>/<name>.jsonl`. On
    process 0, returns statistics of all lines of this file (see `summary`). On other processes, returns {}.

    A line has the id, question and answer of a problem, and the completions of the problem. A completion has the graded text,
    the extracted answer, the reward, whether the text is correct, the outcome of grading, and the number of denoising steps
    that wrote the text. If the outcome is not "ok", grading has failed, and the completion counts neither as correct nor as
    wrong.

    Raises ValueError if no completion can be graded. In this case, this call saves nothing, and the same command samples and
    grades the problems again."""
    part, file = config.benchmarks[name], folder / f"{name}.jsonl"
    decode = decode_config(config, name)
    with raise_on_all_hosts():
        is_link = jax.process_index() == 0 and file.is_symlink()
        require(not is_link, f"{file} is a symbolic link; put the file itself in its place")
        saved = len(_whole_rows(file, problems, part.draws)) if jax.process_index() == 0 else 0
    before = done = int(all_gather_hosts(np.int64(saved))[0])
    if saved:
        message = "%s has %d of %d problems from an earlier evaluation; to evaluate them again, give another --output"
        log.warning(message, file, saved, len(problems))
    prompts = prompts_of(model, config, problems)
    ids = (tokens[mask].tolist() for tokens, mask in zip(prompts.tokens, prompts.prompt_mask, strict=True))
    warn_of_no_text(present(model.tokenizer), f"prompts of {name}", ids)
    pool, terms = reward_pool(part.task, config.reward), reward_terms(config.reward.function)
    divisor, draws, total = batch_size_divisor(model.mesh), part.draws, len(problems) * part.draws
    size = config.batch_size or _rows_that_fit(model, config, decode)
    batching = Batching(model.mesh, -(-size // divisor) * divisor, config.prompt_buckets, shortest_first=False)
    waiting: list[dict[str, Any]] = []  # completions of a problem whose other draws are in the next batch
    rows: list[dict[str, Any]] = []  # not saved yet
    outcomes: collections.Counter[str] = collections.Counter()
    with progress(total, done * draws, name) as bar, jax.set_mesh(model.mesh), contextlib.closing(pool):
        key = jax.random.key(config.seed)
        for numbers, sampled in _completions(model, prompts, np.arange(done * draws, total), draws, key, decode, batching):
            texts = [completion_text(present(model.tokenizer), row, config.reward.after_eos) for row in sampled.tokens]
            answers = [(problems[i // draws], text) for i, text in zip(numbers, texts, strict=True)]
            verdicts = _verdicts(pool, answers, terms)
            for number, text, verdict, steps in zip(numbers, texts, verdicts, sampled.unmask_step, strict=True):
                reward, correct, outcome = verdict
                completion = {"draw": number % draws, "text": text, "extracted_answer": extracted_answer(part.task, text)}
                completion |= {"reward": float(reward), "correct": bool(correct), "outcome": OUTCOMES[int(outcome)]}
                waiting.append(completion | {"steps": len(set(steps.tolist()) - {HINT})})
                outcomes[completion["outcome"]] += 1
            while len(waiting) >= draws:
                row = {field: getattr(problems[done], field) for field in ("id", "question", "answer")}
                rows.append(row | {"completions": waiting[:draws]})
                waiting, done = waiting[draws:], done + 1
            is_last = done == len(problems)
            if not outcomes["ok"] and (outcomes.total() > FEW or (is_last and not before)):
                trouble = lack_of_verdicts(
                    {outcome: outcomes[outcome] for outcome in OUTCOMES[1:]}, outcomes.total(), pool.reasons
                )
                raise ValueError(
                    f"benchmark {name}: {trouble}. These completions are not saved; then run the same command again"
                )
            if outcomes["ok"] or is_last:
                if jax.process_index() == 0:
                    with open_without_links(file, "a", "utf-8") as opened:
                        opened.write(as_json_lines(rows))
                rows = []
            bar.update(len(numbers))
            if ungraded := outcomes.total() - outcomes["ok"]:
                bar.set_postfix(no_verdict=ungraded)
    if jax.process_index():
        return {}
    rows = _whole_rows(file, problems, draws)
    require(len(rows) == len(problems), f"{file}: {len(rows)} rows for {len(problems)} problems; run the same command again")
    return summary(rows)


def _completions(
    model: DiffusionLM,
    prompts: PromptBatch,
    flat: np.ndarray,
    draws: int,
    key: jax.Array,
    decode: DecodeConfig,
    batching: Batching,
) -> Iterator[tuple[list[int], Sample]]:
    """Samples the completions with the numbers in `flat`, and yields (numbers, completions) for each batch. The completion with
    the number n is draw n % draws of problem n // draws. To limit memory, prompts are copied for only a few batches at a time
    (see `CHUNK`)."""
    chunk = CHUNK * batching.size
    begins = [begin for begin in range(0, len(flat), chunk) if begin == 0 or len(flat) - begin >= batching.size]
    for begin, end in itertools.pairwise([*begins, len(flat)]):
        numbers = flat[begin:end]
        requests = Requests.blank(
            take_rows(prompts, numbers // draws), (numbers % draws).astype(np.uint32), model.config, decode
        )
        for rows, sampled in complete(model.params, requests, key, model.config, decode, batching):
            yield numbers[rows].tolist(), sampled


def _rows_that_fit(model: DiffusionLM, config: ConfigDict, decode: DecodeConfig) -> int:
    """Returns the number of completions to sample at a time if `config.batch_size` is 0: as many as are estimated to fit into
    the memory of the devices (see `rows_that_fit`)."""
    return rows_that_fit(model.config, model.mesh, decode, max(config.prompt_buckets), shard_bytes(model.params))


def prompts_of(model: DiffusionLM, config: ConfigDict, problems: Sequence[Problem]) -> PromptBatch:
    """Returns the tokenized prompts of a benchmark's problems. All prompts are padded to the same length: the smallest length
    in `config.prompt_buckets` that is enough for the longest prompt. Prompts longer than the largest of these lengths are cut.
    The arrays for reference solutions have only one column, because the problems of a benchmark have no reference solutions."""
    tokenizer = present(model.tokenizer)
    longest = max(len(encode_question(problem, tokenizer, config.chat)) for problem in problems)
    longest += len(tokenizer.encode(config.prefix)) if config.prefix else 0
    length = bucket_of(min(longest, max(config.prompt_buckets)), config.prompt_buckets)
    padded = f"{len(problems)} prompts, padded to {length} tokens, have more than {MOST_PADDED} tokens; use fewer problems"
    require(len(problems) * length <= MOST_PADDED, padded)
    options: dict[str, Any] = {"chat": config.chat, "prefix": config.prefix, "exclude_answer": False, "overflow": "cut"}
    prompts = prompt_arrays(problems, tokenizer, prompt_length=length, completion_length=1, **options)[1]
    require_prompts(model.config.shift, prompts.prompt_mask)
    return prompts


def correct_of(rows: Sequence[dict[str, Any]]) -> np.ndarray:
    """Returns whether each completion of a benchmark is correct, float [problems, draws]: 1 for a correct completion, 0 for a
    wrong one, and NaN if grading failed. `rows` are the lines of the benchmark's JSON Lines file."""

    def verdict(completion: dict[str, Any]) -> float:
        return float(completion["correct"]) if completion.get("outcome", "ok") == "ok" else math.nan

    return np.array([[verdict(completion) for completion in row["completions"]] for row in rows])


def _verdicts(pool: RewardPool, answers: list[tuple[Problem, str]], terms: Sequence[RewardTerm]) -> np.ndarray:
    """Grades n answers. Returns float64 [n, 3] with the reward of each answer, whether it is correct (1 or 0), and the index of
    its outcome in `OUTCOMES`."""

    def work(rows: np.ndarray) -> list[tuple[float, bool, int]]:
        verdicts = pool([answers[row] for row in rows])
        return [(weighted_sum(terms, v.values), v.correct, OUTCOMES.index(v.outcome)) for v in verdicts]

    return share_rows(np.zeros((len(answers), 3)), work)


def _whole_rows(file: pathlib.Path, problems: Sequence[Problem], draws: int) -> list[dict[str, Any]]:
    """Reads, checks and returns the lines of a benchmark's JSON Lines file. The file of an unfinished benchmark contains only
    the first problems. If a killed process has left an incomplete last line, deletes this line from the file. Raises ValueError
    if the file has only one line, and an evaluation has not begun this line."""
    rows = read_rows(file)
    check_rows(file, rows, draws, [problem.id for problem in problems])
    content, found = as_json_lines(rows).encode(), file.read_bytes() if file.is_file() else b""
    if found != content:
        begin = b'{"id": '
        require(rows or begin.startswith(found[: len(begin)]), f"{file} has no rows of an evaluation; move this file away")
        atomic_write(file, content)
    return rows


def check_rows(file: pathlib.Path, rows: Sequence[dict[str, Any]], draws: int, ids: Sequence[str] | None = None) -> None:
    """Raises a ValueError that names the first invalid line of a benchmark's JSON Lines file. A valid line has a unique id and
    `draws` completions. `ids` are the ids of the benchmark's problems. If they are given, the ids in the file must equal the
    first of these ids in the same order, and each completion must have all values that `summary` needs. These checks detect
    files that were edited, or that two processes wrote at the same time. Such files would give wrong results."""
    lines, known = dict[Any, int](), set(ids or ())
    for number, row in enumerate(rows, 1):
        name, completions = row.get("id"), row.get("completions")
        wrong = ""
        if not isinstance(name, str):
            wrong = f"id={name!r:.100} is not text"
        elif name in lines:
            wrong = f"the id {name!r} has come before, in line {lines[name]}, so the problem would count twice"
        elif ids is not None and name not in known:
            wrong = f"the id {name!r} is not that of a problem of the benchmark"
        elif ids is not None and name != ids[number - 1]:
            wrong = f"the id {name!r} is not the next one, {ids[number - 1]!r}"
        elif not isinstance(completions, list) or len(completions) != draws:
            found = len(completions) if isinstance(completions, list) else "no"
            wrong = f"there are {found} completions of the problem {name!r}, and the protocol has {draws}"
        else:
            needed = COMPLETION_VALUES if ids is not None else {"correct"}
            wrong = next(filter(None, (_foreign_in_completion(completion, needed) for completion in completions)), "")
        if wrong:
            raise ValueError(f"{file}, line {number}: {wrong}; move this file away and run its evaluation again")
        lines[name] = number


def _foreign_in_completion(completion: Any, needed: Collection[str]) -> str:
    if not isinstance(completion, dict):
        return f"the completion {repr(completion)[:100]} is no object"
    for key, (form, is_one) in COMPLETION_VALUES.items():
        if key in completion and not is_one(completion[key]):
            return f"{key}={repr(completion[key])[:100]} of a completion is not {form}"
        if key in needed and key not in completion:
            return f"{key} of a completion is missing"
    return ""


def compare(one: pathlib.Path, other: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Compares two evaluations, given by their folders. Returns {benchmark: result}. If both folders have the benchmark, the
    result is a comparison of the two accuracies on the problems that were graded in both evaluations (see `paired`). If only
    one folder has the benchmark, the result is None. Raises ValueError if a folder has no card.json, or if the folders have no
    benchmark in common. If the protocols of a benchmark differ, raises a ValueError that names the differing settings."""
    with wrap_read_errors(f"{one} or {other}"):
        return _compared(one, other)


def _compared(one: pathlib.Path, other: pathlib.Path) -> dict[str, dict[str, Any]]:
    cards = [_card(folder) for folder in (one, other)]
    names = [name for name in cards[0]["benchmarks"] if name in cards[1]["benchmarks"]]
    if not names:
        raise ValueError(f"{one} and {other} have no benchmark in common")
    for name in {**cards[0]["benchmarks"], **cards[1]["benchmarks"]}:
        require_plain_name(name, f"{one / 'card.json'} or {other / 'card.json'}")
    result: dict[str, Any] = dict.fromkeys(sorted(set(cards[0]["benchmarks"]) ^ set(cards[1]["benchmarks"])))
    for name in names:
        differing = differing_keys(*(card["protocol"][name] for card in cards))
        if differing:
            values = ((key, *(_at(card["protocol"][name], key) for card in cards)) for key in differing)
            told = "; ".join(f"{repr(key)[1:-1][:100]}: {repr(a)[:100]} and {repr(b)[:100]}" for key, a, b in values)
            raise ValueError(f"benchmark {name}: the protocols differ, so the numbers cannot be compared: {told}")
        rows = [finished_rows(folder / f"{name}.jsonl", cards[0]["protocol"][name]) for folder in (one, other)]
        if [_problem(row) for row in rows[0]] != [_problem(row) for row in rows[1]]:  # protocols may have no fingerprint
            raise ValueError(f"benchmark {name}: {one} and {other} hold other problems than their protocols say")
        try:
            result[name] = paired(*map(correct_of, rows))
        except ValueError as error:
            raise ValueError(f"benchmark {name}: {error}") from None
    return result


def _problem(row: dict[str, Any]) -> list[Any]:
    return [row.get(key) for key in ("id", "question", "answer")]


def finished_rows(file: pathlib.Path, protocol: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns all lines of the JSON Lines file of a finished benchmark. Raises ValueError if lines are missing or invalid, or if
    their problems are not those of the protocol."""
    rows = read_rows(file)
    require(rows, f"{file} has no rows; a comparison of samplers (--sampler-error) is no evaluation")
    check_rows(file, rows, protocol["draws"])
    again = "run its evaluation again, which completes it"
    require(len(rows) == protocol["problems"], f"{file}: {len(rows)} rows for {protocol['problems']} problems; {again}")
    found = problems_fingerprint(map(_problem, rows))
    require(found == protocol.get("data", found), f"{file}: other problems than those of the protocol; restore the whole file")
    return rows


def _card(folder: pathlib.Path) -> dict[str, Any]:
    file = folder / "card.json"
    if not file.is_file():
        raise ValueError(f"{folder} holds no finished evaluation: it has no card.json")
    return renamed(read_json(file))


def _at(values: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns statistics of a benchmark's completions. The statistics include pass@1 with its 95% confidence interval, and
    pass@k for every k that is a power of two or the number of completions per problem. They also include the mean reward, the
    number of completions that could not be graded (`ungraded`), and the number of completions with each grading outcome other
    than success. The mean reward and pass@k leave out ungraded completions. pass@k also leaves out problems with fewer than k
    graded completions. A statistic is None if no values are left for it."""
    correct = correct_of(rows)
    (problems, draws), graded = correct.shape, ~np.isnan(correct)
    completions = [c for row in rows for c in row["completions"]]
    result: dict[str, Any] = {"problems": problems, "draws": draws, "ungraded": int((~graded).sum())}
    result["pass@1"] = mean_or_none(problem_means(correct))
    result["interval95"] = accuracy_interval(correct) if graded.any() else None
    if draws > 1:
        result[f"avg@{draws}"] = result["pass@1"]
        counts = list(zip(graded.sum(axis=1).tolist(), (correct == 1).sum(axis=1).tolist(), strict=True))
        for k in sorted({2**i for i in range(1, draws.bit_length())} | {draws}):
            result[f"pass@{k}"] = mean_or_none([pass_at_k(n, right, k) for n, right in counts if n >= k])
        result["of_each_draw"] = [mean_or_none(column) for column in correct.T]
    return result | {
        "reward": mean_or_none([c["reward"] for c, known in zip(completions, graded.flat, strict=True) if known]),
        "without_answer": float(np.mean([c["extracted_answer"] is None for c in completions])),
        "steps": float(np.mean([c["steps"] for c in completions])),
        **{name: sum(c["outcome"] == name for c in completions) for name in OUTCOMES[1:]},
    }


def mean_or_none(values: Sequence[float] | np.ndarray) -> float | None:
    """Returns the mean of the values that are not NaN, or None if there are no such values."""
    known = np.asarray(values, float)
    known = known[~np.isnan(known)]
    return float(known.mean()) if known.size else None


def pass_at_k(draws: int, correct: int, k: int) -> float:
    """Returns the unbiased estimate of pass@k (Chen et al. 2021) for a problem with `draws` completions, of which `correct` are
    correct. The estimate is the probability that at least one of k completions, drawn without replacement from the `draws`
    completions, is correct."""
    return 1.0 - math.comb(draws - correct, k) / math.comb(draws, k)
