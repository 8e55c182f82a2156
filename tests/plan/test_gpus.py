"""Plans for absent GPUs: XLA's GPU compiler runs on CPUs."""

import importlib.util
import json
import os
import pathlib
import shlex
import subprocess
import sys

import pytest

from gpu_compiler import needs_gpu_compiler
from igpo_jax import config as configuration
from igpo_jax.plan.devices import GPUS, topology_devices
from igpo_jax.runtime import host
from igpo_jax.runtime.chips import CHIPS
from run_configs import CONFIGS, parsed
from traffic import program_bytes

ROOT = pathlib.Path(__file__).parents[2]
CACHED = "--config.sampler.cache=dual --config.sampler.commit=threshold"
RUNS = {
    "arithmetic": "--config=arithmetic.py",
    "words": "--config=words.py",
    "gsm8k-llada": "--config=gsm8k.py:llada",
    "math-lora": "--config=math.py",
    "math-full": "--config=math.py:full",
    "math-cached": f"--config=math.py {CACHED}",
}
# Eight devices share the rows; cuDNN's backward pass needs rows of an even length and 16-bit activations.
SIZES = {"arithmetic": "--config.evaluation.batch_size=128 --config.data.prompt_buckets=(24,)"}
SIZES["words"] = "--config.evaluation.batch_size=128"
ATTENTION = {
    "xla": "--config.model.attention=xla",
    "cudnn": "--config.model.attention=cudnn --config.model.compute_dtype=bfloat16",
}
TARGETS = {name: ("h100:1", "h100:8") for name in RUNS}
TARGETS["arithmetic"] += ("a100-80gb:1", "rtx4090:1")


def plan(topology: str, *flags: str) -> dict:
    """Runs the command `plan` in a process of its own, because the compiler reads XLA_FLAGS once per process."""
    command = [sys.executable, "-m", "igpo_jax.plan", f"--topology={topology}", "--json", *flags]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_gpu_compiler
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("run, topology", [(run, target) for run, targets in TARGETS.items() for target in targets])
def test_every_program_compiles(run, topology, attention):
    """Without --xla_gpu_enable_triton_gemm=false, which `plan` and all commands set on machines with GPUs, the sampler of
    arithmetic.py does not compile."""
    flags = " ".join((RUNS[run], ATTENTION[attention], SIZES.get(run, "")))
    result = plan(topology, *shlex.split(flags))
    programs = {record["name"]: record for record in result["programs"]}
    assert {"sft", "sample", "inpaint", "score", "update", "evaluate"} <= programs.keys()
    assert not any("error" in record or "cost_error" in record for record in programs.values())
    assert all(
        programs[name]["flops"] > 0 and programs[name]["estimated_seconds"] > 0 for name in ("sample", "score", "update")
    )
    devices = int(topology.partition(":")[2])
    assert (result["devices"], result["hosts"]) == (devices, 1)
    if result["model"].startswith("LLaDA-8B"):
        config = llada_config(RUNS[run], attention)
        ratios = {
            name: programs[name]["bytes"] / program_bytes(name, config, devices) for name in ("sample", "score", "update")
        }
        print(run, topology, attention, {name: round(ratio, 2) for name, ratio in ratios.items()})
        assert all(1 / 1.5 < ratio < 1.5 for ratio in ratios.values()), ratios


def llada_config(flags: str, attention: str) -> configuration.Config:
    """Returns the configuration that the flags of a run in `RUNS` describe."""
    file, *changes = flags.removeprefix("--config=").split(" --config.")
    name, _, variant = file.partition(":")
    changes = dict(change.replace(".", "__").split("=") for change in changes) | {"model__attention": attention}
    return parsed(CONFIGS / name, *filter(None, [variant]), **changes)


@needs_gpu_compiler
def test_with_triton_products_the_sampler_does_not_compile():
    """The reason for the flag. If this test fails, XLA's compiler has learned these products, and the flag can go."""
    flags = ("--config=arithmetic.py", "--programs=sample", "--config.model.attention=xla")
    command = [sys.executable, "-m", "igpo_jax.plan", "--topology=h100:1", *flags]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_gpu_enable_triton_gemm=true"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode != 0 and "Couldn't find output tile sizes" in done.stderr


@pytest.mark.parametrize("name", GPUS)
def test_every_gpu_has_its_rates(name):
    assert CHIPS[GPUS[name].kind].memory_gib > 10


@pytest.mark.parametrize("name", ["h100", "h100:", "h100:0", "h100:2x4", "h100:-1", "h100:1025"])
def test_the_number_of_gpus_is_needed(name):
    with pytest.raises(ValueError, match=f"--topology={name}: the number of GPUs per host is missing, such as in h100:8"):
        topology_devices(name, 1)


def test_without_the_compiler_the_error_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"compiling for GPUs needs their compiler: .*plan-gpu"):
        topology_devices("h100:8", 1)


CUDA = "--xla_gpu_cuda_data_dir=/usr/local/cuda"  # by default, XLA runs ptxas of cuda_sdk_lib in the working folder


@pytest.mark.parametrize(
    "given, expected",
    [
        ("", f"--xla_gpu_enable_triton_gemm=false {CUDA}"),
        ("--xla_dump_to=x", f"--xla_dump_to=x --xla_gpu_enable_triton_gemm=false {CUDA}"),
        ("--xla_gpu_enable_triton_gemm=true", f"--xla_gpu_enable_triton_gemm=true {CUDA}"),
        ("--xla_gpu_cuda_data_dir=/opt/cuda", "--xla_gpu_cuda_data_dir=/opt/cuda --xla_gpu_enable_triton_gemm=false"),
    ],
)
def test_flags_of_gpus_are_set_unless_the_user_has_set_them(given, expected, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", given)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
    host.set_gpu_defaults()
    assert (os.environ["XLA_FLAGS"], os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"]) == (expected, "0.5")


@pytest.mark.parametrize(
    "files, platforms, set_", [(["/dev/nvidia0"], None, True), (["/dev/nvidia0"], "cpu", False), ([], None, False)]
)
def test_commands_prepare_for_gpus_only_where_there_are_some(files, platforms, set_, monkeypatch):
    monkeypatch.setattr(host.glob, "glob", lambda pattern: files if "nvidia" in pattern else [])
    monkeypatch.setattr(host, "keep_freed_memory", lambda: None)
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    if platforms:
        monkeypatch.setenv("JAX_PLATFORMS", platforms)
    host.prepare()
    assert ("triton" in os.environ["XLA_FLAGS"]) == set_
    assert os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION") == ("0.92" if set_ else None)
