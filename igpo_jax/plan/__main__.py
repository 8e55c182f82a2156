"""python -m igpo_jax.plan --config=math.py --topology=v5e:4x4 [--slices=2] [--config.key=value ...] [--json]

Checks whether a training run fits into device memory, before you rent the devices. Compiles the run's programs on this machine
for a TPU topology (needs the optional dependencies "tpu"), for GPUs such as h100:8 (needs the optional dependencies
"plan-gpu"), or for the devices that are present. Prints memory, FLOPs, communication and estimated times. Reads no data and no
weights. If there are several prompt buckets, also estimates the time of an iteration with prompts of common lengths
(--lengths). With --tune, finds faster settings."""

from igpo_jax.runtime import interrupts

if __name__ == "__main__":  # before the slow imports
    interrupts.install()

import json
import pathlib
import sys
from collections.abc import Iterable, Sequence

from absl import flags

from igpo_jax import config as configuration
from igpo_jax.cli import define_config, define_json, escape_controls, parse_flags, run_command
from igpo_jax.data.buckets import DEFAULT_LENGTHS, read_lengths
from igpo_jax.plan.advice import MOST, plan, remat_choice
from igpo_jax.plan.devices import topology_devices
from igpo_jax.plan.programs import iteration_seconds
from igpo_jax.plan.tune import tune
from igpo_jax.runtime.checks import require
from igpo_jax.runtime.mesh import make_mesh

CONFIG = define_config()
TOPOLOGY = flags.DEFINE_string("topology", None, "Such as v5e:4x4 or h100:8; the devices that are here by default.")
SLICES = flags.DEFINE_integer("slices", 1, "How many slices of the TPU topology, or hosts with these GPUs.", lower_bound=1)
PROGRAMS = flags.DEFINE_list("programs", [], "Only these; by default all that the run calls.")
LENGTHS = flags.DEFINE_string(
    "lengths", None, "Prompt lengths that inspect_data has written; by default those of GSM8K and MATH if model.path is set."
)
REMAT = flags.DEFINE_bool("remat", False, "Compile the update with every model.remat, too, and say which to take.")
TUNE = flags.DEFINE_bool("tune", False, "Find the settings for which an RL iteration is estimated to be fastest.")
APPROXIMATE = flags.DEFINE_bool("allow_approximate", False, "With --tune: also try cached samplers, which are approximate.")
JSON = define_json()


def main(_):
    try:
        config = configuration.parse(CONFIG.value)
        if SLICES.value > 1 and not TOPOLOGY.value:
            raise ValueError(f"--slices={SLICES.value} needs a --topology, of which there are so many")
        devices = topology_devices(TOPOLOGY.value, SLICES.value) if TOPOLOGY.value else None
        mesh = make_mesh(**vars(config.mesh), devices=devices)
        # The shipped lengths were counted with a vocabulary like that of a model's folder.
        file = pathlib.Path(LENGTHS.value) if LENGTHS.value else DEFAULT_LENGTHS if config.model.path else None
        lengths = read_lengths(file) if file else None
        if TUNE.value:
            tuned = tune(config, mesh, lengths, APPROXIMATE.value, tell)
            print(escape_controls(json.dumps(tuned, indent=2) if JSON.value else as_advice(tuned)))
            return
        require(not APPROXIMATE.value, "--allow_approximate goes with --tune")
        result = plan(config, mesh, PROGRAMS.value, tell, lengths)
        if "rollouts" in result:
            result["rollouts"]["prompts"] = LENGTHS.value or "GSM8K and MATH"
        if REMAT.value:
            result["remat"] = remat_choice(config, mesh)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(escape_controls(json.dumps(result, indent=2) if JSON.value else as_text(result)))


def tell(line: str) -> None:
    print(escape_controls(line), file=sys.stderr, flush=True)


def as_advice(tuned: dict) -> str:
    """Formats the result of `tune` as text."""
    before, after = (tuned[key] for key in ("before", "after"))
    parts = [f"{name} {before[name]:.1f} -> {after[name]:.1f} s" for name in before]
    fits = "" if tuned["fits_before"] else " (does not fit)"
    total = f"An iteration: {sum(before.values()):.0f} s{fits} -> {sum(after.values()):.0f} s, estimated ({', '.join(parts)})"
    flags = " ".join(tuned["overrides"]) or "the configuration is the best one found"
    return "\n".join(["Rejected:", *(f"- {reason}" for reason in tuned["rejected"]), "", total, flags])


