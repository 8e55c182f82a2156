"""A folder has one writer, and its lock ends with this writer. Only the standard library is needed, so processes start quickly."""

import errno
import fcntl
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys

import pytest

from igpo_jax.runtime import locks
from igpo_jax.runtime.locks import locked

ROOT = pathlib.Path(__file__).parents[2]
HOLD = """
import subprocess, sys, time
from igpo_jax.runtime.locks import locked
with locked(sys.argv[1]):
    child = subprocess.Popen(["sleep", "60"])
    print(child.pid, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of tmp_path/run, and has a child."""
    program = [sys.executable, "-c", HOLD, str(tmp_path / "run"), "http://name:secret@host/v1"]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    process.child = int(process.stdout.readline())
    yield process
    process.kill()
    os.kill(process.child, signal.SIGKILL)
    process.communicate()


def take(folder) -> None:
    with locked(folder):
        pass


def test_the_second_writer_is_told_who_the_first_is_and_a_dead_one_holds_nothing(tmp_path, holder):
    with pytest.raises(ValueError) as raised:
        take(tmp_path / "run")
    told = re.escape(f"{tmp_path / 'run'} is being written by process {holder.pid} on {socket.gethostname()}, started ")
    assert re.match(told + r"20\d\d-\S+: .*http://host/v1; wait until it ends", str(raised.value))  # without the password
    holder.kill()
    holder.wait()
    assert pathlib.Path(f"/proc/{holder.child}").exists()
    assert (tmp_path / "run" / ".lock").exists()
    take(tmp_path / "run")
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


def test_it_leaves_nothing_but_what_was_written(tmp_path):
    with locked(tmp_path / "a" / "b"):
        assert json.loads((tmp_path / "a/b/.lock").read_text())["pid"] == os.getpid()
    assert not (tmp_path / "a").exists()
    with locked(tmp_path / "a"):
        (tmp_path / "a" / "file").touch()
    (tmp_path / "empty").mkdir()
    take(tmp_path / "empty")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "empty", "file"]


def test_of_many_writers_at_the_same_time_one_works(tmp_path):
    program = """
import pathlib, sys, time
from igpo_jax.runtime.locks import locked
folder, turns, end = pathlib.Path(sys.argv[1]), 0, time.monotonic() + 1.5
while time.monotonic() < end:
    try:
        with locked(folder):
            (folder / "inside").open("x").close()  # fails if another process is inside
            turns += 1
            (folder / "inside").unlink()
    except ValueError:
        pass
print(turns)
"""
    argv = [sys.executable, "-c", program, str(tmp_path / "run")]
    processes = [subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    turns = [int(process.communicate()[0]) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4 and sum(turns) > 10


@pytest.fixture
def without_locks(monkeypatch, tmp_path):
    """A file system without locks. Returns a function that writes the lock file of another process."""

    def lockf(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", lockf)
    other = locks.this_process()
    return lambda **holder: (tmp_path / ".lock").write_text(json.dumps(other | holder))


def test_without_locks_the_host_and_the_process_decide(without_locks, tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    without_locks(pid=ended.pid)
    take(tmp_path)
    without_locks(pid=os.getppid())
    with pytest.raises(ValueError, match=f"process {os.getppid()} on .*if it has ended, delete {tmp_path / '.lock'}"):
        take(tmp_path)
    without_locks(pid=ended.pid, host="another-host")
    with pytest.raises(ValueError, match=f"process {ended.pid} on another-host.* delete {tmp_path / '.lock'}"):
        take(tmp_path)
    without_locks(pid=10**30)  # of a stranger
    with pytest.raises(ValueError, match=f"process {10**30} on .*if it has ended, delete {tmp_path / '.lock'}"):
        take(tmp_path)
    (tmp_path / ".lock").write_text("")  # its writer has died before it could say who it is
    take(tmp_path)


OWN = {"host": "a", "pid": 1, "started": "today", "command": "train"}
FOREIGN = ["mine", "\n", "[]", '{"host": "a", "pid": 1}', json.dumps(OWN)[:-1], "x" * (1 << 20)]


@pytest.mark.parametrize("content", [*FOREIGN, *(json.dumps(OWN | {"pid": pid}) for pid in ("1", None, 1.5))])
def test_a_file_of_another_program_is_not_replaced(content, tmp_path):
    (tmp_path / ".lock").write_text(content)
    with pytest.raises(ValueError, match=f"^{tmp_path / '.lock'} is no lock of igpo_jax, and would be replaced by one; move"):
        take(tmp_path)
    assert (tmp_path / ".lock").read_text() == content
    (tmp_path / ".lock").write_text(json.dumps(OWN))  # of a process that was killed
    take(tmp_path)
    assert not (tmp_path / ".lock").exists()


def test_other_errors_of_the_file_system_are_not_hidden(monkeypatch, tmp_path):
    def lockf(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(locks.fcntl, "lockf", lockf)
    with pytest.raises(OSError, match="Input/output"):
        take(tmp_path)
    with pytest.raises(ValueError, match="gs://bucket/run is not a local folder; give one"):
        take("gs://bucket/run")
