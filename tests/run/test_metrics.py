import importlib
import json
import math
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import time
import tracemalloc
import types

import jax
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from igpo_jax.report.page import read_run_folder
from igpo_jax.run import metrics as module
from igpo_jax.run.checkpoint import Checkpoints
from igpo_jax.run.events import _without_torch
from igpo_jax.run.metrics import (
    MetricsWriter,
    _as_markdown,
    device_memory,
    is_evaluated,
    last_logged,
    read_rows,
)
from igpo_jax.runtime.files import MOST_BYTES


def rollout_row(step, text="4"):
    return {
        "step": step,
        "try": "first",
        "question": "2+2=",
        "text": text,
        "extracted_answer": "4",
        "reward": 1.0,
        "correct": True,
    }


def steps(path):
    return [row["step"] for row in read_rows(path)]


def test_resuming_drops_what_lies_beyond_the_checkpoint(tmp_path):
    with MetricsWriter(tmp_path, 0) as log:
        for step in (1, 2, 3, 4):
            log.write(step, "rl", {"policy/kl": 0.5 * step})
            log.write_rollouts([rollout_row(step, "½")])
    with MetricsWriter(tmp_path, 2) as log:
        log.write(3, "rl", {"policy/kl": 9.0})
        log.write_rollouts([rollout_row(3, "again")])

    assert steps(tmp_path / "metrics.jsonl") == [1, 2, 3]
    assert read_rows(tmp_path / "metrics.jsonl")[-1] == {"step": 3, "stage": "rl", "policy/kl": 9.0}
    assert [row["text"] for row in read_rows(tmp_path / "rollouts.jsonl")] == ["½", "½", "again"]


def test_starting_over_begins_with_empty_logs(tmp_path):
    with MetricsWriter(tmp_path, 0) as log:
        log.write(1, "sft", {"sft/loss": 1.0})
    with MetricsWriter(tmp_path, 0):
        pass
    assert read_rows(tmp_path / "metrics.jsonl") == []


ROW = {"step": 1, "stage": "rl"}


