"""Writes card.json and card.html of a rewrite: outcomes of the problems, lengths before and after, and cost."""

import html
import itertools
import json
import logging
import pathlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from igpo_jax.report.style import AXIS, BLUE, LAYOUT, ORANGE, cards, details, document, heading, plotly_source, table_rows
from igpo_jax.runtime.files import atomic_write

BINS = 60
EXAMPLES = 4
EXAMPLE_CHARACTERS = 3000
NOTES = {
    True: "Rewritten solutions are kept. An answer is wrong if the grader does not find the known one.",
    False: "Solutions with the right answer are kept; shortened ones lost the model's thought before the solution.",
}
STYLE = """
td, th { padding: 3px 24px 3px 0; text-align: left; }
td + td { text-align: right; font-variant-numeric: tabular-nums; }
.panel pre { font-size: 13px; }
.pair { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 28px; margin-top: 8px; }
.panel p { color: var(--soft); margin: 8px 0 0; font-size: 13px; }
.example + .example { margin-top: 10px; }
.example summary { font-weight: 400; }
"""


def make_card(
    outcomes: dict[str, int],
    kept: Sequence[dict[str, Any]],
    replies: Sequence[dict[str, Any]],
    unanswered: dict[str, str] | None,
) -> dict[str, Any]:
    """Returns the card's numbers.

    Args:
        outcomes: number of problems by outcome.
        kept: rows of kept.jsonl.
        replies: rows of replies.jsonl.
        unanswered: reason by problem id; None without an endpoint.
    """
    before, after = (np.array([row[key] for row in kept], float) for key in ("original_tokens", "tokens"))
    edges = np.linspace(0, max(1.0, before.max(initial=0), after.max(initial=0)), BINS + 1)
    card = {
        "problems": sum(outcomes.values()),
        "kept": len(kept),
        "outcomes": outcomes,
        "tokens": {
            "before": _length_statistics(before),
            "after": _length_statistics(after),
            "mean_shortening": float(np.mean(1 - after / before)) if len(before) else None,
            "total_shortening": float(1 - after.sum() / before.sum()) if len(before) else None,
        },
        "histogram": {
            "edges": edges.tolist(),
            "before": np.histogram(before, edges)[0].tolist(),
            "after": np.histogram(after, edges)[0].tolist(),
        },
    }
    if unanswered is not None:
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
    return card


def _length_statistics(lengths: np.ndarray) -> dict[str, float] | None:
    if not len(lengths):
        return None
    names = {"median": 50, "p95": 95, "max": 100}
    percentiles = {name: float(np.percentile(lengths, percent)) for name, percent in names.items()}
    return {"mean": float(lengths.mean()), **percentiles, "total": int(lengths.sum())}


def write_card(folder: pathlib.Path, card: dict[str, Any], examples: Sequence[tuple[str, str, str]]) -> None:
    """Writes card.json and card.html; the page loads nothing from elsewhere.

    Args:
        examples: (question, solution before, solution after); the page shows `EXAMPLES` of them.
    """
    atomic_write(folder / "card.json", json.dumps(card, indent=2, ensure_ascii=False))
    settings = card["settings"]
    try:
        plotly, figures, plot = plotly_source(), [_figure(card["histogram"])], '<div id="figure-0" class="plot"></div>'
    except ImportError as error:
        logging.getLogger(__name__).warning("card.html has no plot: %s", error)
        plotly, figures = "", []
        plot = '<p class="empty">Without plotly there is no plot; the numbers are in card.json.</p>'
    facts = [
        f"by {settings['model']}" if settings["model"] else "filtered",
        *card["sources"],
        f"{settings['min_tokens']} to {settings['max_tokens']:,} tokens",
    ]
    shown = [examples[round(i)] for i in np.linspace(0, len(examples) - 1, min(EXAMPLES, len(examples)))]
    keys = "".join(
        f'<li><i style="border-top: 3px solid {color}"></i>{name}</li>' for name, color in (("before", BLUE), ("after", ORANGE))
    )
    caption = "<figcaption><p>Tokens of the solutions that are kept, before and after.</p></figcaption>"
    pairs = "".join(map(_example, shown)) or '<p class="empty">Nothing is shorter.</p>'
    sections = [
        f'<section><h2>Lengths</h2><figure>{caption}<ul class="keys">{keys}</ul>{plot}</figure></section>',
        _counts("Outcomes", card["outcomes"], f"<p>{NOTES['cost' in card]}</p>"),
        _counts("Without a reply", card.get("unanswered")),
        f"<section><h2>Examples</h2>{pairs}</section>",
    ]
    numbers = {name: value for name, value in card.items() if name not in ("settings", "histogram")}
    page = document(
        figures,
        plotly,
        style=STYLE,
        title="Rewritten solutions",
        header=heading("Data card", "Rewritten solutions", facts),
        summary=cards(_headline(card)),
        sections="\n".join(sections),
        settings=details("Settings", settings) + details("All numbers", numbers),
    )
    atomic_write(folder / "card.html", page)


