"""Files in buckets, with an emulator of Google Cloud Storage on this machine."""

import http.server
import io
import json
import re
import threading

import pyarrow.parquet
import pytest
from absl import flags

from igpo_jax import doctor
from igpo_jax.runtime import buckets
from igpo_jax.tasks.rows import read_rows
from igpo_jax.tasks.sources import load_sources
from storage_emulator import connected, storage_emulator

PROBLEM = {"problem": "How much is 1+1?", "answer": "2", "solution": "It is $1+1=2$."}
FIELDS = {"id": "id", "question": "problem", "answer": "answer", "solution": "solution"}


@pytest.fixture(scope="module")
def emulator():
    with storage_emulator() as address:
        yield address


@pytest.fixture(autouse=True)
def bucket(emulator, monkeypatch, tmp_path):
    """Returns the file system of the emulator, whose bucket "team" keeps what earlier tests have written."""
    with connected(emulator, monkeypatch, tmp_path / "cache") as files:
        yield files


def in_format(kind: str) -> bytes:
    if kind == "jsonl":
        return json.dumps(PROBLEM).encode()
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({key: [value] for key, value in PROBLEM.items()}), file)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_problems_are_read_from_a_bucket(kind, bucket):
    address = f"gs://team/data/one.{kind}"
    bucket.pipe_file(address, in_format(kind))
    [(place, _, row)] = read_rows(address)
    assert row == PROBLEM and place.startswith(f"{address}, ")
    [record], _ = load_sources(f"math:{address}", FIELDS)
    assert (record.id, record.question, record.answer) == ("one-0", PROBLEM["problem"], "2")


def test_a_pattern_means_the_files_of_a_folder_in_a_bucket(bucket):
    for name in ("train-1.jsonl", "train-0.jsonl", "other.jsonl", "deeper/train-2.jsonl"):
        bucket.pipe_file(f"gs://team/parts/{name}", json.dumps(PROBLEM | {"problem": name}).encode())
    records, counts = load_sources("jsonl:gs://team/parts/train-*.jsonl", FIELDS)
    assert [record.question for record in records] == ["train-0.jsonl", "train-1.jsonl"]
    assert [count.source for count in counts] == [f"jsonl:gs://team/parts/train-{n}.jsonl" for n in (0, 1)]


def test_an_object_is_downloaded_once_and_again_when_it_has_changed(bucket, monkeypatch):
    address, downloads = "gs://team/changing.jsonl", []
    bucket.pipe_file(address, b'{"a": 1}')
    get_file = bucket.get_file
    monkeypatch.setattr(bucket, "get_file", lambda *given: (downloads.append(given[0]), get_file(*given)))
    assert [row for _, _, row in read_rows(address)] == [row for _, _, row in read_rows(address)] == [{"a": 1}]
    assert downloads == [address]
    bucket.pipe_file(address, b'{"a": 2}')
    assert [row for _, _, row in read_rows(address)] == [{"a": 2}]
    assert downloads == [address] * 2


def test_a_download_that_is_cut_short_is_repeated(bucket, monkeypatch, tmp_path):
    address = "gs://team/long.jsonl"
    bucket.pipe_file(address, b'{"a": 1}\n' * 100)

    def cut(_, target):
        with open(target, "wb") as file:
            file.write(b'{"a": 1}\n' * 50)

    with monkeypatch.context() as patch:
        patch.setattr(bucket, "get_file", cut)
        with pytest.raises(ValueError, match=f"cannot read {address} as anonymous: 450 of 900 bytes arrived"):
            list(read_rows(address))
    assert not list((tmp_path / "cache").rglob("long.jsonl"))
    assert len(list(read_rows(address))) == 100


@pytest.mark.parametrize("address, message", [
    ("gs://team/none.jsonl", "cannot read gs://team/none.jsonl as anonymous: there is no such object or no such bucket"),
    ("gs://nobody/none.jsonl", "cannot read gs://nobody/none.jsonl as anonymous: there is no such object or no such bucket"),
    ("gs://team/folder", "cannot read gs://team/folder as anonymous: it is a folder"),
    ("gs://team/", "gs://team/: '' is not a plain file name"),
    ("s3://team/one.jsonl", "s3://team/one.jsonl: s3:// is not supported; give a local path or gs://BUCKET/NAME"),
])  # fmt: skip
def test_what_cannot_be_read_is_one_line(address, message, bucket):
    bucket.pipe_file("gs://team/folder/one.jsonl", b"{}")
    with pytest.raises(ValueError) as error:
        list(read_rows(address))
    assert str(error.value) == message


