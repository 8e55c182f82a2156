import csv
import html
import json
import re
import shutil
import urllib.parse

import numpy as np
import pytest

from igpo_jax.compare import numbers, page, tasks
from igpo_jax.compare.arms import (
    ALL_WRONG,
    ARMS,
    CLAIMS,
    HARD,
    Claim,
)
from igpo_jax.runtime.files import atomic_write

PROBLEMS, EVERY = 30, 2  # one evaluation every two rollouts


def write_run(folder, rows, chance, seed, prompts=8, wrong=0.5, iterations=6):
    """Writes a synthetic finished run: `rows` forward rows per rollout, and solve probabilities `chance` (first, last)."""
    draw = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    hard = np.linspace(1, 0, PROBLEMS)  # the last problems are the hardest
    rollouts, evaluations = [], []
    for step in range(iterations + 1):
        if step:
            rollouts.append({"step": step, "stage": "rl", "sampler/rows": rows, "sampler/prompts": prompts,
                             "groups/all_wrong_before": wrong, "groups/distinct": 0.5, "hint/replaced": 1.0})  # fmt: skip
        if step % EVERY == 0:
            level = np.interp(step, [0, iterations], chance)
            correct = (hard < 0.5) * 0 + (draw.uniform(size=PROBLEMS) < level * (0.5 + hard / 2))
            evaluations.append({"step": step, "stage": "rl", "correct": correct.astype(int).tolist()})
    for name, lines in (("metrics", [{"step": 0, "stage": "sft", "sft/loss": 1.0}, *rollouts]), ("evaluations", evaluations)):
        atomic_write(folder / f"{name}.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    result = {"wall_seconds": {"sft": 1.0, "rl": 2.0}, "device": "1 x cpu", "versions": {"igpo_jax": "0", "jax": "0"},
              "commit": "abc"}  # fmt: skip
    atomic_write(folder / "result.json", json.dumps(result))


@pytest.fixture
def folder(tmp_path):
    for seed in range(3):
        write_run(tmp_path / f"seed-{seed}" / "grpo", 100, (0, 0.1), seed, wrong=0.75)
        write_run(tmp_path / f"seed-{seed}" / "igpo", 200, (0, 1.0), seed + 10, wrong=0.25)
        write_run(tmp_path / f"seed-{seed}" / "dapo", 150, (0, 0.1), seed + 20, prompts=16)
    return tmp_path


def test_runs_with_different_test_problems_are_not_compared(folder):
    for arm, test in (("grpo", "a1"), ("igpo", "b2")):
        file = folder / "seed-1" / arm / "result.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"data": {"test": test}}))
    with pytest.raises(ValueError, match="seed-1/grpo and .*seed-1/igpo were evaluated on different test problems"):
        numbers.compare_runs(folder, ["grpo", "igpo"], [0, 1, 2])
    assert numbers.compare_runs(folder, ["grpo", "dapo"], [0, 1, 2])["problems"] == PROBLEMS


@pytest.mark.parametrize("split", ["sft", "rl"])
def test_runs_with_different_training_problems_are_compared_only_if_their_arms_say_so(split, folder):
    """The problem file may have been changed between the runs."""
    same = {"sft": "s", "rl": "r", "test": "t"}
    write_run(folder / "seed-1" / "igpo_few", 100, (0, 1), 5)
    write_run(folder / "seed-1" / "grpo_few", 100, (0, 1), 6)

    def compare(*arms, values):
        for arm, value in zip(arms, values, strict=True):
            file = folder / "seed-1" / arm / "result.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | {"data": same | {split: value}}))
        return numbers.compare_runs(folder, list(arms), [1])

    for arms in (("grpo", "igpo"), ("grpo_few", "igpo_few")):
        with pytest.raises(ValueError, match=f"1/{arms[0]} and .*1/{arms[1]} were trained on different problems; train them"):
            compare(*arms, values=("a1", "b2"))
        assert compare(*arms, values=("a1", "a1"))["problems"] == PROBLEMS
    assert compare("grpo", "igpo", "grpo_few", values=("a1", "a1", "b2"))["problems"] == PROBLEMS


