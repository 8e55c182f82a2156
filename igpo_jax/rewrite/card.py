"""Writes card.json and card.html. They contain the number of kept solutions, their lengths before and after rewriting, and the
number of tokens spent."""

import itertools
import json
import logging
import pathlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from igpo_jax.report.style import AXIS, BLUE, LAYOUT, ORANGE, document, plotly_source
from igpo_jax.report.templates import read_source
from igpo_jax.runtime.files import atomic_write
from igpo_jax.runtime.installation import command_igpo
from igpo_jax.runtime.statistics import percent

Rows = Sequence[dict[str, Any]]

BINS = 60
EXAMPLES = 4
EXAMPLE_CHARACTERS = 3000
NOTES = {
    True: "Rewritten solutions are kept. An answer is wrong if the grader does not find the known one.",
    False: "Solutions with the right answer are kept; shortened ones lost the model's thought before the solution.",
}


def make_card(outcomes: dict[str, int], kept: Rows, replies: Rows, unanswered: dict[str, str] | None) -> dict[str, Any]:
    """Returns the contents of card.json. `outcomes` is {outcome: number of problems}. `kept` is the list of entries in
    kept.jsonl, and `replies` is the list of entries in replies.jsonl. `unanswered` is {problem id: reason} for problems without
    a reply, or None if there is no endpoint."""
    before, after = (np.array([row[key] for row in kept], float) for key in ("original_tokens", "tokens"))
    lengths = {"before": before, "after": after}
    edges = np.linspace(0, max(1.0, before.max(initial=0), after.max(initial=0)), BINS + 1)
    tokens: dict[str, Any] = {name: _length_statistics(values) for name, values in lengths.items()}
    tokens["mean_shortening"] = float(np.mean(1 - after / before)) if kept else None
    tokens["total_shortening"] = float(1 - after.sum() / before.sum()) if kept else None
    histogram = {name: np.histogram(values, edges)[0].tolist() for name, values in lengths.items()}
    card = {"problems": sum(outcomes.values()), "kept": len(kept), "outcomes": outcomes, "tokens": tokens}
    card["histogram"] = {"edges": edges.tolist(), **histogram}
    if unanswered is not None:
        cost = {"replies": len(replies), "attempts": sum(reply["attempts"] for reply in replies)}
        for key in ("prompt_tokens", "completion_tokens"):
            cost[key] = sum(reply[key] or 0 for reply in replies)
        card["cost"] = cost | {"replies_without_count": sum(reply["prompt_tokens"] is None for reply in replies)}
        common = dict(Counter(unanswered.values()).most_common(10))
        rest = len(unanswered) - sum(common.values())
        card["unanswered"] = common | ({"other reasons": rest} if rest else {})
    return card


def _length_statistics(lengths: np.ndarray) -> dict[str, float] | None:
    if not len(lengths):
        return None
    median, p95, longest = np.percentile(lengths, [50, 95, 100]).tolist()
    return {"mean": float(lengths.mean()), "median": median, "p95": p95, "max": longest, "total": int(lengths.sum())}


def card_lines(card: dict[str, Any], folder: str) -> list[str]:
    """Returns the main numbers of card.json as lines of text. `folder` is the folder of the card."""
    outcomes = ", ".join(f"{name} {number:,}" for name, number in card["outcomes"].items())
    before, after = (card["tokens"][when]["mean"] for when in ("before", "after"))
    lines = [f"kept {card['kept']:,} of {card['problems']:,} solutions ({outcomes})"]
    lines.append(f"mean tokens: {before:.0f} -> {after:.0f} ({percent(card['tokens']['total_shortening'])} fewer in all)")
    if cost := card.get("cost"):
        spent = f"{cost['prompt_tokens']:,} prompt tokens, {cost['completion_tokens']:,} completion tokens"
        lines.append(f"replies: {cost['replies']:,} ({spent}); without a reply: {sum(card['unanswered'].values()):,}")
    lines.append(f"solutions: {folder}/kept.jsonl; examples and lengths: {folder}/card.html")
    return [*lines, f"next: {command_igpo()} train --config=sft_math.py --config.task.sft=jsonl:{folder}/kept.jsonl"]


