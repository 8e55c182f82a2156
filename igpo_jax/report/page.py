"""Writes the HTML report of a training run, or a page that compares several runs. A report contains results, curves, and
rollouts that can be searched and replayed step by step. Each page is a single file that loads no other files, so that the page
can be shared and read offline."""

import dataclasses
import json
import logging
import os
import pathlib
import re
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from igpo_jax.config import fingerprint
from igpo_jax.report.figures import evaluations, sections, stage_rows, x_axes
from igpo_jax.report.style import COLORS, document, plotly_source
from igpo_jax.report.templates import embed
from igpo_jax.run.bucket_runs import run_folder
from igpo_jax.run.experiment import as_begun
from igpo_jax.run.metrics import LOGS, lost_verdicts, read_log
from igpo_jax.run.missing_files import check_finished_logs
from igpo_jax.run.results import EDGE_ROLLOUTS, rescue_rate
from igpo_jax.runtime.bucket_folders import download
from igpo_jax.runtime.buckets import is_address, write_object
from igpo_jax.runtime.checks import require
from igpo_jax.runtime.files import atomic_write, is_inside, read_json, renamed, wrap_read_errors
from igpo_jax.runtime.progress import duration
from igpo_jax.runtime.statistics import paired, percent, wilson

Row = dict[str, Any]

PAUSE = 60  # seconds
MOST_RUNS = len(COLORS)
MOST_ROLLOUTS = 1000  # total over all runs; more rollouts would make the list on the page slow
ROLLOUT_BYTES = 3_000_000  # limit for the rollouts; Plotly adds 4.6 million bytes to the page, the curves less than one million
# Fields of rollouts.jsonl that are embedded in the page unchanged
KEPT = ("step", "question", "answer", "trace", "unmask_step", "end", "reward", "text", "extracted_answer", "rescued", "outcome")
SHOWN = ("try", "question", "trace", "tokens", "unmask_step", "hint", "reward", "text")  # required; all versions write them


@dataclasses.dataclass(frozen=True)
class Run:
    """Contents of the folder of a training run."""

    folder: pathlib.Path
    config: Row
    rows: list[Row]  # metrics.jsonl
    rollouts: list[Row]  # rollouts.jsonl
    verdicts: list[Row]  # evaluations.jsonl
    result: Row | None  # result.json; None until the run is finished
    data: Row | None  # data.json


def write_report(workdir: str | os.PathLike) -> pathlib.Path | None:
    """Writes report.html into the folder of a training run, which need not be finished. Returns the path of the file. If plotly
    is not installed, logs a warning and returns None. Raises ValueError if the folder is not the folder of a run, or if a file
    in it cannot be read."""
    path = pathlib.Path(workdir, "report.html")
    try:
        write_page([workdir], path)
    except ImportError as error:
        logging.getLogger(__name__).warning("no report.html: %s", error)
        return None
    return path


def write_page(workdirs: Sequence[str | os.PathLike], path: str | os.PathLike) -> bool:
    """Writes the report of one training run, or a page that compares several runs. Returns whether all runs are finished.
    Raises ImportError if plotly is not installed. Raises ValueError if a file of a run cannot be read, if a run is given twice,
    if there are more than `MOST_RUNS` runs, or if the folder for the page is missing."""
    if len(workdirs) > MOST_RUNS:
        raise ValueError(f"{len(workdirs)} runs are too many for one page; give at most {MOST_RUNS}")
    runs = [read_run_folder(workdir) for workdir in workdirs]
    names = short_names([run.folder for run in runs])
    if not is_address(path) and not pathlib.Path(path).parent.is_dir():
        raise ValueError(f"there is no folder {pathlib.Path(path).parent} for the page; make it, or give another --output")
    with wrap_read_errors(", ".join(str(run.folder) for run in runs)):
        content = report_html(dict(zip(names, runs, strict=True)))
    if is_address(path):
        write_object(os.fspath(path), content.encode())
    else:
        atomic_write(pathlib.Path(path), content)
    return all(run.result for run in runs)


