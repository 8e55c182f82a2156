"""Files that a user names may be in a bucket, so paths are opened through runtime/buckets.py. Code that uses a path of this machine
directly is listed here with the reason."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "igpo_jax"
LOCAL = {  # modules that do so -> what the paths are
    "__main__.py": "the names of files in the working folder",
    "command_help.py": "none: the width of the terminal",
    "compare/arms.py": "runs of a comparison, which are on this machine",
    "doctor.py": "disks of this machine, a temporary folder",
    "evaluate/__main__.py": "a check for links in a run on this machine",
    "evaluate/generations.py": "the results of an evaluation on this machine, or a copy of them",
    "generate.py": "the output file",
    "inspect_data.py": "a temporary folder",
    "report/page.py": "a run on this machine, or the copy of one",
    "runtime/bucket_folders.py": "copies of folders in buckets",
    "run/checkpoint.py": "checkpoints on this machine; those in a bucket have a branch of their own",
    "run/checkpoint_integrity.py": "checkpoints on this machine",
    "run/events.py": "TensorBoard events on this machine, or in the copy of a run",
    "run/metrics.py": "logs on this machine, or in the copy of a run",
    "run/missing_files.py": "the run's folder on this machine, or the copy of one",
    "runtime/buckets.py": "the user's cache; files for which `path_of` has been called",
    "runtime/files.py": "files on this machine, or files for which `path_of` has been called",
    "runtime/host.py": "/proc",
    "runtime/installation.py": "none: commands on the PATH",
    "runtime/locks.py": "a folder on this machine",
    "runtime/orbax_files.py": "links, which buckets do not have",
    "runtime/streams.py": "/dev/null, the standard streams",
    "tasks/rows.py": "files that `local_file` returns",
    "weights/new_folders.py": "folders that are written, links",
    "weights/folders.py": "files that are written",
    "weights/huggingface.py": "files for which `path_of` has been called",
    "weights/safetensors_files.py": "files that are written",
}


def uses_of_the_file_system(file: pathlib.Path) -> set[str]:
    """Returns which of open, os.path and shutil a module uses."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Name) and function.id == "open":
                found.add("open")
            if isinstance(function, ast.Attribute) and function.attr == "open":
                found.add("open")
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if (node.value.id, node.attr) == ("os", "path"):
                found.add("os.path")
            if node.value.id == "shutil":
                found.add("shutil")
    return found


def test_only_files_that_are_local_by_nature_are_used_directly():
    found = {str(file.relative_to(PACKAGE)) for file in PACKAGE.rglob("*.py") if uses_of_the_file_system(file)}
    assert found == LOCAL.keys()


def has_no_encoding(call: ast.Call) -> bool:
    """Returns whether a call reads or writes text in the encoding of the locale, which may be ASCII."""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    named = {keyword.arg for keyword in call.keywords}
    if "encoding" in named:
        return False
    if name in ("read_text", "write_text"):
        return len(call.args) <= (name == "write_text")
    if name in ("run", "Popen", "check_output"):
        return bool(named & {"text", "universal_newlines"})
    if name != "open":
        return False
    if isinstance(call.func, ast.Attribute) and getattr(call.func.value, "id", "") in ("os", "gzip"):  # bytes
        return False
    mode = call.args[isinstance(call.func, ast.Name) :][:1]
    return "b" not in (ast.literal_eval(mode[0]) if mode else "r")


def test_text_is_read_and_written_as_utf_8():
    files = [*PACKAGE.rglob("*.py"), *(ROOT / "benchmarks").glob("*.py"), *(ROOT / "docs").glob("*.py"), ROOT / "setup.py"]
    assert not [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and has_no_encoding(node)
    ]
