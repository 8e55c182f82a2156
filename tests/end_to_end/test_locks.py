"""A folder that is being written is refused by every command that would write it, and can be read by the others."""

import json
import os
import shutil

import pytest

from igpo_jax.runtime.locks import locked
from run_log import rows_so_far

PROBLEM = {"id": "p", "question": "1+1?", "answer": "2", "solution": "It is 2."}


@pytest.mark.slow
def test_a_second_start_changes_nothing(command, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns(".lock"))

    def content():
        return rows_so_far(run), sorted(path for path in run.rglob("*") if path.name != ".lock")

    before = content()
    with locked(run):
        done = command.train(run)
        assert done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr
        [line] = done.stderr.splitlines()
        assert line.startswith(f"error: {run} is being written by process {os.getpid()} on ")
        read = command("generate", f"--model={run}", "--prompt=5+5=")
        assert read.returncode == 0, read.stderr
    assert content() == before


@pytest.mark.parametrize("name", ["evaluate", "evaluate --regrade", "compare", "rewrite"])
def test_other_commands_that_write_a_folder(name, command, finished, tiny_config, tmp_path):
    (tmp_path / "texts.jsonl").write_text(json.dumps({"gold": "2", "text": "It is \\boxed{2}."}) + "\n")
    (tmp_path / "problems.jsonl").write_text(json.dumps(PROBLEM) + "\n")
    flags = {
        "evaluate": [f"--workdir={finished}"],
        "evaluate --regrade": [f"--regrade={tmp_path / 'texts.jsonl'}"],
        "compare": [f"--config={tiny_config}", "--arms=igpo", "--seeds=0"],
        "rewrite": [f"--problems=jsonl:{tmp_path / 'problems.jsonl'}", f"--tokenizer={finished / 'tokenizer.model'}"],
    }[name]
    output = tmp_path / "out"
    with locked(output):
        done = command(name.split()[0], *flags, f"--output={output}")
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert done.stderr.splitlines()[-1].startswith(f"error: {output} is being written by process {os.getpid()} on ")
        assert [path.name for path in output.iterdir()] == [".lock"]