@pytest.mark.parametrize("name", ["base", "network", "tokenizer"])
def test_runs_from_different_models_are_not_compared(name, folder):
    """Another model may have been put into model.path between the runs. Each seed may have its own model (--stages)."""
    same = {"tokenizer": "t", "network": "n", "base": "b"}

    def compare(**values):
        for run, value in values.items():
            file = folder / f"seed-{run[-1]}" / run[:-1] / "result.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | {"base": same | {name: value}}))
        return numbers.compare_runs(folder, ["grpo", "igpo"], [0, 1])

    with pytest.raises(ValueError, match="seed-0/grpo and .*seed-0/igpo began from different models in model.path; train"):
        compare(grpo0="a", igpo0="b")
    assert compare(grpo0="a", igpo0="a", grpo1="b", igpo1="b")["problems"] == PROBLEMS
    file = folder / "seed-0" / "igpo" / "result.json"  # of an earlier version
    file.write_text(json.dumps({key: value for key, value in json.loads(file.read_text()).items() if key != "base"}))
    assert compare(grpo0="c")["problems"] == PROBLEMS


SEEDS = [0, 1, 2]


def stages(folder, *arms):
    return {arm: [[numbers.read_run_numbers(folder / f"seed-{seed}" / arm)] for seed in SEEDS] for arm in arms}


def test_arms_are_compared_at_what_the_cheapest_spends(folder):
    runs = stages(folder, "grpo", "igpo", "dapo")
    igpo, dapo = runs["igpo"][0][0], runs["dapo"][0][0]
    assert igpo.evaluations.tolist() == [0, 400, 800, 1200] and dapo.prompts.tolist() == [0, 32, 64, 96]
    assert igpo.seconds.tolist() == pytest.approx([0, 2 / 3, 4 / 3, 2])  # the log has no times of iterations
    by_evaluations, by_prompts = (numbers.at_budget(runs, budget) for budget in ("evaluations", "prompts"))
    for seed in range(3):
        grpo, igpo, dapo = (runs[arm][seed][0].correct for arm in ("grpo", "igpo", "dapo"))
        # GRPO ends at 600 rows, in the middle between the second and the third evaluation of IGPO; at 48 prompts.
        np.testing.assert_array_equal(by_evaluations["grpo"][seed, 0], grpo[3])
        np.testing.assert_allclose(by_evaluations["igpo"][seed, 0], (igpo[1] + igpo[2]) / 2)
        np.testing.assert_array_equal(by_evaluations["dapo"][seed, 0], dapo[2])
        np.testing.assert_array_equal(by_prompts["igpo"][seed, 0], igpo[3])
        np.testing.assert_allclose(by_prompts["dapo"][seed, 0], (dapo[1] + dapo[2]) / 2)
    assert numbers.share_used(runs, "evaluations", "igpo") == 0.5


def test_wall_time_is_that_of_the_iterations(folder):
    file = folder / "seed-0" / "igpo" / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        row |= {"time/total": float(row["step"])} if row["stage"] == "rl" else {}
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert numbers.read_run_numbers(file.parent).seconds.tolist() == [0, 1 + 2, 1 + 2 + 3 + 4, 21]


def test_between_two_evaluations_the_only_verdict_counts():
    nan = np.nan
    correct = np.array([[1, nan, 0, nan], [nan, 0, 1, nan]])
    run = numbers.RunNumbers(*[np.array([0.0, 10.0])] * 3, correct, [], {})
    np.testing.assert_array_equal(numbers.verdicts_after(run, "prompts", 4.0), [1, 0, 0.4, nan])
    np.testing.assert_array_equal(numbers.verdicts_after(run, "prompts", 0.0), correct[0])


