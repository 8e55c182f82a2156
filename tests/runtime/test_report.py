import builtins
import html.parser
import json
import math
import re

import numpy as np
import pytest

from igpo_jax.config import base_config, to_json
from igpo_jax.runtime.report import choose_rollouts, headline, smooth, write_report

go = pytest.importorskip("plotly.graph_objects")

SECTIONS = ["Learning", "Inpainting", "Denoising", "Policy", "Supervised stage", "Speed"]
ATTACK = '</script><b onclick="x">&amp;<!--<script>'


def sft_row(step):
    scalars = {"sft/loss": 1 / step, "sft/grad_norm": 1.0, "sft/learning_rate": 1e-3, "time/step": 0.5}
    return {"step": step, "stage": "sft", **scalars}


def rl_row(step):
    keys = [
        "reward/first_try", "reward/final", "groups/all_wrong_before", "groups/all_wrong_after",
        "groups/all_correct", "hint/rescue_rate", "hint/ratio", "hint/tokens", "hint/replaced",
        "policy/kl", "policy/entropy", "policy/clip_fraction", "policy/ratio_mean", "policy/loss",
        "policy/grad_norm", "time/rollout", "time/reward", "time/score", "time/update",
        "speed/tokens_per_second",
    ]  # fmt: skip
    return {"step": step, "stage": "rl", **{key: 0.5 for key in keys}}


def eval_row(step, stage, accuracy):
    return {"step": step, "stage": stage, "eval/accuracy": accuracy, "eval/problems": 100}


def rollout_row(step, attempt="first", rescued=False, question="1+1="):
    return {
        "step": step, "try": attempt, "problem_id": "p",
        "question": question, "answer": "2", "trace": "1+1=2",
        "tokens": ["2", "<eos>", "<eos>"], "written_at": [1, -1 if attempt == "hinted" else 0, 0],
        "hint": [False, attempt == "hinted", False], "reward": 1.0, "text": "2", "rescued": rescued, "end": 1,
    }  # fmt: skip


RUN = [
    *map(sft_row, range(1, 6)),
    eval_row(5, "sft", 0.1),
    *map(rl_row, range(6, 11)),
    eval_row(10, "rl", 0.6),
]


@pytest.fixture
def run(tmp_path):
    """Writes a run's folder and its report; returns the report's text."""

    def write(rows, rollouts=(), name="arithmetic"):
        config = to_json(base_config())
        config["task"]["name"] = name
        (tmp_path / "config.json").write_text(json.dumps(config))
        for file, content in (("metrics.jsonl", rows), ("rollouts.jsonl", rollouts)):
            (tmp_path / file).write_text("".join(json.dumps(row) + "\n" for row in content))
        path = write_report(tmp_path)
        assert path == tmp_path / "report.html"
        return path.read_text()

    return write


def sections(text):
    return re.findall(r"<h2>([^<]*)</h2>", text.split("</ul>\n", 1)[1])


