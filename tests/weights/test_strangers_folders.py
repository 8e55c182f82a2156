"""A model's folder may come from a stranger: conversions write only into their target and copy nothing from elsewhere."""

import contextlib
import errno
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from igpo_jax.run import export as run_export
from igpo_jax.runtime.files import require_plain_name
from igpo_jax.runtime.mesh import make_mesh
from igpo_jax.weights import folders
from igpo_jax.weights.digest import MOST_SAMPLES, SAMPLED, STRIDE, WHOLE, files_digest, model_files, network_digest
from igpo_jax.weights.folders import convert, export, is_model_folder, load_params, original_name
from igpo_jax.weights.huggingface import INDEX, folder_model_config, llada_config, tensor_names
from igpo_jax.weights.new_folders import ORIGIN, new_folder
from igpo_jax.weights.safetensors_files import stored_tensors
from model_folders import PLAIN, write_folder

ROOT = pathlib.Path(__file__).parents[2]
NAMES = [name for names in tensor_names(llada_config(PLAIN, 64), PLAIN).values() for name in names]
FILE = "model-00001-of-00001.safetensors"


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Returns a folder with a Hugging Face folder that has an index, and the model folder that it was converted to."""
    folder, mesh = tmp_path_factory.mktemp("models"), make_mesh(devices=jax.devices()[:1])
    write_folder(folder / "hf", mesh, weight_map=dict.fromkeys(NAMES, FILE))
    convert(folder / "hf", folder / "model", mesh)
    return folder


@pytest.fixture
def models(converted, tmp_path):
    """Returns a copy of this folder, in which a test may change everything."""
    return pathlib.Path(shutil.copytree(converted, tmp_path / "models"))


def everything(folder: pathlib.Path) -> dict[str, bytes | None]:
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*")}
    return {name: path.read_bytes() if path.is_file() else None for name, path in found.items()}


@contextlib.contextmanager
def refused(folder: pathlib.Path, message: str):
    """Asserts that the body raises a ValueError of one line, and that nothing in `folder` changes."""
    before = everything(folder)
    with pytest.raises(ValueError, match=message) as raised:
        yield
    assert "\n" not in str(raised.value) and everything(folder) == before


@pytest.mark.parametrize("file", [
    "/elsewhere/precious.txt", "../outside.bin", "../model.safetensors", "model/../../model.safetensors",
    "model/.safetensors", "config.json", "modeling.py", ".", "..", "", "model\\..\\..\\model.safetensors",
    "model\n.safetensors", "model\0.safetensors", f"model{'x' * 300}.safetensors", "/model.safetensors", "Model.safetensors",
    "model.safetensors.index.json", 7, None, ["model.safetensors"],
])  # fmt: skip
def test_an_index_names_no_file_but_plain_ones(file, models, mesh, monkeypatch):
    """An export of a model folder, or of a run that was trained from one, creates the files that the index names."""
    precious = models / "precious.txt"
    precious.write_text("precious")
    file = str(precious) if file == "/elsewhere/precious.txt" else file
    for folder in (models / "model", models / "hf"):
        (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(NAMES[:-1], FILE) | {NAMES[-1]: file}}))
    with refused(models, INDEX):
        export(models / "model", models / "target", mesh)
    run = types.SimpleNamespace(
        adapters=None, params={}, model=PLAIN,
        config=types.SimpleNamespace(
            model=types.SimpleNamespace(path=str(models / "model")), data=types.SimpleNamespace(prompt_buckets=(8,)),
            sampler=types.SimpleNamespace(completion_length=8),
        ),
    )  # fmt: skip
    monkeypatch.setattr(run_export, "restore_run", lambda *_, **options: run)
    with refused(models, INDEX):
        run_export.export_run(models / "run", models / "target", mesh, "float32")
    with refused(models, INDEX):
        stored_tensors(models / "hf")


@pytest.mark.slow
def test_plain_names_are_kept(models, mesh):
    files = ["model.safetensors", "model-1.safetensors", "model_ä 2..safetensors"]
    weight_map = {name: files[number % 3] for number, name in enumerate(sorted(NAMES))}
    (models / "model" / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    export(models / "model", models / "target", mesh)
    assert {name: stored.file.name for name, stored in stored_tensors(models / "target").items()} == weight_map
    for name in ("a/b", "..", "", "a\\b", "a\n", None, "é" * 128):
        with pytest.raises(ValueError, match="^here: .* is not a plain file name$"):
            require_plain_name(name, "here")
    require_plain_name("é" * 127, "here")


# Symbolic links


@pytest.mark.parametrize("link", ["../precious.txt", "absolute", "chain", "folder/precious.txt"])
@pytest.mark.parametrize("name", ["notes.txt", "tokenizer.json", "config.json"])
def test_links_out_of_the_folder_are_not_copied(link, name, models, mesh):
    precious = models / "precious.txt"
    precious.write_text((models / "hf" / "config.json").read_text())
    for kind, action in (("hf", convert), ("model", export)):
        folder = models / kind
        (folder / name).unlink(missing_ok=True)
        (folder / "chain").symlink_to("../precious.txt")
        (folder / "folder").symlink_to("..")
        (folder / name).symlink_to(precious if link == "absolute" else link)
        if link != "chain":
            (folder / "chain").unlink()
        with refused(models, rf"{kind}/(chain|{name}) is a symbolic link to {precious}, outside of its folder"):
            action(folder, models / "target", mesh)


@pytest.mark.slow
def test_links_inside_the_folder_and_into_the_cache_are_copied(models, mesh, tmp_path):
    (models / "hf" / "more").mkdir()
    (models / "hf" / "more" / "text").write_text("mine")
    (models / "hf" / "notes.txt").symlink_to("more/text")
    (models / "hf" / "nowhere.txt").symlink_to("../gone")
    (models / "link").symlink_to("hf")
    convert(models / "link", models / "target", mesh)
    assert (models / "target" / "notes.txt").read_text() == "mine" and not (models / "target" / "notes.txt").is_symlink()
    assert not (models / "target" / "nowhere.txt").exists()
    # Hugging Face's cache: snapshots/REVISION/FILE -> ../../blobs/HASH
    repository = tmp_path / "hub" / "models--GSAI-ML--LLaDA-8B-Base"
    snapshot = repository / "snapshots" / "0f2787f2"
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(path for path in (models / "hf").iterdir() if path.is_file()):
        shutil.copyfile(file, repository / "blobs" / f"{number}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    convert(snapshot, tmp_path / "from_cache", mesh)
    assert (tmp_path / "from_cache" / "notes.txt").read_text() == "mine"
    # A stranger's copy of a cache, whose blobs lead elsewhere
    (repository / "blobs").rename(tmp_path / "elsewhere")
    (repository / "blobs").symlink_to(tmp_path / "elsewhere")
    with refused(repository, "is a symbolic link to .*/elsewhere/"):
        convert(snapshot, tmp_path / "again", mesh)
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("place", ["folder", "loop", "nowhere", "pipe"])
def test_weights_that_are_no_file_are_one_error(place, models, mesh):
    file = models / "hf" / FILE
    file.unlink()
    if place == "pipe":
        os.mkfifo(file)
    else:
        (models / "hf" / "folder").mkdir()
        file.symlink_to({"folder": "folder", "loop": FILE, "nowhere": "gone"}[place])
    for action in (
        lambda: convert(models / "hf", models / "target", mesh),
        lambda: load_params(models / "hf", folder_model_config(models / "hf"), mesh),
    ):
        with pytest.raises(ValueError, match=f"{FILE} is (missing|no file|a symbolic link)") as raised:
            action()
        assert "\n" not in str(raised.value)
    assert sorted(path.name for path in models.iterdir()) == ["hf", "model"]


# The target


HOLD = """
import pathlib, sys, time
from igpo_jax.runtime.locks import locked
with locked(sys.argv[1]):
    (pathlib.Path(sys.argv[1]) / "target").mkdir()
    (pathlib.Path(sys.argv[1]) / "target" / "config.json").write_text("half")
    print(flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_two_conversions_to_one_target_do_not_disturb_each_other(models, mesh):
    partial = models / "target.partial"
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(partial)], cwd=ROOT, stdout=subprocess.PIPE)
    first.stdout.readline()
    with refused(models, f"target.partial is being written by process {first.pid} on .*; wait until it ends"):
        convert(models / "hf", models / "target", mesh)
    first.kill()
    first.communicate()
    convert(models / "hf", models / "target", mesh)
    load_params(models / "target", folder_model_config(models / "target"), mesh)
    with refused(models, "target exists already"):
        convert(models / "hf", models / "target", mesh)
    assert sorted(path.name for path in models.iterdir()) == ["hf", "model", "target"]


