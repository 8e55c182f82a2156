"""One IGPO step, from rollout to update: meshes of eight devices give the results of one, and each device holds its share."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

from igpo_jax.data.pipeline import PromptBatch
from igpo_jax.diffusion.unmasking import DecodeConfig
from igpo_jax.model import lora as lora_module
from igpo_jax.model.lora import LoraConfig
from igpo_jax.model.transformer import ModelConfig, forward, init, parameter_table, shardings, unembed
from igpo_jax.rl.dynamic_sampling import merge
from igpo_jax.rl.hints import InpaintingConfig
from igpo_jax.rl.objective import ObjectiveConfig, compute_logprobs
from igpo_jax.rl.rollout import RolloutConfig, rollout
from igpo_jax.rl.update import make_update
from igpo_jax.runtime.mesh import shard_batch
from igpo_jax.tasks.grades import Grades
from igpo_jax.training.policy import Policy, cast_params
from igpo_jax.training.state import OptimizerConfig, create_state, make_optimizer

MESHES = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)]
MODEL = ModelConfig(vocab_size=24, mask_id=1, eos_id=2, width=32, layers=2, heads=8, kv_heads=8, mlp_width=40, head_chunk=16)
LORA = LoraConfig(rank=3, alpha=6.0)
N, G, LENGTH = 8, 4, 12


def prompts() -> PromptBatch:
    draw = np.random.default_rng(0)
    return PromptBatch(
        problem_id=np.arange(50, 50 + N, dtype=np.uint32),
        tokens=draw.integers(3, 24, (N, 7)).astype(np.int32),
        prompt_mask=np.arange(7) >= draw.integers(0, 4, N)[:, None],
        trace=draw.integers(3, 24, (N, LENGTH)).astype(np.int32),
        trace_length=np.full(N, LENGTH, np.int32),
        hintable=np.ones((N, LENGTH), bool),
    )


def grade(problem_id: np.ndarray, completions: np.ndarray):
    """Grades by the tokens alone; correct completions are rare, so that some groups are all wrong."""
    right = (completions.sum(axis=-1) + problem_id[:, None]) % 5 == 0
    return lambda: Grades(right.astype(np.float32), right, np.zeros_like(right), np.zeros_like(right))


def created(mesh, seed: int):
    return jax.jit(init, static_argnums=1, out_shardings=shardings(MODEL, mesh))(jax.random.key(seed), MODEL)


@functools.cache
def whole_step(mesh: Mesh, temperature: float, adapters: bool, cache: str = "none", shared: int = 0):
    """Samples with a copy of the weights for every `shared` devices, or, if it is 0, with the weights as they are. Returns (rollout, loss, gradient norm, parameters after a plain SGD step, parameters before it) as host arrays."""
    key, lora = jax.random.key(3), LORA if adapters else None
    cfg = RolloutConfig(
        MODEL,
        DecodeConfig(LENGTH, block_length=6, steps=6, temperature=temperature, cache=cache),
        InpaintingConfig(chunk_min=2, chunk_max=3, ratio_min=0.3, ratio_max=0.7),
        G,
        prompts_at_once=N // 2,
        prompt_buckets=(prompts().tokens.shape[1],),
        normalize_advantages=False,
    )
    objective = ObjectiveConfig(kl_coefficient=0.5)
    with jax.set_mesh(mesh):
        start, reference = created(mesh, 0), created(mesh, 1)
        frozen = start if adapters else None
        trained = start
        if adapters:
            make = jax.jit(lora_module.init, static_argnums=(1, 2), out_shardings=lora_module.shardings(MODEL, LORA, mesh))
            trained = jax.tree.map(lambda x: x + 0.05, make(jax.random.key(4), MODEL, LORA))
        optimizer = optax.sgd(1.0)
        state = create_state(trained, optimizer, Policy(MODEL, lora), mesh)
        before = jax.tree.map(np.asarray, state.params)
        policy = Policy(MODEL, lora).for_sampling(state.params, frozen, mesh)
        sampling_params, sampling_mesh = policy, mesh
        if shared:
            sampling_mesh = Mesh(mesh.devices.reshape(-1, 1, shared), mesh.axis_names, axis_types=mesh.axis_types)
            sampling_params = Policy(MODEL, lora).copy_to(policy, sampling_mesh)
        with jax.set_mesh(sampling_mesh):
            sampled = rollout(sampling_params, prompts(), grade, key, cfg, sampling_mesh)
        groups = shard_batch(merge([sampled], cfg).groups, mesh)
        logprobs = compute_logprobs(policy, reference, groups, key, MODEL, objective, mesh)
        update = make_update(optimizer, Policy(MODEL, lora), objective, mesh)
        state, statistics = update(state, groups, logprobs, jnp.int32(0), frozen)
    after = jax.tree.map(np.asarray, state.params)
    return sampled, float(statistics["policy/loss"]), float(statistics["policy/grad_norm"]), after, before


def norm(tree) -> float:
    return float(np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(tree))))


@pytest.mark.slow
@pytest.mark.parametrize("shape, temperature, adapters", [
    pytest.param((2, 2, 2), 1.0, True, id="adapters"),
    pytest.param((1, 1, 8), 1.0, True, id="adapters, tensor"),
    *(pytest.param(shape, 1.0, False, id=f"all parameters {shape}") for shape in MESHES),
    pytest.param((2, 2, 2), 0.0, False, id="temperature 0"),
])  # fmt: skip
def test_a_whole_step_does_not_depend_on_the_mesh(shape, temperature, adapters, mesh_of):
    assert_same(whole_step(mesh_of(shape), temperature, adapters), whole_step(mesh_of((1, 1, 1)), temperature, adapters))


@pytest.mark.slow
@pytest.mark.parametrize("shape, shared, cache, adapters", [
    ((2, 2, 2), 1, "none", True),
    ((1, 8, 1), 2, "dual", False),
    *(
        (shape, shared, cache, adapters)
        for shape in MESHES for shared, cache, adapters in [(1, "dual", False), (2, "none", True), (8, "prefix", False)]
    ),
])  # fmt: skip
def test_a_whole_step_does_not_depend_on_the_layout_of_sampling(shape, shared, cache, adapters, mesh_of):
    expected = whole_step(mesh_of((1, 1, 1)), 1.0, adapters, cache)
    assert_same(whole_step(mesh_of(shape), 1.0, adapters, cache, shared), expected)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="benchmarks/gpu.sh runs this test on a GPU, beside a CPU")
@pytest.mark.parametrize("adapters", [False, True], ids=["all parameters", "adapters"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_whole_step_on_a_gpu_is_the_cpus(temperature, adapters):
    gpu, cpu = (
        Mesh(np.array(jax.devices(platform)[:1]).reshape(1, 1, 1), ("data", "fsdp", "tensor")) for platform in ("gpu", "cpu")
    )
    assert_same(whole_step(gpu, temperature, adapters), whole_step(cpu, temperature, adapters))


def assert_same(step, expected_step) -> None:
    sampled, loss, grad_norm, after, before = step
    expected, expected_loss, expected_norm, expected_after, _ = expected_step

    assert sampled.triggered.tolist() == expected.triggered.tolist() and 0 < sampled.triggered.size < N
    np.testing.assert_array_equal(sampled.replaced, expected.replaced)
    for attempt in ("first", "second"):
        have, want = (getattr(of, attempt) for of in (sampled, expected))
        jax.tree.map(np.testing.assert_array_equal, have, want)
    for field in dataclasses.fields(sampled.groups):
        have, want = (np.asarray(getattr(of.groups, field.name)) for of in (sampled, expected))
        np.testing.assert_array_equal(have, want, err_msg=field.name)

    assert loss == pytest.approx(expected_loss, rel=1e-5, abs=1e-6) and grad_norm > 0.01
    assert grad_norm == pytest.approx(expected_norm, rel=1e-5)
    # Plain SGD with learning rate 1: the change is minus the gradient.
    gradients = jax.tree.map(np.subtract, before, expected_after)
    assert norm(gradients) == pytest.approx(expected_norm, rel=1e-4)
    difference = norm(jax.tree.map(np.subtract, after, expected_after))
    assert difference <= 1e-5 * norm(gradients) + 1e-7 * norm(after)  # second term: parameters are float32


def bytes_of_first_device(tree) -> int:
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("shape", MESHES)
@pytest.mark.parametrize("lora", [None, LORA], ids=["all parameters", "adapters"])
def test_each_device_holds_its_share(shape, lora, mesh_of):
    """Parameters and both moments are sharded; norm scales and counters are replicated."""
    mesh = mesh_of(shape)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-3), 10, Policy(MODEL, lora))
    params = created(mesh, 0)
    norms = 0
    if lora is None:
        trained = params
        infos = jax.tree.leaves(parameter_table(MODEL), is_leaf=lambda x: hasattr(x, "axes"))
        norms = sum(4 * np.prod(info.shape) for info in infos if info.stddev is None)
    else:
        make = jax.jit(lora_module.init, static_argnums=(1, 2), out_shardings=lora_module.shardings(MODEL, lora, mesh))
        trained = make(jax.random.key(0), MODEL, lora)
    state = create_state(trained, optimizer, Policy(MODEL, lora), mesh)
    moments = optax.tree.get(state.opt_state, "ScaleByAdamState")
    whole = sum(4 * leaf.size for leaf in jax.tree.leaves(trained))
    for tree in (state.params, moments.mu, moments.nu):
        assert bytes_of_first_device(tree) == (whole - norms) // (shape[1] * shape[2]) + norms
    others = bytes_of_first_device(state) - sum(map(bytes_of_first_device, (state.params, moments.mu, moments.nu)))
    assert others <= 16  # counters


@pytest.mark.slow
def test_the_copy_that_acts_lies_where_the_parameters_lie_and_computes_the_same(mesh_of):
    mesh, cfg = mesh_of((2, 2, 2)), dataclasses.replace(MODEL, compute_dtype="bfloat16")
    with jax.set_mesh(mesh):
        params = created(mesh, 0)
        copy = cast_params(params, cfg, mesh)
        for have, of in zip(jax.tree.leaves(copy), jax.tree.leaves(params), strict=True):
            assert have.dtype == jnp.bfloat16 and have.sharding.is_equivalent_to(of.sharding, of.ndim)
        assert cast_params(params, MODEL, mesh) is params
        run = jax.jit(lambda p: unembed(p, forward(p, jnp.arange(3, 19).reshape(2, 8), jnp.ones((2, 8), bool), cfg), cfg))
        np.testing.assert_array_equal(run(params), run(copy))
