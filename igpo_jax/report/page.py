"""Reports: what a run reached, its curves, and its rollouts, to be searched and played step by step; or several runs on one
page, with what differs between them.

One file that loads nothing from elsewhere, so that it can be sent around and opened offline.
"""

import dataclasses
import html
import json
import logging
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from igpo_jax.report.figures import color_of, evaluations, percent, sections, stage_rows
from igpo_jax.report.style import BROWSER, PAGE, SCRIPT, STYLE
from igpo_jax.run.metrics import read_rows
from igpo_jax.run.results import EDGE_ROLLOUTS, rescue_rate
from igpo_jax.runtime.files import atomic_write, read_json, wrap_read_errors
from igpo_jax.runtime.statistics import paired, wilson

Row = dict[str, Any]

MOST_RUNS = 10  # there are no more colours
MOST_ROLLOUTS = 1000  # of all runs; a browser's list stays quick
ROLLOUT_BYTES = 3_000_000  # of the page; Plotly has 4.6 million, the curves less than one


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run's folder holds. rows, rollouts, verdicts: of metrics.jsonl, rollouts.jsonl and evaluations.jsonl. result,
    data: None where there is no result.json yet, no data.json."""

    folder: pathlib.Path
    config: Row
    rows: list[Row]
    rollouts: list[Row]
    verdicts: list[Row]
    result: Row | None
    data: Row | None


def write_report(workdir: str | os.PathLike) -> pathlib.Path | None:
    """Writes report.html into a run's folder. The run may be under way.

    Returns:
        Its path; None, and a warning, where plotly is not installed.

    Raises:
        ValueError: see `read_run`.
    """
    path = pathlib.Path(workdir, "report.html")
    try:
        write_page([workdir], path)
    except ImportError as error:
        logging.getLogger(__name__).warning("no report.html: %s", error)
        return None
    return path


def write_page(workdirs: Sequence[str | os.PathLike], path: pathlib.Path) -> None:
    """Writes the page about one run, or the one that compares several.

    Raises:
        ValueError: see `read_run`; a folder given twice, too many of them, or no folder for the page.
        ImportError: plotly is not installed.
    """
    if len(workdirs) > MOST_RUNS:
        raise ValueError(f"{len(workdirs)} runs are too many for one page; give at most {MOST_RUNS}")
    runs = [read_run(workdir) for workdir in workdirs]
    names = short_names([run.folder for run in runs])
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent} for the page; make it, or give another --output")
    with wrap_read_errors(", ".join(str(run.folder) for run in runs)):
        document = page(dict(zip(names, runs, strict=True)))
    atomic_write(path, document)


def read_run(workdir: str | os.PathLike) -> Run:
    """
    Raises:
        ValueError: no such folder, one without config.json, or a file in it that cannot be read.
    """
    folder = pathlib.Path(os.path.abspath(workdir))
    if not folder.is_dir():
        raise ValueError(f"there is no folder {workdir}; give the folder of a run")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{workdir} has no config.json; give the folder of a run")
    config = read_json(folder / "config.json")
    result, data = (read_json(path) if path.is_file() else None for path in (folder / "result.json", folder / "data.json"))
    logs = (read_rows(folder / name) for name in ("metrics.jsonl", "rollouts.jsonl", "evaluations.jsonl"))
    return Run(folder, config, *logs, result, data)


def page(runs: dict[str, Run]) -> str:
    """The document about one run, or about several by their names.

    Raises:
        ImportError: plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise ImportError('plotly is missing; pip install -e ".[report]"') from None
    rollouts = embedded_rollouts({name: run.rollouts for name, run in runs.items()})
    browser = BROWSER if any(rollouts["runs"].values()) else ""
    curves, figures = sections({name: run.rows for name, run in runs.items()}, browser)
    return PAGE.format(
        style=STYLE,
        **(_head_of_one(*runs.values()) if len(runs) == 1 else _head_of_several(runs)),
        sections=curves or '<p class="empty">No metrics yet.</p>',
        plotly=get_plotlyjs() if figures else "",
        data=_embed({"figures": figures, "rollouts": rollouts}),
        script=SCRIPT,
    )


