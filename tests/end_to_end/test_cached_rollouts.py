"""Rollouts with cached keys and values: the measured error and the fallback to exact sampling."""

import pathlib
import runpy

import pytest

from run_log import after_supervised_stage, untimed

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"
# Keys and values of the first layer depend only on the token at their position, so a cache errs from the second layer on.
LAYERS = ("--config.model.layers=2", "--config.sft.batch_size=16")
CACHED = (*LAYERS, "--config.sampler.cache=dual", "--config.rl.probe_every=2")


@pytest.fixture(scope="module")
def finished(command, tmp_path_factory) -> pathlib.Path:
    """Folder of an exact run with two layers."""
    workdir = tmp_path_factory.mktemp("exact") / "run"
    process = command.train(workdir, *LAYERS)
    assert process.returncode == 0, process.stderr
    return workdir


@pytest.fixture(scope="module")
def fallen_back(command, finished, tmp_path_factory) -> pathlib.Path:
    """Run whose first measured error exceeds the limit."""
    workdir = after_supervised_stage(finished, tmp_path_factory.mktemp("limit") / "run")
    process = command.train(workdir, *CACHED, "--config.rl.probe_limit=1e-9")
    assert process.returncode == 0, process.stderr
    return workdir


def iterations(workdir: pathlib.Path) -> list[dict]:
    return [row for row in untimed(workdir) if "sampler/evaluations" in row]


@pytest.mark.slow
def test_the_error_is_logged_when_it_is_due(fallen_back):
    measured = [row for row in iterations(fallen_back) if "sampler/kl" in row]
    assert [row["step"] for row in measured] == [202, 206, 210]  # after the iterations 0, 2 and 4
    assert all(row["sampler/kl"] > 1e-9 and 0 <= row["sampler/changed"] <= 1 for row in measured)


@pytest.mark.slow
def test_above_the_limit_rollouts_are_exact(fallen_back, finished):
    """Rollouts equal those of a run without a cache, bit for bit."""
    assert [row["sampler/exact"] for row in iterations(fallen_back)] == [1] * 6
    added = {"sampler/kl", "sampler/changed", "sampler/exact"}
    found = [{name: value for name, value in row.items() if name not in added} for row in iterations(fallen_back)]
    assert found == iterations(finished)


@pytest.mark.slow
def test_without_a_limit_rollouts_are_cached_and_cost_less(command, fallen_back, finished, tmp_path):
    workdir = after_supervised_stage(finished, tmp_path / "run")
    process = command.train(workdir, *CACHED)
    assert process.returncode == 0, process.stderr
    cached, exact = iterations(workdir), iterations(finished)
    assert [row["sampler/exact"] for row in cached] == [0] * 6
    assert all(one["sampler/flops"] < other["sampler/flops"] for one, other in zip(cached, exact, strict=True))


@pytest.mark.slow
def test_a_run_that_was_killed_between_two_measurements_goes_on_as_decided(command, fallen_back, finished, tmp_path):
    workdir, flags = after_supervised_stage(finished, tmp_path / "run"), (*CACHED, "--config.rl.probe_limit=1e-9")
    command.train_until_killed(workdir, "rl", 208, *flags)
    again = command.train(workdir, *flags)
    assert again.returncode == 0, again.stderr
    assert untimed(workdir) == untimed(fallen_back)


@pytest.mark.slow
def test_samplers_are_compared_on_a_run(finished, tmp_path):
    main, wanted = runpy.run_path(str(BENCHMARKS / "samplers.py"))["main"], ["none+schedule", "prefix+factor", "dual+threshold"]
    sizes = ["--run", str(finished), "--problems=20", "--rows=8", "--output", str(tmp_path / "cases.jsonl")]
    exact, *fast = main([*sizes, "--samplers", *wanted])
    assert [case["name"] for case in (exact, *fast)] == wanted
    assert exact["change"] == 0 and exact["flops_ratio"] == exact["time_ratio"] == 1
    assert all(case["flops"] < exact["flops"] and case["problems"] == 20 for case in fast)
    assert len((tmp_path / "cases.md").read_text().splitlines()) == 2 + 3
    long = main([*sizes, "--samplers", "none+schedule", "--completion-length=32", "--prompt-length=12"])
    assert long[0]["shape"] == {"prompt": 12, "completion": 32, "block": 8, "rows": 8}


@pytest.mark.slow
def test_the_time_of_runs_is_split(finished, fallen_back):
    main = runpy.run_path(str(BENCHMARKS / "step.py"))["main"]
    exact, other = main([f"exact={finished}", f"cached={fallen_back}"])
    assert exact["ratio"]["step"] == 1 and other["baseline"] == "exact" and other["ratio"]["step"] > 0
    parts = sum(exact[part] for part in ("rollout", "probe", "reward", "score", "update"))
    assert 0 < parts < 1.5 * exact["step"] and exact["stages"] == pytest.approx(exact["sft"] + exact["rl"])
