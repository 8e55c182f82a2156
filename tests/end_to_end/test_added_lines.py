"""Lines that were added to the logs of a run, such as those of another run, are refused before they count as the run's own."""

import json
import pathlib
import shutil

import pytest

from damaged_runs import change_lines, refusal, remove
from igpo_jax.compare.numbers import read_run_numbers
from igpo_jax.report.page import write_report
from igpo_jax.run.metrics import LOGS, read_rows
from igpo_jax.run.missing_files import check_logs

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")


@pytest.mark.parametrize("log", LOGS)
@pytest.mark.parametrize("added", ["same", "line", "part"])
def test_lines_that_were_added_to_a_finished_run_are_noticed(added, log, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    size, lines = (run / log).stat().st_size, (run / log).read_text("utf-8").splitlines(keepends=True)
    tail = {"same": "".join(lines), "line": lines[-1].replace('"step": 212', '"step": 214'), "part": lines[-1][:9]}[added]
    with (run / log).open("a", encoding="utf-8") as file:
        file.write(tail)
    told = f"{run / log} has lines after its first {size} bytes, which were added since the run finished; restore it from"
    for read in (write_report, read_run_numbers):
        with pytest.raises(ValueError, match=told):
            read(run)
    message = refusal(run)
    assert message.startswith(told) or (added == "same" and f"{run / log}:{len(lines) + 1}: step " in message)


def add_line(run: pathlib.Path, log: str, **values) -> None:
    """Repeats the last line of a log with other values."""
    rows = read_rows(run / log)
    with (run / log).open("a", encoding="utf-8") as file:
        file.write(json.dumps(rows[-1] | values) + "\n")


ADDED = {
    "rollouts.jsonl": {"step": 210},
    "metrics.jsonl": {"step": 201, "stage": "sft"},
    "evaluations.jsonl": {"step": 209, "stage": "rl"},
}


@pytest.mark.parametrize("log", LOGS)
def test_lines_of_another_run_are_noticed_when_an_unfinished_run_continues(log, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    remove("checkpoints/rl/6", "result.json")(run)
    given = (run, run / "checkpoints/rl/5", 210, ("sft", "rl"))
    check_logs(*given)  # lines of update 212 are cut
    for name in LOGS:
        change_lines(name, lambda lines: [line for line in lines if json.loads(line)["step"] <= 210])(run)
    add_line(run, log, **ADDED[log])
    number, step = len(read_rows(run / log)), ADDED[log]["step"]
    message = refusal(run)
    foreign = (
        f"{run / log}:{number}: step {step} of the stage {ADDED[log].get('stage', 'rl')} is not of this run, which continues "
    )
    assert message.startswith(f"{foreign}from step 210; remove this line, or give --accept_loss")
    change_lines(log, lambda lines: lines[:-1])(run)
    add_line(run, log, step=300)
    check_logs(*given)
    with pytest.raises(ValueError, match=f"{log}:{number}: step 300 of the stage rl is not of this run"):
        check_logs(*given[:3], ("sft",))


def test_lines_of_another_run_are_noticed_when_a_run_starts_again(tmp_path):
    (tmp_path / "evaluations.jsonl").write_text('{"step": 0, "stage": "rl", "correct": [1]}\n')
    check_logs(tmp_path, None, 0, ("rl",))
    with pytest.raises(ValueError, match="evaluations.jsonl:1: step 0 of the stage rl is not of this run"):
        check_logs(tmp_path, None, 0, ("sft",))
