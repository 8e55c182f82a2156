"""Finds out how this copy of the package was installed."""

import pathlib

PACKAGE = pathlib.Path(__file__).parents[1]


def install_command(extras: str) -> str:
    """Returns the pip command that installs optional dependencies (extras), such as "data" or "cuda,report". The command for a
    clone of the repository differs from the command for an installed wheel, which has no setup.py."""
    is_clone = (PACKAGE.parent / "setup.py").is_file()
    return f'pip install -e ".[{extras}]" in the folder of the repository' if is_clone else f'pip install "igpo_jax[{extras}]"'
