"""The curves of reports: which panels there are, and each as a figure of Plotly, for one run or for several.

Of one run every series has its colour; of several every run has one, and the series of a panel differ by their dashes.
"""

import dataclasses
import html
import math
from typing import Any

import numpy as np

from igpo_jax.diffusion.corruption import HELDOUT_LEVELS, heldout_metric
from igpo_jax.report.style import COLORS
from igpo_jax.runtime.statistics import wilson

Row = dict[str, Any]
Runs = dict[str, list[Row]]  # rows of metrics.jsonl by the run's name

BLUE, GREEN, ORANGE, RED, GREY = "#3b6fb6", "#2a9d6f", "#e8710a", "#c8453b", "#8a94a3"
PHASES = {"time/rollout": BLUE, "time/reward": GREEN, "time/score": "#8e6bbf", "time/update": "#e0a23b"}
DASHES = {"solid": "solid", "dot": "dotted", "dash": "dashed"}  # of a panel's series: Plotly's name and CSS's
MOST_POINTS = 1000  # of a curve; more than a panel shows, and the browser stays quick


@dataclasses.dataclass(frozen=True)
class Series:
    key: str  # in metrics.jsonl
    name: str  # in the legend
    color: str
    right: bool = False  # has the axis on the right


@dataclasses.dataclass(frozen=True)
class Panel:
    title: str
    note: str
    stage: str
    series: tuple[Series, ...]
    share: bool = False  # axis from 0 to 100%
    percent: bool = False
    noisy: bool = True  # smoothed
    logarithmic: bool = False


INPAINTING = (
    Panel(
        "Groups without a gradient",
        "All answers are wrong, before and after hints, or all are correct.",
        "rl",
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
        "rl",
        (
            Series("hint/rescue_rate", "rescued", GREEN),
            Series("hint/replaced", "answers swapped in, per group (right)", BLUE, right=True),
        ),
        share=True,
    ),
    Panel(
        "Size of the hints",
        "Share of the solution's chunks that are given away, and tokens that are fixed in the canvas.",
        "rl",
        (Series("hint/ratio", "ratio", ORANGE), Series("hint/tokens", "tokens (right)", BLUE, right=True)),
        percent=True,
    ),
    Panel(
        "Curriculum",
        "Centre of the hint ratios, which moves to where half of the hinted answers are right.",
        "rl",
        (Series("hint/ratio_center", "centre", ORANGE),),
        percent=True,
        noisy=False,
    ),
    Panel(
        "Diversity",
        "Different answers among the first tries of a group.",
        "rl",
        (Series("groups/distinct", "distinct", BLUE),),
        percent=True,
    ),
)
POLICY = (
    Panel("KL to the reference", "Per token.", "rl", (Series("policy/kl", "KL", BLUE),)),
    Panel("Entropy", "Of the predicted tokens, in nats.", "rl", (Series("policy/entropy", "entropy", BLUE),)),
    Panel(
        "Clip fraction",
        "Tokens whose ratio left the trust region.",
        "rl",
        (Series("policy/clip_fraction", "clipped", BLUE),),
        percent=True,
    ),
    Panel(
        "Policy loss",
        "Around 0 by construction; its trend says little.",
        "rl",
        (Series("policy/loss", "loss", BLUE),),
    ),
    Panel("Gradient norm", "Before clipping.", "rl", (Series("policy/grad_norm", "norm", BLUE),)),
    Panel(
        "Mean ratio",
        "New to old probability; stays near 1.",
        "rl",
        (Series("policy/ratio_mean", "ratio", BLUE),),
    ),
)
SHADES = ("#c6dbef", "#a6c8e4", "#84b3da", "#629dcd", "#4586bd", "#2f6ea8", "#1f568c", "#123f6d")
HELDOUT_BY_SHARE = Panel(
    "Held-out loss",
    "Per masked token of held-out solutions, by the share that is masked.",
    "sft",
    tuple(
        Series(heldout_metric(share), f"{100 * share:g}%", color) for share, color in zip(HELDOUT_LEVELS, SHADES, strict=True)
    ),
    noisy=False,
    logarithmic=True,
)
HELDOUT_MEAN = Panel(
    "Held-out loss",
    "Per masked token of held-out solutions, mean over eight shares that are masked.",
    "sft",
    (Series("heldout/loss", "loss", BLUE),),
    noisy=False,
    logarithmic=True,
)
SUPERVISED = (
    Panel("Loss", "Masked-diffusion loss on demonstrations.", "sft", (Series("sft/loss", "loss", BLUE),)),
    Panel("Gradient norm", "Before clipping.", "sft", (Series("sft/grad_norm", "norm", BLUE),)),
    Panel(
        "Learning rate",
        "As scheduled.",
        "sft",
        (Series("sft/learning_rate", "learning rate", BLUE),),
        noisy=False,
    ),
)
REWARD = Panel(
    "Reward of the rollouts",
    "Mean over the sampled answers; those trained on include rescued ones.",
    "rl",
    (Series("reward/first_try", "first try", BLUE), Series("reward/final", "trained on", GREEN)),
    percent=True,
)
SECONDS = Panel("Seconds per iteration", "Rollout, scores and updates.", "rl", (Series("time/total", "seconds", BLUE),))
SPEED = (
    Panel(
        "Throughput",
        "Sampled tokens per second of rollout, both tries.",
        "rl",
        (Series("speed/tokens_per_second", "tokens per second", BLUE),),
    ),
    Panel(
        "Network evaluations",
        "Per completion, both tries.",
        "rl",
        (Series("sampler/evaluations", "evaluations", BLUE),),
    ),
    Panel(
        "Error of the cached sampler",
        "KL of the exact and the cached distribution of a token, in nats; where rollouts were exact (right).",
        "rl",
        (Series("sampler/kl", "KL", ORANGE), Series("sampler/exact", "exact (right)", GREY, right=True)),
        noisy=False,
    ),
)


