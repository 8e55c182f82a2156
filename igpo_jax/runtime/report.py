"""report.html of a run: what it reached, its curves, and how single completions were denoised.

One file that loads nothing from elsewhere, so that it can be sent around and opened offline.
"""

import dataclasses
import html
import json
import logging
import math
import os
import pathlib
from typing import Any

import numpy as np

from igpo_jax.diffusion.corruption import HELDOUT_LEVELS, heldout_metric
from igpo_jax.evaluation.statistics import wilson
from igpo_jax.runtime.files import write_whole
from igpo_jax.runtime.metrics import read_rows
from igpo_jax.runtime.report_page import PAGE, SCRIPT, STYLE, VIEWER
from igpo_jax.runtime.results import START, rescue_rate

Row = dict[str, Any]

BLUE, GREEN, ORANGE, RED, GREY = "#3b6fb6", "#2a9d6f", "#e8710a", "#c8453b", "#8a94a3"
PHASES = {"time/rollout": BLUE, "time/reward": GREEN, "time/score": "#8e6bbf", "time/update": "#e0a23b"}
SHOWN_ROLLOUTS = 8
MOST_POINTS = 2000  # of a curve; more than a screen shows, and the browser stays quick


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
SUPERVISED = (
    Panel(
        "Held-out loss",
        "Per masked token of held-out solutions, by the share that is masked.",
        "sft",
        tuple(
            Series(heldout_metric(share), f"{100 * share:g}%", color)
            for share, color in zip(HELDOUT_LEVELS, SHADES, strict=True)
        ),
        noisy=False,
        logarithmic=True,
    ),
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


def write_report(workdir: str | os.PathLike) -> pathlib.Path | None:
    """Writes report.html from config.json, metrics.jsonl, rollouts.jsonl and, if there is one, result.json.

    Returns:
        Its path; None where plotly is not installed.

    Raises:
        ValueError: the folder has no config.json.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        logger = logging.getLogger(__name__)
        logger.warning("no report.html: plotly is missing; pip install 'igpo_jax[report]'")
        return None
    workdir = pathlib.Path(workdir)
    if not (workdir / "config.json").is_file():
        raise ValueError(f"{workdir} has no config.json; give the folder of a run")
    config = json.loads((workdir / "config.json").read_text("utf-8"))
    result = workdir / "result.json"
    result = json.loads(result.read_text("utf-8")) if result.is_file() else None
    rows = read_rows(workdir / "metrics.jsonl")
    rollouts = choose_rollouts(read_rows(workdir / "rollouts.jsonl"))

    sections, figures = _sections(rows, bool(rollouts))
    document = PAGE.format(
        style=STYLE,
        name=html.escape(str(config["task"]["name"])),
        facts="".join(f"<li>{html.escape(fact)}</li>" for fact in _facts(config)),
        cards="".join(map(_card, headline(rows))),
        sections=sections or '<p class="empty">No metrics yet.</p>',
        result=_details("Result", result) if result is not None else "",
        config=_details("Configuration", config),
        plotly=get_plotlyjs() if figures else "",
        data=_embed({"figures": figures, "rollouts": rollouts}),
        script=SCRIPT,
    )
    path = workdir / "report.html"
    write_whole(path, document)
    return path


def headline(rows: list[Row]) -> list[tuple[str, str, str]]:
    """(label, value, remark) of the cards; what was not measured is left out."""
    cards = []
    training = _stage(rows, "rl", "reward/first_try")
    evals = [row for row in rows if _finite(row.get("eval/accuracy"))]
    if evals:
        last, problems = evals[-1]["eval/accuracy"], evals[-1].get("eval/problems")
        of = f"{problems:,.0f} held-out problems" if problems else "held-out problems"
        before = [row for row in evals if training and row["step"] < training[0]["step"]] or evals[:1]
        if training and len(evals) > 1:
            first = before[-1]["eval/accuracy"]
            change = f"{100 * (last - first):+.1f} points by RL, {of}"
            cards.append(("Held-out accuracy", f"{_percent(first)} → {_percent(last)}", change))
        else:
            cards.append(("Held-out accuracy", _percent(last), of))
    if training:
        wrong = np.array([row["groups/all_wrong_before"] for row in training])
        begin, end = _percent(wrong[:START].mean()), _percent(wrong[-START:].mean())
        cards.append(("Groups all wrong at the start", begin, f"{end} at the end, before hints"))
    rate = rescue_rate(_stage(rows, "rl", "hint/rescue_rate"))
    if rate is not None:
        cards.append(("Rescue rate", _percent(rate), "of all-wrong groups, over the run"))
    timed = {stage: _stage(rows, stage, "time/total") for stage in ("sft", "rl")}
    seconds = {stage: sum(row["time/total"] for row in part) for stage, part in timed.items()}
    if sum(seconds.values()):
        parts = [f"{stage.upper()} {_duration(spent)}" for stage, spent in seconds.items() if spent]
        cards.append(("Training time", _duration(sum(seconds.values())), ", ".join(parts)))
    return cards


def choose_rollouts(rows: list[Row]) -> list[Row]:
    """Up to 8 rollouts from early to late: mostly rescued ones, some first tries, then others."""
    rescued = _spread([row for row in rows if row["rescued"]], SHOWN_ROLLOUTS - 3)
    first = _spread([row for row in rows if row["try"] == "first"], SHOWN_ROLLOUTS - len(rescued))
    taken = [id(row) for row in rescued + first]
    others = _spread([row for row in rows if id(row) not in taken], SHOWN_ROLLOUTS - len(taken))
    return sorted(rescued + first + others, key=lambda row: (row["step"], row["problem_id"], row["try"]))


def smooth(values: np.ndarray) -> np.ndarray:
    """Centred rolling mean of [n] over about a twelfth of the curve; at the ends, over what there is of it."""
    half = len(values) // 24
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    begin, end = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (total[end] - total[begin]) / (end - begin)


def _sections(rows: list[Row], with_rollouts: bool) -> tuple[str, list[Row]]:
    """HTML of all sections, and the figures that fill its panels, in their order."""
    figures, parts = [], []

    def section(title: str, panels: list[tuple[str, str, Row | None]], columns: int) -> None:
        cells = []
        for name, note, figure in panels:
            if figure:
                cells.append(
                    f"<figure><figcaption><h3>{name}</h3><p>{note}</p></figcaption>{_legend(figure)}"
                    f'<div id="figure-{len(figures)}" class="plot"></div></figure>'
                )
                figures.append(figure)
        if cells:
            grid = f'<div class="grid columns-{columns}">{"".join(cells)}</div>'
            parts.append(f"<section><h2>{title}</h2>{grid}</section>")

    def draw(panel: Panel):
        return panel.title, panel.note, _figure(rows, panel)

    accuracy = ("Accuracy", "On held-out problems; bars are 95% intervals.", _accuracy_figure(rows))
    phases = ("Seconds per iteration", "Where the wall time goes.", _phases_figure(rows))
    section("Learning", [accuracy, draw(REWARD)], 2)
    section("Inpainting", [draw(panel) for panel in INPAINTING], 3)
    if with_rollouts:
        parts.append(VIEWER)
    section("Policy", [draw(panel) for panel in POLICY], 3)
    section("Supervised stage", [draw(panel) for panel in SUPERVISED], 2)
    section("Speed", [phases, *(draw(panel) for panel in SPEED)], 2)
    return "".join(parts), figures


def _figure(rows: list[Row], panel: Panel) -> Row | None:
    """Smoothed curves over their faint raw values; None without data."""
    shown = [(series, *_curve(rows, panel.stage, series.key)) for series in panel.series]
    shown = [(series, x, y) for series, x, y in shown if len(x)]
    if not shown:
        return None
    traces = []
    for series, x, y in shown:
        axis = {"yaxis": "y2"} if series.right else {}
        line = {"color": series.color, "width": 1}
        smoothed = panel.noisy and len(x) >= 24
        if smoothed:
            raw = {"line": line, "opacity": 0.28, "hoverinfo": "skip"}
            traces.append({**_trace(x, y), **raw, **axis})
        curve = {"name": series.name, "line": {**line, "width": 2.2}}
        traces.append({**_trace(x, smooth(y) if smoothed else y), **curve, **axis})
    layout = _layout()
    if panel.share or panel.percent:
        layout["yaxis"] |= {"tickformat": ".3~p" if panel.percent else ".0%", "rangemode": "tozero"}
    if panel.logarithmic:
        layout["yaxis"] |= {"type": "log", "dtick": "D1"}
    if panel.share:
        layout["yaxis"] |= {"range": [0, 1.03]}
    if any(series.right for series, *_ in shown):
        right = {"overlaying": "y", "side": "right", "showgrid": False, "rangemode": "tozero"}
        layout["yaxis2"] = {**_layout()["yaxis"], **right, "tickmode": "auto"}
    return {"data": traces, "layout": layout}


def _accuracy_figure(rows: list[Row]) -> Row | None:
    """Evaluations of both stages on one axis, with the begin of RL marked."""
    evals = [row for row in rows if _finite(row.get("eval/accuracy"))]
    if not evals:
        return None
    accuracy = np.array([row["eval/accuracy"] for row in evals])
    trace = {
        **_trace([row["step"] for row in evals], accuracy),
        "mode": "lines+markers",
        "name": "accuracy",
        "line": {"color": BLUE, "width": 2.2},
        "marker": {"size": 6, "color": BLUE},
    }
    if all(row.get("eval/problems") for row in evals):
        intervals = np.array([wilson(row["eval/accuracy"], row["eval/problems"]) for row in evals])
        trace["error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": np.maximum(intervals[:, 1] - accuracy, 0).tolist(),
            "arrayminus": np.maximum(accuracy - intervals[:, 0], 0).tolist(),
            "color": "rgba(59,111,182,0.45)",
            "thickness": 1.2,
            "width": 3,
        }
    layout = _layout()
    layout["yaxis"] |= {"tickformat": ".0%", "rangemode": "tozero"}
    supervised = [row["step"] for row in rows if row["stage"] == "sft"]
    end = supervised[-1] if supervised else 0
    if evals[0]["step"] < end <= evals[-1]["step"] and any(row["stage"] == "rl" for row in rows):
        line = {"type": "line", "x0": end, "x1": end, "y0": 0, "y1": 1, "line": {"color": GREY}}
        label = {"x": end, "y": 1, "yanchor": "top", "showarrow": False, "font": {"color": "#5b6675"}}
        labels = [
            {"text": "SFT", "xanchor": "right", "xshift": -6},
            {"text": "RL", "xanchor": "left", "xshift": 6},
        ]
        layout["shapes"] = [{**line, "yref": "paper", "layer": "below"}]
        layout["annotations"] = [{**label, **text, "yref": "paper"} for text in labels]
    return {"data": [trace], "layout": layout}


def _phases_figure(rows: list[Row]) -> Row | None:
    curves = {key: _curve(rows, "rl", key) for key in PHASES}
    curves = {key: (x, y) for key, (x, y) in curves.items() if len(x)}
    total = sum(float(np.mean(y)) for _, y in curves.values())
    if not curves or not total:
        return None
    traces = [
        {
            **_trace(x, smooth(y)),
            "name": f"{key.removeprefix('time/')} {_percent(float(np.mean(y)) / total, 0)}",
            "line": {"width": 0.5, "color": PHASES[key]},
            "stackgroup": "phases",
        }
        for key, (x, y) in curves.items()
    ]
    layout = _layout()
    layout["yaxis"] |= {"rangemode": "tozero"}
    return {"data": traces, "layout": layout}


def _legend(figure: Row) -> str:
    """In place of Plotly's own, which breaks into lines too early and takes its room from the plot."""
    named = [trace for trace in figure["data"] if "name" in trace]
    keys = (f'<li><i style="background:{trace["line"]["color"]}"></i>{trace["name"]}</li>' for trace in named)
    return f'<ul class="keys">{"".join(keys)}</ul>' if len(named) > 1 else ""


def _curve(rows: list[Row], stage: str, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values [n], float64, of the rows that have the key."""
    shown = _stage(rows, stage, key)
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
        "showlegend": False,
        "xaxis": {**axis, "showgrid": False, "hoverformat": ",d", "title": title},
        "yaxis": {**axis},
    }


def _stage(rows: list[Row], stage: str, key: str) -> list[Row]:
    return [row for row in rows if row["stage"] == stage and _finite(row.get(key))]


def _finite(value) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _spread(rows: list[Row], most: int) -> list[Row]:
    """At most `most` of the rows, evenly spaced, with the first and the last."""
    if len(rows) <= most:
        return rows
    return [rows[round(i)] for i in np.linspace(0, len(rows) - 1, most)]


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f}%"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _facts(config: Row) -> list[str]:
    """What a reader wants to know of the configuration at first sight."""
    model, rl, sampler = config["model"], config["rl"], config["sampler"]
    rank = config.get("lora", {}).get("rank")
    return [
        pathlib.Path(model["path"]).name if model.get("path") else f"{model['layers']} layers × {model['width']}",
        *([f"adapters of rank {rank}"] if rank else []),
        f"{config['sft']['updates']:,} SFT updates",
        f"{rl['iterations']:,} RL iterations of {rl['prompts']} × {rl['group_size']} answers",
        f"{sampler['completion_length']} tokens in {sampler['steps']} denoising steps",
        f"blocks of {sampler['block_length']}",
        f"seed {config['seed']}",
    ]


def _card(card: tuple[str, str, str]) -> str:
    label, value, remark = map(html.escape, card)
    return f"<li><h2>{label}</h2><strong>{value}</strong><span>{remark}</span></li>"


def _details(title: str, content: Any) -> str:
    text = html.escape(json.dumps(content, indent=2, ensure_ascii=False))
    return f"<details><summary>{title}</summary><pre>{text}</pre></details>"


def _embed(content: Any) -> str:
    """JSON that cannot end, or otherwise disturb, the script element it stands in."""
    text = json.dumps(_without_nan(content), ensure_ascii=False, allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _without_nan(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
