import html
import html.parser
import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict

import commands
from igpo_jax.config import fingerprint
from igpo_jax.report import page as report
from igpo_jax.report.figures import smooth, spent, x_axes
from igpo_jax.report.page import (
    embedded_rollouts,
    headline,
    read_run_folder,
    report_html,
    require_own_page,
    short_names,
    write_page,
    write_report,
)
from igpo_jax.report.style import COLORS, SHADES, STYLE, embed
from processes import CHROMIUM
from report_runs import RUN, eval_row, rl_row, rollout_row, sft_row, write_run

go = pytest.importorskip("plotly.graph_objects")

SECTIONS = ["Learning", "Inpainting", "Rollouts", "Policy", "Supervised stage", "Speed"]
ATTACK = '</script><script>alert(1)</script><b onclick="x">&amp;<!--<script>'


@pytest.fixture
def run(tmp_path):
    """Returns a function that writes a run's folder and its report and returns the report's text."""

    def write(rows, rollouts=(), name="arithmetic"):
        path = write_report(write_run(tmp_path, rows, rollouts, name=name))
        assert path == tmp_path / "report.html"
        return path.read_text()

    return write


@pytest.fixture
def two_runs(tmp_path):
    """Folders of two runs with two different keys, evaluated on the same four problems."""
    rollouts = [rollout_row(6), rollout_row(6, "hinted", rescued=True)]
    verdicts = [[1, 0, 0, 0], [1, 1, 1, 0]]
    options = [{"seed": 0}, {"seed": 1, "rl.iterations": 7}]
    first = {"step": 5, "stage": "sft", "correct": [0, 0, 0, 1]}
    return [
        write_run(tmp_path / name, RUN, rollouts, [first, {"step": 10, "stage": "rl", "correct": correct}], **settings)
        for name, correct, settings in zip(("one", "other"), verdicts, options, strict=True)
    ]


def sections(text):
    return re.findall(r"<section[^>]*>\s*<h2>([^<]*)</h2>", text)


