import csv
import html
import json
import os
import pathlib
import re
import runpy
import shutil
import signal
import time
import urllib.parse

import numpy as np
import pytest

import commands
from igpo_jax.compare import numbers, page, tasks
from igpo_jax.compare.arms import (
    ALL_WRONG,
    ARMS,
    CLAIMS,
    HARD,
    SUPERVISED,
    Claim,
    check_arms,
    create_run_folder,
    last_error,
    overrides_of,
    own_settings,
    parse_arms,
    parse_seeds,
    require_own_logs,
    time_left,
)
from igpo_jax.config import fingerprint, to_json
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


@pytest.mark.slow
def test_a_comparison_on_two_tasks(tmp_path):
    tiny = pathlib.Path(__file__).parents[1] / "end_to_end" / "tiny.py"
    for name in ("one.py", "two.py"):
        shutil.copy(tiny, tmp_path / name)
    sizes = {"sft.updates": 4, "rl.iterations": 1, "rl.eval_every": 1, "evaluation.problems": 8}
    flags = [f"--config.{key}={value}" for key, value in sizes.items()]
    command = ["compare", f"--config={tmp_path / 'one.py'}", f"--tasks={tmp_path / 'two.py'}", "--arms=grpo,igpo", "--seeds=0"]
    done = commands.run(*command, f"--output={tmp_path / 'both'}", *flags, env=os.environ | {"XLA_FLAGS": commands.QUICK})
    assert done.returncode == 0, done.stderr
    assert all((tmp_path / "both" / name / "comparison.html").is_file() for name in ("one", "two"))
    assert f"| grpo: {ARMS['grpo'].title} | two |" in done.stdout and (tmp_path / "both" / "tasks.html").is_file()


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


@pytest.mark.parametrize("place", ["seed-0/grpo.log", "seed-0/supervised/checkpoints/sft/more"])
def test_links_that_lead_out_of_a_comparison_are_refused(place, tmp_path):
    """Logs are written through links, and the checkpoints of the supervised stage are copied."""
    private = tmp_path / "private"
    private.mkdir()
    path = tmp_path / "comparison" / place
    path.parent.mkdir(parents=True)
    path.symlink_to(private)
    config = pathlib.Path(__file__).parents[2] / "configs" / "arithmetic.py"
    done = commands.run("compare", f"--config={config}", "--arms=grpo", "--seeds=0", f"--output={tmp_path / 'comparison'}")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert f"error: {path} leads to {private}, outside of {tmp_path / 'comparison'}; remove the link" in done.stderr
    assert list(private.iterdir()) == []


def test_a_log_of_no_run_is_named(tmp_path):
    log = tmp_path / "seed-1" / "grpo-1.log"
    log.parent.mkdir()
    log.write_text("mine")
    message = f"^{log} is of no run, and a run would append to it; move it away, or give another --output$"
    with pytest.raises(ValueError, match=message):
        require_own_logs(tmp_path, [(1, "grpo", 0), (1, "grpo", 1)])
    log.with_suffix(".json").write_text("{}")  # of a run whose folder was deleted, so that it begins again
    require_own_logs(tmp_path, [(1, "grpo", 1)])


@pytest.mark.slow
def test_with_a_log_of_no_run_nothing_is_written(tmp_path):
    log = tmp_path / "seed-1" / "grpo-1.log"
    log.parent.mkdir()
    log.write_text("mine")
    config = pathlib.Path(__file__).parents[2] / "configs" / "arithmetic.py"
    done = commands.run("compare", f"--config={config}", "--arms=grpo", "--seeds=0,1", "--rl_seeds=2", f"--output={tmp_path}")
    assert (done.returncode, done.stdout) == (1, "") and f"error: {log} is of no run" in done.stderr
    assert log.read_text() == "mine" and sorted(tmp_path.rglob("*")) == [log.parent, log]


