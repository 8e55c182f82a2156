"""python tests/helpers/configuration_document.py

Writes docs/configuration.md from the comments beside the configuration keys in the source code.
"""

import pathlib
from collections.abc import Iterable
from typing import Any

from igpo_jax import key_help
from igpo_jax.config import RESUMABLE_KEYS, base_config
from igpo_jax.evaluate.protocol import base_evaluation, benchmark
from igpo_jax.tasks import TASKS, load_task, math

DOCUMENT = pathlib.Path(__file__).parents[2] / "docs" / "configuration.md"
START = """# Configuration keys

<!-- python tests/helpers/configuration_document.py writes this page. -->

This page lists all keys of a run's configuration with their defaults. The files in [configs/](../configs) give some keys other
values, and on the command line, `--config.section.key=value` does so. The meanings are the comments beside the keys in the
source code. REF marks what the released code of the paper does. If a value is invalid, or if keys contradict each other, the
command ends with an error that names them. [objectives.md](objectives.md) and [rollouts.md](rollouts.md) explain the choices of
the method and of the sampler.

A run that is resumed must have the same configuration, except for the keys that say "may change in a resumed run"
([igpo_jax/config.py](../igpo_jax/config.py), `RESUMABLE_KEYS`); the largest prompt bucket must stay.
"""
RESUMABLE = {*RESUMABLE_KEYS, "data.prompt_buckets"}
TASK = """
## Task

Each task has its own keys in the section `task`. In a configuration file, the function `defaults` of the task's module returns
them.
"""
EVALUATIONS = """
## Evaluations

These are the keys of a configuration file of `igpo_jax.evaluate`, such as
[configs/evaluate_math.py](../configs/evaluate_math.py), with the defaults of `base_evaluation`. A benchmark called NAME has the
keys `benchmarks.NAME.task`, which are those of a [task](#task), and three others.
`evaluation.benchmarks.NAME` of a run has the same keys.
"""
SECTIONS = (
    "tokenizer", "model", "lora", "data", "sampler", "evaluation", "sft", "rl", "inpainting", "objective", "reward", "mesh",
)  # fmt: skip

Rows = Iterable[tuple[str, Any, str]]


def document() -> str:
    rows = [
        (key, value, meaning + "; may change in a resumed run" * (key in RESUMABLE))
        for key, value, meaning in key_help.describe(base_config(**load_task(TASKS[0]).defaults()))
    ]
    parts = [START, "\n## Top level\n", table(row for row in rows if "." not in row[0]), TASK]
    for name in TASKS:
        own = key_help.describe(base_config(**load_task(name).defaults()))
        parts += [f"\n### {name}\n", table(row for row in own if row[0].startswith("task."))]
    for section in SECTIONS:
        parts += [f"\n## {section.upper() if section in ('sft', 'rl') else section.capitalize()}\n"]
        parts += [table(row for row in rows if row[0].startswith(f"{section}."))]
    evaluation = base_evaluation()
    evaluation.benchmarks.NAME = benchmark(math.defaults())
    own = key_help.describe(evaluation)
    return "".join([*parts, EVALUATIONS, table(row for row in own if not row[0].startswith("benchmarks.NAME.task."))])


def table(rows: Rows) -> str:
    lines = [f"| `{key}` | {code(value)} | {cell(meaning)} |\n" for key, value, meaning in rows]
    return "".join(["\n| key | default | meaning |\n|---|---|---|\n", *lines])


def code(value: Any) -> str:
    text = repr(value).strip()  # an empty section ends with a line break
    return f"`{cell(text if len(text) <= 80 else text[:80] + '...')}`"


def cell(text: str) -> str:
    """Returns a text in which no character ends the cell of a Markdown table or starts an emphasis."""
    return text.replace("|", "\\|").replace(" * ", " \\* ")


if __name__ == "__main__":
    DOCUMENT.write_text(document())
