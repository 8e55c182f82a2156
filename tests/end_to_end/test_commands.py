"""The commands train and evaluate, as a user starts them."""

import json
import pathlib
import shutil
import socket

import numpy as np
import pytest

from igpo_jax.diffusion.corruption import HELDOUT_LEVELS, heldout_metric
from igpo_jax.run import restore
from igpo_jax.run.metrics import read_rows
from igpo_jax.tokenizers import load_tokenizer
from run_log import after_supervised_stage

TINY = pathlib.Path(__file__).parent / "tiny.py"
GSM8K_SAMPLE = pathlib.Path(__file__).parents[1] / "tasks" / "gsm8k_sample.jsonl"
# A task that prints in worker processes and in the process of the command
LOUD = """from igpo_jax.tasks import arithmetic
from igpo_jax.tasks.arithmetic import REWARD_OPTIONS, defaults, load

def reward(problem, text, **options):
    print("printed by reward")
    return arithmetic.reward(problem, text, **options)

def extract_answer(text, **options):
    print("printed by extract_answer")
    return arithmetic.extract_answer(text, **options)
"""
UPDATES, ITERATIONS, INNER_STEPS = 200, 6, 2  # as in tiny.py


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def result(workdir: pathlib.Path) -> dict:
    return json.loads((workdir / "result.json").read_text())


def test_a_run_leaves_everything_in_its_folder(finished):
    for name in ("config.json", "tokenizer.model", "metrics.jsonl", "rollouts.jsonl", "report.html", "result.json"):
        assert (finished / name).stat().st_size > 0, name
    assert list((finished / "tensorboard").glob("events.out.tfevents.*"))
    kept = {stage: sorted(int(path.name) for path in (finished / "checkpoints" / stage).iterdir()) for stage in ("sft", "rl")}
    assert kept["sft"] == [180, 200]
    assert kept["rl"][-2:] == [5, 6] and len(kept["rl"]) <= 3  # the last two and the best
    assert not list(finished.rglob("*.partial"))
    assert str(finished / "report.html") in (finished.parent / "stdout").read_text()


def test_the_result_says_what_was_measured_and_how(finished):
    found = result(finished)
    assert found["task"] == "arithmetic" and found["seed"] == 0 and found["inpainting"] is True
    assert found["updates"] == UPDATES + INNER_STEPS * ITERATIONS
    for moment in ("before_rl", "after_rl"):
        low, high = found[moment]["interval95"]
        assert 0 <= low <= found[moment]["accuracy"] <= high <= 1
        assert found[moment]["problems"] == 16
    assert found["decode"]["differences"] == ["temperature"]
    assert found["decode"]["rollout"] == found["decode"]["evaluation"] | {"temperature": 0.7}
    assert found["rl_start"]["rollouts"] == found["rl_end"]["rollouts"] == 4
    assert found["attention"] == "xla" and "chosen: attention: xla; " in (finished.parent / "stdout").read_text()
    assert found["device"].startswith("1 x ") and found["versions"]["jax"] and found["fingerprint"]
    assert set(found["wall_seconds"]) == {"sft", "rl"} and all(seconds > 0 for seconds in found["wall_seconds"].values())


def test_a_checkpoint_with_bad_weights_is_refused_by_name(finished, mesh, monkeypatch):
    read = restore.Checkpoints.restore_params

    def damaged(*arguments):
        step, params = read(*arguments)
        return step, params | {"final_norm": params["final_norm"].at[3].set(np.inf)}

    monkeypatch.setattr(restore.Checkpoints, "restore_params", damaged)
    with pytest.raises(ValueError, match=r"checkpoints/rl/6, parameter final_norm: 1 of \d+ values are NaN or infinite"):
        restore.restore_run(finished, mesh)
    assert restore.restore_run(finished, mesh, allow_nonfinite=True).step == 6


def test_one_step_counter_over_both_stages(finished):
    rows = read_rows(finished / "metrics.jsonl")
    supervised = [row["step"] for row in rows if "sft/loss" in row]
    rollouts = [row["step"] for row in rows if "reward/first_try" in row]
    evaluations = [row["step"] for row in rows if "eval/accuracy" in row]
    assert supervised == list(range(20, UPDATES + 1, 20))
    assert rollouts == [UPDATES + INNER_STEPS * i for i in range(1, ITERATIONS + 1)]
    assert evaluations == [0, 100, UPDATES] + [UPDATES + INNER_STEPS * i for i in (0, 2, 4, 6)]
    assert len(rows) == len(supervised) + len(rollouts) + len(evaluations)
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)
    assert {row["step"] for row in read_rows(finished / "rollouts.jsonl")} == set(rollouts)


