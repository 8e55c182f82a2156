"""Fixtures that run the tiny configuration in separate processes with one device each."""

import fcntl
import os
import pathlib
import shutil
import signal
import subprocess
import time

import pytest

import commands
from run_log import rows_so_far
from tokenizer_files import write_tokenizer

WEIGHTS = pathlib.Path(__file__).parents[1] / "model" / "fixtures" / "llada_tiny" / "bf16_sharded"
TINY = pathlib.Path(__file__).parent / "tiny.py"
LIMIT = 300  # seconds per process


class Command:
    """Runs `python -m igpo_jax.<module>` outside the repository."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._env = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": commands.QUICK,  # one device instead of the eight of tests/conftest.py
        }

    def on_devices(self, number: int) -> "Command":
        """Returns the same command with `number` emulated devices."""
        other = Command(self._folder)
        other._env["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={number}"
        return other

    def with_hub_cache(self, home: pathlib.Path) -> "Command":
        """Returns the same command, in the folder `home`, for a user whose cache of the Hugging Face hub is under `home`."""
        other = Command(home)
        other._env["HF_HOME"] = str(home)
        return other

    def __call__(self, module: str, *arguments: str, cwd: pathlib.Path | None = None) -> subprocess.CompletedProcess:
        return commands.run(module, *arguments, cwd=cwd or self._folder, env=self._env, timeout=LIMIT)

    def train(self, workdir: pathlib.Path, *overrides: str) -> subprocess.CompletedProcess:
        return self("train", f"--config={TINY}", f"--workdir={workdir}", *overrides)

    def train_until_killed(self, workdir: pathlib.Path, stage: str, step: int, *overrides: str) -> None:
        """Sends SIGKILL once the log has a row of this stage at this step or later."""
        flags = (f"--config={TINY}", f"--workdir={workdir}", *overrides)
        log = workdir.parent / "killed.log"
        process = commands.start("train", *flags, stdout=log, cwd=self._folder, env=self._env)
        try:
            deadline = time.monotonic() + LIMIT
            while not any(row["stage"] == stage and row["step"] >= step for row in rows_so_far(workdir)):
                assert process.poll() is None, f"the run ended before step {step}"
                assert time.monotonic() < deadline, f"no step {step} in {LIMIT} seconds"
                time.sleep(0.01)
        finally:
            process.kill()
        assert process.wait(LIMIT) == -signal.SIGKILL


@pytest.fixture(scope="module")
def llada(tmp_path_factory):
    """The folder of a tiny LLaDA, with a tokenizer."""
    folder = tmp_path_factory.mktemp("llada") / "hf"
    shutil.copytree(WEIGHTS, folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def command(tmp_path_factory) -> Command:
    return Command(tmp_path_factory.mktemp("commands"))


@pytest.fixture(scope="session")
def finished(command, tmp_path_factory) -> pathlib.Path:
    """Folder of an uninterrupted run, shared by all pytest workers; tests that write must copy it."""
    shared = tmp_path_factory.getbasetemp()
    shared = (shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared) / "finished"
    with shared.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "stdout").exists():
            process = command.train(shared / "run")
            assert process.returncode == 0, process.stderr
            (shared / "stdout").write_text(process.stdout)
    return shared / "run"


@pytest.fixture(scope="session")
def tiny_config() -> pathlib.Path:
    return TINY