def sections(runs: Runs, browser: str) -> tuple[str, list[Row]]:
    """HTML of all sections, and the figures that fill their panels, in their order. browser: HTML that comes after the
    section on inpainting."""
    figures, parts = [], []

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

    def draw(panel: Panel) -> tuple[str, str, Row | None]:
        return panel.title, panel.note, _figure(runs, panel)

    accuracy = ("Accuracy", "On held-out problems; bars are 95% intervals.", _accuracy_figure(runs))
    alone = next(iter(runs.values())) if len(runs) == 1 else None
    time = ("Seconds per iteration", "Where the wall time goes.", _phases_figure(alone)) if alone else draw(SECONDS)
    section("Learning", [accuracy, draw(REWARD)])
    section("Inpainting", [draw(panel) for panel in INPAINTING])
    parts.append(browser)
    section("Policy", [draw(panel) for panel in POLICY])
    section("Supervised stage", [draw(panel) for panel in (HELDOUT_BY_SHARE if alone else HELDOUT_MEAN, *SUPERVISED)])
    section("Speed", [time, *(draw(panel) for panel in SPEED)])
    return "".join(parts), figures


def color_of(number: int) -> str:
    """Of a run among several."""
    return COLORS[number]


def smooth(values: np.ndarray) -> np.ndarray:
    """Centred rolling mean of [n] over about a twelfth of the curve; at the ends, over what there is of it."""
    half = len(values) // 24
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    begin, end = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (total[end] - total[begin]) / (end - begin)


def stage_rows(rows: list[Row], stage: str, key: str) -> list[Row]:
    """Those of the stage in which the metric is a finite number."""
    return [row for row in rows if row["stage"] == stage and _finite(row.get(key))]


def evaluations(rows: list[Row]) -> list[Row]:
    return [row for row in rows if _finite(row.get("eval/accuracy"))]


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f}%"


