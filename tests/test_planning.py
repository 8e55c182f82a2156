"""What `plan` says of a run, against arithmetic, against what a run really has, and for TPUs that are not here."""

import dataclasses
import gc
import importlib.util
import pathlib
import runpy
import shutil

import jax
import numpy as np
import pytest

from igpo_jax import config as configuration
from igpo_jax import planning
from igpo_jax import sft as sft_module
from igpo_jax.diffusion.sampler import block_flops
from igpo_jax.evaluation import decoding
from igpo_jax.experiment import open_experiment
from igpo_jax.model.transformer import forward_flops
from igpo_jax.plan import as_text
from igpo_jax.rl import rollout, stage
from igpo_jax.runtime import chips
from igpo_jax.runtime.checkpoint import Checkpoints
from igpo_jax.runtime.chips import topology_devices
from igpo_jax.runtime.mesh import make_mesh
from tokenizer_files import write_tokenizer

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
TINY = pathlib.Path(__file__).parent / "end_to_end" / "tiny.py"
FIXTURE = pathlib.Path(__file__).parent / "model" / "fixtures" / "llada_tiny"
PROGRAMS = ["sft", "heldout", "sample", "inpaint", "score", "update", "evaluate"]

needs_tpu_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason='the TPU compiler is not installed (extra "tpu")'
)


def config_of(path=TINY, **overrides):
    config = runpy.run_path(str(path))["get_config"]()
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in overrides.items()})
    return config


def settings_of(path=TINY, **overrides):
    return configuration.parse(config_of(path, **overrides))


@pytest.mark.parametrize("remat, passes", [("none", 3), ("full", 4)])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2)])
def test_an_update_computes_one_row_per_prompt(remat, passes, shape, mesh_of):
    """One forward pass, a backward pass of two and, with remat, a second forward pass; not one per completion."""
    wide = {"model__width": 64, "model__heads": 4, "model__kv_heads": 2, "model__mlp_width": 192, "model__layers": 3}
    settings = settings_of(model__remat=remat, model__head_chunk=4096, rl__group_size=8, **wide)
    mesh = mesh_of(shape)
    result = planning.plan(settings, mesh, ["update"])
    model, _ = planning.planned_model(settings)
    length = settings.rollout_decode.completion_length
    row = forward_flops(model, settings.data.prompt_buckets[-1] + length, length)
    prompts_per_device = settings.rl.prompts / mesh.devices.size
    have = result["programs"][0]["flops"] / prompts_per_device
    # The head's logits are computed again in its backward pass, also without remat; nobody needs the last layer's
    # gradient of prompts. Both are small.
    assert 0.85 * passes * row < have < 1.3 * passes * row < settings.rl.group_size * row


