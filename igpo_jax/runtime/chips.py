"""Memory sizes and published peak rates of accelerator chips."""

import dataclasses
import logging
import os
from typing import Any

import jax

from igpo_jax.runtime.files import first_line

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Chip:
    memory_gib: float  # usable by programs
    flops: float  # bfloat16 with sums in float32, dense, per second
    hbm: float  # bytes per second
    link: float  # bytes per second received over the links between the chips of a TPU slice or of a GPU host
    network: float  # bytes per second, a chip's share of the network between TPU slices or GPU hosts


NVLINK3, NVLINK4, NVLINK5 = 300e9, 450e9, 900e9  # one direction: half of the figures in NVIDIA's data sheets
PCIE3, PCIE4, PCIE5 = 16e9, 32e9, 64e9  # one direction of 16 lanes
SHARED = 12.5e9 / 8  # 100 Gb/s for eight GPUs, as in AWS g4dn.metal; assumed for GPUs without a standard server

# TPUs: docs.cloud.google.com/tpu/docs/{v5e,v5p,v6e}; links are half of the bidirectional figure, memory is the compiler's limit.
# GPUs, FLOPs and links: NVIDIA's data sheets of A100, H100 SXM, H200, HGX B200, L40S, RTX A6000 and T4, and its white papers on
# the Ada (RTX 4090) and RTX Blackwell (RTX 5090, RTX PRO 6000) architectures, without sparsity. The T4 has no units for bfloat16;
# its figure is that of float32. Memory and bandwidth: XLA's specifications (openxla/xla, xla/backends/gpu/target_config/specs);
# for T4 and RTX 5090, CUDA's deviceQuery; for H200, RTX 4090 and L40S, the total capacity that PyTorch reports,
# and NVIDIA's bandwidth.
# Network: a 400 Gb/s adapter per GPU in DGX H100, H200 and B200, 200 Gb/s in DGX A100; AWS g6e.48xlarge for L40S.
CHIPS = {
    "TPU v5 lite": Chip(15.75, 197e12, 819e9, 200e9, 25e9 / 8),
    "TPU v5": Chip(95.74, 459e12, 2765e9, 600e9, 50e9 / 8),
    "TPU v6 lite": Chip(31.25, 918e12, 1638e9, 400e9, 100e9 / 8),
    "NVIDIA B200": Chip(178.36, 2250e12, 7672e9, NVLINK5, 50e9),
    "NVIDIA H200": Chip(139.8, 989e12, 4800e9, NVLINK4, 50e9),
    "NVIDIA H100 80GB HBM3": Chip(79.11, 989e12, 3352e9, NVLINK4, 50e9),
    "NVIDIA A100-SXM4-80GB": Chip(79.26, 312e12, 2039e9, NVLINK3, 25e9),
    "NVIDIA A100-SXM4-40GB": Chip(39.42, 312e12, 1555e9, NVLINK3, 25e9),
    "NVIDIA RTX A6000": Chip(47.54, 154.8e12, 768e9, PCIE4, SHARED),
    "NVIDIA L40S": Chip(44.42, 362e12, 864e9, PCIE4, 50e9 / 8),
    "NVIDIA GeForce RTX 4090": Chip(23.64, 165.2e12, 1008e9, PCIE4, SHARED),
    "NVIDIA GeForce RTX 5090": Chip(31.36, 209.5e12, 1792e9, PCIE5, SHARED),
    "NVIDIA RTX PRO 6000 Blackwell": Chip(96.0, 503.8e12, 1792e9, PCIE5, SHARED),
    "Tesla T4": Chip(14.75, 8.1e12, 320e9, PCIE3, SHARED),
}


BFLOAT16_MAJOR = 8  # first compute capability (Ampere) with units for bfloat16


def cuda_major(device: Any) -> int:
    """Returns the major number of a GPU's compute capability. `device` is a `jax.Device`. Returns 0 if it is not an NVIDIA
    GPU."""
    capability = getattr(device, "compute_capability", "")  # "9.0", or a name such as gfx942 for AMD's GPUs
    major = capability.partition(".")[0]
    return int(major) if major.isdecimal() else 0


def find_devices() -> list[jax.Device]:
    """Returns jax.devices(). Raises ValueError if JAX finds no device of the chosen platform, or cannot start the device. If a
    JAX plug-in fails, logs one line instead of JAX's traceback."""
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
    """Returns the memory in GiB that programs can use on a device. For a local device, this is the limit that the backend
    reports. On GPUs, the limit is the share XLA_PYTHON_CLIENT_MEM_FRACTION of the memory. Without such a limit, returns the
    size in `CHIPS` or, for CPUs, the memory of the host. Raises ValueError if the memory is not known."""
    statistics = device.memory_stats() if device in jax.local_devices() else None
    if statistics and "bytes_limit" in statistics:
        return statistics["bytes_limit"] / 2**30
    if device.device_kind in CHIPS:
        return CHIPS[device.device_kind].memory_gib
    if device.platform != "cpu":
        raise ValueError(f"the memory of {device.device_kind} is not known; known are {', '.join(CHIPS)}")
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
