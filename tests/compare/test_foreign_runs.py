"""Runs that others may have written are compared, or refused in one line that names the file."""

import json

import numpy as np
import pytest

from igpo_jax.compare import tasks
from igpo_jax.compare.arms import ALL_WRONG, Claim, check_comparison, overrides_of, require_finished
from igpo_jax.compare.numbers import RunNumbers, judge, read_run_numbers, seconds_of, spent_until
from igpo_jax.compare.page import _ticks
from igpo_jax.config import base_config, fingerprint, to_json
from igpo_jax.tasks import arithmetic

RESULT = {"versions": {"igpo_jax": "1", "jax": "1"}, "wall_seconds": {"rl": 2.0}, "device": "1 x cpu", "commit": None}
ROLLOUT = {"step": 1, "stage": "rl", "sampler/prompts": 8.0, "sampler/rows": 64.0, "groups/all_wrong_before": 0.5}


def written(folder, result=(), rollout=(), correct=(1, 0)):
    rows = {"metrics": ROLLOUT | dict(rollout), "evaluations": {"step": 1, "stage": "rl", "correct": correct}}
    (folder / "result.json").write_text(json.dumps(RESULT | dict(result)))
    for name, row in rows.items():
        (folder / f"{name}.jsonl").write_text(json.dumps({key: x for key, x in row.items() if x is not ...}) + "\n")
    return folder


def test_a_run_is_read(tmp_path):
    numbers = read_run_numbers(written(tmp_path))
    assert numbers.prompts.tolist() == [8] and numbers.evaluations.tolist() == [64] and numbers.correct.tolist() == [[1, 0]]


def test_what_is_spent_until_an_evaluation_is_a_sum_found_in_little_time():
    draw = np.random.default_rng(0)
    steps, evaluated, amounts = draw.integers(0, 50, 40), draw.integers(-5, 60, 30), draw.random(40)
    expected = [sum(amount for step, amount in zip(steps, amounts, strict=True) if step <= last) for last in evaluated]
    np.testing.assert_allclose(spent_until(steps, evaluated, amounts), expected)
    many = np.arange(200_000)  # a log of a few MB; adding them up again for each evaluation would take hours
    assert spent_until(many, many, np.ones(many.size)).tolist() == (many + 1).tolist()


@pytest.mark.parametrize("changes, message", [
    ({"result": {"commit": ["x"]}}, "result.json has values of device, commit or wall_seconds that no run writes"),
    ({"result": {"device": 5}}, "result.json has values of device"),
    ({"result": {"wall_seconds": {"rl": [1, 2]}}}, "result.json has values of device"),
    ({"result": {"wall_seconds": {"rl": 1e999}}}, "result.json has values of device"),
    ({"result": {"wall_seconds": {"rl": 10**400}}}, "result.json has values of device"),
    ({"rollout": {"sampler/prompts": -8}}, r"metrics.jsonl: step 1 has sampler/prompts and sampler/rows of \[-8, 64.0\]"),
    ({"rollout": {"sampler/prompts": ...}}, r"metrics.jsonl: step 1 has sampler/prompts and sampler/rows of \[None, 64.0\]"),
    ({"rollout": {"sampler/rows": ...}}, "metrics.jsonl has no rollout"),
    ({"rollout": {"groups/all_wrong_before": 5.0}}, "step 1 has groups/all_wrong_before=5.0, which is no share"),
    ({"correct": [None, None]}, "evaluations.jsonl: step 1 has no verdicts"),
    ({"correct": []}, "evaluations.jsonl: step 1 has no verdicts"),
])  # fmt: skip
def test_values_that_no_run_writes_are_refused(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message) as raised:
        read_run_numbers(written(tmp_path, **changes))
    assert "\n" not in str(raised.value)


FINISHED = {"updates": 2, "after_rl": {"accuracy": 0.5}}


