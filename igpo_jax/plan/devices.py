"""TPU devices for which programs can be compiled although the hardware is not present."""

import importlib.util
import os
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from igpo_jax.runtime.chips import device_memory_gib
from igpo_jax.runtime.files import first_line
from igpo_jax.runtime.installation import install_command


def topology_devices(name: str, slices: int) -> Sequence[jax.Device]:
    """Returns the devices of one or several slices of a TPU topology, such as "v5e:4x4". Programs can be compiled for these
    devices, but cannot run. Raises ValueError if the topology does not exist, or if the TPU compiler is not installed."""
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(f"compiling for TPUs needs their compiler: {install_command('tpu')} (it runs on CPUs)")
    # Without these variables, the compiler's library waits for a TPU machine's metadata server, and only one process at a time
    # can load the library.
    variables = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}
    variables |= {"TPU_ACCELERATOR_TYPE": "v5litepod-16", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    for variable, value in variables.items():
        os.environ.setdefault(variable, value)
    jax.config.update("jax_platforms", "cpu")
    several = {"num_slices": slices} if slices > 1 else {}
    try:
        devices = topologies.get_topology_desc(name, "tpu", **several).devices
        device_memory_gib(devices[0])
        return devices
    except (ValueError, RuntimeError, NotImplementedError) as error:  # the type depends on what is wrong with the name
        raise ValueError(f"--topology={name}: {first_line(error)}; examples: v5e:2x4, v6e:4x4, v5p:2x2x4") from None