@pytest.mark.parametrize("name, row, message", [
    ("metrics.jsonl", {}, "step=None is not a number of updates"),
    ("metrics.jsonl", {"a": 1}, "step=None"),
    ("metrics.jsonl", ROW | {"step": "1"}, "step='1'"),
    ("metrics.jsonl", ROW | {"step": -1}, "step=-1"),
    ("metrics.jsonl", ROW | {"step": True}, "step=True"),
    ("metrics.jsonl", ROW | {"step": 10**400}, "step=1000"),
    ("metrics.jsonl", {"step": 1}, "stage=None is neither sft nor rl"),
    ("metrics.jsonl", ROW | {"stage": ["rl"]}, "stage=..rl.. is neither"),
    ("metrics.jsonl", ROW | {"policy/kl": "0.5"}, "'policy/kl': '0.5' is not a number"),
    ("metrics.jsonl", ROW | {"eval/accuracy": [1]}, "is not a number"),
    ("metrics.jsonl", ROW | {"a\nb": {}}, r"'a.nb': {} is not a number"),
    ("metrics.jsonl", ROW | {"hint/ratio_center": 10**400}, "is not a number"),
    ("metrics.jsonl", ROW, "step 1 of the stage rl comes after step 1"),
    ("metrics.jsonl", ROW | {"step": 0}, "step 0 of the stage rl comes after step 1"),
    ("evaluations.jsonl", ROW | {"step": 0, "correct": [1, 1, 1]}, "step 0 of the stage rl comes after step 1"),
    ("evaluations.jsonl", ROW, "correct=None is not a list of verdicts"),
    ("evaluations.jsonl", ROW | {"correct": [0, 2]}, "is not a list of verdicts"),
    ("evaluations.jsonl", {"step": 1, "correct": []}, "stage=None"),
    ("rollouts.jsonl", {"text": "4"}, "step=None"),
    ("rollouts.jsonl", rollout_row(0), "step 0 of the stage rl comes after step 1"),
    ("rollouts.jsonl", ROW | {"text": 5}, "text=5 is not text"), ("rollouts.jsonl", ROW | {"trace": None}, "trace=None is not text"),
    ("rollouts.jsonl", ROW | {"try": ["first"]}, "try=.* is not first or hinted"),
    ("rollouts.jsonl", ROW | {"outcome": 7}, "outcome=7 is not ok, timeout or error"),
    ("rollouts.jsonl", ROW | {"correct": 0.5}, "correct=0.5 is not true or false"),
    ("rollouts.jsonl", ROW | {"tokens": ["a", 1]}, "tokens=.* is not a list of texts"),
    ("rollouts.jsonl", ROW | {"hint": [1]}, "hint=.* is not a list of true and false"),
    ("rollouts.jsonl", ROW | {"unmask_step": [2**31]}, "unmask_step=.* is not a list of numbers of steps"),
    ("rollouts.jsonl", ROW | {"end": "1"}, "end='1' is not a place or null"),
    ("rollouts.jsonl", ROW | {"reward": "1"}, "reward='1' is not a finite number"),
    ("rollouts.jsonl", ROW | {"reward": math.inf}, "reward=inf is not a finite number"),
    ("rollouts.jsonl", ROW | {"extracted_answer": {}}, "extracted_answer={} is not a text, a number or null"),
    ("rollouts.jsonl", ROW | {"tokens": ["a"], "hint": []}, "the lists have different lengths"),
])  # fmt: skip
def test_a_foreign_row_is_one_error_when_a_run_is_resumed_or_reported(name, row, message, tmp_path):
    lists = {"tokens": ["4"], "unmask_step": [0], "hint": [False], "trace": ""}
    good = ROW | {"evaluations.jsonl": {"correct": [0, 1, None]}, "rollouts.jsonl": rollout_row(1) | lists}.get(name, {})
    (tmp_path / name).write_text("".join(json.dumps(each) + "\n" for each in (good, row, good)))
    (tmp_path / "config.json").write_text("{}")
    for read in (lambda: MetricsWriter(tmp_path, 5), lambda: read_run_folder(tmp_path)):
        with pytest.raises(ValueError, match=f"{name}:2: .*{message}.*; repair or remove this line") as raised:
            read()
        assert "\n" not in str(raised.value) and len(str(raised.value)) < 500
    if name == "metrics.jsonl":
        with pytest.raises(ValueError, match=message):
            is_evaluated(tmp_path, 1, "rl")
        with pytest.raises(ValueError, match=message):
            last_logged(tmp_path, "rl", "policy/kl")


def test_a_report_names_the_row_of_a_rollout_that_it_cannot_show(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "rollouts.jsonl").write_text(json.dumps(ROW | rollout_row(1)) + "\n")
    with pytest.raises(ValueError, match="rollouts.jsonl:1: trace, tokens, unmask_step, hint is missing; repair or remove"):
        read_run_folder(tmp_path)


@pytest.mark.parametrize("torn", ['{"step": 2, "sta', '{"step": 2, "stage": "rl", "policy/kl": 0.', "\0\0\0"])
def test_a_line_that_was_cut_off_is_dropped_and_not_appended_to(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "stage": "rl"}\n' + torn)
    assert steps(path) == [1]
    with MetricsWriter(tmp_path, 5) as log:
        log.write(6, "rl", {})
    assert steps(path) == [1, 6]


def test_a_line_may_be_cut_off_within_a_character(tmp_path):
    path = tmp_path / "rollouts.jsonl"
    path.write_bytes('{"step": 1}\n{"step": 2, "text": "½'.encode()[:-1])
    assert steps(path) == [1]


