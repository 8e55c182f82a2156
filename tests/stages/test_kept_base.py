"""The copy of the frozen parameters for sampling is made once if the memory allows, and the tokens are the same."""

import dataclasses
import pathlib
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from igpo_jax.config import Config
from igpo_jax.model import transformer
from igpo_jax.model.lora import LoraConfig
from igpo_jax.model.transformer import ModelConfig
from igpo_jax.plan import programs as planning
from igpo_jax.run import layout
from igpo_jax.run.experiment import open_experiment
from igpo_jax.run.metrics import read_rows
from igpo_jax.run.microbatch_choice import base_copy_stays, update_bytes
from igpo_jax.run.results import first_lines
from igpo_jax.stages.stage import IterationState, Stage
from igpo_jax.stages.training import train
from igpo_jax.training.policy import Policy
from run_configs import config_of, parsed
from tokenizer_files import write_tokenizer

MODEL = ModelConfig(32, 30, 29, width=32, layers=2, heads=8, kv_heads=8, mlp_width=64)
TESTS = pathlib.Path(__file__).parents[1]
ADAPTED = TESTS / "end_to_end" / "llada_tiny.py"
PLANNED = {"model__path": "no such folder", "sampler__layout": "replicated", "sft__updates": 0}  # LLaDA-8B


def stage_on(mesh, sampling_mesh, stays: bool, name: str = "rl") -> Stage:
    policy = Policy(MODEL, LoraConfig(rank=2, alpha=4.0))
    placed = transformer.shardings(MODEL, mesh)
    base = jax.jit(transformer.init, static_argnums=1, out_shardings=placed)(jax.random.key(0), MODEL)
    experiment = SimpleNamespace(mesh=mesh, sampling_mesh=sampling_mesh, base_copy_stays=stays)
    return Stage(name, experiment, None, lambda: False, policy, base)


def sampled_twice(stage: Stage) -> list[dict]:
    """Returns the parameters for sampling of two iterations with different adapters."""
    adapters = stage.policy.init(jax.random.key(1), stage.experiment.mesh)
    states = [SimpleNamespace(params=jax.tree.map(lambda x, by=by: x + by, adapters)) for by in (0.25, 0.5)]
    return [stage.sampling_params(IterationState(n, state, jax.random.key(2))) for n, state in enumerate(states)]


def without_adapters(params: dict) -> list:
    return jax.tree.leaves(params | {"blocks": {k: v for k, v in params["blocks"].items() if k != "adapters"}})


@pytest.mark.parametrize("shape, sampling_shape", [((1, 1, 1), (1, 1, 1)), ((2, 2, 2), (8, 1, 1)), ((2, 2, 2), (2, 1, 4))])
def test_only_adapters_are_copied_in_the_second_iteration(shape, sampling_shape, mesh_of):
    mesh, sampling_mesh = mesh_of(shape), mesh_of(sampling_shape)
    kept, copied = (sampled_twice(stage_on(mesh, sampling_mesh, stays)) for stays in (True, False))
    for one, other in zip(*map(without_adapters, kept), strict=True):
        assert one is other  # the same arrays in both iterations
    if shape != sampling_shape:
        assert not any(one is other for one, other in zip(*map(without_adapters, copied), strict=True))
    for have, want in zip(jax.tree.leaves(kept), jax.tree.leaves(copied), strict=True):
        assert have.sharding == want.sharding and have.dtype == want.dtype
        np.testing.assert_array_equal(have, want)


def test_the_supervised_stage_keeps_no_copy(mesh_of):
    first, second = sampled_twice(stage_on(mesh_of((2, 2, 2)), mesh_of((8, 1, 1)), True, name="sft"))
    assert not any(one is other for one, other in zip(without_adapters(first), without_adapters(second), strict=True))


def stays(config: Config, mesh) -> bool:
    return base_copy_stays(*planning.fitted(config, mesh)[:4])


def with_memory(monkeypatch, size: float) -> None:
    """Sets the memory of a device to a size in bytes, of which estimates may use all."""
    monkeypatch.setattr(layout, "USABLE", 1)
    monkeypatch.setattr(layout, "USABLE_OF_SMALL", 1)
    monkeypatch.setattr(layout, "UNKNOWN", dataclasses.replace(layout.UNKNOWN, memory_gib=size / 2**30))


def test_the_copy_stays_if_updates_fit_beside_it(mesh_of, monkeypatch):
    mesh, config = mesh_of((2, 2, 2)), parsed(ADAPTED, **PLANNED)
    run = planning.fitted(config, mesh)
    update = update_bytes(run.config, run.model, mesh, config.rl.microbatches)
    copied = planning.shard_bytes(Policy(run.model, config.lora).abstract_base(run.sampling_mesh))
    for missing, expected in ((0, True), (1, False)):
        with_memory(monkeypatch, update + copied - missing + 0.5)
        assert stays(config, mesh) == expected
    with_memory(monkeypatch, 2**40)
    assert stays(config, mesh)
    assert not stays(parsed(ADAPTED, **PLANNED | {"sampler__layout": "train"}), mesh)
    assert not stays(parsed(ADAPTED, **PLANNED | {"lora__rank": 0}), mesh)


def test_the_plan_counts_the_copy_in_updates(mesh_of, monkeypatch):
    mesh, config = mesh_of((2, 2, 2)), parsed(ADAPTED, **PLANNED)

    def resident_of_updates() -> dict:
        [update] = [program for program in planning.programs(planning.fitted(config, mesh)) if program.name == "update"]
        return update.resident

    run = planning.fitted(config, mesh)
    copied = planning.shard_bytes(Policy(run.model, config.lora).abstract_base(run.sampling_mesh))
    with_memory(monkeypatch, 2**40)
    assert planning.shard_bytes(resident_of_updates()["copy of frozen"]) == copied > 0
    with_memory(monkeypatch, 1)
    assert "copy of frozen" not in resident_of_updates()


@pytest.mark.slow
def test_a_run_that_keeps_the_copy_samples_the_same_tokens(tmp_path, monkeypatch):
    folder, shown = tmp_path / "model", []
    shutil.copytree(TESTS / "model" / "fixtures" / "llada_tiny" / "bf16_sharded", folder)
    write_tokenizer(folder)
    values = {"model__path": str(folder), "mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2, "sampler__layout": "replicated"}
    values |= {"rl__prompts": 8, "rl__show_every": 1, "rl__eval_every": 1}
    for name in ("kept", "freed"):
        if name == "freed":
            with_memory(monkeypatch, 1)
        experiment = open_experiment(config_of(ADAPTED, **values), tmp_path / name)
        assert experiment.base_copy_stays == (name == "kept")
        assert ("stays" in "\n".join(first_lines(experiment))) == (name == "kept")
        train(experiment)
        shown.append([row["tokens"] for row in read_rows(tmp_path / name / "rollouts.jsonl")])
    assert shown[0] == shown[1] and shown[0]
