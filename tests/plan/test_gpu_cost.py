"""Compares the cost of GPU programs with hand calculations. The HLO texts are shortened
forms of what XLA compiles for an H100."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gpu_compiler import needs_gpu_compiler
from igpo_jax.plan import programs as planning
from igpo_jax.plan.devices import topology_devices
from igpo_jax.plan.hlo_cost import Cost, program_cost

TWO_HOSTS = [0, 0, 0, 0, 1, 1, 1, 1]


def test_a_layer_of_stacked_weights_counts_as_one_layer():
    """A bitcast precedes the slice. The fusion reads and writes 8 * 128 bfloat16 and reads an int32."""
    text = """HloModule m

%fused (param_0: s32[], param_1: bf16[32,128,8]) -> bf16[1,8,128] {
  %param_1 = bf16[32,128,8]{1,2,0} parameter(1)
  %bitcast.1 = bf16[32,8,128]{2,1,0} bitcast(%param_1)
  %param_0 = s32[] parameter(0)
  %zero = s32[] constant(0)
  %slice = bf16[1,8,128]{2,1,0} dynamic-slice(%bitcast.1, %param_0, %zero, %zero), dynamic_slice_sizes={1,8,128}
  ROOT %copy = bf16[1,8,128]{2,1,0} copy(%slice)
}

ENTRY %main (i: s32[], w: bf16[32,128,8]) -> bf16[1,8,128] {
  %i = s32[] parameter(0)
  %w = bf16[32,128,8]{1,2,0} parameter(1)
  ROOT %layer = bf16[1,8,128]{2,1,0} fusion(%i, %w), kind=kCustom, calls=%fused
}
"""
    assert program_cost(text).bytes == 2 * 8 * 128 * 2 + 4


@pytest.mark.parametrize("old, moved", [
    ("bitcast(%param_0)", 3 * 16 * 64 * 2),  # in place: reads both arrays, writes the new values
    ("reshape(%param_0)", 2 * 4096 * 64 * 2 + 2 * 16 * 64 * 2),  # not in place: reads and writes the whole array
])  # fmt: skip
def test_an_update_in_place_moves_only_the_new_values(old, moved):
    """The fusion computes the new values, 16 * 64 bfloat16, from two arrays of their size."""
    text = f"""HloModule m

%fused (param_0: bf16[1,4096,64], param_1: bf16[16,64], param_2: bf16[16,64], param_3: s32[]) -> bf16[1,4096,64] {{
  %param_0 = bf16[1,4096,64]{{2,1,0}} parameter(0)
  %old = bf16[4096,64]{{1,0}} {old}
  %param_1 = bf16[16,64]{{1,0}} parameter(1)
  %param_2 = bf16[16,64]{{1,0}} parameter(2)
  %new = bf16[16,64]{{1,0}} add(%param_1, %param_2)
  %param_3 = s32[] parameter(3)
  %zero = s32[] constant(0)
  %update = bf16[4096,64]{{1,0}} dynamic-update-slice(%old, %new, %param_3, %zero)
  ROOT %bitcast = bf16[1,4096,64]{{2,1,0}} bitcast(%update)
}}

ENTRY %main (cache: bf16[1,4096,64], a: bf16[16,64], b: bf16[16,64], i: s32[]) -> bf16[1,4096,64] {{
  %cache = bf16[1,4096,64]{{2,1,0}} parameter(0)
  %a = bf16[16,64]{{1,0}} parameter(1)
  %b = bf16[16,64]{{1,0}} parameter(2)
  %i = s32[] parameter(3)
  ROOT %updated = bf16[1,4096,64]{{2,1,0}} fusion(%cache, %a, %b, %i), kind=kLoop, calls=%fused
}}
"""
    assert program_cost(text).bytes == moved + 4


def test_a_part_of_a_fused_product_is_read_alone():
    """A fusion takes one of three blocks of columns, 8 * 64 float32, converts it and adds an array of that size."""
    text = """HloModule m

%fused (param_0: f32[8,192], param_1: bf16[8,64]) -> bf16[8,64] {
  %param_0 = f32[8,192]{1,0} parameter(0)
  %convert = bf16[8,192]{1,0} convert(%param_0)
  %slice = bf16[8,64]{1,0} slice(%convert), slice={[0:8], [64:128]}
  %param_1 = bf16[8,64]{1,0} parameter(1)
  ROOT %add = bf16[8,64]{1,0} add(%slice, %param_1)
}

ENTRY %main (x: f32[8,192], y: bf16[8,64]) -> bf16[8,64] {
  %x = f32[8,192]{1,0} parameter(0)
  %y = bf16[8,64]{1,0} parameter(1)
  ROOT %part = bf16[8,64]{1,0} fusion(%x, %y), kind=kLoop, calls=%fused
}
"""
    assert program_cost(text).bytes == 8 * 64 * (4 + 2 + 2)


def test_a_fusion_of_a_bitcast_copies():
    text = """HloModule m

