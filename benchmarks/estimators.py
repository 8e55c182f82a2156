"""Measures bias and variance of the likelihood estimators on completions sampled by a trained model.

    python benchmarks/estimators.py --run=RUN [--output benchmarks/results/estimators.jsonl]

The reference is the lower bound (defined in igpo_jax/rl/likelihood.py) from 4,096 views of each completion. All numbers are
nats per token up to the first EOS. Bias: mean over completions. Deviation: standard deviation over draws of the masks, root
mean square over completions. Prints one line of JSON for each estimator; --output also writes a table.
"""

import argparse
import json
import pathlib

import jax
import numpy as np

from igpo_jax.data.pipeline import prompt_arrays
from igpo_jax.diffusion.sampler import completion_keys, sample
from igpo_jax.rl.likelihood import GroupBatch, combine
from igpo_jax.rl.objective import ObjectiveConfig, compute_logprobs
from igpo_jax.rl.rollout import up_to_first_eos
from igpo_jax.run.restore import restore_run
from igpo_jax.runtime.host import keep_freed_memory
from igpo_jax.runtime.mesh import make_mesh, shard_batch, to_host
from igpo_jax.tasks import arithmetic

REFERENCE = dict(estimator="quadrature", samples=16), 256  # views at a time; repetitions
CASES = (
    dict(estimator="mean_field"),
    dict(estimator="prompt_masked"),
    *(dict(estimator="elbo", samples=k) for k in (1, 2, 4)),
    *(dict(estimator="quadrature", samples=k) for k in (2, 4)),
    *(dict(estimator="coupled", samples=k) for k in (2, 4)),
    *(dict(estimator="coupled", samples=4, upper_weight=share, upper_power=1.5) for share in (0.5, 1.0)),
    *(dict(estimator="trace", samples=k) for k in (1, 4, 24)),
)


def sampled_batch(run, problems: int, mesh) -> GroupBatch:
    """Samples a completion of each test problem as in rollouts; negative advantages make the estimators use upper bounds."""
    decode, task = run.config.sampler.decode, run.config.task.copy_and_resolve_references()
    task.test_problems = problems
    length, prompt_length = decode.completion_length, run.config.data.prompt_buckets[-1]
    of_test = arithmetic.load(task, "test", 0)
    prompts = prompt_arrays(
        of_test, run.tokenizer, prompt_length=prompt_length, completion_length=length, exclude_answer=False, overflow="error"
    )[1]
    number = np.arange(problems, dtype=np.uint32)
    keys = completion_keys(jax.random.key(0), prompts.problem_id, number, 0)
    canvas = np.full((problems, length), run.model.mask_id, np.int32)
    done = to_host(
        sample(run.policy(), *shard_batch((prompts.tokens, prompts.prompt_mask, canvas), mesh), keys, run.model, decode)
    )
    shape = (problems, 1, length)
    tokens = done.tokens.reshape(shape)
    return GroupBatch(
        prompt=prompts.tokens,
        prompt_mask=prompts.prompt_mask,
        problem_id=prompts.problem_id,
        completions=tokens,
        unmask_step=done.unmask_step.reshape(shape),
        loss_mask=up_to_first_eos(tokens, run.model.eos_id),
        advantages=np.full(shape[:2], -1, np.float32),
    )


def draws(run, batch: GroupBatch, values: dict, number: int, mesh) -> np.ndarray:
    """Returns log-probabilities per token, nats, f64[draws, problems]; each draw is the score of an inner step."""
    objective, found = ObjectiveConfig(**values, inner_steps=16), []
    for part in range(-(-number // 16)):
        logprobs = compute_logprobs(run.policy(), run.policy(), batch, jax.random.key(part), run.model, objective, mesh)
        scores = to_host(combine(logprobs.old, logprobs.views.weight, batch.advantages, objective))
        found.append((scores * batch.loss_mask).sum(axis=(2, 3)) / batch.loss_mask.sum(axis=(1, 2)))
        if len(scores) == 1:  # deterministic
            break
    return np.concatenate(found).astype(np.float64)


def main(argv: list[str] | None = None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=pathlib.Path, required=True)
    parser.add_argument("--problems", type=int, default=64)
    parser.add_argument("--draws", type=int, default=64)
    parser.add_argument("--reference", type=int, default=REFERENCE[1], help="times 16 views")
    parser.add_argument("--output", type=pathlib.Path, help="JSON Lines; and a table beside it")
    arguments = parser.parse_args(argv)
    mesh = make_mesh()
    run = restore_run(arguments.run, mesh)
    cases = []
    with jax.set_mesh(mesh):
        batch = sampled_batch(run, arguments.problems, mesh)
        reference = draws(run, batch, REFERENCE[0], arguments.reference, mesh).mean(axis=0)
        for values in CASES:
            found = draws(run, batch, values, arguments.draws, mesh)
            objective = ObjectiveConfig(**values)
            cases.append(
                {
                    "name": "estimator",
                    "device": jax.devices()[0].device_kind,
                    "run": {"stage": run.stage, "step": run.step, "width": run.model.width, "layers": run.model.layers},
                    "problems": arguments.problems,
                    "draws": len(found),
                    **{key: getattr(objective, key) for key in ("estimator", "samples", "upper_weight", "upper_power")},
                    "reference": float(reference.mean()),
                    "mean": float(found.mean()),
                    "bias": float((found.mean(axis=0) - reference).mean()),
                    "deviation": float(np.sqrt(found.var(axis=0).mean())),
                }
            )
            print(json.dumps(cases[-1]), flush=True)
    if arguments.output:
        arguments.output.write_text("".join(json.dumps(case) + "\n" for case in cases), encoding="utf-8")
        arguments.output.with_suffix(".md").write_text(table(cases), encoding="utf-8")
    return cases


def table(cases: list[dict]) -> str:
    rows = ["| estimator | views | upper bound's share | nats per token | bias | deviation |", "|---|---|---|---|---|---|"]
    for case in cases:
        rows.append("| {estimator} | {samples} | {upper_weight} | {mean:.4f} | {bias:+.4f} | {deviation:.4f} |".format(**case))
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    keep_freed_memory()
    main()
