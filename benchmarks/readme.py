"""Writes the two tables of README.md and the figure beside them from results that are stored: python benchmarks/readme.py

The table of hardware comes from results/iteration.json (`benchmarks/iteration.py`), the results and docs/results.svg from
results/comparison.json (`benchmarks/compare.sh`)."""

import json
import pathlib

from igpo_jax.compare.page import accuracy_curves, figure
from igpo_jax.plan.text import table
from igpo_jax.runtime.statistics import percent
from insert import insert

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
ITERATIONS = 360  # of math.py, as many as the paper's curves have
HARDWARE = {
    "rtx4090:1 int8": (
        "1 x 24 GB (RTX 4090)",
        "adapters, frozen weights in int8",
        "--config=math.py --config.model.base_dtype=int8",
    ),
    "h100:1 lora": ("1 x 80 GB (H100)", "adapters", "--config=math.py"),
    "h100:8 full": ("8 x 80 GB (H100)", "all parameters", "--config=math.py:full"),
    "v5e:2x4 lora": ("v5e-8 (plan: v5e:2x4)", "adapters", "--config=math.py"),
    "v5e:4x4 full": ("v5e-16 (v5e:4x4)", "all parameters", "--config=math.py:full"),
}
ARMS = {
    "grpo": "GRPO",
    "resample": "GRPO, all-wrong groups sampled again",
    "dapo": "GRPO with dynamic sampling (DAPO)",
    "igpo": "IGPO, as in the paper",
    "igpo_ref": "IGPO, as in the released code",
    "grpo_position_first_hot": "GRPO, `position_first` sampling at temperature 1",
}
CURVES = {
    "grpo": "GRPO",
    "dapo": "DAPO",
    "igpo": "IGPO",
    "igpo_ref": "IGPO, released code",
    "grpo_position_first_hot": "GRPO, position_first",
}


def hardware() -> list[str]:
    found, rows = json.loads((RESULTS / "iteration.json").read_text(encoding="utf-8")), []
    for name, (device, trained, flags) in HARDWARE.items():
        exact, cached = found[name]["exact"], found[name]["cached"]
        hours = [f"{case['seconds'] * ITERATIONS / 3600:.0f} h" if case["fits"] else "does not fit" for case in (exact, cached)]
        rows.append([device, trained, f"{exact['peak_gib']:.0f} / {cached['peak_gib']:.0f} of {exact['memory_gib']:.0f}", *hours, f"`{flags}`"])
    return table(("hardware", "trained", "GiB per device in RL, without / with cache", "360 iterations", "with cache", "igpo train"), rows)


def results(found: dict) -> list[str]:
    arms, rows = {arm["arm"]: arm for arm in found["arms"]}, []
    for name, title in ARMS.items():
        cells = []
        for budget in ("equal_evaluations", "equal_prompts"):
            low, high = arms[name][budget]["interval95"]
            cells.append(f"{percent(arms[name][budget]['mean'])} ({100 * low:.0f} to {100 * high:.0f})")
        rows.append([title, *cells])
    return table(("accuracy after RL", "equal network evaluations", "equal prompts"), rows)


if __name__ == "__main__":
    found = json.loads((RESULTS / "comparison.json").read_text(encoding="utf-8"))
    curves = {name: found["curves"][arm] for arm, name in CURVES.items()}
    svg = figure(*accuracy_curves(found | {"curves": curves}, "evaluations"))
    (ROOT / "docs" / "results.svg").write_text(svg, encoding="utf-8")
    insert("\n".join(hardware()) + "\n", ROOT / "README.md", "hardware")
    insert("\n".join(results(found)) + "\n", ROOT / "README.md", "results")
