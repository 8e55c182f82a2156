"""Sets up a process on its host, and gives advice when memory, storage, open files or threads run out."""

import contextlib
import ctypes
import errno
import glob
import logging
import os
import resource
import sys
import zlib

import jax
from jax._src import cloud_tpu_init  # jax 0.11 has no public name for it

from igpo_jax.runtime.files import user_cache

# Arguments (parameter, value) of glibc's mallopt. They select one pool for all threads, and never return its memory to the
# kernel. Threads contend for the pool, so launch/local.sh prefers tcmalloc, which ignores these parameters.
MALLOPT = {"M_ARENA_MAX": (-8, 1), "M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1)}
NVIDIA = ("nvidia*", "dxg")  # device files; the second is that of Windows' Linux subsystem
GPU_DEFAULTS = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}  # JAX's default is three quarters; `plan` allows 0.9
# XLA's compiler ends with "Couldn't find output tile sizes" for some products of small models if it may use Triton for products.
# Where CUDA is not installed by pip, XLA's default folder for it is cuda_sdk_lib in the working folder, which may come from an
# untrusted source. XLA runs the programs in this folder. If the folder given here is missing, XLA searches others, as before.
XLA_GPU_FLAGS = {"--xla_gpu_enable_triton_gemm": "false", "--xla_gpu_cuda_data_dir": "/usr/local/cuda"}
TPU = ("accel[0-9]*", "vfio/[0-9]*")  # device files
# On a machine without TPUs, libtpu waits for the metadata server of a TPU machine, prints errors about missing metadata, and only
# one process at a time can load it, unless these variables are set.
LIBTPU_DEFAULTS = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
STORAGE = (*FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
OPEN_FILES = (errno.EMFILE, errno.ENFILE)
# Options of JAX that change random numbers or dtypes -> value with which this package computes.
NUMBERS = {
    "jax_enable_x64": False,
    "jax_threefry_partitionable": True,
    "jax_default_prng_impl": "threefry2x32",
    "jax_random_seed_offset": 0,
    "jax_high_dynamic_range_gumbel": False,
}
INTACT = "What was complete before is intact"
LESS_MEMORY = "To reduce memory: {keys}; `python -m igpo_jax.plan --config=...` lists the memory of each program"


def prepare() -> None:
    """Prepares the process of a command for the devices of its host, see `prepare_accelerators`. If only CPUs are used, makes
    the process keep freed memory. Ends the process if `check_options` fails. Call this function before JAX starts threads or
    looks for devices."""
    check_options()
    gpus = prepare_accelerators()
    if not gpus and (os.environ.get("JAX_PLATFORMS") == "cpu" or not _any_device("accel*", "vfio/*", "kfd")):
        keep_freed_memory()


def check_options() -> None:
    """Ends the process with a message if an environment variable sets one of JAX's options in `NUMBERS` to another value. A run
    that is resumed with other values would continue with other numbers."""
    for option, value in NUMBERS.items():
        given, variable = getattr(jax.config, option), option.upper()
        if given != value:
            sys.exit(f"error: unset {variable}: this program computes with {variable}={value}, not with {given}")


def prepare_accelerators() -> bool:
    """Calls `set_gpu_defaults` if the host has NVIDIA GPUs and JAX_PLATFORMS is not cpu, and returns whether this is the case.
    If the host has no TPUs, calls `set_libtpu_defaults` and hides JAX's message that it cannot use them. Call this function
    before JAX looks for devices, because the defaults have no effect later."""
    if not cloud_tpu_init.running_in_cloud_tpu_vm and not _any_device(*TPU):
        set_libtpu_defaults()
        logging.getLogger("jax._src.xla_bridge").addFilter(_is_not_about_tpus)
    used = os.environ.get("JAX_PLATFORMS") != "cpu" and _any_device(*NVIDIA)
    if used:
        set_gpu_defaults()
    return used


def _any_device(*patterns: str) -> bool:
    return any(glob.glob(f"/dev/{pattern}") for pattern in patterns)


def _is_not_about_tpus(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Unable to initialize backend 'tpu'")


def set_gpu_defaults() -> None:
    """Sets the environment variables in `GPU_DEFAULTS` and adds the flags in `XLA_GPU_FLAGS` to XLA_FLAGS. Keeps values that
    the user has set."""
    for variable, value in GPU_DEFAULTS.items():
        os.environ.setdefault(variable, value)
    given = os.environ.get("XLA_FLAGS", "")
    flags = [f"{flag}={value}" for flag, value in XLA_GPU_FLAGS.items() if flag not in given]
    os.environ["XLA_FLAGS"] = " ".join([given, *flags]).strip()


def set_libtpu_defaults() -> None:
    """Sets the environment variables in `LIBTPU_DEFAULTS`. Keeps values that the user has set."""
    for variable, value in LIBTPU_DEFAULTS.items():
        os.environ.setdefault(variable, value)


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory in the process. Otherwise, the kernel fills the memory of every new array with zeros, which
    takes 40 % of the run time of small models on CPUs."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        for parameter, value in MALLOPT.values():
            mallopt(parameter, value)


def cache_compiled_programs() -> None:
    """Caches compiled programs in JAX_COMPILATION_CACHE_DIR or, if this variable is not set, in the user's cache. Programs that
    compile in less than a second are not cached. The user's cache has a separate folder for each kind of device, and for each
    kind of CPU, because a program that was compiled for another kind may crash.

    The cache is not in the run's folder for two reasons: the folder may come from an untrusted source, whose programs must not
    be executed, and cached programs contain paths of this machine."""
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        kind = jax.devices()[0].device_kind.replace(" ", "-")
        if kind == "cpu":
            with contextlib.suppress(OSError, StopIteration):
                lines = open("/proc/cpuinfo", encoding="utf-8")
                features = next(line for line in lines if line.startswith(("flags", "Features")))
                kind = f"cpu-{zlib.crc32(features.encode()):08x}"
        jax.config.update("jax_compilation_cache_dir", str(user_cache() / "compiled" / kind))


def explain_shortage(error: Exception, memory_keys: str) -> str | None:
    """Returns advice if an error means that memory, storage, open files or threads ran out, and None for other errors.
    `memory_keys` names the configuration keys that reduce memory."""
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    number = error.errno if isinstance(error, OSError) else None
    # Tested first, because the checkpoint writer reports full disks and too many open files as RESOURCE_EXHAUSTED.
    if number in STORAGE or any(os.strerror(full) in reason for full in FULL):
        return f"storage: {reason}. {INTACT}; once it can be written, the same command resumes"
    if number in OPEN_FILES or "Too many open files" in str(error):
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return f"open files: {reason}. {INTACT}; with a limit above {limit} (`ulimit -n`), the same command resumes"
    if "can't start new thread" in reason:
        return f"threads: {reason}. {INTACT}; with a higher limit (`ulimit -u`, or that of the container), the same command resumes"
    no_memory = any(text in reason for text in ("RESOURCE_EXHAUSTED", "Out of memory"))
    if isinstance(error, MemoryError) or number == errno.ENOMEM or no_memory:
        return f"out of memory: {reason}. What was saved before is intact. {LESS_MEMORY.format(keys=memory_keys)}"
    return None
