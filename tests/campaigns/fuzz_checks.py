"""What may be wrong after a command has run on hostile inputs, see fuzz_commands.py."""

import dataclasses
import hashlib
import html.parser
import os
import pathlib
import re
import signal

from fuzz_inputs import Command
from hostile_files import PRECIOUS, SCRIPT

LONGEST_LINE = 2000  # characters of an error


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
