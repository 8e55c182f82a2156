"""An evaluation of an untrained model within this process."""

import dataclasses

import pytest

from igpo_jax.api import DiffusionLM
from igpo_jax.evaluate.benchmark import run_benchmark
from igpo_jax.evaluate.protocol import base_evaluation, benchmark
from igpo_jax.run.experiment import open_experiment
from run_configs import tiny

FUNCTIONS = """
import pathlib

HERE = pathlib.Path(__file__).parent


def right(problem, text):
    return 1.0


def half(problem, text):
    return 0.5


def nan(problem, text):
    return float("nan")


def once(problem, text):
    (HERE / "calls").open("a").write("x")
    return 1.0 if (HERE / "calls").stat().st_size == 1 else None
"""


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    experiment = open_experiment(tiny(), tmp_path_factory.mktemp("run"))
    return DiffusionLM(experiment.model, experiment.initial_params(), experiment.tokenizer, experiment.mesh), experiment


@pytest.fixture
def evaluate(opened, tmp_path, monkeypatch):
    (tmp_path / "own_functions.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(str(tmp_path))
    model, experiment = opened

    def run(function: str, number: int) -> dict:
        config = base_evaluation()
        config.update({"batch_size": 8, "prompt_buckets": (9,), "chat": False})
        config.reward.update({"function": function, "workers": 1})
        decode = dataclasses.asdict(experiment.config.evaluation.decode)
        config.decode.update({key: decode[key] for key in config.decode})
        config.benchmarks.sums = benchmark(experiment.config.task.to_dict())
        return run_benchmark(model, config, "sums", experiment.test_data.problems[:number], tmp_path)

    return run
