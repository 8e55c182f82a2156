"""The math recipe at small size: a LLaDA folder, public data formats, every stage, kills."""

import json
import os
import pathlib
import re
import shutil
import time

import pyarrow
import pyarrow.parquet
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from igpo_jax.data.buckets import read_lengths
from igpo_jax.run.metrics import read_rows
from processes import LIMIT, ends, start, word_problems
from run_log import rows_so_far, untimed
from tokenizer_files import write_tokenizer

WEIGHTS = pathlib.Path(__file__).parents[1] / "model" / "fixtures" / "llada_tiny" / "bf16_sharded"
PROBLEMS, TESTED = 60, 8
DEVICES = 2  # total over all processes of a run
SHORT = ("completion_length=128", "steps=4")


def write_data(folder: pathlib.Path) -> None:
    """Writes the same word problems as a MetaMathQA array, an OpenR1 Parquet file and an OpenR1 ArrayRecord file."""
    word_problems(folder / "gsm8k.jsonl", PROBLEMS)
    rows = [json.loads(line) for line in (folder / "gsm8k.jsonl").read_text().splitlines()]
    metamath, openr1 = [], []
    for number, row in enumerate(rows):
        solution, _, answer = row["answer"].rpartition("\n#### ")
        asked = {"type": "GSM_AnsAug", "query": row["question"], "response": f"{row['answer']}\nThe answer is: {answer}"}
        metamath += [asked, asked | {"type": "GSM_SV"}] + ([asked] if number % 10 == 0 else [])
        right, wrong = (f"<think>{solution}</think>So \\boxed{{{stated}}}." for stated in (answer, "-1"))
        marks = {"generations": [wrong, right + " Yes.", right], "correctness_math_verify": [False, True, True]}
        openr1.append({"uuid": f"r1-{number}", "problem": row["question"], "answer": answer} | marks)
    openr1[0]["correctness_math_verify"] = [False] * 3
    (folder / "MetaMathQA.json").write_text(json.dumps(metamath))
    tested = [{"problem": f"{row['question']}\n", "answer": "1"} for row in rows[:TESTED]]  # the runs drop these from training
    (folder / "test.json").write_text(json.dumps(tested))
    half = len(openr1) // 2
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(openr1[:half]), folder / "openr1.parquet")
    writer = ArrayRecordWriter(str(folder / "openr1.array_record"), "group_size:1")
    for row in openr1[half:]:
        writer.write(json.dumps(row).encode())
    writer.close()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> tuple[pathlib.Path, list[str]]:
    """Folder with model and data, and the flags that name them."""
    folder = tmp_path_factory.mktemp("recipe")
    shutil.copytree(WEIGHTS, folder / "llada")
    write_tokenizer(folder / "llada")
    write_data(folder)
    return folder, [
        f"--config.model.path={folder / 'llada'}",
        f"--config.task.rl=metamath:{folder / 'MetaMathQA.json'}",
        f"--config.task.sft=openr1:{folder / 'openr1.parquet'},openr1:{folder / 'openr1.array_record'}",
        f"--config.task.test=math:{folder / 'test.json'}",
        *(f"--config.{section}.{key}" for section in ("sampler", "evaluation") for key in SHORT),
        "--config.evaluation.problems=8",
        "--config.data.prompt_buckets=(192,)",
        "--config.rl.prompts=2",
        "--config.rl.group_size=2",
    ]


def kill_at(stage: str, step: int, workdir: pathlib.Path, processes: int, flags: list[str]) -> None:
    """Sends SIGKILL to every process once the log has a row of this stage at this step or later."""
    started = start(processes, DEVICES // processes, *[flags] * processes, folder=workdir.parent, config="math.py:smoke")
    deadline = time.monotonic() + LIMIT
    try:
        while not any(row["stage"] == stage and row["step"] >= step for row in rows_so_far(workdir)):
            assert time.monotonic() < deadline and all(process.poll() is None for process in started)
            time.sleep(0.02)
    finally:
        for process in started:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_every_stage_on_one_process_and_on_two_that_are_killed(recipe):
    folder, flags = recipe
    one, two = folder / "one", folder / "two"
    for workdir, processes in ((one, 1), (two, 2)):
        arguments = [f"--workdir={workdir}", *flags]
        if workdir == two:
            kill_at("rl", 24, workdir, processes, arguments)
            assert not (workdir / "result.json").exists()
        again = start(processes, DEVICES // processes, *[arguments] * processes, folder=folder, config="math.py:smoke")
        codes, printed = ends(again, folder)
        assert codes == [0] * processes, printed
        assert ["report: " in text for text in printed] == [True] + [False] * (processes - 1)
        result = json.loads((workdir / "result.json").read_text())
        assert result["processes"] == processes and result["after_sft"]["problems"] == 8
        assert result["heldout_loss"]["last"] < result["heldout_loss"]["first"]

    wanted, rows = untimed(one), untimed(two)
    assert [(row["stage"], row["step"]) for row in rows] == [(row["stage"], row["step"]) for row in wanted]
    assert {row["step"] for row in rows if "heldout/loss" in row} == {0, 10, 20}
    for row, expected in zip(rows, wanted, strict=True):
        assert row.pop("stage") == expected.pop("stage")
        assert row == pytest.approx(expected, rel=1e-3, abs=1e-5)
    tokens = [[row["tokens"] for row in read_rows(run / "rollouts.jsonl")] for run in (one, two)]
    assert tokens[0] == tokens[1] and len(tokens[0]) > 2


@pytest.mark.slow
def test_inspect_says_what_was_kept_and_why_not_the_rest(command, recipe, tmp_path):
    folder, flags = recipe
    done = command("inspect_data", "--config=math.py:smoke", *flags, "--samples=2", f"--lengths={tmp_path / 'lengths.json'}")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert f"  metamath:{folder / 'MetaMathQA.json'}: {PROBLEMS} of {2 * PROBLEMS + 6} rows" in done.stdout
    assert f"{PROBLEMS} of the type GSM_SV" in done.stdout and "6 of a question that came before" in done.stdout
    assert any("openr1.parquet: 29 of 30 rows, 1 without a correct trace" in line for line in lines)
    assert any("openr1.array_record: 30 of 30 rows" in line for line in lines)
    assert any(
        re.fullmatch(rf"    answer also in text that hints may show: \d+ of {PROBLEMS - TESTED} \(.*%\)", line)
        for line in lines
    )
    assert sum(line.startswith("--- sft: r1-") for line in lines) == 2
    assert "--- answer: " in done.stdout and "[[" in done.stdout and "fits: " in done.stdout
    assert f"  dropped because the test split has them, too: {TESTED}" in done.stdout
    assert re.search(r"  padding in rollouts: [\d.]+% of all positions with prompt_buckets=\([\d, ]+\)\n", done.stdout)
    lengths = read_lengths(tmp_path / "lengths.json")
    assert len(lengths) == PROBLEMS - TESTED and f"prompt tokens: mean {lengths.mean():.0f}" in done.stdout


def test_inspect_without_the_model_is_one_line(command, tmp_path):
    done = command("inspect_data", "--config=math.py", "--config.model.path=nowhere")
    assert done.returncode == 1 and done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert os.linesep not in done.stderr.strip().splitlines()[-1]
