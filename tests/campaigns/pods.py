"""Kills runs whose data, model, tokenizer and folder are all in an emulated bucket, continues them, and compares them with
undisturbed runs on disk, bit for bit.

    PYTHONPATH=. python tests/campaigns/pods.py --kills=40 --output=benchmarks/results/pods.log

The runs are supervised training and RL with hints of configs/math.py:smoke, as two processes with four emulated devices each
and as one process with eight. Half of the kills are SIGTERM and half SIGKILL, at random moments; a quarter reaches one random
process only, as if one host of a pod was lost. After every kill, the cache of the machine is deleted. The reference is a run of
as many processes, because sums over processes round differently.
"""

import argparse
import contextlib
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time

import pytest

sys.path += [str(pathlib.Path(__file__).parents[1] / name) for name in ("helpers", "end_to_end")]

from test_math_recipe import WEIGHTS, write_data

from faults import CHANCE, emulated_bucket, heading, log_to, nothing_ignored
from igpo_jax.run.checkpoint_integrity import read_metadata
from igpo_jax.run.metrics import read_rows
from processes import LIMIT, ends, start
from run_log import untimed
from same_run import result
from tokenizer_files import write_tokenizer

DEVICES = 8
KILLS_OF_RUN = 5
SETTINGS = (
    *(f"--config.{section}.{key}" for section in ("sampler", "evaluation") for key in ("completion_length=128", "steps=4")),
    "--config.evaluation.problems=8",
    "--config.data.prompt_buckets=(192,)",
    "--config.rl.prompts=4",
    "--config.rl.group_size=2",
    "--config.rl.iterations=6",
    "--config.sft.checkpoint_every=5",
    "--config.reward.function=chance:reward",  # the tiny model is never right
    "--config.mesh.data=2",
    "--config.mesh.fsdp=2",
    "--config.mesh.tensor=2",
)


def flags(place: str, workdir: str) -> list[str]:
    """Returns the arguments of a run whose model and data are in `place`, a folder or an address."""
    return [
        f"--workdir={workdir}",
        f"--config.model.path={place}/llada",
        f"--config.task.rl=metamath:{place}/MetaMathQA.json",
        f"--config.task.sft=openr1:{place}/openr1.parquet,openr1:{place}/openr1.array_record",
        f"--config.task.test=math:{place}/test.json",
        *SETTINGS,
    ]


