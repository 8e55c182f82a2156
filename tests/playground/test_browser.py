"""The page in a headless Chromium, with a server in this process whose steps block until a test releases them."""

import dataclasses
import io
import threading
import urllib.parse

import pytest
import uvicorn
from PIL import Image

from axe import findings
from igpo_jax.diffusion.unmasking import DecodeConfig
from igpo_jax.playground import server
from processes import CHROMIUM

sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")

SETTINGS = {"completion_length": 16, "block_length": 16, "steps": 16}
BEGIN_WITH = vars(DecodeConfig(**SETTINGS)) | {
    "seed": 0,
    "chat": False,
    "prompt": "Hello",
    "template": "The answer is [MASK:4] because",
}
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
MALICIOUS = "</script><script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\">"


class Gate:
    """Blocks each step until it is released; `open` releases all."""

    def __init__(self):
        self._steps, self._open = threading.Semaphore(0), False
        self.passed = []  # number of steps of each generation, in the order of their start

    def let_go(self, steps: int) -> None:
        self._steps.release(steps)

    def open(self) -> None:
        self._open = True
        self._steps.release(10_000)

    def wait(self, step, before, model):
        if before is None:
            self.passed.append(0)
        elif not self._open:
            self._steps.acquire(timeout=60)
        event = event_of(step, before, model)
        self.passed[-1] += before is not None
        return event


event_of = server.event_of


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        with playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]) as browser:
            yield browser


@pytest.fixture(scope="module")
def address(model):
    model = dataclasses.replace(model, origin={"path": "/somewhere/my-run", "stage": "rl", "step": 30})
    config = uvicorn.Config(
        server.application(model, BEGIN_WITH, "127.0.0.1", 600), port=0, log_level="warning", lifespan="off"
    )
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run)
    thread.start()
    while not running.started:
        assert thread.is_alive()
        threading.Event().wait(0.02)
    yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}/"
    running.should_exit = running.force_exit = True
    thread.join()


@pytest.fixture
def gate(monkeypatch):
    gate = Gate()
    monkeypatch.setattr(server, "event_of", gate.wait)
    yield gate
    gate.open()


@pytest.fixture
def visit(browser, address):
    """Opens the page as a new visitor; at the end, asserts that no page had an error or requested another server."""
    contexts, wrong = [], []

    def visit(viewport=DESKTOP, address=address):
        contexts.append(browser.new_context(viewport=viewport))
        ours = (address.partition("#")[0], "data:", "blob:")
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: message.type == "error" and wrong.append(message.text))
        page.on("request", lambda request: request.url.startswith(ours) or wrong.append(request.url))
        page.goto(address)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not wrong


def ask(page, **fields) -> None:
    expect(page.locator("body[data-ready]")).to_be_attached()
    for name, value in fields.items():
        page.locator(f"#{name}").fill(value)
    page.get_by_role("button", name="Generate").click()


def tokens(page) -> list[str]:
    return [text.replace("␣", " ") for text in page.locator("#panels .canvas .token").all_text_contents()]


def shows(page, text: str) -> None:
    expect(page.locator("#panels .status").first).to_contain_text(text, timeout=60_000)


@pytest.mark.slow
def test_a_template_is_filled_step_by_step_and_its_fixed_tokens_stay(visit, gate):
    page = visit()
    page.get_by_label("Fill in blanks").check()
    ask(page, template="The answer is [MASK:4] because")
    expect(page.locator("#panels .token.given").first).to_be_visible(timeout=60_000)
    canvas = tokens(page)
    blanks = [i for i, text in enumerate(canvas) if text == "▁"]
    assert (
        len(blanks) == 4
        and "".join(canvas[: blanks[0]]) == "The answer is "
        and "".join(canvas[blanks[-1] + 1 :]) == " because"
    )
    for step in range(1, 5):
        gate.let_go(1)
        expect(page.locator("#panels output")).to_have_text(f"{step} / {step}")
        assert [text for i, text in enumerate(tokens(page)) if i not in blanks] == [
            text for i, text in enumerate(canvas) if i not in blanks
        ]
        assert sum(tokens(page)[i] == "▁" for i in blanks) == 4 - step
    shows(page, "Done in")
    given = page.locator("#panels .token.given")
    assert given.count() == len(canvas) - 4
    assert given.first.evaluate("node => getComputedStyle(node).boxShadow").endswith("inset")  # the outline

    slider = page.get_by_role("slider")
    slider.focus()
    page.keyboard.press("Home")  # back to the initial canvas
    assert tokens(page) == canvas
    page.keyboard.press("ArrowRight")
    assert tokens(page).count("▁") == 3 and page.locator("#panels .token.fresh").count() == 1
    page.locator("#panels .token.fresh").focus()
    expect(page.locator(".inspector p")).to_contain_text("written in step 1, probability")
    assert page.locator(".inspector li").count() == 5
    page.keyboard.press("ArrowLeft")
    assert page.locator("#panels .token:focus").count() == 1