def test_an_object_that_would_fill_the_disk_is_refused(bucket, monkeypatch):
    bucket.pipe_file("gs://team/large.jsonl", b"{}")
    monkeypatch.setattr(buckets, "MOST_DOWNLOADED", 1)
    with pytest.raises(ValueError, match="large.jsonl as anonymous: it has more than 0 GiB"):
        list(read_rows("gs://team/large.jsonl"))


def test_an_object_with_another_size_than_its_content_is_refused(bucket, monkeypatch):
    address = "gs://team/encoded.jsonl"
    bucket.pipe_file(address, b"{}")
    info = bucket.info
    monkeypatch.setattr(bucket, "info", lambda name: info(name) | {"contentEncoding": "gzip"})
    with pytest.raises(ValueError, match=f"cannot read {address} as anonymous: it is stored with a content encoding"):
        list(read_rows(address))


def test_an_object_that_changes_while_it_is_read_is_not_kept(bucket, monkeypatch):
    address = "gs://team/growing.jsonl"
    bucket.pipe_file(address, b'{"a": 1}')
    get_file = bucket.get_file

    def late(*given):
        bucket.pipe_file(address, b'{"a": 2}')
        get_file(*given)

    with monkeypatch.context() as patch:
        patch.setattr(bucket, "get_file", late)
        with pytest.raises(ValueError, match="it was changed while it was read"):
            list(read_rows(address))
    assert [row for _, _, row in read_rows(address)] == [{"a": 2}]


@pytest.mark.parametrize("status", [401, 403])
def test_a_denied_request_is_one_line_with_its_reason(status, monkeypatch, capfd, caplog):
    class Denying(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            reason = json.dumps({"error": {"code": status, "message": "me@team has no storage.objects.get access"}}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(reason)))
            self.end_headers()
            self.wfile.write(reason)

        def log_message(self, *_):
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *_):  # prints a traceback if the client has closed the connection
            pass

    with Server(("localhost", 0), Denying) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://localhost:{server.server_address[1]}")
        buckets.filesystem.cache_clear()
        with pytest.raises(ValueError, match="cannot read gs://team/denied.jsonl as anonymous: .*storage.objects.get") as error:
            list(read_rows("gs://team/denied.jsonl"))
        server.shutdown()
    assert "\n" not in str(error.value) and not caplog.records and capfd.readouterr() == ("", "")


@pytest.fixture
def flag(monkeypatch):
    values = flags.FlagValues()
    flags.DEFINE_string("bucket", "", "", flag_values=values)
    values.mark_as_parsed()
    monkeypatch.setattr(flags, "FLAGS", values)
    return values


@pytest.mark.parametrize("address", ["gs://team", "gs://team/folder/"])
def test_the_doctor_measures_a_bucket_and_leaves_nothing_in_it(address, flag, bucket):
    flag.bucket = address
    before = bucket.find("gs://team")
    [finding] = doctor.bucket()
    assert finding.level == "ok" and "MB/s, lists and deletes" in finding.text, finding
    assert bucket.find("gs://team") == before


@pytest.mark.parametrize("address, message", [
    ("gs://nobody", "cannot write gs://nobody/igpo_jax-doctor-.* as anonymous: there is no such object or no such bucket"),
    ("team", "team is not gs://BUCKET or gs://BUCKET/FOLDER"),
])  # fmt: skip
def test_the_doctor_says_what_is_missing_in_one_line(address, message, flag, bucket):
    flag.bucket = address
    before = bucket.find("gs://team")
    [finding] = doctor.bucket()
    assert bucket.find("gs://team") == before
    assert finding.level == "problem" and re.fullmatch(message, finding.text), finding


def test_the_doctor_deletes_its_object_if_it_may_not_list(flag, bucket, monkeypatch):
    def denied(*_, **__):
        raise OSError("Forbidden: b/team/o\nno storage.objects.list")

    flag.bucket, before = "gs://team", bucket.find("gs://team")
    with monkeypatch.context() as patch:
        patch.setattr(bucket, "ls", denied)
        [finding] = doctor.bucket()
    assert finding.text == "cannot list gs://team as anonymous: Forbidden: b/team/o; no storage.objects.list"
    assert "role" in finding.todo and bucket.find("gs://team") == before


def test_without_a_bucket_the_doctor_asks_for_none(flag):
    assert list(doctor.bucket()) == []
