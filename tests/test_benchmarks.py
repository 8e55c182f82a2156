"""The benchmarks at tiny sizes: both sides agree, a disagreement ends them, and a result is written."""

import importlib
import json
import pathlib
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
