"""Parts shared by HTML pages: templates, styles and scripts from the files beside this module, and pieces of markup."""

import html
import json
import math
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any


def _read(name: str) -> str:
    return (pathlib.Path(__file__).parent / name).read_text(encoding="utf-8")


# The Content-Security-Policy in page.html guarantees that the page loads nothing from elsewhere.
PAGE, BROWSER = _read("page.html"), _read("rollouts.html")
STYLE, SHARED = _read("style.css"), _read("shared.js")
SCRIPT = SHARED + _read("canvas.js")
COLORS = ("#3b6fb6", "#c8453b", "#e0a23b", "#2a9d6f", "#8e6bbf", "#e8710a", "#4aa3a2", "#b0578d", "#6b7a3a", "#8a94a3")
BLUE, GREEN, ORANGE, RED, GREY = "#3b6fb6", "#2a9d6f", "#e8710a", "#c8453b", "#8a94a3"

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
    """Returns Plotly's JavaScript.

    Raises:
        ImportError: plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise ImportError('plotly is missing; pip install -e ".[report]"') from None
    return get_plotlyjs()


def document(
    figures: list[dict[str, Any]], plotly: str, rollouts: dict[str, Any] | None = None, style: str = "", **parts: str
) -> str:
    """Returns the page as one HTML file that loads nothing.

    Args:
        figures: Plotly's; number i fills the element `figure-i`.
        plotly: see `plotly_source`.
        rollouts: see `report.page.embedded_rollouts`.
        style: CSS added to the report's.
        parts: HTML for the other fields of page.html: title, header, summary, sections, settings.
    """
    data = embed({"figures": figures, "rollouts": rollouts})
    return PAGE.format(style=STYLE + style, plotly=plotly if figures else "", data=data, script=SCRIPT, **parts)


def heading(kind: str, title: str, facts: Iterable[str] = ()) -> str:
    items = "".join(f"<li>{html.escape(fact)}</li>" for fact in facts)
    facts_list = f'<ul class="facts">{items}</ul>' if items else ""
    return f'<p class="kind">{kind}</p><h1>{html.escape(title)}</h1>{facts_list}'


def cards(contents: Iterable[tuple[str, str, str]]) -> str:
    """Returns a list of cards as HTML, given (label, value, remark) of each."""
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
    """Returns JSON that cannot end or break the script element around it; NaN and infinity become null."""
    text = json.dumps(_without_nan(content), ensure_ascii=False, allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _without_nan(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