%fused (param_0: bf16[8,16,4]) -> bf16[8,4,16] {
  %param_0 = bf16[8,16,4]{2,1,0} parameter(0)
  ROOT %bitcast = bf16[8,4,16]{1,2,0} bitcast(%param_0)
}

ENTRY %main (x: bf16[8,16,4]) -> bf16[8,4,16] {
  %x = bf16[8,16,4]{2,1,0} parameter(0)
  ROOT %copied = bf16[8,4,16]{1,2,0} fusion(%x), kind=kLoop, calls=%fused
}
"""
    assert program_cost(text).bytes == 2 * 8 * 16 * 4 * 2


def test_a_library_product_adds_to_its_third_operand_and_its_scratch_is_free():
    text = """HloModule m

ENTRY %main (a: bf16[16,32], b: bf16[32,64], c: f32[16,64]) -> f32[16,64] {
  %a = bf16[16,32]{1,0} parameter(0)
  %b = bf16[32,64]{1,0} parameter(1)
  %c = f32[16,64]{1,0} parameter(2)
  %gemm = (f32[16,64]{1,0}, s8[4194304]{0}) custom-call(%a, %b, %c), custom_call_target="__cublas$lt$matmul", \
output_to_operand_aliasing={{0}: (2, {})}, backend_config={"gemm_backend_config":{"alpha_real":1,"beta":1,\
"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"],"lhs_batch_dimensions":[],\
"rhs_batch_dimensions":[]},"epilogue":"DEFAULT"}}
  ROOT %result = f32[16,64]{1,0} get-tuple-element(%gemm), index=0
}
"""
    cost = program_cost(text)
    assert cost.flops == 2 * 16 * 32 * 64
    assert cost.bytes == 2 * (16 * 32 + 32 * 64) + 2 * 4 * 16 * 64


# b = 2 rows, 4 heads of size 64, t = 128 queries and s = 256 keys. Results: the attention (and its scratch); the gradients of
# q, k, v and of the mask.
ATTENTION = """HloModule m

ENTRY %main (q: bf16[2,128,4,64], k: bf16[2,256,4,64], m: bf16[2,1,128,256], l: f32[2,4,128]) -> bf16[2,4,128,64] {
  %q = bf16[2,128,4,64]{3,2,1,0} parameter(0)
  %k = bf16[2,256,4,64]{3,2,1,0} parameter(1)
  %m = bf16[2,1,128,256]{3,2,1,0} parameter(2)
  %l = f32[2,4,128]{2,1,0} parameter(3)
  %attention = RESULTS custom-call(OPERANDS), custom_call_target="__cudnn$fmhaScaleBiasSoftmaxKIND", \
backend_config={"operation_queue_id": "0", "cudnn_fmha_backend_config": {"algorithm": {"algo_id": "0"}, "fmha_scale": 0.125, \
"intermediate_tensor_shape": {"element_type": "BF16", "dimensions": ["2", "4", "128", "256"], "tuple_shapes": [], \
"layout": {"minor_to_major": ["3", "2", "1", "0"]}}, "is_flash_attention": FLASH, "mask_type": "NO_MASK"}}
  ROOT %result = bf16[2,4,128,64]{3,1,2,0} get-tuple-element(%attention), index=0
}
"""
Q, K, M, L = 2 * 128 * 4 * 64 * 2, 2 * 256 * 4 * 64 * 2, 2 * 128 * 256 * 2, 2 * 4 * 128 * 4  # bytes


@pytest.mark.parametrize("kind, flash, products", [("", "true", 2), ("Backward", "true", 5), ("Backward", "false", 4)])
def test_cudnn_attention_counts_its_products(kind, flash, products):
    query, key = "bf16[2,4,128,64]{3,1,2,0}", "bf16[2,4,256,64]{3,1,2,0}"
    if kind:
        results, operands = (
            f"({query}, {key}, {key}, bf16[2,1,128,256]{{3,2,1,0}}, u8[65536]{{0}})",
            "%q, %k, %k, %l, %q, %m, %q",
        )
        moved = (3 * Q + 2 * K + L + M) + (Q + 2 * K + M)
    else:
        results, operands, moved = f"({query}, u8[65536]{{0}})", "%q, %k, %k, %m", 2 * Q + 2 * K + M
    text = ATTENTION.replace("RESULTS", results).replace("OPERANDS", operands).replace("KIND", kind).replace("FLASH", flash)
    cost = program_cost(text)
    assert cost.flops == products * 2 * 2 * 4 * 128 * 256 * 64
    assert cost.bytes == moved


def collective_text(start: str, done: str) -> str:
    """Returns a program with one asynchronous collective on a parameter %x, 1024 float32."""
    return f"""HloModule m, num_partitions=8

