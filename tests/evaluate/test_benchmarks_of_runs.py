"""Benchmarks that a run evaluates (`evaluation.benchmarks`) have the verdicts of the command `evaluate`."""

import json
import re

import jax
import numpy as np
import pytest

import commands
from igpo_jax import config as configuration
from igpo_jax.api import DiffusionLM
from igpo_jax.evaluate.benchmark import correct_of, run_benchmark
from igpo_jax.evaluate.protocol import base_evaluation
from igpo_jax.run.experiment import open_experiment
from igpo_jax.run.metrics import benchmark_accuracies, read_rows
from igpo_jax.run.results import result_lines
from igpo_jax.stages.stage import benchmark_metrics
from igpo_jax.tasks import arithmetic, math
from igpo_jax.tasks.benchmark import benchmark, load_benchmark
from igpo_jax.tasks.grades import Grades
from processes import TINY
from run_configs import CONFIGS, config_of, contents, error_of, gsm8k, tiny

# Models this small are never right, so chance decides.
CHANCE = """
import zlib

def reward(problem, text):
    return float(zlib.crc32((problem.answer + text).encode()) % 3 == 0)
"""


def with_benchmarks(config, **benchmarks):
    for name, part in benchmarks.items():
        config.evaluation.benchmarks[name] = part
    return config


def sums(**settings):
    return benchmark(arithmetic.defaults(slots=3, test_problems=9), **settings)


