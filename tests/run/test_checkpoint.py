"""Saving leaves nothing open, and reading checkpoints does not disturb another process that saves."""

import os
import threading

import jax
import jax.numpy as jnp
import pytest

from igpo_jax.run import checkpoint_integrity as integrity
from igpo_jax.run.checkpoint import Checkpoints


def test_a_reader_leaves_a_save_that_is_under_way_alone(tmp_path):
    state = {"params": {"w": jnp.arange(3.0)}}
    with Checkpoints(tmp_path / "sft", keep=2) as writer:
        writer.save(4, state, jax.random.key(0))
        writer.wait()
    saving = tmp_path / "sft" / "5.orbax-checkpoint-tmp"
    (saving / "metrics").mkdir(parents=True)
    (saving / "metrics" / "metrics").write_text("{")
    abstract = {"w": jax.ShapeDtypeStruct((3,), jnp.float32, sharding=state["params"]["w"].sharding)}
    with Checkpoints(tmp_path / "sft", keep=2, read_only=True) as reader:
        step, params = reader.restore_params(abstract)
    assert step == 4 and params["w"].tolist() == [0, 1, 2] and (saving / "metrics" / "metrics").is_file()
    with Checkpoints(tmp_path / "sft", keep=2) as writer:
        assert writer.steps() == [4]


def test_parameters_that_a_model_lacks_are_named(tmp_path):
    """config.json may say, for example, that the output head is tied to the embedding."""
    state = {"params": {"w": jnp.arange(3.0), "blocks": {"a": jnp.ones(2), "b": jnp.ones(2)}, "head": jnp.ones(2)}}
    with Checkpoints(tmp_path / "sft", keep=2) as writer:
        writer.save(4, state, jax.random.key(0))
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state["params"])
    with Checkpoints(tmp_path / "sft", keep=2, read_only=True) as reader:
        assert reader.restore_params(abstract)[0] == 4
        del abstract["head"], abstract["blocks"]["a"]
        with pytest.raises(ValueError, match=r"sft/4 has parameters that the model lacks: blocks\.a, head; config.json "):
            reader.restore_params(abstract)


def test_checkpoints_do_not_hold_the_path_to_them(tmp_path):
    state = {"params": {"w": jnp.arange(3.0)}}
    folder = tmp_path / "sft"

    def holding() -> set[str]:
        return {
            file.parts[len(folder.parts)] for file in folder.rglob("*") if file.is_file() and bytes(folder) in file.read_bytes()
        }

    with Checkpoints(folder, keep=3, best=True) as writer:
        writer.save(1, state, jax.random.key(0))
        writer.save(2, state, jax.random.key(0), accuracy=0.5)
        assert "1" not in holding()
        writer.wait()
        assert holding() == set() and len(list(folder.rglob("commit_success.txt"))) >= 5
        writer.add_accuracy(2, 0.75)
        writer.save(3, state, jax.random.key(0))
    assert holding() == set()
    with Checkpoints(folder, keep=3) as again:
        assert again.steps() == [1, 2, 3] and again.restore_latest(state, jax.random.key(0))[0] == 3


def test_an_accuracy_is_added_without_saving_the_checkpoint_again(tmp_path):
    """A command that is killed at any moment has either the checkpoint without an accuracy or the one with it."""
    folder, key = tmp_path / "rl", jax.random.key(0)
    states = [{"params": {"w": jnp.full(3, float(step))}} for step in range(5)]
    with Checkpoints(folder, keep=1, best=True) as writer:
        writer.save(1, states[1], key, accuracy=0.5)
        writer.save(2, states[2], key)
    content = {file: file.read_bytes() for file in (folder / "2").rglob("*") if file.is_file()}
    with Checkpoints(folder, keep=1, best=True) as writer:
        with pytest.raises(Exception, match="2 already exists"):
            writer.save(2, states[2], key, accuracy=0.75)
        writer.add_accuracy(2, 0.75)
        writer.add_accuracy(2, 0.75)  # by a resumed run
        assert all(file.read_bytes() == held for file, held in content.items())
        assert writer.restore_latest(states[0], key)[0] == 2
        writer.save(3, states[3], key)
        writer.wait()
        assert writer.steps() == [2, 3]  # the best and the newest
    with Checkpoints(folder, keep=1, best=True) as again:
        again.save(4, states[4], key, accuracy=0.6)
        again.wait()
        assert again.steps() == [2, 4]
        assert again.restore_params({"w": states[0]["params"]["w"]}, 2)[1]["w"].tolist() == [2, 2, 2]