def test_sampling_is_counted_through_all_its_steps(mesh):
    settings = settings_of()
    record = planning.plan(settings, mesh, ["sample"])["programs"][0]
    model, _ = planning.planned_model(settings)
    decode, rows = settings.rollout_decode, settings.rl.prompts * settings.rl.group_size
    row = forward_flops(model, settings.data.prompt_buckets[-1] + decode.completion_length, decode.block_length)
    assert record["flops"] == pytest.approx(decode.steps // decode.blocks * rows * row, rel=0.02)


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_cached_sampling_and_its_probe_are_planned(cache, mesh):
    exact, settings = settings_of(), settings_of(sampler__cache=cache, sampler__steps=16)
    records = {record["name"]: record for record in planning.plan(settings, mesh, ["sample", "probe"])["programs"]}
    model, _ = planning.planned_model(settings)
    decode, rows = settings.rollout_decode, settings.rl.prompts * settings.rl.group_size
    length = settings.data.prompt_buckets[-1] + decode.completion_length
    # Eight steps of a block: one is whole, seven are windows, and the inner loop counts from one.
    most = rows * block_flops(1, 8, 0, length, model, decode)
    assert records["sample"]["flops"] == pytest.approx(most, rel=0.05)
    assert records["probe"]["used"] and records["probe"]["peak_gib"] > 0
    assert "probe" not in [program.name for program in planning.programs(exact, model, mesh)]


def test_the_remat_that_fits_and_is_fastest_is_named(mesh, monkeypatch):
    found = planning.remat_choice(settings_of(model__layers=6), mesh)
    assert list(found["programs"]) == ["none", "dots", "full"] and found["choice"] == "none"
    peaks = [record["peak_gib"] for record in found["programs"].values()]
    assert peaks[0] > peaks[2], "recomputing must save something here"
    monkeypatch.setattr(planning, "device_memory_gib", lambda device: (peaks[0] + peaks[2]) / 2 / planning.MOST)
    assert planning.remat_choice(settings_of(model__layers=6), mesh)["choice"] in ("dots", "full")
    monkeypatch.setattr(planning, "device_memory_gib", lambda device: 0.0)
    assert planning.remat_choice(settings_of(model__layers=6), mesh)["choice"] is None


def test_chunks_of_the_head_are_sized_by_the_memory(mesh_of, monkeypatch):
    model, _ = planning.planned_model(settings_of())
    llada = dataclasses.replace(planning.LLADA_8B, head_chunk=0)
    kind = mesh_of((1, 1, 1)).devices.flat[0].device_kind
    monkeypatch.setattr(configuration, "CHIPS", {kind: chips.CHIPS["TPU v5 lite"]})
    assert configuration.sized_for(model, mesh_of((1, 1, 1))).head_chunk == configuration.MOST_CHUNK
    assert configuration.sized_for(llada, mesh_of((1, 1, 1))).head_chunk == 512
    assert configuration.sized_for(llada, mesh_of((1, 2, 4))).head_chunk == 2048
    assert configuration.sized_for(dataclasses.replace(llada, head_chunk=64), mesh_of((1, 1, 1))).head_chunk == 64


NUMERICS = {
    "float32": {},
    "bfloat16 copy": {"model__compute_dtype": "bfloat16"},
    "supervised stage before": {"sft__updates": 20},
    "supervised stage alone": {"sft__updates": 20, "rl__iterations": 0, "model__compute_dtype": "bfloat16"},
}


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2)])
@pytest.mark.parametrize("numerics", NUMERICS)
def test_memory_is_what_a_run_holds(numerics, shape, mesh_of, tmp_path, monkeypatch):
    """Arguments and residents, against the arrays that live on a device when an iteration calls each program."""
    values = {"sft__updates": 0, "rl__iterations": 1, "rl__prompts": 8, "rl__rollout_slices": 2}
    values |= {"model__width": 128, "model__mlp_width": 256} | NUMERICS[numerics]
    assert_planned(config_of(**values), mesh_of(shape), tmp_path, monkeypatch)