@pytest.mark.parametrize("damaged", ['{"step": 2, "stage": "rl}\n', "[2]\n", "\0\n"])
def test_a_damaged_last_line_with_a_line_break_is_no_cut_off_one(damaged, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "stage": "rl"}\n' + damaged)
    with pytest.raises(ValueError, match="metrics.jsonl:2 is no JSON object; repair or remove this line"):
        MetricsWriter(tmp_path, 3)
    assert path.read_text().endswith(damaged)


@pytest.mark.parametrize("place", [pathlib.Path.mkdir, os.mkfifo, lambda path: path.symlink_to("nothing")])
def test_what_is_no_file_is_no_missing_log(place, tmp_path):
    place(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match="metrics.jsonl is (no file|a symbolic link that leads to no file)$"):
        MetricsWriter(tmp_path, 3)


def test_a_line_that_is_written_while_it_is_read_is_left_out(tmp_path):
    """Its second half must not be read as a line."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "stage": "rl"}\n{"step": 2, ')
    rows = module.numbered_lines

    def growing(file, name):
        for number, line in rows(file, name):
            if not line.endswith(b"\n"):
                with path.open("a") as log:
                    log.write('"stage": "rl"}\n{"step": 3, "stage": "rl"}\n')
            yield number, line

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "numbered_lines", growing)
        assert steps(path) == [1]
    assert steps(path) == [1, 2, 3]


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "stage": "rl"}\n{"step"\n{"step": 3, "stage": "rl"}\n')
    with pytest.raises(ValueError, match="metrics.jsonl:2 "):
        MetricsWriter(tmp_path, 3)
    assert len(path.read_text().splitlines()) == 3


@pytest.mark.parametrize("begin", ["", '{"step": 1, "stage": "rl"}\n'])
def test_a_line_that_is_too_long_is_one_error_that_does_not_read_it(begin, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(begin)
    os.truncate(path, 3 << 30)  # a sparse file of NUL bytes
    tracemalloc.start()
    with pytest.raises(ValueError, match=f"metrics.jsonl, line {2 if begin else 1}: more than 64 MiB in one line"):
        MetricsWriter(tmp_path, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * MOST_BYTES


@pytest.mark.slow
def test_blank_lines_at_the_end_are_dropped_in_linear_time(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "stage": "rl"}\n' + "\n" * 1_000_000)
    begin = time.process_time()
    assert steps(path) == [1]
    assert time.process_time() - begin < 30  # comparing each line with all later ones would take hours
    path.write_text('{"step": 1, "stage": "rl"}\n\n\n{"step": 2, "stage": "rl"}\n')
    with pytest.raises(ValueError, match="metrics.jsonl:2 "):
        steps(path)


def test_lines_can_be_read_while_the_run_goes_on(tmp_path):
    with MetricsWriter(tmp_path, 0) as log:
        log.write(1, "rl", {"policy/kl": 0.5})
        assert steps(tmp_path / "metrics.jsonl") == [1]


def test_values_that_are_not_finite_stay_valid_json(tmp_path):
    with MetricsWriter(tmp_path, 0) as log:
        log.write(1, "rl", {"a": math.nan, "b": math.inf, "c": 1})

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    row = json.loads(line, parse_constant=refuse)
    assert row == {"step": 1, "stage": "rl", "a": None, "b": None, "c": 1.0}


def test_scalars_go_to_tensorboard(tmp_path):
    with MetricsWriter(tmp_path, 0) as log:
        log.write(1, "rl", {"policy/kl": 0.5})
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"policy/kl" in events.read_bytes()


def test_rollouts_and_histograms_go_to_tensorboard(tmp_path):
    text = "```\n<script>alert(1)</script>\u2028# no title"
    with MetricsWriter(tmp_path, 0) as log:
        log.write_rollouts([rollout_row(1, text), rollout_row(1)])
        log.write_histograms(
            1, {"rollout/rewards": np.array([[0.0, 1.0], [np.nan, np.inf]]), "rollout/none": np.array([np.nan])}
        )
    (file,) = (tmp_path / "tensorboard").iterdir()
    summaries = [event.summary.value for event in events_of(file)]
    values = {value.tag: value for summary in summaries for value in summary}
    assert set(values) == {"rollout/completions/text_summary", "rollout/rewards"}
    assert values["rollout/rewards"].histo.num == 2
    markdown = values["rollout/completions/text_summary"].tensor.string_val[0].decode()
    assert markdown.count("reward 1**") == 2 and markdown.count("first try, correct") == 2
    # Markdown does not interpret indented lines.
    assert all(line.startswith("    ") for line in markdown.splitlines() if re.search("```|script|title|2\\+2", line))


@pytest.mark.parametrize(
    "outcome, verdict", [("timeout", "no verdict in time"), ("error", "the grader failed"), ("ok", "wrong")]
)
def test_a_completion_without_a_verdict_is_not_called_wrong(outcome, verdict):
    row = rollout_row(1) | {"correct": False, "outcome": outcome, "reward": 0.0}
    assert _as_markdown(row).startswith(f"**first try, {verdict}, reward 0**")


def events_of(file):
    """Reads a TensorBoard file. A record is: length (8 bytes), its checksum (4), event, its checksum (4)."""
    content, events = file.read_bytes(), []
    while content:
        size = int.from_bytes(content[:8], "little")
        events.append(Event.FromString(content[12 : 12 + size]))
        content = content[16 + size :]
    return events


def test_only_process_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    with MetricsWriter(tmp_path, 0) as log:
        log.write(1, "rl", {"policy/kl": 0.5})
        log.write_rollouts([rollout_row(1)])
        log.write_histograms(1, {"rollout/rewards": np.ones((2, 2))})
    assert not list(tmp_path.iterdir())


def test_memory_is_that_of_the_fullest_device_and_nothing_where_the_backend_is_silent(monkeypatch):
    assert device_memory() == {}  # CPUs

    class Device:
        def __init__(self, used, peak):
            self.memory_stats = lambda: {"bytes_in_use": used * 2**30, "peak_bytes_in_use": peak * 2**30}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device(1, 5), Device(3, 4)])
    assert device_memory() == {"memory/in_use_gib": 3, "memory/peak_gib": 5}


def test_event_files_do_not_name_the_host(tmp_path, monkeypatch):
    folder = tmp_path / "tensorboard"
    for name in ("secret-host", "a[b]*"):
        monkeypatch.setattr(socket, "gethostname", lambda name=name: name)
        for step in (1, 2, 3):  # within one second
            with MetricsWriter(tmp_path, step - 1) as log:
                log.write(step, "rl", {f"policy/{step}": 0.5})
    files = sorted(folder.iterdir())
    assert len(files) == 6 and all(re.fullmatch(r"events\.out\.tfevents\.\d+\.\d+", file.name) for file in files)
    tags = [value.tag for file in files for event in events_of(file) for value in event.summary.value]
    assert sorted(tags) == sorted([f"policy/{step}" for step in (1, 2, 3)] * 2)
    (folder / "events.out.tfevents.5.a[b]*").touch()  # of an earlier version
    with MetricsWriter(tmp_path, 3) as log:
        log.write(4, "rl", {"x": 0.5})
    assert len(list(folder.iterdir())) == 8 and not list(folder.glob("*a[[]b*"))


def test_torch_is_hidden_from_tensorboard_only(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    with _without_torch(), pytest.raises(ImportError):
        importlib.import_module("torch")
    assert "torch" not in sys.modules
    monkeypatch.setitem(sys.modules, "torch", torch := types.ModuleType("torch"))
    with _without_torch():
        assert importlib.import_module("torch") is torch
    assert sys.modules["torch"] is torch


@pytest.mark.parametrize("ending", [socket.gethostname(), "0"])
def test_events_are_not_written_into_a_file_that_was_there(ending, tmp_path):
    """It may be a hard link to a file of the user. A stranger can guess the name of the file, which had ended with the name of the
    host in earlier versions."""
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "tensorboard").mkdir()
    for second in range(int(time.time()), int(time.time()) + 60):
        link = tmp_path / "tensorboard" / f"events.out.tfevents.{second}.{ending}"
        link.hardlink_to(tmp_path / "precious")
    with MetricsWriter(tmp_path, 0) as writer:
        writer.write(1, "sft", {"loss": 1.0})
    assert (tmp_path / "precious").read_bytes() == b"precious"


@pytest.mark.parametrize("name, write", [
    ("tensorboard/events.out.tfevents", "log.write_histograms(step, {'rewards': np.ones(4)})"),
    ("metrics.jsonl", "log.write(step, 'rl', {})"),
])  # fmt: skip
def test_a_full_disk_is_one_error_that_names_the_file(name, write, tmp_path):
    """The writer of tensorboardX lost its thread, and then waited for it forever."""
    script = f"""