def test_paths_that_a_killed_command_left_are_removed(tmp_path):
    """Only process 0 of the run removes them, after a save; a reader changes nothing. Files that a link shares are left."""
    state, folder = {"params": {"w": jnp.arange(3.0)}}, tmp_path / "sft"
    with Checkpoints(folder, keep=3) as writer:
        writer.save(1, state, jax.random.key(0))
    [first, second, third] = sorted((folder / "1").rglob("commit_success.txt"))
    first.write_text(f"committed to {folder}, or a longer text")
    (tmp_path / "linked").write_text("mine")
    second.unlink()
    second.symlink_to(tmp_path / "linked")
    third.unlink()
    third.hardlink_to(tmp_path / "linked")
    with Checkpoints(folder, keep=3, read_only=True):
        pass
    assert str(folder) in first.read_text()
    with Checkpoints(folder, keep=3) as writer:
        writer.wait()
        assert first.read_text() == "committed\n"
    assert (tmp_path / "linked").read_text() == "mine"


def test_checkpoints_are_kept_for_good_and_read_by_their_step(tmp_path):
    with Checkpoints(tmp_path / "rl", keep=2, keep_every=4) as writer:
        for step in range(1, 12):
            writer.save(step, {"params": {"w": jnp.full(2, float(step))}}, jax.random.key(0))
    abstract = {"w": jax.ShapeDtypeStruct((2,), jnp.float32, sharding=jnp.zeros(2).sharding)}
    with Checkpoints(tmp_path / "rl", keep=2, read_only=True) as reader:
        assert reader.steps() == [4, 8, 10, 11]
        assert [reader.restore_params(abstract, step)[1]["w"][0] for step in (None, 4, 8)] == [11, 4, 8]
        with pytest.raises(ValueError, match=r"rl has no checkpoint of step 5; it has those of 4, 8, 10, 11$"):
            reader.restore_params(abstract, 5)
        for file in (tmp_path / "rl" / "8").rglob("d/*"):
            file.write_bytes(b"")
        with pytest.raises(ValueError, match=r"none of the checkpoints \[8\]"):  # never another one in its place
            reader.restore_params(abstract, 8)


def open_files_and_threads() -> tuple[int, int]:
    return len(os.listdir("/proc/self/fd")), threading.active_count()


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs Linux")
@pytest.mark.parametrize("saves", [20, 200])
def test_saves_leave_no_open_files_and_threads(saves, tmp_path):
    state = {"params": {"w": jnp.arange(3.0)}}
    before = open_files_and_threads()
    with Checkpoints(tmp_path / "rl", keep=2, best=True) as checkpoints:
        for step in range(saves):
            checkpoints.save(step, state, jax.random.key(0), accuracy=step / saves if step % 5 == 0 else None)
            if step == 1:
                checkpoints.wait()
                after_two = open_files_and_threads()
        checkpoints.wait()
        after_all = open_files_and_threads()
    # Idle threads of pools may end or begin meanwhile; a save used to leave three files and a thread.
    assert all(now <= before + 4 for now, before in zip(after_all, after_two, strict=True)), (after_two, after_all)
    assert all(now <= first + 4 for now, first in zip(open_files_and_threads(), before, strict=True))


@pytest.mark.parametrize("part", [
    {"sums": [1]}, {"data": 5}, {"unlogged": 3}, {"data_position": "1"}, {"logs": []}, {"logs": {"metrics.jsonl": 5}},
    {"logs": {"metrics.jsonl": ["1", 2]}}, {"logs": {"../precious.txt": [1, 2]}},
    {"unlogged": [1.0]}, {"unlogged": [[1.0, None]]}, {"unlogged": [[1.0]]}, {"unlogged": "ab"}, {"unlogged": [{"a": 1.0}]},
])  # fmt: skip
def test_metadata_of_other_types_is_damaged(part):
    right = {"data_position": 1, "sums": {}, "data": {}, "unlogged": [[1.0, 2.0]], "logs": {"metrics.jsonl": [1, 2]}}
    integrity.check_metadata(right, 1)
    with pytest.raises(ValueError, match="has changed since it was saved"):
        integrity.check_metadata(right | part, 1)
