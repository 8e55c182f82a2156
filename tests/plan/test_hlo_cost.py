"""FLOPs and collective bytes of compiled programs, compared with hand calculations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from igpo_jax.plan.hlo_cost import _convolution_flops, _groups, _parse_instruction, program_cost


def cost_of(function, *shapes, mesh=None):
    arguments = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
    return program_cost(jax.jit(function).lower(*arguments).compile().as_text())


def test_products_in_nested_loops_count_as_often_as_they_run():
    def layers(x, w):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    def run(x, w):
        return jax.lax.fori_loop(0, 7, lambda _, x: layers(x, w), x)

    cost = cost_of(run, (16, 32), (5, 32, 32))
    assert cost.flops == 7 * 5 * 2 * 16 * 32 * 32
    assert not cost.received


def test_a_loop_that_may_end_early_counts_in_full():
    """Like the sampler's loop: a counter below a limit, and a data-dependent condition."""

    def run(x, w):
        def more(carry):
            step, x = carry
            return (step < 9) & (jnp.abs(x).max() < 100)

        return jax.lax.while_loop(more, lambda carry: (carry[0] + 1, jnp.tanh(carry[1] @ w)), (jnp.int32(0), x))

    assert cost_of(run, (16, 32), (32, 32)).flops == 9 * 2 * 16 * 32 * 32


def test_a_loop_whose_rounds_nobody_knows_is_an_error():
    def run(x, w):
        return jax.lax.while_loop(lambda x: x.max() < 100, lambda x: x @ w, x)

    with pytest.raises(ValueError, match="cannot tell how often"):
        cost_of(run, (32, 32), (32, 32))


def test_batched_products_and_gradients():
    def loss(q, k):
        return jnp.sum(jnp.einsum("btnh,bsnh->bnts", q, k) ** 2)

    product = 2 * 3 * 4 * 24 * 24 * 16
    shape = (3, 24, 4, 16)
    assert cost_of(loss, shape, shape).flops == product
    assert cost_of(jax.grad(loss, argnums=(0, 1)), shape, shape).flops == 3 * product


COLLECTIVES = {
    # Elements that one of 8 devices receives, relative to its shard of 64 floats.
    "all-gather": (lambda x: jax.lax.all_gather(x, "fsdp", tiled=True), P(), 7),
    "all-reduce": (lambda x: jax.lax.psum(x, "fsdp"), P(), 2 * 7 / 8),
    "reduce-scatter": (lambda x: jax.lax.psum_scatter(x, "fsdp", tiled=True), P("fsdp"), 7 / 8),
    "all-to-all": (lambda x: jax.lax.all_to_all(x, "fsdp", 0, 0, tiled=True), P("fsdp"), 7 / 8),
    "collective-permute": (lambda x: jax.lax.ppermute(x, "fsdp", [(i, (i + 1) % 8) for i in range(8)]), P("fsdp"), 1),
}


@pytest.mark.parametrize("kind", COLLECTIVES)
def test_what_a_collective_brings_to_a_device(kind, mesh_of):
    function, out, parts = COLLECTIVES[kind]
    mesh = mesh_of((1, 8, 1))

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=P("fsdp"), out_specs=out, check_vma=False)
    def once(x):
        return function(x)

    def run(x):  # three rounds with different inputs
        return jax.lax.map(once, jnp.stack([x, x + 1, x * x]))

    x = jax.ShapeDtypeStruct((8 * 64,), np.float32, sharding=NamedSharding(mesh, P("fsdp")))
    received = program_cost(jax.jit(run).lower(x).compile().as_text()).received
    assert received == {(kind, False): 3 * parts * 64 * 4}


def test_two_axes_exchange_among_their_own_devices_only(mesh_of):
    mesh = mesh_of((2, 2, 2))

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=P("fsdp", "tensor"), out_specs=P("fsdp"))
    def run(x):
        return jax.lax.psum(x, "tensor")

    x = jax.ShapeDtypeStruct((16, 64), np.float32, sharding=NamedSharding(mesh, P("fsdp", "tensor")))
    assert program_cost(jax.jit(run).lower(x).compile().as_text()).received == {("all-reduce", False): 8 * 32 * 4}


def test_matrices_spread_over_devices_are_shared_work(mesh_of):
    mesh = mesh_of((1, 4, 2))
    placed = [
        jax.ShapeDtypeStruct(shape, np.float32, sharding=NamedSharding(mesh, spec))
        for shape, spec in (((16, 32), P("fsdp")), ((32, 64), P(None, "tensor")))
    ]
    assert program_cost(jax.jit(jnp.matmul).lower(*placed).compile().as_text()).flops == 2 * 16 * 32 * 64 / 8


