"""Checkpoints that a stranger made or renamed: links, pipes, sparse files, huge chunks and wrong steps are noticed before Orbax
reads the files."""

import dataclasses
import json
import os
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore
from orbax.checkpoint import v1 as ocp

from igpo_jax.config import with_tokenizer
from igpo_jax.model.attention import RopeScaling
from igpo_jax.model.transformer import ModelConfig
from igpo_jax.run import checkpoint_integrity as integrity
from igpo_jax.run.checkpoint import Checkpoints
from igpo_jax.run.missing_files import check_links, has_checkpoints
from igpo_jax.runtime.files import folder_size
from igpo_jax.tokenizers import load_tokenizer
from tokenizer_files import write_tokenizer

KEY = jax.random.key(3)
LENGTH = 32


def state_at(step: int) -> dict:
    return {"params": {"w": jnp.arange(LENGTH) + step * 1.0}, "step": jnp.int32(step)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoint folder with steps 1 and 2."""
    folder = tmp_path_factory.mktemp("saved") / "sft"
    with Checkpoints(folder, keep=3) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state_at(step), KEY)
    return folder


def newest(folder) -> int:
    sharding = jnp.zeros(1).sharding
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state_at(0))
    with Checkpoints(folder, keep=3, read_only=True) as checkpoints:
        step, params = checkpoints.restore_params(abstract["params"])
    assert params["w"][0] == step
    return step


def make_link(folder):
    file = next(path for path in (folder / "2" / "state").rglob("*") if path.is_file())
    private = shutil.move(file, folder.parents[2] / "private")
    file.symlink_to(private)


def make_pipe(folder):
    (folder / "2" / "_CHECKPOINT_METADATA").unlink()
    os.mkfifo(folder / "2" / "_CHECKPOINT_METADATA")


def make_huge_chunks(folder):
    """Stores the same numbers in a chunk of 4 MB, which takes a few bytes when it is compressed."""
    store = {"driver": "ocdbt", "base": f"file://{folder / '2' / 'state'}/"}
    keys = tensorstore.KvStore.open(store).result()
    metadata = json.loads(keys.read("params.w/zarr.json").result().value)
    keys.delete_range(tensorstore.KvStore.KeyRange("params.w/", "params.w0")).result()
    metadata["chunk_grid"]["configuration"]["chunk_shape"] = [1_000_000]
    metadata["codecs"] = [
        {"name": "bytes", "configuration": {"endian": "little"}},
        {"name": "zstd", "configuration": {"level": 3}},
    ]
    kept = {name: metadata[name] for name in ("chunk_grid", "chunk_key_encoding", "codecs", "data_type", "fill_value", "shape")}
    spec = {"driver": "zarr3", "kvstore": store | {"path": "params.w/"}, "metadata": kept, "create": True}
    tensorstore.open(spec).result().write(np.asarray(state_at(2)["params"]["w"])).result()


def make_integers(folder):
    """Stores the parameters in another dtype, which Orbax would cast, without checksums, as in earlier versions."""
    state = state_at(2)
    state["params"]["w"] = state["params"]["w"].astype(jnp.int32)
    shutil.rmtree(folder / "2")
    progress = {"key": KEY}
    ocp.save_checkpointables(folder / "2", {"state": state, "progress": progress}, custom_metadata={"data_position": 2})


@pytest.mark.parametrize("change, reason", [
    (make_link, " leads to "),
    (make_integers, r"state.params.w has dtype int32, not float32"),
    (make_pipe, "is neither a file nor a folder"),
    (make_huge_chunks, "are larger than the array"),
    (lambda folder: shutil.copytree(folder / "1", folder / "7"), "it was saved as step 1; its folder was renamed or copied"),
], ids=["link", "dtype", "pipe", "chunks", "copy"])  # fmt: skip
def test_such_a_checkpoint_is_passed_over(change, reason, saved, tmp_path, caplog):
    folder = shutil.copytree(saved, tmp_path / "run" / "checkpoints" / "sft")
    change(folder)
    assert newest(folder) == (2 if (folder / "7").exists() else 1)
    assert reason in caplog.text


def test_a_state_of_other_dtypes_is_not_resumed(tmp_path):
    """Orbax would cast the number of updates, the moments and the bank of solutions."""
    folder, bank, right = tmp_path / "sft", np.zeros(4, np.int32), state_at(3)
    with Checkpoints(folder, keep=9) as checkpoints:
        checkpoints.save(1, right, KEY, bank)
        checkpoints.save(2, right | {"step": jnp.float32(3)}, KEY, bank)
        checkpoints.save(3, right | {"params": {"w": right["params"]["w"].astype(jnp.bfloat16)}}, KEY, bank)
        checkpoints.save(4, right, KEY, bank.astype(np.int16))
        checkpoints.save(5, right, jnp.arange(2.0), bank)
    for about in folder.glob("*/_CHECKPOINT_METADATA"):  # checksums also find it; earlier versions saved none
        values = json.loads(about.read_text())
        values["custom_metadata"] = {"data_position": values["custom_metadata"]["data_position"]}
        about.write_text(json.dumps(values))
    with Checkpoints(folder, keep=9) as checkpoints:
        step, state, key, *_ = checkpoints.restore_latest(state_at(0), KEY, bank)
    assert step == 1 and state["step"] == 3 and (jax.random.key_data(key) == jax.random.key_data(KEY)).all()


def make_huge_metadata(folder):
    os.truncate(folder / "2" / "_CHECKPOINT_METADATA", 10**10)


@pytest.mark.parametrize("change", [make_pipe, make_huge_metadata])
def test_metadata_that_is_a_pipe_or_huge_is_refused_before_orbax_reads_it(change, saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "run" / "checkpoints" / "sft")
    change(folder)
    with pytest.raises(ValueError, match=f"2/_CHECKPOINT_METADATA is no file of at most 256 KiB; move {folder}/2 away"):
        Checkpoints(folder, keep=3)


def many_arrays(folder):
    """Names thousands of arrays. Orbax takes 25 KB of memory for each, so that 200,000 would need 5 GB and minutes."""
    file = folder / "2" / "state" / "_METADATA"
    values = json.loads(file.read_text())
    [name, *_] = arrays = values["tree_metadata"]
    arrays |= {f"('params', 'z{number}')": arrays[name] for number in range(2000)}
    file.write_text(json.dumps(values))


def many_chunks_of_arrays(folder):
    [file] = (folder / "2" / "state" / "array_metadatas").iterdir()
    values = json.loads(file.read_text())
    values["array_metadatas"] *= 2000
    file.write_text(json.dumps(values))


@pytest.mark.parametrize("change", [many_arrays, many_chunks_of_arrays])
def test_a_checkpoint_that_names_thousands_of_arrays_is_passed_over(change, saved, tmp_path, monkeypatch, caplog):
    folder = shutil.copytree(saved, tmp_path / "run" / "checkpoints" / "sft")
    change(folder)
    reading, read = ocp.checkpointables_metadata, []
    monkeypatch.setattr(ocp, "checkpointables_metadata", lambda path: read.append(path) or reading(path))
    assert newest(folder) == 1 and read == [folder / "1"]  # before Orbax reads it
    assert "more than 256 KiB" in caplog.text


def test_large_metadata_is_not_parsed(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "run" / "checkpoints" / "sft")
    file = folder / "2" / "_CHECKPOINT_METADATA"
    assert integrity.read_metadata(folder / "2")["data_position"] == 2
    file.write_text(" " * 2**20 + file.read_text())
    assert integrity.read_metadata(folder / "2") is None
    with pytest.raises(ValueError, match="2/_CHECKPOINT_METADATA is no file of at most 256 KiB"):
        Checkpoints(folder, keep=3)


@pytest.mark.parametrize("target", ["2", "nowhere", "../../../elsewhere"])
def test_a_link_in_the_place_of_a_checkpoint_is_refused(target, saved, tmp_path):
    """Orbax cannot delete it, and thousands of links could lead to one large checkpoint."""
    folder = shutil.copytree(saved, tmp_path / "run" / "checkpoints" / "sft")
    shutil.copytree(saved / "2", tmp_path / "elsewhere")
    (folder / "7").symlink_to(target)
    for use in (
        lambda: newest(folder),
        lambda: Checkpoints(folder, keep=3),
        lambda: check_links(tmp_path / "run"),
        lambda: has_checkpoints(tmp_path / "run"),
    ):
        with pytest.raises(ValueError, match=f"{folder / '7'} (is a symbolic link; remove it|leads to .*, outside of the run)"):
            use()


@pytest.mark.parametrize("place", ["checkpoints", "checkpoints/sft"])
def test_checkpoints_outside_of_the_run_are_refused(place, saved, tmp_path):
    """Weights of another place could be exported through a link in a stranger's folder."""
    link = tmp_path / "run" / place
    link.parent.mkdir(parents=True)
    link.symlink_to(saved if place.endswith("sft") else saved.parent)
    folder = tmp_path / "run" / "checkpoints" / saved.name
    for use in (lambda: newest(folder), lambda: has_checkpoints(tmp_path / "run")):
        with pytest.raises(ValueError, match=f"{folder} leads to {saved}, outside of the run"):
            use()
    link.unlink()
    kept = shutil.copytree(saved, tmp_path / "run" / "kept" / "sft")
    link.symlink_to(kept if place.endswith("sft") else kept.parent)
    assert newest(folder) == 2


def test_a_link_in_the_place_of_an_unfinished_save_is_refused(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "run" / "checkpoints" / "sft")
    (folder / "7.orbax-checkpoint-tmp").symlink_to("2")
    with pytest.raises(ValueError, match="7.orbax-checkpoint-tmp is a symbolic link; remove it"):
        check_links(tmp_path / "run")


def test_metrics_that_are_a_pipe_do_not_block_the_run(saved, tmp_path, caplog):
    folder = shutil.copytree(saved, tmp_path / "run" / "checkpoints" / "sft")
    pipe = folder / "2" / "metrics" / "metrics"
    pipe.parent.mkdir()
    os.mkfifo(pipe)
    opening = threading.Thread(target=integrity.remove_unreadable_metrics, args=(folder,), daemon=True)
    opening.start()
    opening.join(5)
    if opening.is_alive():
        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
    assert "is no file); removed" in caplog.text and newest(folder) == 2


def test_links_within_the_run_and_into_the_blobs_of_the_hub_are_followed(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "models--a--b" / "snapshots" / "0123" / "checkpoints" / "sft")
    for number, file in enumerate([path for path in sorted(folder.rglob("*")) if path.is_file()]):
        place = tmp_path / "models--a--b" / "blobs" if number % 2 else folder.parents[1] / "kept"
        place.mkdir(exist_ok=True)
        file.symlink_to(shutil.move(file, place / str(number)))
    assert newest(folder) == 2


@pytest.mark.parametrize("name", ["9" * 30, "²"])
def test_a_number_that_is_no_step_is_named(name, saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "run" / "checkpoints" / "sft")
    shutil.copytree(folder / "2", folder / name)
    assert newest(folder) == 2
    with pytest.raises(ValueError, match=f"{name}.* is not the step of a checkpoint; move it away"):
        Checkpoints(folder, keep=3)


def test_holes_and_second_links_do_not_make_a_folder_larger(tmp_path):
    (tmp_path / "data").write_bytes(b"x" * 100_000)
    (tmp_path / "link").symlink_to(tmp_path / "data")
    os.truncate(tmp_path / "data", 10**12)
    with (tmp_path / "hole").open("wb") as file:
        file.truncate(10**12)
    assert 100_000 <= folder_size(tmp_path) < 200_000


def test_a_link_to_another_file_is_no_data_of_a_folder(tmp_path):
    (tmp_path / "large").write_bytes(bytes(100_000))
    model = tmp_path / "snapshots" / "model"
    model.mkdir(parents=True)
    (model / "padding").symlink_to(tmp_path / "large")
    assert folder_size(model) == 0
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "1").write_bytes(bytes(50_000))
    (model / "array").symlink_to("../../blobs/1")
    (model / "again").symlink_to("array")
    assert folder_size(model) == 50_000


