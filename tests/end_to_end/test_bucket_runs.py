"""Runs whose folder is in a bucket, with an emulator of Google Cloud Storage."""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest

import commands
from igpo_jax.run.checkpoint import Checkpoints
from igpo_jax.run.checkpoint_integrity import misnamed, read_metadata, steps_in
from igpo_jax.run.metrics import read_rows
from igpo_jax.run.missing_files import discard_result
from igpo_jax.runtime import bucket_folders, bucket_locks
from igpo_jax.runtime.buckets import path_of
from processes import DEVICES, TINY, ends, word_problems
from processes import start as start_processes
from run_log import rows_so_far, untimed
from same_run import assert_same_run, corrupt
from storage_emulator import Network, connected, storage_emulator
from tokenizer_files import write_tokenizer

LLADA_TINY = pathlib.Path(__file__).parent / "llada_tiny.py"
WEIGHTS = pathlib.Path(__file__).parents[1] / "model" / "fixtures" / "llada_tiny" / "bf16_sharded"
LIMIT = 300  # seconds per process


@pytest.fixture(scope="module")
def emulator():
    with storage_emulator() as address:
        yield address


@contextlib.contextmanager
def using(emulator: str, monkeypatch, cache: pathlib.Path, command):
    """Like `connected`, and also for the fixture `command`, which has its own environment."""
    with connected(emulator, monkeypatch, cache) as files:
        own = {name: command._env[name] for name in ("JAX_PLATFORMS", "XLA_FLAGS")}
        monkeypatch.setattr(command, "_env", os.environ | own)
        yield files


@pytest.fixture
def storage(emulator, monkeypatch, tmp_path, command):
    with using(emulator, monkeypatch, tmp_path / "cache", command) as files:
        yield files


@pytest.fixture
def address(request) -> str:
    return f"gs://team/{request.node.name.replace('[', '-').rstrip(']')}"


def local_copy(storage, address: str, folder: pathlib.Path) -> pathlib.Path:
    """Downloads a run, so that it can be compared with one on disk."""
    storage.invalidate_cache()
    storage.get(address, str(folder), recursive=True)
    return folder


def start(command, config, address: str, output: pathlib.Path, *overrides: str):
    flags = (f"--config={config}", f"--workdir={address}", *overrides)
    return commands.start("train", *flags, stdout=output, cwd=command._folder, env=command._env)


def signal_at(process, address: str, stage: str, step: int, number: signal.Signals) -> None:
    """Sends a signal to a training process once its log has a row of this stage at this step or later."""
    folder = bucket_folders.copy_of(address, "process-0")
    deadline = time.monotonic() + LIMIT
    while not any(row["stage"] == stage and row["step"] >= step for row in rows_so_far(folder)):
        assert process.poll() is None, f"the run ended before step {step}"
        assert time.monotonic() < deadline, f"no step {step} in {LIMIT} seconds"
        time.sleep(0.01)
    process.send_signal(number)


@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGKILL, id="killed", marks=pytest.mark.slow), pytest.param(signal.SIGTERM, id="terminated")],
)
def test_a_stopped_run_continues_to_the_end_of_a_run_on_disk(
    number, command, finished, storage, address, tiny_config, tmp_path, mesh
):
    process = start(command, tiny_config, address, tmp_path / "log")
    signal_at(process, address, "rl", 204, number)
    assert process.wait(LIMIT) == (0 if number == signal.SIGTERM else -number)
    shutil.rmtree(tmp_path / "cache")  # the run continues on another machine
    done = command.train(address)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert f"report: {address}/report.html" in done.stdout
    run = local_copy(storage, address, tmp_path / "run")
    assert_same_run(run, finished, mesh)
    names = {path.name for path in run.iterdir()}
    assert {"config.json", "data.json", "report.html", "tensorboard"} <= names and ".lock" not in names
    assert str(tmp_path / "cache") not in done.stdout + done.stderr