@pytest.mark.slow
def test_a_folder_named_as_the_temporary_one_keeps_its_files(models, mesh):
    (models / "target.partial" / "target" / "params").mkdir(parents=True)  # what a killed conversion has left
    (models / "target.partial" / "mine.txt").write_text("mine")
    convert(models / "hf", models / "target", mesh)
    assert [path.name for path in (models / "target.partial").iterdir()] == ["mine.txt"]
    load_params(models / "target", folder_model_config(models / "target"), mesh)


NUMBER = "9" * 4200


@pytest.mark.parametrize("header, message", [
    ("{" + ",".join(f'"{i}":1' for i in [*range(20_000), 0]) + "}", "the key '0' is given twice"),  # in linear time
    ('{"a":{"dtype":"F32","shape":[' + ",".join([NUMBER] * 100) + '],"data_offsets":[0,4]}}', "are not lists of sizes"),
    ('{"a":{"dtype":"F32","shape":[' + ",".join("1" * 100) + '],"data_offsets":[0,4]}}', "are not lists of sizes"),
])  # fmt: skip
def test_a_header_cannot_keep_a_command_busy(header, message, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(4))
    with pytest.raises(ValueError, match=message) as raised:
        stored_tensors(tmp_path)
    assert len(str(raised.value)) < 1000