def test_a_link_to_its_own_folder_is_not_copied(tmp_path):
    (tmp_path / "supervised" / "checkpoints" / "sft").mkdir(parents=True)
    link = tmp_path / "supervised" / "checkpoints" / "sft" / "link"
    link.symlink_to(".")
    with pytest.raises(ValueError, match=f"{link} is a link to a folder; put the folder in its place"):
        create_run_folder(tmp_path / "grpo")
    assert not list((tmp_path / "grpo.new").rglob("link"))


@pytest.mark.parametrize("place, kind", [
    ("checkpoints", "to a folder"), ("checkpoints/sft", "to a folder"), ("checkpoints/sft/4/array", "that leads out of"),
    ("tokenizer.model", "that leads out of"),
])  # fmt: skip
def test_a_supervised_stage_outside_of_its_folder_is_not_copied(place, kind, tmp_path):
    link, private = tmp_path / "supervised" / place, tmp_path / "private"
    link.parent.mkdir(parents=True)
    if kind == "to a folder":
        (private / "sft").mkdir(parents=True)
    else:
        private.write_text("private")
    link.symlink_to(private)
    with pytest.raises(ValueError, match=f"{link} is a link {kind}"):
        create_run_folder(tmp_path / "grpo")
    assert not (tmp_path / "grpo").exists()


def test_a_finished_run_of_another_seed_is_refused(tmp_path):
    result = tmp_path / "seed-0" / "supervised" / "result.json"
    result.parent.mkdir(parents=True)
    result.write_text(json.dumps({"seed": 77}))
    config = pathlib.Path(__file__).parents[2] / "configs" / "arithmetic.py"
    command = ["compare", f"--config={config}", "--arms=grpo", "--seeds=0", f"--output={tmp_path}"]
    done = commands.run(*command)
    nothing = "is of no arm supervised, because there is no supervised.json; give another --output"
    assert done.returncode == 1 and f"error: {result.parent} {nothing}" in done.stderr, done.stderr
    result.parent.with_suffix(".json").write_text('{"rl.iterations": 0}')
    done = commands.run(*command)
    assert done.returncode == 1
    assert f"error: {result} is of the seed 77; move the folder to seed-77, or remove it" in done.stderr, done.stderr


@pytest.mark.parametrize("text, seeds", [("0..4", [0, 1, 2, 3, 4]), ("2", [2]), ("0,3,7", [0, 3, 7])])
def test_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "4..1", "a", "0..x", "1,1", "-1..1", "0,1..3"])
def test_other_seeds_are_refused(text):
    with pytest.raises(ValueError, match="--seeds=.* is neither FIRST..LAST nor a list of different numbers"):
        parse_seeds(text)


@pytest.mark.parametrize("text", [f"0..{10**12}", f"0..{10**30}", "0..1000", "4294967296", "4294967290..4294967296"])
def test_too_many_and_too_large_seeds_are_refused_before_there_is_a_list_of_them(text):
    assert len(parse_seeds("5..1004")) == 1000
    with pytest.raises(ValueError, match=f"^--seeds={re.escape(text)}: 1000 seeds up to 4294967295 are possible$"):
        parse_seeds(text)


def test_a_quick_trial_has_few_iterations_but_those_of_the_command_line():
    config = runpy.run_path("configs/arithmetic.py")["get_config"]()
    config.sft.updates, config.rl.iterations = 20_000, 100
    assert own_settings(config, [], True, False) == {"sft.updates": 1500, "rl.iterations": 10}
    given = ["--config.rl.iterations=100", "--config.rl.iterations_=3"]
    assert own_settings(config, given, True, False) == {"sft.updates": 1500}
    config.rl.iterations, given = 3, ["--config.sft.updates=20000"]
    assert own_settings(config, given, True, False) == {"rl.iterations": 3}
    assert own_settings(config, given, False, True) == {"sft.updates": 0, "sft.epochs": 0}


