"""State of a run besides its parameters (solution bank, hint ratio center, evaluation verdicts) and its position in the prompts
are the same after a kill as without one."""

import pathlib
import shutil
import sys

import jax
import numpy as np
import pytest

from igpo_jax.data.pipeline import batches
from igpo_jax.run.checkpoint import Checkpoints
from igpo_jax.run.experiment import open_experiment, read_run_config
from igpo_jax.run.metrics import MetricsWriter, read_rows
from igpo_jax.runtime.files import as_json_lines
from igpo_jax.stages.hint_state import NO_SOLUTION
from run_log import untimed

# Random rewards: the tiny model is right too rarely to find its own solutions.
CHANCE = """import zlib


def reward(problem, text):
    return float(zlib.crc32((problem.id + text).encode()) % 5 == 0)
"""
PROMPTS, GROUP, MOST, FIRST = 8, 4, 3, 60
FLAGS = (
    "--config.reward.function=chance:reward",
    f"--config.sft.updates={FIRST}",
    "--config.task.rl_problems=24",
    f"--config.rl.group_size={GROUP}",
    "--config.inpainting.source=own",
    "--config.inpainting.curriculum=0.3",
    f"--config.rl.dynamic_batches={MOST}",
)


@pytest.fixture(scope="module")
def chance(command):
    """Command whose runs can import the reward."""
    folder = command._folder  # the commands' working directory, in which Python looks for modules
    (folder / "chance.py").write_text(CHANCE)
    return command


@pytest.fixture(scope="module")
def undisturbed(chance, tmp_path_factory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    process = chance.train(workdir, *FLAGS)
    assert process.returncode == 0, process.stderr
    return workdir


def iterations(workdir: pathlib.Path) -> list[dict]:
    return [row for row in untimed(workdir) if "sampler/prompts" in row]


def saved_memory(workdir: pathlib.Path) -> tuple[int, np.ndarray]:
    """Returns (iteration, memory) of the newest checkpoint."""
    experiment = open_experiment(read_run_config(workdir), workdir)
    empty = np.zeros_like(experiment.rl_data.prompts.trace)
    with Checkpoints(workdir / "checkpoints/rl", keep=2, read_only=True) as checkpoints:
        step, loaded, *_ = checkpoints._newest_readable({"progress": {"key": jax.random.key(0), "memory": empty}})
    return step, loaded["progress"]["memory"]


def assert_same_run(one: pathlib.Path, other: pathlib.Path) -> None:
    assert untimed(one) == untimed(other)
    for name in ("rollouts.jsonl", "evaluations.jsonl"):
        assert read_rows(one / name) == read_rows(other / name) != []
    (step, memory), (expected_step, expected) = saved_memory(one), saved_memory(other)
    assert step == expected_step
    np.testing.assert_array_equal(memory, expected)


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_memory_of_its_newest_readable_checkpoint(chance, undisturbed, tmp_path):
    workdir = tmp_path / "run"
    chance.train_until_killed(workdir, "rl", FIRST + 8, *FLAGS)
    newest = max(int(path.name) for path in (workdir / "checkpoints/rl").iterdir() if path.name.isdigit())
    for file in (workdir / "checkpoints/rl" / str(newest)).rglob("*"):
        if file.is_file():
            file.write_bytes(b"garbage")
    again = chance.train(workdir, *FLAGS)
    assert again.returncode == 0, again.stderr
    assert "cannot be read" in again.stderr
    assert_same_run(workdir, undisturbed)


@pytest.mark.slow
def test_the_run_has_something_to_remember(undisturbed):
    """Guards the comparisons above: the state must change during the run."""
    rows = iterations(undisturbed)
    centres = [row["hint/ratio_center"] for row in rows]
    assert len(rows) == 6 and len(set(centres)) > 2
    assert sum("hint/rescue_rate" in row for row in rows) >= 3 and "hint/rescue_rate" not in rows[0]
    assert any(PROMPTS < row["sampler/prompts"] < MOST * PROMPTS for row in rows)
    assert all(row["sampler/prompts"] in (PROMPTS, 2 * PROMPTS, MOST * PROMPTS) for row in rows)


@pytest.mark.slow
def test_the_memory_holds_correct_completions_only(undisturbed, chance, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(chance._folder)])
    from chance import reward

    experiment = open_experiment(read_run_config(undisturbed), undisturbed)
    _, memory = saved_memory(undisturbed)
    known = memory[:, 0] != NO_SOLUTION
    assert known.sum() > 5 and (memory[~known] == NO_SOLUTION).all()
    for problem, tokens in zip(experiment.rl_data.problems, memory, strict=True):
        if tokens[0] != NO_SOLUTION:
            assert reward(problem, experiment.graded_text(tokens)) == 1.0


