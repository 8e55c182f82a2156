"""Devices of TPU topologies to compile for; the hardware need not be present."""

import importlib.util
import os
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from igpo_jax.runtime.chips import device_memory_gib


def topology_devices(name: str, slices: int) -> Sequence[jax.Device]:
    """Devices of a TPU topology, such as "v5e:4x4", to compile for; they cannot run programs.

    Raises:
        ValueError: there is no such topology, or the TPU compiler is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError('compiling for TPUs needs their compiler: pip install -e ".[tpu]" (it runs on CPUs)')
    # Without these, the compiler's library waits for a TPU machine's metadata server.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_WORKER_ID", "0")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no chip is touched, so none need be free
    jax.config.update("jax_platforms", "cpu")
    several = {"num_slices": slices} if slices > 1 else {}
    try:
        devices = topologies.get_topology_desc(name, "tpu", **several).devices
        device_memory_gib(devices[0])
        return devices
    except (ValueError, RuntimeError, NotImplementedError) as error:  # the type depends on the error in the name
        reason = str(error).splitlines()[0]
        raise ValueError(f"--topology={name}: {reason}; examples: v5e:2x4, v6e:4x4, v5p:2x2x4") from None
