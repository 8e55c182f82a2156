"""Commands that are started in new processes."""

import subprocess
import sys

import pytest

from igpo_jax.runtime.installation import ending_with_parent


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")
def test_a_process_of_a_thread_ends_with_a_killed_parent():
    begin = "from igpo_jax.runtime.installation import ending_with_parent; import subprocess, threading"
    child = "import time; print('child runs', flush=True); time.sleep(600)"
    script = f"""{begin}
command = ending_with_parent(["python", "-c", {child!r}])
threading.Thread(target=lambda: subprocess.run(command, process_group=0)).start()
"""
    parent = subprocess.Popen([sys.executable, "-c", script.replace('"python"', repr(sys.executable))], stdout=subprocess.PIPE)
    assert parent.stdout.readline() == b"child runs\n" and parent.poll() is None
    parent.kill()
    assert parent.communicate(timeout=60)[0] == b""  # the pipe ends with the last of its writers


def test_a_process_that_ends_with_its_parent_has_the_arguments_and_the_status_of_its_command():
    command = [sys.executable, "-c", "import sys; sys.exit(' '.join(sys.argv[1:]))", "-a", "b c"]
    done = subprocess.run(ending_with_parent(command), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "-a b c\n")
    killed = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    assert subprocess.run(ending_with_parent(killed)).returncode == -9


def test_a_process_whose_parent_has_already_ended_does_not_begin():
    command = ending_with_parent([sys.executable, "-c", "print('runs')"])
    command[4] = "999999999"
    assert subprocess.run(command, capture_output=True).stdout == b""
