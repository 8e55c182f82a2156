"""Compares the numbers of `plan` with hand calculations."""

import dataclasses
import importlib.util
import json

import jax
import numpy as np
import pytest

from igpo_jax.data.buckets import read_lengths
from igpo_jax.diffusion.sampler import block_flops
from igpo_jax.model import fitting
from igpo_jax.model.fitting import fit_to_devices
from igpo_jax.model.lora import LoraConfig
from igpo_jax.model.transformer import forward_flops
from igpo_jax.plan import advice
from igpo_jax.plan import programs as planning
from igpo_jax.plan.devices import topology_devices
from igpo_jax.plan.text import as_text, typical
from igpo_jax.runtime import chips
from igpo_jax.runtime.mesh import replicated
from igpo_jax.training.policy import Policy
from run_configs import CONFIGS, parsed

PROGRAMS = ["sft", "heldout", "sample", "inpaint", "score", "update", "evaluate"]


@pytest.mark.slow
@pytest.mark.parametrize("shape, remat, passes", [
    ((1, 1, 1), "none", 3), ((1, 1, 1), "full", 4),
    ((2, 2, 2), "none", 3), ((2, 2, 2), "full", 4),
])  # fmt: skip
def test_an_update_computes_one_row_per_prompt(remat, passes, shape, mesh_of):
    """Counts one forward pass, a backward pass worth two and, with remat, a second forward pass; not one per completion."""
    wide = {"model__width": 64, "model__heads": 4, "model__kv_heads": 2, "model__mlp_width": 192, "model__layers": 3}
    config = parsed(model__remat=remat, model__head_chunk=4096, rl__group_size=8, **wide)
    mesh = mesh_of(shape)
    result = advice.plan(config, mesh, ["update"])
    model = fit_to_devices(planning.planned_model(config)[0], mesh, None)
    length = config.sampler.completion_length
    row = forward_flops(model, config.data.prompt_buckets[-1] + length, length)
    prompts_per_device = config.rl.prompts / mesh.devices.size
    have = result["programs"][0]["flops"] / prompts_per_device
    # The backward pass recomputes the head's logits, even without remat, and skips the last layer's unused gradients of
    # prompts. Both effects are small.
    assert 0.85 * passes * row < have < 1.3 * passes * row < config.rl.group_size * row