def _figure(runs: Runs, panel: Panel) -> Row | None:
    """Smoothed curves, of one run over their faint raw values; None without data."""
    traces, several = [], len(runs) > 1
    for number, (run, rows) in enumerate(runs.items()):
        for series, dash in zip(panel.series, DASHES if several else [None] * len(panel.series), strict=False):
            x, y = _curve(rows, panel.stage, series.key)
            if not len(x):
                continue
            axis = {"yaxis": "y2"} if series.right else {}
            line = {"color": color_of(number) if several else series.color, "width": 1}
            smoothed = panel.noisy and len(x) >= 24
            if smoothed and not several:
                raw = {"line": line, "opacity": 0.28, "hoverinfo": "skip"}
                traces.append({**_trace(x, y), **raw, **axis})
            # Plotly reads a few tags in names.
            name = f"{html.escape(run)}: {series.name}" if several else series.name
            curve = {
                "name": name,
                "legendgroup": series.name,
                "line": {**line, "width": 2.2} | ({"dash": dash} if several else {}),
            }
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
    """Evaluations of both stages on one axis; of one run with the begin of RL marked."""
    traces = []
    for number, (run, rows) in enumerate(runs.items()):
        evals, color = evaluations(rows), color_of(number)
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
        layout |= _begin_of_rl(*runs.values())
    return {"data": traces, "layout": layout}


def _begin_of_rl(rows: list[Row]) -> Row:
    """A line between the stages' evaluations, as a part of a layout."""
    evals = evaluations(rows)
    supervised = [row["step"] for row in rows if row["stage"] == "sft"]
    end = supervised[-1] if supervised else 0
    if not evals[0]["step"] < end <= evals[-1]["step"] or not any(row["stage"] == "rl" for row in rows):
        return {}
    line = {"type": "line", "x0": end, "x1": end, "y0": 0, "y1": 1, "line": {"color": GREY}}
    label = {"x": end, "y": 1, "yanchor": "top", "showarrow": False, "font": {"color": "#5b6675"}}
    labels = [
        {"text": "SFT", "xanchor": "right", "xshift": -6},
        {"text": "RL", "xanchor": "left", "xshift": 6},
    ]
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
    """In place of Plotly's own, which breaks into lines too early and takes its room from the plot. Series of several runs
    are told by their dashes; the runs' colours stand at the top of the page."""
    keys = {trace.get("legendgroup", trace["name"]): trace["line"] for trace in figure["data"] if "name" in trace}
    items = (
        f'<li><i style="border-top: 3px {DASHES[line["dash"]]} {GREY}"></i>{name}</li>'
        if "dash" in line
        else f'<li><i style="border-top: 3px solid {line["color"]}"></i>{name}</li>'
        for name, line in keys.items()
    )
    return f'<ul class="keys">{"".join(items)}</ul>' if len(keys) > 1 else ""


def _curve(rows: list[Row], stage: str, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values [n], float64, of the rows that have the key."""
    shown = stage_rows(rows, stage, key)
    return np.array([row["step"] for row in shown], float), np.array([row[key] for row in shown], float)


def _trace(x, y) -> Row:
    every = max(1, -(-len(x) // MOST_POINTS))
    x, y = ([float(f"{value:.6g}") for value in values] for values in (x[::every], y[::every]))
    return {"type": "scatter", "mode": "lines", "cliponaxis": False, "x": [int(value) for value in x], "y": y}


def _layout() -> Row:
    lines = {"gridcolor": "#e9edf2", "zerolinecolor": "#d4dae2", "linecolor": "#d4dae2"}
    axis = {**lines, "automargin": True, "nticks": 6}
    title = {"text": "update", "font": {"size": 11}}
    return {
        "font": {"family": "Inter, system-ui, sans-serif", "size": 12, "color": "#3c4654"},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 44, "r": 12, "t": 10, "b": 30},
        "hovermode": "x unified",
        "hoverlabel": {"namelength": -1},
        "showlegend": False,
        "xaxis": {**axis, "showgrid": False, "hoverformat": ",d", "title": title},
        "yaxis": {**axis},
    }


def _finite(value) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
