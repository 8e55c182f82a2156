"""Measures what int8 weights (model.base_dtype) change, on a tiny LLaDA and on a run trained on sums of coins.

    python benchmarks/int8_base.py --run=RUN [--output benchmarks/results/int8_base.md]

The tiny LLaDA is that of tests/model/fixtures/llada_tiny, with the recorded input; its tokens are predicted at every position.
RUN is a run without adapters, such as that of launch/local.sh. Its tokens are predicted at masked
positions of completions that the float32 model has sampled. KL is that of the int8 distribution from the float32 one, in nats
per token. A greedy token changes if the two distributions have another most likely token. Accuracies are on the same test
problems, with the run's evaluation sampler. Prints a table; --output also writes it.
"""

import argparse
import functools
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from igpo_jax.chat import completion_text
from igpo_jax.data.pipeline import PromptBatch, prompt_arrays
from igpo_jax.diffusion.batches import Batching, Requests, complete
from igpo_jax.diffusion.corruption import mask_count
from igpo_jax.model import int8
from igpo_jax.model.sharding import Params
from igpo_jax.model.transformer import ModelConfig, forward, parameter_table, unembed
from igpo_jax.plan.text import table
from igpo_jax.run.restore import Restored, restore_run
from igpo_jax.runtime.host import keep_freed_memory
from igpo_jax.runtime.mesh import make_mesh
from igpo_jax.runtime.statistics import paired
from igpo_jax.tasks import arithmetic
from igpo_jax.tasks.problem import Problem
from igpo_jax.weights.folders import load_params
from igpo_jax.weights.huggingface import folder_model_config

FIXTURE = pathlib.Path(__file__).parents[1] / "tests" / "model" / "fixtures" / "llada_tiny"
VARIANTS = {"layers": ("blocks",), "layers, embedding and head": ("blocks", "embedding", "head")}
ROWS = 250  # decoded together
MASKED_ROWS = 1000  # completions whose masked tokens are predicted
COLUMNS = ("model", "int8", "tokens", "KL", "changed greedy tokens", "accuracy in float32", "difference (95 % interval)")


class Change(NamedTuple):
    tokens: int
    kl: float  # mean, in nats
    changed: float  # share of greedy tokens


class Data(NamedTuple):
    problems: list[Problem]
    prompts: PromptBatch


def quantized(params: Params, cfg: ModelConfig, parts: tuple[str, ...]) -> Params:
    """Returns the parameters with the matrices of the sections `parts` in int8."""

    def one(path, info, w):
        keeps = path[0].key not in parts or info.stddev is None
        return w if keeps else int8.quantize(w, int8.summed_axis(info.axes))

    return jax.tree.map_with_path(one, parameter_table(cfg), params)


@functools.partial(jax.jit, static_argnames="cfg")
def log_probs(params: Params, tokens: jax.Array, mask: jax.Array, cfg: ModelConfig) -> jax.Array:
    return jax.nn.log_softmax(unembed(params, forward(params, tokens, mask, cfg), cfg))


def compare(params: Params, other: Params, rows: list[tuple], cfg: ModelConfig) -> Change:
    """Compares the distributions of two models at the positions `counted` of each (tokens, attention_mask, counted)."""
    divergences, changes = [], []
    for tokens, mask, counted in rows:
        one, two = (np.asarray(log_probs(p, tokens, mask, cfg), np.float64)[counted] for p in (params, other))
        divergences.append((np.exp(one) * (one - two)).sum(axis=-1))
        changes.append(one.argmax(axis=-1) != two.argmax(axis=-1))
    kl, changed = np.concatenate(divergences), np.concatenate(changes)
    return Change(len(kl), float(kl.mean()), float(changed.mean()))


def load_data(run: Restored, number: int) -> Data:
    task = run.config.task.copy_and_resolve_references()
    task.test_problems = number
    lengths = {"prompt_length": run.config.data.prompt_buckets[-1], "completion_length": run.config.sampler.completion_length}
    return Data(
        *prompt_arrays(arithmetic.load(task, "test", 0), run.tokenizer, **lengths, exclude_answer=False, overflow="error")
    )