def test_sampling_is_counted_through_all_its_steps(mesh):
    config = parsed()
    record = advice.plan(config, mesh, ["sample"])["programs"][0]
    model = fit_to_devices(planning.planned_model(config)[0], mesh, None)
    decode, rows = config.sampler, config.rl.prompts * config.rl.group_size
    row = forward_flops(model, config.data.prompt_buckets[-1] + decode.completion_length, decode.block_length)
    assert record["flops"] == pytest.approx(decode.steps // decode.blocks * rows * row, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_cached_sampling_and_its_probe_are_planned(cache, mesh):
    exact, config = parsed(), parsed(sampler__cache=cache, sampler__steps=16)
    records = {record["name"]: record for record in advice.plan(config, mesh, ["sample", "probe"])["programs"]}
    model = fit_to_devices(planning.planned_model(config)[0], mesh, None)
    decode, rows = config.sampler, config.rl.prompts * config.rl.group_size
    length = config.data.prompt_buckets[-1] + decode.completion_length
    # A block has eight steps: one full forward pass and seven windows. program_cost counts one window more.
    most = rows * block_flops(1, 8, 0, length, model, decode)
    assert records["sample"]["flops"] == pytest.approx(most, rel=0.05)
    assert records["probe"]["used"] and records["probe"]["peak_gib"] > 0
    assert "probe" not in [program.name for program in planning.programs(planning.fitted(exact, mesh))]


@pytest.mark.slow
def test_the_remat_that_fits_and_is_fastest_is_named(mesh, monkeypatch):
    found = advice.remat_choice(parsed(model__layers=4), mesh)
    assert list(found["programs"]) == ["none", "dots", "full"] and found["choice"] == "none"
    peaks = [record["peak_gib"] for record in found["programs"].values()]
    assert peaks[0] > peaks[2], "recomputing must save something here"
    monkeypatch.setattr(advice, "device_memory_gib", lambda device: (peaks[0] + peaks[2]) / 2 / advice.MOST)
    assert advice.remat_choice(parsed(model__layers=4), mesh)["choice"] in ("dots", "full")
    monkeypatch.setattr(advice, "device_memory_gib", lambda device: 0.0)
    assert advice.remat_choice(parsed(model__layers=4), mesh)["choice"] is None


def test_chunks_of_the_head_are_sized_by_the_memory(mesh_of, monkeypatch):
    model, _ = planning.planned_model(parsed())
    llada = dataclasses.replace(planning.LLADA_8B, head_chunk=0)
    kind = mesh_of((1, 1, 1)).devices.flat[0].device_kind
    monkeypatch.setattr(fitting, "CHIPS", {kind: chips.CHIPS["TPU v5 lite"]})
    assert fit_to_devices(model, mesh_of((1, 1, 1)), None).head_chunk == fitting.MOST_CHUNK
    assert fit_to_devices(llada, mesh_of((1, 1, 1)), None).head_chunk == 512
    assert fit_to_devices(llada, mesh_of((1, 2, 4)), None).head_chunk == 2048
    assert fit_to_devices(dataclasses.replace(llada, head_chunk=64), mesh_of((1, 1, 1)), None).head_chunk == 64


@pytest.mark.slow
def test_peaks_are_the_sums_of_their_parts(mesh_of):
    mesh, config = mesh_of((1, 4, 2)), parsed(rl__prompts=16, evaluation__batch_size=16)
    result = advice.plan(config, mesh)
    assert [record["name"] for record in result["programs"]] == PROGRAMS
    assert result["fits"] and all(record["used"] for record in result["programs"])
    for record in result["programs"]:
        parts = sum(record[f"{part}_gib"] for part in ("arguments", "outputs", "temporary", "code"))
        assert record["peak_gib"] == pytest.approx(parts + sum(record["resident_gib"].values()))
    assert result["peak_gib"] == max(record["peak_gib"] for record in result["programs"])


def test_a_model_folder_that_cannot_be_used_is_an_error(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="config.json"):
        planning.planned_model(parsed(CONFIGS / "math.py", model__path=str(tmp_path)))


@pytest.mark.slow
def test_programs_that_a_run_does_not_call_are_compiled_only_if_named(mesh):
    lines: list[str] = []
    result = advice.plan(parsed(sft__updates=0), mesh, report=lines.append)
    assert [record["name"] for record in result["programs"]] == [line.split()[1] for line in lines]
    assert (
        "sft" not in " ".join(lines)
        and all(record["used"] for record in result["programs"])
        and lines[0].endswith(f"(1 of {len(lines)})")
    )


def test_a_supervised_stage_of_epochs_is_planned_as_one_of_updates(mesh):
    changes = ({"sft__updates": 200}, {"sft__updates": 0, "sft__epochs": 2}, {"sft__updates": 0})
    used = [{each.name for each in planning.programs(planning.fitted(parsed(**keys), mesh)) if each.used} for keys in changes]
    assert used[0] == used[1] == used[2] | {"sft", "heldout"}


@pytest.mark.slow
def test_what_a_run_does_not_have_does_not_count(mesh):
    result = advice.plan(parsed(sft__updates=0, sft__batch_size=4096), mesh, ["sft", "update"])
    sft, update = result["programs"]
    assert not sft["used"] and update["used"] and sft["peak_gib"] > update["peak_gib"] == result["peak_gib"]


@pytest.mark.slow
def test_a_verdict_names_three_changes_of_the_configuration(mesh, monkeypatch):
    monkeypatch.setattr(advice, "device_memory_gib", lambda device: 0.001)
    config = parsed(model__layers=2, sft__updates=0, model__compute_dtype="bfloat16")
    result = advice.plan(config, mesh, ["sample", "update"])
    assert not result["fits"]
    assert len(result["advice"]) == 3
    saved = [entry["saves_about_gib"] for entry in result["advice"]]
    assert saved == sorted(saved, reverse=True) and saved[-1] > 0
    text = as_text(result)
    assert "**does not fit**" in text and all(entry["change"] in text for entry in result["advice"])


def test_the_time_of_each_stage_and_the_disk_of_checkpoints_are_told():
    config = {"sft_updates": 20_000, "iterations": 0, "checkpoint_gb": 2.0, "checkpoints_kept": 2}
    program = {"name": "sft", "used": True, "per_iteration": 0, "estimated_seconds": 0.9, "resident_gib": {}, "peak_gib": 1.0}
    program |= {"flops": 1.0, "bytes": 1.0, "compile_seconds": 1.0, "received_bytes": {}}
    device = {"devices": 1, "device": "chip", "slices": 1, "mesh": {"data": 1}, "attention": "xla", "model": "a model"}
    result = config | device | {"programs": [program], "fits": True, "peak_gib": 1.0, "memory_gib": 2.0, "advice": []}
    text = as_text(result)
    assert "20,000 supervised updates take about 5.0 h.\n" in text and "iterations take" not in text
    assert "A checkpoint has 2 GB; the newest 2 and the best one are kept" in text and "up to 8 GB of disk" in text


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
        advice.plan(parsed(), mesh, ["upate"])


def test_without_the_tpu_compiler_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install -e "\.\[tpu\]"'):
        topology_devices("v5e:2x4", 1)


def test_the_shape_that_is_planned_for_is_llada_8b():
    parameters = jax.eval_shape(lambda: planning.transformer.init(jax.random.key(0), planning.LLADA_8B))
    assert sum(leaf.size for leaf in jax.tree.leaves(parameters)) == 8_015_581_184


def test_rollouts_of_common_lengths_are_interpolated_between_the_smallest_and_the_largest_bucket(mesh, monkeypatch):
    config = parsed(data__prompt_buckets=(5, 8, 21), rl__prompts=8, rl__rollout_chunks=1)
    length, seen = config.sampler.completion_length, []

    def measure(program):
        seen.append((program.name, program.arguments[1].prompt_mask.shape[1]))
        return {"estimated_seconds": 2.0}

    monkeypatch.setattr(advice, "measure", measure)
    run, records = planning.fitted(config, mesh), [{"name": "sample", "estimated_seconds": 10.0}]
    found = advice.typical_rollout(run, records, np.array([8, 8, 7, 6, 8, 7, 7, 6, 90]))
    assert seen == [("sample", 5)]
    expected = {"mean_positions": 8 + length, "most_positions": 21 + length, "estimated_seconds": 2 + (8 - 5) / (21 - 5) * 8}
    # All prompts of a batch fill the bucket of 8 tokens.
    share = [forward_flops(run.model, size + length, length) for size in (8, 21)]
    assert found == pytest.approx(expected | {"training_share": share[0] / share[1]})
    assert advice.typical_rollout(run, records, np.array([90])) is None
    assert advice.typical_rollout(run, [{"name": "update"}], np.array([8])) is None
    result = {"rollouts": found | {"prompts": "X"}, "programs": records}
    records[0]["per_iteration"] = 3
    records += [{"name": "score", "per_iteration": 1, "estimated_seconds": 4.0}]
    records += [{"name": "update", "per_iteration": 4, "estimated_seconds": 1.5}]
    seconds = 50 - 3 * (10 - 3.5) - 10 * (1 - share[0] / share[1])
    told = f"instead of {21 + length}), score and update {share[0] / share[1]:.0%} of their time, and the iteration {seconds:.0f} s."
    assert typical(result, 50.0).endswith(told)


@pytest.mark.slow
@pytest.mark.parametrize("shape, adapters", [((1, 1, 1), False), ((2, 2, 2), True)])
def test_parts_of_an_update_are_planned(shape, adapters, mesh_of):
    """Two microbatches in buckets of their own take as much as two in one program, without the optimizer's arrays."""
    changes = {"model__width": 64, "model__heads": 4, "model__kv_heads": 4, "model__mlp_width": 192, "model__layers": 3}
    mesh, found = mesh_of(shape), []
    for buckets in ((9,), (5, 9)):
        config = parsed(rl__microbatches=2, data__prompt_buckets=buckets, model__head_chunk=4096, **changes)
        config = dataclasses.replace(config, lora=LoraConfig(rank=2, alpha=4.0) if adapters else None)
        only = ["score", "update", "apply"][: 1 + len(buckets)]
        found.append({record["name"]: record for record in advice.plan(config, mesh, only)["programs"]})
    (one, parts), steps = found, config.objective.inner_steps
    calls = {name: record["per_iteration"] for name, record in parts.items()}
    assert calls == {"score": 2, "update": 2 * steps, "apply": steps}
    for name in ("score", "update"):
        assert 2 * parts[name]["flops"] == pytest.approx(one[name]["flops"], rel=0.02)
    assert parts["apply"]["flops"] == 0
    policy = Policy(planning.planned_model(config)[0], config.lora)
    gradients = planning.shard_bytes(policy.abstract(mesh)) / 2**30
    assert parts["update"]["resident_gib"]["training state"] == pytest.approx(2 * gradients, rel=0.01)  # moments
    # Parameters, two moments and the sum of gradients
    held = sum(parts["update"]["resident_gib"].values()) + parts["update"]["arguments_gib"]
    assert held > 4 * gradients and parts["update"]["peak_gib"] > held + gradients


def test_a_batch_has_parts_only_with_several_buckets_and_microbatches(mesh):
    def names(**changes):
        return [program.name for program in planning.programs(planning.fitted(parsed(**changes), mesh))]

    one, several = {"data__prompt_buckets": (9,)}, {"data__prompt_buckets": (5, 9)}
    assert "apply" in names(rl__microbatches=2, **several)
    assert "apply" not in names(rl__microbatches=2, **one) + names(rl__microbatches=1, **several)


@pytest.mark.parametrize("text, message", [
    ("{}", "is not the number of prompts"), ('{"a": 1}', "is not the number of prompts"), ('{"9": 1.5}', "is not the number of prompts"),
    ('{"9": 99999999999}', "at most"), (json.dumps({str(n): 1 << 62 for n in range(1, 5)} | {"9": 5}), "at most"),
    ('{"9": 9223372036854775808}', "at most"), ('{"99999999999999999999999999": 2}', "at most"), ("[", "lengths.json"),
    ('{"' + 5000 * "9" + '": 2}', "lengths.json: at most"),
])  # fmt: skip
def test_a_file_without_lengths_is_named(text, message, tmp_path):
    (tmp_path / "lengths.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_lengths(tmp_path / "lengths.json")


def test_lengths_are_read_as_often_as_they_are_counted(tmp_path):
    (tmp_path / "lengths.json").write_text('{"7": 2, "3": 1, "5": 0}')
    assert read_lengths(tmp_path / "lengths.json").tolist() == [3, 7, 7]


@pytest.mark.parametrize("message, expected", [
    ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm.", 20.5),
    ("RESOURCE_EXHAUSTED: the total memory required for HLO temporaries (512.00M) exceeds available HBM (15.75G).", 0.5 + 2**-8),
])  # fmt: skip
def test_a_program_that_the_compiler_finds_too_large_has_a_peak(message, expected, mesh_of):
    """The second message does not count the arguments, here 4 MiB."""

    class Rejected:
        def lower(self, *arguments):
            raise jax.errors.JaxRuntimeError(message)

    mesh = mesh_of((1, 1, 1))
    argument = jax.ShapeDtypeStruct((1 << 20,), np.float32, sharding=replicated(mesh))
    record = planning.measure(planning.Program("sample", Rejected(), (argument,), {}, True, mesh))
    assert record["peak_gib"] == pytest.approx(expected) and record["error"] == message
