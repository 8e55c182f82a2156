"""Writes the results of a comparison to comparison.json, comparison.md, comparison.svg and comparison.html. The HTML page loads
no other files and has no scripts. Its figures are SVG and are drawn by this module."""

import json
import pathlib
import re
import urllib.parse
from collections.abc import Sequence
from typing import Any

import numpy as np

from igpo_jax.compare.numbers import REACHED
from igpo_jax.report.style import COLORS, PALETTE, STYLE
from igpo_jax.report.templates import read_source, render, render_page
from igpo_jax.runtime.files import atomic_write

DASHES = ("", "7 3", "2 3")  # the next pattern is used when all colors have been used
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 620, 330, 52, 12, 34, 42
LEGEND_COLUMNS = 3
# verdict -> class in page.css
VERDICTS = {"held": "good", "not held": "bad"} | dict.fromkeys(
    ("undecided", "held, exploratory", "not held, exploratory"), "soft"
)
TO_REACH = tuple(f"{cost} to {REACHED:.0%}" for cost in ("prompts", "evaluations"))
SIGNIFICANT = 0.05  # largest corrected p-value of a claim that is not exploratory
QUICK = "A quick trial (--quick) with few iterations: it shows that everything works, and its numbers say little."
COLUMNS = {
    "claim": "A statement about two or more arms.",
    "task": "The configuration.",
    "verdict": "held: the whole interval is above the claim's margin. not held: the whole interval is below it. "
    "Otherwise undecided.",
    "difference in points (95 %)": "Mean over the stages of the paired differences, in percentage points, and its interval.",
    "against": "The strongest of the arms that the claim says are worse.",
    "p, corrected": "p-value of the two-sided t test that the difference is the claim's margin, corrected for the "
    "number of claims (Holm).",
    "budget used": "Share of its network evaluations that an arm has spent when it is judged. For a claim: of the better and of "
    "the other arm.",
    "stages to decide": "About how many supervised stages an undecided claim would take.",
    "arm": "A variant of the training method.",
    "accuracy at equal evaluations": "Percent of the held-out problems that are solved when each arm has put equally many rows "
    "through the network, with an interval of 95 %.",
    "at equal prompts": "The same when each arm has sampled equally many prompts.",
    "at equal wall time": "The same when each arm has trained for equally many seconds.",
    "hardest third": "Accuracy on the third of the problems that all arms together solve least often, at equal evaluations.",
    "all wrong before hints": "Percent of groups without a correct answer before hints, in the first and in the last rollouts.",
    "second attempts' share": "Percent of the network evaluations that were spent on second attempts.",
    "rescued": "Percent of the all-wrong groups that got a correct answer in the second attempt.",
    "swapped in": "Answers of second attempts that replaced wrong ones, per group.",
    "distinct": "Percent of different answers among the first attempts of a group.",
    TO_REACH[0]: f"Prompts sampled until the accuracy was {REACHED:.0%}, the median of the runs; – if most never reached it.",
    TO_REACH[1]: f"Network evaluations until the accuracy was {REACHED:.0%}, likewise.",
    "RL seconds": "Wall time of the RL stage, the mean of the runs.",
} | {
    f"accuracy at equal {budget}": f"Percent of the held-out problems solved when each arm has spent equally many {unit}."
    for budget, unit in {"prompts": "prompts", "wall time": "seconds"}.items()
}  # fmt: skip
Curves = tuple[str, str, dict[str, tuple[np.ndarray, np.ndarray]]]  # arguments of `figure`


def write_comparison(folder: pathlib.Path, found: dict[str, Any]) -> None:
    atomic_write(folder / "comparison.json", json.dumps(found, indent=1))
    atomic_write(folder / "comparison.md", markdown(found))
    atomic_write(folder / "comparison.svg", figure(*accuracy_curves(found, "evaluations")))
    atomic_write(folder / "comparison.html", comparison_html(folder.name, found))