def require_own_page(path: pathlib.Path) -> None:
    """Raises ValueError if the file `path` exists and is not a page that compares several runs."""
    if path.is_file():
        with path.open("rb") as file:
            is_own = re.search(rb"<title>\d+ runs compared</title>", file.read(4096))
        require(is_own, f"{path} is no page that compares runs, and it would be replaced; give --output=FILE")


def keep_writing(workdirs: Sequence[str | os.PathLike], path: str | os.PathLike) -> None:
    """Calls `write_page` every `PAUSE` seconds until all runs are finished. If the page cannot be written, for example because
    a bucket does not respond, logs the reason and tries again after `PAUSE` seconds."""
    finished = False
    while not finished:
        time.sleep(PAUSE)
        try:
            finished = write_page(workdirs, path)
        except (ValueError, OSError) as error:
            logging.getLogger(__name__).warning("%s is not written: %s", path, error)


def read_run_folder(workdir: str | os.PathLike) -> Run:
    """Reads the files of a training run that a report needs. Raises ValueError if the folder or its config.json is missing, if
    a file cannot be read, if a symbolic link leads out of the folder, or if config.json is that of another run."""
    folder = pathlib.Path(os.path.abspath(run_folder(workdir)))
    if is_address(workdir):
        download(folder, ("result.json", *LOGS))  # in this order, because the logs may grow
    if not folder.is_dir():
        raise ValueError(f"there is no folder {workdir}; give the folder of a run")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{workdir} has no config.json; give the folder of a run")
    for name in ("config.json", "result.json", "data.json", *LOGS):
        require(is_inside(folder / name, folder), f"{folder / name} leads out of the run; the page would show what it leads to")
    check_finished_logs(folder)
    config = read_json(folder / "config.json")
    result, data = (read_json(path) if path.is_file() else None for path in (folder / "result.json", folder / "data.json"))
    if result and "fingerprint" in result:
        _require_own_config(folder, config, result["fingerprint"])
    metrics, rollouts, verdicts = (read_log(folder / f"{name}.jsonl") for name in ("metrics", "rollouts", "evaluations"))
    if lost := lost_verdicts(metrics, verdicts):  # no error, because `train --accept_loss` continues such a run
        file, told = folder / "evaluations.jsonl", "%s has lost %d evaluations, the first at step %d; restore it from a copy"
        logging.getLogger(__name__).warning(told, file, len(lost), lost[0][0])
    for number, row in enumerate(rollouts, 1):
        if missing := ", ".join(key for key in SHOWN if key not in row):
            raise ValueError(f"{folder / 'rollouts.jsonl'}:{number}: {missing} is missing; repair or remove this line")
    return Run(folder, config, metrics, rollouts, verdicts, result, data)


def _require_own_config(folder: pathlib.Path, config: Row, expected: Any) -> None:
    """Raises ValueError if the configuration in config.json does not have the fingerprint that result.json contains. Does not
    import the task that config.json names."""
    with wrap_read_errors(folder / "config.json"):
        values = renamed(config)
        values["data"] |= {"prompt_buckets": tuple(values["data"]["prompt_buckets"])}
        found = fingerprint(as_begun(folder, ConfigDict(values)))
    other = f"{folder / 'config.json'} is another configuration than that of result.json"
    require(found == expected, f"{other}; restore the files of one run from a copy")


def report_html(runs: dict[str, Run]) -> str:
    """Returns the HTML page about one or several training runs, given as {name: run}. Raises ImportError if plotly is
    missing."""
    plotly = plotly_source()
    rollouts = embedded_rollouts({name: run.rollouts for name, run in runs.items()})
    rows = {name: run.rows for name, run in runs.items()}
    curves, figures = sections(rows)
    axes, spent = x_axes(rows)
    values = _values_of_one(*runs.values()) if len(runs) == 1 else _values_of_several(runs)
    template = "report/run.html" if len(runs) == 1 else "report/runs.html"
    values |= {"sections": curves, "has_rollouts": any(rollouts["runs"].values()), "x_axes": axes}
    values["is_live"] = not all(run.result for run in runs.values())
    return document(template, figures, plotly, {"rollouts": rollouts, "spent": spent}, **values)