import pathlib, resource
import numpy as np
from igpo_jax.run.metrics import MetricsWriter
with MetricsWriter(pathlib.Path({str(tmp_path)!r}), 0) as log:
    log.write(0, "rl", {{"reward": 0.5}})
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))
    for step in range(1, 2000):
        {write}
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert re.fullmatch(rf"OSError: \[Errno 27\] File too large: '{tmp_path}/{name}.*'", done.stderr.splitlines()[-1])


@pytest.mark.parametrize("another", [False, True])
def test_a_run_whose_folder_was_moved_writes_no_log_and_saves_no_checkpoint(another, tmp_path):
    """Orbax would create a folder of the old name, in which another run may have begun."""
    run, moved, key = tmp_path / "run", tmp_path / "moved", jax.random.key(0)
    run.mkdir()
    with MetricsWriter(run, 0) as log, Checkpoints(run / "checkpoints" / "rl", keep=1) as checkpoints:
        checkpoints.log_sums = log.sums
        log.write(1, "rl", {"reward": 0.5})
        checkpoints.save(1, {"w": np.ones(2)}, key)
        checkpoints.wait()
        run.rename(moved)
        if another:
            run.mkdir()
            MetricsWriter(run, 0).__exit__(None)
        for write in (
            lambda: log.write(2, "rl", {"reward": 0.5}),
            lambda: log.write_rollouts([rollout_row(2)]),
            lambda: checkpoints.save(2, {"w": np.ones(2)}, key),
        ):
            with pytest.raises(ValueError, match=f"^{run}/metrics.jsonl was moved, deleted or replaced while .*; put the"):
                write()
    assert steps(moved / "metrics.jsonl") == [1] and run.exists() == another and not (run / "checkpoints").exists()


@pytest.mark.parametrize("name", ["config.json", "data.json", "tokenizer.model"])
def test_a_run_that_has_lost_a_file_saves_no_checkpoint(name, tmp_path):
    for file in ("config.json", "data.json", "tokenizer.model"):
        (tmp_path / file).write_text("{}")
    with MetricsWriter(tmp_path, 0) as log:
        log.sums()
        (tmp_path / name).unlink()
        with pytest.raises(ValueError, match=f"^{tmp_path / name} was moved or deleted while the run needed it; put the folder"):
            log.sums()


def test_a_run_that_has_lost_its_checkpoints_saves_no_further_one(tmp_path):
    key = jax.random.key(0)
    with Checkpoints(tmp_path / "checkpoints" / "rl", keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, {"w": np.ones(2)}, key)
        checkpoints.wait()
        shutil.rmtree(tmp_path / "checkpoints" / "rl" / "3")
        with pytest.raises(ValueError, match=r"rl: the checkpoints \[3\] were moved or deleted while the run went on; put the"):
            checkpoints.save(4, {"w": np.ones(2)}, key)
    assert not (tmp_path / "checkpoints" / "rl" / "4").exists()
