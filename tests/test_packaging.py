"""The wheel has everything that the commands need, and they work without the repository, in any folder."""

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile

import absl
import pytest

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.py"))
pytestmark = pytest.mark.skipif(
    not (importlib.util.find_spec("pip") and importlib.util.find_spec("setuptools")), reason="needs pip and setuptools"
)


def pip(*arguments, cwd=None) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the repository's files that packaging may need."""
    folder = tmp_path_factory.mktemp("source")
    for path in ROOT.iterdir():
        if path.name in ("igpo_jax", "configs", "launch", "docs"):
            shutil.copytree(path, folder / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif path.is_file():
            shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, source)
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("installed")
    pip("install", "--no-deps", "--no-index", "--no-compile", "--target", folder, wheel)
    return folder


def run(installed, code_or_module, *arguments, cwd):
    """Runs Python in `cwd` with the installed package, not with the repository."""
    environment = os.environ | {"PYTHONPATH": str(installed), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, code_or_module[0], code_or_module[1], *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_wheel_has_all_files_of_the_package_and_the_configurations(wheel):
    in_package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "igpo_jax").rglob("*") if path.is_file()}
    expected = {name for name in in_package if "__pycache__" not in name} | {f"igpo_jax/configs/{name}" for name in CONFIGS}
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert {name for name in expected if not name.endswith(".py")} >= {
        "igpo_jax/grading/words.txt",
        "igpo_jax/report/page.html",
    }


@pytest.mark.slow
def test_the_source_distribution_makes_the_same_wheel(source, wheel, tmp_path):
    build = [sys.executable, "setup.py", "-q", "sdist", "--dist-dir", str(tmp_path)]
    done = subprocess.run(build, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    names = {name.partition("/")[2] for name in tarfile.open(archive).getnames()}
    assert {f"configs/{name}" for name in CONFIGS} | {"BUILD.md", "LICENSE", "launch/local.sh"} <= names
    assert not any(name.endswith(".pyc") for name in names)
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", tmp_path, archive)
    (again,) = tmp_path.glob("*.whl")
    assert set(zipfile.ZipFile(again).namelist()) == set(zipfile.ZipFile(wheel).namelist())


@pytest.mark.slow
def test_an_installed_wheel_finds_the_configurations_from_any_folder(installed, tmp_path):
    program = """
import math, sys
import igpo_jax
from igpo_jax import cli, config, key_help
from igpo_jax.runtime.installation import install_command
print(igpo_jax.__file__)
for name in sys.argv[1:]:
    path = cli.resolve_config_path(name)
    print(path)
    loaded = cli.load_config(path)
    assert all(meaning for key, value, meaning in key_help.describe(loaded))
    if "sft" in loaded:
        config.parse(loaded)
assert math.pi and not any(path.endswith("configs") for path in sys.path)
try:
    cli.resolve_config_path("algebra.py")
except ValueError as error:
    print(error)
print(install_command("data"))
"""
    (installed / "configs").mkdir()  # another package's; it must not be taken for this package's
    (installed / "configs" / "arithmetic.py").write_text("wrong")
    done = run(installed, ("-c", program), *CONFIGS, cwd=tmp_path)
    package, *paths, error, install = done.stdout.splitlines()
    assert package == str(installed / "igpo_jax" / "__init__.py"), done.stderr
    assert paths == [str(installed / "igpo_jax" / "configs" / name) for name in CONFIGS]
    assert error.endswith(f"there are: {', '.join(CONFIGS)}")
    assert install == 'pip install "igpo_jax[data]"'


@pytest.fixture(scope="module")
def editable(source, tmp_path_factory):
    """The site-packages of an editable installation of `source`."""
    folder = tmp_path_factory.mktemp("editable")
    build = "import sys; from setuptools import build_meta; print(build_meta.build_editable(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", build, str(folder)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def run_in_editable(editable, program: str, cwd) -> subprocess.CompletedProcess:
    """Runs a program in `cwd` without the site-packages of this interpreter (-S), which may have an editable install, too."""
    start = "import site, sys; site.addsitedir(sys.argv[1]); sys.path.append(sys.argv[2]); "
    command = [sys.executable, "-S", "-c", start + program, str(editable), str(pathlib.Path(absl.__file__).parents[1])]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def test_an_editable_install_uses_the_configurations_of_the_repository(source, editable, tmp_path):
    program = "from igpo_jax import cli; import math; "
    program += "print(cli.resolve_config_path('math.py'), any(path.endswith('configs') for path in sys.path), math.pi > 3)"
    done = run_in_editable(editable, program, tmp_path)
    assert done.stdout == f"{source / 'configs' / 'math.py'} False True\n", done.stderr


def test_beside_a_clone_called_igpo_jax_the_package_is_imported_and_not_the_clone(source, editable, tmp_path):
    """Python, started in the folder that holds the clone, finds the clone's folder first, as a namespace package."""
    (tmp_path / "igpo_jax").symlink_to(source)
    done = run_in_editable(editable, "import igpo_jax; print(igpo_jax.__file__)", tmp_path)
    assert done.stdout == f"{source / 'igpo_jax' / '__init__.py'}\n", done.stderr


COMMANDS = {"plan": "math.py", "compare": "words.py", "evaluate": "evaluate_math.py", "inspect_data": "gsm8k.py:smoke"}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_an_installed_wheel_read_the_configurations(command, installed, tmp_path):
    done = run(installed, ("-m", f"igpo_jax.{command}"), f"--config={COMMANDS[command]}", "--config.zzz=1", cwd=tmp_path)
    assert done.stderr.startswith("error: --config.zzz=1: there is no such key; "), done.stderr


@pytest.mark.slow
def test_a_run_of_an_installed_wheel_needs_no_repository(installed, tmp_path):
    few = ["--config.task.sft_problems=64", "--config.task.rl_problems=8", "--config.task.test_problems=8"]
    few += ["--config.sft.batch_size=8", "--config.sft.updates=1", "--config.sft.heldout=8", "--config.rl.iterations=0"]
    few += ["--config.evaluation.problems=8", "--config.evaluation.batch_size=8"]
    done = run(installed, ("-m", "igpo_jax.train"), "--config=arithmetic.py", *few, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "arithmetic" / "result.json").is_file()
