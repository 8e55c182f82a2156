"""Damage to any one checkpoint file either is detected, so that an older checkpoint is read, or is harmless."""

import logging
import pathlib
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from igpo_jax.run import checkpoint_integrity as integrity
from igpo_jax.run.checkpoint import Checkpoints
from igpo_jax.runtime import files
from run_configs import contents

KEY, LOSSES = jax.random.key(3), [[0.1, 2.0], [float("nan"), float("inf")]]
MEMORY = np.arange(12, dtype=np.int32).reshape(3, 4)


def state_at(step: int) -> dict:
    values = jax.random.normal(jax.random.key(step), (300, 40))
    return {"params": {"w": values, "b": jnp.zeros(3, jnp.bfloat16)}, "step": jnp.int32(step)}


def abstract_params() -> dict:
    sharding = jnp.zeros(1).sharding
    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for name, x in state_at(0)["params"].items()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> pathlib.Path:
    """Checkpoint folder with steps 1 and 2."""
    folder = tmp_path_factory.mktemp("saved") / "sft"
    with Checkpoints(folder, keep=3, identity={"fingerprint": "abc"}) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state_at(step), KEY, MEMORY + step, unlogged=LOSSES)
            checkpoints.wait()
    return folder


def restored(folder: pathlib.Path):
    """Restores the newest readable step, asserts that it is complete, and returns it."""
    sharding = jnp.zeros(1).sharding
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state_at(0))
    with Checkpoints(folder, keep=3) as checkpoints:
        step, state, key, memory, unlogged = checkpoints.restore_latest(abstract, KEY, MEMORY)
    jax.tree.map(np.testing.assert_array_equal, state, state_at(step))
    np.testing.assert_array_equal(memory, MEMORY + step)
    assert jax.random.key_data(key).tolist() == jax.random.key_data(KEY).tolist()
    np.testing.assert_array_equal(unlogged, LOSSES)
    return step


