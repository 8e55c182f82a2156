"""python -m igpo_jax.doctor

Checks the packages, memory, disk and devices of this machine, and trains a tiny model. With --bucket=gs://BUCKET, also checks
that this machine can write, read, list and delete objects in a bucket. Prints one line for each finding, with its level (ok,
note or problem) and a remedy. Exits with status 1 if there is a problem. Does not check other machines."""

from igpo_jax.runtime import interrupts

if __name__ == "__main__":  # before the slow imports
    interrupts.install()

import collections
import contextlib
import dataclasses
import functools
import glob
import importlib.metadata
import io
import os
import pathlib
import platform
import re
import resource
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from igpo_jax.runtime.files import first_line, user_cache
from igpo_jax.runtime.installation import install_command

GIB = 2**30
MIN_MEMORY, MIN_DISK, MIN_SHARED = 4 * GIB, 5 * GIB, GIB  # with less, a run may fail
MIN_OPEN_FILES = 4096
DEVICE_TIMEOUT = 120.0  # seconds
TCMALLOC = "libtcmalloc_minimal.so.4"
BUCKET_BYTES = 1 << 24  # size of the object that is written to measure a bucket's speed

# Purpose of each optional extra. The extras cuda and tpu are missing here, because they are checked as plug-ins.
EXTRAS = {"report": "report.html", "data": "Parquet files, and endpoints of igpo_jax.rewrite"}
EXTRAS |= {"playground": "igpo_jax.playground", "gcs": "gs:// addresses", "lm-eval": "igpo_jax.lm_eval", "test": "the tests"}


@dataclasses.dataclass(frozen=True)
class PlugIn:
    """JAX plug-in for one kind of accelerator."""

    name: str
    packages: tuple[str, ...]
    devices: tuple[str, ...]  # patterns of device files
    if_missing: str  # remedy if there is a device but no package
    if_broken: str  # remedy if the package fails although there is a device


