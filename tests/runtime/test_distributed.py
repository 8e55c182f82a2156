"""Real processes join through the variables that schedulers set."""

import json
import logging
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from igpo_jax.runtime import chips, distributed, ports
from igpo_jax.runtime.mesh import make_mesh
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


def start(variables_of_each: list[dict[str, str]], tpu: bool = False) -> list[tuple[int, str, str]]:
    """Returns exit status, output and errors of each process."""
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
    return [(process.returncode, *streams) for process, streams in zip(processes, printed, strict=True)]


def run(variables_of_each: list[dict[str, str]], tpu: bool = False) -> list[dict]:
    ended = start(variables_of_each, tpu)
    assert [status for status, _, _ in ended] == [0] * len(ended), ended
    return [json.loads(out.splitlines()[-1]) for _, out, _ in ended]


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", [slurm, gke_slice, gke_slices, mpi])
def test_processes_find_each_other(scheduler):
    found = run([scheduler(rank, 2) for rank in range(2)], tpu=scheduler in (gke_slice, gke_slices))
    assert found == [{"index": rank, "count": 2, "ranks": [0, 1]} for rank in range(2)]


NOT_OF_A_JOB = {
    "none": {},
    "in a batch script": {"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "8"},
    "in an interactive step": slurm(0, 8) | {"SLURM_STEP_NUM_TASKS": "1"},
}


@pytest.mark.parametrize("variables", NOT_OF_A_JOB.values(), ids=NOT_OF_A_JOB)
def test_otherwise_a_run_is_one_process(variables):
    """Includes a node allocated by SLURM but used without srun."""
    assert run([variables]) == [{"index": 0, "count": 1, "ranks": [0]}]


ALONE = {"index": 0, "count": 1, "ranks": [0]}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
MPI = "OMPI_MCA_orte_hnp_uri"


@pytest.fixture
def kubernetes(tmp_path):
    """Returns PYTHONPATH with a package that finds no service account, as the real one does outside a job."""
    (tmp_path / "kubernetes.py").write_text(
        "class ConfigException(Exception): pass\n"
        "class config:\n"
        "    def load_incluster_config():\n"
        "        raise ConfigException('Service host/port is not set.\\nmore')\n"
    )
    return {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(pathlib.Path(__file__).parents[2])])}


@pytest.mark.slow
def test_a_pod_is_asked_only_if_it_belongs_to_an_indexed_job(kubernetes):
    plain, [indexed], [without] = (
        start([POD | kubernetes]),
        start([POD | kubernetes | {"JOB_COMPLETION_INDEX": "0"}]),
        start([POD | {"JOB_COMPLETION_INDEX": "0"}]),
    )
    for status, out, errors in (*plain, indexed, without):
        assert status == 0 and json.loads(out.splitlines()[-1]) == ALONE, errors
    assert plain[0][2] == ""
    told = "note: this process does not look for others of its Kubernetes job: "
    assert indexed[2] == f"{told}ConfigException: Service host/port is not set.\n"
    assert without[2] == f"{told}the package kubernetes is not installed\n"


def test_the_search_for_a_job_can_be_switched_off():
    assert run([slurm(1, 2) | {"IGPO_DISTRIBUTED": "0"}]) == [ALONE]


@pytest.mark.slow
def test_a_job_that_cannot_be_joined_is_one_error():
    [(status, _, errors)] = start([slurm(0, 2) | {"SLURM_PROCID": "none"}])
    assert status == 1 and errors.count("\n") == 1
    assert errors.startswith("error: the processes of this job cannot be connected: ValueError: ")
    assert "'none'" in errors and "IGPO_DISTRIBUTED=0" in errors


@pytest.fixture
def taken():
    """Returns a port that another program uses."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_port_in_use_is_one_error(taken):
    """jaxlib would end the coordinator with a segmentation fault."""
    [(status, _, errors)] = start([slurm(0, 2) | {"JAX_COORDINATOR_PORT": str(taken)}])
    assert status == 1 and errors.count("\n") == 1
    told = f"OSError: the coordinator cannot listen at [::]:{taken}: Address already in use; end the process that uses the port"
    assert told in errors and "IGPO_DISTRIBUTED=0" in errors


def test_where_nobody_can_listen_is_an_error(taken):
    for host in ("127.0.0.1", "", "::", "0.0.0.0"):
        with pytest.raises(OSError, match="^Address already in use$"):
            ports.listen(host, taken)
    for host in ("no such host", "a..b", "x" * 70, "203.0.113.7", "a\0b"):
        with pytest.raises(OSError) as raised:
            ports.listen(host, taken)
        assert str(raised.value) and "\n" not in str(raised.value)
    free = free_port()
    for _ in range(2):
        ports.listen("", free).close()


@pytest.mark.parametrize("error, reason", [
    (AssertionError(), "device: there is no such device; JAX_PLATFORMS=cuda selects it"),
    (RuntimeError("Unable to initialize backend 'cuda':\nno driver"), "device: Unable to initialize backend 'cuda':; JAX_PLATFORMS=cuda selects it"),
])  # fmt: skip
def test_a_platform_without_devices_is_one_error(error, reason, monkeypatch):
    def devices():
        raise error

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setenv("IGPO_DISTRIBUTED", "0")
    for find in (chips.find_devices, make_mesh):
        with pytest.raises(ValueError, match=f"{reason}; unset the variable, or see python -m igpo_jax.doctor$"):
            find()
    with pytest.raises(SystemExit, match=f"^error: JAX cannot use a {reason}"):
        distributed.initialize()


def test_a_broken_plug_in_is_one_line(monkeypatch, caplog):
    """JAX logs a traceback of it."""

    def devices():
        try:
            raise RuntimeError("Unable to load cuPTI.\nmore")
        except RuntimeError:
            logging.getLogger("jax._src.xla_bridge").exception("Jax plugin configuration error")
        if missing:
            raise AssertionError
        return ["cpu"]

    monkeypatch.setattr(jax, "devices", devices)
    missing = False
    assert chips.find_devices() == ["cpu"]
    [record] = caplog.records
    assert record.getMessage() == "Jax plugin configuration error: Unable to load cuPTI." and not record.exc_info
    missing = True
    with pytest.raises(ValueError, match="^JAX cannot use a device: Jax plugin configuration error: Unable to load cuPTI.; "):
        chips.find_devices()


@pytest.mark.parametrize(
    "variables, hidden",
    [
        ({}, {*POD, MPI}),
        (mpi(0, 2), {*POD}),
        (mpi(0, 2) | POD | {"JOB_COMPLETION_INDEX": "3"}, set()),
        ({MPI: "1531576320.0;tcp://127.0.0.1:34911"} | POD, {*POD, MPI}),
        # srun --pty bash in an allocation of 8 tasks
        (slurm(0, 8) | {"SLURM_STEP_NUM_TASKS": "1"}, {*POD, MPI, "SLURM_JOB_ID"}),
        (slurm(0, 8) | {"SLURM_STEP_NUM_TASKS": "8"}, {*POD, MPI}),
        (slurm(0, 1) | {"SLURM_STEP_NUM_TASKS": "1"}, {*POD, MPI}),
    ],
)
def test_only_variables_of_a_job_count(variables, hidden, monkeypatch):
    for name in os.environ:
        if name.startswith(("SLURM_", "OMPI_", "KUBERNETES_", "JOB_")):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert set(distributed.not_of_a_job()) == hidden


@pytest.mark.slow
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
