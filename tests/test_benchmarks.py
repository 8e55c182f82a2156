"""The benchmarks at tiny sizes: both sides agree, a disagreement ends them, and they write a result."""

import ast
import dataclasses
import importlib.util
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
SMALL_8B = "--small --prompt-length 16 --completion-length 16 --steps 2 --repetitions 1 --rows 8 --group-size 2".split()
AGAINST_TORCH = [*MODEL, *"--against torch --completion-length 20 --block 4 --steps 10 --rows 8".split()]


@pytest.fixture
def load(monkeypatch):
    """Returns a function that imports a benchmark afresh, as if it were run as a program."""
    monkeypatch.syspath_prepend(FOLDER)

    def load(name):
        for module in ("comparison", "torch_plain", name):
            monkeypatch.delitem(sys.modules, module, raising=False)
        return importlib.import_module(name)

    return load


def run(load, name, arguments, tmp_path, capsys):
    """Runs a benchmark and returns its cases, after checking that it prints and writes them."""
    path = tmp_path / "new" / f"{name}.json"
    cases = load(name).main([*arguments, "--output", str(path)])
    assert json.loads(path.read_text()) == cases == [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for case in cases:
        assert case["ratio"] > 0 and case["tokens_per_second"] > 0 and case["model_flops"] > 0
        assert case["mfu"] is None and case["model"]["width"] == 16 and "jax" in case["versions"]  # a CPU has no peak
    return cases


@pytest.mark.slow
def test_update(load, tmp_path, capsys):
    tiled, *rest = run(load, "update", UPDATE, tmp_path, capsys)
    assert [case["baseline"] for case in rest] == ["torch"] * (importlib.util.find_spec("torch") is not None)
    assert tiled["baseline"] == "tiled" and tiled["gradient_difference"] <= 1e-4 and tiled["losses"][0] != 0
    assert len(set(tiled["losses"])) == tiled["inner_steps"] == 4
    assert all(case["loss_difference"] <= 1e-4 for case in (tiled, *rest))
    # Besides the floor, each backward pass recomputes the head's logits: two rows of six positions.
    more = 4 * 2 * 2 * 6 * 16 * tiled["model"]["vocab_size"]
    assert tiled["compiled_flops"] == pytest.approx(tiled["model_flops"] + more, rel=0.01)


@pytest.mark.slow
def test_update_without_torch_installed(load, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "torch" else find(name, *more))
    assert [case["baseline"] for case in load("update").main(UPDATE)] == ["tiled"]
    assert "not installed" in capsys.readouterr().err


@pytest.mark.slow
def test_rollout(load, tmp_path, capsys):
    cases = run(load, "rollout", ROLLOUT, tmp_path, capsys)
    assert [case["name"] for case in cases] == ["rollout, temperature 0.0", "rollout, temperature 1.2"]
    assert all(case["evaluations"] == 4 and case["rows_evaluated"] == 8 for case in cases)


@pytest.mark.slow
def test_rollout_against_torch(load, tmp_path, capsys):
    pytest.importorskip("torch")
    full, ending, hints, second = run(load, "rollout", AGAINST_TORCH, tmp_path, capsys)
    assert all(case["baseline"] == "torch" and case["equal_tokens"] == 1 for case in (full, ending, hints))
    assert full["rows_evaluated"] == full["baseline_rows_evaluated"] == 8 * 10 > ending["rows_evaluated"]
    assert full["filled"] == 1 and 0.3 < ending["filled"] < 0.6 and hints["tokens"] < full["tokens"]
    assert second["name"] == "second try" and second["evaluations"] < second["baseline_evaluations"] == 20


@pytest.mark.slow
def test_update_notices_another_gradient(load, monkeypatch):
    module = load("update")
    tiled = module.tiled

    def with_swapped_prompts(batch, scores):
        return tiled(batch.replace(advantages=batch.advantages[::-1]), scores)

    monkeypatch.setattr(module, "tiled", with_swapped_prompts)
    with pytest.raises(AssertionError):
        module.main(UPDATE)


@pytest.mark.slow
@pytest.mark.parametrize("of,change", [("objective", {"entropy_keep": 1.0}), ("adamw", {"learning_rate": 6e-5})])
def test_update_notices_another_algorithm_in_torch(load, monkeypatch, of, change):
    pytest.importorskip("torch")
    module, torch_plain = load("update"), importlib.import_module("torch_plain")
    make = torch_plain.make_policy_update

    def with_change(inputs):
        return make(inputs._replace(**{of: dataclasses.replace(getattr(inputs, of), **change)}))

    monkeypatch.setattr(torch_plain, "make_policy_update", with_change)
    with pytest.raises(AssertionError):
        module.main(UPDATE)


@pytest.mark.slow
def test_rollout_notices_other_tokens(load, monkeypatch):
    module = load("rollout")
    monkeypatch.setattr(module, "transfer_count", lambda masks, step, steps: masks)  # everything in the first step
    with pytest.raises(AssertionError):
        module.main(ROLLOUT)


@pytest.mark.slow
def test_profile_of_an_update(load, tmp_path, capsys):
    arguments = [*MODEL, *"--completion-length 6 --prompts 2 --group-size 3".split(), "--output", str(tmp_path / "cases.json")]
    [case] = load("update_profile").main(arguments)
    assert json.loads(capsys.readouterr().out) == case == json.loads((tmp_path / "cases.json").read_text())[0]
    shares = case["shares"]
    assert sum(shares.values()) == pytest.approx(1) and 0 < case["traced_seconds"]
    assert {"optimizer", "mlp: products of weights", "attention: products of scores and values"} <= shares.keys()
    assert shares["mlp: products of weights"] > 0 and shares["optimizer"] > 0
    assert case["limit_seconds"] == case["model_flops"] / case["product_flops_per_second"] > 0 and case["cpu"]


def test_table_of_cpus(load, tmp_path, monkeypatch):
    update = {"date": "2026-01-02T03:04:05", "seconds": 4.0, "ratio": 8.0, "cpu": "A", "product_flops_per_second": 2e11}
    update |= {"limit_seconds": 3.0}
    cases = [update | {"baseline": "tiled", "ratio": 7.0}, update | {"baseline": "torch"}]
    (tmp_path / "update.json").write_text(json.dumps(cases))
    names = ["rollout, full", "rollout, 40 %", "rollout, hints", "second try"]
    rollouts = [{"name": name, "baseline": "torch", "ratio": 1.0 + at} for at, name in enumerate(names)]
    (tmp_path / "rollout-torch.json").write_text(json.dumps(rollouts))
    row = "| 2026-01-02 | A | 200 | 4.0 s | 75% | 8.00 | 7.00 | 1.00 | 2.00 | 3.00 | 4.00 |"
    assert load("cpus").row(tmp_path) == row


@pytest.mark.slow
def test_llada_8b_at_small_size(load, tmp_path, capsys):
    cases = load("llada_8b").main([*SMALL_8B, "--output", str(tmp_path / "cases.json")])
    assert [(case["name"], case.get("cache")) for case in cases] == [("rollout", "none"), ("rollout", "dual"), ("update", None)]
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == cases
    assert [json.loads(line) for line in (tmp_path / "cases.json").read_text().splitlines()] == cases
    for case in cases:
        assert 0.9 * case["model_flops_per_device"] < case["compiled_flops_per_device"] < 3 * case["model_flops_per_device"]
        assert case["model_flops_per_device"] > 0 and case["tokens_per_second"] > 0 and "mfu" not in case  # a CPU has no peak
        assert case["predicted_peak_gib"] > 0 and "predicted_seconds" not in case
    rollout, cached, update = cases
    assert rollout["evaluations"] == cached["evaluations"] == 2
    assert cached["model_flops_per_device"] < rollout["model_flops_per_device"] and len(set(update["losses"])) > 1


def test_predicted_and_measured_stand_side_by_side(load, tmp_path, capsys, monkeypatch):
    model = {"attention": "cudnn"}
    known = {"name": "rollout", "cache": "dual", "device": "GPU", "model": model, "seconds": 3.0, "predicted_seconds": 2.0}
    unknown = {"name": "update", "device": "cpu", "model": model, "seconds": 3.0, "predicted_peak_gib": 8.0}
    lines = [json.dumps(known | {"predicted_peak_gib": 10.0, "memory/peak_gib": 12.0}), json.dumps(unknown)]
    (tmp_path / "cases.json").write_text("\n".join(lines))
    monkeypatch.setattr(sys, "argv", ["predicted.py", str(tmp_path / "cases.json")])
    load("predicted").main()
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| GPU | rollout dual | cudnn | 2.00 | 3.00 | 1.50 | 10.00 | 12.00 | 1.20 |",
        "| cpu | update | cudnn |  | 3.00 |  | 8.00 |  |  |",
    ]