@pytest.mark.slow
def test_the_finished_runs_of_a_quick_trial_are_not_those_of_other_arms(tmp_path):
    config = runpy.run_path("configs/arithmetic.py")["get_config"]()
    command = ["compare", "--config=arithmetic.py", "--arms=grpo", "--seeds=0", "--quick", f"--output={tmp_path}"]
    for name, own in (("supervised", {"rl.iterations": 0}), ("grpo", overrides_of("grpo", config))):
        run = config.copy_and_resolve_references()
        run.update_from_flattened_dict(own_settings(config, [], True, False) | own)
        folder = tmp_path / "seed-0" / name
        folder.mkdir(parents=True)
        folder.with_suffix(".json").write_text(json.dumps(own))
        (folder / "config.json").write_text(json.dumps(to_json(run)))
        (folder / "result.json").write_text(json.dumps({"seed": 0, "fingerprint": fingerprint(run)}))
    done = commands.run(*command)
    assert done.returncode == 1 and "grpo/result.json has no versions" in done.stderr  # only the numbers are missing
    done = commands.run(*command[:-2], f"--output={tmp_path}")
    assert done.returncode == 1 and "another comparison" in done.stderr


def test_arms():
    assert parse_arms("all") == list(ARMS) and parse_arms("igpo,grpo") == ["igpo", "grpo"]
    for names, message in (("igpo,ppo", "no arm 'ppo'; there are: grpo"), ("", "names no arm"), ("igpo,igpo", "one twice")):
        with pytest.raises(ValueError, match=message):
            parse_arms(names)
    assert all({claim.better, *claim.worse} <= set(ARMS) for claim in CLAIMS)


def test_every_arm_can_be_trained_with_the_configuration_of_the_readme():
    config = runpy.run_path("configs/arithmetic.py")["get_config"]()
    check_arms(config, list(ARMS), [])
    config.inpainting.chunk_min = 0
    with pytest.raises(ValueError, match="arm igpo: .*chunk_min"):
        check_arms(config, ["igpo"], [])
    with pytest.raises(ValueError, match="--config.seed"):
        check_arms(config, ["igpo"], ["--config.seed=3"])
    config.rl.seed = 3
    with pytest.raises(ValueError, match=r"rl\.seed=3 conflicts with --rl_seeds, which counts from 0"):
        check_arms(config, ["igpo"], [])


