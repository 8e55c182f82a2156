"""Returns commands and paths that depend on how this copy of the package was installed and from where it is called."""

import contextlib
import os
import pathlib
import shutil
import sys

PACKAGE = pathlib.Path(__file__).parents[1]
# Program that runs the module in its first argument, as igpo does if a flag names code in the working folder.
SEARCH_HERE_LAST = """import os, runpy, sys
sys.path.append(os.getcwd())
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)"""

# Program that asks Linux to end this process with SIGTERM when its parent ends, and then becomes the command in its arguments.
END_WITH_PARENT = """import ctypes, os, signal, sys
PR_SET_PDEATHSIG, prctl = 1, getattr(ctypes.CDLL(None), "prctl", None)
if prctl:
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
if os.getppid() == int(sys.argv[1]):  # otherwise, the parent has already ended
    os.execvp(sys.argv[2], sys.argv[2:])"""


def working_folder() -> str:
    """Returns the path of the working folder. Raises ValueError if there is no such folder, because it was deleted."""
    try:
        return os.getcwd()
    except OSError as error:
        raise ValueError(f"the working folder cannot be used: {error.strerror}; change to another folder") from None


def path_from_here(path: pathlib.Path) -> pathlib.Path:
    """Returns an absolute path relative to the working folder if the path is inside this folder. Otherwise, and if the working
    folder was deleted, returns the path."""
    with contextlib.suppress(FileNotFoundError):
        here = pathlib.Path.cwd()
        return path.relative_to(here) if path.is_relative_to(here) else path
    return path


def python_command(module: str) -> list[str]:
    """Returns the command that runs a module of this package in a new process. The new process imports modules from the working
    folder only if the calling process does, and likewise before or after all other folders. Raises ValueError if there is no
    working folder."""
    here = working_folder()
    if sys.path[0] in ("", here):
        return [sys.executable, "-m", module]
    return [sys.executable, "-P", *(["-c", SEARCH_HERE_LAST] if here in sys.path else ["-m"]), module]


def ending_with_parent(command: list[str]) -> list[str]:
    """Returns a command that does the same as `command`, and that Linux ends with SIGTERM when the calling thread ends, even if
    this process is killed."""
    return [sys.executable, "-I", "-c", END_WITH_PARENT, str(os.getpid()), *command]


def command_igpo() -> str:
    """Returns the name or path by which the command igpo of this installation can be called in the working folder."""
    script = pathlib.Path(sys.executable).with_name("igpo")
    if shutil.which("igpo") or not script.is_file():
        return "igpo"
    return str(path_from_here(script))


def install_command(extras: str) -> str:
    """Returns the pip command that installs optional dependencies (extras), such as "data" or "cuda,report". In a clone of the
    repository, which is recognized by its setup.py, the command installs the package from the clone."""
    is_clone = (PACKAGE.parent / "setup.py").is_file()
    return f'pip install -e ".[{extras}]" in the folder of the repository' if is_clone else f'pip install "igpo_jax[{extras}]"'
