"""python -m igpo_jax.doctor

What this host has for a run, and whether a tiny run works on it: a line per finding (ok, note or problem) with what to do. Exit
status 1 if there is a problem. It is about this host alone; processes of a cluster do not join.
"""

import contextlib
import dataclasses
import glob
import importlib.metadata
import io
import os
import pathlib
import platform
import resource
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

GIB = 2**30
LEAST_MEMORY, LEAST_DISK, LEAST_SHARED = 4 * GIB, 5 * GIB, GIB  # below, a run may fail
LEAST_FILES = 4096
PATIENCE = 120.0  # seconds for the devices to answer

# What an extra is for; the plug-ins have findings of their own.
EXTRAS = {
    "report": "report.html",
    "data": "Parquet files, and endpoints of data.rewrite",
    "playground": "igpo_jax.playground",
    "test": "the tests",
}


@dataclasses.dataclass(frozen=True)
class PlugIn:
    """name, packages and devices (patterns of files) of an accelerator. missing, broken: what to do where the package is not
    there, or does not start although the device is."""

    name: str
    packages: tuple[str, ...]
    devices: tuple[str, ...]
    missing: str
    broken: str


PLUG_INS = {
    "cuda": PlugIn(
        "NVIDIA GPU",
        ("jax-cuda13-plugin", "jax-cuda12-plugin"),
        ("/dev/nvidia[0-9]*",),
        'pip install -e ".[cuda,report]"',
        "compare the driver in nvidia-smi with BUILD.md; jax, jaxlib and the plug-in need one version",
    ),
    "tpu": PlugIn(
        "TPU",
        ("libtpu",),
        ("/dev/accel[0-9]*", "/dev/vfio/[0-9]*"),
        'if this is a TPU host: pip install -e ".[tpu,report]"',
        "end other processes that hold the chips (sudo lsof /dev/accel* /dev/vfio/*); all hosts of a pod have to start at once",
    ),
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """level: ok | note | problem. todo: what to do about it."""

    level: str
    name: str
    text: str
    todo: str = ""

    def __str__(self) -> str:
        return f"{self.level:8} {self.name}: {self.text}" + (f"; {self.todo}" if self.todo else "")


def main(_) -> None:
    from absl import logging

    logging.set_verbosity(logging.WARNING)  # Orbax reports every file at INFO
    levels = []
    for check in (versions, extras, host, devices, compile_cache, tiny_run):
        for finding in _findings(check):
            print(finding, flush=True)
            levels.append(finding.level)
    problems, notes = levels.count("problem"), levels.count("note")
    print(f"{problems} problems, {notes} notes")
    sys.exit(problems > 0)


def _findings(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Those of a check; one that breaks is a problem itself."""
    try:
        yield from check()
    except Exception as error:  # whatever is wrong with this machine
        traceback.print_exc()
        reason = (str(error).splitlines() or [""])[0]
        yield Finding("problem", check.__name__.replace("_", " "), f"{type(error).__name__}: {reason}", "see the error above")


def versions() -> Iterator[Finding]:
    """Of Python and of what setup.py requires."""
    try:
        of_igpo = importlib.metadata.metadata("igpo_jax")
    except importlib.metadata.PackageNotFoundError:
        yield Finding("problem", "igpo_jax", "is not installed", 'pip install -e ".[report]" in its folder')
        return
    wanted, python = SpecifierSet(of_igpo["Requires-Python"]), platform.python_version()
    if python not in wanted:
        yield Finding("problem", "python", f"{python}, not {wanted}", "see BUILD.md")
    wrong = [text for of in _requirements("") if (text := _wrong(of))]
    for text in wrong:
        yield Finding("problem", "packages", text, 'pip install -e ".[report]" in the folder of igpo_jax')
    if not wrong:
        found = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("igpo_jax", "jax", "flax", "optax"))
        yield Finding("ok", "versions", f"Python {python}, {found}, and the rest within setup.py's bounds")


def _requirements(extra: str) -> list[Requirement]:
    """What igpo_jax itself requires, or what an extra adds."""
    every = map(Requirement, importlib.metadata.requires("igpo_jax") or [])
    if not extra:
        return [of for of in every if of.marker is None or of.marker.evaluate({"extra": ""})]
    return [of for of in every if of.marker and of.marker.evaluate({"extra": extra}) and not of.marker.evaluate({"extra": ""})]


def _wrong(of: Requirement) -> str:
    """What is wrong with a required package, or nothing."""
    try:
        version = importlib.metadata.version(of.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{of.name} is missing"
    return "" if of.specifier.contains(version, prereleases=True) else f"{of.name} {version} is not {of.specifier}"


def extras() -> Iterator[Finding]:
    """What is optional, and the package that must not be there."""
    offered = importlib.metadata.metadata("igpo_jax").get_all("Provides-Extra") or []
    for extra in (name for name in EXTRAS if name in offered):
        wrong = [text for of in _requirements(extra) if (text := _wrong(of))]
        if wrong:
            yield Finding("note", f"extra {extra}", ", ".join(wrong), f'for {EXTRAS[extra]}: pip install -e ".[{extra}]"')
        else:
            yield Finding("ok", f"extra {extra}", f"for {EXTRAS[extra]}")
    if _version("torch"):
        yield Finding("ok", "torch", f"{_version('torch')}; tests compare with it")
    else:
        yield Finding("note", "torch", "is not there", "tests that compare with PyTorch are skipped; nothing else uses it")
    if _version("gmpy2"):
        yield Finding(
            "problem", "gmpy2", "is there: math-verify cannot be interrupted with it", "pip uninstall gmpy2 (BUILD.md)"
        )


def host() -> Iterator[Finding]:
    """Memory, cores, disk and limits."""
    total, free = host_memory()
    text = f"{total / GIB:.1f} GiB, {free / GIB:.1f} free"
    if free < LEAST_MEMORY:
        yield Finding("note", "memory", text, "a small run takes about 1.5, BUILD.md says what LLaDA-8B does")
    else:
        yield Finding("ok", "memory", text)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding("ok", "cores", f"{cores}; answers are graded beside each run in 2 processes (reward.workers)")
    left = shutil.disk_usage(".").free
    todo = "a run keeps several checkpoints (checkpoints_kept); choose its --workdir" if left < LEAST_DISK else ""
    yield Finding("note" if todo else "ok", "disk", f"{left / GIB:.1f} GiB free here", todo)
    if os.path.isdir("/dev/shm"):
        left = shutil.disk_usage("/dev/shm").free
        todo = "several GPUs exchange data there (docker run --shm-size=8g)" if left < LEAST_SHARED else ""
        yield Finding("note" if todo else "ok", "shared memory", f"{left / GIB:.1f} GiB free in /dev/shm", todo)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    todo = f"ulimit -n {LEAST_FILES}: checkpoints of large models open many" if 0 <= soft < LEAST_FILES else ""
    yield Finding("note" if todo else "ok", "open files", f"at most {soft if soft >= 0 else 'any number'}", todo)


def host_memory() -> tuple[int, int]:
    """Bytes in all and free; of a container, of its limit."""
    page = os.sysconf("SC_PAGE_SIZE")
    total, free = os.sysconf("SC_PHYS_PAGES") * page, _available() or os.sysconf("SC_PHYS_PAGES") * page
    limits = ("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")
    for limit, used in ((pathlib.Path("/sys/fs/cgroup", name) for name in names) for names in limits):
        with contextlib.suppress(OSError, ValueError):  # not there, or "max"
            most = int(limit.read_text())
            total, free = min(total, most), min(free, most - int(used.read_text()))
    return total, max(free, 0)


def _available() -> int:
    """Bytes that Linux could hand out; 0 elsewhere."""
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 0


def devices() -> Iterator[Finding]:
    """What JAX computes on, and plug-ins that it cannot use."""
    import jax

    from igpo_jax.runtime.chips import device_memory_gib

    with _ended_after(PATIENCE, "devices", "the devices do not answer"):
        found = jax.devices()
    for kind in dict.fromkeys(device.device_kind for device in found):
        of_kind = [device for device in found if device.device_kind == kind]
        try:
            memory = f"{device_memory_gib(of_kind[0]):.1f} GiB" + (" each" if of_kind[0].platform != "cpu" else " of the host")
        except ValueError as error:
            memory = str(error)
        yield Finding("ok", "devices", f"{len(of_kind)} x {kind}, {memory}")
    for platform_name, plug_in in PLUG_INS.items():
        yield from plug_in_findings(platform_name, plug_in)


def plug_in_findings(platform_name: str, plug_in: PlugIn) -> Iterator[Finding]:
    """Whether an accelerator is there, its plug-in is, and it starts."""
    import jax

    there = sorted(path for pattern in plug_in.devices for path in glob.glob(pattern))
    package = next((f"{name} {_version(name)}" for name in plug_in.packages if _version(name)), "")
    chosen = os.environ.get("JAX_PLATFORMS", "")
    if not package:
        if there:
            yield Finding("problem", plug_in.name, f"{there[0]} is there, JAX's plug-in is not", plug_in.missing)
    elif chosen and platform_name not in chosen.split(","):
        if there:
            yield Finding("note", plug_in.name, f"left out by JAX_PLATFORMS={chosen}", "unset it to use what is here")
    else:
        try:
            number = len(jax.devices(platform_name))
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            if there:
                yield Finding("problem", plug_in.name, f"{package} does not start: {reason}", plug_in.broken)
            else:
                yield Finding(
                    "note", plug_in.name, f"{package} is there, the device is not", "igpo_jax.plan compiles with libtpu"
                )
        else:
            yield Finding("ok", plug_in.name, f"{package}, {number} devices")


def compile_cache() -> Iterator[Finding]:
    """Where compiled programs are kept."""
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if folder is None:
        yield Finding("ok", "compiled programs", "are kept in each run's folder (JAX_COMPILATION_CACHE_DIR for one of all)")
        return
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        yield Finding(
            "problem", "compiled programs", f"JAX_COMPILATION_CACHE_DIR: {error}", "name a folder that can be written"
        )
    else:
        yield Finding("ok", "compiled programs", f"are kept in {folder} (JAX_COMPILATION_CACHE_DIR)")


def tiny_run() -> Iterator[Finding]:
    """A supervised update, a rollout with hints, its updates and the checkpoint, with a tiny model on all devices."""
    import jax
    import numpy as np

    from igpo_jax.run.checkpoint import Checkpoints
    from igpo_jax.run.experiment import open_experiment
    from igpo_jax.run.metrics import last_logged
    from igpo_jax.run.restore import restore_run
    from igpo_jax.stages.rl import run_rl
    from igpo_jax.stages.sft import run_sft

    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stderr(io.StringIO()):  # without its progress bars
        experiment, folder = open_experiment(_tiny_config(jax.device_count()), name), pathlib.Path(name)
        with contextlib.closing(experiment.pool), jax.set_mesh(experiment.mesh):
            with Checkpoints(folder / "checkpoints" / "sft", keep=1) as saved:
                base_params, start = run_sft(experiment, saved, lambda: False)
            with Checkpoints(folder / "checkpoints" / "rl", keep=1, best=True) as saved:
                trained = run_rl(experiment, base_params, start, saved, lambda: False)
        read = restore_run(folder, experiment.mesh).params
        same = jax.tree.map(lambda one, other: np.array_equal(one, other), trained, read)
        broken, hints = (last_logged(folder, "rl", name) for name in ("grading/broken", "hint/tokens"))
    seconds = f"{time.monotonic() - begin:.0f} s"
    if not all(jax.tree.leaves(same)):
        yield Finding("problem", "tiny run", "the checkpoint that was read is not what was saved", "is the disk sound?")
    elif broken or not hints:
        text = f"{broken or 0:.0f} answers could not be graded, {hints or 0:.1f} hint tokens in a completion"
        yield Finding("problem", "tiny run", text, "bash launch/test.sh says more")
    else:
        yield Finding("ok", "tiny run", f"update, rollout with hints, update, checkpoint read: {seconds}, most of it compiling")


def _tiny_config(rows: int):
    """Of a run that takes seconds; batches have a row for each device."""
    from igpo_jax.config import base_config
    from igpo_jax.tasks import arithmetic

    config = base_config(**arithmetic.defaults(slots=4, sft_problems=64 * rows, rl_problems=2 * rows, test_problems=8))
    config.model.update({"width": 32, "layers": 1, "heads": 2, "kv_heads": 2, "mlp_width": 32})
    config.data.prompt_buckets = (15,)
    for decode in (config.sampler, config.evaluation):
        decode.update({"completion_length": 16, "block_length": 8, "steps": 8})
    config.evaluation.update({"problems": 8, "batch_size": rows})
    config.sft.update({"updates": 1, "batch_size": rows})
    config.rl.update({"iterations": 1, "prompts": rows, "group_size": 2})
    config.inpainting.update({"chunk_min": 2, "chunk_max": 3})
    config.objective.inner_steps = 1
    config.mesh.update({"data": -1, "fsdp": 1})
    return config


def _version(package: str) -> str:
    """Of an installed package; empty where it is not."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


@contextlib.contextmanager
def _ended_after(seconds: float, name: str, text: str):
    """Ends the process with a problem where the body hangs: JAX waits for a device without end, and cannot be interrupted."""

    def end() -> None:
        todo = "is another process using them? All hosts of a TPU pod have to start at once"
        print(Finding("problem", name, f"{text} in {seconds:.0f} s", todo), flush=True)
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def run() -> None:
    from absl import app

    app.run(main)


if __name__ == "__main__":
    run()