def test_a_claim_has_the_largest_budget_that_its_own_arms_reach(folder):
    """A cheaper third arm changes nothing."""
    alone, together = stages(folder, "igpo", "dapo"), stages(folder, "grpo", "igpo", "dapo")
    claim, hard = Claim("", "igpo", ("dapo",)), np.ones((3, PROBLEMS), bool)
    found = numbers.judge(claim, together, hard)
    assert found == numbers.judge(claim, alone, hard) and found["budget_used"] == [0.75, 1.0]
    means = [np.nanmean(numbers.at_budget(alone, "evaluations")[arm]) for arm in ("igpo", "dapo")]
    assert found["mean"] == pytest.approx(means[0] - means[1])


def test_runs_of_a_stage_are_one_value(folder):
    """Twice the same runs give the same interval: the stage is the unit."""
    for seed in SEEDS:
        for arm in ("grpo", "igpo"):
            shutil.copytree(folder / f"seed-{seed}" / arm, folder / f"seed-{seed}" / f"{arm}-1")
    once, twice = (numbers.compare_runs(folder, ["grpo", "igpo"], SEEDS, rl_seeds) for rl_seeds in (1, 2))
    assert once["claims"] == twice["claims"] and len(twice["runs"]) == 12 and len(twice["curves"]["igpo"]) == 6
    assert [arm["equal_evaluations"] for arm in once["arms"]] == [arm["equal_evaluations"] for arm in twice["arms"]]
    assert np.shape(twice["arms"][0]["of_each_run"]) == (3, 2)


def test_arms_with_the_same_verdicts_are_named(folder):
    for seed in SEEDS:
        shutil.copytree(folder / f"seed-{seed}" / "grpo", folder / f"seed-{seed}" / "grpo_position_first")
    found = numbers.compare_runs(folder, ["grpo", "igpo", "grpo_position_first"], SEEDS)
    assert found["same_verdicts"] == [["grpo", "grpo_position_first"]]
    claim = next(claim for claim in found["claims"] if claim["better"] == "grpo_position_first")
    assert (claim["verdict"], claim["p_value"], claim["p_corrected"], claim["stages_to_decide"]) == (
        "undecided",
        None,
        None,
        None,
    )
    assert "grpo and grpo_position_first gave the same verdicts" in page.note(found)


def test_the_hardest_third_is_chosen_by_the_other_seeds():
    correct = np.zeros((3, 9), bool)
    correct[:, :6] = True
    correct[0] = ~correct[0]  # only the first seed finds the others hard, and its vote does not count for itself
    hard = numbers.hardest_third({"one": correct[:, None]})
    assert hard.sum(axis=1).tolist() == [3, 3, 3]
    assert hard[0].tolist() == [False] * 6 + [True] * 3
    assert numbers.hardest_third({"one": correct[:1, None]})[0].tolist() == [True] * 3 + [False] * 6


def runs_of(**correct):
    """Returns runs with one evaluation each. `correct` maps arms to verdicts, [stages, problems]."""
    return {
        arm: [[numbers.RunNumbers(*np.ones((3, 1)), np.array([row], float), [], {})] for row in rows]
        for arm, rows in correct.items()
    }


def test_problems_without_a_verdict_do_not_count():
    """NaN is no verdict."""
    better, worse = [[1, np.nan, 1, 0]] * 2, [[0, 1, np.nan, 0]] * 2
    runs = runs_of(igpo=better, grpo=worse)
    assert numbers.judge(Claim("", "igpo", ("grpo",)), runs, np.ones((2, 4), bool))["mean"] == 0.5
    one = numbers.at_budget(runs_of(igpo=better[:1], grpo=worse[:1]), "prompts")
    assert numbers.hardest_third(one).tolist() == [[False, False, False, True]]


def test_verdicts_that_are_missing_are_read(folder):
    file = folder / "seed-0" / "igpo" / "evaluations.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[-1]["correct"][0] = None
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = numbers.compare_runs(folder, ["grpo", "igpo"], SEEDS)
    assert not re.search("NaN", json.dumps(found))
    last = numbers.read_run_numbers(file.parent).correct[-1]
    assert np.flatnonzero(np.isnan(last)).tolist() == [0]


