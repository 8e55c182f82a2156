"""Plans for absent TPUs: the TPU compiler runs on CPUs."""

import dataclasses
import importlib.util
import re

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from igpo_jax.model import lora as lora_module
from igpo_jax.model import transformer
from igpo_jax.model.lora import LoraConfig
from igpo_jax.model.transformer import forward_flops
from igpo_jax.plan import advice
from igpo_jax.plan import programs as planning
from igpo_jax.plan.devices import topology_devices
from igpo_jax.run.layout import check_divisibility
from igpo_jax.runtime.mesh import make_mesh
from run_configs import CONFIGS, parsed

needs_tpu_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason='the TPU compiler is not installed (extra "tpu")'
)


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


@pytest.mark.slow
@needs_tpu_compiler
@pytest.mark.parametrize("attention", ["xla", "auto"])
def test_attention_is_lowered_for_tpus(attention):
    """Compiles the forward pass of the sampler and the backward pass of the update, without and with the kernel, which is the
    default."""
    wide = {"model__width": 256, "model__heads": 2, "model__kv_heads": 2, "model__compute_dtype": "bfloat16"}
    lengths = {"data__prompt_buckets": (128 - 16,), "rl__group_size": 2}
    config = parsed(model__attention=attention, **wide, **lengths)
    mesh = make_mesh(devices=topology_devices("v5e:2x2", 1))
    for program in planning.programs(planning.fitted(config, mesh)):
        if program.name in ("sample", "update"):
            with jax.set_mesh(program.mesh):
                text = program.function.lower(*program.arguments).compile().as_text()
            assert ("splash" in text) == (attention == "auto"), program.name


@needs_tpu_compiler
@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4, alpha=4.0)], ids=["weights", "adapters"])
@pytest.mark.parametrize("base_dtype", ["", "int8"])
def test_sums_over_tensor_are_exchanged_in_bfloat16(base_dtype, lora):
    """Reads the dtypes of all sums over devices from the compiled forward pass; the embeddings are one more sum."""
    model = dataclasses.replace(planning.LLADA_8B, layers=5, width=256, heads=4, kv_heads=4, mlp_width=512, vocab_size=512,
                                mask_id=511, eos_id=510, base_dtype=base_dtype, compute_dtype="bfloat16")  # fmt: skip
    mesh = make_mesh(data=1, fsdp=1, tensor=4, devices=topology_devices("v5e:2x2", 1))
    params = transformer.abstract_base(model, mesh)
    if lora:
        params["blocks"]["adapters"] = lora_module.abstract(model, lora, mesh)
    tokens = jax.ShapeDtypeStruct((4, 128), "int32", sharding=NamedSharding(mesh, P()))
    mask = jax.ShapeDtypeStruct((4, 128), bool, sharding=NamedSharding(mesh, P()))
    with jax.set_mesh(mesh):
        text = jax.jit(transformer.forward, static_argnums=3).lower(params, tokens, mask, model).compile().as_text()
    sums = re.findall(r"= \(?(\w+)\[[\d,]*\][^=]* (?:all-reduce|reduce-scatter)(?:-start)?\(", text)
    assert len(sums) >= 3 and set(sums) == {"bf16"}, sums


@needs_tpu_compiler
def test_kernels_run_where_they_can():
    config = parsed(model__width=256, model__heads=2, model__kv_heads=2, model__attention="splash")
    model, _ = planning.planned_model(config)
    here = make_mesh(devices=jax.devices()[:1])
    with pytest.raises(ValueError, match="model.attention='splash' runs on tpu, not on cpu"):
        check_divisibility(config, model, here)
    there = make_mesh(devices=topology_devices("v5e:2x2", 1))
    with pytest.raises(
        ValueError, match=r"prompt_buckets \+ sampler.completion_length\) whose length is a multiple of 128, not of"
    ):
        check_divisibility(config, model, there)
    config = parsed(model__attention="splash", data__prompt_buckets=(112,))
    with pytest.raises(ValueError, match="the head size .* to be a multiple of 128, not 16"):
        check_divisibility(config, planning.planned_model(config)[0], there)


@pytest.fixture
def little_effort():
    """Makes the TPU compiler optimize little, which takes 8 instead of 120 seconds of CPU time for LLaDA-8B. The FLOPs are the
    same, and the peak of the memory is 8.3 instead of 9.1 GiB."""
    effort = jax.config.jax_exec_time_optimization_effort
    jax.config.update("jax_exec_time_optimization_effort", -1.0)
    yield
    jax.config.update("jax_exec_time_optimization_effort", effort)


@needs_tpu_compiler
@pytest.mark.slow
def test_llada_8b_fits_eight_small_chips_and_updates_one_row_per_prompt(little_effort):
    """Checks configs/math.py with adapters on v5e:2x4 against BUILD.md. FLOPs are within 1.3 of two forward passes (one of them
    recomputed) and a backward pass without gradients of frozen matrices."""
    config = parsed(CONFIGS / "math.py")
    mesh = make_mesh(**vars(config.mesh), devices=topology_devices("v5e:2x4", 1))
    result = advice.plan(config, mesh, ["update"])  # which needs the most memory
    assert result["fits"] and result["peak_gib"] < 0.9 * 15.75
    [update] = result["programs"]
    model = planning.LLADA_8B
    row = forward_flops(model, 640 + 256, 256)
    adapters = 2 * 896 * 128 * sum(  # forward, A and B of all seven matrices
        a + b for a, b in [(4096, 4096)] * 4 + [(4096, 12288)] * 2 + [(12288, 4096)]
    ) * model.layers  # fmt: skip
    per_prompt = update["flops"] * 8 / config.rl.prompts
    assert 0.9 * 3 * row < per_prompt < 1.3 * (3 * row + 4 * adapters)
