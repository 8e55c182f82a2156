"""Sends SIGINT, SIGHUP and SIGTERM to every command at random moments, and checks how it ends.

    python tests/campaigns/signals.py --moments=10 --output=benchmarks/results/signals.log

A command must end with one line and 128 + the signal's number (0 after SIGTERM in train), without a traceback, a crash, a process
that goes on, or a temporary file. A moment is a delay after the process handles signals, at most the time that the command needs
undisturbed. Commands that resume are started again in the same folder until all signals were sent, and the final result must be
identical to the undisturbed one, bit for bit. tests/faults runs the same code with fewer moments.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from typing import Any

HERE = pathlib.Path(__file__).parent
sys.path += [str(HERE), str(HERE.parent / "helpers")]

import faults
from commands import QUICK
from processes import free_port

SIGNALS = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)
LIMIT = 150.0  # seconds for ending after a signal, and for a whole command
SERVED = 5.0  # seconds of the moments of a command that ends only when told
FORBIDDEN = re.compile(r"Traceback|Segmentation|Fatal|BrokenPipe|Aborted|terminate called|Exception ignored|KeyboardInterrupt")
TINY = f"--config={faults.TINY}"
SMALL = ("--config.sft.updates=10", "--config.rl.iterations=1", "--config.rl.prompts=2", "--config.rl.group_size=4")
SMALL += ("--config.sft.heldout=0", "--config.reward.workers=1")
TEXTS = [{"id": str(i), "gold": f"{i}", "text": f"It is \\boxed{{{i % 7}}}."} for i in range(300)]
PROBLEMS = [{"id": f"p{i}", "question": f"{i}+1?", "answer": f"{i + 1}", "solution": f"It is {i + 1}."} for i in range(300)]


@dataclasses.dataclass(frozen=True)
class Command:
    """A command that runs in an empty folder. `result` reads from this folder what must not depend on interruptions; None if
    the command does not resume."""

    module: str
    flags: tuple[str, ...]
    result: Callable[[pathlib.Path], Any] | None = None
    line: str = "interrupted"  # beginning of the last line after a signal
    served: bool = False  # ends only when told


def commands_of(shared: pathlib.Path) -> dict[str, Command]:
    """Returns the commands. shared: a folder with a finished run and input files."""
    run, out = shared / "run", "--output=out"
    read = {"evaluate": _benchmarks, "regrade": _regraded, "rewrite": lambda folder: (folder / "out/kept.jsonl").read_text()}
    rewriting = (f"--problems=jsonl:{shared / 'problems.jsonl'}", f"--tokenizer={run / 'tokenizer.model'}", "--workers=1", out)
    comparing = (TINY, "--arms=igpo", "--seeds=0", out, *SMALL)
    return {
        "train": Command("train", (TINY, "--workdir=out", *faults.SHORT), line="stopped by "),
        "compare": Command("compare", comparing),
        "evaluate": Command("evaluate", (f"--workdir={run}", out), read["evaluate"]),
        "evaluate --regrade": Command("evaluate", (f"--regrade={shared / 'texts.jsonl'}", out), read["regrade"]),
        "rewrite": Command("rewrite", rewriting, read["rewrite"]),
        "generate": Command("generate", (f"--model={run}", "--prompt=5+5=", "--prompt=1+5=")),
        "convert": Command("convert", (f"--source={run}", "--target=out", "--format=huggingface")),
        "plan": Command("plan", (TINY,)),
        "report": Command("report", (str(run), "--output=out.html")),
        "inspect_data": Command("inspect_data", (TINY,)),
        "doctor": Command("doctor", ()),
        "playground": Command("playground", (f"--model={run}",), served=True),
    }


def _benchmarks(folder: pathlib.Path) -> Any:
    return json.loads((folder / "out/card.json").read_text())["benchmarks"]


def _regraded(folder: pathlib.Path) -> Any:
    card = json.loads((folder / "out/regrade.json").read_text())
    return card["results"], (folder / "out/disagreements.jsonl").read_text()


@dataclasses.dataclass(frozen=True)
class End:
    """How a command has ended. line: its last one. left: processes and temporary files that it has left."""

    status: int
    line: str
    sent: bool
    printed: str
    left: list[str]


def start(command: Command, folder: pathlib.Path, compiled: pathlib.Path) -> tuple[subprocess.Popen, str]:
    """Starts a command in `folder`. Returns the process and a mark that its environment and that of its children has."""
    mark = f"IGPO_SIGNALS_CAMPAIGN={uuid.uuid4()}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tmp").mkdir(exist_ok=True)
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": QUICK,
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONPATH": str(HERE.parents[1]),
        "TMPDIR": str(folder / "tmp"),
        mark.partition("=")[0]: mark.partition("=")[2],
    }
    flags = [*command.flags, *([f"--port={free_port()}"] if command.served else [])]
    argv = [sys.executable, "-m", f"igpo_jax.{command.module}", *flags]
    with (folder / "log").open("wb") as log:
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
        process = subprocess.Popen(argv, cwd=folder, env=environment, process_group=0, **streams)
    return process, mark


def wait_until_handled(process: subprocess.Popen) -> None:
    """Waits until the process has handlers for all signals, or has ended."""
    wanted = sum(1 << (number - 1) for number in SIGNALS)
    while process.poll() is None:
        with contextlib.suppress(OSError, AttributeError):
            status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
            if int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16) & wanted == wanted:
                return
        time.sleep(0.002)


def run(command: Command, folder: pathlib.Path, compiled: pathlib.Path, sent: tuple[int, float] | None = None) -> End:
    """Runs a command, and sends it a signal after a delay. sent: (signal, seconds), or None to run to the end."""
    process, mark = start(command, folder, compiled)
    was_sent = False
    try:
        wait_until_handled(process)
        if sent:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(sent[1])
            was_sent = process.poll() is None
            process.send_signal(sent[0])
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(LIMIT)
        process.kill()  # which makes the status -9
        status = process.wait()
        left = [f"process {line}" for line in _marked(mark)]
    finally:
        process.kill()
        process.wait()
        for line in _marked(mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(line.split()[0]), signal.SIGKILL)
    left += [f"file {path.relative_to(folder)}" for path in [*(folder / "tmp").iterdir(), *folder.glob("*.partial")]]
    shutil.rmtree(folder / "tmp")
    printed = (folder / "log").read_text("utf-8", "replace")
    lines = [line for line in printed.splitlines() if line.strip()]
    return End(status, lines[-1] if lines else "", was_sent, printed, left)


def _marked(mark: str) -> list[str]:
    """Returns "PID COMMAND" of the processes that have `mark` in their environment."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or belongs to another user
            if mark.encode() in (path / "environ").read_bytes().split(b"\0"):
                found.append(f"{path.name} {(path / 'cmdline').read_bytes().replace(bytes(1), b' ').decode()[:100]}")
    return found