def test_a_second_start_is_one_line_and_changes_nothing(command, finished, storage, address, monkeypatch):
    storage.put(str(finished), address, recursive=True)
    before = storage.find(address, detail=True)
    monkeypatch.setattr(bucket_locks, "HEARTBEAT", 0.5)
    with bucket_locks.BucketLock(address):
        done = command.train(address)
    assert done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr
    refused = f"error: {address} is being written by process {os.getpid()} on "
    assert done.stderr.splitlines()[-1].startswith(refused)
    assert storage.find(address, detail=True) == before


@pytest.mark.slow
def test_a_foreign_log_in_a_bucket_is_not_replaced(command, storage, address):
    storage.pipe_file(f"{address}/metrics.jsonl", b"mine")
    done = command.train(address)
    refused = f"error: {address}/metrics.jsonl is of no run, and a run would replace it; give another --workdir"
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == refused, done.stderr
    storage.invalidate_cache()
    assert storage.find(address) == [f"{address.removeprefix('gs://')}/metrics.jsonl"]
    assert storage.cat_file(f"{address}/metrics.jsonl") == b"mine"


def test_a_finished_run_in_a_bucket_is_read_by_the_other_commands(command, finished, storage, address, tmp_path):
    storage.put(str(finished), address, recursive=True)
    prompt = "--prompt=5+5="
    here, there = (command("generate", f"--model={place}", prompt) for place in (finished, address))
    assert there.returncode == 0 and there.stdout == here.stdout, there.stderr
    done = command("report", address)
    assert done.returncode == 0 and done.stdout == f"report: {address}/report.html\n", done.stderr
    assert storage.cat_file(f"{address}/report.html").startswith(b"<!")
    done = command("convert", f"--source={address}", f"--target={tmp_path / 'model'}", "--format=huggingface")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model/model.safetensors").is_file()
    os.unlink(tmp_path / "model/model.safetensors")


def test_an_evaluation_in_a_bucket_is_that_on_disk(command, finished, storage, address, tmp_path):
    """It also continues from the rows in the bucket, is compared with `diff`, and is graded again."""
    storage.put(str(finished), address, recursive=True)
    here, there = tmp_path / "here", f"{address}/evaluations/rl-6"
    done = command("evaluate", f"--workdir={finished}", f"--output={here}")
    assert done.returncode == 0, done.stderr
    [file] = here.glob("*.jsonl")
    half = file.read_text().splitlines(keepends=True)[:8]
    storage.pipe_file(f"{there}/{file.name}", "".join(half).encode())
    storage.pipe_file(f"{there}/protocol.json", (here / "protocol.json").read_bytes())
    done = command("evaluate", f"--workdir={address}")
    assert done.returncode == 0, done.stderr
    assert f"{there}/{file.name} has 8 of 16 problems from an earlier evaluation" in done.stderr
    copy = local_copy(storage, there, tmp_path / "there")
    assert {path.name for path in copy.iterdir()} == {path.name for path in here.iterdir()}
    assert read_rows(copy / file.name) == read_rows(file) != []
    for place in (f"--output={here}", f"--output={there}"):  # nothing is left to do
        again = command("evaluate", f"--workdir={finished}", place)
        assert again.returncode == 0 and "has 16 of 16 problems" in again.stderr, again.stderr
    compared = command("evaluate", "diff", str(here), there)
    assert compared.returncode == 0 and ", p = 1; 0 problems better" in compared.stdout, compared.stderr
    places = ((here, tmp_path / "regraded"), (there, f"{address}/regraded"))
    graded = [command("evaluate", f"--regrade={place}", f"--output={output}") for place, output in places]
    assert graded[1].returncode == 0, graded[1].stderr
    assert (
        graded[0].stdout.replace(str(tmp_path / "regraded"), f"{address}/regraded").replace(str(here), there)
        == graded[1].stdout
    )
    assert (
        storage.cat_file(f"{address}/regraded/disagreements.jsonl") == (tmp_path / "regraded/disagreements.jsonl").read_bytes()
    )


