import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from igpo_jax.model import sharding, transformer
from igpo_jax.model.transformer import ModelConfig, abstract, embed, shardings, unembed, weight_decay_mask
from igpo_jax.plan.hlo_cost import program_cost
from igpo_jax.weights.folders import load_params
from igpo_jax.weights.huggingface import folder_model_config

CFG = ModelConfig(vocab_size=24, mask_id=1, eos_id=2, width=32, layers=2, heads=4, kv_heads=2, mlp_width=48)
# Compiled: op by op, most of the time would go into compiling single operations.
forward = jax.jit(transformer.forward, static_argnums=3)
init = jax.jit(transformer.init, static_argnums=1)
FIXTURE = pathlib.Path(__file__).parent / "fixtures" / "llada_tiny"


def test_a_vocabulary_that_would_fill_the_memory_is_refused():
    with pytest.raises(ValueError, match="vocab_size=1048577; at most 1048576 ids are possible"):
        dataclasses.replace(CFG, vocab_size=2**20 + 1)


def tokens_of(rows=3, length=10, seed=0, cfg=CFG):
    return jax.random.randint(jax.random.key(seed), (rows, length), 3, cfg.vocab_size)


def all_valid(tokens):
    return jnp.ones(tokens.shape, bool)


@pytest.mark.slow
def test_left_padding_does_not_change_valid_positions():
    params, tokens = init(jax.random.key(1), CFG), tokens_of()
    plain = forward(params, tokens, all_valid(tokens), CFG)
    for filler in (0, 7):  # tokens under the padding are irrelevant
        padded = jnp.pad(tokens, ((0, 0), (5, 0)), constant_values=filler)
        attention_mask = jnp.pad(all_valid(tokens), ((0, 0), (5, 0)))
        np.testing.assert_allclose(forward(params, padded, attention_mask, CFG)[:, 5:], plain, atol=2e-5)


def test_every_position_sees_every_valid_position():
    params, tokens = init(jax.random.key(1), CFG), jnp.arange(3, 13)[None]  # distinct: a row per position
    attention_mask = all_valid(tokens).at[0, 2].set(False)

    @jax.jit
    def outputs(shift):
        shifted = params | {"embedding": params["embedding"].at[tokens[0]].add(shift)}
        return forward(shifted, tokens, attention_mask, CFG)[0].sum(-1)

    seen = np.abs(jax.jacobian(outputs)(jnp.zeros((10, CFG.width)))).sum(-1) > 1e-7
    expected = np.ones((10, 10), bool)
    expected[:, 2] = np.arange(10) == 2  # only through its own residual stream
    np.testing.assert_array_equal(seen, expected)


def test_grouped_heads_equal_repeated_key_value_heads():
    params, tokens = init(jax.random.key(2), CFG), tokens_of()
    repeat = CFG.heads // CFG.kv_heads

    def repeat_heads(w):
        heads = w.reshape(CFG.layers, CFG.width, CFG.kv_heads, CFG.head_size)
        return jnp.repeat(heads, repeat, axis=2).reshape(CFG.layers, CFG.width, CFG.width)

    blocks = params["blocks"]
    full = params | {"blocks": blocks | {name: repeat_heads(blocks[name]) for name in ("key", "value")}}
    grouped = forward(params, tokens, all_valid(tokens), CFG)
    repeated = forward(full, tokens, all_valid(tokens), dataclasses.replace(CFG, kv_heads=CFG.heads))
    np.testing.assert_allclose(grouped, repeated, atol=2e-5)


def test_tied_head_is_the_embedding():
    cfg = dataclasses.replace(CFG, tied_head=True)
    params, tokens = init(jax.random.key(3), cfg), tokens_of()
    assert "head" not in params
    hidden = forward(params, tokens, all_valid(tokens), cfg)
    np.testing.assert_allclose(unembed(params, hidden, cfg), hidden @ params["embedding"].T, atol=1e-5)


@pytest.mark.parametrize("tied_head, param_dtype", [(False, "float32"), (True, "bfloat16")])
def test_init_abstract_and_shardings_agree(tied_head, param_dtype, mesh_of):
    cfg = dataclasses.replace(CFG, tied_head=tied_head, param_dtype=param_dtype)
    mesh = mesh_of((2, 2, 2))
    make = jax.jit(transformer.init, static_argnums=1, out_shardings=shardings(cfg, mesh))
    params, expected = make(jax.random.key(0), cfg), abstract(cfg, mesh)
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    for have, want in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
        assert (have.shape, have.dtype) == (want.shape, want.dtype)
        assert have.sharding.is_equivalent_to(want.sharding, have.ndim)
    # Matrices are sharded over fsdp and tensor: a quarter per device.
    query = params["blocks"]["query"]
    assert query.addressable_shards[0].data.size * 4 == query.size


