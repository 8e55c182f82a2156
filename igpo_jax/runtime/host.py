"""What a process sets up on its host before it computes."""

import ctypes
import errno
import glob
import os
import pathlib
import zlib

import jax

# glibc's mallopt: freed memory stays with the process, in one pool for all threads, who wait for one another there:
# launch/local.sh prefers tcmalloc, which has no such parameters.
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


STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
LESS_MEMORY = "Less at a time: {keys}; `python -m igpo_jax.plan --config=...` says which program needs how much"


def explain_shortage(error: Exception, memory_keys: str) -> str | None:
    """What to do about memory or storage that an error says is not there; None: it is about something else.

    Args:
        memory_keys: which keys change how much memory is needed.
    """
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    # A checkpoint's writer reports a full disk as RESOURCE_EXHAUSTED, too.
    if (isinstance(error, OSError) and error.errno in STORAGE) or "No space left on device" in reason:
        return f"storage: {reason}. What was complete before is intact; once it can be written, the same command goes on"
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in reason or "Out of memory" in reason:
        return f"out of memory: {reason}. What was saved before is intact. {LESS_MEMORY.format(keys=memory_keys)}"
    return None


def _kind_of_machine() -> str:
    """Programs for CPUs use what this one can do, and must not be run by another kind."""
    kind = jax.devices()[0].device_kind.replace(" ", "-")
    try:
        flags = next(line for line in open("/proc/cpuinfo") if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return kind
    return f"{kind}-{zlib.crc32(flags.encode()):08x}" if kind == "cpu" else kind
