"""Runs the commands on hostile folders, files and requests, and checks that they end well and touch nothing else.

    python tests/campaigns/fuzz_commands.py --minutes=60 --output=benchmarks/results/fuzz_commands.log
    python tests/campaigns/fuzz_commands.py --case=17 [--seed=0]    # runs one case again, and keeps its folder

A case is a command, copies of what it reads, and one to three random changes (tests/helpers/hostile_files.py) or, for the
playground, requests (hostile_requests.py). The command must end with status 0, or with status 1 and one line `error: ...`,
without a traceback, within 60 s of CPU time and 2 GB of memory. It may write only into its target, may not copy or show files
outside of its folders, may not import a module of the folder that it starts in, and leaves no process and no temporary file.
Pages that it writes may not contain the elements that hostile texts inject.

Commands are forked from a process that has imported everything and has not initialized a backend (tests/helpers/commands.py);
with two jobs, two cores that others use, too, run about 50 cases per minute. Prints faults as they are found, and counts per command, per kind of
change and per kind of fault at the end. Needs neither GPU nor network.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import dataclasses
import fnmatch
import hashlib
import html.parser
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
from hostile_files import FOLDER_NAMES, PRECIOUS, SCRIPT, Folder, prepare_sandbox
from hostile_requests import VALID, ask, hostile_request
from processes import free_port

CPU_SECONDS, WALL_SECONDS, MEMORY = 60.0, 150.0, 2 * 10**9  # of a command; the machine may be busy with others
REQUESTS = 25  # of a case of the playground
LONGEST_LINE = 2000  # characters of an error
TINY = f"--config={faults.TINY}"
SHORT = ("--config.sft.updates=20", "--config.sft.checkpoint_every=10", "--config.rl.iterations=3", "--config.rl.prompts=2")
SHORT += ("--config.rl.group_size=4", "--config.sft.heldout=0", "--config.reward.workers=1")
DECODED = ("--completion_length=8", "--block_length=8", "--steps=4", "--prompt=What is the answer?")
# Methods of hostile_files.Folder and their weights.
KINDS = {"value": 5, "text": 4, "bytes": 2, "link": 2, "missing": 1, "planted": 1, "code": 1, "number": 1, "cell": 2, "bomb": 1}
LAUNCHES = threading.Lock()  # the server forks for one request at a time


@dataclasses.dataclass(frozen=True)
class Command:
    """A command that runs in a sandbox. {NAME} in its flags is the path of an input.

    inputs: what is copied into the sandbox. mutable: patterns of the files that change; by default all of the first input.
    writes: what it may write. makes: a pattern of a file that exists after status 0.
    """

    module: str
    flags: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    mutable: tuple[str, ...] = ()
    writes: tuple[str, ...] = ("out",)
    makes: str = ""
    weight: int = 2


def commands_of() -> dict[str, Command]:
    model, out, page = ("generate", ("--model={model}", *DECODED)), "--output=out", "--output=out.html"
    workdir, one, data = ("--workdir={run}", "--benchmarks=test"), "--config=math.py:smoke", ("data/*",)
    run, pages = (
        ("run/config.json", "run/*.json*", "run/tokenizer.model", "run/checkpoints/*"),
        ("out.html", "out.html.partial"),
    )
    decode = tuple(
        f"--config.decode.{name}={value}" for name, value in (("completion_length", 8), ("block_length", 8), ("steps", 4))
    )
    decode += ("--config.batch_size=2",)
    tests = (
        "math500.task.test=jsonl:{data}/jsonl.jsonl",
        "countdown.task.test={data}/countdown.jsonl",
        "sudoku.task.test={data}/sudoku.csv",
    )

    def inspected(file: str) -> Command:
        kind = file.partition(".")[0]
        sources = (
            f"--config.task.rl={kind}:{{data}}/{file}",
            "--config.task.test=jsonl:{data}/test.jsonl",
            "--config.task.sft=",
        )
        flags = (one, *sources, "--config.sft.updates=0", "--config.model.path={model}")
        return Command("inspect_data", flags, ("data", "model"), (f"data/{file}",), weight=1)

    return {
        "generate RUN": Command("generate", ("--model={run}", "--prompt=5+5="), ("run",), run),
        "generate MODEL": Command(*model, ("model",), weight=4),
        "generate CONVERTED": Command("generate", ("--model={converted}", *DECODED), ("converted",)),
        "generate ADAPTERS": Command(*(model[0], (*model[1], "--adapters={adapters}")), ("adapters", "model")),
        "generate PROMPTS": Command(*(model[0], (*model[1], "--prompts={prompts}")), ("prompts", "model"), weight=1),
        "evaluate RUN": Command("evaluate", (*workdir[:1], out), ("run",), run),
        "evaluate again": Command("evaluate", (*workdir[:1], "--output=evaluation"), ("evaluation", "run"), writes=("evaluation",)),
        "evaluate FILES": Command("evaluate", ("--config=evaluate_math.py", "--config.model={model}", out, *decode,
            *(f"--config.benchmarks.{test}" for test in tests), "--benchmarks=math500,countdown,sudoku"), ("data", "model"), data),
        "evaluate diff": Command("evaluate", ("diff", "{evaluation}", "{other}"), ("evaluation", "other"), weight=1),
        "evaluate --regrade": Command("evaluate", ("--regrade={evaluation}", out), ("evaluation",), weight=1),
        "convert RUN": Command("convert", ("--source={run}", "--target=out", "--format=huggingface"), ("run",), run, makes="out/*.safetensors"),
        "convert MODEL": Command("convert", ("--source={model}", "--target=out"), ("model",), makes="out/params", weight=4),
        "convert CONVERTED": Command("convert", ("--source={converted}", "--target=out", "--format=huggingface"), ("converted",),
            makes="out/*.safetensors", weight=4),
        "report RUN": Command("report", ("{run}", page), ("run",), run[:2], pages, makes="out.html", weight=4),
        "report RUN RUN": Command("report", ("{run}", "{run2}", page), ("run", "run2"), ("run/*.json*", "run2/*.json*"), pages, "out.html"),
        "compare": Command("compare", (TINY, "--arms=grpo,igpo", "--seeds=0", "--output=comparison", *SHORT), ("comparison",),
            ("comparison/*.json", "comparison/*.jsonl"), ("comparison",), "comparison/comparison.html"),
        **{f"inspect_data {file}": inspected(file) for file in DATA},
        "rewrite": Command("rewrite", ("--problems=jsonl:{data}/jsonl.jsonl.gz", "--tokenizer={model}", "--workers=1", out),
            ("data", "model"), ("data/jsonl.jsonl.gz", "model/token*"), weight=1),
        "train": Command("train", (TINY, "--workdir=part", *SHORT), ("part",), ("part/*",), ("part",), weight=4),
        "playground RUN": Command("playground", ("--model={run}",), ("run",), run),
        "playground MODEL": Command("playground", ("--model={model}",), ("model",), weight=1),
        "playground requests": Command("playground", ("--model={model}",), ("model",), weight=4),
    }  # fmt: skip


DATA = (
    "gsm8k.jsonl",
    "math.json",
    "metamath.json",
    "openr1.parquet",
    "jsonl.jsonl",
    "jsonl.jsonl.gz",
    "jsonl.csv",
    "amc.array_record",
)


@dataclasses.dataclass
class Case:
    number: int
    command: str
    kinds: list[str]
    changes: list[str]
    faults: list[str]
    seconds: float = 0.0
    status: int | None = None
    line: str = ""


# Inputs


def prepare(shared: pathlib.Path, commands: dict[str, Command]) -> None:
    """Makes the inputs of the commands in a folder, except those that are there already."""
    needed = {name for command in commands.values() for name in command.inputs}
    needed |= {"run"} if needed & {"part", "run2", "comparison", "evaluation", "other"} else set()
    needed |= {"model"} if needed & {"converted", "adapters"} else set()
    for name in sorted(needed, key=list(MAKERS).index):
        if not (shared / name).exists():
            MAKERS[name](shared)


def _call(shared: pathlib.Path, module: str, *flags: str) -> None:
    log = shared / "log"
    status = start(module, *flags, stdout=log, cwd=shared).wait(600)
    assert status == 0, f"{module}: {log.read_text()[-3000:]}"


def _write_run(shared: pathlib.Path) -> None:
    _call(shared, "train", TINY, "--workdir=run", *SHORT)
    for path in (shared / "run").rglob("report.html"):
        path.unlink()  # large


def _write_part(shared: pathlib.Path) -> None:
    """Copies the run as it was before its last iteration."""
    part = shared / "part"
    shutil.copytree(shared / "run", part)
    (part / "result.json").unlink()
    shutil.rmtree(max((part / "checkpoints/rl").iterdir(), key=lambda folder: int(folder.name)))


def _write_model(shared: pathlib.Path) -> None:
    from tiny_llada import write_tiny_llada

    with tempfile.TemporaryDirectory() as folder:
        shutil.move(write_tiny_llada(pathlib.Path(folder), 2), shared / "model")
    (shared / "model" / "notes.txt").write_text("notes")


def _write_adapters(shared: pathlib.Path) -> None:
    import jax

    from igpo_jax.model import lora
    from igpo_jax.weights.huggingface import folder_model_config
    from igpo_jax.weights.peft import export_peft

    settings = lora.LoraConfig(2, 4.0, ("query", "down"))
    export_peft(lora.init(jax.random.key(0), folder_model_config(shared / "model"), settings), settings, shared / "adapters")


def _write_data(shared: pathlib.Path) -> None:
    from parsers import write_problems

    (shared / "data").mkdir()
    write_problems(shared / "data")
    import gzip

    (shared / "data/jsonl.jsonl.gz").write_bytes(gzip.compress((shared / "data/jsonl.jsonl").read_bytes()))
    (shared / "data/test.jsonl").write_text('{"question": "5 + 2?", "answer": "7"}\n')
    (shared / "data/jsonl.csv").write_text('id,question,answer,solution\n1,1 + 1?,2,It is 2.\n2,"2, 2",4,It is 4.\n')


def _write_comparison(shared: pathlib.Path) -> None:
    for arm in ("supervised", "grpo", "igpo"):
        shutil.copytree(
            shared / "run", shared / "comparison/seed-0" / arm, ignore=shutil.ignore_patterns("checkpoints", "tensorboard")
        )
    _call(shared, "compare", TINY, "--arms=grpo,igpo", "--seeds=0", "--output=comparison", *SHORT)


MAKERS = {
    "run": _write_run,
    "run2": lambda shared: shutil.copytree(shared / "run", shared / "run2"),
    "part": _write_part,
    "model": _write_model,
    "converted": lambda shared: _call(shared, "convert", "--source=model", "--target=converted"),
    "adapters": _write_adapters,
    "prompts": lambda shared: (shared / "prompts").write_text("Hello\nWhat is the answer?\n"),
    "data": _write_data,
    "evaluation": lambda shared: _call(shared, "evaluate", "--workdir=run", "--output=evaluation"),
    "other": lambda shared: shutil.copytree(shared / "evaluation", shared / "other"),
    "comparison": _write_comparison,
}


# Cases


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
        reply = ask(port, request, 2 if broken else CPU_SECONDS, leaves)
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


# Checks


def snapshot(root: pathlib.Path) -> dict[str, str]:
    """Returns what is at each path in a folder: a hash, the target of a link, or nothing for a folder."""
    found = {}
    for parent, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = pathlib.Path(parent, name)
            here = str(path.relative_to(root))
            if path.is_symlink():
                found[here] = f"-> {os.readlink(path)}"
            else:
                found[here] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    return found


def faults_of_files(before: dict[str, str], after: dict[str, str], command: Command) -> list[str]:
    allowed = tuple(f"box/{name}" for name in command.writes)
    changed = [path for path in sorted(before.keys() | after.keys()) if before.get(path) != after.get(path)]
    found = []
    for path in changed:
        if path.endswith("/ran"):
            found.append(f"ran code of {path}")
        elif "__pycache__" not in path and not any(path == name or path.startswith(f"{name}/") for name in allowed):
            verb = "wrote" if path not in before else "deleted" if path not in after else "changed"
            found.append(f"{verb} {re.sub('[0-9a-z_]{8}|[0-9]+', '*', path) if path.startswith('tmp/') else path}")
    return found[:5]


def faults_of_end(case: Case, printed: str, command: Command) -> list[str]:
    """Checks the exit status and what was printed."""
    lines = [line for line in printed.split("\n") if line.strip() and "Warning: " not in line]
    case.line = lines[-1] if lines else ""
    stopped = command.module == "playground" and any(line.startswith("http://") for line in lines)
    found = []
    if "Traceback (most recent call last)" in printed:
        places = re.findall(r'File "[^"]*/(igpo_jax/[^"]+)", line (\d+)', printed)
        raised = re.findall(r"^(?:[\w.]+\.)?(\w*(?:Error|Exception|Interrupt|Exit)\w*|\w+Warning)\b", printed, re.MULTILINE)
        found.append(f"traceback: {raised[-1] if raised else '?'} at {':'.join(places[-1]) if places else '?'}")
    killed = any(" above " in fault for fault in case.faults)
    if case.status == 1 and not case.line.startswith("error: ") and not found:
        found.append(f"no error in one line, but {case.line[:60]!r}")
    if case.status not in ((143, 128 + signal.SIGTERM) if stopped else (0, 1)) and not killed:
        found.append(f"status {case.status}")
    if case.status == 1 and len(case.line) > LONGEST_LINE:
        found.append(f"an error of {len(case.line)} characters")
    if case.status == 1 and re.search(r"[\x00-\x08\x0b-\x1f\x7f]", case.line.rstrip("\r")):
        found.append("control characters in an error")
    return found


class _Injected(html.parser.HTMLParser):
    """Collects injected elements of a page."""

    def __init__(self):
        super().__init__()
        self.found, self._script = set(), False

    def handle_starttag(self, tag, attrs):
        self._script = tag == "script"
        self.found |= {
            f"<{tag} {name}>" for name, value in attrs if value and SCRIPT in value and name.startswith(("on", "href"))
        }

    def handle_data(self, data):
        if self._script and data.strip() == SCRIPT:
            self.found.add("<script>")


def faults_of_outputs(box: pathlib.Path, command: Command, status: int | None) -> list[str]:
    """Checks that pages run nothing, and that the target has no copies of precious files."""
    found = []
    for name in command.writes:
        for path in sorted([box / name, *(box / name).rglob("*")]):
            if path.is_symlink() or not path.is_file():
                continue
            content = path.read_bytes()
            if command.module == "convert" and PRECIOUS.encode() in content:
                found.append(f"copied a precious file to {path.relative_to(box)}")
            if path.suffix == ".html":
                parser = _Injected()
                parser.feed(content.decode("utf-8", "replace"))
                found += [f"{element} injected into {path.relative_to(box)}" for element in sorted(parser.found)]
    return found


def stragglers(mark: str) -> list[str]:
    """Returns the processes of a case that do not end by themselves within seconds, and kills them."""
    deadline = time.monotonic() + 5
    while (left := signals._marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for line in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(line.split()[0]), signal.SIGKILL)
    return left


# The campaign


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