def faults_of(end: End, command: Command, number: int) -> list[str]:
    """Returns what is wrong with the end of a command that was sent the signal `number`."""
    stopped = 0 if (command.module, number) == ("train", signal.SIGTERM) else 128 + number
    found = [f"{what} is left" for what in end.left]
    found += [f"it printed {word!r}" for word in sorted(set(FORBIDDEN.findall(end.printed)))]
    if end.line.startswith(command.line):
        found += [f"status {end.status} instead of {stopped}"] * (end.status != stopped)
    elif end.status or command.served:
        found.append(f"status {end.status}, last line {end.line!r}")
    return found


def result_of(name: str, command: Command, folder: pathlib.Path, undisturbed: pathlib.Path) -> list[str]:
    """Compares the final result in `folder` with the undisturbed one. Returns the differences."""
    if name == "train":
        return faults.differences(folder / "out", undisturbed / "out")
    if name == "compare":
        runs = "out/seed-0/supervised", "out/seed-0/igpo"
        return [text for run in runs for text in _run_differences(folder / run, undisturbed / run)]
    assert command.result is not None
    return [] if command.result(folder) == command.result(undisturbed) else ["result"]


def _run_differences(one: pathlib.Path, other: pathlib.Path) -> list[str]:
    """Returns the logs of two runs that differ; unlike those of `faults.differences`, a run may lack a stage."""
    names = [name for name in ("metrics.jsonl", "rollouts.jsonl", "evaluations.jsonl") if (other / name).exists()]
    return [
        name
        for name in names
        if faults._untimed(faults.read_rows(one / name)) != faults._untimed(faults.read_rows(other / name))
    ]


