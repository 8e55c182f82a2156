"""A killed run that is restarted ends with the results of an undisturbed run."""

import json
import pathlib
import shutil
import zlib

import numpy as np
import pytest

from igpo_jax.data.pipeline import batches
from igpo_jax.run.checkpoint import Checkpoints
from igpo_jax.run.experiment import open_experiment, read_run_config
from igpo_jax.run.metrics import read_rows
from run_log import after_supervised_stage, untimed
from same_run import assert_same_run, corrupt, final_params


def steps(folder: pathlib.Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


@pytest.mark.slow
def test_the_comparison_sees_a_single_update(finished, mesh):
    """The parameters of the two stages differ, so the comparisons are meaningful."""
    supervised, reinforced = (final_params(finished, stage, mesh)[1] for stage in ("sft", "rl"))
    assert not any(np.array_equal(a, b) for a, b in zip(supervised, reinforced, strict=True))
    assert any(row.get("reward/final", 0) > 0 for row in untimed(finished))  # the RL stage had rewards to learn from


@pytest.mark.parametrize(
    "stage, step",
    [
        pytest.param("sft", 60, id="supervised", marks=pytest.mark.slow),
        pytest.param("sft", 200, id="between the stages", marks=pytest.mark.slow),
        pytest.param("rl", 204, id="rollouts"),
    ],
)
def test_a_killed_run_continues_to_the_same_end(stage, step, command, finished, tmp_path, mesh):
    workdir = tmp_path / "run"
    if stage == "rl":
        after_supervised_stage(finished, workdir)
    command.train_until_killed(workdir, stage, step)
    assert not (workdir / "result.json").exists()
    again = command.train(workdir)
    assert again.returncode == 0, again.stderr
    assert_same_run(workdir, finished, mesh)


@pytest.mark.slow
def test_a_corrupt_newest_rl_checkpoint_is_passed_over(command, finished, tmp_path, mesh):
    workdir = shutil.copytree(finished, tmp_path / "run")
    newest, before = workdir / "checkpoints/rl/6", workdir / "checkpoints/rl/5"
    assert before.is_dir()
    corrupt(newest)
    again = command.train(workdir)
    assert again.returncode == 0, again.stderr
    assert f"{newest} cannot be read" in again.stderr
    assert (workdir / "checkpoints/rl-unreadable/6").is_dir()  # kept for inspection
    assert_same_run(workdir, finished, mesh)


@pytest.mark.parametrize("error", [MemoryError("no"), RuntimeError("RESOURCE_EXHAUSTED: 1 byte"), PermissionError("no")])
def test_a_checkpoint_that_this_machine_cannot_read_stays_the_newest(error, finished, tmp_path, mesh, monkeypatch):
    workdir = shutil.copytree(finished, tmp_path / "run")
    before = steps(workdir / "checkpoints/rl")
    with Checkpoints(workdir / "checkpoints/rl", keep=2) as checkpoints:

        def fail(*_):
            raise error

        monkeypatch.setattr("igpo_jax.run.checkpoint.ocp.load_checkpointables", fail)
        with pytest.raises(type(error)):
            checkpoints.restore_params({})
    assert steps(workdir / "checkpoints/rl") == before


@pytest.mark.slow
def test_a_corrupt_newest_sft_checkpoint_is_passed_over(command, finished, tmp_path, mesh):
    workdir = tmp_path / "run"
    command.train_until_killed(workdir, "sft", 120)
    newest = steps(workdir / "checkpoints/sft")[-1]
    corrupt(workdir / "checkpoints/sft" / str(newest))
    again = command.train(workdir)
    assert again.returncode == 0, again.stderr
    assert f"checkpoints/sft/{newest} cannot be read" in again.stderr
    assert_same_run(workdir, finished, mesh)


def test_without_a_readable_checkpoint_the_run_stops_and_says_so(command, finished, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "run")
    for step in steps(workdir / "checkpoints/rl"):
        corrupt(workdir / "checkpoints/rl" / str(step))
    log = (workdir / "metrics.jsonl").read_bytes()
    again = command.train(workdir)
    assert again.returncode != 0
    assert "none of the checkpoints" in again.stderr and "to start over" in again.stderr
    assert (workdir / "metrics.jsonl").read_bytes() == log


@pytest.mark.slow
@pytest.mark.parametrize("layout, first", [
    ("tensor", "train"), ("replicated", "tensor"),
])  # fmt: skip
def test_the_layout_of_sampling_changes_no_completion_and_may_change(layout, first, command, finished, tmp_path):
    """Rollouts, evaluations and held-out losses of four devices are those of one, and a run continues with another layout."""
    workdir, four = after_supervised_stage(finished, tmp_path / "run"), command.on_devices(4)
    four.train_until_killed(workdir, "rl", 204, f"--config.sampler.layout={first}")
    again = four.train(workdir, f"--config.sampler.layout={layout}")
    assert again.returncode == 0, again.stderr
    assert f"sampler.layout: {layout} on" in again.stdout
    assert json.loads((workdir / "result.json").read_text())["layout"] == layout
    rows, expected = untimed(workdir), untimed(finished)
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    one, other = (next(row for row in log if "reward/first_try" in row) for log in (rows, expected))
    assert {name: one[name] for name in one if name.startswith(("reward/", "correct/", "groups/", "hint/", "sampler/"))} == {
        name: other[name] for name in other if name.startswith(("reward/", "correct/", "groups/", "hint/", "sampler/"))
    }
    shown, wanted = (read_rows(folder / "rollouts.jsonl") for folder in (workdir, finished))
    same = [a["tokens"] == b["tokens"] for a, b in zip(shown, wanted, strict=False) if a["step"] == 202]
    assert all(same) and same


@pytest.mark.slow
@pytest.mark.parametrize(
    "before, after",
    [((8, "--config.mesh.data=2", "--config.mesh.tensor=2"), (1,)), ((1,), (8,))],
    ids=["8 devices to 1", "1 device to 8"],
)
def test_a_run_continues_on_another_mesh_with_the_same_data(before, after, command, finished, tmp_path):
    workdir = after_supervised_stage(finished, tmp_path / "run")
    command.on_devices(before[0]).train_until_killed(workdir, "rl", 204, *before[1:])
    again = command.on_devices(after[0]).train(workdir, *after[1:])
    assert again.returncode == 0, again.stderr
    assert f"{after[0]} x cpu" in again.stdout
    assert [row["step"] for row in untimed(workdir)] == [row["step"] for row in untimed(finished)]
    # The shown completions belong to problems of that iteration's batch.
    experiment = open_experiment(read_run_config(workdir), workdir)
    config, prompts = experiment.config, experiment.rl_data.prompts
    order = batches(prompts, config.rl.prompts, config.seed, config.data.prompt_buckets)
    shown = [row for row in read_rows(workdir / "rollouts.jsonl") if row["try"] == "first"]
    assert {row["step"] for row in shown} == set(range(202, 214, 2))
    for row in shown:
        assert zlib.crc32(row["problem_id"].encode()) in order[(row["step"] - 202) // 2].problem_id
    assert config.mesh.tensor == 1
