"""Folders in buckets that commands write: nothing is lost without an error, and nothing of others is touched."""

import pytest

from igpo_jax.runtime import buckets
from igpo_jax.runtime.bucket_folders import local_results, new_bucket_folder, opened_output
from igpo_jax.runtime.files import require_same_identity
from storage_emulator import Network, connected, storage_emulator

FOLDER = "gs://team/out"


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    with storage_emulator(Network()) as address, connected(address, monkeypatch, tmp_path / "cache") as files:
        yield files


def names(bucket, folder=FOLDER):
    bucket.invalidate_cache()
    return sorted(name.removeprefix(f"{folder.removeprefix('gs://')}/") for name in bucket.find(folder))


@pytest.mark.parametrize("content", [b"", b"\r", b"a\r\n", b"\n\n", b"\r\n\r\n--x", bytes(range(256))])
def test_the_emulator_keeps_every_byte(content, bucket, tmp_path):
    buckets.write_object(f"{FOLDER}/a", content)
    assert bucket.cat_file(f"{FOLDER}/a") == content
    (tmp_path / "b").write_bytes(content)
    buckets.upload_file(tmp_path / "b", f"{FOLDER}/b")
    assert bucket.cat_file(f"{FOLDER}/b") == content


def refused(*_, **__):
    raise buckets.BucketError("cannot write: 403")


def test_results_are_continued_and_read_again(bucket):
    with opened_output(FOLDER) as (folder, upload):
        (folder / "rows.jsonl").write_text("1\n")
        (folder / "page.html").write_text("x")
        upload()
        assert names(bucket) == [".lock", "page.html", "rows.jsonl"]
        (folder / "exact").mkdir()
        (folder / "exact/rows.jsonl").write_text("2\n")
    assert names(bucket) == ["exact/rows.jsonl", "page.html", "rows.jsonl"]
    with opened_output(FOLDER) as (folder, _):
        assert (folder / "rows.jsonl").read_text() == "1\n" and (folder / "exact/rows.jsonl").read_text() == "2\n"
        with (folder / "rows.jsonl").open("a") as file:
            file.write("3\n")
    assert (local_results(FOLDER) / "rows.jsonl").read_text() == "1\n3\n"
    assert local_results(f"{FOLDER}/rows.jsonl").read_text() == "1\n3\n"
    with pytest.raises(ValueError, match="gs://team/nothing has no files with results"):
        local_results("gs://team/nothing")


def test_results_of_another_command_in_a_bucket_are_seen(bucket, tmp_path):
    bucket.pipe_file(f"{FOLDER}/card.html", b"x")
    with pytest.raises(ValueError, match="^gs://team/out/card.html is of no rewriting, because there is no settings.json"):
        require_same_identity(tmp_path / "settings.json", {}, "rewriting", [buckets.path_of(FOLDER) / "card.html"])
    assert list(tmp_path.iterdir()) == []


def test_a_last_upload_that_fails_is_an_error(bucket, monkeypatch):
    with pytest.raises(ValueError, match="cannot write: 403"), opened_output(FOLDER) as (folder, _):
        (folder / "rows.jsonl").write_text("1\n")
        monkeypatch.setattr("igpo_jax.runtime.bucket_folders.write_object", refused)


def test_a_new_folder_is_complete_or_absent(bucket):
    with new_bucket_folder(FOLDER) as folder:
        for name in ("config.json", "model.safetensors"):
            (folder / name).write_text("{}")
        assert names(bucket) == [".lock"]
    assert names(bucket) == ["config.json", "model.safetensors"] and not folder.exists()
    with pytest.raises(ValueError, match="gs://team/out has objects already"), new_bucket_folder(FOLDER):
        pass
    assert names(bucket) == ["config.json", "model.safetensors"]
    with pytest.raises(ValueError, match="tensor a has NaN"), new_bucket_folder("gs://team/other") as folder:
        bucket.pipe_file("gs://team/other/params/a", b"written by Orbax")
        raise ValueError("tensor a has NaN")
    assert names(bucket, "gs://team/other") == []


def test_nothing_is_written_or_deleted_without_the_lock(bucket):
    with pytest.raises(ValueError, match="another process has taken over gs://team/out/.lock"), new_bucket_folder(FOLDER) as folder:
        (folder / "config.json").write_text("{}")
        bucket.pipe_file(f"{FOLDER}/.lock", b"{}")
        bucket.pipe_file(f"{FOLDER}/theirs", b"x")
    assert names(bucket) == [".lock", "theirs"]


def test_an_error_while_cleaning_up_does_not_hide_the_first(bucket, monkeypatch, caplog):
    with pytest.raises(ValueError, match="tensor a has NaN"), new_bucket_folder(FOLDER):
        bucket.pipe_file(f"{FOLDER}/params/a", b"x")
        monkeypatch.setattr(bucket, "rm_file", refused)
        raise ValueError("tensor a has NaN")
    assert "gs://team/out is not complete" in caplog.text