PYTHON = """#!/bin/sh
[ "$1" = -c ] && exit 1  # there is no GPU
echo "$@" >> {log}
[ "$1" != benchmarks/{fails}.py ]
"""


@pytest.mark.parametrize("fails", ["nothing", "update"])
def test_all_of_gpu_sh_without_a_gpu(fails, tmp_path):
    """The script runs every step but the tests. Its interpreter only logs the commands, which other tests run: those of this file
    with the same flags, train in tests/end_to_end, and llada_parity.py in tests/model. On a GPU, the script uses real shapes."""
    log, python, out = tmp_path / "log", tmp_path / "python", tmp_path / "out"
    python.write_text(PYTHON.format(log=log, fails=fails))
    python.chmod(0o755)
    env = os.environ | {"OUT": str(out), "PYTHON": str(python), "TMPDIR": str(tmp_path)}
    done = subprocess.run(["bash", str(FOLDER / "gpu.sh")], env=env, capture_output=True, text=True, timeout=60)
    steps = ["llada_8b", "predicted", "update", "rollout", "train", "parity"]
    assert done.returncode == (fails in steps), done.stdout
    ended = [line.partition(" after ")[0] for line in (out / "summary.txt").read_text().splitlines()]
    assert ended == [f"{name}: exit {int(name == fails)}" for name in steps]
    llada_8b, predicted, update, rollout, train, parity = log.read_text().splitlines()
    assert llada_8b == f"benchmarks/llada_8b.py {' '.join(SMALL_8B)} --output {out}/llada_8b-cpu.json"
    assert predicted == f"benchmarks/predicted.py {out}/llada_8b-cpu.json"
    assert update == f"benchmarks/update.py {' '.join(UPDATE)} --output {out}/update-cpu.json"
    assert rollout == f"benchmarks/rollout.py {' '.join(ROLLOUT)} --output {out}/rollout-cpu.json"
    assert train.startswith("-m igpo_jax.train --config=tests/end_to_end/tiny.py --workdir=")
    assert parity == "tests/helpers/llada_parity.py tests/model/fixtures/llada_tiny"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_the_names_that_a_benchmark_imports_exist(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("igpo_jax"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                known = hasattr(module, alias.name) or importlib.util.find_spec(f"{node.module}.{alias.name}")
                assert known, f"{path.name}: {node.module}.{alias.name}"
