"""Kills runs at random moments, resumes them, and compares the result with an undisturbed run, bit for bit: parameters,
optimizer, logs, rollouts, verdicts, result and evaluation.

    python tests/campaigns/faults.py --kills=100 --output=benchmarks/results/faults.log
    python tests/campaigns/faults.py --kills=40 --bucket --output=benchmarks/results/faults-bucket.log

A run is killed about ten times, at a random delay after an announced event (announced.py). Half of the kills are SIGKILL, a
quarter SIGTERM, an eighth SIGINT and an eighth SIGHUP. Prints one line per kill. With --bucket, the folders of the killed runs are in
an emulated bucket. tests/faults runs the same code with fewer kills.
"""

import argparse
import collections
import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

sys.path.append(str(pathlib.Path(__file__).parents[1] / "helpers"))

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from commands import QUICK
from igpo_jax.run.metrics import read_rows
from igpo_jax.run.results import environment

HERE = pathlib.Path(__file__).parent
TINY = HERE.parent / "end_to_end" / "tiny.py"
# Random rewards: the tiny model is right too rarely to find its own solutions.
CHANCE = """import zlib


def reward(problem, text):
    return float(zlib.crc32((problem.id + text).encode()) % 5 == 0)
"""
SHORT = (
    "--config.sft.updates=60",
    "--config.sft.checkpoint_every=10",
    "--config.sft.eval_every=30",
    "--config.rl.iterations=8",
    "--config.rl.checkpoint_every=2",
    "--config.rl.eval_every=3",
    "--config.rl.group_size=4",
    "--config.rl.rollout_chunks=2",
    "--config.reward.workers=1",
)
# One run as configured, and one with all state that is carried between iterations.
VARIANTS = {
    "plain": SHORT,
    "remembering": (
        *SHORT,
        "--config.reward.function=chance:reward",
        "--config.task.rl_problems=24",
        "--config.inpainting.source=own",
        "--config.inpainting.curriculum=0.3",
        "--config.rl.dynamic_batches=2",
        "--config.sampler.cache=prefix",
        "--config.rl.probe_every=3",
        "--config.rl.probe_limit=0.001",
    ),
}


@dataclasses.dataclass(frozen=True)
class Kill:
    """A signal sent `delay` seconds after the `occurrence`-th event `moment`; occurrence 0: after the process started."""

    command: str  # train | evaluate
    moment: str
    occurrence: int
    delay: float
    signal: signal.Signals


# (command, event, most occurrences, most seconds), in the order of a run. Checkpoints are written while the run continues.
# The kills of one phase precede the events of the next.
PHASES = (
    (
        ("train", "start", 0, 3.0),
        ("train", "SFT update", 14, 0.03),
        ("train", "sft checkpoint", 2, 0.15),
        ("train", "line of the log", 2, 0.002),
        ("train", "evaluation", 1, 0.4),
    ),
    (
        ("train", "rollout", 2, 0.2),
        ("train", "between rollout and update", 2, 0.02),
        ("train", "RL update", 4, 0.03),
        ("train", "rl checkpoint", 2, 0.15),
        ("train", "start", 0, 3.0),
    ),
    (("train", "end", 1, 0.3),),
    (("evaluate", "start", 0, 3.0), ("evaluate", "batch of igpo_jax.evaluate", 2, 0.2)),
)
KILLS_OF_PHASE = (4, 5, 1, 2)
# Of every eight kills in a row.
SIGNALS = (*[signal.SIGKILL] * 4, *[signal.SIGTERM] * 2, signal.SIGINT, signal.SIGHUP)


def kills_of_runs(seed: int) -> Iterator[list[Kill]]:
    """Yields the kills of one run after another. Cycles through the events and the signals, so that all are equally frequent."""
    draw = random.Random(seed)
    signals = itertools.chain.from_iterable(draw.sample(SIGNALS, len(SIGNALS)) for _ in itertools.count())
    turns = [itertools.cycle(draw.sample(phase, len(phase))) for phase in PHASES]
    while True:
        kills = []
        for turn, number in zip(turns, KILLS_OF_PHASE, strict=True):
            for command, moment, occurrences, seconds in itertools.islice(turn, number):
                occurrence = draw.randint(1, occurrences) if occurrences else 0
                kills.append(Kill(command, moment, occurrence, draw.uniform(0, seconds), next(signals)))
        yield kills


