"""Style sheets, scripts, colors and Plotly options that HTML pages share."""

from collections.abc import Sequence
from typing import Any

from igpo_jax.report.templates import embed, read_source, render_page
from igpo_jax.runtime.installation import install_command

STYLE, SHARED, CHARTS, CANVAS, REFRESH = (
    read_source(f"report/{name}") for name in ("style.css", "shared.js", "charts.js", "canvas.js", "refresh.js")
)
# Colors of lines, which have a contrast of at least 3 to the light and to the dark background of charts.
BLUE, GREEN, ORANGE, RED, GREY, YELLOW, PURPLE = "#3b6fb6", "#2a9d6f", "#e8710a", "#c8453b", "#8a94a3", "#b8860b", "#8e6bbf"
COLORS = (BLUE, RED, YELLOW, GREEN, PURPLE, ORANGE, "#2f8f8e", "#b0578d", "#6b7a3a", GREY)
SHADES = ("#449b9a", "#2f8f8e", "#3f83b8", "#4a7fd0", "#6f63d2", "#9a50c8", "#c04898", "#d04a5a")
# A class c-rrggbb for each color, because the Content-Security-Policy of the pages forbids style attributes.
PALETTE = "".join(f".c-{color[1:]} {{ color: {color}; }}\n" for color in (*COLORS, *SHADES))

# Parts of a Plotly figure's layout; charts.js adds the colors of the light or the dark page.
AXIS = {"automargin": True}
LAYOUT = {
    "font": {"family": "Inter, system-ui, sans-serif", "size": 12},
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
    template: str,
    figures: Sequence[dict[str, Any]],
    plotly: str,
    page_data: dict[str, Any] | None = None,
    style: str = "",
    **values: Any,
) -> str:
    """Returns a page as one HTML file that loads no other files. `template` is a template that extends report/page.html, and
    `values` are its variables. Plotly draws figure number i of `figures` into the HTML element with the id `figure-i`. `plotly`
    is Plotly's JavaScript, `page_data` are further data for the page's scripts, and `style` is additional CSS."""
    scripts = [*([plotly] if figures else []), SHARED + CHARTS + CANVAS + REFRESH]
    data = embed({"figures": figures, **(page_data or {})})
    return render_page(template, [STYLE, PALETTE, style], scripts, data=data, **values)
