"""python -m igpo_jax.inspect_data --config=math.py [--config.task.rl=FORMAT:PATH ...] [--samples=5]

Describes the data that a training run would read, without loading weights. For each file, shows how many problems are used and
why the others are dropped. Also counts the solutions in which a hint may show the answer, for example because a number given in
the problem equals the answer. For each split, shows how many problems are dropped because they are also in the test split, how
many repeat a question, the lengths in tokens, how many problems fit the configured lengths, and a few example problems. For the
RL split, also shows the share of padding in rollouts, and prompt buckets that would have less padding. In the solutions of the
examples, [[double brackets]] mark text that gives the answer away."""

from igpo_jax.runtime import interrupts

if __name__ == "__main__":  # before the slow imports
    interrupts.install()

import functools
import json
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Iterator

import numpy as np
from absl import flags

from igpo_jax.cli import define_config, escape_controls, parse_flags, run_command
from igpo_jax.config import Config, parse
from igpo_jax.data.buckets import best_buckets, padding_share, rollout_batches
from igpo_jax.data.pipeline import encode_question, hintable_tokens
from igpo_jax.model.attention import LANES
from igpo_jax.run.problems import BENCHMARK, load_run_problems
from igpo_jax.run.tokenizer import run_tokenizer, train_tokenizer
from igpo_jax.runtime.checks import require
from igpo_jax.runtime.files import atomic_write
from igpo_jax.tasks import load_task
from igpo_jax.tasks.answer_spans import in_brackets, occurrences
from igpo_jax.tasks.decontamination import content_of, repeats
from igpo_jax.tasks.problem import Problem, problems_fingerprint
from igpo_jax.tasks.sources import SourceCounts
from igpo_jax.tokenizers import Tokenizer

CONFIG = define_config()
SAMPLES = flags.DEFINE_integer("samples", 5, "How many problems of each split are shown.", lower_bound=0)
LENGTHS = flags.DEFINE_string("lengths", None, "A file for the number of RL prompts of each length, for plan --lengths.")
BARS = 12  # number of bars in a histogram
MOST_BUCKETS = 5  # the sampler is compiled for each
WIDTH = 40  # characters of the longest bar in a histogram


def main(_):
    try:
        for line in inspect(parse(CONFIG.value), SAMPLES.value, LENGTHS.value):
            print(escape_controls(line), flush=True)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def inspect(config: Config, samples: int, lengths: str | None) -> Iterator[str]:
    """Yields lines that describe the data and show `samples` example problems of each split. If `lengths` is given, writes the
    number of RL prompts of each length to this file. Raises ValueError if the data are invalid, or if `lengths` is given and
    there are no RL prompts."""
    task = load_task(config.task.name)
    problems, dropped, counts = load_run_problems(config)
    require(lengths is None or "rl" in problems, f"--lengths={lengths}: the configuration has no RL problems")
    content = content_of(task, config.task)
    benchmarks = " or a benchmark" if config.evaluation.benchmarks else ""
    with (
        tempfile.TemporaryDirectory() as folder,
        interrupts.before_end(functools.partial(shutil.rmtree, folder, ignore_errors=True)),
    ):
        if not config.model.path:
            train_tokenizer(problems, pathlib.Path(folder), config)
        tokenizer = run_tokenizer(pathlib.Path(folder), config)
        for split, rows in problems.items():
            yield f"{split}: {len(rows)} problems, fingerprint {problems_fingerprint(rows)}"
            yield from _files(split, rows, counts.get(split, []), tokenizer, config)
            if split in dropped:
                yield f"  dropped because the test split{benchmarks} has them, too: {dropped[split]}"
            repeated = 0 if split.startswith(BENCHMARK) else repeats([content(problem) for problem in rows])
            if repeated:
                yield f"  with the question of an earlier problem (kept): {repeated}"
            yield from _lengths(split, rows, tokenizer, config, lengths)
            yield ""
    for split, rows in problems.items():
        for number in np.sort(np.random.default_rng(config.seed).permutation(len(rows))[:samples]):
            yield from _sample(split, rows[number])


def _files(
    split: str, problems: list[Problem], counts: list[SourceCounts], tokenizer: Tokenizer, config: Config
) -> Iterator[str]:
    for count in counts:
        rows = [problem for problem in problems if problem.id in count.ids]
        yield f"  {count}"
        if split == "rl" and config.inpainting.exclude_answer and any(problem.trace for problem in rows):
            found = sum(_shows_answer(problem, tokenizer, config.sampler.completion_length) for problem in rows)
            yield f"    answer also in text that hints may show: {found} of {len(rows)} ({found / len(rows):.1%})"


