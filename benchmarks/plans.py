"""Plans LLaDA-8B for the TPU topologies and the GPUs listed in BUILD.md, and makes its tables.

python benchmarks/plans.py            # TPUs, about an hour and a half on two cores; needs the extra "tpu"
python benchmarks/plans.py --gpus     # GPUs, about an hour on two cores; needs the extra "plan-gpu"
python benchmarks/plans.py --tables   # only the tables, from existing results
"""

import argparse
import json
import pathlib
import shlex
import subprocess
import sys

import gpu_plans
from igpo_jax.plan.text import program_table, received, setting, verdict

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
XLA = "--config.model.attention=xla"
FITS = {
    "lora-splash-v5e-2x4": "--config=math.py --topology=v5e:2x4",
    "lora-v5e-2x4": f"--config=math.py --topology=v5e:2x4 {XLA}",
    "cached-v5e-4x4": f"--config=math.py --topology=v5e:4x4 --config.sampler.cache=dual --config.sampler.commit=threshold {XLA}",
    "full-v5e-4x4": f"--config=math.py:full --topology=v5e:4x4 {XLA}",
    "full-v6e-2x4": f"--config=math.py:full --topology=v6e:2x4 {XLA}",
    "full-v5p-2x2x4": f"--config=math.py:full --topology=v5p:2x2x4 {XLA}",
    "full-two-v5e-4x4": f"--config=math.py:full --topology=v5e:4x4 --slices=2 --config.mesh.data=2 {XLA}",
}
PROMPTS_PER_CHIP = 4


def weak(topology: str, chips: int) -> str:
    rows = PROMPTS_PER_CHIP * chips
    flags = {"rl.prompts": rows, "rl.rollout_chunks": 2, "evaluation.batch_size": rows, "sft.batch_size": rows}
    given = " ".join(f"--config.{key}={value}" for key, value in flags.items())
    return f"--config=math.py:full --topology={topology} {given} {XLA} --programs=sample,update"


WEAK = {f"weak-{name}": weak(f"v5e:{name}", chips) for name, chips in (("4x4", 16), ("8x8", 64), ("16x16", 256))}


def compile_all() -> None:
    for name, flags in (FITS | WEAK).items():
        command = [sys.executable, "-m", "igpo_jax.plan", *shlex.split(flags), "--json"]
        print(f"{name}: {flags}", flush=True)
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8", check=True)
        (RESULTS / f"plan-{name}.json").write_text(done.stdout, encoding="utf-8")


def tables() -> str:
    lines = []
    for name, flags in FITS.items():
        result = json.loads((RESULTS / f"plan-{name}.json").read_text(encoding="utf-8"))
        result["programs"] = [record for record in result["programs"] if record["used"]]  # earlier files have others
        lines += ["", f"`python -m igpo_jax.plan {flags}`", "", f"{setting(result)}. {verdict(result)}", ""]
        lines += program_table(result)
        held: dict[str, list[str]] = {}
        for record in result["programs"]:
            what = ", ".join(f"{part} {size:.2f}" for part, size in record["resident_gib"].items()) or "nothing"
            held.setdefault(what, []).append(record["name"])
        lines += ["", "Resident arrays (in memory besides the arguments), GiB:"]
        lines += [f"- {', '.join(names)}: {what}" for what, names in held.items()]
    return "\n".join(lines)


def weak_table() -> str:
    lines = [f"| chips (v5e) | program | received GB per chip | est. s | comm. |\n{'|---' * 5}|"]
    for name in WEAK:
        result = json.loads((RESULTS / f"plan-{name}.json").read_text(encoding="utf-8"))
        for record in result["programs"]:
            share = f"{record['communication_share']:.0%}"
            where = f"{result['devices']} ({name.removeprefix('weak-')})"
            lines.append(f"| {where} | {record['name']} | {received(record)} | {record['estimated_seconds']:.2f} | {share} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", action="store_true", help="compile nothing")
    parser.add_argument("--gpus", action="store_true", help="compile for GPUs only")
    arguments = parser.parse_args()
    if arguments.gpus:
        gpu_plans.compile_all()
    elif not arguments.tables:
        compile_all()
    file = ROOT / "BUILD.md"
    text = file.read_text(encoding="utf-8")
    for marker, made in (("plans", tables()), ("weak", weak_table()), ("gpus", gpu_plans.gpu_table())):
        head, _, rest = text.partition(f"<!-- {marker} -->\n")
        _, end, tail = rest.partition(f"<!-- /{marker} -->")
        if not end:
            sys.exit(f"BUILD.md lacks the marks <!-- {marker} --> and <!-- /{marker} -->")
        text = f"{head}<!-- {marker} -->\n{made.strip()}\n{end}{tail}"
    file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
