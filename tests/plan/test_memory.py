"""Compares the memory that `plan` predicts with the memory that a run holds."""

import dataclasses
import functools
import gc
import pathlib
import shutil

import jax
import pytest

from igpo_jax import config as configuration
from igpo_jax.diffusion import batches as decoding
from igpo_jax.plan import programs as planning
from igpo_jax.rl import rollout
from igpo_jax.run.checkpoint import Checkpoints
from igpo_jax.run.experiment import open_experiment
from igpo_jax.stages import rl as stage
from igpo_jax.stages import sft as sft_module
from run_configs import TINY, config_of
from tokenizer_files import write_tokenizer

TESTS = pathlib.Path(__file__).parents[1]
# One batch of each evaluation: a program holds as much at every call.
FEW = {"sft__heldout": 8, "evaluation__problems": 8}

NUMERICS = {
    "bfloat16 copy": {"model__compute_dtype": "bfloat16"},
    "supervised stage before": {"sft__updates": 2},
    "supervised stage alone": {"sft__updates": 2, "rl__iterations": 0, "model__compute_dtype": "bfloat16"},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "numerics, shape",
    [
        ("bfloat16 copy", (1, 1, 1)),
        ("supervised stage before", (2, 2, 2)),  # float32
        ("supervised stage alone", (2, 2, 2)),
    ],
)
def test_memory_is_what_a_run_holds(numerics, shape, mesh_of, tmp_path, monkeypatch):
    """Compares arguments and resident arrays with the live arrays of a device at each program's call."""
    values = {"sft__updates": 0, "rl__iterations": 1, "rl__prompts": 8, "rl__rollout_chunks": 2} | FEW
    values |= {"model__width": 128, "model__mlp_width": 256} | NUMERICS[numerics]
    assert_planned(config_of(TINY, **values), mesh_of(shape), tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("base_dtype, shape", [
    ("", (1, 1, 1)), ("int8", (1, 1, 1)),
    ("", (2, 2, 2)),  # keeps a copy of the frozen parameters for sampling
])  # fmt: skip
def test_memory_is_what_a_run_of_adapters_holds(base_dtype, shape, mesh_of, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    shutil.copytree(TESTS / "model" / "fixtures" / "llada_tiny" / "bf16_sharded", folder)
    write_tokenizer(folder)
    path = TESTS / "end_to_end" / "llada_tiny.py"
    numerics = {"model__param_dtype": "bfloat16", "model__compute_dtype": "bfloat16", "model__base_dtype": base_dtype}
    values = {"model__path": str(folder), "sft__updates": 2, "rl__iterations": 1, "rl__prompts": 8} | FEW | numerics
    values |= {"sampler__layout": "replicated"}
    assert_planned(config_of(path, **values), mesh_of(shape), tmp_path / "run", monkeypatch)


def assert_planned(config, mesh, workdir, monkeypatch) -> None:
    experiment = open_experiment(config, workdir)
    run = planning.fitted(configuration.parse(config), mesh)
    experiment = dataclasses.replace(experiment, mesh=mesh, config=run.config, sampling_mesh=run.sampling_mesh)
    live = live_bytes_of_a_run(experiment, monkeypatch)
    config = experiment.config
    in_sft = {"heldout", "evaluate"} if config.sft.updates and config.sft.eval_every else set()
    assert set(live) == in_sft | ({"sample", "score", "update", "evaluate"} if config.rl.iterations else set())
    parameters = planning.shard_bytes(planning.transformer.abstract(experiment.model, mesh))
    for program in planning.programs(run._replace(model=experiment.model)):
        if program.name in live:
            record = planning.measure(program)
            planned = (record["arguments_gib"] + sum(record["resident_gib"].values())) * 2**30
            # Tolerates keys and batches, which are small, but not a missing or extra copy of the parameters.
            assert abs(planned - live[program.name]) < 0.2 * parameters, (program.name, planned, live, parameters)


def live_bytes_of_a_run(experiment, monkeypatch) -> dict[str, int]:
    """Returns {program: peak bytes on the first device at its calls}, over all stages of the run."""
    first, live = experiment.mesh.devices.flat[0], {}

    def on_first() -> int:
        gc.collect()
        shards = [shard.data for x in jax.live_arrays() for shard in x.addressable_shards if shard.device == first]
        return sum({shard.unsafe_buffer_pointer(): shard.nbytes for shard in shards}.values())

    def watched(name, function):
        def call(*arguments, **keywords):
            live[name] = max(live.get(name, 0), on_first() - elsewhere)
            return function(*arguments, **keywords)

        return call

    elsewhere = on_first()
    sampled = functools.partial(decoding.complete, sampler=watched("sample", decoding.sample))
    monkeypatch.setattr(rollout, "complete", sampled)
    monkeypatch.setattr(stage, "compute_logprobs", watched("score", stage.compute_logprobs))
    make_update = stage.make_update_of_parts
    monkeypatch.setattr(stage, "make_update_of_parts", lambda *args: watched("update", make_update(*args)))
    monkeypatch.setattr(decoding, "sample", watched("evaluate", decoding.sample))
    monkeypatch.setattr(sft_module, "heldout_bound", watched("heldout", sft_module.heldout_bound))
    monkeypatch.setattr(Checkpoints, "save", lambda *_, **__: None)  # on CPUs, saving makes copies
    folders = [experiment.workdir / name for name in ("sft", "rl")]
    with jax.set_mesh(experiment.mesh), Checkpoints(folders[0], keep=1) as sft, Checkpoints(folders[1], keep=1) as rl:
        start = sft_module.run_sft(experiment, sft, lambda: False)
        if experiment.config.rl.iterations:
            stage.run_rl(experiment, start, rl, lambda: False)
    return live