COLUMNS = ("program", "arguments", "resident", "temporary", "peak", "of memory", "TFLOP", "HBM GB", "received GB")
COLUMNS += ("est. s", "comm.", "compile s")


def as_text(result: dict) -> str:
    """Formats the result of `plan` as text with Markdown tables. The text is suitable for a terminal and for BUILD.md."""
    lines = [setting(result), "", "Per device, GiB and one run of each program:", "", *program_table(result)]
    lines += ["", "Resident arrays (in memory besides the arguments), GiB:"]
    for record in result["programs"]:
        held = ", ".join(f"{name} {size:.2f}" for name, size in record["resident_gib"].items())
        lines.append(f"- {record['name']}: {held or 'nothing'}")
    lines += ["", "Received, GB by kind:"]
    lines += [f"- {record['name']}: {received(record)}" for record in result["programs"]]
    lines += [
        "",
        "est. s: estimated seconds at the chip's published peaks, nothing of the communication hidden; comm.: its share.",
        "sample: a block of one slice of a rollout, of the first and, after inpaint, of the second try; all rows, all steps.",
        "Programs are compiled for the largest of data.prompt_buckets; chunks of shorter prompts take less time.",
    ]
    if (seconds := iteration_seconds(result["programs"])) is not None:
        parts = [record for record in result["programs"] if record["used"] and record["per_iteration"]]
        terms = " + ".join(f"{record['per_iteration']} x {record['name']}" for record in parts)
        lines.append(f"One iteration, no group all wrong: {terms}, estimated {seconds:.0f} s.")
        if "rollouts" in result:
            lines.append(typical(result, seconds))
    if "remat" in result:
        lines += ["", *remat_table(result)]
    lines += ["", verdict(result) + " What would save most:"]
    lines += [f"- about {entry['saves_about_gib']:.2f} GiB: {entry['change']}" for entry in result["advice"]]
    return "\n".join(lines)


def typical(result: dict, seconds: float) -> str:
    """Returns a line of text with the estimated time of an iteration for prompts of common lengths. `seconds` is the estimated
    time of an iteration in which all prompts are padded to the largest bucket."""
    expected, [sample] = result["rollouts"], [record for record in result["programs"] if record["name"] == "sample"]
    saved = sample["per_iteration"] * (sample["estimated_seconds"] - expected["estimated_seconds"])
    rows = f"{expected['mean_positions']:.0f} positions per row on average instead of {expected['most_positions']}"
    call = f"sample takes {expected['estimated_seconds']:.2f} s ({rows})"
    return f"With prompts as long as those of {expected['prompts']}, {call}, and the iteration {seconds - saved:.0f} s."


def setting(result: dict) -> str:
    mesh = ", ".join(f"{axis} {size}" for axis, size in result["mesh"].items())
    where = f"{result['devices']} x {result['device']}" + (f" in {result['slices']} slices" * (result["slices"] > 1))
    hosts = result.get("hosts", 1)  # TPU plans of earlier versions do not have the key
    where += f" on {hosts} hosts" * (hosts > 1)
    lines = f"{where}, mesh: {mesh}; attention: {result['attention']}; model: {result['model']}"
    if "layout" not in result:  # plans of earlier versions
        return lines
    sampling = ", ".join(f"{axis} {size}" for axis, size in result["sampling_mesh"].items())
    sizes = f"{result['rollout_chunks']} chunks per rollout, {result['evaluation_batch_size']} rows per batch of an evaluation"
    sizes += f"; microbatches per update: {result.get('microbatches', 1)}"
    return f"{lines}\nSampling: layout {result['layout']} (mesh: {sampling}), {sizes}"


def program_table(result: dict) -> list[str]:
    """Returns the lines of a Markdown table that shows the memory, work and estimated time of the compiled programs. The table
    has one row per program."""
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


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    run_command(main, parse_flags)