@pytest.mark.slow
def test_a_comparison_can_be_stopped_and_goes_on(tmp_path):
    """Names a failed run, keeps finished runs, and shares the supervised stage among all arms."""
    sizes = {"sft.updates": 4, "rl.iterations": 2, "evaluation.problems": 4, "evaluation.batch_size": 4, "rl.eval_every": 1}
    sizes |= {"task.sft_problems": 200, "task.rl_problems": 40, "task.test_problems": 4, "sft.batch_size": 8, "rl.prompts": 2}
    sizes |= {"model.width": 16, "model.layers": 1, "model.mlp_width": 16, "rl.group_size": 4, "rl.checkpoint_every": 1}
    sizes |= {"sampler.steps": 6, "evaluation.steps": 6}
    flags = [f"--config.{key}={value}" for key, value in sizes.items()]
    command = [
        "compare",
        "--config=arithmetic.py",
        "--arms=grpo,igpo",
        "--seeds=0",
        "--rl_seeds=2",
        f"--output={tmp_path}",
        *flags,
    ]
    runs, one_device = tmp_path / "seed-0", os.environ | {"XLA_FLAGS": commands.QUICK}
    begun = commands.start(*command, stdout=tmp_path / "begun.log", env=one_device)
    while begun.poll() is None and not (runs / "supervised" / "config.json").is_file():
        time.sleep(0.2)
    begun.send_signal(signal.SIGTERM)
    assert begun.wait(timeout=120) == 143 and "run the same command to resume" in (tmp_path / "begun.log").read_text()
    (runs / "igpo").mkdir()
    (runs / "igpo" / "config.json").write_text("{}")  # belongs to another run
    (runs / "igpo.json").write_text("{}")
    done = commands.run(*command, env=one_device)
    assert done.returncode == 1
    assert re.search(r"0/igpo has stopped \(exit code 1\): .*0/igpo/config.json .*; see .*/igpo.log; run the same", done.stderr)
    kept = (runs / "grpo" / "result.json").stat().st_mtime_ns
    shutil.rmtree(runs / "igpo")
    done = commands.run(*command, env=one_device)
    assert done.returncode == 0, done.stderr
    assert (runs / "grpo" / "result.json").stat().st_mtime_ns == kept
    logs = [(runs / arm / "metrics.jsonl").read_text() for arm in ("supervised", "grpo", "igpo")]
    losses = [[line for line in log.splitlines() if "sft/loss" in line] for log in logs]
    assert losses[0] == losses[1] == losses[2] and losses[0]
    repeated = (runs / "igpo-1" / "metrics.jsonl").read_text()
    assert [line for line in repeated.splitlines() if "sft/loss" in line] == losses[0] and repeated != logs[2]
    assert "Hints help" in done.stdout and "from the same stage" in done.stdout and (tmp_path / "comparison.html").is_file()
    for old, new in (("grpo", "kept"), ("igpo", "grpo"), ("kept", "igpo")):
        (runs / old).rename(runs / new)
    swapped = commands.run(*command, env=one_device)
    assert swapped.returncode == 1 and "holds a run of another arm (differing keys: inpainting.enabled)" in swapped.stderr
    other = commands.run(*command, "--config.rl.iterations=3", env=one_device)
    assert other.returncode == 1 and "another comparison" in other.stderr
    # The same arms, from the exported result of the supervised stage
    again = tmp_path / "again"
    target = f"--target={tmp_path / 'stages' / 'seed-0'}"
    done = commands.run("convert", f"--source={runs / 'supervised'}", target, "--format=huggingface", env=one_device)
    assert done.returncode == 0, done.stderr
    from_stage = [part for part in command if not part.startswith(("--output", "--config.model."))]
    from_stage += [f"--stages={tmp_path / 'stages'}", f"--output={again}", "--quick", "--rl_seeds=1"]
    for report in ("0 finished", "2 finished"):
        done = commands.run(*from_stage, env=one_device)
        assert done.returncode == 0 and f"again: 2 runs of arms, {report}" in done.stderr, done.stderr
    first = [(folder / "evaluations.jsonl").read_text().splitlines()[0] for folder in (runs / "igpo", *again.glob("seed-0/*/"))]
    assert len(first) == 3 and len({str(json.loads(line)["correct"]) for line in first}) == 1


@pytest.mark.parametrize("added, reason", [
    (b"error: no\nRL:  50%|##\rRL: 100%|##\r\nerror: runs/a is being written\nat the end\n", "runs/a is being written"),
    (b"stopped by a termination signal\n\n", "stopped by a termination signal"),
    (b"half a \xc3", "half a \ufffd"), (b"", "it wrote nothing"), (b"error: " + b"x" * 9999, "x" * 500),
])  # fmt: skip
def test_the_reason_why_a_run_has_stopped_is_in_the_part_of_the_log_that_it_wrote(added, reason, tmp_path):
    earlier = b"error: of an earlier command\n"
    (tmp_path / "a.log").write_bytes(earlier + added)
    assert last_error(tmp_path / "a.log", len(earlier)) == reason
    with (tmp_path / "a.log").open("ab") as log:
        log.truncate(1 << 34)  # a hole, as if the run had written 16 GiB
        log.write(b"\nerror: at last\n")
    assert last_error(tmp_path / "a.log", len(earlier)) == "at last"


def test_the_time_that_is_left_is_that_of_the_runs_of_each_kind():
    runs = [(0, SUPERVISED, 0), (1, SUPERVISED, 0), (0, "grpo", 0), (1, "grpo", 0), (0, "igpo", 0), (1, "igpo", 0)]
    assert time_left(runs, {}, 1) == ""
    assert time_left(runs, {runs[0]: 90.0}, 1) == "; about 2 min left, and 4 runs whose time is not known yet"
    assert time_left(runs, {runs[0]: 90.0, runs[1]: 30.0, runs[2]: 8.0, runs[4]: 12.0}, 2) == "; about 10 s left"
    assert time_left(runs, {runs[0]: 90.0, runs[1]: None, runs[2]: 3600.0}, 8) == "; about 1 h 00 min left"
    assert time_left(runs, dict.fromkeys(runs, 1.0), 2) == ""