def _shows_answer(problem: Problem, tokenizer: Tokenizer, length: int) -> bool:
    """Returns whether the answer occurs in the part of a solution that hints may show. For example, a number given in the
    problem may equal the answer. Only the first `length` tokens of the solution are considered."""
    offsets = tokenizer.encode_with_offsets(problem.trace)[1][:length]
    hintable, shown = hintable_tokens(offsets, problem.answer_spans)
    places = {place for (begin, end), may in zip(offsets[:shown], hintable, strict=False) if may for place in range(begin, end)}
    return any(places.issuperset(range(*span)) for span in occurrences(problem.trace, problem.answer))


def _lengths(split: str, problems: list[Problem], tokenizer: Tokenizer, config: Config, file: str | None) -> Iterator[str]:
    prompts = np.array([len(encode_question(problem, tokenizer, config.tokenizer.chat)) for problem in problems])
    longest, length = config.data.prompt_buckets[-1], config.sampler.completion_length
    fits = prompts <= longest
    yield from _histogram("prompt tokens", prompts, longest)
    if split in ("sft", "rl"):
        solutions = (problem.demonstration if split == "sft" else problem.trace for problem in problems)
        tokens = np.array([len(tokenizer.encode(solution)) for solution in solutions])
        yield from _histogram("solution tokens", tokens, length)
        if split == "sft":
            fits &= tokens <= length  # demonstrations must fit; RL cuts long solutions
        else:
            yield f"  without a solution to cut hints from: {int((tokens == 0).sum())}"
    told = {"error": "an error", "drop": "dropped", "truncate": "cut (solutions) or dropped (prompts)"}
    handling = told[config.data.overflow] if split in ("sft", "rl") else "cut"
    yield f"  fits: {int(fits.sum())} of {len(fits)} ({fits.mean():.1%}); longer ones are {handling}"
    if split == "rl" and len(shorter := prompts[prompts <= longest]):
        yield from _padding(shorter, config)
    if split == "rl" and file:
        values, numbers = np.unique(prompts, return_counts=True)
        counts = dict(zip(map(str, values.tolist()), numbers.tolist(), strict=True))
        atomic_write(pathlib.Path(file), json.dumps(counts) + "\n")


def _padding(prompts: np.ndarray, config: Config) -> Iterator[str]:
    """Yields lines that report the share of padding in rollouts, for the configured prompt buckets and for the prompt buckets
    that would have the least padding."""
    rl, length, present = config.rl, config.sampler.completion_length, config.data.prompt_buckets
    batches = rollout_batches(prompts, rl.prompts, rl.rollout_chunks, seed=config.seed)
    multiple = LANES if all((size + length) % LANES == 0 for size in present) else 2  # for attention=splash, or for cudnn
    yield f"  padding in rollouts: {padding_share(batches, present, length):.1%} of all positions with prompt_buckets={present}"
    for number in range(2, MOST_BUCKETS + 1):
        buckets = best_buckets(batches, number, present[-1], multiple)
        if len(buckets) == number:
            share = padding_share(batches, buckets, length)
            yield f'    {share:.1%} with {number} programs: --config.data.prompt_buckets="{buckets}"'


def _histogram(name: str, lengths: np.ndarray, limit: int) -> Iterator[str]:
    p50, p95, p99 = np.percentile(lengths, (50, 95, 99))
    yield (
        f"  {name}: mean {lengths.mean():.0f}, median {p50:.0f}, p95 {p95:.0f}, p99 {p99:.0f}, max {lengths.max()}; "
        f"{(lengths <= limit).mean():.1%} fit {limit}"
    )
    step = max(1, -(-(int(p99) + 1) // BARS))
    counts = np.bincount(np.minimum(lengths // step, BARS))
    for bar, count in enumerate(counts):
        label = f"{bar * step}-{(bar + 1) * step - 1}" if bar < BARS else f"{bar * step} or more"
        yield f"    {label:>14} {count:>7} {'#' * round(WIDTH * count / counts.max())}".rstrip()


def _sample(split: str, problem: Problem) -> Iterator[str]:
    yield f"\n--- {split}: {problem.id}\n{problem.question}"
    title, text = ("demonstration", problem.demonstration) if split == "sft" else ("solution", problem.trace)
    if text:
        yield f"--- {title}\n{in_brackets(text, problem.answer_spans) if text == problem.trace else text}"
    yield f"--- answer: {problem.answer}"


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    run_command(main, parse_flags)