def begin(processes: int, arguments: list[str], folder: pathlib.Path):
    each = [arguments] * processes
    return start(processes, DEVICES // processes, *each, folder=folder, config="math.py:smoke")


def finish(processes: int, arguments: list[str], folder: pathlib.Path) -> float:
    """Runs to the end. Returns the seconds. Raises RuntimeError if a process fails."""
    began = time.monotonic()
    codes, printed = ends(begin(processes, arguments, folder), folder)
    if any(codes):
        raise RuntimeError(f"ended with {codes}: {printed[0][-3000:]}")
    return time.monotonic() - began


def kill(started, delay: float, number: signal.Signals, ranks: list[int]) -> bool:
    """Sends a signal after `delay` seconds to the processes `ranks`, and waits for all. Returns whether a process was running."""
    end = time.monotonic() + delay
    while time.monotonic() < end and any(process.poll() is None for process in started):
        time.sleep(0.01)
    running = any(process.poll() is None for process in started)
    for rank in ranks:
        started[rank].send_signal(number)
    for process in started:
        process.wait(LIMIT)
    return running


def differences(run: pathlib.Path, reference: pathlib.Path) -> list[str]:
    """Returns what differs between two finished runs, times excluded."""
    found = []
    for stage in ("sft", "rl"):
        newest = [max((place / "checkpoints" / stage).iterdir(), key=lambda path: int(path.name)) for place in (run, reference)]
        sums = [read_metadata(folder)["sums"] for folder in newest]
        if newest[0].name != newest[1].name or sums[0] != sums[1] or not sums[0]:
            found.append(f"checkpoint of {stage}")
    if untimed(run) != untimed(reference):
        found.append("metrics.jsonl")
    found += [n for n in ("rollouts.jsonl", "evaluations.jsonl") if read_rows(run / n) != read_rows(reference / n)]
    own = ("fingerprint",)  # of the configuration, which has the place of the model
    results = [{key: value for key, value in result(place).items() if key not in own} for place in (run, reference)]
    return found + ["result.json"] * (results[0] != results[1])


def upload(storage, folder: pathlib.Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            storage.pipe_file(f"team/inputs/{path.relative_to(folder)}", path.read_bytes())


def main(arguments: list[str] | None = None) -> int:
    """Returns the number of runs that differ from the undisturbed run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, help="a copy of what is printed")
    options = parser.parse_args(arguments)
    _, say = log_to(options.output)
    say(heading())
    draw, runs, identical = random.Random(options.seed), 0, 0
    signals = [signal.SIGTERM, signal.SIGKILL] * (options.kills // 2)
    draw.shuffle(signals)
    with contextlib.ExitStack() as held:
        held.enter_context(nothing_ignored())
        folder = pathlib.Path(held.enter_context(tempfile.TemporaryDirectory()))
        inputs, cache = folder / "inputs", folder / "cache"
        shutil.copytree(WEIGHTS, inputs / "llada")
        write_tokenizer(inputs / "llada")
        write_data(inputs)
        (folder / "chance.py").write_text(CHANCE)
        patch = held.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        seconds = {}
        for processes in (2, 1):
            reference = flags(str(inputs), str(folder / f"{processes}"))
            finish(processes, reference, folder)
            shutil.rmtree(folder / f"{processes}")
            seconds[processes] = finish(processes, reference, folder)  # compiled
            hinted = sum(row.get("hint/replaced", 0) for row in untimed(folder / f"{processes}"))
            where = f"{processes} x {DEVICES // processes} devices"
            say(f"undisturbed, {where}: {seconds[processes]:.0f} s, {hinted:g} hinted completions per group are trained on")
        storage = held.enter_context(emulated_bucket(cache))
        upload(storage, inputs)
        while signals:
            processes, name = 2 - runs % 2, f"run{runs}"
            argv = flags("gs://team/inputs", f"gs://team/{name}")
            for number in signals[:KILLS_OF_RUN]:
                delay = draw.uniform(0, 0.9 * seconds[processes])
                ranks = list(range(processes)) if draw.random() < 0.75 else [draw.randrange(processes)]
                if not kill(begin(processes, argv, folder), delay, number, ranks):
                    break  # the run has ended
                signals.remove(number)
                shutil.rmtree(cache, ignore_errors=True)
                saved = newest(storage, name)
                say(f"{name}: {number.name} to {ranks} of {processes} after {delay:.1f} s, saved: {saved or 'nothing'}")
            try:
                finish(processes, argv, folder)
                storage.invalidate_cache()
                storage.get(f"team/{name}/", f"{folder / name}/", recursive=True)
                found = differences(folder / name, folder / f"{processes}")
            except RuntimeError as error:
                found = [str(error)]
            verdict = "DIFFERS in " + ", ".join(found) if found else "identical"
            say(f"    {name} of {processes} x {DEVICES // processes}: {verdict}")
            identical, runs = identical + (not found), runs + 1
    say(f"{options.kills} kills of {runs} runs: {identical}/{runs} identical")
    return runs - identical


def newest(storage, name: str) -> str:
    """Returns the newest checkpoint of each stage of a run, as text."""
    storage.invalidate_cache()
    found = storage.glob(f"team/{name}/checkpoints/*/*")
    steps = [path.split("/")[-2:] for path in found if path.rpartition("/")[2].isdigit()]
    return ", ".join(
        f"{stage} {max(int(step) for s, step in steps if s == stage)}" for stage in sorted({s for s, _ in steps}, reverse=True)
    )


if __name__ == "__main__":
    sys.exit(main())
