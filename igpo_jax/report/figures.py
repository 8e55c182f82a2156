"""Plotly figures of a report's panels, for one run or several.

With one run each series has its own color. With several each run has one color, and a panel's series differ in their dashes.
"""

import dataclasses
import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from igpo_jax.diffusion.corruption import HELDOUT_LEVELS, heldout_metric
from igpo_jax.report.style import AXIS, BLUE, COLORS, GREEN, GREY, LAYOUT, ORANGE, RED
from igpo_jax.runtime.statistics import wilson

Row = dict[str, Any]
Runs = dict[str, list[Row]]  # rows of metrics.jsonl by the run's name

PHASES = {"time/rollout": BLUE, "time/reward": GREEN, "time/score": "#8e6bbf", "time/update": "#e0a23b"}
DASHES = {"solid": "solid", "dot": "dotted", "dash": "dashed"}  # of a panel's series: Plotly's name -> CSS's
MOST_POINTS = 1000  # of a curve: more than a panel can show, but few enough for a fast browser


@dataclasses.dataclass(frozen=True)
class Series:
    key: str  # in metrics.jsonl
    name: str  # in the legend
    color: str = BLUE
    right: bool = False  # uses the axis on the right


@dataclasses.dataclass(frozen=True)
class Panel:
    title: str
    note: str
    series: tuple[Series, ...]
    stage: str = "rl"
    share: bool = False  # axis from 0 to 100%
    percent: bool = False
    noisy: bool = True  # smoothed
    logarithmic: bool = False


INPAINTING = (
    Panel(
        "Groups without a gradient",
        "All answers are wrong, before and after hints, or all are correct.",
        (
            Series("groups/all_wrong_before", "before hints", RED),
            Series("groups/all_wrong_after", "after hints", GREEN),
            Series("groups/all_correct", "all correct", GREY),
        ),
        share=True,
    ),
    Panel(
        "Rescue rate",
        "All-wrong groups with at least one correct hinted answer.",
        (
            Series("hint/rescue_rate", "rescued", GREEN),
            Series("hint/replaced", "answers swapped in, per group (right)", right=True),
        ),
        share=True,
    ),
    Panel(
        "Size of the hints",
        "Share of the solution's chunks that are given away, and tokens that are fixed in the canvas.",
        (Series("hint/ratio", "ratio", ORANGE), Series("hint/tokens", "tokens (right)", right=True)),
        percent=True,
    ),
    Panel(
        "Curriculum",
        "Center of the hint ratios, which moves to where half of the hinted answers are right.",
        (Series("hint/ratio_center", "center", ORANGE),),
        percent=True,
        noisy=False,
    ),
    Panel(
        "Diversity",
        "Different answers among the first tries of a group.",
        (Series("groups/distinct", "distinct"),),
        percent=True,
    ),
)
POLICY = (
    Panel("KL to the reference", "Per token.", (Series("policy/kl", "KL"),)),
    Panel("Entropy", "Of the predicted tokens, in nats.", (Series("policy/entropy", "entropy"),)),
    Panel(
        "Clip fraction", "Tokens whose ratio left the trust region.", (Series("policy/clip_fraction", "clipped"),), percent=True
    ),
    Panel("Policy loss", "Around 0 by construction; its trend says little.", (Series("policy/loss", "loss"),)),
    Panel("Gradient norm", "Before clipping.", (Series("policy/grad_norm", "norm"),)),
    Panel("Mean ratio", "New to old probability; stays near 1.", (Series("policy/ratio_mean", "ratio"),)),
)
SHADES = ("#c6dbef", "#a6c8e4", "#84b3da", "#629dcd", "#4586bd", "#2f6ea8", "#1f568c", "#123f6d")
HELDOUT_BY_SHARE = Panel(
    "Held-out loss",
    "Per masked token of held-out solutions, by the share that is masked.",
    tuple(
        Series(heldout_metric(share), f"{100 * share:g}%", color) for share, color in zip(HELDOUT_LEVELS, SHADES, strict=True)
    ),
    stage="sft",
    noisy=False,
    logarithmic=True,
)
HELDOUT_MEAN = dataclasses.replace(
    HELDOUT_BY_SHARE,
    note="Per masked token of held-out solutions, mean over eight shares that are masked.",
    series=(Series("heldout/loss", "loss"),),
)
SUPERVISED = (
    Panel("Loss", "Masked-diffusion loss on demonstrations.", (Series("sft/loss", "loss"),), "sft"),
    Panel("Gradient norm", "Before clipping.", (Series("sft/grad_norm", "norm"),), "sft"),
    Panel("Learning rate", "As scheduled.", (Series("sft/learning_rate", "learning rate"),), "sft", noisy=False),
)
REWARD = Panel(
    "Reward of the rollouts",
    "Mean over the sampled answers; those trained on include rescued ones.",
    (Series("reward/first_try", "first try"), Series("reward/final", "trained on", GREEN)),
    percent=True,
)
SECONDS = Panel("Seconds per iteration", "Rollout, scores and updates.", (Series("time/total", "seconds"),))
SPEED = (
    Panel(
        "Throughput",
        "Sampled tokens per second of rollout, both tries.",
        (Series("speed/tokens_per_second", "tokens per second"),),
    ),
    Panel("Network evaluations", "Per completion, both tries.", (Series("sampler/evaluations", "evaluations"),)),
    Panel(
        "Error of the cached sampler",
        "KL of the exact and the cached distribution of a token, in nats; where rollouts were exact (right).",
        (Series("sampler/kl", "KL", ORANGE), Series("sampler/exact", "exact (right)", GREY, right=True)),
        noisy=False,
    ),
)