def test_rewritten_solutions_in_a_bucket_are_those_on_disk(command, storage, address, finished, tmp_path):
    word_problems(tmp_path / "problems.jsonl", 12)
    flags = [f"--problems=gsm8k:{tmp_path / 'problems.jsonl'}", f"--tokenizer={finished / 'tokenizer.model'}"]
    here, there = (command("rewrite", *flags, f"--output={place}") for place in (tmp_path / "here", address))
    assert there.returncode == 0, there.stderr
    kept = (tmp_path / "here/kept.jsonl").read_bytes()
    assert storage.cat_file(f"{address}/kept.jsonl") == kept != b"" and here.returncode == 0
    assert {name.rpartition("/")[2] for name in storage.ls(address)} == {path.name for path in (tmp_path / "here").iterdir()}
    done = command("rewrite", *flags, "--max_tokens=8", f"--output={address}")
    assert done.returncode == 1 and "differing: max_tokens" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["card.json", "card.html"])
def test_the_card_of_another_command_in_a_bucket_is_not_replaced(name, command, storage, address, finished, tmp_path):
    word_problems(tmp_path / "problems.jsonl", 2)
    storage.pipe_file(f"{address}/{name}", b"{}")
    flags = [f"--problems=gsm8k:{tmp_path / 'problems.jsonl'}", f"--tokenizer={finished / 'tokenizer.model'}"]
    done = command("rewrite", *flags, f"--output={address}")
    assert done.returncode == 1 and f"error: {address}/{name} is of no rewriting, because there is no settings" in done.stderr
    storage.invalidate_cache()
    assert (
        storage.find(address) == [f"{address.removeprefix('gs://')}/{name}"] and storage.cat_file(f"{address}/{name}") == b"{}"
    )


@pytest.mark.slow
def test_models_are_converted_into_a_bucket(command, storage, address, tmp_path):
    model = shutil.copytree(WEIGHTS, tmp_path / "model")
    write_tokenizer(model)
    for source, target in ((model, "model"), ("model", "huggingface")):
        for place in (str(tmp_path / "here"), address):
            flags = [f"--source={source if source == model else f'{place}/{source}'}", f"--target={place}/{target}"]
            done = command("convert", *flags, f"--format={target}")
            assert done.returncode == 0 and done.stdout.startswith(f"written: {place}/{target}\nnext: "), done.stderr
    copy = local_copy(storage, address, tmp_path / "there")
    names = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*")) for folder in (copy, tmp_path / "here")]
    assert names[0] == names[1]
    for file in (tmp_path / "here/huggingface").iterdir():
        assert (copy / "huggingface" / file.name).read_bytes() == file.read_bytes()
    done = command("convert", f"--source={model}", f"--target={address}/model")
    assert done.returncode == 1 and f"error: {address}/model has objects already" in done.stderr
    storage.pipe_file(f"{address}/broken/config.json", (model / "config.json").read_bytes())
    done = command("convert", f"--source={address}/broken", f"--target={address}/new")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    storage.invalidate_cache()
    assert not storage.exists(f"{address}/new")


@pytest.mark.slow
def test_a_model_in_a_bucket_is_trained_as_one_on_disk(command, storage, address, tmp_path):
    """Adapters are trained, so that the run keeps needing the model."""
    model = shutil.copytree(WEIGHTS, tmp_path / "model")
    write_tokenizer(model)
    storage.put(str(model), f"{address}/model", recursive=True)
    places = ((model, tmp_path / "run"), (f"{address}/model", f"{address}/run"))
    for path, workdir in places:
        done = command("train", f"--config={LLADA_TINY}", f"--config.model.path={path}", f"--workdir={workdir}")
        assert done.returncode == 0, done.stderr
    assert untimed(local_copy(storage, f"{address}/run", tmp_path / "copy")) == untimed(tmp_path / "run")
    texts = [command("generate", f"--model={workdir}", "--prompt=What?", "--chat") for _, workdir in places]
    assert texts[1].returncode == 0 and texts[0].stdout == texts[1].stdout != "", texts[1].stderr
    for form in ("peft", "huggingface"):
        for (_, workdir), name in zip(places, ("here", "there"), strict=True):
            done = command("convert", f"--source={workdir}", f"--target={tmp_path / name / form}", f"--format={form}")
            assert done.returncode == 0, done.stderr
        files = [{file.name: file.read_bytes() for file in (tmp_path / name / form).iterdir()} for name in ("here", "there")]
        assert {n: c for n, c in files[0].items() if n.endswith("safetensors")} == {
            n: c for n, c in files[1].items() if n.endswith("safetensors")
        }