@pytest.mark.parametrize("name, change, message", [
    ("metrics", lambda lines: lines * 2, "metrics.jsonl:4: step 1 of the stage rl comes after step 2"),
    ("metrics", lambda lines: lines[:-1], "metrics.jsonl: the last step is 1, but the run finished with update 2"),
    ("evaluations", lambda lines: lines[::-1], "evaluations.jsonl:2: step 1 of the stage rl comes after step 2"),
    ("evaluations", lambda lines: lines[:-1], "evaluations.jsonl:2: the last step is 1, but the run finished with update 2"),
    ("evaluations", lambda lines: lines[::2], "evaluations.jsonl has lost the evaluation at step 1; restore the whole file"),
    ("evaluations", lambda lines: [*lines[:2], lines[2].replace("[1,", "[0,")],
     "evaluations.jsonl:3: the accuracy 0.0 is not the 0.5 of result.json"),
])  # fmt: skip
def test_logs_that_lost_or_repeat_lines_are_refused(name, change, message, tmp_path):
    written(tmp_path, FINISHED)
    rows = {"metrics": [ROLLOUT, {"step": 1, "stage": "rl", "eval/accuracy": 0.5}, ROLLOUT | {"step": 2}]}
    rows["evaluations"] = [{"step": n, "stage": stage, "correct": [1, 0]} for n, stage in ((1, "sft"), (1, "rl"), (2, "rl"))]
    lines = {log: [json.dumps(row) + "\n" for row in of_log] for log, of_log in rows.items()}
    for log, of_log in lines.items():
        (tmp_path / f"{log}.jsonl").write_text("".join(of_log))
    assert read_run_numbers(tmp_path).prompts.tolist() == [8, 16]
    (tmp_path / f"{name}.jsonl").write_text("".join(change(lines[name])))
    with pytest.raises(ValueError, match=message) as raised:
        read_run_numbers(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("accuracy", [None, "0.5", [], 10**400, float("nan"), 0.25])
def test_an_accuracy_that_the_verdicts_do_not_have_is_refused(accuracy, tmp_path):
    with pytest.raises(ValueError, match=r"evaluations.jsonl:1: the accuracy 0.5 is not the .* of result.json"):
        read_run_numbers(written(tmp_path, {"after_rl": {"accuracy": accuracy}}))


@pytest.mark.parametrize("spent, seconds", [(12, 12.0), (10**400, None), ("x", None), (float("nan"), None)])
def test_a_training_time_that_is_no_time_is_unknown(spent, seconds, tmp_path):
    assert seconds_of(written(tmp_path, {"wall_seconds": {"rl": spent}})) == seconds


@pytest.mark.parametrize("most", [5e-324, 1e-9, 1.0, 7e5, 1e15, 1e308, float("inf")])
def test_an_axis_has_ticks_whatever_it_ends_with(most):
    assert 1 <= len(_ticks(most)) < 20


def test_a_comparison_does_not_continue_with_another_configuration(tmp_path):
    config, identity = base_config(**arithmetic.defaults()), {"config": "arithmetic.py", "overrides": []}
    check_comparison(tmp_path / "overrides.json", identity, config)
    check_comparison(tmp_path / "overrides.json", identity, config)
    config.rl.optimizer.learning_rate = 0.5
    with pytest.raises(ValueError, match=r"holds another comparison \(differing: fingerprint\)"):
        check_comparison(tmp_path / "overrides.json", identity, config)
    (tmp_path / "overrides.json").write_text(json.dumps(identity))  # of version 0.1.0
    check_comparison(tmp_path / "overrides.json", identity, config)


def test_a_finished_run_of_another_arm_is_refused(tmp_path):
    def of_arm(arm, **changes):
        config = base_config(**arithmetic.defaults())
        config.update_from_flattened_dict(overrides_of(arm, config) | changes)
        return config

    for arm in ("grpo", "igpo"):
        (tmp_path / arm).mkdir()
        # Keys with which a run may continue.
        config = of_arm(arm, **{"data.prompt_buckets": (10, 13), "evaluation.batch_size": 3})
        (tmp_path / arm / "config.json").write_text(json.dumps(to_json(config)))
        (tmp_path / arm / "result.json").write_text(json.dumps({"seed": 0, "fingerprint": fingerprint(config)}))
        require_finished(tmp_path / arm, of_arm(arm, **{"data.prompt_buckets": (13,)}))
    for arm, other in (("grpo", "igpo"), ("igpo", "grpo")):
        with pytest.raises(ValueError, match=rf"{arm} holds a run of another arm \(differing keys: inpainting.enabled\); move"):
            require_finished(tmp_path / arm, of_arm(other, **{"data.prompt_buckets": (13,)}))
    with pytest.raises(ValueError, match="result.json is of the seed 0; move the folder to seed-0, or remove it"):
        require_finished(tmp_path / "grpo", of_arm("grpo", seed=1))
    (tmp_path / "grpo" / "result.json").write_text((tmp_path / "igpo" / "result.json").read_text())
    with pytest.raises(ValueError, match="grpo/result.json is of another configuration than config.json; restore"):
        require_finished(tmp_path / "grpo", of_arm("grpo", **{"data.prompt_buckets": (13,)}))


@pytest.mark.parametrize("kind", ["json", "md", "svg", "html"])
def test_results_of_no_comparison_are_not_replaced(kind, tmp_path):
    config, file = base_config(**arithmetic.defaults()), tmp_path / f"comparison.{kind}"
    file.write_text("mine")
    with pytest.raises(ValueError, match=f"{file} is of no comparison, because there is no overrides.json; give another"):
        check_comparison(tmp_path / "overrides.json", {"config": "arithmetic.py", "overrides": []}, config)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize("kind", ["json", "md", "html"])
def test_tables_of_no_comparison_are_not_replaced(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "python_command", lambda module: ["false"])
    file = tmp_path / f"tasks.{kind}"
    file.write_text("mine")
    with pytest.raises(ValueError, match=f"{file} is of no comparison, and would be replaced; give another --output"):
        tasks.compare_tasks(tmp_path, ["one.py"], [], None)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "overrides.json").write_text("{}")
    with pytest.raises(RuntimeError, match="the comparison on one has stopped"):  # of the command `false`
        tasks.compare_tasks(tmp_path, ["one.py"], [], None)