def sections(runs: Runs, browser: str) -> tuple[str, list[Row]]:
    """Returns the HTML of all sections and the figures for their panels, in order.

    Args:
        browser: HTML inserted after the section on inpainting.
    """
    figures: list[Row] = []
    parts: list[str] = []

    def section(title: str, panels: list[tuple[str, str, Row | None]]) -> None:
        cells = []
        for name, note, figure in panels:
            if figure:
                cells.append(
                    f"<figure><figcaption><h3>{name}</h3><p>{note}</p></figcaption>{_legend(figure)}"
                    f'<div id="figure-{len(figures)}" class="plot"></div></figure>'
                )
                figures.append(figure)
        if cells:
            columns = 2 if len(cells) in (1, 2, 4) else 3
            parts.append(f'<section><h2>{title}</h2><div class="grid columns-{columns}">{"".join(cells)}</div></section>')

    def draw(*panels: Panel) -> list[tuple[str, str, Row | None]]:
        return [(panel.title, panel.note, _figure(runs, panel)) for panel in panels]

    accuracy = ("Accuracy", "On held-out problems; bars are 95% intervals.", _accuracy_figure(runs))
    alone = next(iter(runs.values())) if len(runs) == 1 else None
    time = [("Seconds per iteration", "Where the wall time goes.", _phases_figure(alone))] if alone else draw(SECONDS)
    section("Learning", [accuracy, *draw(REWARD)])
    section("Inpainting", draw(*INPAINTING))
    parts.append(browser)
    section("Policy", draw(*POLICY))
    section("Supervised stage", draw(HELDOUT_BY_SHARE if alone else HELDOUT_MEAN, *SUPERVISED))
    section("Speed", [*time, *draw(*SPEED)])
    return "".join(parts), figures


def smooth(values: np.ndarray) -> np.ndarray:
    """Returns the centered rolling mean of [n] over about n / 12 values, fewer at the ends."""
    half = len(values) // 24
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    begin, end = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (total[end] - total[begin]) / (end - begin)


def stage_rows(rows: list[Row], stage: str, key: str) -> list[Row]:
    """Returns the stage's rows in which the metric is a finite number."""
    return [row for row in rows if row["stage"] == stage and _finite(row.get(key))]


def evaluations(rows: list[Row]) -> list[Row]:
    return [row for row in rows if _finite(row.get("eval/accuracy"))]


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f}%"


def _figure(runs: Runs, panel: Panel) -> Row | None:
    """Returns smoothed curves, for one run over the faint raw values; None without data."""
    traces, several = [], len(runs) > 1
    for number, (run, rows) in enumerate(runs.items()):
        for series, dash in zip(panel.series, DASHES if several else [None] * len(panel.series), strict=False):
            x, y = _curve(rows, panel.stage, series.key)
            if not len(x):
                continue
            axis = {"yaxis": "y2"} if series.right else {}
            line = {"color": COLORS[number] if several else series.color, "width": 1}
            smoothed = panel.noisy and len(x) >= 24
            if smoothed and not several:
                raw = {"line": line, "opacity": 0.28, "hoverinfo": "skip"}
                traces.append({**_trace(x, y), **raw, **axis})
            # Plotly reads a few tags in names.
            name = f"{html.escape(run)}: {series.name}" if several else series.name
            line = {**line, "width": 2.2} | ({"dash": dash} if several else {})
            curve = {"name": name, "legendgroup": series.name, "line": line}
            traces.append({**_trace(x, smooth(y) if smoothed else y), **curve, **axis})
    if not traces:
        return None
    layout = _layout()
    if panel.share or panel.percent:
        layout["yaxis"] |= {"tickformat": ".3~p" if panel.percent else ".0%", "rangemode": "tozero"}
    if panel.logarithmic:
        layout["yaxis"] |= {"type": "log", "dtick": "D1"}
    if panel.share:
        layout["yaxis"] |= {"range": [0, 1.03]}
    if any("yaxis" in trace for trace in traces):
        right = {"overlaying": "y", "side": "right", "showgrid": False, "rangemode": "tozero"}
        layout["yaxis2"] = {**_layout()["yaxis"], **right, "tickmode": "auto"}
    return {"data": traces, "layout": layout}


