"""A run with benchmarks trains as one without, and resumes to the same end."""

import pytest

from run_log import untimed
from same_run import assert_same_run

CONFIG = """
import runpy
from igpo_jax.tasks import arithmetic
from igpo_jax.tasks.benchmark import benchmark

def get_config():
    config = runpy.run_path({tiny!r})["get_config"]()
    task = arithmetic.defaults(slots=3, test_problems=9)
    config.evaluation.benchmarks.greedy = benchmark(task)
    config.evaluation.benchmarks.drawn = benchmark(task, draws=3, temperature=0.7, problems=7)
    return config
"""
METRICS = {"eval/greedy/accuracy", "eval/greedy/ungraded", "eval/drawn/accuracy", "eval/drawn/ungraded", "eval/drawn/pass@3"}


@pytest.mark.slow
def test_a_run_with_benchmarks_trains_as_one_without_and_resumes(command, finished, tiny_config, tmp_path, mesh):
    file, whole, killed = tmp_path / "benchmarks.py", tmp_path / "whole", tmp_path / "killed"
    file.write_text(CONFIG.format(tiny=str(tiny_config)))
    done = command.train(whole, f"--config={file}")
    assert done.returncode == 0 and "\naccuracy on greedy: " in done.stdout, done.stderr
    rows, expected = untimed(whole), untimed(finished)
    evaluated = [METRICS & row.keys() for row in rows if "eval/accuracy" in row]
    assert len(evaluated) == 7 and all(names == METRICS for names in evaluated)
    assert [{key: value for key, value in row.items() if key not in METRICS} for row in rows] == expected

    command.train_until_killed(killed, "rl", 204, f"--config={file}")
    again = command.train(killed, f"--config={file}")
    assert again.returncode == 0, again.stderr
    assert_same_run(killed, whole, mesh)