ENTRY %main (x: f32[1024]) -> f32[1024] {{
  %x = f32[1024]{{0}} parameter(0)
  %start = {start}
  ROOT %done = {done}(%start)
}}
"""


ALL = "channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}"
PAIRS = "channel_id=1, source_target_pairs={{0,1},{1,2},{2,3},{3,4},{4,5},{5,6},{6,7},{7,0}}"
# Text, elements of the result, received elements, and the share of them that comes from the other of two hosts.
STARTED = {
    "all-gather": (f"(f32[1024]{{0}}, f32[8192]{{0}}) all-gather-start(%x), {ALL}, dimensions={{0}}", 8192, 7 * 1024, 1 / 4),
    "all-reduce": (f"f32[1024]{{0}} all-reduce-start(%x), {ALL}, to_apply=%sum", 1024, 2 * 7 * 128, 1 / 4),
    "reduce-scatter": (
        f"((f32[1024]{{0}}), f32[128]{{0}}) reduce-scatter-start(%x), {ALL}, to_apply=%sum",
        128,
        7 * 128,
        1 / 4,
    ),
    "all-to-all": (f"((f32[1024]{{0}}), f32[1024]{{0}}) all-to-all-start(%x), {ALL}, dimensions={{0}}", 1024, 7 * 128, 4 / 7),
    "collective-permute": (f"(f32[1024]{{0}}, f32[1024]{{0}}) collective-permute-start(%x), {PAIRS}", 1024, 1024, 1),
}


@pytest.mark.parametrize("kind", STARTED)
def test_an_asynchronous_collective_counts_once(kind):
    start, out, received, _ = STARTED[kind]
    shape = f"f32[{out}]{{0}}"
    cost = program_cost(collective_text(start, f"{shape} {kind}-done"))
    assert cost == Cost(0.0, 4 * (1024 + out), cost.received)
    assert cost.received == {(kind, False): 4 * received}


@pytest.mark.parametrize("kind", STARTED)
def test_traffic_between_hosts_is_told_apart(kind):
    start, out, received, share = STARTED[kind]
    parts = program_cost(collective_text(start, f"f32[{out}]{{0}} {kind}-done"), TWO_HOSTS).received
    assert parts[kind, True] == pytest.approx(4 * received * share)
    assert parts[kind, False] == pytest.approx(4 * received * (1 - share))


@pytest.mark.parametrize("groups, near, far", [
    ("{{0,1,2,3},{4,5,6,7}}", 3, 0),  # within hosts
    ("{{0,4},{1,5},{2,6},{3,7}}", 0, 1),  # one device of each host
    ("[4,2]<=[2,4]T(1,0)", 0, 1),
    ("{{0,1,4,5},{2,3,6,7}}", 3 / 2, 3 / 2),  # two devices of each host: every second step of a ring
])  # fmt: skip
def test_groups_decide_what_crosses_hosts(groups, near, far):
    start = f"(f32[1024]{{0}}, f32[4096]{{0}}) all-gather-start(%x), channel_id=1, replica_groups={groups}, dimensions={{0}}"
    received = program_cost(collective_text(start, "f32[4096]{0} all-gather-done"), TWO_HOSTS).received
    assert received["all-gather", False] == near * 4096
    assert received["all-gather", True] == far * 4096


def test_hosts_for_too_few_devices_are_an_error():
    start, out, *_ = STARTED["all-gather"]
    with pytest.raises(ValueError, match="device 7, but the hosts of only 4 devices"):
        program_cost(collective_text(start, f"f32[{out}]{{0}} all-gather-done"), [0, 0, 1, 1])


def test_a_command_buffer_counts_as_its_instructions():
    text = """HloModule m

