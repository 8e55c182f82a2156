"""Plotly figures for the panels of a report. In a report about one run, each series has its own color. In a report about
several runs, each run has its own color, and the series of a panel have different dash styles."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from igpo_jax.diffusion.corruption import HELDOUT_LEVELS, heldout_metric
from igpo_jax.report.style import AXIS, BLUE, COLORS, GREEN, GREY, LAYOUT, ORANGE, PURPLE, RED, SHADES, YELLOW
from igpo_jax.report.templates import plotly_text
from igpo_jax.run.metrics import benchmark_accuracies
from igpo_jax.runtime.statistics import percent, wilson

Row = dict[str, Any]
Runs = dict[str, list[Row]]  # parsed lines of metrics.jsonl, by the run's name

PHASES = {"time/rollout": BLUE, "time/reward": GREEN, "time/score": PURPLE, "time/update": YELLOW}
# What the RL iterations of a run have spent: name of an x axis -> metric of an iteration
SPENT = {"prompts": "sampler/prompts", "evaluations": "sampler/rows", "seconds": "time/total"}
X_AXES = {
    "iteration": "RL iteration",
    "update": "update",
    "prompts": "prompts sampled",
    "evaluations": "network evaluations (rows)",
    "seconds": "seconds of RL",
}
DASHES = {"solid": "solid", "dot": "dotted", "dash": "dashed"}  # line styles: name in Plotly -> name in CSS
LONGEST_NAME = 200  # characters of a metric
MOST_POINTS = 1000  # of a curve: more than a panel can show, but few enough for a fast page
# Options of a y axis
ALL_SHARES = {"tickformat": ".0%", "rangemode": "tozero", "range": [0, 1.03]}  # from 0 to 100%
PERCENT = {"tickformat": ".3~p", "rangemode": "tozero"}
LOGARITHMIC = {"type": "log", "dtick": "D1"}


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
    axis: Row = dataclasses.field(default_factory=dict)  # options of the y axis
    stage: str = "rl"
    noisy: bool = True  # whether the curves are smoothed


INPAINTING = (
    Panel(
        "Groups without a gradient",
        "All answers are wrong, before and after hints, or all are correct.",
        (
            Series("groups/all_wrong_before", "before hints", RED),
            Series("groups/all_wrong_after", "after hints", GREEN),
            Series("groups/all_correct", "all correct", GREY),
        ),
        ALL_SHARES,
    ),
    Panel(
        "Rescue rate",
        "All-wrong groups with at least one correct hinted answer.",
        (Series("hint/rescue_rate", "rescued", GREEN), Series("hint/replaced", "answers swapped in, per group", right=True)),
        ALL_SHARES,
    ),
    Panel(
        "Size of the hints",
        "Share of the solution's chunks that are given away, and tokens that are fixed in the canvas.",
        (Series("hint/ratio", "ratio", ORANGE), Series("hint/tokens", "tokens", right=True)),
        PERCENT,
    ),
    Panel(
        "Curriculum",
        "Center of the hint ratios, which moves to where half of the hinted answers are right.",
        (Series("hint/ratio_center", "center", ORANGE),),
        PERCENT,
        noisy=False,
    ),
    Panel(
        "Diversity", "Different answers among the first tries of a group.", (Series("groups/distinct", "distinct"),), PERCENT
    ),
)
POLICY = (
    Panel("KL to the reference", "Per token.", (Series("policy/kl", "KL"),)),
    Panel("Entropy", "Of the predicted tokens, in nats.", (Series("policy/entropy", "entropy"),)),
    Panel("Clip fraction", "Tokens whose ratio left the trust region.", (Series("policy/clip_fraction", "clipped"),), PERCENT),
    Panel("Policy loss", "Around 0 by construction; its trend says little.", (Series("policy/loss", "loss"),)),
    Panel("Gradient norm", "Before clipping.", (Series("policy/grad_norm", "norm"),)),
    Panel("Mean ratio", "New to old probability; stays near 1.", (Series("policy/ratio_mean", "ratio"),)),
)
HELDOUT_BY_SHARE = Panel(
    "Held-out loss",
    "Per masked token of held-out solutions, by the share that is masked.",
    tuple(
        Series(heldout_metric(share), f"{100 * share:g}%", color) for share, color in zip(HELDOUT_LEVELS, SHADES, strict=True)
    ),
    LOGARITHMIC,
    "sft",
    noisy=False,
)
HELDOUT_MEAN = dataclasses.replace(
    HELDOUT_BY_SHARE,
    note="Per masked token of held-out solutions, mean over eight shares that are masked.",
    series=(Series("heldout/loss", "loss"),),
)
SUPERVISED = (
    Panel("Loss", "Masked-diffusion loss on demonstrations.", (Series("sft/loss", "loss"),), stage="sft"),
    Panel("Gradient norm", "Before clipping.", (Series("sft/grad_norm", "norm"),), stage="sft"),
    Panel("Learning rate", "As scheduled.", (Series("sft/learning_rate", "learning rate"),), stage="sft", noisy=False),
)
REWARD = Panel(
    "Reward of the rollouts",
    "Mean over the sampled answers; those trained on include rescued ones.",
    (Series("reward/first_try", "first try"), Series("reward/final", "trained on", GREEN)),
    PERCENT,
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
        (Series("sampler/kl", "KL", ORANGE), Series("sampler/exact", "exact", GREY, right=True)),
        noisy=False,
    ),
)


def sections(runs: Runs) -> tuple[list[Row], list[Row]]:
    """Returns the sections of a report, and the list of Plotly figures for the panels. A section is a dict with the keys
    "title" and "panels". A panel is a dict with the keys "title", "note", "smoothing" (a sentence that says which lines are
    smoothed), "lines" (the legend) and "number" (the index of the panel's figure). Panels without data are left out."""
    figures: list[Row] = []
    found: list[Row] = []

    def section(title: str, panels: list[tuple[str, str, Row | None]]) -> None:
        shown: list[Row] = []
        for name, note, figure in panels:
            if figure:
                text = {"title": name, "note": note, "smoothing": _smoothing(figure)}
                shown.append({**text, "lines": _legend(figure), "number": len(figures)})
                figures.append(figure)
        found.append({"title": title, "panels": shown})

    def draw(*panels: Panel) -> list[tuple[str, str, Row | None]]:
        return [(panel.title, panel.note, _figure(runs, panel)) for panel in panels]

    before = any(row["stage"] == "sft" for rows in runs.values() if spent(rows) for row in evaluations(rows))
    note = "On held-out problems; bars are 95% intervals." + (" Before RL, there are values by update only." if before else "")
    accuracy = ("Accuracy", note, _accuracy_figure(runs))
    alone = len(runs) == 1
    time = [("Seconds per iteration", "Where the wall time goes.", _phases_figure(runs))] if alone else draw(SECONDS)
    section("Learning", [accuracy, *draw(REWARD, _reward_parts(runs))])
    section("Inpainting", draw(*INPAINTING))
    section("Policy", draw(*POLICY))
    section("Supervised stage", draw(HELDOUT_BY_SHARE if alone else HELDOUT_MEAN, *SUPERVISED))
    section("Speed", [*time, *draw(*SPEED)])
    return found, figures


def _reward_parts(runs: Runs) -> Panel:
    """Returns the panel that shows each function of a weighted reward as a curve of its own. The panel has at most as many
    curves as there are colors in `COLORS`."""
    keys = dict.fromkeys(key for rows in runs.values() for row in rows for key in row if key.startswith("reward/"))
    known = {series.key for series in REWARD.series}
    names = [key for key in keys if key not in known and len(key) <= LONGEST_NAME]  # a stranger's file may have any names
    series = (Series(key, plotly_text(key.removeprefix("reward/")), color) for key, color in zip(names, COLORS, strict=False))
    note = "Mean value of each reward function over graded first tries, without its weight."
    return Panel("Parts of the reward", note, tuple(series))


def smooth(values: np.ndarray) -> np.ndarray:
    """Returns the centered rolling mean of n values. A window has about n / 12 values, and fewer at the ends."""
    half, index = half_window(values), np.arange(len(values))
    total = np.concatenate([[0.0], np.cumsum(values)])
    begin, end = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (total[end] - total[begin]) / (end - begin)


def half_window(values: np.ndarray) -> int:
    return len(values) // 24


def spent(rows: list[Row]) -> dict[str, list[float]]:
    """Returns the cumulative cost of a run's RL stage in each unit, as {name of an x axis: totals}. The first entry of each
    list belongs to the last update before RL, where the totals are 0. Each of the other entries belongs to an RL iteration. The
    list "update" has the numbers of the updates to which the entries belong. Units that are not logged for all iterations are
    left out. Returns {} if there is no RL iteration. Keeps at most `MOST_POINTS` + 2 evenly spaced entries."""
    training = stage_rows(rows, "rl", "reward/first_try")
    if not training:
        return {}
    updates = [row["step"] for row in training]
    start = max((row["step"] for row in rows if row["step"] < updates[0]), default=0)
    found: dict[str, list[float]] = {"update": [start, *updates], "iteration": list(range(len(training) + 1))}
    for name, key in SPENT.items():
        each = [row[key] for row in training if _finite(row.get(key))]
        if len(each) == len(training):
            found[name] = [0.0, *(float(f"{total:.6g}") for total in np.cumsum(each))]
    every = max(1, -(-len(training) // MOST_POINTS))
    return {name: [*values[:-1:every], values[-1]] for name, values in found.items()}


def x_axes(runs: Runs) -> tuple[dict[str, str], dict[str, Any]]:
    """Returns the x axes that the curves of RL can have, as {name: title}, and {run: cumulative cost of its RL stage} for each
    run with RL iterations (see `spent`). An axis is left out if the logs of one of these runs lack the values of the axis."""
    known = {run: found for run, rows in runs.items() if (found := spent(rows))}
    axes = X_AXES if known else {}
    return {name: title for name, title in axes.items() if all(name in found for found in known.values())}, known


def stage_rows(rows: list[Row], stage: str, key: str) -> list[Row]:
    """Returns the entries of metrics.jsonl that belong to a stage and contain a finite value of the metric `key`."""
    return [row for row in rows if row["stage"] == stage and _finite(row.get(key))]


def evaluations(rows: list[Row]) -> list[Row]:
    return [row for row in rows if _finite(row.get("eval/accuracy"))]


def _figure(runs: Runs, panel: Panel) -> Row | None:
    """Returns the Plotly figure of a panel, or None if there are no data. If `panel.noisy` is true, curves with enough values
    are smoothed. If there is only one run, the raw values of smoothed curves are drawn as faint lines."""
    traces, several = [], len(runs) > 1
    for run_color, (run, rows) in zip(COLORS, runs.items(), strict=False):
        for series, dash in zip(panel.series, itertools.cycle(DASHES), strict=False):
            x, y = _curve(rows, panel.stage, series.key)
            if not len(x):
                continue
            axis = {"yaxis": "y2"} if series.right else {}
            line = {"color": run_color if several else series.color, "width": 1}
            smoothed = panel.noisy and len(x) >= 24
            if smoothed and not several:
                faint = {"line": line, "opacity": 0.4, "hoverinfo": "skip"}
                traces.append({**_trace(x, y, run, series.name, panel.stage), **faint, **axis})
            label = f"{series.name} (right)" if series.right else series.name
            name = f"{plotly_text(run)}: {label}" if several else label
            line = {**line, "width": 2.2} | ({"dash": dash} if several else {})
            curve = {"name": name, "legendgroup": label, "line": line}
            traces.append({**_trace(x, y, run, series.name, panel.stage, smoothed), **curve, **axis})
    if not traces:
        return None
    layout = _layout(**panel.axis)
    if any("yaxis" in trace for trace in traces):
        right = {"overlaying": "y", "side": "right", "showgrid": False, "rangemode": "tozero", "tickmode": "auto"}
        layout["yaxis2"] = {**_layout()["yaxis"], **right}
    return {"data": traces, "layout": layout}


def _accuracy_figure(runs: Runs) -> Row | None:
    """Returns a Plotly figure of accuracy, or None if there are no evaluations. If there is only one run, the figure marks the
    start of RL."""
    traces = []
    for color, (run, rows) in zip(COLORS, runs.items(), strict=False):
        evals = evaluations(rows)
        if not evals:
            continue
        accuracy = np.array([row["eval/accuracy"] for row in evals])
        name = plotly_text(run) if len(runs) > 1 else "accuracy"
        style = {"line": {"color": color, "width": 2.2}, "marker": {"size": 6, "color": color}}
        trace = _trace([row["step"] for row in evals], accuracy, run, "accuracy", "rl") | {"mode": "lines+markers"}
        trace |= {"name": name, "legendgroup": "accuracy", **style}
        if len(evals) <= MOST_POINTS and all(row.get("eval/problems") for row in evals):
            low, high = np.array([wilson(row["eval/accuracy"], row["eval/problems"]) for row in evals]).T
            lengths = {"array": np.maximum(high - accuracy, 0).tolist(), "arrayminus": np.maximum(accuracy - low, 0).tolist()}
            bars = {"color": f"{color}73", "thickness": 1.2, "width": 3}
            trace["error_y"] = {"type": "data", "symmetric": False, **lengths, **bars}
        traces.append(trace)
    if not traces:
        return None
    if len(runs) == 1:
        traces += _benchmark_traces(*next(iter(runs.items())))
    layout = _layout(tickformat=".0%", rangemode="tozero")
    if len(runs) == 1:
        layout |= _start_of_rl(*runs.values())
    return {"data": traces, "layout": layout}


def _benchmark_traces(run: str, rows: list[Row]) -> list[Row]:
    """Returns a line of a Plotly figure for the accuracy on each of a run's first benchmarks."""
    metrics = {name: metric for row in evaluations(rows) for name, metric in benchmark_accuracies(row).items()}
    traces = []
    for color, (name, metric) in zip(COLORS[1:], metrics.items(), strict=False):
        known = [row for row in evaluations(rows) if _finite(row.get(metric))]
        trace = _trace([row["step"] for row in known], np.array([row[metric] for row in known]), run, plotly_text(name), "rl")
        style = {"mode": "lines+markers", "line": {"color": color, "width": 1.5}, "marker": {"size": 4, "color": color}}
        traces.append(trace | style | {"name": plotly_text(name), "legendgroup": name})
    return traces


def _start_of_rl(rows: list[Row]) -> Row:
    """Returns the part of a Plotly layout that marks the start of RL. Returns {} if RL does not start between two
    evaluations."""
    evals = evaluations(rows)
    end = max((row["step"] for row in rows if row["stage"] == "sft"), default=0)
    if not evals[0]["step"] < end <= evals[-1]["step"] or not any(row["stage"] == "rl" for row in rows):
        return {}
    line = {"type": "line", "x0": end, "x1": end, "y0": 0, "y1": 1, "line": {"color": GREY}, "yref": "paper", "layer": "below"}
    label = {"x": end, "y": 1, "yanchor": "top", "showarrow": False, "yref": "paper"}
    labels = [{"text": "SFT", "xanchor": "right", "xshift": -6}, {"text": "RL", "xanchor": "left", "xshift": 6}]
    return {"shapes": [line], "annotations": [{**label, **text} for text in labels]}


def _phases_figure(runs: Runs) -> Row | None:
    [(run, rows)] = runs.items()
    curves = {key: _curve(rows, "rl", key) for key in PHASES}
    means = {key: float(np.mean(y)) for key, (_, y) in curves.items() if len(y)}
    total = sum(means.values())
    if not total:
        return None
    traces = []
    for key, mean in means.items():
        x, y = curves[key]
        name = f"{key.removeprefix('time/')} {percent(mean / total, 0)}"
        line = {"width": 0.5, "color": PHASES[key]}
        traces.append({**_trace(x, y, run, key, "rl", smoothed=True), "name": name, "line": line, "stackgroup": "phases"})
    return {"data": traces, "layout": _layout(rangemode="tozero")}


def _smoothing(figure: Row) -> str:
    """Returns a sentence that says which lines of a figure are smoothed, or "" if none is."""
    windows = sorted({trace["meta"]["window"] for trace in figure["data"]} - {1})
    if not windows:
        return ""
    window = f"{windows[0]}" if len(windows) == 1 else f"{windows[0]} to {windows[-1]}"
    faint = "; faint: each value" if any("opacity" in trace for trace in figure["data"]) else ""
    return f"{'Thick' if faint else 'Lines'}: rolling mean of {window} values{faint}."


def _legend(figure: Row) -> list[tuple[str, str, str]]:
    """Returns the legend of a figure: (name, color, CSS name of the dash style) for each line. This legend replaces Plotly's
    own legend, which wraps too early and makes the plot smaller. In a report about several runs, the legend shows only the dash
    styles of the series, because the top of the page shows the colors of the runs."""
    keys = {trace.get("legendgroup", trace["name"]): trace["line"] for trace in figure["data"] if "name" in trace}
    return [
        (name, GREY, DASHES[line["dash"]]) if "dash" in line else (name, line["color"], "solid") for name, line in keys.items()
    ]


def _curve(rows: list[Row], stage: str, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns (steps, values), float64 [n] each: the n finite values of a metric in a training stage, and the steps at which
    these values were measured."""
    shown = stage_rows(rows, stage, key)
    return np.array([row["step"] for row in shown], float), np.array([row[key] for row in shown], float)


def _trace(x: Sequence[float] | np.ndarray, y: np.ndarray, run: str, curve: str, stage: str, smoothed: bool = False) -> Row:
    """Returns a Plotly line through the points (x, y), where x are updates. Keeps at most `MOST_POINTS` evenly spaced points,
    and rounds y to six significant digits. The scripts of the page read `meta`, and convert the updates of the stage rl to the
    chosen x axis."""
    every = max(1, -(-len(x) // MOST_POINTS))
    shown = (smooth(y) if smoothed else y)[::every]
    meta = {"run": run, "curve": curve, "stage": stage, "window": 2 * half_window(y) + 1 if smoothed else 1}
    points = {"x": [int(step) for step in x[::every]], "y": [float(f"{value:.6g}") for value in shown]}
    return {"type": "scatter", "mode": "lines", "cliponaxis": False, "meta": meta, **points}


def _layout(**y_options: Any) -> Row:
    """Returns the layout of a Plotly figure. `y_options` are Plotly's options for the y axis."""
    axis, title = {**AXIS, "nticks": 6}, {"text": "update", "font": {"size": 11}}
    return {**LAYOUT, "xaxis": {**axis, "showgrid": False, "hoverformat": ",d", "title": title}, "yaxis": axis | y_options}


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