def embedded(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


def test_a_whole_run_has_every_section(run):
    text = run(RUN, [rollout_row(6), rollout_row(6, "hinted", rescued=True)])
    assert sections(text) == SECTIONS
    data = embedded(text)
    assert len(data["figures"]) == text.count('class="plot"') == 18
    (rows,) = data["rollouts"]["runs"].values()
    assert [row["hinted"] for row in rows] == [False, True]
    for figure in data["figures"]:
        go.Figure(figure)  # raises on unknown properties


def test_each_function_of_a_sum_has_a_curve(run):
    names = ["task", ATTACK, *(f"function {number}" for number in range(20))]
    text = run([row | {f"reward/{name}": 0.5 for name in names} if row["stage"] == "rl" else row for row in RUN])
    assert "Parts of the reward" in text and ATTACK not in text
    figure = embedded(text)["figures"][2]
    assert [trace["name"] for trace in figure["data"]] == ["task", html.escape(ATTACK), *(f"function {n}" for n in range(8))]
    go.Figure(figure)


def test_each_benchmark_has_a_curve_beside_the_accuracy(run):
    names = ("gsm8k", ATTACK)
    text = run([row | {f"eval/{name}/accuracy": 0.25 for name in names} if "eval/accuracy" in row else row for row in RUN])
    assert ATTACK not in text and html.escape(html.escape(ATTACK)) not in text
    figure = embedded(text)["figures"][0]
    assert [trace["name"] for trace in figure["data"]] == ["accuracy", "gsm8k", html.escape(ATTACK)]
    assert figure["data"][1]["x"] == figure["data"][0]["x"] and set(figure["data"][1]["y"]) == {0.25}
    go.Figure(figure)


def test_without_rl_there_is_only_what_was_measured(run):
    text = run([*map(sft_row, range(1, 6)), eval_row(5, "sft", 0.1)])
    assert sections(text) == ["Learning", "Supervised stage"]
    assert "by RL" not in text


def test_an_empty_run_and_one_without_hints_have_a_report(run):
    assert "No metrics yet" in run([])
    rows = [{key: value for key, value in row.items() if not key.startswith("hint/")} for row in RUN]
    assert "Rescue rate" not in run(rows)


def test_the_text_of_problems_and_completions_cannot_become_markup(run):
    attacked = rollout_row(6, question=ATTACK, text=ATTACK, extracted_answer=ATTACK, tokens=[ATTACK, "<eos>", "<eos>"])
    text = run(RUN, [attacked], name=ATTACK)
    data = embedded(text)["rollouts"]
    (row,) = next(iter(data["runs"].values()))
    assert {row["question"], row["text"], row["extracted_answer"], data["pieces"][row["tokens"][0]]} == {ATTACK}

    class Tags(html.parser.HTMLParser):
        seen = []

        def handle_starttag(self, tag, attributes):
            self.seen.append(tag)

    Tags().feed(text)
    assert "b" not in Tags.seen and Tags.seen.count("script") == 3


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_browser_shows_a_completion_that_looks_like_a_script_as_text(run, tmp_path):
    attack = "</script><script>document.title = 'attacked'</script><img src=x onerror=\"document.title='attacked'\">"
    run(
        RUN,
        [
            rollout_row(
                6, question=attack, text=attack, extracted_answer=attack, trace=attack, tokens=[attack, "<eos>", "<eos>"]
            )
        ],
    )
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"file://{tmp_path / 'report.html'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    shown = re.search(r'<pre id="text"[^>]*>(.*?)</pre>', done.stdout, re.S)[1]
    assert html.unescape(shown) == attack
    assert "<title>arithmetic · IGPO run</title>" in done.stdout and "<img" not in done.stdout.split("<script")[0]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize(
    "outcome, verdict", [("timeout", "no verdict in time"), ("error", "no verdict, because the grader failed")]
)
def test_a_browser_shows_a_completion_without_a_verdict_as_neither_correct_nor_wrong(outcome, verdict, run, tmp_path):
    run(RUN, [rollout_row(6, correct=False, reward=0.0, outcome=outcome)])
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"file://{tmp_path / 'report.html'}"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
    assert f'<p id="verdict">{verdict}</p>' in shown
    assert len(re.findall("<span[^>]*>no verdict</span>", shown)) == 2  # in the list, and as a badge
    assert 'title="update 6: 0 correct, 0 wrong, 1 without a verdict"' in shown


def test_nothing_is_loaded_from_elsewhere(run):
    from plotly.offline import get_plotlyjs

    text = run(RUN, [rollout_row(6)])
    assert text.count(get_plotlyjs()) == 1 and len(text.encode()) < 10e6
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


def test_all_rollouts_are_shown_while_they_fit():
    rows = [rollout_row(step) for step in range(400)]
    assert [row["step"] for row in embedded_rollouts({"a": rows})["runs"]["a"]] == list(range(400))


def test_rollouts_that_are_too_many_are_thinned_from_begin_to_end():
    long = {"tokens": ["word<"] * 500, "unmask_step": list(range(500)), "hint": [False] * 500, "text": "word<" * 500}
    rows = [rollout_row(step, **long) for step in range(900)]
    embedded = embedded_rollouts({"a": rows, "b": rows, "none": []})
    assert set(embedded["runs"]) == {"a", "b"} and embedded["pieces"] == ["word<"]
    assert report.ROLLOUT_BYTES * 0.8 < len(embed(embedded)) <= report.ROLLOUT_BYTES
    steps = [row["step"] for row in embedded["runs"]["b"]]
    assert (steps[0], steps[-1]) == (0, 899) and max(np.diff(steps)) <= min(np.diff(steps)) + 1


def test_rollouts_of_earlier_versions_are_shown_without_what_they_lack():
    old = rollout_row(1, "hinted")
    for key in ("correct", "outcome", "extracted_answer"):
        del old[key]
    first, second = embedded_rollouts({"a": [old, old | {"reward": 0.1}]})["runs"]["a"]
    assert first["correct"] and not second["correct"]
    assert "extracted_answer" not in first and first["hint"] == [1]


def test_rollouts_without_a_verdict_are_neither_correct_nor_wrong():
    rows = [rollout_row(1, correct=False, outcome=outcome) for outcome in ("ok", "timeout", "error")]
    assert [row["correct"] for row in embedded_rollouts({"a": rows})["runs"]["a"]] == [False, None, None]


def test_smoothing_keeps_lines_and_lowers_noise():
    line = np.arange(96.0)
    np.testing.assert_allclose(smooth(line)[4:-4], line[4:-4])
    np.testing.assert_allclose(smooth(np.ones(96)), 1)
    noise = np.random.default_rng(0).normal(size=200)
    assert smooth(noise).std() < 0.4 * noise.std()
    assert len(smooth(np.zeros(0))) == 0


def test_what_is_no_run_is_refused(tmp_path, two_runs):
    with pytest.raises(ValueError, match="no config.json"):
        write_report(tmp_path)
    with pytest.raises(ValueError, match="there is no folder .*missing"):
        write_page([two_runs[0], tmp_path / "missing"], tmp_path / "page.html")
    (two_runs[1] / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"other/config\.json: not JSON"):
        write_page(two_runs, tmp_path / "page.html")
    with pytest.raises(ValueError, match="given twice"):
        write_page([two_runs[0], two_runs[0]], tmp_path / "page.html")
    with pytest.raises(ValueError, match="there is no folder .*nowhere for the page"):
        write_page(two_runs[:1], tmp_path / "nowhere" / "page.html")
    with pytest.raises(ValueError, match="at most 10"):
        write_page(two_runs * 6, tmp_path / "page.html")
    assert not list(tmp_path.glob("*.html"))


def test_names_are_as_long_as_they_must_be_to_differ(tmp_path):
    paths = [tmp_path / "seed-0" / "igpo", tmp_path / "seed-1" / "igpo", tmp_path / "seed-1" / "grpo"]
    assert short_names(paths) == ["seed-0/igpo", "seed-1/igpo", "seed-1/grpo"]
    assert short_names(paths[1:]) == ["igpo", "grpo"]


def test_several_runs_share_one_page(two_runs, tmp_path):
    write_page(two_runs, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert sections(text) == ["Results", "Newest accuracy, against one", "Configuration", *SECTIONS]
    data = embedded(text)
    assert set(data["rollouts"]["runs"]) == {"one", "other"}
    for figure in data["figures"]:
        go.Figure(figure)
        colors = {trace["name"].split(":")[0]: trace["line"]["color"] for trace in figure["data"]}
        assert len(set(colors.values())) == len(colors) == 2
    wrong = next(figure for figure in data["figures"] if "one: before hints" in [t.get("name") for t in figure["data"]])
    dashes = {trace["name"].split(": ")[1]: trace["line"]["dash"] for trace in wrong["data"]}
    assert len(set(dashes.values())) == len(dashes) == 3


def table_after(text, title):
    part = text.split(f"<h2>{title}</h2>")[1].split("</section>")[0]
    lines = [re.findall(r"<t[hd]>(.*?)</t[hd]>", line) for line in re.findall("<tr>(.*?)</tr>", part)]
    return {line[0]: line[1:] for line in lines}


def test_runs_are_compared_by_their_numbers_verdicts_and_settings(two_runs):
    text = report_html({"one": read_run_folder(two_runs[0]), "other": read_run_folder(two_runs[1])})
    assert table_after(text, "Configuration") == {"": ["one", "other"], "seed": ["0", "1"], "rl.iterations": ["100", "7"]}
    assert table_after(text, "Results")["newest accuracy"] == ["60.0% (50.2% to 69.1%)"] * 2
    difference = table_after(text, "Newest accuracy, against one")["other"]
    assert difference[0].startswith("+50.0 (") and difference[2:] == ["2 / 0", "4", "10 and 10"]


def test_problems_without_a_verdict_are_not_compared(two_runs):
    """null in evaluations.jsonl is no verdict."""
    (two_runs[1] / "evaluations.jsonl").write_text(json.dumps({"step": 10, "stage": "rl", "correct": [1, None, 1, 0]}))
    runs = {"one": read_run_folder(two_runs[0]), "other": read_run_folder(two_runs[1])}
    assert table_after(report_html(runs), "Newest accuracy, against one")["other"][2:4] == ["1 / 0", "3"]
    (two_runs[0] / "evaluations.jsonl").write_text(json.dumps({"step": 10, "stage": "rl", "correct": [None, 1, None, None]}))
    runs = {"one": read_run_folder(two_runs[0]), "other": read_run_folder(two_runs[1])}
    assert "No other run has verdicts on the same problems." in report_html(runs)


def test_verdicts_on_other_problems_are_not_compared(two_runs):
    (two_runs[1] / "data.json").write_text(json.dumps({"test": "4567"}))
    text = report_html({"one": read_run_folder(two_runs[0]), "other": read_run_folder(two_runs[1])})
    assert "No other run has verdicts on the same problems." in text


def test_a_run_under_way_has_a_report_that_says_so(run):
    assert "<li>not finished</li>" in run(RUN[:-1])


def test_only_the_page_of_an_unfinished_run_loads_itself_again(tmp_path):
    folder = write_run(tmp_path / "run", RUN)
    assert 'id="live"' in write_report(folder).read_text()
    (folder / "result.json").write_text('{"updates": 10}')
    assert 'id="live"' not in write_report(folder).read_text()


def test_a_page_is_written_again_until_its_runs_are_finished(two_runs, tmp_path, monkeypatch):
    unfinished, waited = list(two_runs), []

    def finish_one_run(seconds):
        waited.append(seconds)
        (unfinished.pop() / "result.json").write_text('{"updates": 10}')

    monkeypatch.setattr(report.time, "sleep", finish_one_run)
    report.keep_writing(two_runs, tmp_path / "page.html")
    assert waited == [report.PAUSE] * 2 and 'id="live"' not in (tmp_path / "page.html").read_text()


def test_what_rl_has_spent_is_counted_from_its_first_iteration():
    rows = [row | {"sampler/prompts": 8.0, "sampler/rows": 32.0 * row["step"], "time/total": 2.0} for row in RUN]
    found = spent(rows)
    assert found["update"] == list(range(5, 11)) and found["iteration"] == list(range(6))
    assert found["prompts"] == [0, 8, 16, 24, 32, 40] and found["seconds"] == [0, 2, 4, 6, 8, 10]
    assert found["evaluations"] == [0, *np.cumsum([32 * step for step in range(6, 11)])]
    assert spent(RUN[:6]) == {}
    many = spent([row | {"sampler/prompts": 1.0} for row in map(rl_row, range(1, 3001))])
    assert len(many["update"]) <= 1002 and (many["update"][-1], many["prompts"][-1]) == (3000, 3000)


def test_an_x_axis_that_one_run_does_not_log_is_not_offered(run):
    complete = [row | {"sampler/prompts": 8.0, "sampler/rows": 32.0} for row in RUN]
    assert list(x_axes({"a": complete})[0]) == ["iteration", "update", "prompts", "evaluations", "seconds"]
    assert list(x_axes({"a": complete, "old": RUN, "supervised": RUN[:6]})[0]) == ["iteration", "update", "seconds"]
    assert 'id="axis"' in run(RUN) and 'id="axis"' not in run(RUN[:6])


def test_a_chart_says_which_of_its_lines_are_smoothed(run, tmp_path):
    rows = list(map(rl_row, range(1, 49)))
    assert "Thick: rolling mean of 5 values; faint: each value." in run(rows)
    folders = [write_run(tmp_path / name, map(rl_row, range(1, count))) for name, count in (("one", 49), ("other", 97))]
    write_page(folders, tmp_path / "page.html")
    assert "Lines: rolling mean of 5 to 9 values." in (tmp_path / "page.html").read_text()
    assert "rolling mean" not in run(RUN)


def contrast(one: str, other: str) -> float:
    """WCAG's contrast of two colors, #rgb or #rrggbb."""
    luminances = []
    for color in (one, other):
        digits = color[1:] if len(color) == 7 else "".join(2 * digit for digit in color[1:])
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        luminances.append(float(np.dot(linear, [0.2126, 0.7152, 0.0722])) + 0.05)
    return max(luminances) / min(luminances)


def test_texts_and_lines_have_enough_contrast_in_both_color_schemes():
    light, dark = (dict(re.findall(r"--([\w-]+): (#\w+)", part)) for part in re.findall(r":root {(.*?)}", STYLE, re.S))
    texts = {
        "ink": "paper panel chosen hover",
        "soft": "paper panel hover empty",
        "orange": "paper panel",
        "on-dark": "dark",
        **{f"{kind}-ink": f"{kind}-paper panel" for kind in ("good", "bad")},
        "given-ink": "given",
    }
    for colors in (light, light | dark):
        for text, backgrounds in texts.items():
            for background in backgrounds.split():
                assert contrast(colors[text], colors[background]) >= 4.5, (text, background)
        for line in (*COLORS, *SHADES, colors["good"], colors["bad"]):
            assert contrast(line, colors["panel"]) >= 3, line


def test_the_command_writes_pages_and_says_in_one_line_what_is_wrong(two_runs, tmp_path):
    def command(*arguments):
        return commands.run("report", *map(str, arguments), cwd=tmp_path)

    done = command(*two_runs, "--output=both.html")
    assert done.returncode == 0 and done.stdout == "report: both.html\n"
    assert "2 runs compared" in (tmp_path / "both.html").read_text()
    foreign = tmp_path / "compared.html"
    foreign.write_text("<!doctype html><title>mine</title>")
    done = command(*two_runs)
    assert done.returncode == 1 and foreign.read_text() == "<!doctype html><title>mine</title>"
    assert done.stderr == "error: compared.html is no page that compares runs, and it would be replaced; give --output=FILE\n"
    foreign.unlink()
    (two_runs[0] / "result.json").write_text('{"updates": 10}')
    done = command(two_runs[0], "--watch")  # the run is finished
    assert done.returncode == 0 and done.stdout == f"report: {two_runs[0] / 'report.html'}\n"
    wrong = command(two_runs[0], "nothing")
    assert wrong.returncode == 1 and wrong.stderr == "error: there is no folder nothing; give the folder of a run\n"


def test_lost_verdicts_are_named(two_runs, caplog):
    """Not as an error, because train --accept_loss continues such a run, and writes its report."""
    read_run_folder(two_runs[0])
    assert caplog.text == ""
    file = two_runs[0] / "evaluations.jsonl"
    file.write_text(file.read_text().partition("\n")[2])
    read_run_folder(two_runs[0])
    assert f"{file} has lost 1 evaluations, the first at step 5; restore it from a copy" in caplog.text


def test_a_page_that_compares_runs_is_written_again(two_runs, tmp_path):
    path = tmp_path / "compared.html"
    for _ in range(2):
        require_own_page(path)
        write_page(two_runs, path)
    write_page(two_runs[:1], path)
    with pytest.raises(ValueError, match=f"{path} is no page that compares runs, and it would be replaced; give --output"):
        require_own_page(path)


def test_without_plotly_there_is_a_warning_and_no_report(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    write_run(tmp_path, RUN)
    assert write_report(tmp_path) is None
    assert "plotly is missing" in caplog.text and not list(tmp_path.glob("*.html"))


def test_answers_without_a_verdict_are_counted_on_the_page(tmp_path):
    counted = {**rl_row(11), "grading/late": 2.0, "grading/broken": 1200.0}, {**eval_row(11, "rl", 0.6), "eval/ungraded": 3}
    rows = [*RUN, *counted, {**rl_row(12), "grading/late": None}]
    [card] = [card for card in headline(rows) if card[0] == "Answers without a verdict"]
    assert card[1:] == ("1,205", "late 2, reward function failed 1,200, in evaluations 3")
    write_run(tmp_path / "one", rows)
    assert report.numbers(read_run_folder(tmp_path / "one"))["answers without a verdict"] == "1,205"
    without = [*RUN, {**rl_row(8), "grading/late": 0.0, "grading/broken": 0.0}]
    assert "Answers without a verdict" not in [card[0] for card in headline(without)]


def test_the_settings_of_another_run_are_not_shown_with_the_results(tmp_path):
    folder = write_run(tmp_path / "run", RUN, **{"data.prompt_buckets": (32, 64)})
    begun = json.loads((folder / "config.json").read_text())
    assert begun["task"]["name"] == "arithmetic"
    (folder / "result.json").write_text(json.dumps({"fingerprint": fingerprint(ConfigDict(begun))}))
    read_run_folder(folder)
    for key, value, is_same in ("layout", "train", True), ("temperature", 0.5, False):
        (folder / "config.json").write_text(json.dumps(begun | {"sampler": begun["sampler"] | {key: value}}))
        if is_same:
            read_run_folder(folder)  # a run may continue with another layout
        else:
            with pytest.raises(ValueError, match=f"{folder}/config.json is another configuration than that of result.json; "):
                read_run_folder(folder)
    (folder / "config.json").write_text(json.dumps(begun | {"data": begun["data"] | {"prompt_buckets": [64]}}))
    with pytest.raises(ValueError, match="another configuration"):
        read_run_folder(folder)
    (folder / "data.json").write_text(json.dumps({"test": "0123", "prompt_buckets": [32, 64]}))
    read_run_folder(folder)  # the run has continued with other buckets
    (folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="config.json cannot be read: KeyError: 'data'"):
        read_run_folder(folder)


@pytest.mark.parametrize("name", ["config.json", "result.json", "data.json", "metrics.jsonl", "rollouts.jsonl"])
def test_a_page_shows_no_file_to_which_a_link_in_a_run_leads(name, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    (tmp_path / "private").write_text('{"auth": "secret"}')
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(tmp_path / "private")
    with pytest.raises(ValueError, match=f"{name} leads out of the run"):
        read_run_folder(run)


def test_shares_that_are_not_known_are_left_out(tmp_path):
    rows = [*RUN[:-1], rl_row(11) | {"groups/all_wrong_before": None, "heldout/loss": None}, RUN[-1]]
    page = write_report(write_run(tmp_path / "run", rows)).read_text()
    assert "Groups all wrong at the start" in page
    unknown = [row | ({"groups/all_wrong_before": None} if row["stage"] == "rl" else {}) for row in RUN]
    assert "Groups all wrong at the start" not in write_report(write_run(tmp_path / "other", unknown)).read_text()
