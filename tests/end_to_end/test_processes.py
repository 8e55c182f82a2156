"""A run of several processes: as SLURM starts them, on this machine."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from igpo_jax.runtime.metrics import read_rows
from run_log import rows_so_far, untimed

TINY = pathlib.Path(__file__).parent / "tiny.py"
SHORT = ("--config.sft.updates=20", "--config.rl.iterations=2", "--config.rl.eval_every=0")
LIMIT = 300  # seconds a process may take
HEARTBEAT = 10  # seconds
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def start(
    processes: int, devices: int, *arguments_of_each: list[str], folder: pathlib.Path, config: str = str(TINY)
) -> list[subprocess.Popen]:
    """`python -m igpo_jax.train` as `srun` starts it; every process with `devices` emulated devices."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    slurm = {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": str(processes),
        "JAX_COORDINATOR_PORT": str(port),
        "IGPO_HEARTBEAT_SECONDS": str(HEARTBEAT),
    }
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": f"{QUICK} --xla_force_host_platform_device_count={devices}",
    }
    started = []
    for rank in range(processes):
        own = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
        command = [sys.executable, "-m", "igpo_jax.train", f"--config={config}", *arguments_of_each[rank]]
        log = (folder / f"{rank}-of-{processes}.log").open("w")
        started.append(
            subprocess.Popen(
                command, cwd=folder, env=env | (slurm | own if processes > 1 else {}), stdout=log, stderr=log
            )
        )
    return started


def ends(processes: list[subprocess.Popen], folder: pathlib.Path) -> tuple[list[int], list[str]]:
    """Exit statuses and what was printed."""
    try:
        codes = [process.wait(LIMIT) for process in processes]
    finally:
        for process in processes:
            process.kill()
    number = len(processes)
    return codes, [(folder / f"{rank}-of-{number}.log").read_text() for rank in range(number)]


def word_problems(file: pathlib.Path, number: int) -> None:
    """In GSM8K's format."""
    names, things = ("Mara", "Tom", "Ada", "Kofi", "Lin", "Omar"), ("apples", "books", "pens", "cups", "shells", "stamps")
    rows = []
    for i in range(number):
        name, thing, (a, b, c) = names[i % 6], things[i // 6 % 6], (2 + i % 9, 3 + i % 11, 1 + i % 7)
        question = f"{name} buys {a} boxes of {b} {thing} and gives {c} {thing} away. How many {thing} are left?"
        answer = f"{name} buys {a}*{b} = <<{a}*{b}={a * b}>>{a * b} {thing}.\nThen {a * b}-{c} = {a * b - c} are left."
        rows.append(json.dumps({"question": question, "answer": f"{answer}\n#### {a * b - c}"}))
    file.write_text("\n".join(rows))


@pytest.mark.slow
def test_two_processes_with_four_devices_train_what_one_with_eight_does(tmp_path):
    """The smoke configuration, every stage of it."""
    data, one, two = tmp_path / "problems.jsonl", tmp_path / "one", tmp_path / "two"
    word_problems(data, 300)
    arguments = [f"--config.task.{split}=gsm8k:{data}" for split in ("rl", "test")]
    arguments += ["--config.tokenizer.vocab_size=320", "--config.mesh.fsdp=4", "--config.mesh.tensor=2"]
    smoke = {"folder": tmp_path, "config": "gsm8k.py:smoke"}
    codes, printed = ends(start(1, 8, [f"--workdir={one}", *arguments], **smoke), tmp_path)
    assert codes == [0], printed
    codes, printed = ends(start(2, 4, *[[f"--workdir={two}", *arguments]] * 2, **smoke), tmp_path)
    assert codes == [0, 0], printed
    assert "processes: 2" in printed[0] and "report:" in printed[0]
    assert "report:" not in printed[1]
    assert json.loads((two / "result.json").read_text())["processes"] == 2

    wanted, rows = untimed(one), untimed(two)
    assert [row["step"] for row in rows] == [row["step"] for row in wanted]
    for row, expected in zip(rows, wanted, strict=True):
        assert row.pop("stage") == expected.pop("stage")
        assert row == pytest.approx(expected, rel=1e-3, abs=1e-5)
    tokens = [[row["tokens"] for row in read_rows(run / "rollouts.jsonl")] for run in (one, two)]
    assert tokens[0] == tokens[1]


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


LONG = (
    "--config.sft.updates=20",
    "--config.rl.iterations=60",
    "--config.rl.eval_every=0",
    "--config.rl.show_every=100",
)
LONG += ("--config.rl.checkpoint_every=1000",)  # so that only the signal makes a checkpoint between start and end


def start_and_wait_for_rollouts(processes: int, arguments: list[str], workdir: pathlib.Path) -> list[subprocess.Popen]:
    started = start(processes, 8 // processes, *[arguments] * processes, folder=workdir.parent)
    deadline = time.monotonic() + LIMIT
    while not any(row["stage"] == "rl" and row["step"] > 20 for row in rows_so_far(workdir)):
        assert time.monotonic() < deadline and all(process.poll() is None for process in started)
        time.sleep(0.02)
    return started


@pytest.mark.parametrize("processes", [1, 2])
def test_a_termination_signal_to_one_process_stops_all_with_a_checkpoint(tmp_path, processes):
    workdir = tmp_path / "run"
    arguments = [f"--workdir={workdir}", *LONG]
    started = start_and_wait_for_rollouts(processes, arguments, workdir)
    started[-1].send_signal(signal.SIGTERM)
    codes, printed = ends(started, tmp_path)
    assert codes == [0] * processes, printed
    assert "stopped by a termination signal" in printed[0]
    assert not (workdir / "result.json").exists()
    stopped_at = max(int(path.name) for path in (workdir / "checkpoints" / "rl").iterdir() if path.name.isdigit())
    assert 0 < stopped_at < 60

    codes, printed = ends(start(1, 8, arguments, folder=tmp_path), tmp_path)
    assert codes == [0], printed
    logged = [row["step"] for row in rows_so_far(workdir) if "reward/final" in row]
    assert logged == list(range(22, 22 + 2 * 60, 2))
    assert (workdir / "result.json").is_file()


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_other_and_the_run_continues(tmp_path, killed):
    workdir = tmp_path / "run"
    arguments = [f"--workdir={workdir}", *LONG[:1], "--config.rl.iterations=30", "--config.rl.checkpoint_every=1"]
    started = start_and_wait_for_rollouts(2, arguments, workdir)
    started[killed].kill()
    begin = time.monotonic()
    codes, printed = ends(started, tmp_path)
    assert time.monotonic() - begin < 2 * HEARTBEAT  # it is heard of no more, and one more round to tell the other
    assert codes[killed] == -signal.SIGKILL and codes[1 - killed] != 0
    # Said by us, where a collective breaks first, or by jax, where the heartbeat does.
    assert "continues the run from its newest checkpoint" in printed[1 - killed] or "heartbeat" in printed[1 - killed]
    assert not (workdir / "result.json").exists()

    codes, printed = ends(start(1, 8, arguments, folder=tmp_path), tmp_path)
    assert codes == [0], printed
    logged = [row["step"] for row in rows_so_far(workdir) if "reward/final" in row]
    assert logged == list(range(22, 22 + 2 * 30, 2))