def test_another_tokenizer_is_another_run():
    assert integrity.other_identity("rl", {"tokenizer": "a"}, {"tokenizer": "a"}) == ""
    assert integrity.other_identity("rl", {}, {"tokenizer": "a"}) == ""  # an earlier version
    assert "another base model in model.path, or by an earlier" in integrity.other_identity("rl", {"base": "a"}, {"base": "b"})
    assert not integrity.other_identity("rl", {}, {"base": "b"}) and not integrity.other_identity("rl", {"base": "a"}, {})
    assert "another tokenizer" in integrity.other_identity("rl", {"tokenizer": "a"}, {"tokenizer": "b"})
    assert "other settings of the model in" in integrity.other_identity("sft", {"network": "a"}, {"network": "b"})
    assert not integrity.other_identity("rl", {}, {"network": "b"}) and not integrity.other_identity("rl", {"network": "a"}, {})


def test_the_hash_of_a_network_covers_its_settings_and_ids_but_not_its_numerics(tmp_path):
    ids, file = write_tokenizer(tmp_path), tmp_path / "tokenizer_config.json"
    sizes = {"width": 16, "layers": 1, "heads": 2, "kv_heads": 2, "mlp_width": 8}
    model = ModelConfig(vocab_size=336, mask_id=ids["<|mdm_mask|>"], eos_id=ids["<|endoftext|>"], **sizes)

    def hashed(unk_token=None, **changes):
        file.write_text(json.dumps({"eos_token": "<|endoftext|>", "unk_token": unk_token}))
        tokenizer = load_tokenizer(tmp_path, model.mask_id)
        return integrity.network_hash(dataclasses.replace(with_tokenizer(model, tokenizer, tmp_path), **changes), tokenizer)

    changes = {"rope_theta": 2.0, "norm_epsilon": 1e-3, "mask_id": 7, "shift": True, "tied_head": True}
    changes["rope_scaling"] = RopeScaling(8.0, 1.0, 4.0, 64)
    others = {hashed(), hashed(unk_token="The"), *(hashed(**{name: value}) for name, value in changes.items())}
    assert len(others) == 2 + len(changes)
    assert hashed(compute_dtype="bfloat16", attention="auto", remat="full", base_dtype="int8") == hashed()
    tokenizer = load_tokenizer(tmp_path, model.mask_id)
    before = integrity.network_hash(model, tokenizer)
    tokenizer.chat = dataclasses.replace(tokenizer.chat, system="You are helpful.")
    assert integrity.network_hash(model, tokenizer) != before
