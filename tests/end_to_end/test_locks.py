"""A folder that is being written is refused by every command that would write it, and can be read by the others."""

import json
import os

import pytest

from igpo_jax.runtime.locks import locked
from run_log import rows_so_far

PROBLEM = {"id": "p", "question": "1+1?", "answer": "2", "solution": "It is 2."}


def test_a_second_start_changes_nothing(command, finished):
    def content():
        """A command that another test killed may have left a lock."""
        return rows_so_far(finished), sorted(path for path in finished.rglob("*") if path.name != ".lock")

    before = content()
    with locked(finished):
        done = command.train(finished)
        assert done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr
        [line] = done.stderr.splitlines()
        assert line.startswith(f"error: {finished} is being written by process {os.getpid()} on ")
        read = command("generate", f"--model={finished}", "--prompt=5+5=")
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
