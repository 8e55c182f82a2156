"""Files are written whole or not at all, by one writer at a time, and nowhere else."""

import contextlib
import gzip
import os
import re
import resource
import shutil
import threading

import pytest

from igpo_jax.runtime.buckets import read_range
from igpo_jax.runtime.files import (
    MOST_BYTES,
    append_row,
    atomic_write,
    is_inside,
    named_errors,
    numbered_lines,
    open_without_links,
    parse_json,
    read_bytes,
    read_json,
    require_same_identity,
)
from igpo_jax.runtime.locks import locked


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_of_several_writers_at_the_same_time_one_wins(tmp_path):
    file, failed, start = tmp_path / "report.html", [], threading.Barrier(4)

    def write(content: bytes) -> None:
        start.wait()
        for _ in range(50):
            try:
                atomic_write(file, content)
                assert file.read_bytes() in contents
            except (OSError, AssertionError) as error:
                failed.append(repr(error)[:200])

    contents = [bytes([65 + number]) * (100_000 + 50_000 * number) for number in range(4)]
    writers = [threading.Thread(target=write, args=(content,)) for content in contents]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert failed == [] and names(tmp_path) == ["report.html"]


@contextlib.contextmanager
def files_of_at_most(size: int):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))  # Python ignores SIGXFSZ, so writing fails as on a full disk
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path):
    file = tmp_path / "report.html"
    atomic_write(file, "old")
    for size in (5_000, 500_000):  # the error comes when the file is closed, or earlier
        with files_of_at_most(1_000), pytest.raises(OSError, match="File too large"):
            atomic_write(file, "x" * size)
        assert file.read_text() == "old" and names(tmp_path) == ["report.html"]


def test_what_a_killed_writer_has_left_is_overwritten(tmp_path):
    (tmp_path / "a.json.partial").write_text("half of a much longer text")
    atomic_write(tmp_path / "a.json", "{}")
    assert (tmp_path / "a.json").read_text() == "{}" and names(tmp_path) == ["a.json"]


def test_links_in_a_strangers_folder_lead_no_writer_to_other_files(tmp_path):
    """A folder may come with links whose names are those of temporary files and locks."""
    folder, precious = tmp_path / "run", tmp_path / "precious.txt"
    folder.mkdir()
    precious.write_text("precious")
    for target in (precious, tmp_path / "new.txt", tmp_path / "run"):
        for name in ("report.html", "report.html.partial", ".lock"):
            (folder / name).symlink_to(target)
        atomic_write(folder / "report.html", "written")
        with locked(folder):
            assert not (folder / ".lock").is_symlink()
        assert (folder / "report.html").read_text() == "written" and not (folder / "report.html").is_symlink()
        assert precious.read_text() == "precious" and names(tmp_path) == ["precious.txt", "run"]
        assert names(folder) == ["report.html"]
        (folder / "report.html").unlink()


@pytest.mark.parametrize("mode", ["a", "a+", "ab", "a+b"])
@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_a_file_that_is_not_regular_is_named(make, mode, tmp_path):
    make(tmp_path / "log")
    with pytest.raises(OSError, match=re.escape(str(tmp_path / "log"))):
        open_without_links(tmp_path / "log", mode)


@pytest.mark.parametrize("mode", ["a", "a+", "ab", "a+b"])
def test_a_file_with_hard_links_is_not_written(mode, tmp_path):
    """The folder may be an unpacked archive, or a copy that was made with `cp -al`."""
    precious, log = tmp_path / "precious.txt", tmp_path / "log"
    precious.write_text("precious")
    log.hardlink_to(precious)
    with pytest.raises(ValueError, match=f"^{log} has 2 hard links, and writing would change the file under all these names"):
        open_without_links(log, mode)
    shutil.copy(log, tmp_path / "copy")
    (tmp_path / "copy").replace(log)
    with open_without_links(log, mode) as file:
        file.write(b"x" if "b" in mode else "x")
    assert log.read_text() == "preciousx" and precious.read_text() == "precious"


