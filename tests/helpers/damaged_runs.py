"""Removes and changes files in the folder of a finished run, and continues the run."""

import pathlib
import shutil
from collections.abc import Callable

import jax
import pytest

from igpo_jax.run.checkpoint import Checkpoints
from igpo_jax.run.experiment import open_experiment
from igpo_jax.stages.rl import run_rl
from igpo_jax.stages.sft import run_sft
from run_configs import contents, tiny


def resume(workdir: pathlib.Path, accept_loss: bool = False, **changes) -> None:
    """Does what the same command would do."""
    experiment = open_experiment(tiny(**changes), workdir, accept_loss)
    with jax.set_mesh(experiment.mesh):
        with Checkpoints(workdir / "checkpoints/sft", keep=3, identity=experiment.identity("sft")) as saved:
            start = run_sft(experiment, saved, lambda: False)
        if experiment.config.rl.iterations:
            with Checkpoints(workdir / "checkpoints/rl", keep=3, identity=experiment.identity("rl"), best=True) as saved:
                run_rl(experiment, start, saved, lambda: False)


def refusal(workdir: pathlib.Path, **changes) -> str:
    """Asserts that the run does not continue and that its folder does not change; returns the message."""
    before = contents(workdir)
    with pytest.raises(ValueError) as raised:
        resume(workdir, **changes)
    assert contents(workdir) == before
    message = str(raised.value)
    assert "\n" not in message
    return message


def remove(*names: str) -> Callable[[pathlib.Path], None]:
    def removing(run: pathlib.Path) -> None:
        for name in names:
            shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()

    return removing


def change_lines(name: str, change: Callable[[list[str]], list[str]]) -> Callable[[pathlib.Path], None]:
    def changing(run: pathlib.Path) -> None:
        lines = (run / name).read_text("utf-8").splitlines(keepends=True)
        assert change(lines) != lines
        (run / name).write_text("".join(change(lines)), "utf-8")

    return changing
