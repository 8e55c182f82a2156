"""Compares nine samplers, three caches by three commit rules, on a run trained on sums of coins: accuracy against the exact
sampler on the same problems, network evaluations, FLOPs and time.

    python benchmarks/samplers.py --run=RUN                                                              # the run's own canvas
    python benchmarks/samplers.py --run=LONG_RUN --completion-length=256 --block=32 --prompt-length=128  # long canvases

Time is the total over all batches, after one that compiles. The speed-up over the exact sampler is the median over a few
batches that both decode, one right after the other, because a machine's speed drifts. Prints one line of JSON for each
sampler; --output also writes a table.
"""

import argparse
import dataclasses
import itertools
import json
import pathlib
import statistics
import time

import jax
import numpy as np

from igpo_jax.chat import completion_text
from igpo_jax.data.pipeline import prompt_arrays, take_rows
from igpo_jax.diffusion.batches import Batching, Requests, complete
from igpo_jax.diffusion.unmasking import DecodeConfig
from igpo_jax.run.restore import restore_run
from igpo_jax.runtime.host import keep_freed_memory
from igpo_jax.runtime.mesh import make_mesh
from igpo_jax.runtime.statistics import paired
from igpo_jax.tasks import arithmetic

CACHES, COMMITS = ("none", "prefix", "dual"), ("schedule", "threshold", "factor")
TURNS = 4  # batches that the exact sampler also decodes


def sampled(run, problems, prompts, decode: DecodeConfig, exact: DecodeConfig, rows: int, mesh) -> dict:
    """Decodes and grades the problems; returns verdicts, bool[problems, 1], and their cost."""
    draws, starts, done, seconds, ratios = np.zeros(rows, np.uint32), range(0, len(problems), rows), [], [], []

    def timed(start, decode):
        begin = time.perf_counter()
        batch = take_rows(prompts, np.minimum(np.arange(start, start + rows), len(problems) - 1))
        requests = Requests.blank(batch, draws, run.model, decode)
        [(_, done)] = complete(run.params, requests, jax.random.key(0), run.model, decode, batching)
        return done, time.perf_counter() - begin

    batching = Batching(mesh, rows, [prompts.tokens.shape[1]], shortest_first=False)
    with jax.set_mesh(mesh):
        for compiled in {decode, exact}:
            timed(0, compiled)
        for number, start in enumerate(starts):
            completions, of_batch = timed(start, decode)
            done.append(completions)
            seconds.append(of_batch)
            if decode != exact and number % -(-len(starts) // TURNS) == 0:
                ratios.append(timed(start, exact)[1] / of_batch)
    texts = [completion_text(run.tokenizer, row) for of_batch in done for row in of_batch.tokens]
    correct = [arithmetic.reward(problem, text) >= 1 for problem, text in zip(problems, texts, strict=False)]
    total = rows * len(done)
    return {
        "correct": np.array(correct)[:, None],
        "seconds": sum(seconds),
        "time_ratio": statistics.median(ratios) if ratios else 1.0,
        "evaluations": sum(of.rows_evaluated for of in done) / total,
        "flops": sum(of.flops for of in done) / total,
    }


def main(argv: list[str] | None = None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=pathlib.Path, required=True)
    parser.add_argument("--problems", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=250, help="decoded together")
    parser.add_argument("--prompt-length", type=int, help="padded to; by default as in the run")
    parser.add_argument("--completion-length", type=int, help="by default as in the run")
    parser.add_argument("--block", type=int, help="by default as in the run")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--threshold", type=float, default=0.9)
    parser.add_argument("--factor", type=float, default=1.0)
    parser.add_argument("--fallback", default="leftmost")
    parser.add_argument("--refresh", type=int, default=0)
    parser.add_argument("--samplers", nargs="*", default=[], help="only these, such as none+schedule dual+threshold")
    parser.add_argument("--output", type=pathlib.Path, help="JSON Lines; and a table beside it")
    arguments = parser.parse_args(argv)

    mesh = make_mesh()
    run = restore_run(arguments.run, mesh)
    config = run.config
    length = arguments.completion_length or config.evaluation.completion_length
    block = arguments.block or config.evaluation.block_length
    rules = {key: getattr(arguments, key) for key in ("threshold", "factor", "fallback", "refresh")}
    sizes = {"completion_length": length, "block_length": block, "steps": length}
    exact = dataclasses.replace(config.evaluation.decode, **sizes, temperature=arguments.temperature, **rules)
    task = config.task.copy_and_resolve_references()
    task.test_problems = arguments.problems
    problems = arithmetic.load(task, "test", 0)
    prompt_length = arguments.prompt_length or config.data.prompt_buckets[-1]
    prompts = prompt_arrays(
        problems, run.tokenizer, prompt_length=prompt_length, completion_length=length, exclude_answer=False, overflow="cut"
    )[1]

    cases, baseline = [], None
    for cache, commit in itertools.product(CACHES, COMMITS):
        if arguments.samplers and f"{cache}+{commit}" not in arguments.samplers:
            continue
        decode = dataclasses.replace(exact, cache=cache, commit=commit)
        found = sampled(run, problems, prompts, decode, exact, arguments.rows, mesh)
        baseline = baseline or found
        change = paired(baseline["correct"], found["correct"])
        case = {
            "name": f"{cache}+{commit}",
            "device": jax.devices()[0].device_kind,
            "run": {"stage": run.stage, "step": run.step, "width": run.model.width, "layers": run.model.layers},
            "shape": {"prompt": prompt_length, "completion": length, "block": block, "rows": arguments.rows},
            "sampler": rules | {"temperature": arguments.temperature},
            "problems": len(problems),
            "accuracy": change["other"],
            "change": change["difference"],
            "change_interval95": change["interval95"],
            "evaluations": found["evaluations"],
            "flops": found["flops"],
            "flops_ratio": baseline["flops"] / found["flops"],
            "seconds": found["seconds"],
            "tokens_per_second": len(problems) * length / found["seconds"],
            "time_ratio": found["time_ratio"],
        }
        cases.append(case)
        print(json.dumps(case), flush=True)
    if arguments.output:
        arguments.output.write_text("".join(json.dumps(case) + "\n" for case in cases), encoding="utf-8")
        arguments.output.with_suffix(".md").write_text(table(cases), encoding="utf-8")
    return cases


def table(cases: list[dict]) -> str:
    rows = [
        "| cache | commit | accuracy | change (95 %) | evaluations | fewer FLOPs | less time |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        low, high = (100 * x for x in case["change_interval95"])
        rows.append(
            "| {} | {} | {:.2f} | {:+.2f} ({:+.2f} to {:+.2f}) | {:.1f} | {:.1f} x | {:.1f} x |".format(
                *case["name"].split("+"),
                100 * case["accuracy"],
                100 * case["change"],
                low,
                high,
                case["evaluations"],
                case["flops_ratio"],
                case["time_ratio"],
            )
        )
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    keep_freed_memory()
    main()