@pytest.mark.parametrize("updates", [0, 2])
def test_memory_is_what_a_run_of_adapters_holds(updates, mesh, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    shutil.copytree(FIXTURE / "bf16_sharded", folder)
    write_tokenizer(folder)
    path = pathlib.Path(__file__).parent / "end_to_end" / "llada_tiny.py"
    numerics = {"model__param_dtype": "bfloat16", "model__compute_dtype": "bfloat16"}
    values = {"model__path": str(folder), "sft__updates": updates, "rl__iterations": 1, "rl__prompts": 8} | numerics
    assert_planned(config_of(path, **values), mesh, tmp_path / "run", monkeypatch)


def assert_planned(config, mesh, workdir, monkeypatch) -> None:
    experiment = dataclasses.replace(open_experiment(config, workdir), mesh=mesh)
    live = live_bytes_of_a_run(experiment, monkeypatch)
    settings = experiment.settings
    in_sft = {"heldout", "evaluate"} if settings.sft.updates and settings.sft.eval_every else set()
    assert set(live) == in_sft | ({"sample", "score", "update", "evaluate"} if settings.rl.iterations else set())
    parameters = planning.shard_bytes(planning.transformer.abstract(experiment.model, mesh))
    for program in planning.programs(experiment.settings, experiment.model, mesh):
        if program.name in live:
            record = planning.measure(program, mesh)
            planned = (record["arguments_gib"] + sum(record["resident_gib"].values())) * 2**30
            # Keys and batches are small; a copy of the parameters too many or too few is not.
            assert abs(planned - live[program.name]) < 0.2 * parameters, (program.name, planned, live, parameters)


def live_bytes_of_a_run(experiment, monkeypatch) -> dict[str, int]:
    """{program: the most bytes on the first device when it is called}; the run takes all its stages."""
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
    monkeypatch.setattr(rollout, "sample", watched("sample", rollout.sample))
    monkeypatch.setattr(stage, "score", watched("score", stage.score))
    make_update = stage.make_update
    monkeypatch.setattr(stage, "make_update", lambda *args: watched("update", make_update(*args)))
    monkeypatch.setattr(decoding, "sample", watched("evaluate", decoding.sample))
    monkeypatch.setattr(sft_module, "heldout_bound", watched("heldout", sft_module.heldout_bound))
    monkeypatch.setattr(Checkpoints, "save", lambda *_, **__: None)  # on CPUs it copies what it saves
    folders = [experiment.workdir / name for name in ("sft", "rl")]
    with jax.set_mesh(experiment.mesh), Checkpoints(folders[0], keep=1) as sft, Checkpoints(folders[1], keep=1) as rl:
        start = sft_module.run_sft(experiment, sft, lambda: False)
        if experiment.settings.rl.iterations:
            stage.run_rl(experiment, *start, rl, lambda: False)
    return live


def test_peaks_are_the_sums_of_their_parts(mesh_of):
    mesh, settings = mesh_of((1, 4, 2)), settings_of(rl__prompts=16, evaluation__batch_size=16)
    result = planning.plan(settings, mesh)
    assert [record["name"] for record in result["programs"]] == PROGRAMS
    assert result["fits"] and all(record["used"] for record in result["programs"])
    for record in result["programs"]:
        parts = sum(record[f"{part}_gib"] for part in ("arguments", "outputs", "temporary", "code"))
        assert record["peak_gib"] == pytest.approx(parts + sum(record["resident_gib"].values()))
    assert result["peak_gib"] == max(record["peak_gib"] for record in result["programs"])


def test_a_model_folder_that_cannot_be_used_is_an_error(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="config.json"):
        planning.planned_model(settings_of(CONFIGS / "math.py", model__path=str(tmp_path)))


def test_what_a_run_does_not_have_does_not_count(mesh):
    result = planning.plan(settings_of(sft__updates=0, sft__batch_size=4096), mesh, ["sft", "update"])
    sft, update = result["programs"]
    assert not sft["used"] and update["used"] and sft["peak_gib"] > update["peak_gib"] == result["peak_gib"]


def test_a_verdict_names_three_changes_of_the_configuration(mesh, monkeypatch):
    monkeypatch.setattr(planning, "device_memory_gib", lambda device: 0.001)
    settings = settings_of(model__layers=4, sft__updates=0, model__compute_dtype="bfloat16")
    result = planning.plan(settings, mesh)
    assert not result["fits"]
    assert len(result["advice"]) == 3
    saved = [entry["saves_about_gib"] for entry in result["advice"]]
    assert saved == sorted(saved, reverse=True) and saved[-1] > 0
    text = as_text(result)
    assert "**does not fit**" in text and all(entry["change"] in text for entry in result["advice"])


def test_estimates_are_the_published_peaks(mesh):
    cost = planning.Cost(flops=197e12, bytes=1.0)
    cost.received["all-gather", False] = 100e9
    chip = chips.CHIPS["TPU v5 lite"]
    assert planning.estimate(cost, chip) == {"estimated_seconds": 1.5, "communication_share": pytest.approx(1 / 3)}
    cost.received["all-reduce", True] = 25e9 / 8  # between slices, over the hosts' network
    assert planning.estimate(cost, chip)["estimated_seconds"] == 2.5
    assert planning.estimate(cost, None) == {}


def test_unknown_programs_are_named(mesh):
    with pytest.raises(ValueError, match="--programs=upate: there are sft, heldout, sample"):
        planning.plan(settings_of(), mesh, ["upate"])


def test_without_the_tpu_compiler_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "igpo_jax\[tpu\]"'):
        topology_devices("v5e:2x4", 1)


# Compiled by the TPU compiler


@needs_tpu_compiler
def test_a_topology_that_does_not_exist_is_an_error():
    with pytest.raises(ValueError, match="--topology=v5e:3x5: .*examples: v5e:2x4"):
        topology_devices("v5e:3x5", 1)


@needs_tpu_compiler
def test_slices_are_parts_of_the_data_axis():
    devices = topology_devices("v5e:2x2", 2)
    mesh = make_mesh(data=4, fsdp=-1, devices=devices)
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    assert slices.shape == (4, 2, 1)
    assert (slices[:2] == slices[0, 0, 0]).all() and (slices[2:] == slices[2, 0, 0]).all()
    assert slices[0, 0, 0] != slices[2, 0, 0]
    with pytest.raises(ValueError, match="mesh.data must be a multiple of 2"):
        make_mesh(data=1, fsdp=-1, devices=devices)


@needs_tpu_compiler
@pytest.mark.parametrize("attention", ["xla", "splash"])
def test_attention_is_lowered_for_tpus(attention):
    """Forward in the sampler, backward in the update, as a kernel or not."""
    wide = {"model__width": 256, "model__heads": 2, "model__kv_heads": 2, "model__compute_dtype": "bfloat16"}
    lengths = {"data__prompt_buckets": (128 - 16,), "rl__group_size": 2}
    settings = settings_of(model__attention=attention, **wide, **lengths)
    mesh = make_mesh(devices=topology_devices("v5e:2x2", 1))
    model, _ = planning.planned_model(settings)
    configuration.check_divisibility(settings, model, mesh)
    for program in planning.programs(settings, model, mesh):
        if program.name in ("sample", "update"):
            with jax.set_mesh(mesh):
                text = program.function.lower(*program.arguments).compile().as_text()
            assert ("splash" in text) == (attention == "splash"), program.name


@needs_tpu_compiler
def test_kernels_run_where_they_can():
    settings = settings_of(model__width=256, model__heads=2, model__kv_heads=2, model__attention="splash")
    model, _ = planning.planned_model(settings)
    here = make_mesh(devices=jax.devices()[:1])
    with pytest.raises(ValueError, match="model.attention='splash' runs on tpu, not on cpu"):
        configuration.check_divisibility(settings, model, here)
    there = make_mesh(devices=topology_devices("v5e:2x2", 1))
    with pytest.raises(ValueError, match="prompt bucket"):
        configuration.check_divisibility(settings, model, there)
    settings = settings_of(model__attention="splash", data__prompt_buckets=(112,))
    with pytest.raises(ValueError, match="the head size = 16 is not a multiple of the lanes"):
        configuration.check_divisibility(settings, planning.planned_model(settings)[0], there)


@needs_tpu_compiler
@pytest.mark.slow
def test_llada_8b_fits_eight_small_chips_and_updates_one_row_per_prompt():
    """configs/math.py, adapters, on v5e:2x4: what BUILD.md says, and FLOPs within 1.3 of two forward passes (one of
    them recomputed) and a backward pass that needs no gradients of frozen matrices."""
    settings = settings_of(CONFIGS / "math.py")
    mesh = make_mesh(**settings.mesh, devices=topology_devices("v5e:2x4", 1))
    result = planning.plan(settings, mesh, ["sample", "update"])
    assert result["fits"] and result["peak_gib"] < 0.9 * 15.75
    sample, update = result["programs"]
    model = planning.LLADA_8B
    row = forward_flops(model, 640 + 256, 256)
    adapters = 2 * 896 * 128 * sum(  # forward, A and B of all seven matrices
        a + b for a, b in [(4096, 4096)] * 4 + [(4096, 12288)] * 2 + [(12288, 4096)]
    ) * model.layers  # fmt: skip
    per_prompt = update["flops"] * 8 / settings.rl.prompts
    assert 0.9 * 3 * row < per_prompt < 1.3 * (3 * row + 4 * adapters)
    decode = settings.rollout_decode
    steps = decode.steps // decode.blocks * settings.rl.prompts // settings.rl.rollout_slices
    rows = forward_flops(model, 640 + 256, 32) + adapters
    assert sample["flops"] * 8 == pytest.approx(steps * settings.rl.group_size * rows, rel=0.05)


def test_the_shape_that_is_planned_for_is_llada_8b():
    parameters = jax.eval_shape(lambda: planning.transformer.init(jax.random.key(0), planning.LLADA_8B))
    assert sum(leaf.size for leaf in jax.tree.leaves(parameters)) == 8_015_581_184
