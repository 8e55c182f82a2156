import importlib.metadata
import os
import re
import subprocess
import sys
import types

import jax
import pytest
from packaging.requirements import Requirement

import commands
from igpo_jax import doctor
from igpo_jax.runtime import chips


@pytest.mark.slow
def test_it_finds_what_this_host_has_and_a_tiny_run_works(tmp_path):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{commands.QUICK} --xla_force_host_platform_device_count=2",
    }
    done = commands.run("doctor", cwd=tmp_path, env=environment)
    lines = done.stdout.splitlines()
    for name in ("versions", "memory", "cores", "disk", "open files", "devices: 2 x cpu", "compiled programs", "tiny run"):
        assert any(name in line for line in lines), done.stdout + done.stderr
    assert next(line for line in lines if "tiny run" in line).startswith("ok"), done.stdout + done.stderr
    assert done.returncode == ("problem " in done.stdout)
    assert not list(tmp_path.iterdir())


def test_a_package_outside_of_its_bounds_is_a_problem(monkeypatch):
    monkeypatch.setattr(
        importlib.metadata, "requires", lambda name: ["jax<0.2", "grain>=0.1", "nowhere>=1", 'x>=1; extra == "y"']
    )
    found = [finding for finding in doctor.versions() if finding.level == "problem"]
    assert [finding.text.split()[0] for finding in found] == ["jax", "nowhere"]
    assert f"{jax.__version__} is not <0.2" in found[0].text and "is missing" in found[1].text
    assert all("pip install" in finding.todo for finding in found)


def test_requirements_of_an_extra_are_only_what_it_adds(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["jax>=0.1", 'x>=1; extra == "y"', 'z; extra == "w"'])
    assert [requirement.name for requirement in doctor._requirements("y")] == ["x"]
    assert [requirement.name for requirement in doctor._requirements("")] == ["jax"]
    assert doctor._wrong(Requirement("pytest>=1")) == ""


def test_a_machine_without_the_chosen_devices_is_a_problem_of_one_line(monkeypatch, capsys):
    def devices(platform=None):
        raise AssertionError

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    found = [str(finding) for check in (doctor.devices, doctor.tiny_run) for finding in doctor._findings(check)]
    assert found[0].startswith(
        "problem  devices: JAX cannot use a device: there is no such device; JAX_PLATFORMS=cuda selects it"
    )
    assert found[-1] == "note     tiny run: needs a device" and capsys.readouterr().err == ""


CUDA = doctor.PLUG_INS["cuda"]


@pytest.mark.parametrize(
    "there, package, answer, level, text",
    [
        ([], "", None, None, ""),
        (["/dev/nvidia0"], "", None, "problem", "/dev/nvidia0 is there, JAX's plug-in is not; pip install"),
        (
            ["/dev/nvidia0"],
            "1.0",
            RuntimeError("driver too old"),
            "problem",
            "does not start: driver too old; compare the driver",
        ),
        ([], "1.0", RuntimeError("no device"), "note", "is there, the device is not"),
        (["/dev/nvidia0"], "1.0", [1, 2], "ok", "2 devices"),
    ],
)
def test_of_a_plug_in_it_says_why_it_does_not_start(there, package, answer, level, text, monkeypatch):
    def devices(platform):
        assert platform == "cuda"
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(doctor.glob, "glob", lambda pattern: there)
    monkeypatch.setattr(doctor, "_version", lambda name: package)
    monkeypatch.setattr(jax, "devices", devices)
    found = list(doctor.plug_in_findings("cuda", CUDA))
    assert [finding.level for finding in found] == ([level] if level else [])
    assert all(text in str(finding) for finding in found)


def test_a_plug_in_that_the_environment_leaves_out_is_named(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(doctor.glob, "glob", lambda pattern: ["/dev/nvidia0"])
    monkeypatch.setattr(doctor, "_version", lambda name: "1.0")
    (found,) = doctor.plug_in_findings("cuda", CUDA)
    assert found.level == "note" and "JAX_PLATFORMS=cpu" in found.text


@pytest.mark.parametrize("preloaded, missing, level, text", [
    ("", b"cannot be preloaded", "note", "libtcmalloc_minimal.so.4 is not found; with it, .* apt install libtcmalloc-minimal4$"),
    ("", b"", "ok", "is found; launch/local.sh preloads it; .* set LD_PRELOAD=libtcmalloc_minimal.so.4$"),
    ("/lib/libtcmalloc_minimal.so.4", b"", "ok", "is preloaded .LD_PRELOAD=/lib/libtcmalloc_minimal.so.4.$"),
])  # fmt: skip
def test_it_says_whether_tcmalloc_is_used(preloaded, missing, level, text, monkeypatch):
    def run(command, env, stderr):
        assert env["LD_PRELOAD"] == "libtcmalloc_minimal.so.4"
        return types.SimpleNamespace(stderr=missing)

    monkeypatch.setenv("LD_PRELOAD", preloaded)
    monkeypatch.setattr(doctor.subprocess, "run", run)
    found = doctor.allocator()
    assert found.level == level and re.search(f"^{level} +tcmalloc: {text}", str(found))


@pytest.mark.parametrize("platform, listed", [("cpu", True), ("gpu", False)])
def test_tcmalloc_is_checked_on_machines_with_cpus_only(platform, listed, monkeypatch):
    device = types.SimpleNamespace(platform=platform, device_kind="any", memory_stats=lambda: {"bytes_limit": 2**30})
    monkeypatch.setattr(chips, "find_devices", lambda: [device])
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    monkeypatch.setattr(doctor, "PLUG_INS", {})
    monkeypatch.setattr(doctor.sys, "platform", "linux")
    assert [finding.name for finding in doctor.devices()] == ["devices"] + ["tcmalloc"] * listed


def test_little_memory_disk_and_few_files_are_noted(monkeypatch):
    monkeypatch.setattr(doctor, "host_memory", lambda: (8 * doctor.GIB, doctor.GIB))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=10))
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda which: (256, 1024))
    found = {finding.name: finding for finding in doctor.host()}
    assert all(found[name].level == "note" and found[name].todo for name in ("memory", "disk", "open files"))


def test_host_memory_is_positive_and_free_is_part_of_it():
    total, free = doctor.host_memory()
    assert 0 < free <= total


def test_a_compile_cache_that_cannot_be_written_is_a_problem(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "file" / "cache"))
    (found,) = doctor.compile_cache()
    assert found.level == "problem" and found.todo
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    (found,) = doctor.compile_cache()
    assert found.level == "ok" and str(tmp_path) in found.text


def test_a_check_that_breaks_is_a_problem_of_its_own(capsys):
    def tiny_run():
        raise MemoryError("no room\nat all")
        yield

    (found,) = doctor._findings(tiny_run)
    assert str(found) == "problem  tiny run: MemoryError: no room; see the error above"
    assert "Traceback" in capsys.readouterr().err


def test_what_hangs_ends_the_process_with_a_problem():
    code = "import time\nfrom igpo_jax import doctor\nwith doctor._ended_after(0.2, 'devices', 'no answer'): time.sleep(60)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert done.returncode == 1 and done.stdout.startswith("problem  devices: no answer in 0 s")
