"""The pages in a headless Chromium, from files and without a network."""

import csv
import json

import pytest

from axe import findings
from igpo_jax.compare.numbers import compare_runs
from igpo_jax.compare.page import write_comparison
from igpo_jax.report.page import write_page, write_report
from parsers import PARSERS
from processes import CHROMIUM
from report_runs import eval_row, rl_row, rollout_row, sft_row, write_run

pytest.importorskip("plotly")
sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")]

SIZES = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}
ITERATIONS = 30


def rows_of(updates: int, rows_per_iteration: float) -> list[dict]:
    """Metrics of a run with a supervised stage of `updates` updates, and four updates per RL iteration."""
    found = [*map(sft_row, range(1, updates + 1)), eval_row(updates - 1, "sft", 0.1), eval_row(updates, "rl", 0.2)]
    spent = {"sampler/prompts": 8.0, "sampler/rows": rows_per_iteration, "time/total": 0.25}
    for iteration in range(1, ITERATIONS + 1):
        step = updates + 4 * iteration
        found.append(rl_row(step) | spent | {"reward/first_try": iteration / ITERATIONS})
        if iteration % 10 == 0:
            found.append(eval_row(step, "rl", iteration / ITERATIONS))
    return found


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        with playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]) as browser:
            yield browser


@pytest.fixture
def visit(browser):
    """Opens a file; at the end, asserts that no page had an error or requested another file."""
    contexts, wrong = [], []

    def visit(path, size="desktop", **options):
        contexts.append(browser.new_context(viewport=SIZES[size], **options))
        page, address = contexts[-1].new_page(), path.as_uri()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: request.url.startswith((address, "data:", "blob:")) or wrong.append(request.url))
        page.clock.install()
        page.goto(address)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not wrong


@pytest.fixture
def runs(tmp_path):
    """Folders of two runs whose supervised stages have 5 and 100 updates."""
    rollouts = [rollout_row(9 + 12 * i, question=f"{i}+1=", correct=i % 2 == 0) for i in range(6)]
    return [
        write_run(tmp_path / name, rows_of(updates, rows), rollouts)
        for name, updates, rows in (("one", 5, 100.0), ("other", 100, 400.0))
    ]


def compared(runs):
    path = runs[0].parent / "compared.html"
    write_page(runs, path)
    return path


def comparison(folder):
    folder = folder / "comparison"
    folder.mkdir()
    next(parser for parser in PARSERS if parser.name == "comparison").write(folder)
    write_comparison(folder, compare_runs(folder, ["grpo", "igpo"], [0], quick=True))
    return folder / "comparison.html"


def curve(page, title: str, number: int = 0):
    """Returns (x, y, title of the x axis) of a curve that is drawn."""
    chart = page.get_by_role("img", name=title, exact=True)
    return chart.evaluate(f"chart => [chart.data[{number}].x, chart.data[{number}].y, chart.layout.xaxis.title.text]")


def test_the_x_axis_of_the_curves_of_rl_can_be_chosen(visit, runs):
    page = visit(compared(runs))
    x, y, title = curve(page, "Accuracy", 1)
    assert (x, title) == ([None, 0, 10, 20, 30], "RL iteration") and y == pytest.approx([0.1, 0.2, 1 / 3, 2 / 3, 1], rel=1e-5)
    assert curve(page, "Reward of the rollouts", 2)[0] == list(range(1, ITERATIONS + 1))
    last = {"update": 220, "prompts": 240, "evaluations": 12_000, "seconds": 7.5}
    for axis, end in last.items():
        page.get_by_label("Curves of RL by").select_option(axis)
        assert curve(page, "Accuracy", 1)[0][-1] == curve(page, "KL to the reference", 1)[0][-1] == end
    assert curve(page, "Accuracy", 1)[2] == "seconds of RL"
    assert curve(page, "Loss")[::2] == [[1, 2, 3, 4, 5], "update"]  # of the supervised stage


def test_a_tooltip_is_opaque_and_names_the_chart_the_runs_and_both_axes(visit, runs):
    for scheme, color in (("light", "rgb(255, 255, 255)"), ("dark", "rgb(27, 34, 43)")):
        page = visit(compared(runs), color_scheme=scheme)
        chart = page.get_by_role("img", name="Groups without a gradient", exact=True)
        chart.scroll_into_view_if_needed()
        box = chart.bounding_box()
        for place in (100, 200):
            page.mouse.move(box["x"] + place, box["y"] + 110)
            page.clock.run_for(1000)
        texts = "".join(chart.locator(".hoverlayer").locator("text").all_text_contents())
        assert "Groups without a gradient, RL iteration" in texts
        assert "one: before hints : 50%" in texts and "other: all correct : 50%" in texts
        style = chart.locator(".hoverlayer .bg").evaluate(
            "box => [getComputedStyle(box).fill, getComputedStyle(box).fillOpacity]"
        )
        assert style == [color, "1"]