@pytest.mark.slow
def test_verdicts_are_those_of_an_evaluation(tmp_path, monkeypatch):
    (tmp_path / "chance.py").write_text(CHANCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    parts = {"greedy": sums(), "drawn": sums(draws=3, temperature=0.7, problems=7)}
    own = {"reward__function": "chance:reward", "data__prompt_buckets": (9, 16)}
    experiment = open_experiment(with_benchmarks(tiny(**own), **parts), tmp_path / "run")
    params = experiment.initial_params()
    model = DiffusionLM(experiment.model, params, experiment.tokenizer, experiment.mesh)
    config = base_evaluation()
    config.update({"batch_size": 16, "prompt_buckets": (9, 16), "chat": False, "benchmarks": parts})
    config.reward.update({"function": "chance:reward"})
    config.decode.update({"completion_length": 16, "block_length": 8, "steps": 8})
    batches = []
    for name, part in parts.items():
        problems = load_benchmark(name, part)[: part.problems or None]
        card = run_benchmark(model, config, name, problems, tmp_path)
        with jax.set_mesh(experiment.sampling_mesh):
            grades = experiment.verdicts(params, lambda: batches.append(1), name)
        expected = correct_of(read_rows(tmp_path / f"{name}.jsonl"))
        assert grades.correct.shape == expected.shape == (len(problems), part.draws)
        np.testing.assert_array_equal(grades.correct, expected)
        metrics = benchmark_metrics(name, grades)
        assert metrics[f"eval/{name}/accuracy"] == card["pass@1"] and metrics[f"eval/{name}/ungraded"] == 0
        assert metrics.get(f"eval/{name}/pass@3") == card.get("pass@3")
    assert 0 < expected.mean() < 1 and len({tuple(row) for row in expected.tolist()}) > 2
    assert len(batches) == 2 + 3  # 9 and 21 completions, in batches of 8
    assert set(experiment.data) == {"sft", "rl", "test", "benchmark greedy", "benchmark drawn"}
    assert experiment.benchmarks["greedy"].pool is experiment.pool  # the same reward function: no further processes


def test_metrics_leave_out_completions_without_a_verdict():
    correct = np.array([[True, False], [True, True], [False, False], [False, False]])
    late = np.array([[False, False], [False, True], [True, True], [False, False]])
    grades = Grades(correct.astype(np.float32), correct & ~late, late, np.zeros_like(late))
    metrics = benchmark_metrics("sums", grades)
    assert metrics == {"eval/sums/accuracy": 0.5, "eval/sums/ungraded": 3, "eval/sums/pass@2": 0.5}
    none = Grades(correct[:, :1].astype(np.float32), correct[:, :1], late[:, :1], np.zeros_like(late[:, :1]))
    assert benchmark_metrics("sums", none) == {"eval/sums/accuracy": pytest.approx(2 / 3), "eval/sums/ungraded": 1}


def test_benchmarks_without_a_file_are_left_out_and_change_nothing(tmp_path):
    config = config_of(CONFIGS / "math.py")
    assert (
        set(config.evaluation.benchmarks) == {"gsm8k", "minerva", "amc"}
        and not configuration.parse(config).evaluation.benchmarks
    )
    assert "benchmarks" not in configuration.to_json(config)["evaluation"]
    config.evaluation.benchmarks.amc.task.test = "amc:amc.jsonl"
    amc = configuration.parse(config).evaluation.benchmarks["amc"]
    assert (amc.draws, amc.temperature, amc.task.test, amc.task.answer) == (16, 0.1, "amc:amc.jsonl", "box")
    written = configuration.to_json(config)
    assert set(written["evaluation"]["benchmarks"]) == {"amc"}
    del written["evaluation"]["benchmarks"]["amc"]["task"]["answer"]  # a key that came later
    assert configuration.to_json(configuration.from_json(written)) == configuration.to_json(config)


def test_a_run_continues_only_with_its_benchmarks(tmp_path):
    first = open_experiment(with_benchmarks(tiny(), sums=sums()), tmp_path / "run")
    again = open_experiment(with_benchmarks(tiny(), sums=sums(), unused=benchmark(math.defaults())), tmp_path / "run")
    assert again.fingerprint == first.fingerprint != configuration.fingerprint(tiny())
    before = contents(tmp_path / "run")
    for config in (tiny(), with_benchmarks(tiny(), sums=sums(draws=2))):
        with pytest.raises(ValueError, match="differing keys: evaluation.benchmarks"):
            open_experiment(config, tmp_path / "run")
    assert contents(tmp_path / "run") == before


def test_training_problems_of_a_benchmark_are_dropped(tmp_path):
    train, tested = tmp_path / "train.jsonl", tmp_path / "tested.jsonl"
    rows = [{"question": f"What is {n} + 1?", "answer": f"It is {n + 1}.\n#### {n + 1}"} for n in range(20)]
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tested.write_text("".join(json.dumps(row | {"question": row["question"].upper()}) + "\n" for row in rows[:3]))
    part = benchmark(math.defaults(test=f"gsm8k:{tested}"), problems=1)  # with another prompt; all three count
    experiment = open_experiment(with_benchmarks(gsm8k(train), other=part), tmp_path / "run")
    assert experiment.dropped == {"sft": 3, "rl": 3} and len(experiment.benchmarks["other"].data.problems) == 1
    assert experiment.benchmarks["other"].data.problems[0].question.startswith("Respond in the following format:")
    missing = with_benchmarks(gsm8k(train), other=benchmark(math.defaults(test="gsm8k:nowhere.jsonl")))
    assert error_of(missing, tmp_path / "missing").startswith("benchmark other: ")


CONFIG = f"""
import runpy

from igpo_jax.tasks import arithmetic
from igpo_jax.tasks.benchmark import benchmark

def get_config():
    config = runpy.run_path({str(TINY)!r})["get_config"]()
    config.data.prompt_buckets = (16,)
    config.evaluation.benchmarks.sums = benchmark(arithmetic.defaults(slots=3, test_problems=9), problems=7)
    return config
"""


def test_inspect_data_describes_benchmarks(tmp_path):
    (tmp_path / "own.py").write_text(CONFIG)
    done = commands.run("inspect_data", f"--config={tmp_path / 'own.py'}", "--samples=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("benchmark sums: 7 problems, fingerprint "))
    part = lines[begin : lines.index("", begin)]
    assert part[-1] == "  fits: 7 of 7 (100.0%); longer ones are cut" and not any("solution tokens" in line for line in part)
    assert any(line.startswith("--- benchmark sums: ") for line in lines)


@pytest.mark.parametrize("part, words", [
    ({"draws": 0}, "evaluation.benchmarks.sums.draws=0 must be at least 1"),
    ({"temperature": -1.0}, "evaluation.benchmarks.sums.temperature=-1.0 must not be negative"),
    ({"problems": "all"}, "evaluation.benchmarks.sums.problems='all': 'all' is no int"),
    ({"task": arithmetic.defaults(test_problems=0)}, "evaluation.benchmarks.sums.task.test_problems=0 must be within [1, 1000000]"),
    ({"color": 1}, "evaluation.benchmarks.sums.color: there is no such key"),
    ({"task": {"name": 1}}, "evaluation.benchmarks.sums has no task"),
    ({"task": {"name": "os"}}, "task.name='os'"),
])  # fmt: skip
def test_a_wrong_benchmark_is_named(part, words, tmp_path):
    config = with_benchmarks(tiny(), sums=benchmark(arithmetic.defaults()))
    with config.evaluation.benchmarks.ignore_type():
        config.evaluation.benchmarks.sums = config.evaluation.benchmarks.sums.to_dict() | part
    assert words in error_of(config, tmp_path / "run")


@pytest.mark.parametrize("names, words", [
    (map(str, range(1001)), "evaluation.benchmarks has 1001 benchmarks; at most 1000 are possible"),
    ([""], "evaluation.benchmarks has the name ''"),
    (["a\nb"], r"evaluation.benchmarks has the name 'a\nb'"),
])  # fmt: skip
def test_a_run_has_few_benchmarks_with_printable_names(names, words, tmp_path):
    values = configuration.to_json(tiny())
    values["evaluation"]["benchmarks"] = {name: {"task": {"name": "arithmetic"}} for name in names}
    with pytest.raises(ValueError, match=re.escape(words)):
        configuration.from_json(values)


def test_results_have_the_accuracies_on_benchmarks():
    row = {"step": 3, "stage": "rl", "eval/accuracy": 0.5, "eval/a/b/accuracy": 0.25, "eval/none/accuracy": None}
    assert benchmark_accuracies(row) == {"a/b": "eval/a/b/accuracy"}
    before, after = (
        {"accuracy": share, "interval95": [0, 1], "problems": 8, "benchmarks": {"amc": share / 2}} for share in (0.5, 1.0)
    )
    lines = result_lines({"before_rl": before, "after_rl": after, "wall_seconds": {}})
    assert lines[1] == "accuracy on amc: 25.0% -> 50.0%"
    del before["benchmarks"]  # of a log that a stranger wrote
    assert result_lines({"before_rl": before, "after_rl": after, "wall_seconds": {}})[1] == "accuracy on amc: 50.0%"
