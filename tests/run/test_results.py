"""The lines of text that a run prints at its end."""

import sys

import pytest

from igpo_jax.run.results import result_lines, shown_path
from igpo_jax.runtime.installation import command_igpo, python_command

BEFORE, AFTER = ({"accuracy": share, "interval95": [share - 0.01, share + 0.01], "problems": 1000} for share in (0.02, 0.5))
EDGES = {
    "rl_start": {"all_wrong_groups": 1.0, "rescue_rate": 0.75, "rollouts": 4},
    "rl_end": {"all_wrong_groups": 0.25, "rescue_rate": None},
}
SECONDS = {"wall_seconds": {"sft": 130.0, "rl": 17.0}}


@pytest.mark.parametrize(
    "result, expected",
    [
        (
            {"after_sft": BEFORE, "before_rl": BEFORE, "after_rl": AFTER, **EDGES, **SECONDS},
            [
                "accuracy on 1,000 test problems: 2.0% -> 50.0% (95% interval 49.0 to 51.0)",
                "all-wrong groups of the first and last 4 rollouts: 100.0% -> 25.0%; hints rescued 75.0% of the first ones",
                "time: supervised stage 2 min, RL 17 s",
            ],
        ),
        (
            {"after_sft": AFTER, "before_rl": None, "after_rl": None, "heldout_loss": {"first": 2.5, "last": 0.25}, **SECONDS},
            [
                "accuracy on 1,000 test problems: after the supervised stage 50.0% (95% interval 49.0 to 51.0)",
                "held-out loss: 2.500 -> 0.250",
                "time: supervised stage 2 min, RL 17 s",
            ],
        ),
        (
            {
                "rl_start": {"all_wrong_groups": 0.5, "rescue_rate": None, "rollouts": 2},
                "rl_end": {"all_wrong_groups": 0.5, "rescue_rate": None},
                "wall_seconds": {"sft": 0.0, "rl": 7260.0},
            },
            ["all-wrong groups of the first and last 2 rollouts: 50.0% -> 50.0%", "time: RL 2 h 01 min"],
        ),
        (
            {"rl_start": {"all_wrong_groups": None, "rescue_rate": None}, "rl_end": {"all_wrong_groups": None}, **SECONDS},
            ["time: supervised stage 2 min, RL 17 s"],
        ),
        ({"wall_seconds": {"sft": 0.0, "rl": 0.0}}, ["time: no update"]),
    ],
)
def test_the_main_numbers_of_a_run(result, expected):
    assert result_lines(result) == expected


def test_the_last_lines_of_a_run_need_no_working_folder(tmp_path, monkeypatch):
    """It may have been deleted during the run."""
    script = tmp_path / "bin" / "igpo"
    script.parent.mkdir()
    script.touch()
    monkeypatch.setattr(sys, "executable", str(script.with_name("python")))
    monkeypatch.setenv("PATH", "")
    monkeypatch.chdir(tmp_path)
    assert (shown_path(tmp_path / "run"), command_igpo()) == ("run", "bin/igpo")
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert (shown_path(tmp_path / "run"), command_igpo()) == (str(tmp_path / "run"), str(script))
    with pytest.raises(ValueError, match="the working folder cannot be used: No such file or directory; change to another"):
        python_command("igpo_jax.train")
