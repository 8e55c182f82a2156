"""Models in buckets, with an emulator of Google Cloud Storage."""

import jax
import numpy as np
import pytest

import igpo_jax
from igpo_jax.runtime import buckets
from igpo_jax.weights.digest import files_digest
from igpo_jax.weights.folders import convert, load_params
from igpo_jax.weights.huggingface import folder_model_config
from model_folders import write_folder
from storage_emulator import Network, connected, storage_emulator
from tiny_llada import write_tiny_llada

network = Network()


@pytest.fixture(autouse=True)
def bucket(monkeypatch, tmp_path):
    with storage_emulator(network) as address, connected(address, monkeypatch, tmp_path / "cache") as files:
        yield files


@pytest.mark.parametrize("kind", ["huggingface", "model"])
def test_weights_in_a_bucket_are_those_on_disk_and_are_read_once(kind, bucket, tmp_path, mesh):
    expected = write_folder(tmp_path / "huggingface", mesh)
    if kind == "model":
        convert(tmp_path / "huggingface", tmp_path / "model", mesh)
    address = f"gs://team/{kind}"
    bucket.put(str(tmp_path / kind), address, recursive=True)
    cfg = folder_model_config(address, param_dtype="bfloat16")
    assert cfg == folder_model_config(tmp_path / kind, param_dtype="bfloat16")
    network.downloaded = 0
    loaded = load_params(address, cfg, mesh)
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, loaded), expected)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(expected))
    assert size <= network.downloaded < 1.05 * size + 100_000, "beside the weights, there are headers"
    if kind == "model":
        bucket.pipe_file(f"{address}/params/more/_METADATA", b"{}")
        with pytest.raises(ValueError, match=f"^{address} has parameters that config.json has no place for: more$"):
            load_params(address, cfg, mesh)


def test_files_in_a_bucket_have_the_hash_of_those_on_disk(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr("igpo_jax.runtime.buckets.PARALLEL", 3)
    monkeypatch.setattr("igpo_jax.weights.digest.WHOLE", 1 << 20)
    monkeypatch.setattr("igpo_jax.weights.digest.STRIDE", 1 << 18)
    for name, size in {"large": (1 << 21) + 5, "small": 1000, "empty": 0}.items():
        (tmp_path / name).write_bytes(np.random.default_rng(size).bytes(size))
        bucket.put(str(tmp_path / name), f"gs://team/hashed/{name}")
    expected = files_digest({file: file.stat().st_size for file in tmp_path.iterdir() if file.is_file()})
    network.downloaded = 0
    assert files_digest(buckets.all_files(buckets.path_of("gs://team/hashed"))) == expected
    assert network.downloaded < 1 << 20  # of 2 MiB


def test_a_model_in_a_bucket_generates_what_it_generates_on_disk(bucket, tmp_path):
    llada_folder = write_tiny_llada(tmp_path, layers=2)
    bucket.put(str(llada_folder), "gs://team/llada", recursive=True)
    here, there = (igpo_jax.load(folder) for folder in (llada_folder, "gs://team/llada"))
    options = {"completion_length": 8, "block_length": 8}
    tokens = [model.generate(["Hello"], **options)[0].tokens.tolist() for model in (here, there)]
    assert tokens[0] == tokens[1] and there.origin == {"path": "gs://team/llada"}


def test_only_small_files_are_downloaded_and_only_if_they_have_changed(bucket, tmp_path, mesh):
    write_folder(tmp_path / "plain", mesh)
    bucket.put(str(tmp_path / "plain"), "gs://team/small", recursive=True)
    folder = buckets.small_files("gs://team/small/")
    assert [file.name for file in folder.iterdir()] == ["config.json"]
    buckets._small_files.cache_clear()
    assert buckets.small_files("gs://team/small") == folder
    bucket.pipe_file("gs://team/small/config.json", b"{}")
    buckets._small_files.cache_clear()
    assert (buckets.small_files("gs://team/small") / "config.json").read_text() == "{}"


def test_what_is_missing_is_one_line(bucket, tmp_path, mesh):
    with pytest.raises(ValueError, match="there is no folder 'gs://team/nothing'"):
        igpo_jax.load("gs://team/nothing")
    bucket.pipe_file(
        "gs://team/empty/config.json", (write_folder(tmp_path / "a", mesh), (tmp_path / "a/config.json").read_bytes())[1]
    )
    with pytest.raises(ValueError, match="gs://team/empty has no model"):
        load_params("gs://team/empty", folder_model_config("gs://team/empty"), mesh)
    with pytest.raises(ValueError, match="gs://team/empty has objects already"):
        convert(tmp_path / "a", "gs://team/empty", mesh)
    with pytest.raises(ValueError, match="s3://team/a: s3:// is not supported"):
        igpo_jax.load("s3://team/a")
