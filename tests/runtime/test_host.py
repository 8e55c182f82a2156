import importlib.util
import logging
import os
import pathlib
import subprocess
import sys
import types

import jax
import pytest
from jax._src import cloud_tpu_init

from igpo_jax.runtime import host


@pytest.fixture
def jax_log(monkeypatch):
    """The logger of JAX's messages about devices. Changes of its filters and of the environment are undone."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    for variable in host.LIBTPU_DEFAULTS:
        os.environ.pop(variable, None)
    log = logging.getLogger("jax._src.xla_bridge")
    monkeypatch.setattr(log, "filters", [])
    return log


@pytest.fixture
def library(jax_log, monkeypatch):
    """Replaces the C library; returns the (parameter, value) pairs of its mallopt's calls."""
    calls = []
    monkeypatch.setattr(host.ctypes, "CDLL", lambda name: types.SimpleNamespace(mallopt=lambda *pair: calls.append(pair)))
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    return calls


def test_memory_is_kept_where_there_is_no_accelerator(library, monkeypatch):
    monkeypatch.setattr(host.glob, "glob", lambda pattern: [])
    host.prepare()
    assert sorted(library) == sorted(host.MALLOPT.values()) and len(library) == 3


@pytest.mark.parametrize("platforms, kept", [(None, False), ("cpu", True)])
def test_with_an_accelerator_only_where_it_is_not_used(platforms, kept, library, monkeypatch):
    monkeypatch.setattr(host.glob, "glob", lambda pattern: ["/dev/accel0"] if "accel" in pattern else [])
    if platforms:
        monkeypatch.setenv("JAX_PLATFORMS", platforms)
    host.prepare()
    assert bool(library) == kept


def test_another_c_library_is_left_alone(library, monkeypatch):
    monkeypatch.setattr(host.glob, "glob", lambda pattern: [])
    monkeypatch.setattr(host.ctypes, "CDLL", lambda name: types.SimpleNamespace())
    host.keep_freed_memory()
    assert library == []


@pytest.mark.parametrize("devices, chips, quiet", [([], False, True), (["/dev/vfio/0"], False, False), ([], True, False)])
def test_libtpu_is_quiet_only_where_there_is_no_tpu(devices, chips, quiet, jax_log, caplog, monkeypatch):
    monkeypatch.setattr(host.glob, "glob", lambda pattern: devices if pattern == "/dev/vfio/[0-9]*" else [])
    monkeypatch.setattr(host.cloud_tpu_init, "running_in_cloud_tpu_vm", chips)
    os.environ["TPU_WORKER_ID"] = "3"
    host.prepare_accelerators()
    expected = host.LIBTPU_DEFAULTS | {"TPU_WORKER_ID": "3"} if quiet else {"TPU_WORKER_ID": "3"}
    assert {name: value for name, value in os.environ.items() if name in host.LIBTPU_DEFAULTS} == expected
    jax_log.warning("Unable to initialize backend 'tpu': NOT_FOUND")
    jax_log.warning("Unable to initialize backend 'cuda': no driver")
    assert [record.getMessage()[30:34] for record in caplog.records] == ["cuda"] if quiet else ["tpu'", "cuda"]


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs libtpu")
@pytest.mark.skipif(cloud_tpu_init.running_in_cloud_tpu_vm, reason="this is a machine with TPUs")
def test_libtpu_on_a_machine_without_tpus_prints_nothing():
    environment = {name: value for name, value in os.environ.items() if name not in (*host.LIBTPU_DEFAULTS, "JAX_PLATFORMS")}
    environment["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # other processes on this machine may have loaded it
    code = (
        "from absl import logging; logging.use_absl_handler(); logging.set_verbosity(logging.INFO); "
        "from igpo_jax.runtime import chips, host; host.prepare(); print(chips.find_devices())"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.startswith("[CpuDevice") and done.stderr == ""


@pytest.mark.parametrize("given", [None, "/elsewhere"])
def test_programs_are_kept_in_the_users_cache_unless_told(given, tmp_path, monkeypatch):
    changed = []
    config = types.SimpleNamespace(jax_compilation_cache_dir=given, update=lambda *pair: changed.append(pair))
    monkeypatch.setattr(host.jax, "config", config)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    host.cache_compiled_programs()
    if given:
        assert changed == []
    else:
        [(name, folder)] = changed
        assert name == "jax_compilation_cache_dir" and folder.startswith(f"{tmp_path}/igpo_jax/compiled/")
        assert jax.devices()[0].device_kind in folder
        monkeypatch.delenv("XDG_CACHE_HOME")
        assert host.user_cache() == pathlib.Path.home() / ".cache" / "igpo_jax"


@pytest.mark.parametrize("module, variable, value, told", [
    ("convert", "JAX_ENABLE_X64", "1", "JAX_ENABLE_X64=False, not with True"),
    ("train", "JAX_ENABLE_X64", "1", "JAX_ENABLE_X64=False, not with True"),
    ("train", "JAX_THREEFRY_PARTITIONABLE", "0", "JAX_THREEFRY_PARTITIONABLE=True, not with False"),
    ("train", "JAX_DEFAULT_PRNG_IMPL", "rbg", "JAX_DEFAULT_PRNG_IMPL=threefry2x32, not with rbg"),
    ("train", "JAX_RANDOM_SEED_OFFSET", "1", "JAX_RANDOM_SEED_OFFSET=0, not with 1"),
    ("train", "JAX_HIGH_DYNAMIC_RANGE_GUMBEL", "1", "JAX_HIGH_DYNAMIC_RANGE_GUMBEL=False, not with True"),
])  # fmt: skip
def test_variables_that_change_random_numbers_or_dtypes_are_refused(module, variable, value, told, tmp_path):
    flags = {"train": ["--config=arithmetic"], "convert": ["--source=a", "--target=b"]}[module]
    command = [sys.executable, "-m", f"igpo_jax.{module}", *flags]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", variable: value}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines() == [f"error: unset {variable}: this program computes with {told}"]
    assert done.returncode == 1 and not list(tmp_path.iterdir())
