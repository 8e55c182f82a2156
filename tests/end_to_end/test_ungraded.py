"""A run whose reward function fails stops with one clear error on all processes, and continues after the repair."""

import pytest

from igpo_jax.run.metrics import read_rows
from processes import ends, start
from run_log import untimed

# Fails on RL problems, which have a trace, after 100 answers, as long as the file `broken` exists.
FICKLE = """import pathlib
import zlib

HERE = pathlib.Path(__file__).parent


def reward(problem, text):
    if problem.trace and (HERE / "broken").exists():
        with (HERE / "calls").open("a") as file:
            file.write("x")
        if (HERE / "calls").stat().st_size > 100:
            return float("nan")
    return (1.0, 0.5, 0.0, 0.0)[zlib.crc32((problem.answer + text).encode()) % 4]
"""
FLAGS = (
    "--config.reward.function=fickle:reward",
    "--config.sft.updates=20",
    "--config.sft.eval_every=0",
    "--config.rl.group_size=4",
)
FLAGS += ("--config.rl.checkpoint_every=1000", "--config.rl.eval_every=0", "--config.rl.iterations=4")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_without_verdicts_stops_and_nothing_is_lost(tmp_path, processes):
    (tmp_path / "fickle.py").write_text(FICKLE)

    def train(name):
        return ends(
            start(processes, 2 // processes, *[[f"--workdir={tmp_path / name}", *FLAGS]] * processes, folder=tmp_path), tmp_path
        )

    assert train("undisturbed")[0] == [0] * processes
    (tmp_path / "broken").touch()
    codes, printed = train("run")
    assert codes == [1] * processes, printed
    for text in printed:
        (error,) = (line for line in text.splitlines() if line.startswith("error: ") and "got no verdict" in line)
        assert "timeouts: 0, errors: " in error and "Example of an error: problem '" in error, error
        assert "the function returned nan" in error and "repair the reward function (reward.max_ungraded=0.2)" in error
    last = max(int(path.name) for path in (tmp_path / "run/checkpoints/rl").iterdir() if path.name.isdigit())
    assert 0 < last < 4 and f"continues the run from {tmp_path / 'run/checkpoints/rl' / str(last)}" in error
    (tmp_path / "broken").unlink()
    assert train("run")[0] == [0] * processes
    assert untimed(tmp_path / "run") == untimed(tmp_path / "undisturbed")
    assert {row["grading/broken"] for row in read_rows(tmp_path / "run/metrics.jsonl") if "grading/broken" in row} == {0}