@pytest.mark.slow
def test_play_begins_again_and_ends_with_the_last_step(visit, gate):
    gate.open()
    page = visit()
    ask(page)
    shows(page, "Done in")
    final = tokens(page)
    page.get_by_role("button", name="Play").click()
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    expect(page.get_by_role("button", name="Play")).to_be_visible(timeout=20_000)
    expect(page.locator("#panels output")).to_have_text("16 / 16")
    assert tokens(page) == final


def test_two_settings_stand_side_by_side_with_the_same_seed(visit, gate):
    gate.open()
    page = visit()
    page.get_by_label("Two settings").check()
    ask(page, prompt="Hello", seed="5")
    expect(page.locator("#panels .status", has_text="Done in")).to_have_count(2, timeout=60_000)
    left, right = (page.locator("#panels .canvas").nth(i).locator(".token").all_text_contents() for i in (0, 1))
    assert left == right and "▁" not in left  # both panels have equal settings
    boxes = [page.locator("#panels .panel").nth(i).bounding_box() for i in (0, 1)]
    assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    assert page.locator("#panels .how").first.text_content().count("seed=5") == 1


@pytest.mark.slow
def test_a_malicious_prompt_stays_text_here_and_in_the_saved_page(visit, gate, tmp_path):
    gate.open()
    page = visit()
    page.get_by_label("Fill in blanks").check()
    ask(page, prompt=MALICIOUS, template=MALICIOUS + "[MASK:4]")
    shows(page, "Done in")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as page").click()
    download.value.save_as(tmp_path / "saved.html")
    canvas = tokens(page)
    saved = visit(address=(tmp_path / "saved.html").as_uri())
    expect(saved.locator("#panels .token").first).to_be_visible()
    assert tokens(saved) == canvas
    for where in (page, saved):
        assert where.title() == "Denoising playground"
        assert "my-run · rl, step 30 · " in where.locator("#facts").text_content()
        assert MALICIOUS in where.locator("#panels .prompt").text_content()
        assert where.locator("#panels img, #panels script").count() == 0
    saved.get_by_role("slider").focus()
    saved.keyboard.press("Home")
    assert tokens(saved).count("▁") == 4


def test_spaces_and_line_breaks_are_seen_and_spoken(visit):
    page = visit()
    texts = [" ", "  a ", "a b", "\n", "\t"]
    assert page.evaluate("texts => texts.map(visibleText)", texts) == ["␣", "␣␣a␣", "a b", "↵", "⇥"]
    assert page.evaluate("texts => texts.map(spoken)", texts[:4]) == ["space ", "  a ", "a b", "line break "]


@pytest.mark.slow
def test_compiling_is_told_apart_and_a_long_prompt_is_folded(visit, gate):
    gate.open()
    page = visit()
    page.locator("[name=temperature]").first.fill("0.123")  # a setting that no other test has
    prompt = "word " * 100
    ask(page, prompt=prompt)
    shows(page, "16 steps, after compiling new settings for")
    folded, button = page.locator("#panels .prompt"), page.get_by_role("button", name="Show the whole prompt")
    assert folded.text_content() == prompt and button.get_attribute("aria-expanded") == "false"
    height = folded.bounding_box()["height"]
    button.click()
    assert folded.bounding_box()["height"] > height
    page.get_by_role("button", name="Fold the prompt").click()
    assert folded.bounding_box()["height"] == height
    ask(page)
    shows(page, "Done in")
    assert page.locator("#panels .status").text_content().endswith("s, 16 steps")
    ask(page, prompt="word")
    shows(page, "Done in")
    assert page.locator("#panels .unfold:visible").count() == 0


def test_every_setting_is_on_the_page_and_says_its_key(visit):
    page = visit()
    expect(page.locator("body[data-ready]")).to_be_attached()
    titles = (
        page.locator("#settings fieldset")
        .first.locator("input, select")
        .evaluate_all("nodes => nodes.map((node) => [node.name, node.title, node.closest('label').title])")
    )
    assert {name for name, *_ in titles} == {field.name for field in dataclasses.fields(DecodeConfig)}
    assert all(title == label and f"{title}:".startswith(f"sampler.{name}:") for name, title, label in titles)