@pytest.mark.slow
def test_ratios_follow_the_centre_that_the_log_has(undisturbed):
    hint_ratio_center, width = 0.4, 0.4
    for row in iterations(undisturbed):
        if "hint/ratio" in row:
            assert max(hint_ratio_center - width / 2, 0) <= row["hint/ratio"] <= min(hint_ratio_center + width / 2, 1)
        else:
            assert row["hint/ratio_center"] == pytest.approx(hint_ratio_center), "it moves after second tries only"
        hint_ratio_center = row["hint/ratio_center"]


@pytest.mark.slow
def test_a_foreign_center_of_hint_ratios_is_refused(undisturbed, chance, tmp_path):
    run = shutil.copytree(undisturbed, tmp_path / "run")
    rows = read_rows(run / "metrics.jsonl")
    rows[-1]["hint/ratio_center"] = 7.0
    (run / "metrics.jsonl").write_text(as_json_lines(rows))
    process = chance.train(run, *FLAGS, "--accept_loss")  # without this flag, the checksum of the log does not match
    assert process.returncode == 1 and "metrics.jsonl: the last hint/ratio_center=7.0 is not within [0, 1]" in process.stderr


@pytest.mark.slow
def test_an_iteration_takes_another_batch_of_prompts_if_it_lacks_mixed_groups(undisturbed):
    experiment = open_experiment(read_run_config(undisturbed), undisturbed)
    config, prompts = experiment.config, experiment.rl_data.prompts
    order = batches(prompts, PROMPTS, config.seed, config.data.prompt_buckets)
    shown = read_rows(undisturbed / "rollouts.jsonl")
    for number, row in enumerate(iterations(undisturbed)):
        taken = int(row["sampler/prompts"]) // PROMPTS
        if taken < MOST:
            mixed = row["sampler/prompts"] * (1 - row["groups/all_wrong_after"] - row["groups/all_correct"])
            assert round(mixed) >= PROMPTS
        known = np.concatenate([order[number * MOST + batch].problem_id for batch in range(taken)])
        names = {experiment.rl_data.by_id[i].id for i in known.tolist()}
        assert {of["problem_id"] for of in shown if of["step"] == row["step"]} <= names
        # Completions times steps; a second attempt adds to it.
        least = row["sampler/prompts"] * GROUP * config.sampler.steps
        assert row["sampler/rows"] >= least * (1 if "hint/ratio" in row else 0.5)
        assert 1 / GROUP <= row["groups/distinct"] <= 1


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_by_default_there_is_one_batch_and_no_memory(finished):
    rows = iterations(finished)
    assert {row["sampler/prompts"] for row in rows} == {8} and not any("hint/ratio_center" in row for row in rows)
    with Checkpoints(finished / "checkpoints/rl", keep=2, read_only=True) as checkpoints:
        _, loaded, *_ = checkpoints._newest_readable({"progress": None})
    assert set(loaded["progress"]) == {"key"}


@pytest.mark.parametrize("run", ["finished", pytest.param("undisturbed", marks=pytest.mark.slow)])
def test_every_evaluation_leaves_its_verdicts(run, request):
    workdir = request.getfixturevalue(run)
    verdicts = read_rows(workdir / "evaluations.jsonl")
    evaluations = [row for row in read_rows(workdir / "metrics.jsonl") if "eval/accuracy" in row]
    assert [(row["step"], row["stage"]) for row in verdicts] == [(row["step"], row["stage"]) for row in evaluations]
    assert {row["stage"] for row in verdicts} == {"sft", "rl"}
    for row, measured in zip(verdicts, evaluations, strict=True):
        assert set(row) == {"step", "stage", "correct"} and set(row["correct"]) <= {0, 1}
        assert len(row["correct"]) == measured["eval/problems"] == 16
        assert np.mean(row["correct"]) == measured["eval/accuracy"]


def test_an_evaluation_that_was_cut_off_between_its_two_logs_is_made_again(tmp_path):
    with MetricsWriter(tmp_path, 0) as log:
        for step in (0, 2):
            log.write_evaluation(step, "rl", np.array([True, False]), np.ones(2, bool), {"eval/accuracy": 0.5})
        log._append("evaluations.jsonl", [{"step": 4, "stage": "rl", "correct": [1, 1]}])
    with MetricsWriter(tmp_path, 4) as log:
        log.write_evaluation(4, "rl", np.array([False, False]), np.array([True, False]), {"eval/accuracy": 0.0})
    assert [(row["step"], row["correct"]) for row in read_rows(tmp_path / "evaluations.jsonl")] == [
        (0, [1, 0]), (2, [1, 0]), (4, [0, None])
    ]  # fmt: skip
    with MetricsWriter(tmp_path, 2):
        pass
    assert [row["step"] for row in read_rows(tmp_path / "evaluations.jsonl")] == [0, 2]
    with MetricsWriter(tmp_path, 0, starting="rl"):
        pass
    assert read_rows(tmp_path / "evaluations.jsonl") == []