def accuracy_curves(found: dict[str, Any], budget: str, task: str = "") -> Curves:
    """Returns the curves of accuracy against a budget. If `task` is given, the title begins with it. The budget "prompts" is
    the number of sampled prompts. The budget "evaluations" is the number of rows (sequences) that the network has processed."""
    names = {"evaluations": "rows through the network", "prompts": "prompts sampled"}
    series = {arm: (_stack(runs, budget), _stack(runs, "accuracy")) for arm, runs in found["curves"].items()}
    title = f"{task}: accuracy" if task else "Accuracy"
    return f"{title} on {found['problems']} held-out problems", names[budget], series


def all_wrong_curves(found: dict[str, Any]) -> Curves:
    """Returns the curves of the share of groups whose completions are all wrong before hints are tried. The x axis is the
    number of sampled prompts. Each curve is smoothed over five iterations."""

    def smooth(values: np.ndarray) -> np.ndarray:
        return np.array([[row[max(0, i - 2) : i + 3].mean() for i in range(len(row))] for row in values])

    series = {arm: (_stack(runs, "sampled"), smooth(_stack(runs, "all_wrong"))) for arm, runs in found["curves"].items()}
    return "Groups that are all wrong, before hints", "prompts sampled", series


def csv_address(curves: Curves) -> str:
    """Returns a data URL with a CSV file of the points of curves. A point has the mean, the lowest and the highest value of the
    runs."""
    _, x_name, series = curves
    lines = [["arm", x_name, "mean", "lowest", "highest"]]
    for arm, (x, y) in series.items():
        points = zip(x.mean(axis=0), y.mean(axis=0), y.min(axis=0), y.max(axis=0), strict=True)
        lines += [[arm, *(f"{value:.6g}" for value in point)] for point in points]
    return "data:text/csv," + urllib.parse.quote("".join(",".join(line) + "\r\n" for line in lines))


