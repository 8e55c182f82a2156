"""python -m igpo_jax.plan --config=math.py --topology=v5e:4x4 [--slices=2] [--config.key=value ...] [--json]

Checks whether a run fits before a chip is rented: compiles its programs for a TPU topology on this machine (extra "tpu"), or
for the devices that are present, and prints memory, FLOPs, communication and estimated times. Reads no data and no weights.
"""

import json
import sys

from absl import app, flags
from ml_collections import config_flags

from igpo_jax import config as configuration
from igpo_jax.cli import parse_flags
from igpo_jax.plan.advice import MOST, plan, remat_choice
from igpo_jax.plan.devices import topology_devices
from igpo_jax.runtime.mesh import make_mesh

CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/, or a path; file.py:variant for a variant.")
TOPOLOGY = flags.DEFINE_string("topology", None, "Such as v5e:4x4; the devices that are here by default.")
SLICES = flags.DEFINE_integer("slices", 1, "How many slices of the topology.", lower_bound=1)
PROGRAMS = flags.DEFINE_list("programs", [], "Only these; all by default.")
REMAT = flags.DEFINE_bool("remat", False, "Compile the update with every model.remat, too, and say which to take.")
JSON = flags.DEFINE_bool("json", False, "Print one JSON object instead of tables.")


def main(_):
    try:
        config = configuration.parse(CONFIG.value)
        if SLICES.value > 1 and not TOPOLOGY.value:
            raise ValueError(f"--slices={SLICES.value} needs a --topology, of which there are so many")
        devices = topology_devices(TOPOLOGY.value, SLICES.value) if TOPOLOGY.value else None
        mesh = make_mesh(**vars(config.mesh), devices=devices)
        result = plan(config, mesh, PROGRAMS.value, _progress)
        if REMAT.value:
            result["remat"] = remat_choice(config, mesh)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(json.dumps(result, indent=2) if JSON.value else as_text(result))


def _progress(record: dict) -> None:
    print(f"compiled {record['name']}", file=sys.stderr, flush=True)


COLUMNS = ("program", "arguments", "resident", "temporary", "peak", "of memory", "TFLOP", "HBM GB", "received GB")
COLUMNS += ("est. s", "comm.", "compile s")


def as_text(result: dict) -> str:
    """Returns Markdown tables for a terminal and for BUILD.md."""
    lines = [setting(result), "", "Per device, GiB and one run of each program:", "", *program_table(result)]
    lines += ["", "Resident beside the arguments:"]
    for record in result["programs"]:
        held = ", ".join(f"{name} {size:.2f}" for name, size in record["resident_gib"].items())
        lines.append(f"- {record['name']}: {held or 'nothing'}")
    lines += ["", "Received, GB by kind:"]
    lines += [f"- {record['name']}: {received(record)}" for record in result["programs"]]
    lines += [
        "",
        "est. s: estimated seconds at the chip's published peaks, nothing of the communication hidden; comm.: its share.",
        "sample: a block of one slice of a rollout, of the first and, after inpaint, of the second try; all rows, all steps.",
    ]
    parts = [record for record in result["programs"] if record["used"] and record["per_iteration"]]
    if parts and all("estimated_seconds" in record for record in parts):
        seconds = sum(record["per_iteration"] * record["estimated_seconds"] for record in parts)
        terms = " + ".join(f"{record['per_iteration']} x {record['name']}" for record in parts)
        lines.append(f"One iteration, no group all wrong: {terms}, estimated {seconds:.0f} s.")
    if "remat" in result:
        lines += ["", *remat_table(result)]
    lines += ["", verdict(result) + " What would save most:"]
    lines += [f"- about {entry['saves_about_gib']:.2f} GiB: {entry['change']}" for entry in result["advice"]]
    return "\n".join(lines)


def setting(result: dict) -> str:
    mesh = ", ".join(f"{axis} {size}" for axis, size in result["mesh"].items())
    where = f"{result['devices']} x {result['device']}" + (f" in {result['slices']} slices" * (result["slices"] > 1))
    return f"{where}, mesh: {mesh}; model: {result['model']}"


def program_table(result: dict) -> list[str]:
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for record in result["programs"]:
        cells = [record["name"] + ("" if record["used"] else " (not in this run)")]
        resident = sum(record["resident_gib"].values())
        if "error" in record:
            cells += ["", f"{resident:.2f}", "", f"{record['peak_gib']:.2f}", "does not compile: too large"]
            cells += [""] * (len(COLUMNS) - len(cells))
        else:
            share = f"{record['communication_share']:.0%}" if "communication_share" in record else ""
            seconds = f"{record['estimated_seconds']:.2f}" if "estimated_seconds" in record else ""
            cells += [f"{record['arguments_gib']:.2f}", f"{resident:.2f}", f"{record['temporary_gib']:.2f}"]
            cells += [f"{record['peak_gib']:.2f}", f"{record['peak_gib'] / result['memory_gib']:.0%}"]
            if "cost_error" in record:
                cells += [record["cost_error"], "", "", "", ""]
            else:
                cells += [f"{record['flops'] / 1e12:.2f}", f"{record['bytes'] / 1e9:.1f}"]
                cells += [f"{sum(record['received_bytes'].values()) / 1e9:.2f}", seconds, share]
            cells += [f"{record['compile_seconds']:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def remat_table(result: dict) -> list[str]:
    lines = ["| model.remat | peak | of memory | TFLOP | est. s |", "|---|---|---|---|---|"]
    for remat, record in result["remat"]["programs"].items():
        cells = [remat, f"{record['peak_gib']:.2f}", f"{record['peak_gib'] / result['memory_gib']:.0%}"]
        cells.append(f"{record['flops'] / 1e12:.2f}" if "flops" in record else record.get("error", ""))
        cells.append(f"{record['estimated_seconds']:.2f}" if "estimated_seconds" in record else "")
        lines.append("| " + " | ".join(cells) + " |")
    choice = result["remat"]["choice"]
    return [
        *lines,
        "",
        "None of them fits." if choice is None else f"--config.model.remat={choice} recomputes no more than it must to fit.",
    ]


def received(record: dict) -> str:
    """GB that a device receives through collectives, by kind."""
    kinds = sorted(record.get("received_bytes", {}).items())
    return ", ".join(f"{kind} {n / 1e9:.2f}" for kind, n in kinds if n >= 5e6) or "nothing"


def verdict(result: dict) -> str:
    limit, fits = MOST * result["memory_gib"], result["fits"]
    gap = f"{abs(limit - result['peak_gib']):.2f} {'below' if fits else 'above'} {MOST:.0%} of {result['memory_gib']:.2f}"
    return f"**{'fits' if fits else 'does not fit'}**: at most {result['peak_gib']:.2f} GiB, {gap}."


def run() -> None:
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=parse_flags)


if __name__ == "__main__":
    run()