def test_a_header_without_end_is_not_read(tmp_path):
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write((6 * 10**9).to_bytes(8, "little"))
        file.truncate(6 * 10**9 + 8)  # takes no space
    with pytest.raises(ValueError, match="a header of 6000000000 bytes"):
        stored_tensors(tmp_path)


def test_a_huge_file_that_orbax_would_read_as_a_whole_is_refused(converted, tmp_path, mesh):
    folder = shutil.copytree(converted / "model", tmp_path / "model")
    for name, most in (("_CHECKPOINT_METADATA", "256"), ("state/_METADATA", "256"), ("state/_sharding", "65536")):
        file = folder / "params" / "embedding" / name
        size = file.stat().st_size
        os.truncate(file, 10**8)  # a hole
        for use in (
            lambda: load_params(folder, folder_model_config(folder), mesh),
            lambda: export(folder, tmp_path / "target", mesh),
        ):
            with pytest.raises(ValueError, match=f"embedding cannot be read: .*{name}: more than {most} KiB"):
                use()
        os.truncate(file, size)


def test_a_folder_with_the_weights_of_two_models_is_refused(models, mesh):
    folder = models / "model"
    assert is_model_folder(folder) and not is_model_folder(models / "hf")
    load_params(folder, folder_model_config(folder), mesh)
    shutil.copy(models / "hf" / FILE, folder)
    for use in (
        lambda: load_params(folder, folder_model_config(folder), mesh),
        lambda: original_name(folder),
    ):
        (folder / ORIGIN).unlink(missing_ok=True)
        with pytest.raises(ValueError, match=f"{folder} has weights in params and in {FILE}, maybe of two models; remove one"):
            use()


def test_a_file_with_the_name_of_the_weights_is_refused(models, mesh):
    (models / "hf" / "params").write_text("no weights")
    with refused(models, "params has the name of a model folder's weights; remove or rename this file$"):
        convert(models / "hf", models / "target", mesh)


def test_parameters_without_a_place_in_the_configuration_are_refused(models, mesh):
    """A model with an output head of its own would otherwise compute something else if config.json calls the head tied."""
    folder = models / "model"
    shutil.copytree(folder / "params/blocks.query", folder / "params/blocks.query_bias")
    (folder / "params/.DS_Store").write_text("")
    with pytest.raises(ValueError, match=f"^{folder} has parameters that config.json has no place for: blocks.query_bias$"):
        load_params(folder, folder_model_config(folder), mesh)
    (folder / INDEX).unlink()
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"weight_tying": True}))
    with refused(models, "config.json has no place for: blocks.query_bias, head$"):
        export(folder, models / "target", mesh)


def store_as(folder, name, dtype):
    """Stores a parameter of a model folder in another dtype."""
    place = folder / "params" / name
    value = np.asarray(ocp.load(place)["value"])
    shutil.rmtree(place)
    ocp.save(place, {"value": value.astype(dtype)})


@pytest.mark.parametrize("dtype", ["int32", "float64", "complex64", "bool", "uint8", "float8_e4m3fn", "int4"])
def test_parameters_of_other_dtypes_are_refused(dtype, models, mesh):
    folder, reason = models / "model", f"it has dtype {dtype}; only float32, bfloat16, float16 are read$"
    for name in ("embedding", "blocks.query"):
        store_as(folder, name, jnp.dtype(dtype))
        with pytest.raises(ValueError, match=f"^{folder}/params/(embedding|blocks.query) cannot be read: {reason}"):
            load_params(folder, folder_model_config(folder), mesh)
        for to in (None, "float32"):
            with refused(models, reason):
                export(folder, models / "target", mesh, to)
        store_as(folder, name, jnp.bfloat16)


