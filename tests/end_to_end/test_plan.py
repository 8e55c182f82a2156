"""`python -m igpo_jax.plan` as a user calls it."""

import importlib.util
import json
import pathlib

import pytest

TINY = pathlib.Path(__file__).parent / "tiny.py"
PROGRAMS = ["sft", "heldout", "sample", "inpaint", "score", "update", "evaluate"]


@pytest.mark.slow
def test_the_devices_that_are_here(command):
    done = command("plan", f"--config={TINY}", "--config.rl.microbatches=2")
    assert done.returncode == 0, done.stderr
    assert "1 x cpu, mesh: data 1, fsdp 1, tensor 1" in done.stdout and "**fits**" in done.stdout
    assert all(f"| {name} |" in done.stdout for name in PROGRAMS)


@pytest.mark.parametrize("arguments, message", [
    (("--config.rl.prompts=7",), "rl.prompts / rl.microbatches = 7 is not a multiple of mesh.data * mesh.fsdp = 8"),
    (("--config.rl.rollout_chunks=8", "--config.rl.group_size=4"),
     "rl.prompts * rl.group_size / rl.rollout_chunks = 4 is not a multiple of mesh.data * mesh.fsdp = 8"),
    (("--config.rl.rollout_chunks=3",), "rl.prompts=8 is not a multiple of rl.rollout_chunks=3"),
    (("--programs=nothing",), "there are sft, heldout, sample"),
    (("--topology=8xh100",), "--topology=8xh100: unknown; give a GPU with a number, such as h100:8 (b200"),
    (("--topology=v5e-8",), "or a TPU with a shape, such as v5e:4x4"),
])  # fmt: skip
def test_mistakes_are_told_in_one_line(command, arguments, message):
    done = command.on_devices(16)("plan", f"--config={TINY}", "--config.mesh.tensor=2", *arguments)
    assert done.returncode != 0 and message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason='the TPU compiler is not installed (extra "tpu")')
def test_every_program_compiles_for_a_tpu_from_the_command_line(command):
    done = command("plan", f"--config={TINY}", "--topology=v5e:2x2", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)  # stdout has only the JSON
    assert result["fits"] is True and result["memory_gib"] == 15.75 and result["devices"] == 4
    assert [record["name"] for record in result["programs"]] == PROGRAMS
    for record in result["programs"]:
        assert record["estimated_seconds"] >= 0 and record["compile_seconds"] > 0
    update = next(record for record in result["programs"] if record["name"] == "update")
    assert update["flops"] > 0 and sum(update["received_bytes"].values()) > 0