def headline(rows: list[Row]) -> list[tuple[str, str, str]]:
    """Returns the cards at the top of a report, each as (label, value, remark). `rows` are the entries of metrics.jsonl. If
    `rows` lacks a result, there is no card for this result."""
    contents = []
    training, evals = stage_rows(rows, "rl", "reward/first_try"), evaluations(rows)
    if evals:
        last, problems = evals[-1]["eval/accuracy"], evals[-1].get("eval/problems")
        value, remark = percent(last), f"{problems:,.0f} held-out problems" if problems else "held-out problems"
        if training and len(evals) > 1:
            before = [row for row in evals if row["step"] < training[0]["step"]] or evals[:1]
            first = before[-1]["eval/accuracy"]
            value, remark = f"{percent(first)} → {value}", f"{100 * (last - first):+.1f} points by RL, {remark}"
        contents.append(("Held-out accuracy", value, remark))
    if training:
        wrong = [row["groups/all_wrong_before"] for row in stage_rows(training, "rl", "groups/all_wrong_before")]
        if wrong:
            begin, end = (percent(np.mean(part)) for part in (wrong[:EDGE_ROLLOUTS], wrong[-EDGE_ROLLOUTS:]))
            contents.append(("Groups all wrong at the start", begin, f"{end} at the end, before hints"))
    rate = rescue_rate(stage_rows(rows, "rl", "hint/rescue_rate"))
    if rate is not None:
        contents.append(("Rescue rate", percent(rate), "of all-wrong groups, over the run"))
    ungraded = ungraded_counts(rows)
    if any(ungraded.values()):
        remark = ", ".join(f"{name} {number:,}" for name, number in ungraded.items() if number)
        contents.append(("Answers without a verdict", f"{sum(ungraded.values()):,}", remark))
    seconds = _seconds(rows)
    if seconds:
        parts = [f"{stage.upper()} {duration(spent)}" for stage, spent in seconds.items()]
        contents.append(("Training time", duration(sum(seconds.values())), ", ".join(parts)))
    return contents


def ungraded_counts(rows: list[Row]) -> dict[str, int]:
    """Returns the number of answers in a run that could not be graded, as {reason: number}. The reasons are timeouts in
    rollouts, errors of the reward function in rollouts, and timeouts or errors in evaluations. Some entries of metrics.jsonl
    from earlier versions of this package lack these numbers, and are left out."""
    keys = {"late": "grading/late", "reward function failed": "grading/broken", "in evaluations": "eval/ungraded"}
    found = {name: [row[key] for stage in ("sft", "rl") for row in stage_rows(rows, stage, key)] for name, key in keys.items()}
    return {name: round(sum(values)) for name, values in found.items()}


def short_names(folders: Sequence[pathlib.Path]) -> list[str]:
    """Returns a unique short name for each folder. A name consists of the last n parts of the folder's path, where n is the
    smallest number for which all names differ. Raises ValueError if a folder is given twice."""
    for parts in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-parts:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"{max(folders, key=folders.count)} is given twice; give every run once")