def embedded(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


def test_a_whole_run_has_every_section(run):
    text = run(RUN, [rollout_row(6), rollout_row(6, "hinted", rescued=True)])
    assert sections(text) == SECTIONS
    data = embedded(text)
    assert len(data["figures"]) == text.count('class="plot"') == 16
    assert len(data["rollouts"]) == 2
    for figure in data["figures"]:
        go.Figure(figure)  # raises on a property that plotly does not know


def test_without_rl_there_is_only_what_was_measured(run):
    text = run([*map(sft_row, range(1, 6)), eval_row(5, "sft", 0.1)])
    assert sections(text) == ["Learning", "Supervised stage"]
    assert "by RL" not in text


def test_an_empty_run_and_one_without_hints_have_a_report(run):
    assert "No metrics yet" in run([])
    rows = [{key: value for key, value in row.items() if not key.startswith("hint/")} for row in RUN]
    assert "Rescue rate" not in run(rows)


def test_text_of_problems_cannot_become_markup(run):
    text = run(RUN, [rollout_row(6, question=ATTACK)], name=ATTACK)
    assert embedded(text)["rollouts"][0]["question"] == ATTACK

    class Tags(html.parser.HTMLParser):
        seen = []

        def handle_starttag(self, tag, attributes):
            self.seen.append(tag)

    Tags().feed(text)
    assert "b" not in Tags.seen and Tags.seen.count("script") == 3


def test_nothing_is_loaded_from_elsewhere(run):
    from plotly.offline import get_plotlyjs

    text = run(RUN, [rollout_row(6)])
    assert text.count(get_plotlyjs()) == 1
    own = text.replace(get_plotlyjs(), "")
    assert not re.search(r"https?:|//[a-z]|@import|url\(", own)
    assert "default-src 'none'" in own


def test_values_that_are_not_finite_are_left_out(run):
    broken = {**rl_row(8), "policy/kl": None, "policy/entropy": math.nan, "eval/accuracy": None}
    figures = embedded(run([*RUN[:-1], broken]))["figures"]
    values = [trace["y"] for figure in figures for trace in figure["data"]]
    assert values and not re.search("null|NaN", json.dumps(values))


def test_accuracy_before_is_the_last_one_that_no_rl_update_has_touched():
    early = eval_row(3, "sft", 0.05)
    (accuracy, *_) = headline([early, *RUN])
    assert accuracy == ("Held-out accuracy", "10.0% → 60.0%", "+50.0 points by RL, 100 held-out problems")


def test_training_time_is_that_of_both_stages():
    rows = [{**row, "time/total": 20.0 if row["stage"] == "sft" else 60.0} for row in RUN]
    assert headline(rows)[-1] == ("Training time", "8 min", "SFT 2 min, RL 6 min")


def test_the_begin_of_rl_is_marked_between_evaluations_only(run):
    accuracy = embedded(run([eval_row(1, "sft", 0.0), *RUN]))["figures"][0]
    assert accuracy["layout"]["shapes"][0]["x0"] == 5
    assert "shapes" not in embedded(run(RUN))["figures"][0]["layout"]


def test_rescue_rate_weighs_a_rollout_by_its_all_wrong_groups():
    few = {**rl_row(1), "groups/all_wrong_before": 0.1, "hint/rescue_rate": 0.0}
    many = {**rl_row(2), "groups/all_wrong_before": 0.9, "hint/rescue_rate": 1.0}
    assert ("Rescue rate", "90.0%", "of all-wrong groups, over the run") in headline([few, many])


def test_chosen_rollouts_are_mostly_rescued_ones_from_begin_to_end():
    rows = [
        rollout_row(step, attempt, rescued=attempt == "hinted" and step % 20 == 0)
        for step in range(0, 200, 10)
        for attempt in ("first", "hinted")
    ]
    chosen = choose_rollouts(rows)
    rescued = [row["step"] for row in chosen if row["rescued"]]
    first = [row["step"] for row in chosen if row["try"] == "first"]
    assert (len(rescued), len(first)) == (5, 3)
    assert (rescued[0], rescued[-1], first[0], first[-1]) == (0, 180, 0, 190)
    assert choose_rollouts(rows[:3]) == rows[:3]
    assert len(choose_rollouts([rollout_row(i, "hinted") for i in range(20)])) == 8


def test_smoothing_keeps_lines_and_lowers_noise():
    line = np.arange(96.0)
    np.testing.assert_allclose(smooth(line)[4:-4], line[4:-4])
    np.testing.assert_allclose(smooth(np.ones(96)), 1)
    noise = np.random.default_rng(0).normal(size=200)
    assert smooth(noise).std() < 0.4 * noise.std()
    assert len(smooth(np.zeros(0))) == 0


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no config.json"):
        write_report(tmp_path)


def test_without_plotly_there_is_a_warning_and_no_report(tmp_path, monkeypatch, caplog):
    original = builtins.__import__

    def without_plotly(name, *args, **kwargs):
        if name.startswith("plotly"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_plotly)
    assert write_report(tmp_path) is None
    assert "plotly is missing" in caplog.text and not list(tmp_path.iterdir())
