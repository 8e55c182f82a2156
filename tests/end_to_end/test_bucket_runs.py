"""Runs whose folder is in a bucket, with an emulator of Google Cloud Storage."""

import os
import pathlib
import shutil
import signal
import time

import pytest

import commands
from igpo_jax.run import bucket_runs
from igpo_jax.runtime import bucket_locks, buckets
from run_log import rows_so_far
from same_run import assert_same_run
from storage_emulator import environment, storage_emulator

LIMIT = 300  # seconds per process


@pytest.fixture(scope="module")
def emulator():
    with storage_emulator() as address:
        yield address


@pytest.fixture
def storage(emulator, monkeypatch, tmp_path, command):
    """Sets the emulator's environment for this process and for commands. Returns its file system."""
    variables = environment(emulator) | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(command, "_env", command._env | variables)
    buckets.filesystem.cache_clear()
    yield buckets.filesystem()
    buckets.filesystem.cache_clear()


@pytest.fixture
def address(request) -> str:
    return f"gs://team/{request.node.name.replace('[', '-').rstrip(']')}"


def local_copy(storage, address: str, folder: pathlib.Path) -> pathlib.Path:
    """Downloads a run, so that it can be compared with one on disk."""
    storage.invalidate_cache()
    storage.get(address, str(folder), recursive=True)
    return folder


def start(command, config, address: str, output: pathlib.Path):
    flags = (f"--config={config}", f"--workdir={address}")
    return commands.start("train", *flags, stdout=output, cwd=command._folder, env=command._env)


def signal_at(process, address: str, stage: str, step: int, number: signal.Signals) -> None:
    """Sends a signal to a training process once its log has a row of this stage at this step or later."""
    folder = bucket_runs.copy_of(address, "process-0")
    deadline = time.monotonic() + LIMIT
    while not any(row["stage"] == stage and row["step"] >= step for row in rows_so_far(folder)):
        assert process.poll() is None, f"the run ended before step {step}"
        assert time.monotonic() < deadline, f"no step {step} in {LIMIT} seconds"
        time.sleep(0.01)
    process.send_signal(number)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "terminated"])
def test_a_stopped_run_continues_to_the_end_of_a_run_on_disk(
    number, command, finished, storage, address, tiny_config, tmp_path, mesh
):
    process = start(command, tiny_config, address, tmp_path / "log")
    signal_at(process, address, "rl", 204, number)
    assert process.wait(LIMIT) == (0 if number == signal.SIGTERM else -number)
    shutil.rmtree(tmp_path / "cache")  # the run continues on another machine
    done = command.train(address)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert f"report: {address}/report.html" in done.stdout
    run = local_copy(storage, address, tmp_path / "run")
    assert_same_run(run, finished, mesh)
    names = {path.name for path in run.iterdir()}
    assert {"config.json", "data.json", "report.html", "tensorboard"} <= names and ".lock" not in names
    assert str(tmp_path / "cache") not in done.stdout + done.stderr


def test_a_second_start_is_one_line_and_changes_nothing(command, finished, storage, address, monkeypatch):
    storage.put(str(finished), address, recursive=True)
    before = storage.find(address, detail=True)
    monkeypatch.setattr(bucket_locks, "HEARTBEAT", 0.5)
    with bucket_locks.BucketLock(address):
        done = command.train(address)
    assert done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr
    refused = f"error: cannot lock {address}/.lock as anonymous: {address} is being written by process {os.getpid()} on "
    assert done.stderr.splitlines()[-1].startswith(refused)
    assert storage.find(address, detail=True) == before


def test_a_finished_run_in_a_bucket_is_read_by_the_other_commands(command, finished, storage, address, tmp_path):
    storage.put(str(finished), address, recursive=True)
    prompt = "--prompt=5+5="
    here, there = (command("generate", f"--model={place}", prompt) for place in (finished, address))
    assert there.returncode == 0 and there.stdout == here.stdout, there.stderr
    done = command("report", address)
    assert done.returncode == 0 and done.stdout == f"report: {address}/report.html\n", done.stderr
    assert storage.cat_file(f"{address}/report.html").startswith(b"<!")
    done = command("convert", f"--source={address}", f"--target={tmp_path / 'model'}", "--format=huggingface")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model/model.safetensors").is_file()
    os.unlink(tmp_path / "model/model.safetensors")
