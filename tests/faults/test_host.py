"""Full or read-only disks, exhausted memory, dead helper processes, and a clock that jumps."""

import errno
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

import commands
from igpo_jax.run.metrics import read_rows
from igpo_jax.runtime.host import explain_shortage
from igpo_jax.runtime.stopwatch import Stopwatch
from igpo_jax.tasks.problem import Problem
from igpo_jax.tasks.reward_pool import RewardPool

SHORT = ("--config.sft.updates=40", "--config.sft.eval_every=0", "--config.rl.iterations=0")
INTACT = "What was complete before is intact; once it can be written, the same command resumes"


@pytest.fixture
def small_disk(tmp_path):
    """(file system of 400 KiB, function that remounts it with other options); skipped without root."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options: str) -> bool:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)], capture_output=True)
        return done.returncode == 0

    if not mount("size=400k"):
        pytest.skip("mounting a file system needs root")
    yield folder, mount
    subprocess.run(["umount", str(folder)], check=True)


def last_line(process) -> str:
    assert process.returncode == 1, process.stderr
    return process.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_a_full_disk_ends_the_run_in_one_line_and_with_room_it_goes_on(command, tiny, small_disk):
    folder, mount = small_disk
    flags = (f"--config={tiny}", f"--workdir={folder / 'run'}", *SHORT, "--config.sft.checkpoint_every=4")
    process = command("train", *flags)
    message = last_line(process)
    assert message.startswith("error: storage: ") and "No space left on device" in message and message.endswith(INTACT)
    assert "Traceback" not in process.stderr
    assert mount("remount", "size=40m")
    process = command("train", *flags)
    assert process.returncode == 0, process.stderr
    assert [row["step"] for row in read_rows(folder / "run/metrics.jsonl") if "sft/loss" in row] == list(range(4, 41, 4))
    # On a read-only disk the run does not start.
    assert mount("remount", "ro")
    message = last_line(command("train", *flags))
    assert re.match(r"error: \[Errno 30\] Read-only file system: '.*/run/.lock'", message), message


@pytest.mark.slow
@pytest.mark.parametrize("limit, begins", [("-f 100", "storage: "), ("-n 30", "open files: ")])
def test_a_checkpoint_that_cannot_be_written_is_one_line(limit, begins, tiny, tmp_path):
    flags = (f"--config={tiny}", f"--workdir={tmp_path / 'run'}", *SHORT, "--config.sft.checkpoint_every=4")
    limited = ["bash", "-c", f'ulimit {limit} && exec "$@"', "bash", sys.executable, "-m", "igpo_jax.train", *flags]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": commands.QUICK}
    process = subprocess.run(limited, env=environment, capture_output=True, text=True, timeout=300)
    assert last_line(process).startswith(f"error: {begins}") and INTACT.partition(";")[0] in last_line(process)
    assert not re.search("^Traceback|^RuntimeWarning|^E[0-9]|Exception in thread", process.stderr, re.MULTILINE), process.stderr


def test_a_file_where_the_folder_should_be_is_one_clear_error(command, tiny, tmp_path):
    (tmp_path / "run").write_text("")
    process = command("train", f"--config={tiny}", f"--workdir={tmp_path / 'run'}", *SHORT)
    assert last_line(process) == f"error: [Errno 17] File exists: '{tmp_path / 'run'}'"
    assert "Traceback" not in process.stderr


@pytest.mark.slow
def test_a_model_that_does_not_fit_is_one_error_that_says_what_to_do(command, tiny, tmp_path):
    flags = (*SHORT, f"--config.model.width={2**20}", f"--config.model.mlp_width={2**22}")
    process = command("train", f"--config={tiny}", f"--workdir={tmp_path / 'run'}", *flags)
    message = last_line(process)
    assert message.startswith("error: out of memory: ")
    assert "--config.sft.microbatches" in message and "--config.rl.rollout_chunks" in message
    assert message.endswith("`python -m igpo_jax.plan --config=...` lists the memory of each program")
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize("error, begins", [
    (MemoryError(), "out of memory: MemoryError"),
    (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.\nmore"), "out of memory: RESOURCE_EXHAUSTED: Out of"),
    (OSError(errno.ENOSPC, "No space left on device", "f"), "storage: [Errno 28] No space left on device: 'f'"),
    (ValueError('RESOURCE_EXHAUSTED: Failed writing: "f": No space left on device'), "storage: RESOURCE_EXHAUSTED: Failed"),
    (OSError(errno.EFBIG, "File too large"), "storage: [Errno 27] File too large"),
    (ValueError('OUT_OF_RANGE: Failed writing: "f": File too large [os_error_code=27]'), "storage: OUT_OF_RANGE: Failed"),
    (ValueError("Failed writing: Disk quota exceeded"), "storage: Failed writing: Disk quota exceeded"),
    (OSError(errno.EMFILE, "Too many open files", "f"), "open files: [Errno 24] Too many open files: 'f'"),
    (OSError(errno.ENFILE, "Too many open files in system"), "open files: [Errno 23] Too many open files in system"),
    (ValueError("RESOURCE_EXHAUSTED: Opening failed\n[OS error 24: Too many open files]"), "open files: RESOURCE_EXHAUSTED: "),
    (RuntimeError("can't start new thread"), "threads: can't start new thread"),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory: [Errno 12] Cannot allocate memory"),
])  # fmt: skip
def test_a_shortage_is_named_as_what_it_is(error, begins):
    assert explain_shortage(error, "fewer").startswith(begins)


@pytest.mark.parametrize("error", [ValueError("no"), FileNotFoundError(2, "No such file"), ConnectionError("gone")])
def test_other_errors_are_not_explained(error):
    assert explain_shortage(error, "fewer") is None


PROBLEM = Problem("id", "2+2?", "4", "2+2=4", (), "4")


@pytest.fixture
def pool(monkeypatch):
    monkeypatch.syspath_prepend(pathlib.Path(__file__).parents[1] / "helpers")
    made = RewardPool("reward_functions:moody", {}, 2, 5.0)
    yield made
    made.close()


def test_idle_graders_that_are_killed_cost_no_answer_its_reward(pool):
    answers = [(PROBLEM, str(number)) for number in range(40)]
    pool(answers)
    for worker in pool._workers:
        os.kill(worker._process.pid, signal.SIGKILL)
        worker._process.wait()
    assert [verdict.reward for verdict in pool(answers)] == list(range(40))


def test_graders_that_are_killed_while_they_start_are_replaced(pool):
    started = []

    def kill_the_first_two():
        while len(started) < 2:
            started.extend(worker for worker in list(pool._workers) if worker not in started)
        for worker in started:
            worker._process.kill()

    killing = threading.Thread(target=kill_the_first_two, daemon=True)
    killing.start()
    answers = [(PROBLEM, str(number)) for number in range(40)]
    assert [verdict.reward for verdict in pool(answers)] == list(range(40))
    killing.join()


def test_graders_that_cannot_start_are_one_error(monkeypatch, tmp_path):
    (tmp_path / "deadly.py").write_text("import os\n\nos._exit(1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    pool = RewardPool("deadly:reward", {}, 2, 5.0)
    message = "^the reward function 'deadly:reward' cannot be used: processes die while they load it, see above$"
    with pytest.raises(ValueError, match=message):
        pool([(PROBLEM, "1")])
    pool.close()


def test_a_grader_that_is_killed_at_work_costs_no_answer_its_reward(pool):
    answers = [(PROBLEM, str(number)) for number in range(20_000)]
    pool(answers[:4])
    victim = pool._workers[0]._process
    killing = threading.Timer(0.05, victim.kill)
    killing.start()
    verdicts = pool(answers)
    killing.join()
    assert victim.poll() == -signal.SIGKILL
    assert [verdict.reward for verdict in verdicts] == list(range(20_000)) and {v.outcome for v in verdicts} == {"ok"}


def test_a_clock_that_jumps_changes_neither_durations_nor_verdicts(pool, monkeypatch):
    jumps = iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: 1e9 + (-1) ** next(jumps) * 86_400)  # a day ahead, a day behind
    watch = Stopwatch()
    with watch.measure("time/x"):
        verdicts = pool([(PROBLEM, str(number)) for number in range(40)])
    assert {verdict.outcome for verdict in verdicts} == {"ok"} and 0 < watch.seconds["time/x"] < 60


def test_a_stopped_grader_is_late_and_replaced(monkeypatch):
    monkeypatch.syspath_prepend(pathlib.Path(__file__).parents[1] / "helpers")
    one = RewardPool("reward_functions:moody", {}, 1, 1.0)
    one([(PROBLEM, "1")])
    os.kill(one._workers[0]._process.pid, signal.SIGSTOP)
    verdicts = one([(PROBLEM, "1"), (PROBLEM, "2")])
    one.close()
    assert [verdict.outcome for verdict in verdicts] == ["timeout", "ok"] and verdicts[1].reward == 2.0
