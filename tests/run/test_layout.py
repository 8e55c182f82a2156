"""The choice of the layout of sampling and of its sizes, and what the layout saves in communication."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from igpo_jax.data.buckets import DEFAULT_LENGTHS, read_lengths
from igpo_jax.model.transformer import forward_flops
from igpo_jax.plan import programs as planning
from igpo_jax.run import layout
from igpo_jax.run.layout import sampling_choices, with_layout
from igpo_jax.run.microbatch_choice import parts_of, training_seconds, update_bytes, with_microbatches
from igpo_jax.runtime.chips import CHIPS
from run_configs import CONFIGS, parsed

NETWORK = {"model__width": 32, "model__heads": 8, "model__kv_heads": 8, "model__layers": 4, "model__mlp_width": 96}
CACHED = {"sampler__cache": "dual", "sampler__steps": 16}


def math_config(variant: str, **changes):
    return parsed(CONFIGS / "math.py", variant, model__path="no such folder", **changes)


def network(config):
    """LLaDA-8B with a kernel that stores no attention scores, as on an accelerator."""
    return dataclasses.replace(planning.planned_model(config)[0], attention="splash")


def chosen(config, chip: str, monkeypatch, mesh):
    monkeypatch.setattr(layout, "UNKNOWN", CHIPS[chip])
    return with_layout(config, network(config), mesh)


@pytest.mark.parametrize("variant, chip, shape", [
    ("full", "TPU v5 lite", (1, 1, 8)),  # nothing fits, so the one that needs least memory
    ("lora", "TPU v5 lite", (2, 1, 4)),
    ("lora", "TPU v6 lite", (4, 1, 2)),
    ("full", "TPU v5", (8, 1, 1)),
    ("full", "NVIDIA H100 80GB HBM3", (8, 1, 1)),
])  # fmt: skip
def test_the_weights_are_copied_as_often_as_the_memory_allows(variant, chip, shape, mesh_of, monkeypatch):
    mesh, changes = mesh_of((1, 8, 1)), {"sampler__cache": "dual", "rl__rollout_chunks": 0}
    config, sampling = chosen(math_config(variant, **changes), chip, monkeypatch, mesh)
    assert tuple(sampling.shape.values()) == shape
    assert config.sampler.layout == ("replicated" if shape[0] == 8 else "tensor")
    assert sampling.devices.ravel().tolist() == mesh.devices.ravel().tolist()


def test_no_choice_is_faster_among_those_that_fit(mesh_of, monkeypatch):
    mesh = mesh_of((1, 8, 1))
    given = math_config("lora", rl__rollout_chunks=0)
    config, sampling = chosen(given, "TPU v5 lite", monkeypatch, mesh)
    choices = list(sampling_choices(given, network(given), mesh, None))
    limit = layout.USABLE_OF_SMALL * 15.75 * 2**30
    [taken] = [c for c in choices if c.mesh == sampling and c.chunks == config.rl.rollout_chunks]
    assert taken.memory <= limit and any(c.memory > limit for c in choices)
    assert all(taken.seconds <= (1 + layout.TOLERANCE) * c.seconds for c in choices if c.memory <= limit)
    assert len({c.layout for c in choices}) == 3 and {c.chunks for c in choices} == {1, 2, 4, 8, 16, 32, 64}


def test_shorter_prompts_permit_more_chunks_with_less_padding(mesh_of, monkeypatch):
    """With prompts of two lengths, two chunks separate them, and one chunk pads all to the longer one."""
    monkeypatch.setattr(layout, "UNKNOWN", dataclasses.replace(CHIPS["TPU v5"], link=1e30, hbm=1e30))
    config = math_config("lora", rl__rollout_chunks=0)
    lengths = np.array([100] * 500 + [600] * 500)
    same, _ = with_layout(config, network(config), mesh_of((1, 8, 1)), np.full(1000, 600))
    mixed, _ = with_layout(config, network(config), mesh_of((1, 8, 1)), lengths)
    assert same.rl.rollout_chunks < mixed.rl.rollout_chunks


@pytest.mark.parametrize("memory", [0.001, 0.02, 1.0, 16.0])
def test_sizes_of_zero_are_replaced_by_sizes_that_fit(memory, mesh_of, monkeypatch):
    monkeypatch.setattr(layout, "UNKNOWN", dataclasses.replace(layout.UNKNOWN, memory_gib=memory))
    config = parsed(rl__rollout_chunks=0, rl__microbatches=0, evaluation__batch_size=0, **NETWORK)
    run = planning.fitted(config, mesh_of((2, 2, 2)))
    rows, size = config.rl.prompts // run.config.rl.rollout_chunks * config.rl.group_size, run.config.evaluation.batch_size
    copies = run.sampling_mesh.shape["data"] * run.sampling_mesh.shape["fsdp"]
    assert rows % copies == size % copies == size % 4 == 0 < size < 2 * max(config.evaluation.problems, 8)
    parts = [n for n in range(1, config.rl.prompts + 1) if config.rl.prompts % (4 * n) == 0]
    assert run.config.rl.microbatches in parts
    if memory == 16:
        assert run.config.rl.rollout_chunks == run.config.rl.microbatches == 1 and size == 16


def test_there_are_as_few_microbatches_as_fit(mesh_of, monkeypatch):
    config, mesh = math_config("lora", rl__microbatches=0), mesh_of((1, 8, 1))
    needed = {n: update_bytes(config, network(config), mesh, n) for n in (1, 2, 4, 8)}
    assert needed[1] > needed[2] > needed[4] > needed[8]
    for wanted in (2, 4, 8):
        memory = needed[wanted] / layout.USABLE_OF_SMALL / 2**30 + 0.01
        monkeypatch.setattr(layout, "UNKNOWN", dataclasses.replace(layout.UNKNOWN, memory_gib=memory))
        assert with_microbatches(config, network(config), mesh).rl.microbatches == wanted
    assert with_microbatches(math_config("lora", rl__microbatches=1), network(config), mesh).rl.microbatches == 1


@pytest.mark.parametrize("estimator, chip, shape, buckets, expected", [
    ("elbo", "NVIDIA H200", (1, 1, 1), (128, 256, 384, 640), 16),
    ("elbo", "NVIDIA H200", (1, 1, 1), (640,), 4),  # as few as fit
    ("elbo", "NVIDIA H100 80GB HBM3", (1, 8, 1), (128, 256, 384, 640), 2),
    ("elbo", "NVIDIA H100 80GB HBM3", (1, 8, 1), (640,), 1),
    ("mean_field", "NVIDIA H100 80GB HBM3", (1, 8, 1), (128, 256, 384, 640), 1),  # gathering takes longer than padding
])  # fmt: skip
def test_more_microbatches_save_padding_if_there_are_buckets(estimator, chip, shape, buckets, expected, mesh_of, monkeypatch):
    monkeypatch.setattr(layout, "UNKNOWN", CHIPS[chip])
    config = math_config("lora", rl__microbatches=0, objective__estimator=estimator, data__prompt_buckets=buckets)
    chosen = with_microbatches(config, network(config), mesh_of(shape), read_lengths(DEFAULT_LENGTHS))
    assert chosen.rl.microbatches == expected
    assert parts_of(chosen) == (expected if len(buckets) > 1 else 1)


def test_the_estimate_of_training_follows_from_the_lengths(mesh, monkeypatch):
    """On one device, time is proportional to the FLOPs of all prompts in their buckets."""
    monkeypatch.setattr(layout, "UNKNOWN", CHIPS["NVIDIA H100 80GB HBM3"])
    config, lengths = math_config("lora", objective__estimator="elbo"), np.array([100] * 32 + [600] * 32)  # of the only batch
    model = network(config)
    short, long = (forward_flops(model, size + 256, 256) for size in (128, 640))
    one, two, four, full = (
        training_seconds(config, model, mesh, n, given) for n, given in ((1, lengths), (2, lengths), (4, lengths), (2, None))
    )
    assert one == pytest.approx(full) and two == pytest.approx(four) and two / one == pytest.approx((1 + short / long) / 2)


def test_values_that_are_named_are_kept(mesh_of):
    for name, shape in (("train", (2, 2, 2)), ("replicated", (8, 1, 1)), ("tensor", (4, 1, 2))):
        config = parsed(rl__rollout_chunks=2, evaluation__batch_size=8, sampler__layout=name, **NETWORK)
        run = planning.fitted(config, mesh_of((2, 2, 2)))
        assert run.config == config and tuple(run.sampling_mesh.shape.values()) == shape


def test_a_layout_that_is_impossible_is_refused(mesh_of):
    config = parsed(sampler__layout="replicated", rl__prompts=4, rl__group_size=3, **NETWORK)
    with pytest.raises(ValueError, match="sampler.layout='replicated' is impossible: the 8 devices and the network's heads"):
        planning.fitted(config, mesh_of((2, 2, 2)))
    automatic = parsed(rl__prompts=4, rl__group_size=3, **NETWORK)  # over four copies, 12 rows can be divided
    assert dict(planning.fitted(automatic, mesh_of((2, 2, 2))).sampling_mesh.shape)["data"] in (2, 4)


def received(config, mesh) -> float:
    [program] = [p for p in planning.programs(planning.fitted(config, mesh)) if p.name == "sample"]
    return sum(planning.measure(program)["received_bytes"].values())


@pytest.mark.slow
def test_a_copy_saves_nine_tenths_of_the_communication(mesh_of):
    """Compares the bytes that devices receive while they sample with a cache, read from the compiled programs."""
    mesh = mesh_of((1, 8, 1))
    train, replicated, tensor = (
        received(parsed(sampler__layout=name, rl__group_size=2, **NETWORK, **CACHED), mesh)
        for name in ("train", "replicated", "tensor")
    )
    assert train > 10 * replicated and train > tensor


def test_the_shares_of_the_buckets_sum_to_the_chunks():
    config = math_config("lora")
    for chunks in (1, 4, 64):
        loads = layout.rollout_loads(config, chunks, np.array([90, 130, 300, 640, 9000]))
        assert math.isclose(sum(times for _, times in loads), chunks)
        assert [load.positions for load, _ in loads] == [size + 256 for size in config.data.prompt_buckets]
    assert jax.device_count() == 8
