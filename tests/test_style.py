"""Lint rules and type hints, with the tools and settings of pyproject.toml, and the files of an installation."""

import ast
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


def test_every_data_file_of_the_package_is_installed():
    """An installation that is not editable has only the files that setup.py names."""
    calls = [node for node in ast.walk(ast.parse((ROOT / "setup.py").read_text())) if isinstance(node, ast.keyword)]
    [named] = [ast.literal_eval(call.value) for call in calls if call.arg == "package_data"]
    installed = {ROOT.joinpath(*package.split("."), name) for package, names in named.items() for name in names}
    files = {file for file in (ROOT / "igpo_jax").rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc")}
    assert files == installed


def test_files_and_functions_are_small():
    large = []
    for file in sorted((ROOT / "igpo_jax").rglob("*.py")):
        lines = len(file.read_text().splitlines())
        large += [f"{file}: {lines} lines"] * (lines > 450)
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef):
                place, size = f"{file}:{node.lineno}, {node.name}", node.end_lineno - node.lineno + 1
                names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                wide = len([name for name in names if name not in ("self", "cls")])
                large += [f"{place}: {size} lines"] * (size > 80) + [f"{place}: {wide} parameters"] * (wide > 8)
    assert not large


def test_tests_import_no_command_that_has_the_flag_config():
    """A pytest process imports all test modules, and the commands define the same flags when they are imported."""
    files = [file for file in (ROOT / "igpo_jax").glob("*.py") if "\nCONFIG = define_config(" in file.read_text()]
    names = {f"igpo_jax.{file.stem}" for file in files}
    imported = set()
    for file in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ImportFrom):
                imported |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)} & names
    assert {"igpo_jax.train", "igpo_jax.inspect_data"} <= names and not imported