def completions(run: Restored, params: Params, data: Data, mesh) -> np.ndarray:
    """Samples a completion of each problem, int32 [n, l]."""
    decode, batching = run.config.evaluation.decode, Batching(mesh, ROWS, [data.prompts.tokens.shape[1]], shortest_first=False)
    requests = Requests.blank(data.prompts, np.zeros(len(data.problems), np.uint32), run.model, decode)
    tokens = np.zeros((len(data.problems), decode.completion_length), np.int32)
    with jax.set_mesh(mesh):
        for rows, done in complete(params, requests, jax.random.key(0), run.model, decode, batching):
            tokens[rows] = done.tokens
    return tokens


def verdicts(run: Restored, data: Data, tokens: np.ndarray) -> np.ndarray:
    texts = [completion_text(run.tokenizer, row) for row in tokens]
    right = [arithmetic.reward(problem, text) >= 1 for problem, text in zip(data.problems, texts, strict=True)]
    return np.array(right)[:, None]


def masked_rows(run: Restored, data: Data, tokens: np.ndarray) -> list[tuple]:
    """Returns the first `MASKED_ROWS` rows with random positions of their completions masked, as in supervised training."""
    prompts, tokens = data.prompts, tokens[:MASKED_ROWS]
    hidden = np.asarray(mask_count(jax.random.key(1), *tokens.shape).masked)
    row = np.concatenate([prompts.tokens[: len(tokens)], np.where(hidden, run.model.mask_id, tokens)], axis=1)
    valid = np.concatenate([prompts.prompt_mask[: len(tokens)], np.ones_like(hidden)], axis=1)
    return [
        (jnp.asarray(row), jnp.asarray(valid), np.concatenate([np.zeros_like(prompts.prompt_mask[: len(tokens)]), hidden], 1))
    ]


def fixture_rows(mesh) -> list[list[str]]:
    """Returns the rows of the table for the tiny LLaDA."""
    cfg = folder_model_config(FIXTURE / "bf16_sharded")
    params, tokens = load_params(FIXTURE / "bf16_sharded", cfg, mesh), np.load(FIXTURE / "forward.npz")["input_ids"]
    everywhere = np.ones(tokens.shape, bool)
    inputs = [(jnp.asarray(tokens, jnp.int32), jnp.asarray(everywhere), everywhere)]
    return [
        cells("tiny LLaDA", name, compare(params, quantized(params, cfg, parts), inputs, cfg))
        for name, parts in VARIANTS.items()
    ]


def run_rows(run: Restored, data: Data, mesh) -> list[list[str]]:
    """Returns the rows of the table for a trained run."""
    tokens = completions(run, run.params, data, mesh)
    before, inputs, rows = verdicts(run, data, tokens), masked_rows(run, data, tokens), []
    for name, parts in VARIANTS.items():
        params = quantized(run.params, run.model, parts)
        result = paired(before, verdicts(run, data, completions(run, params, data, mesh)))
        low, high = (100 * bound for bound in result["interval95"])
        difference = f"{100 * result['difference']:+.2f} points ({low:+.2f} to {high:+.2f})"
        change = compare(run.params, params, inputs, run.model)
        rows.append(cells("coins", name, change, f"{100 * result['one']:.1f} %", difference))
    return rows


def cells(model: str, name: str, change: Change, *accuracy: str) -> list[str]:
    numbers = [f"{change.tokens:,}", f"{change.kl:.1e}", f"{100 * change.changed:.2f} %"]
    return [model, name, *numbers, *(accuracy or ("", ""))]


def main(argv: list[str] | None = None) -> str:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=pathlib.Path, required=True)
    parser.add_argument("--problems", type=int, default=5000)
    parser.add_argument("--output", type=pathlib.Path)
    arguments = parser.parse_args(argv)
    keep_freed_memory()
    mesh = make_mesh()
    run = restore_run(arguments.run, mesh)
    if run.adapters is not None:
        parser.error(f"--run={arguments.run} has adapters; give a run that has trained all parameters")
    rows = [*fixture_rows(mesh), *run_rows(run, load_data(run, arguments.problems), mesh)]
    text = "\n".join(table(COLUMNS, rows)) + "\n"
    print(text, end="")
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(text, encoding="utf-8")
    return text


if __name__ == "__main__":
    main()