@pytest.mark.slow
def test_the_completion_can_be_copied(visit, gate):
    gate.open()
    page = visit()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    ask(page)
    shows(page, "Done in")
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    text = page.locator("#panels .text").text_content()
    assert text and page.evaluate("navigator.clipboard.readText()") == text
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    expect(page.get_by_role("button", name="Copy", exact=True)).to_be_visible()
    page.get_by_role("button", name="Copy").click()
    assert page.evaluate("getSelection().toString()").strip() == text.strip()


@pytest.mark.slow
def test_a_link_repeats_prompt_and_settings_once_generate_is_pressed(visit, gate):
    gate.open()
    page = visit()
    page.get_by_label("Fill in blanks").check()
    page.get_by_label("Two settings").check()
    page.locator("[name=temperature]").nth(0).fill("0.5")
    page.locator("[name=commit]").nth(1).select_option("threshold")
    page.locator("[name=threshold]").nth(1).fill("0.75")
    page.locator("[name=logits_eos_inf]").nth(1).evaluate("box => { box.checked = false; }")
    ask(page, prompt="a+b&c=#d", template="é [MASK:4] 1", seed="7")
    expect(page.locator("#panels .status", has_text="Done in")).to_have_count(2, timeout=60_000)
    again = visit(address=page.url)
    expect(again.locator("body[data-ready]")).to_be_attached()
    assert again.evaluate("link()") == "#" + urllib.parse.urlsplit(page.url).fragment
    assert again.locator("#nothing").text_content().startswith("The fields are filled from a link.")
    assert again.locator("#panels .panel").count() == 0 and len(gate.passed) == 2
    again.get_by_role("button", name="Generate").click()
    expect(again.locator("#panels .status", has_text="Done in")).to_have_count(2, timeout=60_000)
    assert tokens(again) == tokens(page)


def test_a_hostile_link_only_fills_fields(visit, gate, address):
    values = {"mode": MALICIOUS, "prompt": MALICIOUS, "steps": "1e999", "block_length": "x", "seed": "-1", "temperature": "0.5"}
    values |= {
        "remasking": MALICIOUS,
        "cache": "dual",
        "chat": "true",
        "__proto__": "x",
        "nothing": MALICIOUS,
        "threshold": "7",
    }
    page = visit(address=f"{address}#{urllib.parse.urlencode(values)}")
    expect(page.locator("body[data-ready]")).to_be_attached()
    found = page.evaluate("Object.fromEntries(new URLSearchParams(link().slice(1)))")
    kept = {name: str(BEGIN_WITH[name]) for name in ("steps", "block_length", "seed", "remasking", "threshold")}
    assert found.items() >= ({"mode": "prompt", "prompt": MALICIOUS, "cache": "dual", "temperature": "0.5"} | kept).items()
    assert not found.keys() & {"nothing", "__proto__"} and page.title() == "Denoising playground"
    page.goto(f"{address}#%E0%A4%A&=&&prompt=%00%FF&mode=template")  # the same page
    expect(page.locator("#form[data-mode=template]")).to_be_attached()
    assert page.locator("#panels .panel").count() == 0 and not gate.passed


def test_the_gif_has_a_picture_for_every_step(visit, gate):
    gate.open()
    page = visit()
    ask(page)
    shows(page, "Done in")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as GIF").click()
    with open(download.value.path(), "rb") as file:
        assert Image.open(io.BytesIO(file.read())).n_frames == 17


@pytest.mark.slow
def test_twenty_at_once_are_queued_with_their_place_shown_and_all_are_served(visit, gate, monkeypatch):
    monkeypatch.setattr(server, "OF_ONE_CLIENT", 20)
    pages = [visit() for _ in range(10)]
    for page in pages:
        page.get_by_label("Two settings").check()
        ask(page)
        if page is pages[0]:  # on a busy machine, another page's request could overtake it, and one of its two the other
            expect(page.locator("#panels .canvas .token")).to_have_count(16, timeout=60_000)
    places = []
    for page in pages:
        expect(page.locator("#panels .status", has_text="Asking")).to_have_count(0)
        expect(page.locator("#panels .canvas .token")).to_have_count(16 if page is pages[0] else 0)
        waiting = page.locator("#panels .status", has_text="ahead")
        expect(waiting).to_have_count(1 if page is pages[0] else 2, timeout=60_000)
        places += [text for text in page.locator("#panels .status").all_text_contents() if "ahead" in text]
    assert sorted(places) == sorted(f"Waiting, {ahead} ahead" for ahead in range(1, 20))
    gate.open()
    for page in pages:
        expect(page.locator("#panels .status", has_text="Done in")).to_have_count(2, timeout=60_000)
    assert gate.passed == [16] * 20