PLUG_INS = {
    "cuda": PlugIn(
        "NVIDIA GPU", ("jax-cuda13-plugin", "jax-cuda12-plugin"), ("/dev/nvidia[0-9]*",), install_command("cuda,report"),
        "compare the driver in nvidia-smi with BUILD.md; jax, jaxlib and the plug-in need one version",
    ),
    "tpu": PlugIn(
        "TPU", ("libtpu",), ("/dev/accel[0-9]*", "/dev/vfio/[0-9]*"), f"if this is a TPU host: {install_command('tpu,report')}",
        "end other processes that hold the chips (sudo lsof /dev/accel* /dev/vfio/*); all hosts of a pod have to start together",
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Finding:
    level: str  # ok | note | problem
    name: str
    text: str
    todo: str = ""

    def __str__(self) -> str:
        return f"{self.level:8} {self.name}: {self.text}" + (f"; {self.todo}" if self.todo else "")


def _noted(name: str, text: str, todo: str) -> Finding:
    """Returns a finding of level "note" if the remedy `todo` is not empty, otherwise of level "ok"."""
    return Finding("note" if todo else "ok", name, text, todo)


def main(_) -> None:
    from absl import logging

    from igpo_jax.cli import escape_controls

    logging.set_verbosity(logging.WARNING)  # Orbax reports every file at INFO
    levels = []
    for check in (versions, extras, host, devices, compile_cache, tiny_run, bucket):
        for finding in _findings(check):
            print(escape_controls(str(finding)), flush=True)
            levels.append(finding.level)
    problems, notes = levels.count("problem"), levels.count("note")
    print(f"{problems} problems, {notes} notes")
    sys.exit(problems > 0)


def _findings(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Yields the findings of a check. If the check raises an exception, yields a finding of level "problem"."""
    try:
        yield from check()
    except Exception as error:  # a broken installation can raise anything
        traceback.print_exc()
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        yield Finding("problem", check.__name__.replace("_", " "), reason, "see the error above")


def versions() -> Iterator[Finding]:
    """Checks the versions of Python and of the packages that setup.py requires."""
    install = install_command("report")
    if not _version("igpo_jax"):
        yield Finding("problem", "igpo_jax", "is not installed", install)
        return
    python, unmet = platform.python_version(), _unmet("")
    supported = SpecifierSet(importlib.metadata.metadata("igpo_jax")["Requires-Python"])
    if python not in supported:
        yield Finding("problem", "python", f"{python}, not {supported}", "see BUILD.md")
    for text in unmet:
        yield Finding("problem", "packages", text, install)
    if not unmet:
        found = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("igpo_jax", "jax", "flax", "optax"))
        yield Finding("ok", "versions", f"Python {python}, {found}, and the rest within setup.py's bounds")


def _requirements(extra: str) -> list[Requirement]:
    """Returns requirements of the installed package igpo_jax. If `extra` is "", these are the requirements of the basic
    installation. Otherwise, they are the additional requirements of the optional extra with the name `extra`."""

    def applies(requirement: Requirement, extra: str) -> bool:
        return requirement.marker is None or requirement.marker.evaluate({"extra": extra})

    listed = map(Requirement, importlib.metadata.requires("igpo_jax") or [])
    return [each for each in listed if applies(each, extra) and (not extra or not applies(each, ""))]


def _unmet(extra: str) -> list[str]:
    """Returns a message for each required package that is missing or has a wrong version. Checks the packages of the basic
    installation if `extra` is "", otherwise the packages of the optional extra with the name `extra`."""
    return [text for requirement in _requirements(extra) if (text := _wrong(requirement))]


def _wrong(requirement: Requirement) -> str:
    version = _version(requirement.name)
    if not version:
        return f"{requirement.name} is missing"
    fits = requirement.specifier.contains(version, prereleases=True)
    return "" if fits else f"{requirement.name} {version} is not {requirement.specifier}"


def extras() -> Iterator[Finding]:
    """Checks the optional packages. Also checks that gmpy2 is not installed, because math-verify cannot be interrupted when it
    uses gmpy2."""
    offered = importlib.metadata.metadata("igpo_jax").get_all("Provides-Extra") or []
    for extra in (name for name in EXTRAS if name in offered):
        unmet, purpose = ", ".join(_unmet(extra)), f"for {EXTRAS[extra]}"
        todo = f"{purpose}: {install_command(extra)}" if unmet else ""
        yield _noted(f"extra {extra}", unmet or purpose, todo)
    torch = _version("torch")
    todo = "" if torch else "tests that compare with PyTorch are skipped; nothing else uses it"
    yield _noted("torch", f"{torch}; tests compare with it" if torch else "is not installed", todo)
    if _version("gmpy2"):
        text = "is installed: math-verify cannot be interrupted with it"
        yield Finding("problem", "gmpy2", text, "pip uninstall gmpy2 (BUILD.md)")


def host() -> Iterator[Finding]:
    """Checks the machine's memory, CPU cores, disk space, shared memory, and limit on open files."""
    total, free = host_memory()
    todo = "a small run takes about 1.5; for LLaDA-8B see BUILD.md" if free < MIN_MEMORY else ""
    yield _noted("memory", f"{total / GIB:.1f} GiB, {free / GIB:.1f} free", todo)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding("ok", "cores", f"{cores}; answers are graded beside each run in 2 processes (reward.workers)")
    left = shutil.disk_usage(".").free
    todo = "a run keeps several checkpoints (checkpoints_kept); choose its --workdir" if left < MIN_DISK else ""
    yield _noted("disk", f"{left / GIB:.1f} GiB free here", todo)
    if os.path.isdir("/dev/shm"):
        left = shutil.disk_usage("/dev/shm").free
        todo = "several GPUs exchange data there (docker run --shm-size=8g)" if left < MIN_SHARED else ""
        yield _noted("shared memory", f"{left / GIB:.1f} GiB free in /dev/shm", todo)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    todo = f"ulimit -n {MIN_OPEN_FILES}: checkpoints of large models open many" if 0 <= soft < MIN_OPEN_FILES else ""
    yield _noted("open files", f"at most {soft if soft >= 0 else 'any number'}", todo)


def host_memory() -> tuple[int, int]:
    """Returns the total and the free memory of this machine in bytes. If the process runs in a container with a memory limit,
    neither number exceeds the limit."""
    total = free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError):  # systems other than Linux have no such file
        about = pathlib.Path("/proc/meminfo").read_text(encoding="utf-8")
        if found := re.search(r"^MemAvailable: +(\d+) kB", about, re.MULTILINE):
            free = int(found[1]) * 1024
    limits = ("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")
    for limit, used in ((pathlib.Path("/sys/fs/cgroup", name) for name in names) for names in limits):
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            allowed = int(limit.read_text(encoding="utf-8"))
            total, free = min(total, allowed), min(free, allowed - int(used.read_text(encoding="utf-8")))
    return total, max(free, 0)


def devices() -> Iterator[Finding]:
    """Lists JAX's devices with their memory, and checks the plug-ins of accelerators."""
    import jax

    from igpo_jax.runtime.chips import device_memory_gib, find_devices
    from igpo_jax.runtime.host import prepare_accelerators

    prepare_accelerators()  # as in a run
    found: list[jax.Device] = []
    try:
        with _ended_after(DEVICE_TIMEOUT, "devices", "the devices do not answer"):
            found = find_devices()
    except ValueError as error:
        yield Finding("problem", "devices", str(error))
    for kind, number in collections.Counter(device.device_kind for device in found).items():
        device = next(device for device in found if device.device_kind == kind)
        try:
            memory = f"{device_memory_gib(device):.1f} GiB" + (" each" if device.platform != "cpu" else " of the host")
        except ValueError as error:
            memory = str(error)
        yield Finding("ok", "devices", f"{number} x {kind}, {memory}")
    for platform_name, plug_in in PLUG_INS.items():
        yield from plug_in_findings(platform_name, plug_in)
    if sys.platform == "linux" and {device.platform for device in found} == {"cpu"}:
        yield allocator()


def allocator() -> Finding:
    """Checks whether tcmalloc is preloaded. If not, starts a program with tcmalloc preloaded to find out whether the library is
    installed: if it is missing, the loader prints a warning. launch/local.sh uses the same check."""
    name, preloaded = "tcmalloc", os.environ.get("LD_PRELOAD", "")
    if "tcmalloc" in preloaded:
        return Finding("ok", name, f"is preloaded (LD_PRELOAD={preloaded})")
    if subprocess.run(["true"], env=os.environ | {"LD_PRELOAD": TCMALLOC}, stderr=subprocess.PIPE).stderr:
        todo = "with it, training takes a sixth less time: sudo apt install libtcmalloc-minimal4"
        return Finding("note", name, f"{TCMALLOC} is not found", todo)
    return Finding("ok", name, f"is found; launch/local.sh preloads it; for other commands, set LD_PRELOAD={TCMALLOC}")


def plug_in_findings(platform_name: str, plug_in: PlugIn) -> Iterator[Finding]:
    """Checks JAX's plug-in for an accelerator. The plug-in must start, and must be installed if the accelerator's device files
    exist."""
    import jax

    files = sorted(path for pattern in plug_in.devices for path in glob.glob(pattern))
    package = next((f"{name} {_version(name)}" for name in plug_in.packages if _version(name)), "")
    chosen, name = os.environ.get("JAX_PLATFORMS", ""), plug_in.name
    if package and (not chosen or platform_name in chosen.split(",")):
        try:
            yield Finding("ok", name, f"{package}, {len(jax.devices(platform_name))} devices")
        except (AssertionError, RuntimeError) as error:
            if files:
                yield Finding("problem", name, f"{package} does not start: {first_line(error)}", plug_in.if_broken)
            else:
                compiler = f"igpo_jax.plan compiles with {package.partition(' ')[0]}"
                yield Finding("note", name, f"{package} is there, the device is not", compiler)
    elif files and package:
        yield Finding("note", name, f"disabled by JAX_PLATFORMS={chosen}", "unset it to use this device")
    elif files:
        yield Finding("problem", name, f"{files[0]} is there, JAX's plug-in is not", plug_in.if_missing)


def compile_cache() -> Iterator[Finding]:
    """If the environment variable JAX_COMPILATION_CACHE_DIR names a folder for compiled programs, checks that this folder is
    writable."""
    name, folder = "compiled programs", os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if folder is None:
        yield Finding("ok", name, f"are kept in {user_cache() / 'compiled'}; JAX_COMPILATION_CACHE_DIR names another folder")
        return
    try:
        os.makedirs(folder, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        yield Finding("ok", name, f"are kept in {folder} (JAX_COMPILATION_CACHE_DIR)")
    except OSError as error:
        yield Finding("problem", name, f"JAX_COMPILATION_CACHE_DIR: {error}", "name a writable folder")


def tiny_run() -> Iterator[Finding]:
    """Trains a tiny model on all devices: one supervised update, one rollout with hints, and one RL update. Then checks that
    the saved checkpoint can be read back."""
    import jax
    import numpy as np

    from igpo_jax.run.checkpoint import Checkpoints
    from igpo_jax.run.experiment import open_experiment
    from igpo_jax.run.metrics import last_logged
    from igpo_jax.run.restore import restore_run
    from igpo_jax.runtime.chips import find_devices
    from igpo_jax.stages.rl import run_rl
    from igpo_jax.stages.sft import run_sft

    try:
        find_devices()
    except ValueError:  # `devices` has already reported it
        yield Finding("note", "tiny run", "needs a device", "")
        return

    begin = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as name,
        interrupts.before_end(functools.partial(shutil.rmtree, name, ignore_errors=True)),
        contextlib.redirect_stderr(io.StringIO()),  # hides progress bars
    ):
        experiment, folder = open_experiment(_tiny_config(jax.device_count()), name), pathlib.Path(name)
        with contextlib.closing(experiment.pool), jax.set_mesh(experiment.mesh):
            with Checkpoints(folder / "checkpoints" / "sft", keep=1) as saved:
                start = run_sft(experiment, saved, lambda: False)
            with Checkpoints(folder / "checkpoints" / "rl", keep=1, best=True) as saved:
                trained = run_rl(experiment, start, saved, lambda: False)
        read = restore_run(folder, experiment.mesh).params
        same = jax.tree.all(jax.tree.map(np.array_equal, trained, read))
        late, broken, hints = (last_logged(folder, "rl", name) for name in ("grading/late", "grading/broken", "hint/tokens"))
    seconds = f"{time.monotonic() - begin:.0f} s"
    if not same:
        yield Finding("problem", "tiny run", "the checkpoint read back differs from the saved parameters", "check the disk")
    elif late or broken or not hints:
        ungraded = (late or 0) + (broken or 0)
        text = f"{ungraded:.0f} answers could not be graded, {hints or 0:.1f} hint tokens in a completion"
        yield Finding("problem", "tiny run", text, "run the tests of the repository for details (bash launch/test.sh)")
    else:
        yield Finding("ok", "tiny run", f"update, rollout with hints, update, checkpoint read: {seconds}, mostly compilation")


def _tiny_config(rows: int):
    """Returns the configuration of a training run that takes only seconds. Each batch has `rows` problems."""
    from igpo_jax.config import base_config
    from igpo_jax.tasks import arithmetic

    config = base_config(**arithmetic.defaults(slots=4, sft_problems=64 * rows, rl_problems=2 * rows, test_problems=8))
    config.update({"model": {"width": 32, "layers": 1, "heads": 2, "kv_heads": 2, "mlp_width": 32}})
    decode = {"completion_length": 16, "block_length": 8, "steps": 8}
    config.update({"sampler": decode, "evaluation": decode | {"problems": 8, "batch_size": rows}})
    config.update({"data": {"prompt_buckets": (15,)}, "sft": {"updates": 1, "batch_size": rows}})
    config.update({"rl": {"iterations": 1, "prompts": rows, "group_size": 2}, "inpainting": {"chunk_min": 2, "chunk_max": 3}})
    config.update({"objective": {"inner_steps": 1}, "mesh": {"data": -1, "fsdp": 1}})
    return config


def bucket() -> Iterator[Finding]:
    """Writes, reads, lists and deletes an object in the bucket that the flag --bucket names. Measures the speed of writing and
    reading. Does nothing without the flag."""
    from absl import flags

    from igpo_jax.runtime.buckets import account, explained_errors, filesystem

    address = flags.FLAGS.bucket.rstrip("/")
    if not address:
        return
    if not re.fullmatch(r"gs://[^/]+(/.+)?", address):
        yield Finding("problem", "bucket", f"{address} is not gs://BUCKET or gs://BUCKET/FOLDER")
        return
    name, content, seconds = f"{address}/igpo_jax-doctor-{secrets.token_hex(4)}", os.urandom(BUCKET_BYTES), []
    try:
        files = filesystem()
    except ValueError as error:
        yield Finding("problem", "bucket", str(error))
        return
    try:
        with contextlib.ExitStack() as last:
            for operation, act in (("write", lambda: files.pipe_file(name, content)), ("read", lambda: files.cat_file(name))):
                begin = time.perf_counter()
                with explained_errors(name, operation):
                    arrived = act()
                seconds.append(time.perf_counter() - begin)
                if operation == "write":
                    last.callback(files.rm_file, name)
            with explained_errors(address, "list"):
                listed = files.ls(address, prefix=name.rpartition("/")[2], detail=False, refresh=True)
            last.pop_all()
            with explained_errors(name, "delete"):
                files.rm_file(name)
    except ValueError as error:
        todo = "if access is denied, the account needs the role Storage Object User for this bucket"
        yield Finding("problem", "bucket", str(error), todo)
        return
    if arrived != content or name.removeprefix("gs://") not in listed:
        yield Finding("problem", "bucket", f"{name} was written, but is not listed or has other content")
        return
    speeds = (f"{what} {BUCKET_BYTES / 1e6 / each:.0f} MB/s" for what, each in zip(("writes", "reads"), seconds, strict=True))
    yield Finding("ok", "bucket", f"{address} as {account()}: {', '.join(speeds)}, lists and deletes")


def _version(package: str) -> str:
    """Returns the version of an installed package, or "" if the package is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


@contextlib.contextmanager
def _ended_after(seconds: float, name: str, text: str):
    """Prints a problem and ends the process if the body of the `with` statement takes longer than `seconds`. This limit is
    needed because JAX itself waits for devices without a time limit."""

    def end() -> None:
        todo = "is another process using them? All hosts of a TPU pod have to start together"
        print(Finding("problem", name, f"{text} in {seconds:.0f} s", todo), flush=True)
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


if __name__ == "__main__":
    from absl import flags

    from igpo_jax.cli import parse_arguments, run_command

    flags.DEFINE_string("bucket", "", "Also check this bucket, gs://BUCKET or gs://BUCKET/FOLDER.")
    run_command(main, parse_arguments)
