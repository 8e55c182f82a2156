"""Style sheets, scripts, colors and Plotly options that HTML pages share."""

from collections.abc import Sequence
from typing import Any

from igpo_jax.report.templates import embed, read_source, render_page
from igpo_jax.runtime.installation import install_command

STYLE, SHARED, CANVAS = (read_source(f"report/{name}") for name in ("style.css", "shared.js", "canvas.js"))
BLUE, GREEN, ORANGE, RED, GREY, YELLOW, PURPLE = "#3b6fb6", "#2a9d6f", "#e8710a", "#c8453b", "#8a94a3", "#e0a23b", "#8e6bbf"
COLORS = (BLUE, RED, YELLOW, GREEN, PURPLE, ORANGE, "#4aa3a2", "#b0578d", "#6b7a3a", GREY)
SHADES = ("#c6dbef", "#a6c8e4", "#84b3da", "#629dcd", "#4586bd", "#2f6ea8", "#1f568c", "#123f6d")
# A class c-rrggbb for each color, because the Content-Security-Policy of the pages forbids style attributes.
PALETTE = "".join(f".c-{color[1:]} {{ color: {color}; }}\n" for color in (*COLORS, *SHADES))

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
    template: str,
    figures: Sequence[dict[str, Any]],
    plotly: str,
    rollouts: dict[str, Any] | None = None,
    style: str = "",
    **values: Any,
) -> str:
    """Returns a page as one HTML file that loads no other files. `template` is a template that extends report/page.html, and
    `values` are its variables. Plotly draws figure number i of `figures` into the HTML element with the id `figure-i`. `plotly`
    is Plotly's JavaScript, `rollouts` is the result of `report.page.embedded_rollouts`, and `style` is additional CSS."""
    scripts = [*([plotly] if figures else []), SHARED + CANVAS]
    data = embed({"figures": figures, "rollouts": rollouts})
    return render_page(template, [STYLE, PALETTE, style], scripts, data=data, **values)