class Runs:
    """Context manager that runs commands one at a time, with a shared compilation cache.

    folder: parent of all run folders. bucket: file system of a bucket that has the folders of runs instead, or None.
    """

    def __init__(self, folder: pathlib.Path, bucket=None):
        self.folder, self._bucket = folder, bucket
        (folder / "chance.py").write_text(CHANCE)
        environment = {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled")),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "XLA_FLAGS": QUICK,  # one device
            "OPENBLAS_NUM_THREADS": "1",  # a process with threads cannot be forked
            "PYTHONPATH": str(HERE.parents[1]),
        }
        if bucket:
            environment["XDG_CACHE_HOME"] = str(folder / "cache")
        program = [sys.executable, str(HERE / "announced.py")]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._starter = subprocess.Popen(program, env=os.environ | environment, **pipes)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._starter.communicate()

    def run(self, command: str, workdir: pathlib.Path, variant: str, kill: Kill | None = None) -> tuple[int, str, bool]:
        """Returns the exit status, the last announced event, and whether the signal was sent."""
        flags = [f"--config={TINY}", *VARIANTS[variant]] if command == "train" else ["--trust=chance:reward"]
        place: object = workdir
        if self._bucket:
            place = f"gs://team/{workdir.name}"
            flags += [f"--output={workdir / 'evaluations' / 'rl-8'}"] * (command == "evaluate")
        argv = [f"igpo_jax.{command}", f"--workdir={place}", *flags]
        request = {"argv": argv, "log": str(_log(workdir)), "cwd": str(self.folder)}
        print(json.dumps(request), file=self._starter.stdin, flush=True)
        process, last, seen, sent = int(self._starter.stdout.readline()), "start", 0, False
        while True:
            if kill and not sent and seen == kill.occurrence:
                time.sleep(kill.delay)
                with contextlib.suppress(ProcessLookupError):  # the process has already ended
                    os.kill(process, kill.signal)
                sent = True
            line = self._starter.stdout.readline().strip()
            if line.startswith("ended"):
                return int(line.split()[1]), last, sent
            last, seen = line, seen + (kill is not None and line == kill.moment)

    def finish(self, command: str, workdir: pathlib.Path, variant: str) -> None:
        """Runs a command to its end.

        Raises:
            RuntimeError: the command fails; includes its output.
        """
        code, last, _ = self.run(command, workdir, variant)
        if code:
            raise RuntimeError(f"{command}, {last}: ended with {code}:\n{_log(workdir).read_text()[-3000:]}")

    def fetch(self, workdir: pathlib.Path) -> None:
        """Downloads a run from the bucket to its folder."""
        if self._bucket:
            self._bucket.invalidate_cache()
            self._bucket.get(f"team/{workdir.name}/", f"{workdir}/", recursive=True)

    def disturb(self, kill: Kill, workdir: pathlib.Path, variant: str) -> str | None:
        """Runs a command and kills it. Returns a description, or None if the process ended before the signal.

        Raises:
            RuntimeError: the exit status is not that of a killed or completed process; includes the output.
        """
        code, last, sent = self.run(kill.command, workdir, variant, kill)
        printed = _log(workdir).read_text()
        # After SIGINT and SIGHUP, the exit status of a run that has saved its state is that of one that died.
        if code in (0, 128 + kill.signal) and ("after saving" in printed or "everything was saved" in printed):
            return f"saved and stopped in {last}"
        if code in (-kill.signal, 128 + kill.signal):
            return f"died in {last}"
        if code:
            raise RuntimeError(f"{kill}, {last}: ended with {code}:\n{printed[-3000:]}")
        if "the same command continues the run" in printed:
            return f"stopped in {last}"
        return "was done before it heard" if sent else None


def _log(workdir: pathlib.Path) -> pathlib.Path:
    return workdir.with_suffix(".log")


def differences(one: pathlib.Path, other: pathlib.Path) -> list[str]:
    """Returns the differences between two finished runs, times excluded."""
    found = []
    for stage in ("sft", "rl"):
        folders = [max((run / "checkpoints" / stage).iterdir(), key=lambda path: int(path.name)) for run in (one, other)]
        leaves = [jax.tree.leaves_with_path(ocp.load_checkpointables(folder)) for folder in folders]
        if [path for path, _ in leaves[0]] != [path for path, _ in leaves[1]] or folders[0].name != folders[1].name:
            found.append(f"checkpoints {stage}")
        for (path, a), (_, b) in zip(*leaves, strict=False):
            if not np.array_equal(_array(a), _array(b), equal_nan=True):
                found.append(f"checkpoint {folders[0].name} of {stage}: {jax.tree_util.keystr(path)}")
    files = ["metrics.jsonl", "rollouts.jsonl", "evaluations.jsonl"]
    files += [str(path.relative_to(other)) for path in (other / "evaluations").rglob("*.jsonl")]
    for name in files:
        if _untimed(read_rows(one / name)) != _untimed(read_rows(other / name)):
            found.append(name)
    cards = [str(path.relative_to(other)) for path in (other / "evaluations").rglob("card.json")]
    for name in ("result.json", *cards):
        values = [_without_times(json.loads((run / name).read_text())) for run in (one, other)]
        if values[0] != values[1]:
            found.append(name)
    left_over = [path for pattern in ("*.partial", "*-unreadable", "*tmp*") for path in one.rglob(pattern)]
    return found + [f"left over: {path.relative_to(one)}" for path in left_over]


