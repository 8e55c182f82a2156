"""python -m igpo_jax.playground: startup and shutdown."""

import json
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from processes import free_port


@pytest.mark.slow
def test_it_begins_with_a_runs_own_decoding_and_a_problem_and_ends_when_told(command, finished):
    port = free_port()
    program = [sys.executable, "-m", "igpo_jax.playground", f"--model={finished}", f"--port={port}"]
    with subprocess.Popen(program, env=command._env, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = server.stdout.readline().strip()
            assert address == f"http://127.0.0.1:{port}/"
            with urllib.request.urlopen(f"{address}info") as told:
                begin_with = json.load(told)["begin_with"]
            lengths = {name: begin_with[name] for name in ("completion_length", "block_length", "steps")}
            assert lengths == {"completion_length": 16, "block_length": 8, "steps": 8}
            assert begin_with["prompt"] and "[MASK:" in begin_with["template"] and not begin_with["chat"]
            second = command("playground", *program[3:])
            assert second.returncode == 1
            assert second.stderr.splitlines()[-1].startswith(f"error: --host=127.0.0.1 --port={port}: Address already in use")
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 143
        finally:
            server.kill()


def test_a_folder_without_a_model_is_one_error(command, tmp_path):
    done = command("playground", f"--model={tmp_path}")
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error: ") and not done.stdout


def test_a_port_in_use_is_one_error_before_jax_is_imported(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        flags = [f"--model={tmp_path}", f"--port={taken.getsockname()[1]}"]
        code = "import runpy, sys; sys.modules['jax'] = None; runpy.run_module('igpo_jax.playground', run_name='__main__')"
        done = subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, text=True)
        told = f"error: --host=127.0.0.1 {flags[1]}: Address already in use; give another port\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", told)
