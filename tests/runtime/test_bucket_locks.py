"""Locks of folders in buckets, with an emulator of Google Cloud Storage."""

import json
import threading
import time

import pytest

from igpo_jax.runtime import bucket_locks
from igpo_jax.runtime.bucket_locks import BucketLock
from igpo_jax.runtime.locks import this_process
from storage_emulator import Network, connected, storage_emulator

network = Network()
ELSEWHERE = {"host": "another", "pid": 1, "started": "today", "command": "train"}


@pytest.fixture(autouse=True)
def bucket(monkeypatch, tmp_path):
    monkeypatch.setattr(bucket_locks, "HEARTBEAT", 0.05)
    monkeypatch.setattr(bucket_locks, "PATIENCE", 30.0)  # a busy machine may be late with heartbeats
    with storage_emulator(network) as address, connected(address, monkeypatch, tmp_path / "cache") as files:
        yield files


@pytest.fixture
def strangers(monkeypatch):
    """Makes the locks of this process look like those of other processes."""
    monkeypatch.setattr(bucket_locks, "may_run", bool)


def test_one_holder_at_a_time_and_nothing_remains(bucket, strangers):
    with BucketLock("gs://team/run"):
        time.sleep(0.2)  # the lock is written again
        with pytest.raises(ValueError, match="gs://team/run is being written by process .*; wait until it ends"):
            BucketLock("gs://team/run").__enter__()
        assert bucket.exists("gs://team/run/.lock")
    with BucketLock("gs://team/run"):
        pass
    assert not bucket.exists("gs://team/run/.lock")


def test_a_holder_that_is_gone_is_replaced(bucket, monkeypatch):
    monkeypatch.setattr(bucket_locks, "PATIENCE", 0.5)
    bucket.pipe_file("gs://team/gone/.lock", json.dumps(ELSEWHERE).encode())
    begin = time.monotonic()
    with BucketLock("gs://team/gone"):
        assert time.monotonic() - begin >= bucket_locks.PATIENCE
        assert json.loads(bucket.cat_file("gs://team/gone/.lock"))["pid"] == this_process()["pid"]


@pytest.mark.parametrize("content", [b"", b"mine", b'{"pid": 1}', b"\xff"])
def test_an_object_of_another_program_is_not_replaced(content, bucket, monkeypatch):
    monkeypatch.setattr(bucket_locks, "PATIENCE", 0.0)
    bucket.pipe_file("gs://team/theirs/.lock", content)
    with pytest.raises(ValueError, match="^gs://team/theirs/.lock is no lock of igpo_jax, and would be replaced by one"):
        BucketLock("gs://team/theirs").__enter__()
    assert bucket.cat_file("gs://team/theirs/.lock") == content


def test_a_process_of_this_machine_that_has_ended_is_replaced_at_once(bucket, monkeypatch):
    monkeypatch.setattr(bucket_locks, "PATIENCE", 1000.0)
    bucket.pipe_file(
        "gs://team/ended/.lock", json.dumps(this_process() | {"machine": bucket_locks._machine(), "pid": 2**22 + 1}).encode()
    )
    with BucketLock("gs://team/ended"):
        pass


def test_one_of_many_that_start_at_once_gets_the_lock(strangers):
    held, refused, ready = [], [], threading.Barrier(4)

    def enter():
        ready.wait()
        try:
            held.append(BucketLock("gs://team/many").__enter__())
        except ValueError as error:
            refused.append(error)

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == 1 and len(refused) == 3
    held[0].__exit__()


def test_a_holder_that_has_lost_the_lock_writes_nothing_more(bucket):
    lock = BucketLock("gs://team/lost")
    with lock:
        lock.check()
        bucket.pipe_file("gs://team/lost/.lock", json.dumps(ELSEWHERE).encode())
        deadline = time.monotonic() + 10
        while not lock.lost and time.monotonic() < deadline:
            time.sleep(0.02)
        with pytest.raises(ValueError, match="another process has taken over gs://team/lost/.lock"):
            lock.check()


def test_a_check_finds_a_loss_before_the_next_heartbeat(bucket, monkeypatch):
    monkeypatch.setattr(bucket_locks, "HEARTBEAT", 1000.0)
    with BucketLock("gs://team/check") as lock:
        lock.check()
        bucket.pipe_file("gs://team/check/.lock", json.dumps(ELSEWHERE).encode())
        with pytest.raises(ValueError, match="another process has taken over gs://team/check/.lock"):
            lock.check()


def test_another_container_with_the_same_host_name_is_waited_for(bucket, monkeypatch):
    """Its process id may be free here, or this process may have it, too."""
    monkeypatch.setattr(bucket_locks, "PATIENCE", 0.5)
    bucket.pipe_file("gs://team/container/.lock", json.dumps(this_process() | {"machine": "another"}).encode())
    begin = time.monotonic()
    with BucketLock("gs://team/container"):
        assert time.monotonic() - begin >= bucket_locks.PATIENCE


def test_what_a_loser_leaves_is_not_deleted(bucket):
    lock = BucketLock("gs://team/lost")
    with lock:
        bucket.pipe_file("gs://team/lost/.lock", json.dumps(ELSEWHERE).encode())
        time.sleep(0.3)
    assert json.loads(bucket.cat_file("gs://team/lost/.lock")) == ELSEWHERE


def test_a_lock_survives_lost_replies(bucket):
    network.cut = 0.3
    try:
        with BucketLock("gs://team/cut") as lock:
            time.sleep(2)
            assert not lock.lost
    finally:
        network.cut = 0.0
