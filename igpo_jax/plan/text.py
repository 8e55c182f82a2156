"""Formats the results of `plan` and `tune` as text."""

from collections.abc import Iterable, Sequence

from igpo_jax.plan.advice import MOST
from igpo_jax.plan.programs import iteration_seconds

COLUMNS = ("program", "arguments", "resident", "temporary", "peak", "of memory", "TFLOP", "HBM GB", "received GB")
COLUMNS += ("est. s", "comm.", "compile s")


def as_advice(tuned: dict) -> str:
    """Formats the result of `tune` as text."""
    before, after = (tuned[key] for key in ("before", "after"))
    parts = [f"{name} {before[name]:.1f} -> {after[name]:.1f} s" for name in before]
    fits = "" if tuned["fits_before"] else " (does not fit)"
    total = f"An iteration: {sum(before.values()):.0f} s{fits} -> {sum(after.values()):.0f} s, estimated ({', '.join(parts)})"
    flags = " ".join(tuned["overrides"]) or "the configuration is the best one found"
    return "\n".join(["Rejected:", *(f"- {reason}" for reason in tuned["rejected"]), "", total, flags])


def as_text(result: dict) -> str:
    """Formats the result of `plan` as text with Markdown tables. The text is suitable for a terminal and for BUILD.md."""
    here = ["Planned for the devices of this machine; --topology=h100:8 or v5e:2x4 plans for others."] * result.get(
        "here", False
    )
    lines = [setting(result), *here, "", "Per device, GiB and one run of each program:", "", *program_table(result)]
    lines += ["", "Resident arrays (in memory besides the arguments), GiB:"]
    for record in result["programs"]:
        held = ", ".join(f"{name} {size:.2f}" for name, size in record["resident_gib"].items())
        lines.append(f"- {record['name']}: {held or 'nothing'}")
    lines += ["", "Received, GB by kind:"]
    lines += [f"- {record['name']}: {received(record)}" for record in result["programs"]]
    lines += [
        "",
        "est. s: estimated seconds at the chip's published peaks, nothing of the communication hidden; comm.: its share.",
        "sample: all steps of a block of one chunk of a rollout, of the first and, after inpaint, of the second try.",
        "evaluate: the same for a batch of test problems. cast: a copy of the weights in the dtype of computation.",
        "Programs are compiled for the largest of data.prompt_buckets; chunks and microbatches of shorter prompts take less time.",
    ]
    if result["iterations"] and (seconds := iteration_seconds(result["programs"])) is not None:
        parts = [record for record in result["programs"] if record["used"] and record["per_iteration"]]
        terms = " + ".join(f"{record['per_iteration']} x {record['name']}" for record in parts)
        lines.append(f"One iteration, no group all wrong: {terms}, estimated {seconds:.0f} s.")
        if "rollouts" in result:
            lines.append(typical(result, seconds))
            seconds = typical_seconds(result, seconds)
        lines.append(f"{total_time(result['iterations'], 'iterations', seconds)}, without evaluations and second attempts.")
    for record in result["programs"]:
        if record["name"] == "sft" and record["used"] and "estimated_seconds" in record:
            number = result["sft_updates"] or 1000  # their number is unknown if sft.epochs is set
            lines.append(f"{total_time(number, 'supervised updates', record['estimated_seconds'])}.")
    kept = f"the newest {result['checkpoints_kept']} and the best one are kept, and the next one is written before one is deleted"
    disk = (result["checkpoints_kept"] + 2) * result["checkpoint_gb"]
    lines.append(f"A checkpoint has {_gigabytes(result['checkpoint_gb'])}; {kept}: up to {_gigabytes(disk)} of disk.")
    if "remat" in result:
        lines += ["", *remat_table(result)]
    lines += ["", verdict(result) + " What would save most:"]
    lines += [f"- about {entry['saves_about_gib']:.2f} GiB: {entry['change']}" for entry in result["advice"]]
    return "\n".join(lines)


def total_time(number: int, what: str, seconds: float) -> str:
    """Returns how long `number` steps take. `what` names the steps, and `seconds` is the time of one."""
    return f"{number:,} {what} take about {number * seconds / 3600:.1f} h"


def _gigabytes(number: float) -> str:
    return f"{number:.2g} GB" if number < 10 else f"{number:.0f} GB"


def typical(result: dict, seconds: float) -> str:
    """Returns a line of text with the estimated time of an iteration for prompts of common lengths. `seconds` is the estimated
    time of an iteration in which all prompts are padded to the largest bucket."""
    expected = result["rollouts"]
    rows = f"{expected['mean_positions']:.0f} positions per row on average instead of {expected['most_positions']}"
    call = f"sample takes {expected['estimated_seconds']:.2f} s ({rows})"
    call += f", score and update {expected.get('training_share', 1):.0%} of their time"  # plans of earlier versions lack it
    return f"With prompts as long as those of {expected['prompts']}, {call}, and the iteration {typical_seconds(result, seconds):.0f} s."


