"""The benchmarks at tiny sizes: both sides agree, a disagreement ends them, and a result is written."""

import importlib
import json
import os
import pathlib
import subprocess
import sys

import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "benchmarks"
MODEL = "--width 16 --depth 1 --heads 2 --repetitions 1 --prompt-length 5".split()
UPDATE = [*MODEL, *"--completion-length 6 --prompts 2 --group-size 3 --chunk 4".split()]
ROLLOUT = [*MODEL, *"--completion-length 8 --block 4 --steps 4".split()]


@pytest.fixture
def load(monkeypatch):
    """name -> a fresh module of the folder, as `python benchmarks/name.py` would see it."""
    monkeypatch.syspath_prepend(FOLDER)

    def load(name):
        for module in ("comparison", name):
            monkeypatch.delitem(sys.modules, module, raising=False)
        return importlib.import_module(name)

    return load


def test_update(load, tmp_path, capsys):
    result = load("update").main([*UPDATE, "--output", str(tmp_path / "new" / "update.json")])
    assert result["ratio"] > 0 and result["gradient_difference"] <= 1e-4
    assert result["loss"] == pytest.approx(result["plain_loss"], rel=1e-5, abs=1e-5) and result["loss"] != 0
    assert json.loads((tmp_path / "new" / "update.json").read_text()) == result
    assert "ratio" in capsys.readouterr().out


def test_rollout(load, tmp_path, capsys):
    result = load("rollout").main([*ROLLOUT, "--output", str(tmp_path / "rollout.json")])
    assert all(result[f"temperature {temperature}"]["ratio"] > 0 for temperature in (0.0, 1.2))
    assert json.loads((tmp_path / "rollout.json").read_text()) == result
    assert "temperature 1.2 ratio" in capsys.readouterr().out


def test_rollout_against_torch(load, tmp_path):
    pytest.importorskip("torch")
    sizes = [*MODEL, *"--completion-length 20 --block 4 --steps 10 --rows 8".split()]
    result = load("rollout").main([*sizes, "--torch", "--output", str(tmp_path / "rollout.json")])
    for name in ("full", "40 %", "hints"):
        assert result[f"torch {name}"]["equal_tokens"] == 1 and result[f"torch {name}"]["ratio"] > 0
    assert result["torch full"]["rows_evaluated"] == 8 * 10 > result["torch 40 %"]["rows_evaluated"]


def test_update_notices_another_gradient(load, monkeypatch):
    module = load("update")
    tiled = module.tiled

    def with_swapped_prompts(batch, scores):
        return tiled(batch.replace(advantages=batch.advantages[::-1]), scores)

    monkeypatch.setattr(module, "tiled", with_swapped_prompts)
    with pytest.raises(AssertionError):
        module.main(UPDATE)


def test_rollout_notices_other_tokens(load, monkeypatch):
    module = load("rollout")
    monkeypatch.setattr(module, "transfer_count", lambda masks, step, steps: masks)  # everything in the first step
    with pytest.raises(AssertionError):
        module.main(ROLLOUT)


def test_llada_8b_at_small_size(load, tmp_path, capsys):
    sizes = "--prompt-length 16 --completion-length 16 --steps 2 --repetitions 1".split()
    cases = load("llada_8b").main(["--small", *sizes, "--output", str(tmp_path / "cases.json")])
    assert [case["name"] for case in cases] == ["rollout", "update"]
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == cases
    assert [json.loads(line) for line in (tmp_path / "cases.json").read_text().splitlines()] == cases
    for case in cases:
        assert 0.9 * case["model_flops_per_device"] < case["compiled_flops_per_device"] < 3 * case["model_flops_per_device"]
        assert case["model_flops_per_device"] > 0 and case["tokens_per_second"] > 0 and "mfu" not in case  # a CPU has no peak
    rollout, update = cases
    assert rollout["evaluations"] == 2 and len(set(update["losses"])) > 1


@pytest.mark.slow
def test_all_of_gpu_sh_without_a_gpu(tmp_path):
    """Every step but the tests; on a GPU the same script takes real shapes."""
    env = os.environ | {"OUT": str(tmp_path), "PYTHON": sys.executable, "XLA_FLAGS": ""}
    done = subprocess.run(["bash", str(FOLDER / "gpu.sh")], env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout
    summary = (tmp_path / "summary.txt").read_text().splitlines()
    names = ["llada_8b", "update", "rollout", "train", "parity"]
    assert [line.split(":")[0] for line in summary[1:]] == names and all(": exit 0 after" in line for line in summary[1:])
    assert {path.name for path in tmp_path.glob("*.json")} == {f"{name}-cpu.json" for name in names[:3]}