@pytest.mark.parametrize("share", [None, float("nan"), ...])
def test_a_rollout_without_verdicts_has_no_share_of_wrong_groups(share, tmp_path):
    run = read_run_numbers(written(tmp_path, rollout={"groups/all_wrong_before": share}))
    assert np.isnan(run.rollouts[0]["groups/all_wrong_before"])
    claim = Claim("Fewer groups are all wrong", "igpo", ("grpo",), measure=ALL_WRONG)
    assert judge(claim, {"igpo": [[run]], "grpo": [[run]]}, np.ones((1, 2), bool))["verdict"] == "undecided"


@pytest.mark.parametrize("worse", [("dapo", "grpo"), ("grpo", "dapo")])
def test_a_claim_about_problems_without_verdicts_is_undecided(worse):
    solved = {"igpo": [[1, 1], [0, 1]], "grpo": [[0, 0], [0, 0.02]], "dapo": [[np.nan] * 2] * 2}
    runs = {
        arm: [[RunNumbers(*np.ones((3, 1)), np.array([row], float), [], {})] for row in rows] for arm, rows in solved.items()
    }
    found = judge(Claim("IGPO is above the others", "igpo", worse), runs, np.ones((2, 2), bool))
    assert (found["verdict"], found["against"], found["mean"]) == ("undecided", "dapo", None)
    assert judge(Claim("IGPO is above GRPO", "igpo", ("grpo",)), runs, np.ones((2, 2), bool))["mean"] == pytest.approx(0.745)
