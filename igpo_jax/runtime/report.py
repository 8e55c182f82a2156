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

from igpo_jax.runtime.metrics import read_rows
from igpo_jax.runtime.results import START, interval

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
SPEED = Panel(
    "Throughput",
    "Sampled tokens per second of rollout, both tries.",
    "rl",
    (Series("speed/tokens_per_second", "tokens per second", BLUE),),
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
    temporary = path.with_suffix(".partial")
    temporary.write_text(document, "utf-8")
    os.replace(temporary, path)
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
            cards.append(("Greedy accuracy", f"{_percent(first)} → {_percent(last)}", change))
        else:
            cards.append(("Greedy accuracy", _percent(last), of))
    if training:
        wrong = np.array([row["groups/all_wrong_before"] for row in training])
        begin, end = _percent(wrong[:START].mean()), _percent(wrong[-START:].mean())
        cards.append(("Groups all wrong at the start", begin, f"{end} at the end, before hints"))
    hinted = _stage(rows, "rl", "hint/rescue_rate")
    if hinted:
        # A rollout counts by how many groups it had to rescue.
        rates = [row["hint/rescue_rate"] for row in hinted]
        rate = np.average(rates, weights=[row["groups/all_wrong_before"] for row in hinted])
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

    greedy = "Greedy decoding of held-out problems; bars are 95% intervals."
    accuracy = ("Accuracy", greedy, _accuracy_figure(rows))
    phases = ("Seconds per iteration", "Where the wall time goes.", _phases_figure(rows))
    section("Learning", [accuracy, draw(REWARD)], 2)
    section("Inpainting", [draw(panel) for panel in INPAINTING], 3)
    if with_rollouts:
        parts.append(VIEWER)
    section("Policy", [draw(panel) for panel in POLICY], 3)
    section("Supervised stage", [draw(panel) for panel in SUPERVISED], 3)
    section("Speed", [phases, draw(SPEED)], 2)
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
        intervals = np.array([interval(row["eval/accuracy"], row["eval/problems"]) for row in evals])
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
    if evals[0]["step"] < end <= evals[-1]["step"]:
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
    return [
        f"{model['layers']} layers × {model['width']}",
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


# The policy makes it a fact, not a promise, that nothing is loaded from elsewhere.
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:">
<link rel="icon" href="data:,">
<title>{name} · IGPO run</title>
<style>{style}</style>
</head>
<body>
<header><p class="kind">IGPO run</p><h1>{name}</h1><ul class="facts">{facts}</ul></header>
<main>
<ul class="cards">{cards}</ul>
{sections}
<section class="settings">{result}{config}</section>
</main>
<script type="application/json" id="data">{data}</script>
<script>{plotly}</script>
<script>{script}</script>
</body>
</html>
"""

VIEWER = """<section id="denoising">
<h2>Denoising</h2>
<div class="panel">
<div class="controls">
<label>Completion <select id="which"></select></label>
<button id="play" type="button">▶ Play</button>
<label class="time">Step <input id="time" type="range" min="0" step="1"><output id="now"></output></label>
</div>
<div class="viewer">
<div class="problem">
<p class="badges" id="badges"></p>
<h3>Question</h3><pre id="question"></pre>
<h3>Gold solution</h3><pre id="trace"></pre>
</div>
<div class="canvas">
<h3>Completion</h3>
<div id="tokens"></div>
<ul class="legend">
<li><span id="first-step">step 1</span><span id="scale"></span><span id="last-step"></span></li>
<li><span class="token hint">abc</span> hint, given from the start</li>
<li><span class="token masked">abc</span> not yet written</li>
<li><span class="token ended">abc</span> end of the answer</li>
</ul>
</div>
</div>
</div>
</section>"""

STYLE = """
:root { --ink: #1d2632; --soft: #5b6675; --line: #dfe4ea; --orange: #e8710a;
 --mono: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
* { box-sizing: border-box; }
body { margin: 0; background: #f5f7f9; color: var(--ink);
 font: 15px/1.5 Inter, system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
header, main { max-width: 1280px; margin: 0 auto; padding: 0 28px; }
header { padding-top: 34px; }
.kind { margin: 0; color: var(--orange); font-weight: 600; font-size: 13px; letter-spacing: .08em;
 text-transform: uppercase; }
h1 { margin: 0; font-size: 34px; line-height: 1.2; letter-spacing: -.02em; }
h2 { margin: 36px 0 12px; font-size: 20px; letter-spacing: -.01em; }
h3 { margin: 0; font-size: 15px; }
ul { list-style: none; margin: 0; padding: 0; }
.facts { display: flex; flex-wrap: wrap; margin-top: 8px; color: var(--soft); font-size: 14px; }
.facts li + li::before { content: "·"; margin: 0 .6em; }
.cards { display: flex; flex-wrap: wrap; gap: 14px; margin-top: 24px; }
.cards li, figure, .panel, details { background: #fff; border: 1px solid var(--line); border-radius: 10px; }
.cards li { flex: 1 1 200px; padding: 14px 18px; display: flex; flex-direction: column; }
.cards li:first-child { flex-grow: 1.5; }
.cards h2 { margin: 0; font-size: 13px; font-weight: 500; letter-spacing: 0; color: var(--soft); }
.cards strong { font-size: 27px; line-height: 1.35; letter-spacing: -.02em; white-space: nowrap;
 font-variant-numeric: tabular-nums; }
.cards span { font-size: 13px; color: var(--soft); }
.grid { display: grid; gap: 14px; }
.columns-2 { grid-template-columns: repeat(2, minmax(0, 1fr)); }
.columns-3 { grid-template-columns: repeat(3, minmax(0, 1fr)); }
figure { margin: 0; padding: 14px 14px 6px; display: flex; flex-direction: column; }
figcaption { flex: 1; }
figcaption p { margin: 0 0 4px; font-size: 13px; line-height: 1.4; color: var(--soft); }
.keys { display: flex; flex-wrap: wrap; gap: 0 14px; font-size: 12.5px; color: #3c4654; }
.keys li { display: flex; align-items: center; gap: 6px; }
.keys i { width: 14px; height: 3px; border-radius: 2px; }
.plot { height: 220px; }
.columns-2 .plot { height: 270px; }
.panel { padding: 16px 18px; }
.controls { display: flex; flex-wrap: wrap; gap: 16px; align-items: center; padding-bottom: 14px;
 border-bottom: 1px solid var(--line); font-size: 14px; color: var(--soft); }
.controls label { display: flex; align-items: center; gap: 8px; }
.controls select { font: inherit; color: var(--ink); padding: 6px 8px; border: 1px solid #c5ccd5;
 border-radius: 7px; background: #fff; max-width: 470px; }
.controls button { font: inherit; font-weight: 600; width: 96px; padding: 6px 0; border: 0;
 border-radius: 7px; background: #24303f; color: #fff; cursor: pointer; }
.controls button:hover { background: #3b4a5e; }
.time { flex: 1; min-width: 220px; }
.time input { flex: 1; accent-color: #24303f; }
.time output { min-width: 62px; color: var(--ink); text-align: right; font-variant-numeric: tabular-nums; }
.viewer { display: grid; grid-template-columns: minmax(240px, 1fr) 2.4fr; gap: 28px; padding-top: 14px; }
.viewer h3 { font-size: 13px; font-weight: 500; color: var(--soft); margin-bottom: 4px; }
pre { margin: 0 0 14px; font: 14px/1.5 var(--mono); white-space: pre-wrap; overflow-wrap: anywhere; }
.badges { margin: 0 0 12px; display: flex; flex-wrap: wrap; gap: 6px; }
.badge { padding: 1px 9px; border-radius: 20px; font-size: 13px; font-weight: 500; background: #edf0f4;
 color: #3c4654; }
.badge.good { background: #ddf3e8; color: #14613f; }
.badge.bad { background: #fbe3e0; color: #92281f; }
.badge.hinted { background: #fff; color: #a84e00; box-shadow: inset 0 0 0 2px var(--orange); }
.canvas { display: flex; flex-direction: column; }
#tokens { flex: 1; align-content: start; display: flex; flex-wrap: wrap; gap: 4px 3px; margin-bottom: 16px; }
.token { position: relative; min-width: 20px; height: 28px; padding: 0 5px; border-radius: 5px;
 text-align: center; font: 14px/28px var(--mono); white-space: pre; }
.token.fresh { box-shadow: 0 0 0 2px #fff, 0 0 0 4px #24303f; z-index: 1; }
.token.hint { background: #fff4e8; color: #8a3f00; font-weight: 700;
 box-shadow: inset 0 0 0 3px var(--orange); }
.token.ended { background: #f0f2f5; color: #97a1ae; }
.token.masked { background: #e6eaef; color: transparent; }
.token.masked::after { content: "▁"; position: absolute; inset: 0; color: #a7b1bd; }
.break { flex-basis: 100%; height: 0; }
button.token { border: 0; cursor: pointer; padding: 0 9px; font-family: inherit; font-size: 13px; }
button.token:hover { color: #3c4654; }
.legend { display: flex; flex-wrap: wrap; gap: 8px 20px; padding-top: 12px; border-top: 1px solid var(--line);
 font-size: 13px; color: var(--soft); }
.legend li { display: flex; align-items: center; gap: 8px; }
.legend .token { height: 22px; line-height: 22px; font-size: 12px; }
#scale { width: 110px; height: 12px; border-radius: 3px; }
.settings { margin: 36px 0 48px; display: grid; gap: 10px; }
details { padding: 10px 18px; }
summary { cursor: pointer; font-weight: 600; }
details pre { margin-top: 10px; font-size: 13px; }
.empty { color: var(--soft); }
@media (max-width: 1020px) {
 .columns-3, .columns-2 { grid-template-columns: repeat(2, minmax(0, 1fr)); }
 .viewer { grid-template-columns: 1fr; gap: 6px; }
}
@media (max-width: 680px) {
 .columns-3, .columns-2 { grid-template-columns: minmax(0, 1fr); }
 header, main { padding-left: 14px; padding-right: 14px; }
}
"""

SCRIPT = """
const data = JSON.parse(document.getElementById("data").textContent);
data.figures.forEach((figure, i) => Plotly.newPlot("figure-" + i, figure.data, figure.layout,
  {responsive: true, displayModeBar: false}));

if (data.rollouts.length) {
  const element = (id) => document.getElementById(id);
  // Viridis: even steps look even, also in grey and to the colour-blind.
  const viridis = ["440154", "482878", "3e4989", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b",
                   "fde725"].map((hex) => [0, 2, 4].map((i) => Number("0x" + hex.slice(i, i + 2))));
  const color = (share) => {
    const at = share * (viridis.length - 1), low = Math.min(Math.floor(at), viridis.length - 2);
    return viridis[low].map((from, i) => from + (at - low) * (viridis[low + 1][i] - from));
  };
  const rgb = (parts) => "rgb(" + parts.map(Math.round).join(",") + ")";
  const isDark = ([r, g, b]) => 0.299 * r + 0.587 * g + 0.114 * b < 140;
  element("scale").style.background = "linear-gradient(90deg," + viridis.map(rgb).join(",") + ")";

  let boxes = [], steps = 1, timer = null, open = false;
  const make = (tag, className, text) => {
    const node = document.createElement(tag);
    node.className = className;
    node.textContent = text;
    return node;
  };

  function show() {
    const now = Number(element("time").value);
    element("now").textContent = now + " / " + steps;
    for (const {box, written, background, dark, ended, hint} of boxes) {
      const masked = written >= now, plain = !masked && !hint && !ended;
      box.className = "token" + (hint ? " hint" : ended ? " ended" : "") + (masked ? " masked" : "") +
        (!hint && written === now - 1 && now < steps ? " fresh" : "");
      box.style.background = plain ? background : "";
      box.style.color = plain ? (dark ? "#fff" : "#14202c") : "";
    }
  }

  function load() {
    const rollout = data.rollouts[element("which").value];
    element("question").textContent = rollout.question;
    element("trace").textContent = rollout.trace;
    const badge = (text, kind) => make("span", "badge " + kind, text);
    element("badges").replaceChildren(
      badge("update " + rollout.step, ""),
      rollout.try === "hinted" ? badge("with hints", "hinted") : badge("first try", ""),
      rollout.reward > 0 ? badge("correct", "good") : badge("wrong", "bad"),
      ...(rollout.rescued ? [badge("rescued its group", "good")] : []));
    steps = Math.max(...rollout.written_at) + 1;
    element("last-step").textContent = "step " + steps;
    element("time").max = steps;
    const end = rollout.tokens.indexOf("<eos>"), nodes = [];
    boxes = rollout.tokens.map((token, i) => {
      const written = rollout.written_at[i];
      const parts = color(Math.max(written, 0) / Math.max(steps - 1, 1));
      const box = make("span", "token", token === "\\n" ? "↵" : token.replaceAll("\\n", "↵"));
      const hint = rollout.hint[i];
      box.title = hint ? "hint" : "written in step " + (written + 1);
      return {box, written, hint, background: rgb(parts), dark: isDark(parts), ended: end >= 0 && i >= end};
    });
    boxes.forEach(({box}, i) => {
      if (end >= 0 && i > end && !open) return;
      nodes.push(box);
      if (rollout.tokens[i].endsWith("\\n")) nodes.push(make("span", "break", ""));
    });
    const hidden = end >= 0 ? rollout.tokens.length - end - 1 : 0;
    if (hidden) {
      const toggle = make("button", "token ended", open ? "fold" : "+ " + hidden + " after the end");
      toggle.onclick = () => {
        const now = element("time").value;
        open = !open;
        load();
        element("time").value = now;
        show();
      };
      nodes.push(toggle);
    }
    element("tokens").replaceChildren(...nodes);
    element("time").value = steps;
    show();
  }

  function stop() {
    clearInterval(timer);
    timer = null;
    element("play").textContent = "▶ Play";
  }

  function play() {
    if (timer) return stop();
    const time = element("time");
    if (Number(time.value) >= steps) time.value = 0;
    element("play").textContent = "❚❚ Pause";
    show();
    timer = setInterval(() => {
      time.value = Number(time.value) + 1;
      show();
      if (Number(time.value) >= steps) stop();
    }, Math.min(500, Math.max(40, 8000 / steps)));
  }

  data.rollouts.forEach((rollout, i) => {
    const kind = rollout.try === "hinted" ? "with hints" : "first try";
    const question = rollout.question.replaceAll("\\n", " ").slice(0, 36);
    const option = make("option", "", "update " + rollout.step + ", " + kind + ", " +
      (rollout.reward > 0 ? "correct" : "wrong") + ": " + question);
    option.value = i;
    element("which").append(option);
  });
  element("which").value = Math.max(0, data.rollouts.findIndex((rollout) => rollout.rescued));
  element("which").onchange = () => { stop(); load(); };
  element("play").onclick = play;
  element("time").oninput = () => { stop(); show(); };
  load();
}
"""
