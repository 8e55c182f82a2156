"""python docs/screenshots.py RUN [--output=docs]

Makes the pictures of the documentation from the folder of a run of the task arithmetic: report.png, playground-desktop.png and
playground-phone.png. Needs the extras test and report, and a Chromium.
"""

import argparse
import contextlib
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.parse
from collections.abc import Iterator

from playwright.sync_api import Browser, Page, sync_playwright

PROMPT, TEMPLATE, ANSWER = "21+10+01+01+01+05+01=", "[MASK:10] 34[MASK:9]", "# 31 32 33 34 39 40=40"
# Viewports in CSS pixels; a README is about 830 wide, and a picture in it at most 500 high.
REPORT, DESKTOP, PHONE = {"width": 1240, "height": 740}, {"width": 1100, "height": 830}, {"width": 390, "height": 774}

# Leaves the heading, the summary, and, side by side, the curve of the accuracy and a rollout with hints.
ARRANGE = """() => {
  const element = (id) => document.getElementById(id), row = document.createElement("div"), panel = document.createElement("div");
  row.style.cssText = "display: grid; grid-template-columns: 2fr 3fr; gap: 14px; margin-top: 14px";
  const plot = element("figure-0"), figure = plot.closest("figure");
  panel.className = "panel";
  panel.append(element("rollout"));
  row.append(figure, panel);
  document.querySelector("main").replaceChildren(document.querySelector(".cards"), row);
  figure.querySelector("figcaption").style.flex = "none";
  Object.assign(plot.style, {flex: "1", height: "auto"});
  return Plotly.Plots.resize(plot);
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path(__file__).parent)
    options = parser.parse_args()
    with sync_playwright() as playwright, playground(options.run) as address:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        picture_report(browser, options.run, options.output)
        for name, viewport in (("playground-desktop.png", DESKTOP), ("playground-phone.png", PHONE)):
            picture_playground(browser, viewport, address, options.output / name)
        browser.close()


def opened(browser: Browser, viewport: dict[str, int], address: str) -> Page:
    page = browser.new_page(viewport=viewport, device_scale_factor=2, color_scheme="light", reduced_motion="reduce")
    page.goto(address)
    page.evaluate("document.fonts.ready")
    return page


def picture_report(browser: Browser, run: pathlib.Path, output: pathlib.Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "report.html")
        subprocess.run([sys.executable, "-m", "igpo_jax.report", run, f"--output={file}"], check=True)
        page = opened(browser, REPORT, file.as_uri())
        page.wait_for_selector("#figure-0 .main-svg")
        page.evaluate(ARRANGE)
        page.screenshot(path=output / "report.png")


@contextlib.contextmanager
def playground(run: pathlib.Path) -> Iterator[str]:
    """Context manager that serves the playground and yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "igpo_jax.playground", f"--model={run}", f"--port={port}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8") as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            if not address:
                sys.exit(1)  # it has printed the reason
            yield address
        finally:
            server.kill()


def picture_playground(browser: Browser, viewport: dict[str, int], address: str, file: pathlib.Path) -> None:
    fields = urllib.parse.urlencode({"mode": "template", "prompt": PROMPT, "template": TEMPLATE})
    page = opened(browser, viewport, f"{address}#{fields}")
    page.wait_for_selector("body[data-ready]")
    for _ in range(2):  # the first one compiles
        page.click("#go")
        page.locator("#panels .status", has_text="Done in").wait_for(timeout=120_000)
    found = page.locator("#panels .text").text_content()
    if found != ANSWER:
        sys.exit(f"error: the model of this run completes {TEMPLATE} as {found}, which is wrong; edit PROMPT in {__file__}")
    page.locator("#panels .token.fresh").hover()  # shows the likeliest tokens
    if viewport is PHONE:
        page.locator("#panels").evaluate("panels => panels.scrollIntoView()")
    page.screenshot(path=file)


if __name__ == "__main__":
    main()