def test_parameters_of_different_dtypes_are_refused(models, mesh):
    """The dtype of the first parameter would otherwise be that of an export, which would round the others."""
    folder = models / "model"
    store_as(folder, "blocks.query", jnp.float32)
    reason = f"^{folder}: parameter head is bfloat16, parameter blocks.query is float32; all must have one dtype$"
    with pytest.raises(ValueError, match=reason):
        load_params(folder, folder_model_config(folder), mesh)
    for to in (None, "float32"):
        with refused(models, reason):
            export(folder, models / "target", mesh, to)


def test_a_file_of_weights_that_cannot_be_read_is_named(models, mesh, monkeypatch):
    file = models / "hf" / FILE

    def load(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched, pytest.raises(OSError, match=f"error: '{file}'$"):
        patched.setattr(folders.ocp, "load", load)
        convert(models / "hf", models / "target", mesh)
    with monkeypatch.context() as patched, refused(models, f"{FILE} cannot be read: OverflowError: too large"):
        patched.setattr(folders.ocp, "load", mock.Mock(side_effect=OverflowError("too large")))  # a replaced header
        convert(models / "hf", models / "target", mesh)
    if pathlib.Path("/proc/self/mem").exists():  # a file whose beginning cannot be read
        file.unlink()
        file.symlink_to("/proc/self/mem")
        for use in (lambda: stored_tensors(models / "hf"), lambda: files_digest({file: 8})):
            with pytest.raises(OSError, match=f"error: '{file}'$"):
                use()


def test_a_named_pipe_does_not_block_the_hash_of_a_model(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    before = network_digest(tmp_path)
    os.mkfifo(tmp_path / "x.safetensors")
    reader = threading.Thread(target=network_digest, args=(tmp_path,), daemon=True)
    reader.start()
    reader.join(5)
    blocked = reader.is_alive()
    if blocked:
        os.close(os.open(tmp_path / "x.safetensors", os.O_WRONLY | os.O_NONBLOCK))
    assert not blocked and network_digest(tmp_path) == before


def test_a_name_that_is_not_unicode_is_hashed(tmp_path):
    (tmp_path / os.fsdecode(b"\xff.txt")).write_text("x")
    assert re.fullmatch("[0-9a-f]{16}", files_digest(model_files(tmp_path)))


def test_the_hash_of_a_file_changes_with_every_large_tensor(tmp_path):
    """A sample of 64 KiB in each sixteenth of a file left most layers of an 8B model out."""
    file = tmp_path / "model.safetensors"
    for size in (STRIDE, 40 * STRIDE):
        with file.open("wb") as opened:
            opened.truncate(size)
        before, begin = network_digest(tmp_path), size // 2 - SAMPLED
        for place, changed in ((begin, 1 if size <= WHOLE else STRIDE), (size - 1, 1)):
            with file.open("r+b") as opened:
                opened.seek(place)
                opened.write(b"x" * changed)
            assert network_digest(tmp_path) != before
            with file.open("r+b") as opened:
                opened.seek(place)
                opened.write(bytes(changed))
            assert network_digest(tmp_path) == before


def test_the_hash_of_a_huge_sparse_file_takes_a_bounded_time(tmp_path, monkeypatch):
    monkeypatch.setattr("igpo_jax.weights.digest.read_ranges", lambda _, ranges: read.extend(ranges) or [b""])
    for size in (1 << 34, 1 << 43):
        read: list[tuple[int, int]] = []
        files_digest({tmp_path: size})
        assert len(read) <= MOST_SAMPLES + 2 and sum(end - begin for begin, end in read) < 1.1 * (1 << 30)


def test_a_link_in_place_of_the_temporary_folder_leads_to_no_deletion(tmp_path):
    own = tmp_path / "home" / "target"
    own.mkdir(parents=True)
    (tmp_path / "stranger").mkdir()
    (tmp_path / "stranger" / "target.partial").symlink_to(tmp_path / "home")
    with pytest.raises(ValueError, match="target.partial is a symbolic link; remove it"):
        with new_folder(tmp_path / "stranger" / "target"):
            pass
    assert list((tmp_path / "home").iterdir()) == [own]
