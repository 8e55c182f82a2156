"""Descriptions of TPUs and NVIDIA GPUs. Programs can be compiled for these devices on a machine that does not have them."""

import dataclasses
import importlib.util
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from igpo_jax.runtime.checks import require
from igpo_jax.runtime.chips import CHIPS, device_memory_gib
from igpo_jax.runtime.files import first_line
from igpo_jax.runtime.host import set_gpu_defaults, set_libtpu_defaults
from igpo_jax.runtime.installation import install_command


@dataclasses.dataclass(frozen=True)
class Gpu:
    """Properties of a GPU that XLA's compiler needs, except for memory size and bandwidth, which are in `CHIPS`."""

    kind: str  # jax.Device.device_kind
    capability: tuple[int, int]  # CUDA compute capability
    cores: int  # streaming multiprocessors
    ghz: float
    l2: int  # bytes
    fpus: int = 128  # per core
    threads: int = 2048  # at most, per core
    shared: int = 228  # KiB of shared memory per core; a block can use 1 KiB less


# Sources: XLA's specifications (openxla/xla, xla/backends/gpu/target_config/specs); for L40S, RTX 4090, RTX 5090 and T4, which
# have none there, CUDA's deviceQuery and the table of technical specifications per compute capability in the CUDA C++
# Programming Guide.
GPUS = {
    "b200": Gpu("NVIDIA B200", (10, 0), 148, 1.965, 132644864),
    "h200": Gpu("NVIDIA H200", (9, 0), 132, 1.98, 52428800),
    "h100": Gpu("NVIDIA H100 80GB HBM3", (9, 0), 132, 1.98, 52428800),
    "a100-80gb": Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108, 1.41, 41943040, fpus=64, shared=164),
    "a100-40gb": Gpu("NVIDIA A100-SXM4-40GB", (8, 0), 108, 1.41, 41943040, fpus=64, shared=164),
    "a6000": Gpu("NVIDIA RTX A6000", (8, 6), 84, 1.8, 6291456, threads=1536, shared=100),
    "l40s": Gpu("NVIDIA L40S", (8, 9), 142, 2.52, 100663296, threads=1536, shared=100),
    "rtx4090": Gpu("NVIDIA GeForce RTX 4090", (8, 9), 128, 2.52, 75497472, threads=1536, shared=100),
    "rtx5090": Gpu("NVIDIA GeForce RTX 5090", (12, 0), 170, 2.55, 100663296, threads=1536, shared=100),
    "rtx6000pro": Gpu("NVIDIA RTX PRO 6000 Blackwell", (12, 0), 188, 2.6, 134217728, threads=1536, shared=100),
    "t4": Gpu("Tesla T4", (7, 5), 40, 1.59, 4194304, fpus=64, threads=1024, shared=64),
}


MOST_GPUS = 1024  # per host, more than any has; a larger number would fill the memory with descriptions of devices


def topology_devices(name: str, slices: int) -> Sequence[jax.Device]:
    """Returns descriptions of devices for which programs can be compiled but not run. `name` is a TPU topology, such as
    "v5e:4x4", or a kind of GPU with the number of GPUs per host, such as "h100:8". `slices` is the number of TPU slices, or the
    number of hosts with GPUs. Raises ValueError if the topology does not exist, or if the compiler is not installed."""
    kind, _, number = name.lower().partition(":")
    if kind in GPUS:
        return _gpus(name, GPUS[kind], number, slices)
    known = f"a GPU with a number, such as h100:8 ({', '.join(GPUS)}), or a TPU with a shape, such as v5e:4x4"
    require(re.fullmatch(r"v\d\w*", kind), f"--topology={name}: unknown; give {known}")
    return _tpus(name.lower(), slices)


def _gpus(name: str, gpu: Gpu, number: str, hosts: int) -> Sequence[jax.Device]:
    if not number.isdecimal() or not 0 < int(number) <= MOST_GPUS:
        raise ValueError(
            f"--topology={name}: the number of GPUs per host is missing, such as in {name.partition(':')[0]}:8; at most {MOST_GPUS}"
        )
    plugin = next(filter(importlib.util.find_spec, ("jax_cuda12_plugin", "jax_cuda13_plugin")), None)
    if plugin is None:
        raise ValueError(f"compiling for GPUs needs their compiler: {install_command('plan-gpu')} (it runs on CPUs)")
    set_gpu_defaults()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # programs for absent GPUs cannot be read back
    # Groups of hosts, hosts per group, GPUs per host.
    shape = f"1x{hosts}x{int(number)}"
    try:
        return topologies.get_topology_desc(shape, "cuda", target_config=_target_config(gpu), topology=shape).devices
    except RuntimeError as error:  # of XLA, if the plug-in does not fit jax's version
        raise ValueError(f"--topology={name}: {first_line(error)}") from None


def _target_config(gpu: Gpu) -> str:
    """Returns XLA's description of a GPU: a GpuTargetConfigProto as text."""
    chip, (major, minor), block = CHIPS[gpu.kind], gpu.capability, (gpu.shared - (gpu.capability[0] > 7)) * 1024
    device = {
        "threads_per_block_limit": 1024, "threads_per_warp": 32, "threads_per_core_limit": gpu.threads,
        "shared_memory_per_block": 48 * 1024, "shared_memory_per_core": gpu.shared * 1024, "shared_memory_per_block_optin": block,
        "core_count": gpu.cores, "fpus_per_core": gpu.fpus, "clock_rate_ghz": gpu.ghz,
        "block_dim_limit_x": 2**31 - 1, "block_dim_limit_y": 65535, "block_dim_limit_z": 65535,
        "registers_per_core_limit": 65536, "registers_per_block_limit": 65536,
        "memory_bandwidth": int(chip.hbm), "device_memory_size": int(chip.memory_gib * 2**30), "l2_cache_size": gpu.l2,
    }  # fmt: skip
    fields = " ".join(f"{field}: {value}" for field, value in device.items())
    return (
        f"gpu_device_info {{ {fields} cuda_compute_capability {{ major: {major} minor: {minor} }} }} "
        f'platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} device_description_str: "{gpu.kind}"'
    )


def _tpus(name: str, slices: int) -> Sequence[jax.Device]:
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(f"compiling for TPUs needs their compiler: {install_command('tpu')} (it runs on CPUs)")
    set_libtpu_defaults()
    jax.config.update("jax_platforms", "cpu")
    several: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if name.endswith(":1x1"):  # the compiler expects hosts of four chips
        several["chips_per_host_bounds"] = [1, 1, 1]
    try:
        devices = topologies.get_topology_desc(name, "tpu", **several).devices
        device_memory_gib(devices[0])
        return devices
    except (ValueError, RuntimeError, NotImplementedError) as error:  # the type depends on what is wrong with the name
        examples = f"v5e:2x4, v6e:4x4, v5p:2x2x4, or {', '.join(GPUS)} with :8"
        raise ValueError(f"--topology={name}: {first_line(error)}; examples: {examples}") from None