@pytest.mark.parametrize("before, kept", [(None, b""), (b"", b""), (b"{}\n", b"{}\n"), (b"{}", b"{}\n"), (b'{"te', b'{"te\n')])
def test_a_row_begins_a_line(before, kept, tmp_path):
    if before is not None:
        (tmp_path / "rows.jsonl").write_bytes(before)
    append_row(tmp_path / "rows.jsonl", {"text": "é"})
    append_row(tmp_path / "rows.jsonl", {})
    assert (tmp_path / "rows.jsonl").read_bytes() == kept + b'{"text": "\xc3\xa9"}\n{}\n'


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="needs Linux")
@pytest.mark.parametrize("read", [
    read_bytes, read_json, lambda file: list(numbered_lines(file.open("rb"), file)), lambda file: read_range(file, 0, 8),
])  # fmt: skip
def test_a_file_that_cannot_be_read_is_named(read, tmp_path):
    file = tmp_path / "config.json"
    file.symlink_to("/proc/self/mem")
    with pytest.raises(OSError, match=f"error: '{file}'$"):
        read(file)


def test_an_error_without_a_number_keeps_its_message(tmp_path):
    with pytest.raises(OSError, match="^Not a gzipped file$"), named_errors(tmp_path):
        raise gzip.BadGzipFile("Not a gzipped file")


def test_a_lock_with_hard_links_is_refused_and_stays(tmp_path):
    (tmp_path / "profile").write_text("private")
    (tmp_path / ".lock").hardlink_to(tmp_path / "profile")
    with pytest.raises(ValueError, match="/.lock has 2 hard links"), locked(tmp_path):
        pass
    assert (tmp_path / "profile").read_text() == "private" and names(tmp_path) == [".lock", "profile"]


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_what_is_no_file_in_the_place_of_a_temporary_file_is_one_error(make, tmp_path):
    make(tmp_path / "a.json.partial")
    with pytest.raises(OSError, match=r"a\.json\.partial") as raised:
        atomic_write(tmp_path / "a.json", "{}")
    assert "\n" not in str(raised.value) and names(tmp_path) == ["a.json.partial"]


def test_a_path_is_inside_a_folder_if_its_links_do_not_lead_out(tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    (run / "checkpoints").mkdir(parents=True)
    other.mkdir()
    (run / "inside").symlink_to("checkpoints")
    (run / "outside").symlink_to(other)
    (run / "loop").symlink_to("loop")
    (tmp_path / "link").symlink_to(run)
    for folder in (run, tmp_path / "link"):
        assert is_inside(folder / "evaluations" / "rl-4", folder) and is_inside(folder / "inside" / "new", run)
        assert not is_inside(folder / "outside" / "rl-4", folder) and not is_inside(folder / ".." / "other", folder)
        assert is_inside(folder / "loop", folder)
    assert not is_inside(tmp_path / "run2", run)


def test_a_json_file_that_is_too_large_is_one_error(tmp_path):
    (tmp_path / "result.json").write_text("{}")
    os.truncate(tmp_path / "result.json", MOST_BYTES + 1)
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path}/result.json: more than 64 MiB")):
        read_json(tmp_path / "result.json")


def test_results_of_another_command_are_not_replaced(tmp_path):
    (tmp_path / "card.json").write_text("{}")
    with pytest.raises(ValueError, match="card.json is of no rewriting, because there is no settings.json; give another"):
        require_same_identity(tmp_path / "settings.json", {"a": 1}, "rewriting", [tmp_path / "card.json"])
    assert names(tmp_path) == ["card.json"]
    (tmp_path / "settings.json").write_text('{"a": 1}')
    require_same_identity(tmp_path / "settings.json", {"a": 1}, "rewriting", [tmp_path / "card.json"])
    with pytest.raises(ValueError, match=r"holds another rewriting \(differing: a\); give another --output"):
        require_same_identity(tmp_path / "settings.json", {"a": 2}, "rewriting")
    with pytest.raises(ValueError, match=r"holds another rewriting, or one of an earlier version \(differing: b\); give"):
        require_same_identity(tmp_path / "settings.json", {"a": 1, "b": 1}, "rewriting")


@pytest.mark.parametrize("content", ['{"draws": 1, "draws": 16}', '[{"a": {"draws": 1, "b": 2, "draws": 1}}]'])
def test_a_key_that_an_object_has_twice_is_refused(content):
    with pytest.raises(ValueError, match=r"^a.json: not JSON \(the key 'draws' is given twice\)$"):
        parse_json(content, "a.json")