def _accuracy_figure(runs: Runs) -> Row | None:
    """Returns the evaluations of both stages on one axis; for one run with the start of RL marked."""
    traces = []
    for color, (run, rows) in zip(COLORS, runs.items(), strict=False):
        evals = evaluations(rows)
        if not evals:
            continue
        accuracy = np.array([row["eval/accuracy"] for row in evals])
        trace = {
            **_trace([row["step"] for row in evals], accuracy),
            "mode": "lines+markers",
            "name": html.escape(run) if len(runs) > 1 else "accuracy",
            "legendgroup": "accuracy",
            "line": {"color": color, "width": 2.2},
            "marker": {"size": 6, "color": color},
        }
        if len(evals) <= MOST_POINTS and all(row.get("eval/problems") for row in evals):
            intervals = np.array([wilson(row["eval/accuracy"], row["eval/problems"]) for row in evals])
            trace["error_y"] = {
                "type": "data",
                "symmetric": False,
                "array": np.maximum(intervals[:, 1] - accuracy, 0).tolist(),
                "arrayminus": np.maximum(accuracy - intervals[:, 0], 0).tolist(),
                "color": f"{color}73",
                "thickness": 1.2,
                "width": 3,
            }
        traces.append(trace)
    if not traces:
        return None
    layout = _layout()
    layout["yaxis"] |= {"tickformat": ".0%", "rangemode": "tozero"}
    if len(runs) == 1:
        layout |= _start_of_rl(*runs.values())
    return {"data": traces, "layout": layout}


def _start_of_rl(rows: list[Row]) -> Row:
    """Returns the part of a layout that draws a line between the stages' evaluations."""
    evals = evaluations(rows)
    supervised = [row["step"] for row in rows if row["stage"] == "sft"]
    end = supervised[-1] if supervised else 0
    if not evals[0]["step"] < end <= evals[-1]["step"] or not any(row["stage"] == "rl" for row in rows):
        return {}
    line = {"type": "line", "x0": end, "x1": end, "y0": 0, "y1": 1, "line": {"color": GREY}}
    label = {"x": end, "y": 1, "yanchor": "top", "showarrow": False, "font": {"color": "#5b6675"}}
    labels = [{"text": "SFT", "xanchor": "right", "xshift": -6}, {"text": "RL", "xanchor": "left", "xshift": 6}]
    return {
        "shapes": [{**line, "yref": "paper", "layer": "below"}],
        "annotations": [{**label, **text, "yref": "paper"} for text in labels],
    }


def _phases_figure(rows: list[Row]) -> Row | None:
    curves = {key: _curve(rows, "rl", key) for key in PHASES}
    curves = {key: (x, y) for key, (x, y) in curves.items() if len(x)}
    total = sum(float(np.mean(y)) for _, y in curves.values())
    if not curves or not total:
        return None
    traces = [
        {
            **_trace(x, smooth(y)),
            "name": f"{key.removeprefix('time/')} {percent(float(np.mean(y)) / total, 0)}",
            "line": {"width": 0.5, "color": PHASES[key]},
            "stackgroup": "phases",
        }
        for key, (x, y) in curves.items()
    ]
    layout = _layout()
    layout["yaxis"] |= {"rangemode": "tozero"}
    return {"data": traces, "layout": layout}


def _legend(figure: Row) -> str:
    """Returns a legend to replace Plotly's own, which wraps too early and takes its space from the plot. Dashes tell the
    series of several runs apart; the top of the page shows the runs' colors."""
    keys = {trace.get("legendgroup", trace["name"]): trace["line"] for trace in figure["data"] if "name" in trace}
    styles = {
        name: f"{DASHES[line['dash']]} {GREY}" if "dash" in line else f"solid {line['color']}" for name, line in keys.items()
    }
    items = (f'<li><i style="border-top: 3px {style}"></i>{name}</li>' for name, style in styles.items())
    return f'<ul class="keys">{"".join(items)}</ul>' if len(keys) > 1 else ""


def _curve(rows: list[Row], stage: str, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns steps and values, float64[n] each, of the rows that have the key."""
    shown = stage_rows(rows, stage, key)
    return np.array([row["step"] for row in shown], float), np.array([row[key] for row in shown], float)


def _trace(x: Sequence[float] | np.ndarray, y: np.ndarray) -> Row:
    every = max(1, -(-len(x) // MOST_POINTS))

    def thinned(values: Iterable[float]) -> list[float]:
        return [float(f"{value:.6g}") for value in values]

    steps = [int(value) for value in thinned(x[::every])]
    return {"type": "scatter", "mode": "lines", "cliponaxis": False, "x": steps, "y": thinned(y[::every])}


def _layout() -> Row:
    title = {"text": "update", "font": {"size": 11}}
    axis = {**AXIS, "nticks": 6}
    return {**LAYOUT, "xaxis": {**axis, "showgrid": False, "hoverformat": ",d", "title": title}, "yaxis": {**axis}}


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