def _headline(card: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Returns (label, value, remark) of the cards."""
    tokens, problems = card["tokens"], card["problems"]
    contents = [("Kept", f"{card['kept']:,}", f"of {problems:,} problems, {card['kept'] / max(problems, 1):.1%}")]
    if tokens["mean_shortening"] is not None:
        before, after = (tokens[when]["mean"] for when in ("before", "after"))
        total = f"{tokens['total_shortening']:.2%} of all tokens"
        contents.append(("Mean shortening", f"{tokens['mean_shortening']:.2%}", total))
        contents.append(("Mean length", f"{before:.1f} → {after:.1f}", "tokens of the solutions that are kept"))
    if "cost" in card:
        contents.append(("Wrong answers", f"{card['outcomes'].get('wrong answer', 0):,}", "rejected by the grader"))
        read, written = (card["cost"][name] for name in ("prompt_tokens", "completion_tokens"))
        parts = f"{read:,} read, {written:,} written, by the endpoint's count"
        contents.append(("Tokens spent", f"{read + written:,}", parts))
    return contents


def _figure(histogram: dict[str, list[float]]) -> dict[str, Any]:
    """Returns Plotly's figure: bars before, a line after."""
    edges = histogram["edges"]
    x = [(begin + end) / 2 for begin, end in itertools.pairwise(edges)]
    marker, line = {"color": BLUE, "opacity": 0.4}, {"color": ORANGE, "width": 2, "shape": "hvh"}
    axes = {
        "xaxis": {**AXIS, "title": {"text": "tokens"}},
        "yaxis": {**AXIS, "title": {"text": "solutions"}, "rangemode": "tozero"},
    }
    return {
        "data": [
            {"type": "bar", "name": "before", "x": x, "y": histogram["before"], "width": edges[1] - edges[0], "marker": marker},
            {"type": "scatter", "name": "after", "x": x, "y": histogram["after"], "line": line},
        ],
        "layout": {**LAYOUT, "bargap": 0, **axes},
    }


def _counts(title: str, numbers: dict[str, int] | None, note: str = "") -> str:
    """Returns a section with a table of numbers; "" without numbers."""
    rows = table_rows([name, f"{number:,}"] for name, number in (numbers or {}).items())
    return f'<section><h2>{title}</h2><div class="panel"><table>{rows}</table>{note}</div></section>' if rows else ""


def _example(example: tuple[str, str, str]) -> str:
    shown = (text if len(text) <= EXAMPLE_CHARACTERS else f"{text[:EXAMPLE_CHARACTERS]} …" for text in example)
    question, before, after = map(html.escape, shown)
    pair = f"<div><h3>Before</h3><pre>{before}</pre></div><div><h3>After</h3><pre>{after}</pre></div>"
    return f'<details open class="example"><summary>{question}</summary><div class="pair">{pair}</div></details>'
