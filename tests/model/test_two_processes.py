"""Two processes with two devices each give the results of one process with one device."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

import igpo_jax
from igpo_jax.weights.safetensors_files import stored_tensors
from model_folders import assert_same_files
from processes import free_port
from storage_emulator import Network, connected, storage_emulator
from tokenizer_files import write_tokenizer

HERE = pathlib.Path(__file__).parent


def exported(folder: pathlib.Path) -> int:
    return sum(file.stat().st_size for file in (folder / "exported").iterdir())


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """(network, file system) of an emulated bucket."""
    network = Network()
    with storage_emulator(network) as address, connected(address, monkeypatch, tmp_path / "cache") as files:
        yield network, files


@pytest.mark.slow
@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_two_processes_convert_export_and_generate(place, tmp_path, mesh, request):
    source = tmp_path / "hf"
    shutil.copytree(HERE / "fixtures" / "llada_tiny" / "bf16_sharded", source)
    write_tokenizer(source)
    places = [str(source), str(tmp_path)]
    if place == "bucket":
        network, files = request.getfixturevalue("bucket")
        files.put(str(source), "gs://team/hf", recursive=True)
        places = ["gs://team/hf", "gs://team"]
    arguments = [str(free_port()), *places, str(tmp_path)]
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(HERE.parent / "helpers" / "two_processes.py")]
    processes = [
        subprocess.Popen([*command, str(rank), *arguments], env=env, stderr=subprocess.PIPE, text=True) for rank in (0, 1)
    ]
    try:
        errors = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], errors
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    if place == "bucket":
        files.invalidate_cache()
        files.get("gs://team/exported/", f"{tmp_path / 'exported'}/", recursive=True)
        assert not files.exists("gs://team/model/.lock") and files.exists("gs://team/model/config.json")
    total = sum(stored.end - stored.begin for stored in stored_tensors(source).values())
    assert first.pop("bytes_read") == second.pop("bytes_read") == total / 2
    assert first == second
    if place == "bucket":  # for conversion, export and loading, besides headers and small files, which each process reads
        small = 2 * sum(file.stat().st_size for file in source.glob("*.json"))
        assert 3 * total <= network.downloaded - exported(tmp_path) <= 1.05 * 3 * total + 3 * small + 200_000
    assert_same_files(source, tmp_path / "exported")
    model = igpo_jax.load(source, mesh=mesh)
    alone = model.generate(["Hello", "two and two"], completion_length=16, block_length=8)
    assert first["tokens"] == [done.tokens.tolist() for done in alone]
    assert first["score"] == pytest.approx(model.score("Hello", " there").log_likelihood, abs=1e-3)
    assert first["infilled"] == model.infill(["The answer is [MASK:4] because"])[0].tokens.tolist()