@pytest.mark.parametrize("text, groups", [
    ("replica_groups={{0,1},{2,3}}, dimensions={0}", [[0, 1], [2, 3]]),
    ("replica_groups=[2,2]<=[4], dimensions={0}", [[0, 1], [2, 3]]),
    ("replica_groups=[2,4]<=[2,2,2]T(2,0,1), dimensions={0}", [[0, 2, 4, 6], [1, 3, 5, 7]]),
    ("replica_groups=mesh['a'=2,'b'=4] {'a'}, dimensions={0}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
    ("source_target_pairs={{0,1},{1,0}}, channel_id=1", [[0, 1], [1, 0]]),
])  # fmt: skip
def test_who_takes_part_in_all_ways_to_write_it(text, groups):
    line = f"  %x = f32[4]{{0}} all-gather(%y), channel_id=3, {text}"
    assert _groups(_parse_instruction(line, {})) == groups


def test_what_comes_from_other_slices_over_the_hosts_network():
    """Uses the TPU compiler's form; with four slices, an all-reduce receives 2 * 3/4 of the array."""
    text = """HloModule m, num_partitions=2

ENTRY %main (p: f32[8,128]) -> f32[8,128] {
  %p = f32[8,128]{1,0:T(8,128)} parameter(0)
  %after-all = token[] after-all()
  %send = (f32[8,128]{1,0:T(8,128)}, u32[], token[]) send(%p, %after-all), channel_id=2, is_host_transfer=true
  %send-done = token[] send-done(%send), channel_id=2
  %recv = (f32[8,128]{1,0:T(8,128)}, u32[], token[]) recv(%after-all), channel_id=3, is_host_transfer=true, \
frontend_attributes={_xla_megascale_target="{1:4}x{0:1}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv-done = (f32[8,128]{1,0:T(8,128)}, token[]) recv-done(%recv), channel_id=3
  ROOT %result = f32[8,128]{1,0:T(8,128)} get-tuple-element(%recv-done), index=0
}
"""
    assert program_cost(text).received == {("all-reduce", True): 1.5 * 8 * 128 * 4}


@pytest.mark.parametrize("window, lhs, rhs, out, multiplications", [
    ("", (4, 8), (8, 16), (4, 16), 4 * 8 * 16),  # bf_io->bf: a plain product
    ("window={size=3}, ", (4, 10, 8), (3, 8, 16), (4, 8, 16), 4 * 8 * 3 * 8 * 16),
    # Padding adds holes: at each end, one of 3 kernel positions falls outside.
    ("window={size=3 pad=1_1}, ", (4, 10, 8), (3, 8, 16), (4, 10, 16), 4 * (10 * 3 - 2) * 8 * 16),
    # Dilation adds holes: every second position of the stretched input.
    ("window={size=2 lhs_dilate=2}, ", (4, 5, 8), (2, 8, 16), (4, 8, 16), 4 * 8 * 8 * 16),
])  # fmt: skip
def test_convolutions_count_what_is_multiplied(window, lhs, rhs, out, multiplications):
    d = "0" if len(lhs) == 3 else ""
    attributes = f"{window}dim_labels=b{d}f_{d}io->b{d}f"
    assert _convolution_flops(attributes, list(lhs), list(rhs), list(out)) == 2 * multiplications


def test_products_that_a_gpus_library_computes():
    """Uses XLA's form for NVIDIA's cuBLAS, with a workspace as a second result."""
    text = """HloModule m

ENTRY %main (a: bf16[16,32], b: bf16[32,64]) -> bf16[16,64] {
  %a = bf16[16,32]{1,0} parameter(0)
  %b = bf16[32,64]{1,0} parameter(1)
  %gemm = (bf16[16,64]{1,0}, s8[4194304]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", \
backend_config={"gemm_backend_config":{"alpha_real":1,"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],\
"rhs_contracting_dimensions":["0"],"lhs_batch_dimensions":[],"rhs_batch_dimensions":[]}}}
  ROOT %result = bf16[16,64]{1,0} get-tuple-element(%gemm), index=0
}
"""
    assert program_cost(text).flops == 2 * 16 * 32 * 64


def test_copies_beside_the_computation_move_what_arrives():
    """A copy to on-chip memory (S(1)) reads HBM once, a slice only its part; a copy within HBM reads and writes."""
    text = """HloModule m

ENTRY %main (p: f32[4,1024]) -> f32[4,1024] {
  %p = f32[4,1024]{1,0:T(8,128)} parameter(0)
  %slice-start = ((f32[4,1024]{1,0:T(8,128)}), f32[1,1024]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%p), slice={[0:1], [0:1024]}
  %slice-done = f32[1,1024]{1,0:T(8,128)S(1)} slice-done(%slice-start)
  %copy-start = (f32[4,1024]{1,0:T(8,128)}, f32[4,1024]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%p)
  ROOT %copy-done = f32[4,1024]{1,0:T(8,128)} copy-done(%copy-start)
}
"""
    assert program_cost(text).bytes == 1024 * 4 + 2 * 4 * 1024 * 4