def headline(rows: list[Row]) -> list[tuple[str, str, str]]:
    """(label, value, remark) of the cards; what was not measured is left out."""
    cards = []
    training = stage_rows(rows, "rl", "reward/first_try")
    evals = evaluations(rows)
    if evals:
        last, problems = evals[-1]["eval/accuracy"], evals[-1].get("eval/problems")
        of = f"{problems:,.0f} held-out problems" if problems else "held-out problems"
        before = [row for row in evals if training and row["step"] < training[0]["step"]] or evals[:1]
        if training and len(evals) > 1:
            first = before[-1]["eval/accuracy"]
            change = f"{100 * (last - first):+.1f} points by RL, {of}"
            cards.append(("Held-out accuracy", f"{percent(first)} → {percent(last)}", change))
        else:
            cards.append(("Held-out accuracy", percent(last), of))
    if training:
        wrong = np.array([row["groups/all_wrong_before"] for row in training])
        begin, end = percent(wrong[:EDGE_ROLLOUTS].mean()), percent(wrong[-EDGE_ROLLOUTS:].mean())
        cards.append(("Groups all wrong at the start", begin, f"{end} at the end, before hints"))
    rate = rescue_rate(stage_rows(rows, "rl", "hint/rescue_rate"))
    if rate is not None:
        cards.append(("Rescue rate", percent(rate), "of all-wrong groups, over the run"))
    seconds = _seconds(rows)
    if seconds:
        parts = [f"{stage.upper()} {_duration(spent)}" for stage, spent in seconds.items()]
        cards.append(("Training time", _duration(sum(seconds.values())), ", ".join(parts)))
    return cards


def short_names(folders: Sequence[pathlib.Path]) -> list[str]:
    """As much of the ends of the paths as tells them apart.

    Raises:
        ValueError: a folder is given twice.
    """
    for parts in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-parts:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"{max(folders, key=folders.count)} is given twice; give every run once")


