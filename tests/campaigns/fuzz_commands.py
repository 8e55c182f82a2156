"""Runs the commands on hostile folders, files and requests, and checks that they end well and touch nothing else.

    python tests/campaigns/fuzz_commands.py --minutes=60 --output=benchmarks/results/fuzz_commands.log
    python tests/campaigns/fuzz_commands.py --case=17 [--seed=0]    # runs one case again, and keeps its folder

A case is a command, copies of what it reads, and one to three random changes (tests/helpers/hostile_files.py) or, for the
playground, requests (hostile_requests.py). The command must end with status 0, or with status 1 and one line `error: ...`,
without a traceback, within 60 s of CPU time and 2 GB of memory. It may write only into its target, may not copy or show files
outside of its folders, may not import a module of the folder that it starts in, and leaves no process and no temporary file.
Pages that it writes may not contain the elements that hostile texts inject.

Commands are forked from a process that has imported everything and has not initialized a backend (tests/helpers/commands.py);
two busy cores run about 50 cases per minute with two jobs. Prints faults as they are found, and counts per command, per kind of
change and per kind of fault at the end. Needs neither GPU nor network.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import fnmatch
import json
import os
import pathlib
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator

os.environ.setdefault("JAX_PLATFORMS", "cpu")

HERE = pathlib.Path(__file__).parent
sys.path += [str(HERE), str(HERE.parent / "helpers")]

import faults
import signals
from commands import QUICK, Process, start
from fuzz_checks import Case, faults_of_end, faults_of_files, faults_of_outputs, snapshot
from fuzz_inputs import Command, commands_of, prepare
from hostile_files import FOLDER_NAMES, Folder, prepare_sandbox
from hostile_requests import VALID, ask, hostile_request
from processes import free_port

CPU_SECONDS, WALL_SECONDS, MEMORY = 60.0, 150.0, 2 * 10**9  # of a command; the machine may be busy with others
REQUESTS = 25  # of a case of the playground
# Methods of hostile_files.Folder and their weights.
KINDS = {"value": 5, "text": 4, "bytes": 2, "link": 2, "missing": 1, "planted": 1, "code": 1, "number": 1, "cell": 2, "bomb": 1}
LAUNCHES = threading.Lock()  # the server forks for one request at a time


def plan_case(
    number: int, seed: int, commands: dict[str, Command], shared: pathlib.Path, root: pathlib.Path
) -> tuple[Case, dict]:
    """Chooses a command, copies its inputs into the sandbox and changes them. Returns the case and the paths of the inputs."""
    draw = random.Random(f"{seed} {number}")
    [name] = draw.choices(list(commands), [command.weight for command in commands.values()])
    return mutate(Case(number, name, [], [], []), commands[name], draw, shared, root)


def mutate(
    case: Case, command: Command, draw: random.Random | None, shared: pathlib.Path, root: pathlib.Path
) -> tuple[Case, dict]:
    """Copies the inputs into the sandbox and changes them; without `draw`, changes nothing."""
    box, paths = prepare_sandbox(root), {}
    for name in command.inputs:
        source = shared / name
        paths[name] = name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, box / name)
    if draw is None or case.command == "playground requests":
        return case, paths
    patterns = command.mutable or (f"{command.inputs[0]}/*", command.inputs[0])
    files = sorted(path for path in box.rglob("*") if path.is_file())
    files = [path for path in files if any(fnmatch.fnmatch(str(path.relative_to(box)), pattern) for pattern in patterns)]
    hostile = Folder(root, files, draw, command.writes)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        kind = draw.choice([kind for kind, weight in KINDS.items() for _ in range(weight)])
        change = getattr(hostile, kind)()
        if change is None:
            kind, change = "bytes", hostile.bytes()
        if change is None:  # no file is left
            break
        case.kinds.append(kind)
        case.changes.append(change)
    first = box / command.inputs[0]
    if draw.random() < 0.08 and command.inputs[0] not in command.writes and (first.is_dir() or first.is_symlink()):
        paths[command.inputs[0]] = draw.choice(FOLDER_NAMES)
        first.rename(box / paths[command.inputs[0]])
        case.kinds.append("folder name")
        case.changes.append(f"{command.inputs[0]} is named {paths[command.inputs[0]]!r}")
    return case, paths


def run_case(case: Case, command: Command, paths: dict[str, str], root: pathlib.Path, seed: int) -> Case:
    """Runs a command in a sandbox, and adds what is wrong to the case."""
    before, log, mark = snapshot(root), root.with_name(f"{root.name}.log"), f"IGPO_FUZZING_CAMPAIGN={root}"
    env = os.environ | {"TMPDIR": str(root / "tmp"), "HOME": str(root / "home"), "TQDM_DISABLE": "1"}
    env |= dict([mark.split("=", 1)])
    log.touch()
    flags = [flag.format(**paths) for flag in command.flags]
    port = free_port()
    flags += [f"--port={port}"] if command.module == "playground" else []
    begin = time.monotonic()
    with LAUNCHES:
        process = start(command.module, *flags, stdout=log, cwd=root / "box", env=env)
    assert isinstance(process, Process)  # forked
    with watched(process, case.faults, 4 if case.command == "playground requests" else 1):
        if command.module == "playground":
            draw = random.Random(f"{seed} {case.number} requests")
            serve(case, process, port, log, draw)
        case.status = process.wait()
    case.seconds = time.monotonic() - begin
    printed = log.read_bytes().decode("utf-8", "replace")
    case.faults += faults_of_end(case, printed, command)
    case.faults += faults_of_files(before, snapshot(root), command)
    case.faults += faults_of_outputs(root / "box", command, case.status)
    if command.makes and case.status == 0 and not list((root / "box").glob(command.makes)):
        case.faults.append(f"status 0 without {command.makes}")
    case.faults += [f"left process {line.partition(' ')[2]}" for line in stragglers(mark)]
    return case


@contextlib.contextmanager
def watched(process: Process, found: list[str], factor: int = 1) -> Iterator[None]:
    """Context manager that kills a process above the limits of memory and of `factor` times the time, and appends the reason to
    `found`."""
    ended, begin = threading.Event(), time.monotonic()

    def watch() -> None:
        while not ended.wait(0.02):
            try:
                fields = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                return
            cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            memory, wall = int(fields[21]) * os.sysconf("SC_PAGE_SIZE"), time.monotonic() - begin
            for name, value, most in (
                ("memory", memory, MEMORY),
                ("CPU time", cpu / factor, CPU_SECONDS),
                ("time", wall / factor, WALL_SECONDS),
            ):
                if value > most:
                    found.append(f"{name} above {most:.3g}")
                    os.kill(process.pid, signal.SIGKILL)
                    return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def serve(case: Case, process: Process, port: int, log: pathlib.Path, draw: random.Random) -> None:
    """Sends requests to a playground that may not have started, and ends it."""
    while process.poll() is None and f":{port}/" not in log.read_bytes().decode("utf-8", "replace"):
        time.sleep(0.05)
    if process.poll() is not None:
        return
    hostile = case.command == "playground requests"
    case.kinds += ["requests"] * hostile
    for number in range(REQUESTS if hostile else len(VALID)):
        method, path, body = VALID[number % len(VALID)]
        content = json.dumps(body).encode() if body else b""
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\nConnection: close\r\n"
        request, broken = f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content, False
        if hostile:
            request, broken = hostile_request(draw, port)
        leaves = hostile and draw.random() < 0.1
        reply = ask(port, request, 2 if broken else WALL_SECONDS, leaves)
        status = re.match(rb"HTTP/1\.1 (\d+)", reply)
        if process.poll() is None and not leaves and (not status and not broken or status and int(status[1]) >= 500):
            case.faults.append(f"reply {(status[0] if status else reply[:40])!r} to a request")
            case.changes.append(f"{request[:3000]!r}")
            break
    if (
        process.poll() is None
        and b" 200 " not in ask(port, f"GET /info HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode(), 5)[:20]
    ):
        case.faults.append("the playground serves nobody any more")
    process.send_signal(signal.SIGTERM)


def stragglers(mark: str) -> list[str]:
    """Returns the processes of a case that do not end by themselves within seconds, and kills them."""
    deadline = time.monotonic() + 5
    while (left := signals._marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for line in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(line.split()[0]), signal.SIGKILL)
    return left


def run_numbered(number: int, seed: int, commands: dict[str, Command], folder: pathlib.Path) -> Case:
    root = folder / f"case-{number}"
    shutil.rmtree(root, ignore_errors=True)
    case, paths = plan_case(number, seed, commands, folder / "shared", root)
    return run_case(case, commands[case.command], paths, root, seed)


def check_unchanged(name: str, command: Command, folder: pathlib.Path) -> None:
    """Runs a command on unchanged inputs, which also fills the compilation cache. Raises AssertionError if it fails."""
    root = folder / f"unchanged {name.replace('/', ' ')}"
    shutil.rmtree(root, ignore_errors=True)
    case, paths = mutate(Case(0, name.removesuffix("requests"), [], [], []), command, None, folder / "shared", root)
    case = run_case(case, command, paths, root, 0)
    log = root.with_name(f"{root.name}.log").read_text(errors="replace")
    assert not case.faults and case.status in (0, 143), f"{name}: {case}: {log[-3000:]}"


def summary(cases: list[Case]) -> Iterator[str]:
    """Yields the counts per command, kind of change and fault."""
    for title, counted in (
        ("command", [case.command for case in cases]),
        ("change", [kind for case in cases for kind in case.kinds]),
        ("status", [str(case.status) for case in cases]),
    ):
        yield f"{title}: " + ", ".join(f"{name} {count}" for name, count in collections.Counter(counted).most_common())
    kinds = collections.defaultdict(list)
    for case in cases:
        for fault in case.faults:
            kinds[case.command, fault].append(case.number)
    for (command, fault), numbers in sorted(kinds.items(), key=lambda item: item[0][::-1]):
        yield f"{len(numbers):4} x {command}: {fault} (cases {', '.join(map(str, numbers[:8]))})"


def main(arguments: list[str] | None = None) -> int:
    """Returns the number of faulty cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--cases", type=int, help="at most so many")
    parser.add_argument("--case", type=int, help="only this one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", default="", help="comma-separated beginnings of their names, by default all")
    parser.add_argument("--jobs", type=int, default=2, help="cases at the same time")
    parser.add_argument("--folder", type=pathlib.Path, help="keeps the inputs and the faulty cases")
    parser.add_argument("--output", type=pathlib.Path, help="a copy of what is printed")
    options = parser.parse_args(arguments)
    lines, say = faults.log_to(options.output)
    folder = (options.folder or pathlib.Path(tempfile.mkdtemp(prefix="fuzz-commands-"))).absolute()
    (folder / "shared").mkdir(parents=True, exist_ok=True)
    if arguments is None:  # started as a program, so that the server that forks has not started
        compiled = {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        os.environ.update(compiled | {"XLA_FLAGS": QUICK})
    chosen = tuple(filter(None, options.commands.split(",")))
    commands = {name: command for name, command in commands_of().items() if not chosen or name.startswith(chosen)}
    prepare(folder / "shared", commands)
    if options.case is not None:
        case = run_numbered(options.case, options.seed, commands, folder)
        say(
            f"{case}\n{(folder / f'case-{case.number}.log').read_text(errors='replace')[-5000:]}\n{folder / f'case-{case.number}'}"
        )
        return bool(case.faults)
    where = faults.environment()
    say(
        f"{where['device']}, Python {where['python']}, jax {where['versions']['jax']}, commit {where['commit']}, seed {options.seed}"
    )
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda name: check_unchanged(name, commands[name], folder), commands))
    begin, cases = time.monotonic(), []

    def run_next(number: int) -> Case | None:
        return run_numbered(number, options.seed, commands, folder) if time.monotonic() - begin < 60 * options.minutes else None

    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for case in pool.map(run_next, range(options.cases or 10**5)):
            if case is None:
                break
            cases.append(case)
            if case.faults:
                say(f"FAULT case {case.number} {case.command}: {'; '.join(case.faults)}; after {'; '.join(case.changes)[:400]}")
            else:
                shutil.rmtree(folder / f"case-{case.number}")
                (folder / f"case-{case.number}.log").unlink()
    minutes = (time.monotonic() - begin) / 60
    for line in summary(cases):
        say(line)
    faulty = sum(bool(case.faults) for case in cases)
    say(
        f"{len(cases)} cases in {minutes:.1f} minutes, {len(cases) / minutes:.0f} per minute; faulty: {faulty}; folder: {folder}"
    )
    if not options.folder and not faulty:
        shutil.rmtree(folder)
    return faulty


if __name__ == "__main__":
    sys.exit(main() > 0)
