"""Signals end a process with one line, whatever it is doing. Only the standard library is needed, so processes start quickly."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SIGNALS = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)
COMMANDS = "train evaluate compare rewrite generate convert plan report playground inspect_data doctor".split()
INSTALLED = "import hashlib, subprocess, sys, time\nfrom igpo_jax.runtime import interrupts\ninterrupts.install('stopped')\n"
WATCHED = f"{INSTALLED}interrupts.watch()\nsys.stdout.write('last words')\n"
WORK = {
    "while it imports": f"{INSTALLED}print('ready', file=sys.stderr, flush=True)\nwhile True: pass",
    "in Python": f"{WATCHED}print('ready', file=sys.stderr, flush=True)\nwhile True: pass",
    # A long call of a library in C, as a compilation: no handler in Python runs before its end.
    "in C": f"{WATCHED}print('ready', file=sys.stderr, flush=True)\nhashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)",
    "while it waits": f"{WATCHED}print('ready', file=sys.stderr, flush=True)\nsubprocess.run(['sleep', '7'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)",
    "in another thread": f"{WATCHED}print('ready', file=sys.stderr, flush=True)\n"
    "import threading\nthreading.Thread(target=time.sleep, args=(60,)).start()",
}
ENDING = f"""{WATCHED}
with interrupts.before_end(lambda: {{}}):
    print('ready', file=sys.stderr, flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def as_in_a_terminal():
    """Does not let processes inherit that SIGHUP is ignored, as under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def start(program: str) -> subprocess.Popen:
    """Starts a program and waits until it writes "ready"."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    process = subprocess.Popen([sys.executable, "-c", program], **pipes)
    assert process.stderr.readline() == "ready\n"
    time.sleep(0.05)
    return process


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("work", WORK)
def test_a_signal_ends_it_with_one_line(work, number):
    process = start(WORK[work])
    process.send_signal(number)
    out, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (128 + number, "stopped\n")
    assert out == ("" if work == "while it imports" else "last words")


def test_a_second_signal_does_not_wait_but_a_repeated_one_counts_once():
    process = start(ENDING.format("time.sleep(60)"))
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal and a launcher deliver the same ^C
        process.send_signal(number)
        time.sleep(0.01)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.0)
    process.send_signal(signal.SIGHUP)
    assert process.communicate(timeout=10)[1] == "stopped\n" and process.returncode == 129


def test_what_is_done_before_the_end():
    process = start(ENDING.format("print('cleaned', file=sys.stderr, flush=True)"))
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=10)[1] == "cleaned\nstopped\n" and process.returncode == 143


def test_a_reader_that_does_not_read_does_not_keep_it():
    process = start(f"{WATCHED}print('ready', file=sys.stderr, flush=True)\nprint('x' * 10**6)")
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    process.communicate()


def test_other_signals_do_not_end_it():
    program = f"{WATCHED}import signal\nsignal.signal(signal.SIGUSR1, lambda *_: print('heard', file=sys.stderr, flush=True))\n"
    process = start(f"{program}print('ready', file=sys.stderr, flush=True)\nwhile True: time.sleep(0.01)")
    process.send_signal(signal.SIGUSR1)
    assert process.stderr.readline() == "heard\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=10)[1] == "stopped\n"


def test_what_is_complete_ends_as_such():
    """The interpreter's shutdown is slow if many modules are loaded."""
    slow = (
        "import os\nclass Slow:\n    def __del__(self, write=os.write, now=time.monotonic):\n"
        "        write(2, b'ready\\n')\n        end = now() + 1\n        while now() < end: pass\nslow = Slow()\n"
    )
    process = start(WATCHED + slow)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=10) == ("last words", "") and process.returncode == 0


def test_a_library_that_takes_the_signals_away_does_not_keep_it():
    process = start(
        f"{WATCHED}import signal\nsignal.set_wakeup_fd(-1)\nprint('ready', file=sys.stderr, flush=True)\ntime.sleep(60)"
    )
    process.send_signal(signal.SIGHUP)
    assert process.communicate(timeout=10)[1] == "stopped\n" and process.returncode == 129


def test_nohup_is_respected_and_the_background_job_of_a_shell_hears_an_interrupt():
    ignored = "import signal\nfor name in ('SIGHUP', 'SIGINT'): signal.signal(getattr(signal, name), signal.SIG_IGN)\n"
    process = start(ignored + WORK["in Python"])
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=10)[1] == "stopped\n" and process.returncode == 130


def test_the_line_begins_after_an_open_progress_bar():
    bar = "from tqdm import tqdm\nbar = tqdm(total=3, desc='grading', mininterval=0)\nbar.update()\n"
    process = start(f"{WATCHED}print('ready', file=sys.stderr, flush=True)\n{bar}while True: time.sleep(0.01)")
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=10)[1]
    assert "grading" in errors and errors.splitlines()[-1] == "stopped"


def handled(pid: int) -> bool:
    """Returns whether a process has handlers for all signals."""
    caught = pathlib.Path(f"/proc/{pid}/status").read_text().partition("SigCgt:")[2].split()[0]
    return all(int(caught, 16) >> (number - 1) & 1 for number in SIGNALS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_ends_with_one_line_while_it_imports(name, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen([sys.executable, "-m", f"igpo_jax.{name}"], cwd=tmp_path, env=environment, **pipes)
    while process.poll() is None and not handled(process.pid):
        time.sleep(0.001)
    number = SIGNALS[COMMANDS.index(name) % 3]
    process.send_signal(number)
    printed = process.communicate(timeout=30)[0]
    assert process.returncode == (0 if (name, number) == ("train", signal.SIGTERM) else 128 + number)
    assert printed.count("\n") == 1 and printed.startswith(("interrupted", "stopped by a signal"))