def chain(
    name: str, command: Command, number: int, delays: list[float], folder: pathlib.Path, shared: pathlib.Path
) -> list[str]:
    """Sends a signal to a command at several moments. Returns the lines to print; those of faults begin with FAULT."""
    resumes = command.result is not None or name in ("train", "compare")
    said, compiled, part = [], shared / "compiled", 0
    for turn, delay in enumerate(delays):
        at = folder / str(part)
        end = run(command, at, compiled, (number, delay))
        wrong = faults_of(end, command, number)
        done = end.status == 0 and not end.line.startswith(command.line)
        ended = f"status {end.status}, {'done: ' if done else ''}{end.line[:100]!r}"
        said.append(f"{'FAULT ' if wrong else ''}{name}, {signal.Signals(number).name} after {delay:.2f} s: {ended}")
        if wrong:
            said.append(f"FAULT {'; '.join(wrong)}: ...{end.printed[-1500:]}")
        last = turn == len(delays) - 1
        if resumes and (done or last):
            if not done:
                end = run(command, at, compiled)
            differing = result_of(name, command, at, shared / name) if end.status == 0 else [f"it fails: {end.printed[-1500:]}"]
            said.append(f"FAULT {name} DIFFERS in {differing}" if differing else f"    {name}: the result is identical")
        if done or not resumes:
            part += 1
    shutil.rmtree(folder)
    return said


def prepare(shared: pathlib.Path, names: list[str]) -> tuple[dict[str, Command], dict[str, float]]:
    """Trains the run that other commands read, and runs each command twice undisturbed, first to fill the compilation cache.
    Returns the commands and how long each takes after it handles signals."""
    for file, rows in (("texts.jsonl", TEXTS), ("problems.jsonl", PROBLEMS)):
        (shared / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    commands, seconds = commands_of(shared), {}
    reads_run = any(str(shared / "run") in flag for name in names for flag in commands[name].flags)
    for name in [*["train"] * reads_run, *(name for name in names if name != "train" or not reads_run)]:
        if commands[name].served:
            seconds[name] = SERVED
            continue
        for _ in range(2):
            shutil.rmtree(shared / name, ignore_errors=True)
            begin = time.monotonic()
            end = run(commands[name], shared / name, shared / "compiled")
            seconds[name] = time.monotonic() - begin
            assert end.status == 0 and not end.left, f"{name}: {end.status}, {end.left}: {end.printed[-3000:]}"
        if name == "train" and reads_run:
            shutil.copytree(shared / name / "out", shared / "run")
    return {name: commands[name] for name in names}, seconds


def main(arguments: list[str] | None = None) -> int:
    """Returns the number of faults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=10, help="of each command and signal")
    parser.add_argument("--commands", default="", help="comma-separated, by default all; NAME:SIGINT sends only this signal")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="commands at the same time")
    parser.add_argument("--output", type=pathlib.Path, help="a copy of what is printed")
    options = parser.parse_args(arguments)
    lines, say = faults.log_to(options.output)
    draw, begin = random.Random(options.seed), time.monotonic()
    with tempfile.TemporaryDirectory() as name, faults.nothing_ignored():
        shared = pathlib.Path(name)
        chosen = list(filter(None, options.commands.split(","))) or list(commands_of(shared))
        numbers = {name: [signal.Signals[one]] if one else SIGNALS for name, _, one in (each.partition(":") for each in chosen)}
        commands, seconds = prepare(shared, list(numbers))
        say(f"undisturbed: {', '.join(f'{name} {seconds[name]:.0f} s' for name in commands)}")
        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            futures = []
            for name, command in commands.items():
                for number in numbers[name]:
                    delays = [draw.uniform(0, seconds[name]) for _ in range(options.moments)]
                    place = shared / f"{name}-{number:d}"
                    futures.append(pool.submit(chain, name, command, number, delays, place, shared))
            for future in futures:
                for line in future.result():
                    say(line)
    faulty = sum(line.startswith("FAULT") for line in lines)
    say(f"{sum(map(len, numbers.values())) * options.moments} signals in {time.monotonic() - begin:.0f} s, faults: {faulty}")
    return faulty


if __name__ == "__main__":
    sys.exit(main() > 0)
