"""Parts shared by HTML pages: templates, styles and scripts from the files beside this module, and functions that make HTML."""

import html
import json
import math
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from igpo_jax.runtime.installation import install_command

# The Content-Security-Policy in page.html guarantees that the page loads nothing from elsewhere.
_FILES = ("page.html", "rollouts.html", "style.css", "shared.js", "canvas.js")
PAGE, BROWSER, STYLE, SHARED, CANVAS = (pathlib.Path(__file__).with_name(name).read_text(encoding="utf-8") for name in _FILES)
BLUE, GREEN, ORANGE, RED, GREY, YELLOW, PURPLE = "#3b6fb6", "#2a9d6f", "#e8710a", "#c8453b", "#8a94a3", "#e0a23b", "#8e6bbf"
COLORS = (BLUE, RED, YELLOW, GREEN, PURPLE, ORANGE, "#4aa3a2", "#b0578d", "#6b7a3a", GREY)

# Parts of a Plotly figure's layout
AXIS = {"gridcolor": "#e9edf2", "zerolinecolor": "#d4dae2", "linecolor": "#d4dae2", "automargin": True}
LAYOUT = {
    "font": {"family": "Inter, system-ui, sans-serif", "size": 12, "color": "#3c4654"},
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "margin": {"l": 44, "r": 12, "t": 10, "b": 30},
    "hovermode": "x unified",
    "hoverlabel": {"namelength": -1},
    "showlegend": False,
}


def plotly_source() -> str:
    """Returns Plotly's JavaScript. Raises ImportError if plotly is not installed."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise ImportError(f"plotly is missing; {install_command('report')}") from None
    return get_plotlyjs()


def document(
    figures: list[dict[str, Any]], plotly: str, rollouts: dict[str, Any] | None = None, style: str = "", **parts: str
) -> str:
    """Returns a page as one HTML file that loads no other files. Plotly draws figure number i of `figures` into the HTML
    element with the id `figure-i`. `plotly` is Plotly's JavaScript, `rollouts` is the result of
    `report.page.embedded_rollouts`, and `style` is additional CSS. `parts` contains the HTML of the other fields of page.html:
    title, header, summary, sections and settings."""
    fields = {"style": STYLE + style, "plotly": plotly if figures else "", "script": SHARED + CANVAS}
    return PAGE.format(data=embed({"figures": figures, "rollouts": rollouts}), **fields, **parts)


def heading(kind: str, title: str, facts: Iterable[str] = ()) -> str:
    items = "".join(f"<li>{html.escape(fact)}</li>" for fact in facts)
    facts_list = f'<ul class="facts">{items}</ul>' if items else ""
    return f'<p class="kind">{kind}</p><h1>{html.escape(title)}</h1>{facts_list}'


def cards(contents: Iterable[tuple[str, str, str]]) -> str:
    """Returns an HTML list of cards, given the (label, value, remark) of each card."""
    texts = (map(html.escape, content) for content in contents)
    items = (f"<li><h2>{label}</h2><strong>{value}</strong><span>{remark}</span></li>" for label, value, remark in texts)
    return f'<ul class="cards">{"".join(items)}</ul>'


def table_rows(rows: Iterable[Sequence[str]], tag: str = "td") -> str:
    cells = ("".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) for row in rows)
    return "".join(f"<tr>{row}</tr>" for row in cells)


def details(title: str, content: Any) -> str:
    text = html.escape(json.dumps(content, indent=2, ensure_ascii=False))
    return f"<details><summary>{title}</summary><pre>{text}</pre></details>"


def embed(content: Any) -> str:
    """Returns `content` as JSON that cannot end or break an HTML script element around it. NaN and infinity become null."""
    text = json.dumps(_without_nan(content), ensure_ascii=False, allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _without_nan(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