def test_a_logical_axis_without_a_rule_is_an_error(mesh, monkeypatch):
    monkeypatch.delitem(sharding.SHARDING_RULES, "mlp")
    with pytest.raises(KeyError, match="mlp"):
        shardings(CFG, mesh)


def test_random_parameters_keep_the_residual_stream_at_unit_scale():
    cfg = dataclasses.replace(CFG, layers=6, width=64, mlp_width=128)
    params, tokens = init(jax.random.key(0), cfg), tokens_of(cfg=cfg)
    logits = unembed(params, forward(params, tokens, all_valid(tokens), cfg), cfg)
    assert 0.5 < float(logits.std()) < 2


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["full", "dots"])
def test_recomputation_does_not_change_gradients(remat):
    params, tokens = init(jax.random.key(4), CFG), tokens_of()

    def loss(params, cfg):
        return jnp.sum(jnp.sin(forward(params, tokens, all_valid(tokens), cfg)))

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    cfg = dataclasses.replace(CFG, remat=remat)
    plain, recomputed = gradient(params, CFG), gradient(params, cfg)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), plain, recomputed)

    def saved(cfg):
        return len(jax.make_jaxpr(lambda params: jax.vjp(lambda p: loss(p, cfg), params)[1])(params).out_avals)

    assert saved(cfg) < saved(CFG), "or the option does nothing"


def test_weight_decay_spares_norms_only():
    decays = {jax.tree_util.keystr(path): value for path, value in jax.tree.leaves_with_path(weight_decay_mask(CFG))}
    assert {name for name, value in decays.items() if not value} == {
        "['blocks']['attention_norm']",
        "['blocks']['mlp_norm']",
        "['final_norm']",
    }
    assert sum(decays.values()) == 9


def test_bfloat16_compute_stays_near_float32_and_gives_float32_logits():
    params, tokens = init(jax.random.key(5), CFG), tokens_of()
    cfg = dataclasses.replace(CFG, compute_dtype="bfloat16")
    hidden = forward(params, tokens, all_valid(tokens), cfg)
    logits = unembed(params, hidden, cfg)
    exact = unembed(params, forward(params, tokens, all_valid(tokens), CFG), CFG)
    assert hidden.dtype == jnp.bfloat16 and logits.dtype == jnp.float32
    error = jnp.abs(logits - exact)
    assert 1e-4 < float(error.max()) < 0.2


@pytest.mark.parametrize("case", ["", "leftpad_"])
def test_logits_equal_those_of_the_released_llada(case, mesh):
    """Covers the logits; test_parity.py covers more."""
    recorded, cfg = np.load(FIXTURE / "forward.npz"), folder_model_config(FIXTURE / "bf16_sharded")
    params, tokens = load_params(FIXTURE / "bf16_sharded", cfg, mesh), recorded["input_ids"].astype(np.int32)
    attention_mask = recorded["leftpad_mask"].astype(bool) if case else np.ones(tokens.shape, bool)
    logits = unembed(params, forward(params, tokens, attention_mask, cfg), cfg)
    # Padding rows are meaningless; the fixture has arbitrary finite values there.
    np.testing.assert_allclose(logits[attention_mask], recorded[f"{case}logits"][attention_mask], atol=2e-4)


@pytest.mark.parametrize("rows", [8, 3], ids=["rows that divide", "rows that do not"])
@pytest.mark.parametrize("shape", [
    pytest.param((1, 8, 1), marks=pytest.mark.slow), pytest.param((1, 2, 4), marks=pytest.mark.slow), (2, 2, 2),
])  # fmt: skip
def test_embedding_lookup_exchanges_rows_and_never_the_table(shape, rows, mesh_of):
    mesh, cfg = mesh_of(shape), dataclasses.replace(CFG, vocab_size=4096)
    table = jax.random.normal(jax.random.key(0), (cfg.vocab_size, cfg.width))
    tokens = np.random.default_rng(0).integers(0, cfg.vocab_size, (rows, 6), dtype=np.int32)
    placed = jax.device_put(table, shardings(cfg, mesh)["embedding"])

    def loss(table, tokens):
        x = embed(table, tokens, jnp.float32)
        return jnp.sum(x**3), x

    with jax.set_mesh(mesh):
        compiled = jax.jit(jax.grad(loss, has_aux=True)).lower(placed, tokens).compile()
        gradient, x = compiled(placed, tokens)
        received = sum(program_cost(compiled.as_text()).received.values())
    np.testing.assert_array_equal(x, table[tokens])
    expected = jax.grad(lambda table: jnp.sum(table[tokens] ** 3))(table)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)
    part = table.nbytes / (shape[1] * shape[2])
    over_rows = 2 * part if shape[0] > 1 else 0  # gradients are summed over replicas of the parameters
    assert 0 < received < over_rows + 0.2 * table.nbytes
