"""Real processes join through the variables that schedulers set."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from igpo_jax.runtime import distributed
from processes import free_port

JOIN = """
import json
import jax
from jax._src.clusters import cloud_tpu_cluster
cloud_tpu_cluster.running_in_cloud_tpu_vm = {tpu}  # jax would look for the chips of a TPU host
from igpo_jax.runtime import distributed
distributed.initialize()
print(json.dumps({{
    "index": jax.process_index(),
    "count": jax.process_count(),
    "ranks": distributed.all_gather_hosts(jax.process_index()).tolist(),
}}))
"""


def slurm(rank: int, ranks: int) -> dict[str, str]:
    """Variables of `srun --ntasks=N` on one node."""
    return {
        "SLURM_JOB_ID": "4711",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_NTASKS": str(ranks),
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
    }


def gke_slice(rank: int, ranks: int) -> dict[str, str]:
    """Variables of GKE for one slice of several hosts. jax asks a metadata server unless the last three are set."""
    unset = dict.fromkeys(("MEGASCALE_COORDINATOR_ADDRESS", "MEGASCALE_NUM_SLICES", "MEGASCALE_SLICE_ID"), "")
    return {"TPU_WORKER_ID": str(rank), "TPU_WORKER_HOSTNAMES": ",".join(["localhost"] * ranks)} | unset


def gke_slices(rank: int, ranks: int) -> dict[str, str]:
    """Variables of JobSet (XPK) for several slices of one host each."""
    return {
        "TPU_WORKER_ID": "0",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "MEGASCALE_COORDINATOR_ADDRESS": "localhost:8080",
        "MEGASCALE_NUM_SLICES": str(ranks),
        "MEGASCALE_SLICE_ID": str(rank),
    }


def mpi(rank: int, ranks: int) -> dict[str, str]:
    """Variables of Open MPI's mpirun."""
    return {
        "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1:34911",
        "OMPI_COMM_WORLD_SIZE": str(ranks),
        "OMPI_COMM_WORLD_RANK": str(rank),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(rank),
    }


def run(variables_of_each: list[dict[str, str]], tpu: bool = False) -> list[dict]:
    foreign = ("SLURM_", "TPU_", "OMPI_", "MEGASCALE_", "XLA_FLAGS", "KUBERNETES_")
    env = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    env |= {"JAX_PLATFORMS": "cpu", "JAX_COORDINATOR_PORT": str(free_port())}
    # GKE sets it too; there is no TPU virtual machine to query.
    env |= {"TPU_SKIP_MDS_QUERY": "1"} if tpu else {}
    command = [sys.executable, "-c", JOIN.format(tpu=tpu)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, env=env | own, **pipes) for own in variables_of_each]
    try:
        printed = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(processes), printed
    return [json.loads(out.splitlines()[-1]) for out, _ in printed]


@pytest.mark.parametrize("scheduler", [slurm, gke_slice, gke_slices, mpi])
def test_processes_find_each_other(scheduler):
    found = run([scheduler(rank, 2) for rank in range(2)], tpu=scheduler in (gke_slice, gke_slices))
    assert found == [{"index": rank, "count": 2, "ranks": [0, 1]} for rank in range(2)]


@pytest.mark.parametrize("variables", [{}, {"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "8"}], ids=["none", "in a batch script"])
def test_otherwise_a_run_is_one_process(variables):
    """Includes a node allocated by SLURM but used without srun."""
    assert run([variables]) == [{"index": 0, "count": 1, "ranks": [0]}]


def test_a_single_task_of_slurm_and_a_single_host_of_gke_are_one_process():
    assert run([slurm(0, 1)]) == run([gke_slice(0, 1)], tpu=True) == [{"index": 0, "count": 1, "ranks": [0]}]


def test_texts_are_gathered_and_cut_between_characters():
    assert distributed.gather_texts("") == [""] and distributed.gather_texts("é" * 300) == ["é" * 200]
    assert distributed.gather_texts("aéé", size=4) == ["aé"]


def test_processes_with_other_files_are_named(monkeypatch):
    own = {"configuration": "0123456789abcdef", "split rl": "ffffffffffffffff"}
    distributed.check_same(own)
    others = {"configuration": "0123456789abcdef", "split rl": "fffffffffffffffe"}
    both = [np.array([int(v, 16) for v in prints.values()], np.uint64).view(np.uint32) for prints in (own, others)]
    monkeypatch.setattr(distributed, "all_gather_hosts", lambda _: np.stack(both))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="process 1 has another split rl than process 0"):
        distributed.check_same(own)
