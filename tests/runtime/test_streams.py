"""A command outlives standard streams that are closed, or that cannot be written."""

import os
import pathlib
import subprocess
import sys

import pytest

from run_configs import TINY

ROOT = pathlib.Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
# A command that prints much, and then appends a line to a file.
PRINTING = """import logging, sys
from igpo_jax import cli
from igpo_jax.runtime import interrupts, streams
interrupts.install()
opened = open("opened", "w")
def main(_):
    if {log_only}:
        streams.use_as_log("stdout")
    for _ in range(2000):
        print("of stdout")
        cli.tell("of stderr")
        logging.warning("of a log")
        print("now", flush=True)
    assert not sys.stderr.isatty()
    opened.write("done")
cli.run_command(main, cli.parse_arguments)"""


def run(streams: str, *command: str, cwd: pathlib.Path) -> subprocess.CompletedProcess:
    """Runs a command of Python with redirections of a shell."""
    words = ["bash", "-c", f'exec "$@" {streams}', "bash", sys.executable, *command]
    return subprocess.run(words, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


def print_much(streams: str, cwd: pathlib.Path, log_only: bool = True) -> tuple[int, bool]:
    """Returns the exit status of a command that prints much, and whether it has finished its work."""
    done = run(streams, "-c", PRINTING.format(log_only=log_only), cwd=cwd)
    return done.returncode, (cwd / "opened").read_text() == "done"


@pytest.mark.parametrize("streams", ["2>&-", "<&- >&- 2>&-", ">&-", ">/dev/full", "2>/dev/full", "&>/dev/full", "1</dev/null"])
def test_a_command_whose_results_are_files_is_finished(streams, tmp_path):
    assert print_much(streams, tmp_path) == (0, True)


def test_results_that_cannot_be_printed_are_an_error(tmp_path):
    assert print_much(">/dev/full", tmp_path, log_only=False) == (1, False)
    for command in (["igpo_jax"], ["igpo_jax", "--version"], ["igpo_jax.report", "--help"], ["igpo_jax.doctor"]):
        done = run(">/dev/full", "-m", *command, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (1, "error: stdout cannot be written: No space left on device\n")
    assert print_much("2>/dev/full", tmp_path, log_only=False) == (0, True)


@pytest.mark.parametrize("log_only", [True, False])
def test_a_reader_that_ends_also_ends_the_command(log_only, tmp_path):
    assert print_much("> >(head -n 1 > /dev/null)", tmp_path, log_only) == (1, False)


def test_a_file_does_not_get_the_number_of_a_closed_stream(tmp_path):
    program = """import os, subprocess, sys
from igpo_jax.runtime import interrupts
interrupts.install()
with open("opened", "w"):
    os.write(2, b"of a library")
    subprocess.run([sys.executable, "-c", "import sys; sys.stderr.write('of a process')"], check=True)"""
    assert run("2>&-", "-c", program, cwd=tmp_path).returncode == 0
    assert (tmp_path / "opened").read_text() == ""


@pytest.mark.slow
@pytest.mark.parametrize("streams", ["<&- >&- 2>&-", "&>/dev/full"])
def test_a_run_outlives_its_log(streams, tmp_path):
    few = ["--config.sft.updates=20", "--config.rl.iterations=2"]
    command = ["-m", "igpo_jax.train", f"--config={TINY}", "--workdir=run", *few]
    assert run(streams, *command, cwd=tmp_path).returncode == 0
    assert (tmp_path / "run" / "result.json").is_file()
    assert run(">/dev/full", *command, "--json", cwd=tmp_path).returncode == 1  # the results could not be printed


def test_a_warning_is_logged_once(tmp_path):
    """orbax adds a handler to the root logger when it is imported, which absl removes only if it writes to sys.stderr."""
    program = """import logging
logging.basicConfig()
from igpo_jax import cli
cli.run_command(lambda _: logging.warning("of a log"), cli.parse_arguments)"""
    assert run("", "-c", program, cwd=tmp_path).stderr.count("of a log") == 1