@pytest.mark.slow
@pytest.mark.parametrize("leave", ["close", "stop"])
def test_whoever_leaves_is_not_worked_for(visit, gate, leave):
    page, next_one = visit(), visit()
    ask(page)
    gate.let_go(2)
    expect(page.locator("#panels output")).to_have_text("2 / 2", timeout=60_000)
    ask(next_one)
    shows(next_one, "Waiting, 1 ahead")
    if leave == "close":
        page.close()
    else:
        page.get_by_role("button", name="Stop").click()
        shows(page, "Stopped after 2 steps")
    next_one.wait_for_timeout(500)  # until the server notices the closed connection
    gate.open()
    shows(next_one, "Done in")
    assert gate.passed == [3, 16]  # only the step in progress finished


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overlaps_and_everything_is_readable(visit, gate, viewport, scheme):
    gate.open()
    page = visit(viewport)
    page.emulate_media(color_scheme=scheme)
    page.get_by_label("Two settings").check()
    for summary in page.locator("summary:visible").all():
        summary.click()
    ask(page, prompt="A long word: " + "x" * 300)
    expect(page.locator("#panels .status", has_text="Done in")).to_have_count(2, timeout=60_000)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.evaluate(OVERLAPS) == []
    assert page.evaluate(FAINT) == []


@pytest.mark.slow
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(visit, gate, viewport, scheme):
    """On the empty page, and on one with results, open details and errors."""
    gate.open()
    page = visit(viewport)
    page.emulate_media(color_scheme=scheme)
    expect(page.locator("body[data-ready]")).to_be_attached()
    assert findings(page) == []
    page.get_by_label("Two settings").check()
    for summary in page.locator("summary:visible").all():
        summary.click()
    ask(page, prompt="a b " * 100)
    expect(page.locator("#panels .status", has_text="Done in")).to_have_count(2, timeout=60_000)
    page.evaluate("panels[1].say('This is an error.', true)")
    page.locator("#panels .token").first.focus()
    assert findings(page) == []
    page.get_by_label("by confidence").check()
    assert findings(page) == []
    page.evaluate("element('go').textContent = ''")
    assert [finding.partition(":")[0] for finding in findings(page)] == ["button-name"]


@pytest.mark.slow
def test_everything_can_be_done_with_the_keyboard(visit, gate):
    gate.open()
    page = visit()
    expect(page.locator("body[data-ready]")).to_be_attached()
    page.locator("#prompt").focus()
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.locator("#go:focus").count():
            break
    page.keyboard.press("Enter")
    shows(page, "Done in")
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.className + ' ' + document.activeElement.id"))
    assert any("token" in name for name in reached) and any("play" in name for name in reached)
    assert any("gif" in name for name in reached) and any("export" in name for name in reached)


# Returns pairs of controls and texts that overlap by more than a pixel, unless one contains the other.
OVERLAPS = """() => {
  const nodes = [...document.querySelectorAll("button, input, select, textarea, h1, h2, summary, output, p, legend, li")]
    .filter((node) => node.getClientRects().length);
  const wrong = [];
  nodes.forEach((a, i) => nodes.slice(i + 1).forEach((b) => {
    if (a.contains(b) || b.contains(a)) return;
    const [p, q] = [a.getBoundingClientRect(), b.getBoundingClientRect()];
    const across = Math.min(p.right, q.right) - Math.max(p.left, q.left);
    const down = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
    if (across > 1 && down > 1) wrong.push([a.outerHTML.slice(0, 80), b.outerHTML.slice(0, 80)]);
  }));
  return wrong;
}"""

# Returns texts smaller than 12 pixels, or with a contrast to their background below 4.5 to 1 (WCAG 2.2, 1.4.3). Ignores
# blanks and disabled controls.
FAINT = """() => {
  const parts = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (color) => {
    const [r, g, b] = parts(color).map((c) => c / 255).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const color = getComputedStyle(node).backgroundColor;
      if ((parts(color)[3] ?? 1) > 0) return color;
    }
  };
  const wrong = [];
  for (const node of document.querySelectorAll("body *")) {
    const text = [...node.childNodes].filter((child) => child.nodeType === 3).map((child) => child.textContent).join("").trim();
    if (!text || text === "▁" || !node.getClientRects().length || node.disabled) continue;
    if (["SCRIPT", "STYLE", "TEMPLATE", "OPTION"].includes(node.tagName)) continue;
    const style = getComputedStyle(node), [a, b] = [light(style.color), light(behind(node))].sort((a, b) => b - a);
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < 4.5 || parseFloat(style.fontSize) < 12) wrong.push([text.slice(0, 40), contrast, style.fontSize]);
  }
  return wrong;
}"""