def typical_seconds(result: dict, seconds: float) -> float:
    """Returns the estimated time of an iteration for prompts of common lengths, see `typical`."""
    expected, found = result["rollouts"], {record["name"]: record for record in result["programs"]}
    sample, training = found["sample"], [found[name] for name in ("score", "update") if name in found]
    seconds -= sample["per_iteration"] * (sample["estimated_seconds"] - expected["estimated_seconds"])
    saved = 1 - expected.get("training_share", 1)
    return seconds - saved * sum(record["per_iteration"] * record["estimated_seconds"] for record in training)


def setting(result: dict) -> str:
    mesh = ", ".join(f"{axis} {size}" for axis, size in result["mesh"].items())
    where = f"{result['devices']} x {result['device']}" + (f" in {result['slices']} slices" * (result["slices"] > 1))
    hosts = result.get("hosts", 1)  # TPU plans of earlier versions do not have the key
    where += f" on {hosts} hosts" * (hosts > 1)
    lines = f"{where}, mesh: {mesh}; attention: {result['attention']}; model: {result['model']}"
    if "layout" not in result:  # plans of earlier versions
        return lines
    sampling = ", ".join(f"{axis} {size}" for axis, size in result["sampling_mesh"].items())
    stays = ", the copy of frozen weights stays" * result.get("base_copy_stays", False)
    sizes = f"{result['rollout_chunks']} chunks per rollout, {result['evaluation_batch_size']} rows per batch of an evaluation"
    sizes += f"; microbatches per update: {result.get('microbatches', 1)}"
    return f"{lines}\nSampling: layout {result['layout']} (mesh: {sampling}){stays}, {sizes}"


def program_table(result: dict) -> list[str]:
    """Returns the lines of a Markdown table that shows the memory, FLOPs, memory traffic, communication and estimated time of
    the compiled programs. The table has one row per program."""
    rows = []
    for record in result["programs"]:
        name = record["name"] + ("" if record["used"] else " (not in this run)")
        share = "does not compile: too large" if "error" in record else f"{record['peak_gib'] / result['memory_gib']:.0%}"
        cells = [name, cell(record, "arguments_gib"), f"{sum(record['resident_gib'].values()):.2f}"]
        cells += [cell(record, "temporary_gib"), cell(record, "peak_gib"), share]
        cells += [record.get("cost_error") or cell(record, "flops", unit=1e12), cell(record, "bytes", ".1f", 1e9)]
        cells.append(f"{sum(record['received_bytes'].values()) / 1e9:.2f}" if "received_bytes" in record else "")
        cells += [cell(record, "estimated_seconds"), cell(record, "communication_share", ".0%")]
        rows.append([*cells, cell(record, "compile_seconds", ".0f")])
    return table(COLUMNS, rows)


def remat_table(result: dict) -> list[str]:
    """Returns the lines of a Markdown table that compares the values of model.remat (which activations to recompute),
    followed by a line with the recommended value."""
    rows = []
    for remat, record in result["remat"]["programs"].items():
        cells = [remat, cell(record, "peak_gib"), f"{record['peak_gib'] / result['memory_gib']:.0%}"]
        cells.append(cell(record, "flops", unit=1e12) or record.get("error", ""))
        rows.append([*cells, cell(record, "estimated_seconds")])
    choice = result["remat"]["choice"]
    told = "None of them fits." if choice is None else f"--config.model.remat={choice} recomputes no more than it must to fit."
    return [*table(("model.remat", "peak", "of memory", "TFLOP", "est. s"), rows), "", told]


def cell(record: dict, key: str, form: str = ".2f", unit: float = 1.0) -> str:
    """Returns `record[key]` divided by `unit` as text, or "" if the record has no such key. `form` is the format of the
    number."""
    return format(record[key] / unit, form) if key in record else ""


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(cells) + " |" for cells in (columns, *rows)]
    return [lines[0], "|---" * len(columns) + "|", *lines[1:]]


def received(record: dict) -> str:
    """Returns a text that lists how many gigabytes one device receives through each kind of collective operation."""
    kinds = sorted(record.get("received_bytes", {}).items())
    return ", ".join(f"{kind} {n / 1e9:.2f}" for kind, n in kinds if n >= 5e6) or "nothing"


def verdict(result: dict) -> str:
    limit, fits = MOST * result["memory_gib"], result["fits"]
    gap = f"{abs(limit - result['peak_gib']):.2f} GiB {'are left' if fits else 'are missing'}"
    allowed = f"{limit:.2f} GiB ({MOST:.0%} of {result['memory_gib']:.2f})"
    return f"**{'fits' if fits else 'does not fit'}**: needs {result['peak_gib']:.2f} of {allowed}; {gap}."