def test_messages_name_the_address_and_not_the_copy(command, finished, storage, address):
    storage.pipe_file(f"{address}/config.json", (finished / "config.json").read_bytes())
    storage.pipe_file(f"{address}/checkpoints/sft/20/commit_success.txt", b"")
    for flags in (["generate", f"--model={address}", "--prompt=1+1="], ["train", f"--config={TINY}", f"--workdir={address}"]):
        done = command(*flags)
        assert done.returncode == 1 and f"{address}/tokenizer.model, with which the run began, is missing" in done.stderr
        assert "bucket_runs" not in done.stderr


def test_a_comparison_refuses_an_address(command, storage, tiny_config):
    done = command("compare", f"--config={tiny_config}", "--arms=igpo", "--seeds=0", "--output=gs://team/output")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: gs://team/output is not a local folder; give one")


@pytest.mark.parametrize("complete", [True, False])
def test_launchers_see_whether_a_run_in_a_bucket_is_complete(complete, storage, address):
    storage.pipe_file(f"{address}/{'result' if complete else 'config'}.json", b"{}")
    script = f". launch/options.sh; is_complete {sys.executable} {address}"
    done = subprocess.run(["bash", "-c", script], cwd=commands.ROOT, capture_output=True, text=True)
    assert done.returncode == (0 if complete else 1), done.stderr


@pytest.mark.slow
def test_a_damaged_checkpoint_is_moved_away_and_the_run_continues(command, finished, storage, address, tmp_path, mesh):
    folder = shutil.copytree(finished, tmp_path / "stopped", ignore=shutil.ignore_patterns("result.json"))
    corrupt(folder / "checkpoints/rl/6")
    storage.put(str(folder), address, recursive=True)
    done = command.train(address)
    assert done.returncode == 0, done.stderr
    assert f"moved to {address}/checkpoints/rl-unreadable/6" in done.stderr
    run = local_copy(storage, address, tmp_path / "run")
    assert (run / "checkpoints/rl-unreadable/6").is_dir()
    assert_same_run(run, finished, mesh)


SHORT = ("--config.sft.updates=20", "--config.rl.iterations=6", "--config.rl.eval_every=3", "--config.sft.batch_size=8")
SHORT += ("--config.sft.heldout=8", "--config.evaluation.problems=8", "--config.rl.prompts=4", "--config.rl.group_size=4")