def test_what_is_saved_comes_back(saved, tmp_path):
    assert restored(shutil.copytree(saved, tmp_path / "sft")) == 2


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_damage_to_any_one_file_is_noticed_or_harmless(damage, saved, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    draw, older = random.Random(0), set()
    files = [path.relative_to(saved) for path in sorted((saved / "2").rglob("*")) if path.is_file()]
    assert len(files) > 10
    for number, file in enumerate(files):
        folder = shutil.copytree(saved, tmp_path / str(number) / "sft")
        content = bytearray((folder / file).read_bytes())
        if damage == "missing":
            (folder / file).unlink()
        elif damage == "truncated":
            (folder / file).write_bytes(content[: len(content) // 2])
        else:
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            (folder / file).write_bytes(content)
        caplog.clear()
        if restored(folder) == 1:
            older.add(file.name)
            assert f"checkpoint {folder / '2'} cannot be read (" in caplog.text
            assert (folder.with_name("sft-unreadable") / "2").is_dir()
        else:
            assert "cannot be read" not in caplog.text
    assert {"_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt"} <= older


def test_a_flipped_bit_among_the_numbers_is_noticed(saved, tmp_path, caplog):
    """Orbax alone does not detect most of these flips."""
    largest = max((path for path in (saved / "2").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    for number, place in enumerate(np.linspace(2000, largest.stat().st_size - 2000, 8, dtype=int)):
        folder = shutil.copytree(saved, tmp_path / str(number) / "sft")
        content = bytearray(largest.read_bytes())
        content[place] ^= 1
        (folder / largest.relative_to(saved)).write_bytes(content)
        assert restored(folder) == 1
    assert "state.params.w: not the numbers that were saved" in caplog.text


def test_parameters_alone_are_checked_too(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "sft")
    largest = max((path for path in (folder / "2").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with Checkpoints(folder, keep=3, read_only=True) as checkpoints:
        step, params = checkpoints.restore_params(abstract_params())
    assert step == 1
    np.testing.assert_array_equal(params["w"], state_at(1)["params"]["w"])


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"{", b"[]", b'{"a": 1}', b"", None], ids=str)
def test_parameters_are_read_or_those_before_whatever_one_file_holds(content, saved, tmp_path):
    files = [path.relative_to(saved) for path in sorted((saved / "2").rglob("*")) if path.is_file()]
    for number, file in enumerate(files):
        folder = shutil.copytree(saved, tmp_path / str(number) / "sft")
        (folder / file).unlink() if content is None else (folder / file).write_bytes(content)
        with Checkpoints(folder, keep=3, read_only=True) as checkpoints:
            step, params = checkpoints.restore_params(abstract_params())
        np.testing.assert_array_equal(params["w"], state_at(step)["params"]["w"], err_msg=str(file))


def test_parameters_that_the_network_lacks_are_refused(saved):
    """A config.json with another model.tied_head, for example, would drop the trained head."""
    with Checkpoints(saved, keep=3, read_only=True) as checkpoints:
        abstract = abstract_params()
        del abstract["b"]
        with pytest.raises(ValueError, match=r"2 has parameters that the model lacks: b; config.json"):
            checkpoints.restore_params(abstract)


DAMAGED = {"cut": b'{"accur', "deep": b"[" * 10**5, "empty": b"", "list": b'{"accuracy": [0.0]}', "none": b"{}", "number": b"1"}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_reading_damaged_metrics_changes_no_file(content, saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "run" / "sft")
    for place in (folder / "2", tmp_path / "elsewhere"):
        (place / "metrics").mkdir(parents=True, exist_ok=True)
        (place / "metrics" / "metrics").write_bytes(content)
    (folder / "1" / "metrics").symlink_to(tmp_path / "elsewhere" / "metrics")
    before = contents(tmp_path)
    with Checkpoints(folder, keep=3, read_only=True) as checkpoints:
        assert checkpoints.restore_params(abstract_params())[0] == 2
    assert contents(tmp_path) == before
    with pytest.raises(ValueError, match="1/metrics leads to damaged metrics in another folder"), Checkpoints(folder, keep=3):
        pass
    assert (tmp_path / "elsewhere/metrics/metrics").read_bytes() == content
    (folder / "1" / "metrics").unlink()
    with Checkpoints(folder, keep=3):  # training removes what is damaged, because the best checkpoint is kept
        assert not (folder / "2" / "metrics").exists()


@pytest.mark.parametrize("missing", ["crc32", "sums", "one sum", "all"])
def test_a_checkpoint_without_checksums_is_read_with_a_warning(missing, tmp_path, monkeypatch, caplog):
    """Checkpoints of earlier versions have none."""
    with Checkpoints(tmp_path / "sft", keep=3) as checkpoints:
        asynchronous = checkpoints._checkpointer.save_checkpointables_async

        def without_sums(*args, custom_metadata, **options):
            about = dict(custom_metadata)
            if missing == "one sum":
                about["sums"] = {name: value for name, value in about["sums"].items() if name != "state.params.w"}
            for name in ("crc32", "sums") if missing == "all" else (missing,):
                about.pop(name, None)
            if "crc32" in about:  # the rest is consistent
                about["crc32"] = integrity.metadata_crc(about)
            return asynchronous(*args, custom_metadata=about, **options)

        checkpoints.save(4, {"params": {"w": jnp.ones(2)}}, KEY)
        checkpoints.wait()
        monkeypatch.setattr(checkpoints._checkpointer, "save_checkpointables_async", without_sums)
        checkpoints.save(5, {"params": {"w": jnp.ones(2)}}, KEY)
    abstract = {"params": {"w": jax.ShapeDtypeStruct((2,), jnp.float32, sharding=jnp.zeros(1).sharding)}}
    warning = f"checkpoint {tmp_path}/sft/5 lacks checksums"
    with Checkpoints(tmp_path / "sft", keep=3) as checkpoints:
        step, _, _, _, unlogged = checkpoints.restore_latest(abstract, KEY)
        assert (step, unlogged) == (5, []) and caplog.text.count(warning) == 1
    with Checkpoints(tmp_path / "sft", keep=3, read_only=True) as checkpoints:  # of evaluation and export
        assert checkpoints.restore_params(abstract["params"])[0] == 5 and caplog.text.count(warning) == 2
    shutil.rmtree(tmp_path / "sft/5")
    with Checkpoints(tmp_path / "sft", keep=3) as checkpoints:
        assert checkpoints.restore_latest(abstract, KEY)[0] == 4 and caplog.text.count("lacks checksums") == 2


def test_a_checkpoint_that_unpacks_to_far_more_than_is_stored_is_not_read(tmp_path, monkeypatch):
    """A stranger's checkpoint of zeros takes no space and could fill the memory."""
    monkeypatch.setattr(files, "ALWAYS_UNPACKED", 2**20)
    zeros = {"params": {"w": jnp.zeros((3000, 4000)), "b": jnp.zeros(3, jnp.bfloat16)}, "step": jnp.int32(1)}
    with Checkpoints(tmp_path / "sft", keep=3) as checkpoints:
        checkpoints.save(1, zeros, KEY)
        checkpoints.wait()
    sharding = jnp.zeros(1).sharding
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), zeros)
    with Checkpoints(tmp_path / "sft", keep=3, read_only=True) as checkpoints:
        with pytest.raises(ValueError, match="none of the checkpoints"):
            checkpoints.restore_params(abstract["params"])
    with Checkpoints(tmp_path / "sft", keep=3) as checkpoints:  # a run's own checkpoint is read
        assert checkpoints.restore_latest(abstract, KEY)[0] == 1