def figure(title: str, x_name: str, series: dict[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """Returns an SVG figure that plots shares, such as accuracies, against a budget. `series` maps the name of each curve to
    two arrays (x, y), each [runs, points]. A curve shows the mean over runs, with a band from the lowest to the highest value
    of the runs. The x axis ends where the longest curve ends, but no later than at twice the end of the shortest curve."""
    ends = [float(x.mean(axis=0)[-1]) for x, _ in series.values()]
    most = min(max(ends), 2 * min(ends)) or 1.0  # otherwise, one expensive arm would squeeze the other curves

    def at(x, y) -> tuple[float, float]:
        return LEFT + (WIDTH - LEFT - RIGHT) * x / most, TOP + (HEIGHT - TOP - BOTTOM) * (1 - y)

    def points(x, y) -> str:
        return " ".join("{:.1f},{:.1f}".format(*at(*pair)) for pair in zip(x, y, strict=True))

    curves = []
    width, rows = (WIDTH - LEFT) / min(LEGEND_COLUMNS, len(series)), -(-len(series) // LEGEND_COLUMNS)
    for number, (name, (x, y)) in enumerate(series.items()):
        shown = x.mean(axis=0) <= most
        middle, y = x.mean(axis=0)[shown], y[:, shown]
        ends_of_band = np.concatenate([middle, middle[::-1]]), np.concatenate([y.min(axis=0), y.max(axis=0)[::-1]])
        curves.append({
            "name": name,
            "color": COLORS[number % len(COLORS)],
            "dashes": DASHES[number // len(COLORS) % len(DASHES)],
            "band": points(*ends_of_band) if len(y) > 1 else "",
            "line": points(middle, y.mean(axis=0)),
            "x": round(LEFT + width * (number % LEGEND_COLUMNS)),
            "y": HEIGHT + 16 * (number // LEGEND_COLUMNS),
        })  # fmt: skip
    axes = {
        "shares": [(round(at(0, share)[1], 1), f"{share:.0%}") for share in (0, 0.25, 0.5, 0.75, 1)],
        "ticks": [(round(at(tick, 0)[0], 1), _short(tick)) for tick in _ticks(most)],
        "x_name": x_name,
    }
    sizes = {"width": WIDTH, "height": HEIGHT + 16 * rows, "left": LEFT, "right": WIDTH - RIGHT, "bottom": HEIGHT - BOTTOM}
    return render("compare/figure.svg", title=title, curves=curves, **axes, **sizes)


def table(found: dict[str, Any]) -> list[list[str]]:
    """Returns the results of a comparison as a table, which is a list of rows of text. The first row is the header. Each of the
    other rows belongs to one arm."""
    header = ["arm", "accuracy at equal evaluations", "at equal prompts", "at equal wall time", "hardest third", "budget used",
              "all wrong before hints", "second attempts' share", "rescued", "swapped in", "distinct", *TO_REACH,
              "RL seconds"]  # fmt: skip
    rows = [header]
    for arm in found["arms"]:
        keys = ("equal_evaluations", "equal_prompts", "equal_seconds", "hardest_third")
        accuracies = [*(with_interval(arm[key]) for key in keys), f"{arm['budget_used']:.0%}"]
        all_wrong = " → ".join(map(_percent, arm["all_wrong"]))
        swapped_in = "–" if arm["swapped_in"] is None else f"{arm['swapped_in']:.2f}"
        costs = ["–" if arm[key] is None else _short(arm[key]) for key in ("prompts_to_reach", "evaluations_to_reach")]
        shares = [
            all_wrong,
            _percent(arm["second_attempts"]),
            _percent(arm["rescue_rate"]),
            swapped_in,
            _percent(arm["distinct"]),
        ]
        rows.append([f"{arm['arm']}: {arm['title']}", *accuracies, *shares, *costs, f"{arm['rl_seconds']:.0f}"])
    return rows


def verdict_table(found: dict[str, Any]) -> list[list[str]]:
    rows = [["claim", "verdict", "difference in points (95 %)", "against", "p, corrected", "budget used", "stages to decide"]]
    for claim in found["claims"]:
        used = "–" if claim["budget_used"] is None else " / ".join(f"{share:.0%}" for share in claim["budget_used"])
        more = "–" if claim["stages_to_decide"] is None else f"{claim['stages_to_decide']}"
        corrected = "–" if claim["p_corrected"] is None else f"{claim['p_corrected']:.2g}"
        rows.append([claim["text"], verdict(claim), difference(claim), claim["against"], corrected, used, more])
    return rows


def verdict(claim: dict[str, Any]) -> str:
    weak = claim["verdict"] != "undecided" and (claim["p_corrected"] or 0.0) > SIGNIFICANT
    return claim["verdict"] + ", exploratory" * weak


def difference(claim: dict[str, Any]) -> str:
    if claim["mean"] is None:
        return "–"
    bounds = "–" if claim["interval95"] is None else " to ".join(f"{100 * value:+.1f}" for value in claim["interval95"])
    return f"{100 * claim['mean']:+.1f} ({bounds})"


def note(found: dict[str, Any]) -> str:
    run, claims = found["runs"][0], len(found["claims"])
    repeats = "one RL run" if found["rl_seeds"] == 1 else f"{found['rl_seeds']} RL runs"
    versions = ", ".join(f"{name} {run['versions'][name]}" for name in ("igpo_jax", "jax"))
    commits = ", ".join(f"commit {commit}" for commit in dict.fromkeys(run["commit"] for run in found["runs"]))
    others = "from the other stages" if len(found["seeds"]) > 1 else "from the same stage"
    hardest = f" For each stage, the hardest third of the problems is determined {others}."
    hardest = hardest if any(arm["hardest_third"]["mean"] is not None for arm in found["arms"]) else ""
    same = "".join(
        f" {', '.join(arms[:-1])} and {arms[-1]} gave the same verdicts in all evaluations, so this comparison cannot tell them apart."
        for arms in found["same_verdicts"]
    )
    quick = f"{QUICK} " if found["quick"] else ""
    return (
        f"{quick}{len(found['seeds'])} supervised stages (seeds {', '.join(map(str, found['seeds']))}), {repeats} of "
        f"each arm from each; {found['problems']} held-out problems, greedy decoding; percent with 95 % intervals of Student's "
        "t over the means of the stages. The table of arms compares all arms at the budget that the cheapest one spends in all. A "
        "claim compares its arms at the largest budget that both reach, so its difference may be another than in the table. "
        "Accuracies between two evaluations are interpolated. p-values are corrected (Holm) for the number of claims of this "
        f"comparison ({claims}). If a claim's p-value is above {SIGNIFICANT}, the claim is exploratory, even if its own interval "
        "decides it. An undecided claim would take about the given number "
        f"of stages.{hardest}{same}"
        f" {run['device']}, {versions}, {commits}."
    )


def markdown(found: dict[str, Any]) -> str:
    lines = [*markdown_table(table(found)), "", *markdown_table(verdict_table(found)), "", markdown_text(note(found)), ""]
    return "\n".join(lines)


def markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the lines of a table in Markdown, given its rows of text. The first row is the header."""
    cells = [list(map(markdown_text, row)) for row in rows]
    return ["| " + " | ".join(row) + " |" for row in (cells[0], ["---"] * len(cells[0]), *cells[1:])]


def markdown_text(text: str) -> str:
    """Escapes a text so that Markdown shows it unchanged, in one line and without HTML. Replaces control characters with
    spaces, so that a terminal executes no control sequences in the text."""
    printable = "".join(character if character.isprintable() else " " for character in text)
    return re.sub(r"([\\`<|\[\]])", r"\\\1", printable)


def comparison_html(name: str, found: dict[str, Any]) -> str:
    repeats = f"{len(found['seeds'])} supervised stages, each continued {found['rl_seeds']} × by each arm"
    facts = [*(["quick trial (--quick)"] if found["quick"] else []), repeats, f"{found['problems']} held-out problems"]
    curves = [accuracy_curves(found, "evaluations"), accuracy_curves(found, "prompts"), all_wrong_curves(found)]
    return comparison_page(name, facts, note(found), (verdict_table(found), table(found)), curves, found["runs"])


def comparison_page(
    name: str,
    facts: list[str],
    about: str,
    tables: tuple[list[list[str]], list[list[str]]],
    curves: Sequence[Curves],
    runs: list[dict[str, Any]],
) -> str:
    """Returns the HTML page with the tables of claims and of arms, and with a figure for each of `curves`."""
    return render_page(
        "compare/page.html",
        [STYLE, PALETTE, read_source("compare/page.css")],
        [],
        title=f"{name} · comparison",
        kind="Comparison",
        heading=name,
        facts=facts,
        note=about,
        claims=tables[0],
        arms=tables[1],
        columns=COLUMNS,
        verdicts=VERDICTS,
        figures=[{"name": f"{each[0]}, by {each[1]}", "svg": figure(*each), "csv": csv_address(each)} for each in curves],
        runs=runs,
    )


def _stack(runs: list[dict[str, list[float]]], key: str) -> np.ndarray:
    """Returns the curve `key` of all runs as a float64 array [runs, points]. All curves are cut to the length of the shortest
    one."""
    points = min(len(run[key]) for run in runs)
    return np.array([run[key][:points] for run in runs], float)


def _ticks(most: float) -> list[float]:
    if not 1e-9 < most < 1e15:
        return [0.0]
    power = 10.0 ** np.floor(np.log10(most))
    step = next(power * part for part in (0.1, 0.2, 0.5, 1, 2) if most / (power * part) <= 6)
    return [float(tick) for tick in np.arange(0, most * 1.001, step)]


def _short(number: float) -> str:
    return f"{number / 1e6:.3g}M" if number >= 1e6 else f"{number / 1e3:.3g}k" if number >= 1e4 else f"{number:.0f}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def with_interval(value: dict[str, Any]) -> str:
    low, high = value["interval95"] or (None, None)
    return f"{_percent(value['mean'])} ({_percent(low)} to {_percent(high)})" if low is not None else _percent(value["mean"])
