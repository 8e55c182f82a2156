"""Comparison on several tasks. Each configuration has a comparison in a folder of its own, and one page shows the results of
all comparisons."""

import functools
import json
import pathlib
import subprocess
import threading
from typing import Any

from igpo_jax.cli import load_config, resolve_config_path
from igpo_jax.compare.arms import check_arms
from igpo_jax.compare.intervals import holm
from igpo_jax.compare.page import (
    QUICK,
    SIGNIFICANT,
    accuracy_curves,
    comparison_page,
    difference,
    markdown_table,
    markdown_text,
    verdict,
    with_interval,
)
from igpo_jax.runtime import interrupts
from igpo_jax.runtime.checks import require
from igpo_jax.runtime.files import atomic_write, read_json
from igpo_jax.runtime.installation import ending_with_parent, python_command

BUDGETS = {"equal_evaluations": "evaluations", "equal_prompts": "prompts", "equal_seconds": "wall time"}


def task_name(config: str) -> str:
    """Returns the name of a comparison's folder, given its configuration, such as `words.py:smoke`."""
    file, _, variant = config.partition(":")
    return "-".join(filter(None, (pathlib.Path(file).stem, variant)))


def check_tasks(configs: list[str], arms: list[str], overrides: list[str]) -> None:
    """Raises ValueError if a configuration cannot be loaded, lacks a key of `overrides`, or is invalid with the settings of an
    arm. All configurations are checked before the first comparison starts, because each comparison may take hours."""
    for name in configs:
        config = load_config(resolve_config_path(name))
        for override in overrides:
            key = override.removeprefix("--config.").partition("=")[0]
            try:
                functools.reduce(lambda section, part: section[part], key.split("."), config)
            except KeyError:
                raise ValueError(f"--tasks: {name} has no key {key}, which is given for all tasks") from None
        try:
            check_arms(config, arms, overrides)
        except ValueError as error:
            raise ValueError(f"--tasks: {name}: {error}") from None


def compare_tasks(folder: pathlib.Path, configs: list[str], arguments: list[str], stages: str | None) -> None:
    """Runs one comparison for each configuration, and writes a page with the results of all comparisons. `arguments` are the
    command's other arguments, which each comparison gets. `stages` is a folder with the supervised models of each task, or
    None. Raises ValueError if two configurations have the same name, or if the folder has results without a comparison, and
    RuntimeError if a comparison fails."""
    names = [task_name(config) for config in configs]
    require(len(set(names)) == len(names), f"--tasks: two tasks are called {max(names, key=names.count)}")
    is_begun = any(folder.glob("*/overrides.json"))
    for file in (folder / f"tasks.{kind}" for kind in ("json", "md", "html")):
        require(is_begun or not file.exists(), f"{file} is of no comparison, and would be replaced; give another --output")
    for config, name in zip(configs, names, strict=True):
        command = [*python_command("igpo_jax.compare"), f"--config={config}", f"--output={folder / name}", *arguments]
        command += [f"--stages={stages}/{name}"] if stages else []
        # A process group of its own keeps the terminal's signals away; only this process handles them.
        process = subprocess.Popen(ending_with_parent(command), stdin=subprocess.DEVNULL, process_group=0)

        def stop(process=process) -> None:
            process.terminate()
            process.wait()

        with interrupts.before_end(stop):
            code = process.wait()
            if interrupts.first_signal() is not None:
                threading.Event().wait()  # until the thread that has stopped the comparison ends this process
        if code:
            raise RuntimeError(f"the comparison on {name} has stopped (exit code {code}), see above")
    write_tasks(folder, {name: read_json(folder / name / "comparison.json") for name in names})


def write_tasks(folder: pathlib.Path, found: dict[str, dict[str, Any]]) -> None:
    """Writes tasks.json, tasks.md and tasks.html. `found` is {task: contents of its comparison.json}."""
    correct_p_values(found)
    tables, about = (arms_table(found), claims_table(found)), note(found)
    text = "\n".join([*markdown_table(tables[0]), "", *markdown_table(tables[1]), "", markdown_text(about), ""])
    atomic_write(folder / "tasks.json", json.dumps(found, indent=1))
    atomic_write(folder / "tasks.md", text)
    curves = [accuracy_curves(part, "evaluations", name) for name, part in found.items()]
    runs = [{"task": name} | run for name, part in found.items() for run in part["runs"]]
    facts = [*(["quick trial (--quick)"] if any(part["quick"] for part in found.values()) else []), f"{len(found)} tasks"]
    page = comparison_page(folder.name, facts, about, (tables[1], tables[0]), curves, runs)
    atomic_write(folder / "tasks.html", page)


def correct_p_values(found: dict[str, dict[str, Any]]) -> None:
    """Corrects the p-values of all claims for the number of claims on all tasks (Holm), in place. `found` is {task: contents of
    its comparison.json}."""
    claims = [claim for part in found.values() for claim in part["claims"]]
    for claim, p in zip(claims, holm([claim["p_value"] for claim in claims]), strict=True):
        claim["p_corrected"] = p


def arms_table(found: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Returns the accuracy of each arm on each task at equal budgets, as rows of text. The first row is the header."""
    rows = [["arm", "task", *(f"accuracy at equal {budget}" for budget in BUDGETS.values())]]
    arms = {arm["arm"]: arm["title"] for part in found.values() for arm in part["arms"]}
    for name, title in arms.items():
        for task, part in found.items():
            for arm in part["arms"]:
                if arm["arm"] == name:
                    rows.append([f"{name}: {title}", task, *(with_interval(arm[key]) for key in BUDGETS)])
    return rows


def claims_table(found: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Returns the verdict on each claim on each task, as rows of text. The first row is the header."""
    rows = [["claim", "task", "verdict", "difference in points (95 %)", "against", "p, corrected"]]
    texts = dict.fromkeys(claim["text"] for part in found.values() for claim in part["claims"])
    for text in texts:
        for task, part in found.items():
            for claim in part["claims"]:
                if claim["text"] == text:
                    p = "–" if claim["p_corrected"] is None else f"{claim['p_corrected']:.2g}"
                    rows.append([text, task, verdict(claim), difference(claim), claim["against"], p])
    return rows


def note(found: dict[str, dict[str, Any]]) -> str:
    number = sum(len(part["claims"]) for part in found.values())
    sizes = "; ".join(
        f"{name}: {len(part['seeds'])} supervised stages, {part['rl_seeds']} RL runs of each arm from each, {part['problems']} "
        "problems"
        for name, part in found.items()
    )
    quick = f"{QUICK} " if any(part["quick"] for part in found.values()) else ""
    return (
        f"{quick}{sizes}. Percent with 95 % intervals of Student's t over the means of the stages. Accuracies of a task are compared "
        "at the budget that its cheapest arm spends in all, and the two arms of a claim at the largest number of network "
        f"evaluations that both reach. {number} claims are judged on this page, and the p-values are corrected for their number "
        f"(Holm). A claim whose p-value is above {SIGNIFICANT} is exploratory, even if its own interval decides it."
    )
