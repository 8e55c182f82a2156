"""Compares two runs."""

import json
import pathlib

import jax
import numpy as np

from igpo_jax import config as configuration
from igpo_jax.model.transformer import abstract
from igpo_jax.run.checkpoint import Checkpoints
from igpo_jax.run.experiment import read_run_config
from igpo_jax.run.metrics import read_rows
from igpo_jax.tokenizers import load_tokenizer
from run_log import untimed


def final_params(workdir: pathlib.Path, stage: str, mesh):
    """Returns (step, leaves) of the newest checkpoint."""
    model = configuration.model_config(
        configuration.parse(read_run_config(workdir)), load_tokenizer(workdir / "tokenizer.model")
    )
    with Checkpoints(workdir / "checkpoints" / stage, keep=2) as checkpoints:
        step, params = checkpoints.restore_params(abstract(model, mesh))
    return step, [np.asarray(leaf) for leaf in jax.tree.leaves(params)]


def result(workdir: pathlib.Path) -> dict:
    values = json.loads((workdir / "result.json").read_text())
    return {name: value for name, value in values.items() if name not in ("wall_seconds", "logs")}  # logs have times, too


def assert_same_run(resumed: pathlib.Path, uninterrupted: pathlib.Path, mesh) -> None:
    for stage in ("sft", "rl"):
        step, params = final_params(resumed, stage, mesh)
        expected_step, expected = final_params(uninterrupted, stage, mesh)
        assert step == expected_step
        assert len(params) == len(expected) > 0
        assert all(np.array_equal(a, b) for a, b in zip(params, expected, strict=True)), stage
    assert untimed(resumed) == untimed(uninterrupted)
    assert read_rows(resumed / "rollouts.jsonl") == read_rows(uninterrupted / "rollouts.jsonl")
    assert result(resumed) == result(uninterrupted)


def corrupt(checkpoint: pathlib.Path) -> None:
    """Overwrites every file with garbage, like a disk that lost its blocks."""
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    assert files
    for path in files:
        path.write_bytes(b"garbage")
