"""The report's HTML, CSS and JavaScript, read from the files beside this module, and the colors of its figures."""

import pathlib


def _read(name: str) -> str:
    return (pathlib.Path(__file__).parent / name).read_text(encoding="utf-8")


# The Content-Security-Policy in page.html guarantees that the page loads nothing from elsewhere.
PAGE, BROWSER = _read("page.html"), _read("rollouts.html")
STYLE, SCRIPT = _read("style.css"), _read("canvas.js")
COLORS = ("#3b6fb6", "#c8453b", "#e0a23b", "#2a9d6f", "#8e6bbf", "#e8710a", "#4aa3a2", "#b0578d", "#6b7a3a", "#8a94a3")