@pytest.fixture(scope="module")
def run_of_two(tmp_path_factory) -> pathlib.Path:
    """Folder of an undisturbed short run of two processes on disk."""
    folder = tmp_path_factory.mktemp("two")
    flags = [f"--workdir={folder / 'run'}", *SHORT]
    codes, printed = ends(start_processes(2, DEVICES // 2, flags, flags, folder=folder), folder)
    assert codes == [0, 0], printed
    return folder / "run"


@pytest.fixture(scope="module")
def killed_run_of_two(emulator, command, tmp_path_factory) -> str:
    """Address of a short run of two processes of which one was killed. The run's lock is still there."""
    folder, address = tmp_path_factory.mktemp("killed"), "gs://team/killed"
    with pytest.MonkeyPatch.context() as monkeypatch, using(emulator, monkeypatch, folder / "cache", command):
        flags = [f"--workdir={address}", *SHORT]
        started = start_processes(2, DEVICES // 2, flags, flags, folder=folder)
        signal_at(started[0], address, "rl", 24, signal.SIGKILL)
        ends(started, folder)
    return address


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2], ids=["continued by one process", "continued by two processes"])
def test_a_killed_run_of_two_processes_continues(processes, run_of_two, killed_run_of_two, storage, address, tmp_path):
    """All processes write checkpoints to the bucket, and each has its own copy of the other files. The run continues on another
    machine. The reference is an undisturbed run of two processes on disk. The sums of one process round differently."""
    storage.copy(killed_run_of_two, address, recursive=True)
    assert storage.exists(f"{address}/.lock") and not storage.exists(f"{address}/result.json")
    flags = [f"--workdir={address}", *SHORT]
    codes, printed = ends(start_processes(processes, DEVICES // processes, *[flags] * processes, folder=tmp_path), tmp_path)
    assert codes == [0] * processes, printed
    run = local_copy(storage, address, tmp_path / "run")
    metrics, expected = untimed(run), untimed(run_of_two)
    if processes == 2:
        assert metrics == expected
        assert read_rows(run / "rollouts.jsonl") == read_rows(run_of_two / "rollouts.jsonl")
        sums = [read_metadata(folder / "checkpoints/rl/6")["sums"] for folder in (run, run_of_two)]
        assert sums[0] == sums[1] != {}
    else:
        assert [(row["step"], row["stage"]) for row in metrics] == [(row["step"], row["stage"]) for row in expected]
        for name in ("rl/loss", "eval/accuracy", "reward/final"):
            values = [[row[name] for row in rows if name in row] for rows in (metrics, expected)]
            assert values[0] == pytest.approx(values[1], rel=1e-3), name


FAULTS = {
    "unavailable": Network(unavailable=0.2),
    "cut": Network(cut=0.05),
    "slow": Network(latency=0.2),
    "away": Network(),
}


@pytest.fixture(scope="module")
def short_run(command, tmp_path_factory) -> pathlib.Path:
    """Folder of an undisturbed short run on disk."""
    folder = tmp_path_factory.mktemp("short") / "run"
    done = command.train(folder, *SHORT)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAULTS)
def test_a_bucket_with_faults_changes_no_result(kind, command, short_run, monkeypatch, tmp_path, tiny_config, mesh):
    network, address = FAULTS[kind], f"gs://team/{kind}"
    with storage_emulator(network) as emulator, using(emulator, monkeypatch, tmp_path / "cache", command) as storage:
        process = start(command, tiny_config, address, tmp_path / "log", *SHORT)
        if kind == "away":
            signal_at(process, address, "rl", 22, signal.SIGCONT)
            network.away_until = time.monotonic() + 60
        assert process.wait(LIMIT) == 0, (tmp_path / "log").read_text()
        network.unavailable = network.cut = network.latency = 0.0
        run = local_copy(storage, address, tmp_path / "run")
    assert_same_run(run, short_run, mesh)
    if kind != "slow":
        assert "requests to the bucket were repeated" in (tmp_path / "log").read_text()


def test_an_accuracy_is_added_to_a_checkpoint_in_a_bucket(storage, address):
    state, key = {"params": {"w": jnp.arange(3.0)}}, jax.random.key(0)
    with Checkpoints(path_of(address) / "checkpoints" / "rl", keep=1, best=True) as writer:
        writer.save(1, state, key)
        writer.add_accuracy(1, 0.75)
        writer.save(2, state, key, accuracy=0.5)
        writer.wait()
        assert writer.steps() == [1, 2] and writer.restore_latest(state, key)[0] == 2
    storage.invalidate_cache()
    assert storage.cat_file(f"{address}/checkpoints/rl/1/metrics/metrics") == b'{"accuracy": 0.75}'


def test_the_result_of_a_run_that_trains_further_is_removed_from_the_bucket(storage, address):
    copy = bucket_folders.copy_of(address, "process-0")
    copy.mkdir(parents=True)
    (copy / "result.json").write_text("{}")
    storage.pipe_file(f"{address}/result.json", b"{}")
    for _ in range(2):  # the second time, there is none
        discard_result(copy)
        storage.invalidate_cache()
        assert not storage.exists(f"{address}/result.json") and not (copy / "result.json").exists()


def test_checkpoints_in_a_bucket_whose_names_are_no_steps_are_found(storage, address):
    saved = path_of(address) / "checkpoints" / "rl"
    assert misnamed(saved) == []
    for name in ("1", "02", "12.tmp"):
        storage.pipe_file(f"{saved}/{name}/commit_success.txt", b"")
    assert misnamed(saved) == [saved / "02"] and steps_in(saved) == [1]
