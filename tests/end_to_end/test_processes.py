"""A run of several processes on this machine, started as by SLURM."""

import pathlib
import signal
import subprocess
import time

import pytest

from processes import DEVICES, HEARTBEAT, LIMIT, ends, start
from run_log import rows_so_far

SHORT = ("--config.sft.updates=20", "--config.rl.iterations=2", "--config.rl.eval_every=0")


@pytest.mark.slow
def test_folders_that_are_not_shared_are_refused_by_all(tmp_path):
    folders = [[f"--workdir={tmp_path / name}", *SHORT] for name in ("a", "b")]
    codes, printed = ends(start(2, 1, *folders, folder=tmp_path), tmp_path)
    assert codes == [1, 1], printed
    assert "process 1 does not see what process 0 writes into" in printed[1]
    assert "process 1 has found an error" in printed[0]


def test_what_all_processes_find_ends_all_in_one_line_each(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    codes, printed = ends(start(2, 1, *[[f"--workdir={tmp_path / 'run'}", *SHORT]] * 2, folder=tmp_path), tmp_path)
    assert codes == [1, 1] and "Traceback" not in "".join(printed), printed
    assert "is no configuration of this version" in printed[0]
    assert "is no configuration of this version" in printed[1]


def test_hosts_with_another_configuration_or_other_data_are_refused_by_all(tmp_path):
    """Problems depend on the seed, so configuration and data both differ; the configuration is compared first."""
    flags = [[f"--workdir={tmp_path / 'run'}", *SHORT, f"--config.seed={rank}"] for rank in range(2)]
    codes, printed = ends(start(2, 1, *flags, folder=tmp_path), tmp_path)
    assert codes == [1, 1], printed
    assert all("error: process 1 has another configuration than process 0" in text for text in printed), printed
    assert not (tmp_path / "run" / "config.json").exists()


ITERATIONS = 12
LONG = (
    "--config.sft.updates=20",
    f"--config.rl.iterations={ITERATIONS}",
    "--config.rl.eval_every=0",
    "--config.sft.batch_size=8",
    "--config.sft.heldout=8",
    "--config.evaluation.problems=8",
    "--config.rl.prompts=4",
    "--config.rl.group_size=4",
    "--config.rl.show_every=100",
)
LONG += ("--config.rl.checkpoint_every=1000",)  # only the signal makes a checkpoint between start and end


def start_and_wait_for_rollouts(processes: int, arguments: list[str], workdir: pathlib.Path) -> list[subprocess.Popen]:
    started = start(processes, DEVICES // processes, *[arguments] * processes, folder=workdir.parent)
    deadline = time.monotonic() + LIMIT
    while not any(row["stage"] == "rl" and row["step"] > 20 for row in rows_so_far(workdir)):
        assert time.monotonic() < deadline and all(process.poll() is None for process in started)
        time.sleep(0.02)
    return started


# tests/faults and tests/runtime/test_interrupts.py send all signals to one process.
@pytest.mark.slow
@pytest.mark.parametrize("processes, number", [(1, signal.SIGHUP), (2, signal.SIGTERM)])
def test_a_signal_to_one_process_stops_all_with_a_checkpoint(tmp_path, processes, number):
    workdir = tmp_path / "run"
    arguments = [f"--workdir={workdir}", *LONG]
    started = start_and_wait_for_rollouts(processes, arguments, workdir)
    started[-1].send_signal(number)
    codes, printed = ends(started, tmp_path)
    own = 0 if number == signal.SIGTERM else 128 + number  # schedulers stop runs with SIGTERM in order to resume them
    assert codes == [0] * (processes - 1) + [own], printed
    assert "Traceback" not in "".join(printed)
    name = "a termination signal" if number == signal.SIGTERM or processes > 1 else number.name
    assert printed[0].splitlines()[-1].startswith(f"stopped by {name} after saving {workdir}")
    assert not (workdir / "result.json").exists()
    stopped_at = max(int(path.name) for path in (workdir / "checkpoints" / "rl").iterdir() if path.name.isdigit())
    assert 0 < stopped_at < ITERATIONS

    codes, printed = ends(start(1, DEVICES, arguments, folder=tmp_path), tmp_path)
    assert codes == [0], printed
    logged = [row["step"] for row in rows_so_far(workdir) if "reward/final" in row]
    assert logged == list(range(22, 22 + 2 * ITERATIONS, 2))
    assert (workdir / "result.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_other_and_the_run_continues(tmp_path, killed):
    workdir = tmp_path / "run"
    arguments = [f"--workdir={workdir}", *LONG[:-1], "--config.rl.checkpoint_every=1"]
    started = start_and_wait_for_rollouts(2, arguments, workdir)
    started[killed].kill()
    begin = time.monotonic()
    codes, printed = ends(started, tmp_path)
    assert time.monotonic() - begin < 2 * HEARTBEAT  # one interval to miss the heartbeat, one to tell the other process
    assert codes[killed] == -signal.SIGKILL and codes[1 - killed] != 0
    # Reported by us if a collective fails first, or by jax if the heartbeat or the coordinator's connection does.
    reports = ("continues the run from its newest checkpoint", "another task died")
    assert any(report in printed[1 - killed] for report in reports), printed[1 - killed]
    assert not (workdir / "result.json").exists()

    codes, printed = ends(start(1, DEVICES, arguments, folder=tmp_path), tmp_path)
    assert codes == [0], printed
    logged = [row["step"] for row in rows_so_far(workdir) if "reward/final" in row]
    assert logged == list(range(22, 22 + 2 * ITERATIONS, 2))