def test_the_held_out_loss_falls_at_every_level(finished):
    rows = [row for row in read_rows(finished / "metrics.jsonl") if "heldout/loss" in row]
    assert [row["step"] for row in rows] == [0, 100, UPDATES]
    for share in HELDOUT_LEVELS:
        first, *_, last = (row[heldout_metric(share)] for row in rows)
        assert last < first
    for row in rows:
        assert row["heldout/loss"] == pytest.approx(np.mean([row[heldout_metric(share)] for share in HELDOUT_LEVELS]))
    assert result(finished)["heldout_loss"] == {"first": rows[0]["heldout/loss"], "last": rows[-1]["heldout/loss"]}
    assert "Held-out loss" in (finished / "report.html").read_text("utf-8")


def test_the_same_command_on_a_finished_run_changes_nothing(command, finished, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "run")
    before = contents(workdir)
    again = command.train(workdir)
    assert again.returncode == 0, again.stderr
    after = contents(workdir)
    assert before.keys() == after.keys()
    assert {name for name in before if before[name] != after[name]} <= {"report.html"}  # contains the folder's name
    assert "SFT:" not in again.stderr and "RL:" not in again.stderr  # nothing was trained
    assert json.loads(command.train(workdir, "--json").stdout) == result(workdir)


@pytest.mark.slow
def test_with_json_a_run_prints_nothing_else_to_stdout(command, tmp_path):
    (tmp_path / "loud.py").write_text(LOUD)
    flags = ("--config.sft.updates=2", "--config.rl.iterations=1", "--config.rl.prompts=2", "--config.evaluation.problems=8")
    run = (f"--config={TINY}", f"--workdir={tmp_path / 'run'}", "--config.task.name=loud", "--json", *flags)
    done = command("train", *run, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == result(tmp_path / "run") and "the first checkpoint of stage rl has" in done.stderr
    assert "printed by reward" in done.stderr and "printed by extract_answer" in done.stderr


def test_evaluate_without_a_run_is_an_error(command, tmp_path):
    process = command("evaluate", f"--workdir={tmp_path}")
    assert process.returncode == 1
    assert process.stderr.strip().splitlines()[-1] == f"error: {tmp_path} holds no run: it has no config.json"


@pytest.mark.slow
def test_evaluate_reads_the_checkpoint_of_a_step(command, finished, tmp_path):
    kept = sorted(int(path.name) for path in (finished / "checkpoints/rl").iterdir() if path.name.isdigit())
    done = command("evaluate", f"--workdir={finished}", f"--step={kept[0]}", f"--output={tmp_path / 'out'}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f'"step": {kept[0]}' in (tmp_path / "out" / "card.json").read_text() and kept[0] != kept[-1]
    done = command("evaluate", f"--workdir={finished}", "--step=999", f"--output={tmp_path / 'out'}", cwd=tmp_path)
    assert done.returncode == 1 and "has no checkpoint of step 999; it has those of" in done.stderr


@pytest.mark.slow
def test_without_hints_and_with_other_nested_keys(command, finished, tmp_path):
    workdir = after_supervised_stage(finished, tmp_path / "run")
    process = command.train(
        workdir, "--config.inpainting.enabled=False", "--config.rl.optimizer.learning_rate=5e-4", "--config.rl.iterations=2"
    )
    assert process.returncode == 0, process.stderr
    written = json.loads((workdir / "config.json").read_text())
    assert written["inpainting"]["enabled"] is False
    assert written["rl"]["optimizer"]["learning_rate"] == 5e-4 and written["rl"]["iterations"] == 2

    rows, hinted = (
        [row for row in read_rows(folder / "metrics.jsonl") if "reward/first_try" in row] for folder in (workdir, finished)
    )
    assert [row["step"] for row in rows] == [202, 204]
    for row in rows:
        assert {name for name in row if name.startswith("hint/")} <= {"hint/replaced"}
        assert row.get("hint/replaced", 0) == 0
        assert row["groups/all_wrong_before"] == row["groups/all_wrong_after"]
        assert row["reward/first_try"] == row["reward/final"]
    assert {row["try"] for row in read_rows(workdir / "rollouts.jsonl")} == {"first"}
    assert result(workdir)["inpainting"] is False and result(workdir)["rl_start"]["rescue_rate"] is None
    # The runs are equal until hints make a difference.
    assert any("hint/tokens" in row for row in hinted)
    assert rows[0]["reward/first_try"] == hinted[0]["reward/first_try"]
    assert result(workdir)["before_rl"] == result(finished)["before_rl"]


@pytest.mark.slow
def test_a_config_may_be_called_like_a_module_of_the_standard_library(command, tmp_path):
    """Finds ./configs/math.py by its bare name, names the run's folder runs/math, and leaves `import math` alone."""
    (tmp_path / "configs").mkdir()
    inspect = """
import atexit, json, math, pathlib, sys
@atexit.register
def report():
    pathlib.Path("seen.json").write_text(json.dumps([math.sqrt(4), sys.path]))
"""
    (tmp_path / "configs" / "math.py").write_text(TINY.read_text() + inspect)
    process = command(
        "train", "--config", "math.py", "--config.sft.updates=0", "--config.rl.iterations=1", "--config.evaluation.problems=2",
        cwd=tmp_path,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    root, path = json.loads((tmp_path / "seen.json").read_text())
    assert root == 2
    assert not [folder for folder in path if pathlib.Path(folder).name == "configs"]
    rows = read_rows(tmp_path / "runs" / "math" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, INNER_STEPS, INNER_STEPS]  # evaluation, rollout, evaluation
    assert {row["stage"] for row in rows} == {"rl"}


@pytest.fixture(scope="module")
def gsm8k_files(tmp_path_factory) -> dict[str, pathlib.Path]:
    """Writes 40 and 8 problems in GSM8K's format: the sample with other nouns."""
    folder = tmp_path_factory.mktemp("gsm8k")
    sample = [json.loads(line) for line in GSM8K_SAMPLE.read_text("utf-8").splitlines()]
    things = ("pencils", "crayons", "rulers", "brushes", "notebooks", "stamps", "ribbons", "candles")
    rows = [
        {key: text.replace("pencils", thing) + ("" if key == "answer" else f" Think of {thing}.") for key, text in row.items()}
        for thing in things
        for row in sample
    ]
    files = {"train": folder / "train.jsonl", "test": folder / "test.jsonl"}
    for name, part in (("train", rows), ("test", rows[::5])):
        files[name].write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part), "utf-8")
    return files


@pytest.mark.slow
def test_gsm8k_hints_are_pieces_of_the_solution_in_their_place(command, gsm8k_files, tmp_path):
    workdir = tmp_path / "run"
    process = command(
        "train",
        "--config=gsm8k.py:smoke",
        f"--workdir={workdir}",
        f"--config.task.rl=gsm8k:{gsm8k_files['train']}",
        f"--config.task.test=gsm8k:{gsm8k_files['test']}",
        *("--config.sft.updates=20", "--config.sft.heldout=8", "--config.rl.iterations=2", "--config.objective.inner_steps=1"),
        *("--config.sft.batch_size=8", "--config.rl.prompts=2", "--config.data.prompt_buckets=(192,)"),
        *("--config.sampler.steps=6", "--config.evaluation.steps=6"),
        *("--config.evaluation.problems=4", "--config.evaluation.batch_size=4"),
    )
    assert process.returncode == 0, process.stderr
    assert "8 training problems are in the test split, too; dropped from rl" in process.stdout
    tokenizer = load_tokenizer(workdir / "tokenizer.model")
    rows = [row for row in read_rows(workdir / "rollouts.jsonl") if row["try"] == "hinted"]
    assert rows
    seen = 0
    for row in rows:
        trace = [tokenizer.piece(i) for i in tokenizer.encode(row["trace"])]
        given = [at for at, is_hint in enumerate(row["hint"]) if is_hint]
        assert [row["tokens"][at] for at in given] == [trace[at] for at in given]
        assert [at for at, step in enumerate(row["unmask_step"]) if step == -1] == given
        for piece in runs_of(row["hint"], row["tokens"]):
            assert piece in row["trace"]
            assert "####" not in piece
            seen += len(piece)
    assert seen > 50


def runs_of(hint: list[bool], tokens: list[str]) -> list[str]:
    """Returns the text of every contiguous run of hints."""
    stretches, open_before = [], False
    for is_hint, token in zip(hint, tokens, strict=True):
        if is_hint:
            stretches = [*stretches[:-1], stretches[-1] + token] if open_before else [*stretches, token]
        open_before = is_hint
    return stretches


def test_a_runs_folder_does_not_tell_where_it_was_made(finished):
    files = [file for file in finished.rglob("*") if file.is_file()]
    secrets = str(finished.parent).encode(), str(pathlib.Path(__file__).parent).encode(), socket.gethostname().encode()
    assert not [file for file in files for secret in secrets[:2] if secret in file.read_bytes()]
    assert not [file for file in files if secrets[2] in bytes(file.relative_to(finished)).split(b".")]


@pytest.mark.slow
def test_compiled_programs_are_found_again_and_are_not_in_the_runs_folder(command, tmp_path):
    def kept() -> set[str]:
        assert not (tmp_path / "run/compiled").exists()
        return {path.name for path in (tmp_path / "cache").rglob("*-cache")}

    own = type(command)(tmp_path)
    del own._env["JAX_COMPILATION_CACHE_DIR"]
    own._env["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    own._env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # cache all programs, however quickly they compile
    flags = ("--config.sft.updates=20", "--config.sft.eval_every=0", "--config.rl.iterations=0")
    assert own.train(tmp_path / "run", *flags).returncode == 0
    first = kept()
    assert any("update" in name for name in first)
    shutil.rmtree(tmp_path / "run/checkpoints")
    assert own.train(tmp_path / "run", *flags, "--accept_loss").returncode == 0
    assert kept() == first