def embedded_rollouts(rollouts: dict[str, list[Row]]) -> Row:
    """{"pieces": texts of tokens, "runs": rows by run}, in which tokens are places in `pieces`. Runs without rollouts are left
    out; where there are too many rollouts for the page, those of each run are thinned evenly."""
    rollouts = {name: rows for name, rows in rollouts.items() if rows}
    most = min(MOST_ROLLOUTS // max(len(rollouts), 1), max(map(len, rollouts.values()), default=0))
    while True:
        places: dict[str, int] = {}
        runs = {name: [_compact(row, places) for row in _spread(rows, most)] for name, rows in rollouts.items()}
        embedded = {"pieces": list(places), "runs": runs}
        size = len(_embed(embedded).encode())
        if size <= ROLLOUT_BYTES:
            return embedded
        most = int(most * min(0.95, ROLLOUT_BYTES / size))


def final_difference(one: Run, other: Run) -> dict[str, Any] | None:
    """`paired` of their newest verdicts; None where there are none, or not of the same problems."""
    verdicts = [run.verdicts[-1]["correct"] if run.verdicts else [] for run in (one, other)]
    tests = [(run.data or {}).get("test") for run in (one, other)]
    if not verdicts[0] or len(verdicts[0]) != len(verdicts[1]) or tests[0] != tests[1] or tests[0] is None:
        return None
    return paired(*(np.array(of, bool)[:, None] for of in verdicts))


def numbers(run: Run) -> dict[str, str]:
    """What a run reached, by name, as text, shares with their 95 % intervals; what was not measured is left out."""
    found = {}
    training, evals = stage_rows(run.rows, "rl", "reward/first_try"), evaluations(run.rows)

    def share(name: str, value: float, n: float) -> None:
        found[name] = percent(value) if n < 1 else "{} ({} to {})".format(*map(percent, (value, *wilson(value, round(n)))))

    def groups(row: Row) -> float:
        return row.get("sampler/prompts") or run.config["rl"]["prompts"]

    if evals:
        before = [row for row in evals if training and row["step"] < training[0]["step"]]
        if before:
            share("accuracy before RL", before[-1]["eval/accuracy"], before[-1].get("eval/problems") or 0)
        share("newest accuracy", evals[-1]["eval/accuracy"], evals[-1].get("eval/problems") or 0)
        found["at update"] = f"{evals[-1]['step']:,}"
    if training:
        for name, part in (("start", training[:EDGE_ROLLOUTS]), ("end", training[-EDGE_ROLLOUTS:])):
            sampled = [groups(row) for row in part]
            wrong = np.average([row["groups/all_wrong_before"] for row in part], weights=sampled)
            share(f"groups all wrong before hints, {name}", float(wrong), sum(sampled))
        tried = stage_rows(run.rows, "rl", "hint/rescue_rate")
        rate = rescue_rate(tried)
        if rate is not None:
            share("rescued of all-wrong groups", rate, sum(groups(row) * row["groups/all_wrong_before"] for row in tried))
        distinct = stage_rows(run.rows, "rl", "groups/distinct")
        if distinct:
            found["distinct first tries, end"] = percent(np.mean([row["groups/distinct"] for row in distinct[-EDGE_ROLLOUTS:]]))
    for stage, seconds in _seconds(run.rows).items():
        found[f"{stage.upper()} time"] = _duration(seconds)
    return found


def differing_settings(configs: dict[str, Row]) -> list[list[str]]:
    """[key, value of every run] for each dotted key whose values are not all the same; – where a run has no such key."""
    flat = [_flat(config) for config in configs.values()]
    keys = dict.fromkeys(key for of_run in flat for key in of_run)
    texts = {key: [json.dumps(of_run[key], ensure_ascii=False) if key in of_run else "–" for of_run in flat] for key in keys}
    return [[key, *values] for key, values in texts.items() if len(set(values)) > 1]


def _head_of_one(run: Run) -> dict[str, str]:
    """What of the page is not curves or rollouts."""
    name = html.escape(str(run.config["task"]["name"]))
    facts = "".join(f"<li>{html.escape(fact)}</li>" for fact in _facts(run))
    return {
        "title": f"{name} · IGPO run",
        "header": f'<p class="kind">IGPO run</p><h1>{name}</h1><ul class="facts">{facts}</ul>',
        "summary": f'<ul class="cards">{"".join(map(_card, headline(run.rows)))}</ul>',
        "settings": (_details("Result", run.result) if run.result else "") + _details("Configuration", run.config),
    }


def _head_of_several(runs: dict[str, Run]) -> dict[str, str]:
    named = [(name, numbers(run)) for name, run in runs.items()]
    labels = dict.fromkeys(label for _, found in named for label in found)
    reached = [[label, *(found.get(label, "–") for _, found in named)] for label in labels]
    reference, *others = runs
    differences = [
        _difference(name, runs[reference], runs[name], of)
        for name in others
        if (of := final_difference(runs[reference], runs[name]))
    ]
    columns = ["run", "difference in points (95%)", "p (McNemar)", "problems better / worse", "of", "at updates"]
    settings = differing_settings({name: run.config for name, run in runs.items()})
    title = f"{len(runs)} runs compared"
    keys = (f'<li><i style="background:{color_of(number)}"></i>{html.escape(name)}</li>' for number, name in enumerate(runs))
    return {
        "title": title,
        "header": f'<p class="kind">IGPO runs</p><h1>{title}</h1>',
        "summary": f'<ul class="runs">{"".join(keys)}</ul>'
        + _table("What they reached", "Shares with 95% intervals (Wilson).", ["", *runs], reached)
        + _table(
            f"Newest accuracy, against {reference}",
            "Problem by problem, where both were judged on the same ones; intervals are a bootstrap over problems.",
            columns,
            differences,
            "No other run has verdicts on the same problems.",
        )
        + _table("Configuration", "Keys whose values differ.", ["", *runs], settings, "The configurations are the same."),
        "settings": "".join(_details(f"Configuration of {name}", run.config) for name, run in runs.items()),
    }


def _difference(name: str, reference: Run, run: Run, found: Row) -> list[str]:
    """A line of the table of paired differences."""
    points = (100 * share for share in (found["difference"], *found["interval95"]))
    return [
        name,
        "{:+.1f} ({:+.1f} to {:+.1f})".format(*points),
        f"{found['p_value']:.2g}",
        f"{found['better']} / {found['worse']}",
        str(found["problems"]),
        f"{run.verdicts[-1]['step']:,} and {reference.verdicts[-1]['step']:,}",
    ]


def _table(title: str, note: str, header: list[str], lines: list[list[str]], empty: str = "Nothing yet.") -> str:
    def row(cells: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(row(line, "td") for line in lines)
    table = f"<table><thead>{row(header, 'th')}</thead><tbody>{body}</tbody></table>"
    inner = f'<p>{note}</p><div class="wide" tabindex="0">{table}</div>' if lines else f"<p>{empty}</p>"
    return f'<section><h2>{html.escape(title)}</h2><div class="panel numbers">{inner}</div></section>'


def _compact(row: Row, places: dict[str, int]) -> Row:
    """A row of rollouts.jsonl for the page. Tokens become their places in `places`, which grows. Rows of earlier versions
    have no `correct`, `outcome` and `extracted_answer`."""
    kept = ("step", "question", "answer", "trace", "unmask_step", "end", "reward", "text", "extracted_answer", "rescued", "outcome")
    return {key: row[key] for key in kept if key in row} | {
        "hinted": row["try"] == "hinted",
        "correct": row.get("correct", row["reward"] >= 1),
        "tokens": [places.setdefault(piece, len(places)) for piece in row["tokens"]],
        "hint": [place for place, given in enumerate(row["hint"]) if given],
    }


def _spread(rows: list[Row], most: int) -> list[Row]:
    """At most `most` of the rows, evenly spaced, with the first and the last."""
    if len(rows) <= most:
        return rows
    return [rows[round(i)] for i in np.linspace(0, len(rows) - 1, most)]


def _flat(config: Row, prefix: str = "") -> Row:
    """With dotted keys."""
    flat = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _seconds(rows: list[Row]) -> dict[str, float]:
    """Of the stages that took any."""
    timed = {stage: sum(row["time/total"] for row in stage_rows(rows, stage, "time/total")) for stage in ("sft", "rl")}
    return {stage: seconds for stage, seconds in timed.items() if seconds}


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _facts(run: Run) -> list[str]:
    """What a reader wants to know of the configuration at first sight."""
    config = run.config
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
        *([] if run.result else ["not finished"]),
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