def test_a_chart_becomes_csv(visit, runs):
    page = visit(write_report(runs[1]))
    page.get_by_label("Curves of RL by").select_option("prompts")
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV of Reward of the rollouts").click()
    assert download.value.suggested_filename == "reward_of_the_rollouts.csv"
    header, *rows = csv.reader(download.value.path().read_text().splitlines())
    assert header == ["run", "curve", "mean over", "prompts sampled", "value"] and len(rows) == 4 * ITERATIONS
    assert rows[0] == ["other", "first try", "1", "8", "0.0333333"] and rows[ITERATIONS][:4] == ["other", "first try", "3", "8"]


def test_a_name_does_not_become_a_formula_of_a_spreadsheet(visit, runs):
    page = visit(write_report(runs[0].rename(runs[0].with_name('=HYPERLINK("x")'))))
    assert page.evaluate("chartAsCsv(0)").splitlines()[1].startswith('"\'=HYPERLINK(""x"")",')
    for begin in ("=", "\n=", " +", "\r@", "\u00a0-", "＝", "＋", "－", "＠", "﹦"):
        assert page.evaluate("cell", f"{begin}1+1") == f'"\'{begin}1+1"'
    assert page.evaluate("[cell(null), cell('20%'), cell(-1)]") == ['""', '"20%"', -1]


def test_the_figures_of_a_comparison_become_csv(visit, tmp_path):
    page = visit(comparison(tmp_path))
    with page.expect_download() as download:
        page.get_by_role("link", name="CSV").first.click()
    header, *rows = csv.reader(download.value.path().read_text().splitlines())
    assert header == ["arm", "rows through the network", "mean", "lowest", "highest"] and {row[0] for row in rows} == {
        "grpo",
        "igpo",
    }


def test_a_search_that_finds_nothing_says_so(visit, runs):
    page = visit(write_report(runs[0]))
    nothing = page.get_by_text("No rollout is found")
    expect(nothing).to_be_hidden()
    page.get_by_role("searchbox").fill("no such text")
    expect(nothing).to_be_visible()
    expect(page.locator("#rollout")).to_be_hidden()
    page.get_by_role("searchbox").fill("3+1")
    expect(nothing).to_be_hidden()


def test_the_report_of_an_unfinished_run_loads_itself_again_and_keeps_the_place(visit, runs):
    path = write_report(runs[0])
    page = visit(path)
    page.get_by_label("Curves of RL by").select_option("prompts")
    page.get_by_role("searchbox").fill("+1=")
    page.locator("#kinds").get_by_label("Failed").check()
    page.locator("#list button").nth(1).click()
    page.get_by_label("Step").fill("1")
    page.get_by_text("Configuration", exact=True).click()
    page.evaluate("scrollTo(0, 700)")
    with (runs[0] / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(eval_row(200, "rl", 0.875)) + "\n")
    (runs[0] / "result.json").write_text('{"finished": true}')
    write_report(runs[0])
    page.clock.run_for(61_000)
    expect(page.get_by_text("87.5%")).to_be_attached()  # the new accuracy
    expect(page.locator("#question")).to_have_text("3+1=")
    assert page.get_by_label("Curves of RL by").input_value() == "prompts" and page.get_by_label("Step").input_value() == "1"
    assert page.locator("#count").text_content() == "3 of 6 rollouts" and page.get_by_role("searchbox").input_value() == "+1="
    assert page.locator("details").last.get_attribute("open") is not None and page.evaluate("scrollY") == 700
    expect(page.get_by_label("Load again every minute")).to_have_count(0)


def test_a_reader_can_keep_the_page_of_an_unfinished_run(visit, runs):
    page = visit(write_report(runs[0]))
    page.evaluate("window.kept = true")
    page.get_by_label("Load again every minute").uncheck()
    page.clock.run_for(200_000)
    assert page.evaluate("window.kept")
    page.get_by_label("Load again every minute").check()
    page.clock.run_for(61_000)
    page.wait_for_function("window.kept === undefined")


@pytest.mark.parametrize("name", ["report", "compared", "comparison"])
def test_axe_finds_nothing_and_no_page_is_wider_than_the_screen(name, browser, runs, tmp_path):
    path = {
        "report": lambda: write_report(runs[0]),
        "compared": lambda: compared(runs),
        "comparison": lambda: comparison(tmp_path),
    }
    address = path[name]().as_uri()
    for scheme in ("light", "dark"):
        for size, viewport in SIZES.items():
            with browser.new_context(viewport=viewport, color_scheme=scheme, bypass_csp=True) as context:  # for axe's script
                page = context.new_page()
                page.goto(address)
                for details in page.locator("details").all():
                    details.evaluate("details => { details.open = true; }")
                assert findings(page) == [], (scheme, size)
                assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"], (scheme, size)


def test_a_run_without_rl_beside_others_has_charts_too(visit, runs, tmp_path):
    alone = write_run(tmp_path / "alone", [row for row in rows_of(5, 1) if row["stage"] == "sft"])
    write_page([runs[0], alone], tmp_path / "compared.html")
    page = visit(tmp_path / "compared.html")
    page.wait_for_selector("#figure-0 .main-svg")
    page.get_by_label("Curves of RL by").select_option("update")
    assert page.locator(".main-svg").count() > 4

