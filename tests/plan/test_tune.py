"""`plan --tune` against an exhaustive search over a small grid, compiled for a TPU that is absent."""

import dataclasses
import importlib.util

import numpy as np
import pytest

from igpo_jax.plan import programs as planning
from igpo_jax.plan import tune as tuning
from igpo_jax.plan.devices import topology_devices
from igpo_jax.plan.text import as_advice
from igpo_jax.runtime.mesh import make_mesh
from run_configs import parsed

needs_tpu_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason='the TPU compiler is not installed (extra "tpu")'
)
LENGTHS = np.array([6] * 50 + [20] * 50)
NETWORK = {"model__width": 256, "model__heads": 4, "model__kv_heads": 4, "model__mlp_width": 512, "model__layers": 5}
RUN = NETWORK | {"rl__prompts": 8, "rl__group_size": 4, "data__prompt_buckets": (8, 24), "rl__rollout_chunks": 2}


@needs_tpu_compiler
@pytest.mark.slow
def test_the_pick_is_the_best_of_all_ways_to_sample():
    config, mesh = parsed(sampler__layout="train", **RUN), make_mesh(devices=topology_devices("v5e:2x2", 1))
    seen: list[str] = []
    found = tuning.tune(config, mesh, LENGTHS, False, seen.append)
    seconds = {}
    for layout in ("train", "replicated", "tensor"):
        for chunks in (1, 2, 4, 8):
            rl = dataclasses.replace(config.rl, rollout_chunks=chunks)
            run = planning.fitted(
                dataclasses.replace(config, sampler=dataclasses.replace(config.sampler, layout=layout), rl=rl), mesh, LENGTHS
            )
            [program] = (program for program in planning.programs(run) if program.name == "sample")
            seconds[layout, chunks] = tuning.rollout_seconds(run, planning.measure(program), LENGTHS)
    assert found["before"]["rollout"] == pytest.approx(seconds["train", 2])
    assert found["after"]["rollout"] <= 1.001 * min(seconds.values()) < found["before"]["rollout"]
    assert any(flag.startswith("--config.sampler.layout=") for flag in found["overrides"])
    assert seen.count("compiling sample") == 1 + tuning.COMPILED
    text = as_advice(found)
    assert "Rejected:" in text and text.endswith(" ".join(found["overrides"])) and "s per rollout" in text
    flags = dict(flag.removeprefix("--config.").split("=") for flag in found["overrides"])
    changed = parsed(**RUN | {"sampler__layout": flags["sampler.layout"]} | {
        key.replace(".", "__"): int(value) for key, value in flags.items() if value.isdecimal()
    })
    assert tuning.overrides(changed, changed) == []


@pytest.mark.slow
def test_a_run_without_rl_and_an_unknown_chip_are_refused(mesh):
    with pytest.raises(ValueError, match="--tune is for the RL stage"):
        tuning.tune(parsed(rl__iterations=0), mesh, None, False, lambda record: None)
    with pytest.raises(ValueError, match="--tune needs a known chip, not cpu"):
        tuning.tune(parsed(), mesh, None, False, lambda record: None)


def test_a_sampler_that_does_not_compile_is_no_unknown_chip(mesh, monkeypatch):
    measured = {"peak_gib": 1e9, "per_iteration": 1, "resident_gib": {}, "error": "RESOURCE_EXHAUSTED"}
    monkeypatch.setattr(tuning, "CHIPS", {mesh.devices.flat[0].device_kind: None})
    monkeypatch.setattr(tuning, "measure", lambda program: measured)
    monkeypatch.setattr(tuning, "remat_choice", lambda *_: {"choice": None, "programs": {}})
    with pytest.raises(ValueError, match="no setting fits; see the advice of plan without --tune"):
        tuning.tune(parsed(), mesh, None, False, lambda line: None)


def test_overrides_are_the_keys_that_differ():
    one, other = parsed(), parsed(sampler__cache="dual", rl__microbatches=2, model__remat="full")
    expected = ["--config.sampler.cache=dual", "--config.rl.microbatches=2", "--config.model.remat=full"]
    assert tuning.overrides(one, other) == expected
