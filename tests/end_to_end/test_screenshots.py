"""python docs/screenshots.py: the pictures of the documentation."""

import pathlib
import runpy

import pytest
from PIL import Image

from processes import CHROMIUM

sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")]


def test_the_report_is_pictured_and_a_wrong_answer_is_not(finished, tmp_path):
    script = runpy.run_path(str(pathlib.Path(__file__).parents[2] / "docs" / "screenshots.py"))
    with sync_api.sync_playwright() as playwright, script["playground"](finished) as address:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        script["picture_report"](browser, finished, tmp_path)
        with pytest.raises(SystemExit, match="^error: the model of this run completes .*, which is wrong"):
            script["picture_playground"](browser, script["PHONE"], address, tmp_path / "playground.png")
    (file,) = tmp_path.iterdir()
    image = Image.open(file)
    assert file.name == "report.png" and image.size == (2480, 1480) and len(set(image.convert("L").tobytes())) > 50
