"""Says on what a policy update spends its time, from a trace: which part of the network, and products or other instructions.

    JAX_PLATFORMS=cpu python benchmarks/update_profile.py [--output=FILE]

The sizes are those of update.py. Instructions may run at the same time, so the sum of their times is larger than the time of the
update, and each share is one of this sum. Large products of the same FLOPs would take `limit_seconds`.
"""

import collections
import glob
import gzip
import json
import re
import tempfile

import jax
import numpy as np

import comparison
import update
from igpo_jax.model.transformer import forward_flops
from igpo_jax.rl.objective import ObjectiveConfig, compute_logprobs
from igpo_jax.rl.update import make_update
from igpo_jax.training.policy import Policy
from igpo_jax.training.state import OptimizerConfig, create_state, make_optimizer


def part_of(op_name: str) -> str:
    """Returns the part of an update to which an instruction belongs, given the name of its JAX operation."""
    if "jvp(" not in op_name:
        return "optimizer"
    scope = next((name for name in ("attention", "mlp") if f"({name})" in op_name), None)
    scope = scope or ("head" if "while/body" in op_name else "embedding, slices of the weights")
    if "dot_general" not in op_name:
        return f"{scope}: other"
    # An einsum with four letters per operand multiplies queries, keys, values or attention weights.
    return f"{scope}: products of {'scores and values' if re.search(r'b[a-z]{3},', op_name) else 'weights'}"


def seconds_of_instructions(folder: str) -> collections.Counter:
    """Reads a trace's folder and returns the seconds of every instruction."""
    [file] = glob.glob(f"{folder}/plugins/profile/*/perfetto_trace.json.gz")
    with gzip.open(file) as text:
        events = json.load(text)["traceEvents"]
    seconds: collections.Counter = collections.Counter()
    for event in events:
        if event.get("ph") == "X":
            seconds[event["name"]] += event["dur"] / 1e6
    return seconds


def main(argv: list[str] | None = None) -> list[dict]:
    parser = comparison.parser_with_model(__doc__, repetitions=5)
    for name, default in (("prompts", 4), ("group-size", 8), ("prompt-length", 128), ("completion-length", 128)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args(argv)
    cfg, mesh, objective = comparison.model_of(arguments), comparison.one_device(), ObjectiveConfig()
    optimizer, key = make_optimizer(OptimizerConfig(learning_rate=update.LEARNING_RATE), 100, Policy(cfg)), jax.random.key(0)
    with jax.set_mesh(mesh), jax.default_matmul_precision("highest"), tempfile.TemporaryDirectory() as folder:
        params = comparison.random_params(0, cfg)
        batch = jax.device_put(update.random_batch(arguments, cfg.vocab_size))
        scores = compute_logprobs(params, params, batch, key, cfg, objective, mesh)
        state = create_state(params, optimizer, Policy(cfg), mesh)
        updating = make_update(optimizer, Policy(cfg), objective, mesh).lower(state, batch, scores, np.int32(0)).compile()

        def run():
            nonlocal state
            state, statistics = updating(state, batch, scores, np.int32(0))
            return statistics

        jax.block_until_ready(run())
        [seconds] = comparison.seconds_in_turn([run], arguments.repetitions)
        with jax.profiler.trace(folder, create_perfetto_trace=True):
            jax.block_until_ready(run())
        traced = seconds_of_instructions(folder)
    names = dict(re.findall(r'%(\S+) = [^\n]*metadata=\{op_name="([^"]*)"', updating.as_text()))
    parts: collections.Counter = collections.Counter()
    for instruction, op_name in names.items():
        parts[part_of(op_name)] += traced[instruction]
    positions = arguments.prompt_length + arguments.completion_length
    measured = {
        "seconds": float(np.median(seconds)),
        "tokens": arguments.prompts * arguments.group_size * arguments.completion_length,
        "model_flops": 3 * arguments.prompts * forward_flops(cfg, positions, arguments.completion_length),
        "traced_seconds": sum(parts.values()),
        "shares": {name: value / sum(parts.values()) for name, value in parts.most_common()},
    }
    cases = [comparison.report("profile of an update", cfg, measured)]
    comparison.write_cases(cases, arguments.output)
    return cases


if __name__ == "__main__":
    main()
