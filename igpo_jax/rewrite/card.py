"""card.json and card.html of a rewriting: what became of the problems, how long solutions were and are, its cost."""

import html
import itertools
import json
import logging
import pathlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from igpo_jax.report.style import STYLE
from igpo_jax.runtime.files import atomic_write

BINS = 60
EXAMPLES = 4
LONGEST = 3000  # characters of an example that are shown
NOTES = {
    True: "Kept are the rewritten ones. An answer is wrong where the grader does not find the one that is known.",
    False: "Kept are the shortened ones and, as they are, the unchanged ones, where the rules leave nothing out.",
}
BLUE, ORANGE = "#3b6fb6", "#e8710a"

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline';
 style-src 'unsafe-inline'; img-src data: blob:">
<link rel="icon" href="data:,">
<title>Rewritten solutions</title>
<style>{style}
td, th {{ padding: 3px 24px 3px 0; text-align: left; }}
td + td {{ text-align: right; font-variant-numeric: tabular-nums; }}
.panel pre {{ font-size: 13px; }}
.pair {{ display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 28px; margin-top: 8px; }}
.panel p {{ color: var(--soft); margin: 8px 0 0; font-size: 13px; }}
.example + .example {{ margin-top: 10px; }}
.example summary {{ font-weight: 400; }}
</style>
</head>
<body>
<header><p class="kind">Data card</p><h1>Rewritten solutions</h1><ul class="facts">{facts}</ul></header>
<main>
<ul class="cards">{cards}</ul>
<section><h2>Lengths</h2>
<figure><figcaption><p>Tokens of the solutions that are kept, before and after.</p></figcaption>
<ul class="keys"><li><i style="background:{before}"></i>before</li><li><i style="background:{after}"></i>after</li></ul>
{plot}</figure></section>
<section><h2>What became of the problems</h2><div class="panel">{outcomes}<p>{note}</p></div></section>
{unanswered}
{dropped}
<section><h2>Examples</h2>{examples}</section>
<section class="settings">{settings}</section>
</main>
<script>{script}</script>
</body>
</html>
"""


def make_card(
    *,
    outcomes: dict[str, int],
    kept: int,
    lengths: Sequence[tuple[int, int]],
    replies: Sequence[dict[str, Any]],
    unanswered: dict[str, str],
    dropped: Counter[str] | None,
) -> dict[str, Any]:
    """The numbers.

    Args:
        outcomes: problems by what became of them. lengths: tokens before and after of those that are kept.
        replies: of all problems that have one. unanswered: why, by the problem's id. dropped: sentences by
            rule; None where a model rewrites.
    """
    before, after = np.array(lengths, dtype=float).reshape(-1, 2).T
    edges = np.linspace(0, max(1.0, before.max(initial=0), after.max(initial=0)), BINS + 1)
    card = {
        "problems": sum(outcomes.values()),
        "kept": kept,
        "outcomes": outcomes,
        "tokens": {
            "before": _summary(before),
            "after": _summary(after),
            "mean_shortening": float(np.mean(1 - after / before)) if len(before) else None,
            "total_shortening": float(1 - after.sum() / before.sum()) if len(before) else None,
        },
        "histogram": {
            "edges": edges.tolist(),
            "before": np.histogram(before, edges)[0].tolist(),
            "after": np.histogram(after, edges)[0].tolist(),
        },
    }
    if dropped is None:
        card["cost"] = {
            "replies": len(replies),
            "attempts": sum(reply["attempts"] for reply in replies),
            "prompt_tokens": sum(reply["prompt_tokens"] or 0 for reply in replies),
            "completion_tokens": sum(reply["completion_tokens"] or 0 for reply in replies),
            "replies_without_count": sum(reply["prompt_tokens"] is None for reply in replies),
        }
        common = dict(Counter(unanswered.values()).most_common(10))
        rest = len(unanswered) - sum(common.values())
        card["unanswered"] = common | ({"other reasons": rest} if rest else {})
    else:
        card["left_out"] = dict(dropped)
    return card


def write_card(folder: pathlib.Path, card: dict[str, Any], examples: Sequence[tuple[str, str, str]]) -> None:
    """Writes card.json, and card.html, which loads nothing from elsewhere.

    Args:
        examples: question, solution before and after, of which a few are shown.
    """
    atomic_write(folder / "card.json", json.dumps(card, indent=2, ensure_ascii=False))
    plot, script = _plot(card["histogram"])
    rewriter = card["settings"]["model"] or "fixed rules"
    facts = [
        f"by {rewriter}",
        *card["sources"],
        f"{card['settings']['min_tokens']} to {card['settings']['max_tokens']:,} tokens",
    ]
    shown = [examples[round(i)] for i in np.linspace(0, len(examples) - 1, min(EXAMPLES, len(examples)))]
    numbers = {name: value for name, value in card.items() if name not in ("settings", "histogram")}
    document = PAGE.format(
        style=STYLE,
        facts="".join(f"<li>{html.escape(fact)}</li>" for fact in facts),
        cards="".join(map(_tile, _tiles(card))),
        before=BLUE,
        after=ORANGE,
        plot=plot,
        outcomes=_table(card["outcomes"]),
        note=NOTES["cost" in card],
        unanswered=_section("Without a reply", card.get("unanswered")),
        dropped=_section("Sentences left out", card.get("left_out")),
        examples="".join(map(_example, shown)) or '<p class="empty">Nothing is shorter.</p>',
        settings=_details("Settings", card["settings"]) + _details("All numbers", numbers),
        script=script,
    )
    atomic_write(folder / "card.html", document)


def _tiles(card: dict[str, Any]) -> list[tuple[str, str, str]]:
    tokens, problems = card["tokens"], card["problems"]
    tiles = [("Kept", f"{card['kept']:,}", f"of {problems:,} problems, {card['kept'] / max(problems, 1):.1%}")]
    if tokens["mean_shortening"] is not None:
        before, after = (tokens[when]["mean"] for when in ("before", "after"))
        total = f"{tokens['total_shortening']:.2%} of all tokens"
        tiles.append(("Mean shortening", f"{tokens['mean_shortening']:.2%}", total))
        tiles.append(("Mean length", f"{before:.1f} → {after:.1f}", "tokens of the solutions that are kept"))
    if "cost" in card:
        tiles.append(("Wrong answers", f"{card['outcomes'].get('wrong answer', 0):,}", "rejected by the grader"))
        cost = card["cost"]
        spent = cost["prompt_tokens"] + cost["completion_tokens"]
        parts = f"{cost['prompt_tokens']:,} read, {cost['completion_tokens']:,} written, by the endpoint's count"
        tiles.append(("Tokens spent", f"{spent:,}", parts))
    else:
        tiles.append(("Shortened", f"{card['outcomes'].get('shortened', 0):,}", "the other kept ones are as they were"))
    return tiles


def _summary(lengths: np.ndarray) -> dict[str, float] | None:
    if not len(lengths):
        return None
    names = {"median": 50, "p95": 95, "max": 100}
    percentiles = {name: float(np.percentile(lengths, percent)) for name, percent in names.items()}
    return {"mean": float(lengths.mean()), **percentiles, "total": int(lengths.sum())}


def _plot(histogram: dict[str, list[float]]) -> tuple[str, str]:
    """The element of the plot, and the script that fills it."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        logging.getLogger(__name__).warning('card.html has no plot: plotly is missing; pip install -e ".[report]"')
        return '<p class="empty">Without plotly there is no plot; the numbers are in card.json.</p>', ""
    edges = histogram["edges"]
    middles = [(begin + end) / 2 for begin, end in itertools.pairwise(edges)]
    width = edges[1] - edges[0]
    traces = [
        {
            "type": "bar",
            "name": "before",
            "y": histogram["before"],
            "width": width,
            "marker": {"color": BLUE, "opacity": 0.4},
        },
        {
            "type": "scatter",
            "name": "after",
            "y": histogram["after"],
            "line": {"color": ORANGE, "width": 2, "shape": "hvh"},
        },
    ]
    traces = [{**trace, "x": middles} for trace in traces]
    axis = {"gridcolor": "#e9edf2", "zerolinecolor": "#d4dae2", "linecolor": "#d4dae2", "automargin": True}
    layout = {
        "font": {"family": "Inter, system-ui, sans-serif", "size": 12, "color": "#3c4654"},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 44, "r": 12, "t": 10, "b": 30},
        "bargap": 0,
        "showlegend": False,
        "xaxis": {**axis, "title": {"text": "tokens"}},
        "yaxis": {**axis, "title": {"text": "solutions"}, "rangemode": "tozero"},
    }
    options = {"responsive": True, "displayModeBar": False}
    draw = f"Plotly.newPlot('lengths', {json.dumps(traces)}, {json.dumps(layout)}, {json.dumps(options)});"
    return '<div id="lengths" class="plot"></div>', f"{get_plotlyjs()}\n{draw}"


def _tile(tile: tuple[str, str, str]) -> str:
    label, value, remark = map(html.escape, tile)
    return f"<li><h2>{label}</h2><strong>{value}</strong><span>{remark}</span></li>"


def _table(numbers: dict[str, int]) -> str:
    rows = "".join(f"<tr><td>{html.escape(name)}</td><td>{number:,}</td></tr>" for name, number in numbers.items())
    return f"<table>{rows}</table>"


def _section(title: str, numbers: dict[str, int] | None) -> str:
    return f'<section><h2>{title}</h2><div class="panel">{_table(numbers)}</div></section>' if numbers else ""


def _example(example: tuple[str, str, str]) -> str:
    shown = (text if len(text) <= LONGEST else f"{text[:LONGEST]} …" for text in example)
    question, before, after = map(html.escape, shown)
    pair = f"<div><h3>Before</h3><pre>{before}</pre></div><div><h3>After</h3><pre>{after}</pre></div>"
    return f'<details open class="example"><summary>{question}</summary><div class="pair">{pair}</div></details>'


def _details(title: str, content: Any) -> str:
    text = html.escape(json.dumps(content, indent=2, ensure_ascii=False))
    return f"<details><summary>{title}</summary><pre>{text}</pre></details>"
