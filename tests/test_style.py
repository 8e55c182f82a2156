"""Lint rules and type hints, with the tools and settings of pyproject.toml."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize("command", [["ruff", "check", "."], pytest.param(["mypy"], marks=pytest.mark.slow)], ids=" ".join)
def test_the_code_passes(command):
    pytest.importorskip(command[0])
    cache = {"ruff": ["--no-cache"], "mypy": [f"--cache-dir={os.devnull}"]}[command[0]]
    done = subprocess.run([sys.executable, "-m", *command, *cache], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
