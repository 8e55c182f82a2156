"""What a process sets up on its host before it computes."""

import ctypes
import glob
import os
import pathlib
import zlib

import jax

# glibc's mallopt: freed memory stays with the process, in one pool for all threads.
MALLOPT = {"M_ARENA_MAX": (-8, 1), "M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1)}


def keep_freed_memory() -> None:
    """On a host without accelerators: the arrays of every program are memory of this process, and handing them back to the
    kernel, which zeroes them when they are next wanted, takes two fifths of the time of small models. Comes before JAX's
    threads; does nothing where the C library is not glibc."""
    accelerated = [path for pattern in ("accel*", "vfio/*", "nvidia*", "kfd") for path in glob.glob(f"/dev/{pattern}")]
    if accelerated and os.environ.get("JAX_PLATFORMS") != "cpu":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    for parameter, value in MALLOPT.values() if mallopt else ():
        mallopt(parameter, value)


def cache_compiled_programs(workdir: pathlib.Path) -> None:
    """Programs that took a second to compile are kept in the run's folder, where a run that goes on finds them; in another
    folder where JAX_COMPILATION_CACHE_DIR names one."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled" / _kind_of_machine()))


def _kind_of_machine() -> str:
    """Programs for CPUs use what this one can do, and must not be run by another kind."""
    kind = jax.devices()[0].device_kind.replace(" ", "-")
    try:
        flags = next(line for line in open("/proc/cpuinfo") if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return kind
    return f"{kind}-{zlib.crc32(flags.encode()):08x}" if kind == "cpu" else kind