@pytest.mark.parametrize("difference, verdict", [(0.5, "held"), (-0.5, "not held"), (0.0, "undecided")])
def test_verdicts(difference, verdict):
    draw = np.random.default_rng(1)
    worse = draw.uniform(size=(3, 200)) < 0.5
    better = draw.uniform(size=(3, 200)) < 0.5 + difference
    found = numbers.judge(Claim("", "igpo", ("grpo",)), runs_of(igpo=better, grpo=worse), np.ones((3, 200), bool))
    assert found["verdict"] == verdict and found["mean"] == pytest.approx(better.mean() - worse.mean())
    assert (found["stages_to_decide"] is None) == (verdict != "undecided")


def test_one_stage_and_equal_differences_decide_nothing():
    claim, hard = Claim("", "igpo", ("grpo",)), np.ones((3, 10), bool)
    for number in (1, 3):
        found = numbers.judge(claim, runs_of(igpo=[[1] * 10] * number, grpo=[[0] * 10] * number), hard[:number])
        assert (found["verdict"], found["mean"], found["p_value"]) == ("undecided", 1.0, None)


def test_of_several_arms_the_best_counts_and_the_margin_is_in_points():
    draw = np.random.default_rng(0)
    better, low, high = (draw.uniform(size=(4, 500)) < share for share in (0.6, 0.1, 0.5))
    found = [
        numbers.judge(
            Claim("", "igpo", ("resample", "dapo"), HARD, margin),
            runs_of(igpo=better, resample=low, dapo=high),
            np.ones((4, 500), bool),
        )
        for margin in (0.0, 30.0)
    ]
    assert [one["against"] for one in found] == ["dapo", "dapo"]
    assert [one["verdict"] for one in found] == ["held", "not held"]


def test_fewer_groups_that_are_all_wrong_are_better(folder):
    file = folder / "seed-0" / "igpo" / "metrics.jsonl"
    file.write_text(file.read_text().replace('before": 0.25', 'before": 0.2'))
    found = numbers.judge(Claim("", "igpo", ("grpo",), ALL_WRONG), stages(folder, "grpo", "igpo"), np.ones((3, 1), bool))
    assert found["mean"] == pytest.approx(0.5 + 0.05 / 3) and found["verdict"] == "held" and found["budget_used"] is None


def test_the_report_has_everything_and_loads_nothing(folder):
    found = numbers.compare_runs(folder, ["grpo", "igpo", "dapo"], SEEDS)
    page.write_comparison(folder, found)
    text = (folder / "comparison.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', text) and "<script" not in text and "http" not in text.replace(
        "http-equiv", "").replace("http://www.w3.org/2000/svg", "")  # fmt: skip
    assert len(re.findall("<svg", text)) == 3 and "commit abc" in text
    decided = [claim for claim in CLAIMS if {claim.better, *claim.worse} <= {"grpo", "igpo", "dapo"}]
    assert len(found["claims"]) == len(decided) >= 4 and all(claim.text in text for claim in decided)
    tables = (folder / "comparison.md").read_text()
    assert all(f"| {arm}: {ARMS[arm].title} |" in tables for arm in ("grpo", "igpo", "dapo"))
    assert json.loads((folder / "comparison.json").read_text())["claims"] == json.loads(json.dumps(found["claims"]))
    igpo = next(arm for arm in found["arms"] if arm["arm"] == "igpo")
    assert igpo["equal_prompts"]["mean"] > igpo["equal_evaluations"]["mean"] and igpo["prompts_to_reach"] in (32, 48)


def test_every_column_is_explained_on_the_page(folder):
    found = numbers.compare_runs(folder, ["grpo", "igpo", "dapo"], SEEDS)
    text = html.unescape(page.comparison_html("name", found))
    tables = [page.table(found), page.verdict_table(found), tasks.arms_table({"a": found}), tasks.claims_table({"a": found})]
    assert {column for rows in tables for column in rows[0]} == set(page.COLUMNS)
    assert all(f"<dt>{column}</dt><dd>" in text for rows in tables[:2] for column in rows[0])