def _array(leaf) -> np.ndarray:
    is_key = isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def _untimed(rows: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if not name.startswith(("time/", "speed/"))} for row in rows]


def _without_times(values: dict) -> dict:
    """Drops times, and the `model` of an evaluation card: its folder, and a digest over files with random names."""
    return {name: value for name, value in values.items() if name not in ("wall_seconds", "logs", "seconds", "date", "model")}


def disturbed(runs: Runs, kills: list[Kill], workdir: pathlib.Path, variant: str, report: Callable[[Kill, str], None]) -> None:
    """Trains and evaluates one run with these kills; calls `report` for each kill that took effect."""
    for command in ("train", "evaluate"):
        for kill in kills:
            if kill.command == command:
                happened = runs.disturb(kill, workdir, variant)
                if happened is not None:
                    report(kill, happened)
        runs.finish(command, workdir, variant)
    runs.fetch(workdir)


@contextlib.contextmanager
def emulated_bucket(cache: pathlib.Path) -> Iterator[Any]:
    """Context manager that starts an emulated bucket for this process and its children. Yields its file system."""
    from storage_emulator import connected, storage_emulator

    with pytest.MonkeyPatch.context() as patch, storage_emulator() as address, connected(address, patch, cache) as files:
        yield files


@contextlib.contextmanager
def nothing_ignored() -> Iterator[None]:
    """Context manager in whose body child processes start with the signals' default actions. nohup and shells without job
    control make their jobs ignore some."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in set(SIGNALS) - {signal.SIGKILL}}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def log_to(output: pathlib.Path | None) -> tuple[list[str], Callable[[str], None]]:
    """Returns the list of the lines that were said, and a function that says a line: prints it and writes all to the file."""
    lines: list[str] = []

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)
        if output:
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text("".join(f"{line}\n" for line in lines))

    return lines, say


def heading() -> str:
    """Returns a line with the date, the device and the versions."""
    where = environment()
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    return f"{datetime.now(UTC):%Y-%m-%d}, {where['device']}, Python {where['python']}, {versions}, commit {where['commit']}"


def main(arguments: list[str] | None = None) -> int:
    """Returns the number of runs whose result differs from the undisturbed run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="at least so many, also of each signal")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bucket", action="store_true", help="the folders of the killed runs are in an emulated bucket")
    parser.add_argument("--output", type=pathlib.Path, help="a copy of what is printed")
    options = parser.parse_args(arguments)
    lines, say = log_to(options.output)
    say(heading())
    begin, identical, total = time.monotonic(), 0, 0
    done: collections.Counter[signal.Signals] = collections.Counter()
    with contextlib.ExitStack() as held:
        folder = pathlib.Path(held.enter_context(tempfile.TemporaryDirectory()))
        held.enter_context(nothing_ignored())
        undisturbed = {variant: folder / variant for variant in VARIANTS}
        with Runs(folder) as local:
            for variant, workdir in undisturbed.items():
                for command in ("train", "evaluate"):
                    local.finish(command, workdir, variant)
        bucket = held.enter_context(emulated_bucket(folder / "cache")) if options.bucket else None
        runs = held.enter_context(Runs(folder, bucket))
        for kills, variant in zip(kills_of_runs(options.seed), itertools.cycle(VARIANTS)):
            if all(done[number] >= options.kills * SIGNALS.count(number) / len(SIGNALS) for number in SIGNALS):
                break
            workdir = runs.folder / f"run{total}"

            def report(kill: Kill, happened: str) -> None:
                done[kill.signal] += 1
                moment = kill.moment + (f" {kill.occurrence}" if kill.occurrence else "")
                say(
                    f"{done.total():3} run {total} ({variant}), {kill.command}: {kill.signal.name} {1000 * kill.delay:.0f} ms "
                    f"after {moment}: {happened}"
                )

            try:
                disturbed(runs, kills, workdir, variant, report)
                found = differences(workdir, undisturbed[variant])
            except RuntimeError as error:
                found = [str(error)]
            say(f"    run {total} has ended: {'identical' if not found else 'DIFFERS in ' + ', '.join(found)}")
            identical, total = identical + (not found), total + 1
            shutil.rmtree(workdir)
    signals = ", ".join(f"{number} {sent.name}" for sent, number in done.most_common())
    say(f"{done.total()} kills ({signals}) of {total} runs in {time.monotonic() - begin:.0f} s: {identical}/{total} identical")
    return total - identical


if __name__ == "__main__":
    sys.exit(main())