%command_buffer (p: f32[16,32], p.1: f32[32,8]) -> f32[16,8] {
  %p = f32[16,32]{1,0} parameter(0)
  %p.1 = f32[32,8]{1,0} parameter(1)
  ROOT %dot = f32[16,8]{1,0} dot(%p, %p.1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (a: f32[16,32], b: f32[32,8]) -> f32[16,8] {
  %a = f32[16,32]{1,0} parameter(0)
  %b = f32[32,8]{1,0} parameter(1)
  ROOT %call = f32[16,8]{1,0} call(%a, %b), to_apply=%command_buffer
}
"""
    assert program_cost(text) == Cost(2 * 16 * 32 * 8, 4 * (16 * 32 + 32 * 8 + 16 * 8))


def gpu_mesh(data: int, fsdp: int) -> Mesh:
    """Returns a mesh of H100s with a host for each index of the axis data."""
    devices = topology_devices(f"h100:{fsdp}", data)
    return Mesh(np.reshape(devices, (data, fsdp)), ("data", "fsdp"))


def compiled_cost(function, mesh: Mesh, *arguments: tuple) -> Cost:
    """Returns the cost of a function of bfloat16 arrays that are given as (shape, partition)."""
    shapes = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec)) for shape, spec in arguments]
    # As in `set_gpu_defaults`, which is too late in a process whose compiler has read XLA_FLAGS.
    compiled = jax.jit(function).lower(*shapes).compile(compiler_options={"xla_gpu_enable_triton_gemm": False})
    return program_cost(compiled.as_text(), [device.process_index for device in mesh.devices.flat])


@needs_gpu_compiler
def test_layers_are_read_once_each():
    """The compiled program copies each layer's weights before it uses them: it reads, writes and reads them."""
    rows, width, hidden, mesh = 64, 1024, 4096, gpu_mesh(1, 1)

    def forward(x, up, down):
        return jax.lax.scan(lambda x, layer: (jnp.tanh(x @ layer[0]) @ layer[1], None), x, (up, down))[0]

    def cost(layers):
        arguments = ((rows, width), P()), ((layers, width, hidden), P()), ((layers, hidden, width), P())
        return compiled_cost(forward, mesh, *arguments)

    few, many = cost(4), cost(16)
    assert many.flops == 16 * 2 * 2 * rows * width * hidden
    assert many.bytes == pytest.approx(4 * few.bytes, rel=0.02)
    activations = 16 * 2 * (2 * rows * width + 4 * rows * hidden)  # products read and write, tanh reads and writes
    expected = 3 * 16 * 2 * 2 * width * hidden + activations
    assert expected / 1.5 < many.bytes < 1.5 * expected
    assert many.bytes == pytest.approx(expected, rel=0.02)


@needs_gpu_compiler
def test_a_cache_that_is_updated_in_every_step_is_not_copied_as_a_whole():
    """Writes 16 of 4096 positions in each of 8 layers of a cache that is carried through the loop."""
    layers, positions, new, width = 8, 4096, 16, 1024
    mesh = gpu_mesh(1, 1)

    def write(cache, values):
        def step(cache, layer):
            number, values = layer
            return jax.lax.dynamic_update_slice(cache, jnp.tanh(values)[None], (number, jnp.int32(32), jnp.int32(0))), None

        return jax.lax.scan(step, cache, (jnp.arange(layers), values))[0]

    cost = compiled_cost(write, mesh, ((layers, positions, width), P()), ((layers, new, width), P()))
    copy_of_argument = 2 * 2 * layers * positions * width  # the argument is not donated
    assert cost.bytes == pytest.approx(copy_of_argument + layers * 2 * 2 * new * width, rel=0.02)


@needs_gpu_compiler
@pytest.mark.parametrize("backward, products", [(False, 2), (True, 2 + 5)])
def test_compiled_attention_counts_its_products(backward, products):
    """Flash attention keeps no scores, and its backward pass recomputes them: five products instead of four."""
    b, t, heads, size = 2, 256, 4, 64
    attention = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")

    def loss(*qkv):
        return attention(*qkv).astype(jnp.float32).sum()

    function = jax.grad(loss, argnums=(0, 1, 2)) if backward else attention
    cost = compiled_cost(function, gpu_mesh(1, 1), *[((b, t, heads, size), P())] * 3)
    assert cost.flops == products * 2 * b * heads * t * t * size


@needs_gpu_compiler
def test_a_gradient_sum_crosses_hosts_and_weights_are_gathered_within():
    """Each of two hosts keeps a copy of a matrix that is sharded over its four devices."""
    rows, width, hidden, mesh = 512, 1024, 2048, gpu_mesh(2, 4)

    def gradient(x, w):
        gradient = jax.grad(lambda w: (x @ w).astype(jnp.float32).sum() ** 2)(w)
        return jax.lax.with_sharding_constraint(gradient, NamedSharding(mesh, P("fsdp")))

    cost = compiled_cost(gradient, mesh, ((rows, width), P(("data", "fsdp"))), ((width, hidden), P("fsdp")))
    assert cost.received["all-gather", False] == 3 / 4 * 2 * width * hidden
    assert cost.received["all-gather", True] == 0
    assert cost.received["reduce-scatter", False] == 3 / 4 * 2 * width * hidden
    shard = 2 * width * hidden / 4
    assert cost.received["all-reduce", True] == pytest.approx(shard, rel=1e-4)  # two hosts receive twice half of the shard


@needs_gpu_compiler
def test_plan_reports_traffic_between_hosts():
    mesh = gpu_mesh(2, 4)
    x = jax.ShapeDtypeStruct((8, 1024), np.float32, sharding=NamedSharding(mesh, P("data", "fsdp")))
    program = planning.Program("sum", jax.jit(lambda x: x.sum(0)), (x,), {}, True, mesh)
    received = planning.measure(program)["received_bytes"]
    assert received == {"all-reduce between hosts": 1024 / 4 * 4}