def embedded_rollouts(rollouts: dict[str, list[Row]]) -> Row:
    """Returns the rollouts to embed in a page as {"pieces": texts of tokens, "runs": {run: rollouts}}. In the rollouts, tokens
    are indices into the list "pieces". Leaves out runs without rollouts. If the rollouts exceed `MOST_ROLLOUTS` or
    `ROLLOUT_BYTES`, keeps only evenly spaced rollouts of each run."""
    rollouts = {name: rows for name, rows in rollouts.items() if rows}
    most = min(MOST_ROLLOUTS // max(len(rollouts), 1), max(map(len, rollouts.values()), default=0))
    while True:
        indices: dict[str, int] = {}
        runs = {}
        for name, rows in rollouts.items():
            kept = np.linspace(0, len(rows) - 1, min(most, len(rows)))  # with the first and the last
            runs[name] = [_compact(rows[round(i)], indices) for i in kept]
        embedded = {"pieces": list(indices), "runs": runs}
        size = len(embed(embedded).encode())
        if size <= ROLLOUT_BYTES:
            return embedded
        most = int(most * min(0.95, ROLLOUT_BYTES / size))


def numbers(run: Run) -> dict[str, str]:
    """Returns the measured results of a run as {name: text}. The texts of accuracies and of shares of groups include 95%
    confidence intervals."""
    found = {}
    training, evals = stage_rows(run.rows, "rl", "reward/first_try"), evaluations(run.rows)

    def share(name: str, value: float, n: float) -> None:
        found[name] = percent(value) if n < 1 else "{} ({} to {})".format(*map(percent, (value, *wilson(value, round(n)))))

    def groups(row: Row) -> float:
        return row.get("sampler/prompts") or run.config["rl"]["prompts"]

    before = [row for row in evals if training and row["step"] < training[0]["step"]]
    for name, rows in (("accuracy before RL", before), ("newest accuracy", evals)):
        if rows:
            share(name, rows[-1]["eval/accuracy"], rows[-1].get("eval/problems") or 0)
    if evals:
        found["at update"] = f"{evals[-1]['step']:,}"
    if training:
        for name, part in (("start", training[:EDGE_ROLLOUTS]), ("end", training[-EDGE_ROLLOUTS:])):
            graded = stage_rows(part, "rl", "groups/all_wrong_before")
            sampled = [groups(row) for row in graded]
            if any(sampled):
                wrong = np.average([row["groups/all_wrong_before"] for row in graded], weights=sampled)
                share(f"groups all wrong before hints, {name}", float(wrong), sum(sampled))
        tried = stage_rows(stage_rows(run.rows, "rl", "hint/rescue_rate"), "rl", "groups/all_wrong_before")
        rate = rescue_rate(tried)
        if rate is not None:
            share("rescued of all-wrong groups", rate, sum(groups(row) * row["groups/all_wrong_before"] for row in tried))
        distinct = [row["groups/distinct"] for row in stage_rows(run.rows, "rl", "groups/distinct")]
        if distinct:
            found["distinct first tries, end"] = percent(np.mean(distinct[-EDGE_ROLLOUTS:]))
    if ungraded := sum(ungraded_counts(run.rows).values()):
        found["answers without a verdict"] = f"{ungraded:,}"
    return found | {f"{stage.upper()} time": duration(seconds) for stage, seconds in _seconds(run.rows).items()}


def differing_settings(configs: dict[str, Row]) -> list[list[str]]:
    """Returns a table of the configuration keys whose values differ between runs. Each row of the table is a list that starts
    with the dotted key, followed by the key's value in each run. A run without the key has the value "–"."""
    flat = [flatten_dict(config, sep=".") for config in configs.values()]
    keys = dict.fromkeys(key for values in flat for key in values)
    texts = {key: [json.dumps(values[key], ensure_ascii=False) if key in values else "–" for values in flat] for key in keys}
    return [[key, *values] for key, values in texts.items() if len(set(values)) > 1]


def _values_of_one(run: Run) -> dict[str, Any]:
    """Returns the variables for rendering the template report/run.html, except for curves and rollouts."""
    name = str(run.config["task"]["name"])
    titles = {"title": f"{name} · IGPO run", "kind": "IGPO run", "heading": name, "facts": _facts(run)}
    return {**titles, "cards": headline(run.rows), "result": run.result, "config": run.config}


def _values_of_several(runs: dict[str, Run]) -> dict[str, Any]:
    """Returns the variables for rendering the template report/runs.html, except for curves and rollouts."""
    found = [numbers(run) for run in runs.values()]
    labels = dict.fromkeys(label for values in found for label in values)
    reached = [[label, *(values.get(label, "–") for values in found)] for label in labels]
    (reference, base), *others = runs.items()
    differences = [_difference(name, base, run) for name, run in others]
    columns = ["run", "difference in points (95%)", "p (McNemar)", "problems better / worse", "of", "at updates"]
    against, same = f"Newest accuracy, against {reference}", "No other run has verdicts on the same problems."
    note = "Problem by problem, where both were judged on the same ones; intervals are a bootstrap over problems."
    settings = differing_settings({name: run.config for name, run in runs.items()})
    tables = [
        ("Results", "Shares with 95% intervals (Wilson).", ["", *runs], reached, "Nothing yet."),
        (against, note, columns, [row for row in differences if row], same),
        ("Configuration", "Keys whose values differ.", ["", *runs], settings, "The configurations are the same."),
    ]
    title = f"{len(runs)} runs compared"
    return {
        **{"title": title, "kind": "IGPO runs", "heading": title, "facts": []},
        "colors": list(zip(COLORS, runs, strict=False)),
        "tables": tables,
        "configs": {name: run.config for name, run in runs.items()},
    }


def _difference(name: str, reference: Run, run: Run) -> list[str]:
    """Returns a table row that compares the accuracy in the latest evaluation of a run with that of a reference run. The
    difference is paired by problem. Returns [] if the two runs were not evaluated on the same problems, or if no problem was
    graded in both runs."""
    one, other = (each.verdicts[-1]["correct"] if each.verdicts else [] for each in (reference, run))
    tests = [(each.data or {}).get("test") for each in (reference, run)]
    if not one or len(one) != len(other) or tests[0] != tests[1] or tests[0] is None:
        return []
    verdicts = [np.array(correct, float)[:, None] for correct in (one, other)]  # null, which is no verdict, becomes NaN
    if np.isnan(verdicts[0] + verdicts[1]).all():
        return []
    found = paired(*verdicts)
    points = (100 * share for share in (found["difference"], *found["interval95"]))
    difference, p_value = "{:+.1f} ({:+.1f} to {:+.1f})".format(*points), f"{found['p_value']:.2g}"
    steps = f"{run.verdicts[-1]['step']:,} and {reference.verdicts[-1]['step']:,}"
    return [name, difference, p_value, f"{found['better']} / {found['worse']}", str(found["problems"]), steps]


def _compact(row: Row, indices: dict[str, int]) -> Row:
    """Converts an entry of rollouts.jsonl to the form that a page embeds. Each token becomes its index in `indices`, and new
    tokens are added to `indices`. The value of `correct` becomes None if the rollout could not be graded. Entries from earlier
    versions of this package lack the keys `correct`, `outcome` and `extracted_answer`. In these entries, a rollout counts as
    correct if its reward is at least 1."""
    return {key: row[key] for key in KEPT if key in row} | {
        "hinted": row["try"] == "hinted",
        "correct": row.get("correct", row["reward"] >= 1) if row.get("outcome", "ok") == "ok" else None,
        "tokens": [indices.setdefault(piece, len(indices)) for piece in row["tokens"]],
        "hint": [place for place, given in enumerate(row["hint"]) if given],
    }


def _seconds(rows: list[Row]) -> dict[str, float]:
    """Returns {stage: total time in seconds} for the training stages that were run."""
    timed = {stage: sum(row["time/total"] for row in stage_rows(rows, stage, "time/total")) for stage in ("sft", "rl")}
    return {stage: seconds for stage, seconds in timed.items() if seconds}


def _facts(run: Run) -> list[str]:
    """Returns the main settings of a run as short texts."""
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