def write_card(folder: pathlib.Path, card: dict[str, Any], examples: Sequence[tuple[str, str, str]]) -> None:
    """Writes card.json and card.html. The page card.html loads no other files. It shows at most `EXAMPLES` examples. Each
    example is (question, solution before rewriting, solution after rewriting)."""
    atomic_write(folder / "card.json", json.dumps(card, indent=2, ensure_ascii=False))
    settings = card["settings"]
    try:
        plotly, figures = plotly_source(), [_figure(card["histogram"])]
    except ImportError as error:
        logging.getLogger(__name__).warning("card.html has no plot: %s", error)
        plotly, figures = "", []
    author = f"by {settings['model']}" if settings["model"] else "filtered"
    shown = [examples[round(i)] for i in np.linspace(0, len(examples) - 1, min(EXAMPLES, len(examples)))]
    title = "Rewritten solutions"
    page = document(
        "rewrite/card.html",
        figures,
        plotly,
        style=read_source("rewrite/card.css"),
        title=title,
        kind="Data card",
        heading=title,
        facts=[author, *card["sources"], f"{settings['min_tokens']} to {settings['max_tokens']:,} tokens"],
        cards=_headline(card),
        has_plot=bool(figures),
        lines=[("before", BLUE, "solid"), ("after", ORANGE, "solid")],
        outcomes=card["outcomes"],
        note=NOTES["cost" in card],
        unanswered=card.get("unanswered"),
        examples=[[_cut(text) for text in example] for example in shown],
        settings=settings,
        numbers={name: value for name, value in card.items() if name not in ("settings", "histogram")},
    )
    atomic_write(folder / "card.html", page)


def _headline(card: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Returns the boxes with the main numbers at the top of the page. Each box is (label, value, remark)."""
    tokens, problems = card["tokens"], card["problems"]
    contents = [("Kept", f"{card['kept']:,}", f"of {problems:,} problems, {card['kept'] / max(problems, 1):.1%}")]
    if tokens["mean_shortening"] is not None:
        before, after = (tokens[when]["mean"] for when in ("before", "after"))
        mean, total = (f"{tokens[name]:.2%}" for name in ("mean_shortening", "total_shortening"))
        contents.append(("Mean shortening", mean, f"{total} of all tokens"))
        contents.append(("Mean length", f"{before:.1f} → {after:.1f}", "tokens of the solutions that are kept"))
    if "cost" in card:
        contents.append(("Wrong answers", f"{card['outcomes'].get('wrong answer', 0):,}", "rejected by the grader"))
        read, written = (card["cost"][name] for name in ("prompt_tokens", "completion_tokens"))
        contents.append(("Tokens spent", f"{read + written:,}", f"{read:,} read, {written:,} written, by the endpoint's count"))
    return contents


def _figure(histogram: dict[str, list[float]]) -> dict[str, Any]:
    """Returns a Plotly figure of the distribution of solution lengths. Bars show the lengths before rewriting, and a line shows
    the lengths after rewriting."""
    edges = histogram["edges"]
    x = [(begin + end) / 2 for begin, end in itertools.pairwise(edges)]
    marker, line = {"color": BLUE, "opacity": 0.4}, {"color": ORANGE, "width": 2, "shape": "hvh"}
    bars = {"type": "bar", "name": "before", "x": x, "y": histogram["before"], "width": edges[1] - edges[0], "marker": marker}
    steps = {"type": "scatter", "name": "after", "x": x, "y": histogram["after"], "line": line}
    x_axis, y_axis = ({**AXIS, "title": {"text": text}} for text in ("tokens", "solutions"))
    layout = {**LAYOUT, "bargap": 0, "xaxis": x_axis, "yaxis": {**y_axis, "rangemode": "tozero"}}
    return {"data": [bars, steps], "layout": layout}


def _cut(text: str) -> str:
    return text if len(text) <= EXAMPLE_CHARACTERS else f"{text[:EXAMPLE_CHARACTERS]} …"
