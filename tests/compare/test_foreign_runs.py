"""Runs that others may have written are compared, or refused in one line that names the file."""

import json

import pytest

from igpo_jax.compare.numbers import read_run_numbers

RESULT = {"versions": {"igpo_jax": "1", "jax": "1"}, "wall_seconds": {"rl": 2.0}, "device": "1 x cpu", "commit": None}
ROLLOUT = {"step": 1, "stage": "rl", "sampler/prompts": 8.0, "sampler/rows": 64.0}


def written(folder, result=(), rollout=()):
    rows = {"metrics": ROLLOUT | dict(rollout), "evaluations": {"step": 1, "stage": "rl", "correct": [1, 0]}}
    (folder / "result.json").write_text(json.dumps(RESULT | dict(result)))
    for name, row in rows.items():
        (folder / f"{name}.jsonl").write_text(json.dumps({key: x for key, x in row.items() if x is not ...}) + "\n")
    return folder


def test_a_run_is_read(tmp_path):
    numbers = read_run_numbers(written(tmp_path))
    assert numbers.prompts.tolist() == [8] and numbers.evaluations.tolist() == [64] and numbers.correct.tolist() == [[1, 0]]


@pytest.mark.parametrize("changes, message", [
    ({"result": {"commit": ["x"]}}, "result.json has values of device, commit or wall_seconds that no run writes"),
    ({"result": {"device": 5}}, "result.json has values of device"),
    ({"result": {"wall_seconds": {"rl": [1, 2]}}}, "result.json has values of device"),
    ({"result": {"wall_seconds": {"rl": 1e999}}}, "result.json has values of device"),
    ({"rollout": {"sampler/prompts": -8}}, r"metrics.jsonl: step 1 has sampler/prompts and sampler/rows of \[-8, 64.0\]"),
    ({"rollout": {"sampler/prompts": ...}}, r"metrics.jsonl: step 1 has sampler/prompts and sampler/rows of \[None, 64.0\]"),
    ({"rollout": {"sampler/rows": ...}}, "metrics.jsonl has no rollout"),
])  # fmt: skip
def test_values_that_no_run_writes_are_refused(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message) as raised:
        read_run_numbers(written(tmp_path, **changes))
    assert "\n" not in str(raised.value)