def test_a_page_says_if_its_comparison_was_a_quick_trial(folder):
    for quick in (True, False):
        found = numbers.compare_runs(folder, ["grpo", "igpo"], SEEDS, quick=quick)
        page.write_comparison(folder, found)
        tasks.write_tasks(folder, {"sums": found})
        for name in ("comparison.html", "comparison.md", "tasks.html", "tasks.md"):
            assert ("A quick trial (--quick)" in (folder / name).read_text()) == quick, name


def test_the_points_of_a_figure_are_a_csv_file(folder):
    curves = page.accuracy_curves(numbers.compare_runs(folder, ["grpo", "igpo"], SEEDS), "prompts")
    kind, _, content = page.csv_address(curves).partition(",")
    header, *rows = csv.reader(urllib.parse.unquote(content).splitlines())
    assert kind == "data:text/csv" and header == ["arm", "prompts sampled", "mean", "lowest", "highest"]
    x, y = curves[2]["igpo"]
    own = np.array([row[1:] for row in rows if row[0] == "igpo"], float)
    np.testing.assert_allclose(own, np.stack([x.mean(axis=0), y.mean(axis=0), y.min(axis=0), y.max(axis=0)], axis=1), rtol=1e-5)


def test_one_page_shows_all_tasks(folder):
    found = numbers.compare_runs(folder, ["grpo", "igpo"], SEEDS)
    parts = {"sums": found, "words-small": json.loads(json.dumps(found))}
    number = len(found["claims"])
    before = [claim["p_corrected"] for claim in found["claims"]]
    tasks.write_tasks(folder, parts)
    text = (folder / "tasks.md").read_text()
    for task in parts:
        assert f"| igpo: {ARMS['igpo'].title} | {task} | {page.with_interval(found['arms'][1]['equal_evaluations'])}" in text
    assert text.count(found["claims"][0]["text"]) == 2 and f"{2 * number} claims are judged on this page" in text
    html = (folder / "tasks.html").read_text()
    assert html.count("<svg") == 2 and "words-small: accuracy on 30 held-out problems" in html and "<script" not in html
    after = [claim["p_corrected"] for claim in json.loads((folder / "tasks.json").read_text())["sums"]["claims"]]
    assert all(b is None or b >= a for a, b in zip(before, after, strict=True)) and before != after
    with pytest.raises(ValueError, match="no config file 'wrods.py'"):
        tasks.check_tasks(["wrods.py"], ["igpo"], [])
    with pytest.raises(ValueError, match=r"--tasks: words\.py:smoke has no key task\.slots"):
        tasks.check_tasks(["words.py:smoke"], ["igpo"], ["--config.task.slots=4"])
    with pytest.raises(ValueError, match=r"--tasks: gsm8k\.py: arm grpo_few: this configuration lacks a key"):
        tasks.check_tasks(["gsm8k.py"], ["grpo_few"], [])
    with pytest.raises(ValueError, match="--tasks: two tasks are called words-small"):
        tasks.compare_tasks(folder, ["words.py:small", "a/words.py:small"], [], None)


def test_a_run_that_is_not_finished_is_named(folder):
    (folder / "seed-1" / "igpo" / "result.json").unlink()
    with pytest.raises(ValueError, match="seed-1/igpo has no result.json"):
        numbers.compare_runs(folder, ["grpo", "igpo"], SEEDS)


@pytest.mark.parametrize("change", [{"versions": {}}, {"versions": None}, {"versions": []}, {"wall_seconds": 1}])
def test_a_result_of_no_run_is_one_error(change, folder):
    path = folder / "seed-1" / "igpo" / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=r"seed-1/igpo/result.json has no (versions|wall_seconds) as a finished run has"):
        numbers.compare_runs(folder, ["grpo", "igpo"], SEEDS)
