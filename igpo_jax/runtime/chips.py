"""Memory sizes and published peak rates of accelerator chips."""

import dataclasses
import logging
import os

import jax

from igpo_jax.runtime.files import first_line

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Chip:
    memory_gib: float  # usable by programs
    flops: float  # bfloat16, per second
    hbm: float  # bytes per second
    ici: float  # bytes per second received over all links of a chip
    dcn: float  # bytes per second, a chip's share of the network between slices


# TPUs: docs.cloud.google.com/tpu/docs/{v5e,v5p,v6e}; ICI is half of the bidirectional figure, memory is the compiler's limit.
# GPUs: NVIDIA's data sheets of H100 SXM and H200; NVLink in one direction.
CHIPS = {
    "TPU v5 lite": Chip(15.75, 197e12, 819e9, 200e9, 25e9 / 8),
    "TPU v5": Chip(95.74, 459e12, 2765e9, 600e9, 50e9 / 8),
    "TPU v6 lite": Chip(31.25, 918e12, 1638e9, 400e9, 100e9 / 8),
    "NVIDIA H100 80GB HBM3": Chip(79.1, 989e12, 3350e9, 450e9, 50e9),
    "NVIDIA H200": Chip(139.8, 989e12, 4800e9, 450e9, 50e9),
}


def find_devices() -> list[jax.Device]:
    """Returns jax.devices(). Raises ValueError if JAX finds no device of the chosen platform or cannot start it. Logs a line if
    a plug-in does not work, of which JAX logs a traceback."""
    broken = list[str]()

    def collect(record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1]:
            broken.append(f"{record.getMessage()}: {first_line(record.exc_info[1])}")
        return not record.exc_info

    jax_log = logging.getLogger("jax._src.xla_bridge")
    jax_log.addFilter(collect)
    try:
        found = jax.devices()
    except (AssertionError, RuntimeError) as error:  # an assertion if a platform such as cuda is not there
        chosen = os.environ.get("JAX_PLATFORMS", "")
        reason = first_line(error) or "; ".join(broken) or "there is no such device"
        remedy = f"JAX_PLATFORMS={chosen} selects it; unset the variable, or see" if chosen else "see"
        raise ValueError(f"JAX cannot use a device: {reason}; {remedy} python -m igpo_jax.doctor") from None
    finally:
        jax_log.removeFilter(collect)
    for line in broken:
        log.warning("%s", line)
    return found


def device_memory_gib(device: jax.Device) -> float:
    """Returns the memory that programs can use on a device, in GiB. For a local device, this is the limit that the backend
    reports (on GPUs, the share XLA_PYTHON_CLIENT_MEM_FRACTION of the memory). For other devices, it is the size in `CHIPS`, and
    for CPUs the memory of the host. Raises ValueError if none of these is known."""
    statistics = device.memory_stats() if device in jax.local_devices() else None
    if statistics and "bytes_limit" in statistics:
        return statistics["bytes_limit"] / 2**30
    if device.device_kind in CHIPS:
        return CHIPS[device.device_kind].memory_gib
    if device.platform != "cpu":
        raise ValueError(f"the memory of {device.device_kind} is not known; known are {', '.join(CHIPS)}")
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
