"""Runs tests/helpers/llada_parity.py on the small copy of the fixture, and checks that it detects differences."""

import gzip
import hashlib
import json
import pathlib
import shutil

import numpy as np
import pytest

import llada_parity
from llada_parity import CHECKS, Absent, Fixture, check, main

COPY = pathlib.Path(__file__).parent / "fixtures" / "llada_tiny"
SHA256 = {
    "model.safetensors": "6fa45036cc30ecfecd5a2dd853fd3ab595997fa71246fae2a55af589c803ba80",
    "pretrain_grads.safetensors": "9781bd419d49fc50e5e1c21982788824c12b773c63a11a97b83ee49133ef549f",
}


def restore(folder: pathlib.Path) -> None:
    """Restores the two float32 files that the copy stores in another form, byte for byte."""
    shutil.copytree(COPY, folder)
    packed = folder / "pretrain_grads.safetensors.gz"
    (folder / "pretrain_grads.safetensors").write_bytes(gzip.decompress(packed.read_bytes()))

    stored = {name: of for (_, name), of in llada_parity.safetensors(COPY / "bf16_sharded").items()}
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, (_, shape, bits) in sorted(stored.items()):
        bits = (np.frombuffer(bits, np.uint16).astype(np.uint32) << 16).tobytes()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(bits)]}
        data += bits
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    (folder / "model.safetensors").write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)
    for name, out_slice in SHA256.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == out_slice


@pytest.fixture(scope="module")
def fixture(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parity") / "llada_tiny"
    restore(folder)
    return Fixture(folder)


# test_one_other_token_in_a_trace_is_noticed runs the samplers on one case.
SLOW = ("bf16_sharded to our folder and back", "released sampler from our pieces", "our sampler")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CHECKS])
def test_equals_the_released_llada(fixture, name):
    outcome = check(fixture, name)
    if name == "logits, long input":  # not in the copy
        assert isinstance(outcome, Absent)
    else:
        assert not isinstance(outcome, Absent) and outcome.ok, str(outcome)


def test_the_copy_has_all_cases_but_the_two_with_large_noise(fixture):
    cases, absent = fixture.cases
    assert len(cases) == 18 and sorted(name.split("/")[0] for name in absent) == [
        "batch3_temp0.7_b8_s8",
        "one_temp1.0_conf_flag",
    ]


@pytest.mark.parametrize("array, name", [
    ("forward.npz/logits", "logits"),
    ("forward.npz/leftpad_logits", "logits, left padding"),
    ("forward.npz/hidden_states", "hidden states"),
    ("forward.npz/block0.k_rope", "block 0, k_rope"),
    ("loss.npz/pretrain_loss", "pretraining loss"),
    ("loss.npz/sft_loss", "fine-tuning loss"),
    pytest.param("loss.npz/p_mask", "gradients of the pretraining loss", marks=pytest.mark.slow),
])  # fmt: skip
@pytest.mark.parametrize("change", [lambda x: x * 1.01, lambda x: x * np.nan])
def test_a_difference_is_noticed(fixture, monkeypatch, array, name, change):
    file, key = array.split("/")
    monkeypatch.setitem(fixture.arrays[file], key, change(fixture.arrays[file][key]))
    assert not check(fixture, name).ok


@pytest.mark.parametrize("name", ["released sampler from our pieces", "our sampler"])
def test_one_other_token_in_a_trace_is_noticed(fixture, monkeypatch, name):
    [case] = (case for case in fixture.cases[0] if case.name == "batch3_leftpad_b16_s8")
    monkeypatch.setitem(vars(fixture), "cases", ([case], []))
    assert check(fixture, name).ok
    trace = case.trace.copy()
    trace[4, 1, -1] += 1
    monkeypatch.setitem(vars(fixture), "cases", ([case._replace(trace=trace)], []))
    outcome = check(fixture, name)
    assert not outcome.ok and case.name in outcome.text


@pytest.mark.slow
def test_a_damaged_tensor_is_noticed(fixture, tmp_path):
    for file in ("config.json", "forward.npz", "bf16_sharded", "model.safetensors"):
        copy = shutil.copytree if (fixture.folder / file).is_dir() else shutil.copy
        copy(fixture.folder / file, tmp_path / file)
    with (tmp_path / "model.safetensors").open("r+b") as opened:
        opened.seek(-2, 2)
        opened.write(b"\x01")
    assert not check(Fixture(tmp_path), "bf16_sharded holds the float32 values").ok
    (tmp_path / "model.safetensors").write_bytes(b"not a file of tensors")
    outcome = check(Fixture(tmp_path), "logits")
    assert not outcome.ok and "model.safetensors" in outcome.text and "\n" not in outcome.text


# The command


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A folder with few files, and few checks."""
    shutil.copytree(COPY / "bf16_sharded", tmp_path / "bf16_sharded")
    shutil.copy(COPY / "config.json", tmp_path)
    recorded = np.load(COPY / "forward.npz")
    np.savez(tmp_path / "forward.npz", input_ids=recorded["input_ids"], logits=recorded["logits"])
    few = ("bf16_sharded to our folder and back", "logits", "logits, left padding", "fine-tuning loss", "our sampler")
    monkeypatch.setattr(llada_parity, "CHECKS", {name: CHECKS[name] for name in few})
    return tmp_path


@pytest.mark.slow
def test_what_is_missing_is_reported_as_absent(small, capsys):
    assert main([str(small)]) == 0
    words = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert words == ["ok", "ok", "-", "-", "-"]


@pytest.mark.slow
def test_a_failure_shows_in_the_exit_code(small, capsys):
    recorded = dict(np.load(small / "forward.npz"))
    np.savez(small / "forward.npz", **(recorded | {"logits": recorded["logits"] + 1e-3}))
    assert main([str(small)]) == 1
    [line] = (line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL"))
    assert line.split()[1] == "logits" and "1.0e-03" in line


@pytest.mark.parametrize("damage", ["no argument", "no folder", "no config", "bad config", "bad array"])
def test_not_a_fixture_is_an_error_of_one_line(small, capsys, damage):
    arguments = [str(small)]
    if damage == "no argument":
        arguments = []
    elif damage == "no folder":
        arguments = [str(small / "nowhere")]
    elif damage == "no config":
        (small / "config.json").unlink()
    elif damage == "bad config":
        (small / "config.json").write_text("{}")
    else:
        (small / "forward.npz").write_bytes(b"PK")
    assert main(arguments) == 2
    out, error = capsys.readouterr()
    assert out == "" and len(error.splitlines()) == 1 and error.startswith("error: usage" if not arguments else "error: ")
