import dataclasses
import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from igpo_jax.diffusion import sampler
from igpo_jax.diffusion.sampler import HINT, completion_keys, sample
from igpo_jax.diffusion.unmasking import (
    DecodeConfig,
    gumbel_noise,
    most_confident,
    propose,
    rank_descending,
    transfer_count,
)
from igpo_jax.model.transformer import forward, init, shardings, unembed
from igpo_jax.runtime.mesh import shard_batch
from igpo_jax.weights.folders import load_params
from igpo_jax.weights.huggingface import folder_model_config
from sampling import CFG, DECODE, EOS, MASK, batch_of, decode

LLADA_FIXTURE = pathlib.Path(__file__).parent.parent / "model" / "fixtures" / "llada_tiny"


def constant_network(logits, cfg):
    """Returns parameters that give these logits at every position, for any input."""
    params = jax.tree.map(jnp.zeros_like, jax.eval_shape(lambda: init(jax.random.key(0), cfg)))
    params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), params)
    head = jnp.tile(jnp.asarray(logits, jnp.float32) / cfg.width, (cfg.width, 1))
    return params | {"embedding": jnp.ones_like(params["embedding"]), "final_norm": jnp.ones(cfg.width), "head": head}


def chi_square(counts, probabilities):
    expected = np.asarray(probabilities) * np.sum(counts)
    assert expected.min() > 5
    return float(np.sum((counts - expected) ** 2 / expected))


# Pieces


@pytest.mark.parametrize("masks, counts", [
    (32, [2] * 16),
    (25, [2] * 9 + [1] * 7),
    (16, [1] * 16),
    (7, [1] * 7 + [0] * 9),
    (0, [0] * 16),
])  # fmt: skip
def test_transfer_counts_of_the_released_sampler(masks, counts):
    assert [int(transfer_count(jnp.int32(masks), jnp.int32(step), 16)) for step in range(16)] == counts


def test_lowest_index_wins_ties():
    ranks = rank_descending(jnp.array([[1.0, 3.0, 1.0, 3.0], [0.0, 0.0, 0.0, 0.0]]))
    np.testing.assert_array_equal(ranks, [[2, 0, 3, 1], [0, 1, 2, 3]])
    drawn, _ = propose(jnp.array([[[1.0, 2.0, 2.0]]]), None, None, CFG, dataclasses.replace(DECODE, temperature=0.0))
    assert drawn.item() == 1


def test_draws_have_the_tempered_softmax_and_confidences_the_plain_one():
    logits, number = jnp.array([0.3, 1.5, -0.4, 0.9]), 20_000
    gumbel = gumbel_noise(jax.random.split(jax.random.key(1), (1, number)), 4)
    setting = dataclasses.replace(DECODE, temperature=0.7)
    drawn, confidence = propose(jnp.tile(logits, (1, number, 1)), gumbel, None, CFG, setting)
    np.testing.assert_allclose(confidence, jax.nn.log_softmax(logits)[drawn], rtol=1e-5)
    counts = np.bincount(np.asarray(drawn)[0], minlength=4)
    # 3 degrees of freedom: 21.1 is exceeded with probability 1e-4.
    assert chi_square(counts, jax.nn.softmax(logits / 0.7)) < 21.1
    assert chi_square(counts, jax.nn.softmax(logits)) > 21.1, "the temperature must show"


def test_eos_flags():
    """Tests three positions that prefer EOS, EoT and another token."""
    eot, other = 7, 9
    cfg = dataclasses.replace(CFG, eot_id=eot)
    logits = jnp.zeros((1, 3, CFG.vocab_size)).at[0, [0, 1, 2], [EOS, eot, other]].set(5.0).at[0, :, 4].set(1.0)

    def proposed(**change):
        return propose(logits, None, None, cfg, dataclasses.replace(DECODE, temperature=0.0, **change))

    drawn, _ = proposed(logits_eos_inf=True)
    np.testing.assert_array_equal(drawn, [[4, eot, other]])
    drawn, confidence = proposed(confidence_eos_eot_inf=True)
    np.testing.assert_array_equal(drawn, [[EOS, eot, other]])
    np.testing.assert_array_equal(confidence == -jnp.inf, [[True, True, False]])
    # They rank last among masked positions, but before positions that are not masked.
    masked = jnp.array([[True, True, False]])
    np.testing.assert_array_equal(most_confident(confidence, masked, jnp.array([1])), [[True, False, False]])
    np.testing.assert_array_equal(most_confident(confidence, masked, jnp.array([3])), masked)
    np.testing.assert_array_equal(most_confident(confidence, jnp.ones_like(masked), jnp.array([1])), [[False, False, True]])


def test_keys_belong_to_problem_completion_and_attempt_not_to_the_slot():
    problem, completion = np.array([7, 7, 9, 9], np.uint32), np.array([0, 1, 0, 1], np.uint32)
    keys = jax.random.key_data(completion_keys(jax.random.key(0), problem, completion, 0))
    order = np.array([2, 0, 3, 1])
    moved = jax.random.key_data(completion_keys(jax.random.key(0), problem[order], completion[order], 0))
    np.testing.assert_array_equal(moved, keys[order])
    again = jax.random.key_data(completion_keys(jax.random.key(0), problem, completion, 1))
    assert len(np.unique(np.concatenate([keys, again]), axis=0)) == 8


@pytest.mark.parametrize("change, message", [
    (dict(block_length=3), "completion_length=8 is not a multiple of block_length=3"),
    (dict(steps=5), "steps=5 is not a multiple of the number of blocks"),
    (dict(steps=0), "steps=0"),
    (dict(remasking="none"), "remasking='none'"),
    (dict(temperature=-1.0), "temperature=-1.0"),
    (dict(cfg_scale=-1.0), "cfg_scale=-1.0"),
])  # fmt: skip
def test_impossible_decode_configs_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(DECODE, **change)


# Comparison with the released sampler


@pytest.mark.parametrize("name", [
    pytest.param("one_uneven_b8_s12_g32", marks=pytest.mark.slow), "batch3_leftpad_b8_s16",
    pytest.param("batch3_leftpad_cfg0.5_b8_s8", marks=pytest.mark.slow),
])  # fmt: skip
def test_canvas_after_every_step_equals_that_of_the_released_sampler(name, mesh):
    """Covers one case; tests/model/test_parity.py covers the others."""
    recorded = np.load(LLADA_FIXTURE / "generate.npz")
    cases = json.loads((LLADA_FIXTURE / "generate.json").read_text())["cases"]
    [kwargs] = (case["kwargs"] for case in cases if case["name"] == name)
    cfg = folder_model_config(LLADA_FIXTURE)
    params = load_params(LLADA_FIXTURE / "bf16_sharded", cfg, mesh)

    setting = DecodeConfig(completion_length=kwargs.pop("gen_length"), **kwargs)
    prompt, trace = recorded[f"{name}/prompt"].astype(np.int32), recorded[f"{name}/trace"]
    prompt_mask = recorded.get(f"{name}/attention_mask", np.ones(prompt.shape)).astype(bool)
    rows, length = len(prompt), setting.completion_length
    canvas = np.full((rows, length), cfg.mask_id, np.int32)
    done = sample(params, prompt, prompt_mask, canvas, jax.random.split(jax.random.key(0), rows), cfg, setting)
    for step, expected in enumerate(trace[..., -length:]):
        np.testing.assert_array_equal(np.where(done.unmask_step < step, done.tokens, cfg.mask_id), expected, str(step))


# Hints, masks, unmask steps


def test_hints_are_kept_and_the_schedule_is_recorded(params):
    prompt, prompt_mask, canvas, keys = batch_of()
    done = decode(params, (prompt, prompt_mask, canvas, keys))
    tokens, unmask_step = np.asarray(done.tokens), np.asarray(done.unmask_step)
    given = canvas != MASK
    assert given.any()
    np.testing.assert_array_equal(tokens[given], canvas[given])
    np.testing.assert_array_equal(unmask_step == HINT, given)
    assert done.evaluations == DECODE.steps

    for row in range(len(canvas)):
        for block in range(2):
            inside = slice(4 * block, 4 * block + 4)
            steps = unmask_step[row, inside][~given[row, inside]]
            first, masks = 2 * block, len(steps)
            have = [int((steps == first + step).sum()) for step in range(2)]
            assert have == [int(transfer_count(masks, step, 2)) for step in range(2)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_mask_is_never_emitted(temperature):
    logits = np.zeros(CFG.vocab_size)
    logits[MASK] = 20
    setting = dataclasses.replace(DECODE, temperature=temperature)
    tokens = decode(constant_network(logits, CFG), batch_of(hints=False), setting).tokens
    assert not np.any(tokens == MASK)


def test_equal_confidences_are_written_from_the_left():
    logits = np.zeros(CFG.vocab_size)
    logits[[5, 9]] = 3
    setting = dataclasses.replace(DECODE, temperature=0.0)
    done = decode(constant_network(logits, CFG), batch_of(hints=False), setting)
    np.testing.assert_array_equal(done.tokens, 5)
    np.testing.assert_array_equal(done.unmask_step, [[0, 0, 1, 1, 2, 2, 3, 3]] * 8)


# Early exit


@pytest.mark.slow
def test_a_row_ends_at_its_first_block_of_eos_and_the_others_go_on():
    """Compares with a sampler that ignores EOS and makes the same draws."""
    letter, setting = 7, DecodeConfig(completion_length=8, block_length=2, steps=8, temperature=1.0)
    logits = np.full(CFG.vocab_size, -30.0)
    logits[[EOS, letter]] = 0.3, 0.0
    network = constant_network(logits, CFG)
    prompt, prompt_mask, canvas, keys = batch_of(rows=32, hints=False)
    canvas[::4, 6] = 9  # hints in the last block stay, even in ended rows
    done = decode(network, (prompt, prompt_mask, canvas, keys), setting)
    endless = decode(network, (prompt, prompt_mask, canvas, keys), setting, dataclasses.replace(CFG, eos_id=23))

    ends, expected = np.asarray(endless.tokens).reshape(32, 4, 2), np.array(endless.tokens)
    steps = np.array(endless.unmask_step)
    ended_at = [next((block for block in range(4) if (row[block] == EOS).all()), 4) for row in ends]
    assert set(ended_at) >= {0, 1, 2, 4}, "the seed must show all cases"
    for row, block in enumerate(ended_at):
        rest = np.arange(8) >= 2 * (block + 1)
        expected[row, rest & (canvas[row] == MASK)] = EOS
        steps[row, rest & (canvas[row] == MASK)] = 2 * block + 1
    np.testing.assert_array_equal(done.tokens, expected)
    np.testing.assert_array_equal(done.unmask_step, steps)
    assert not np.array_equal(expected, endless.tokens)


def test_decoding_stops_when_every_row_has_ended():
    logits = np.zeros(CFG.vocab_size)
    logits[EOS] = 20
    done = decode(constant_network(logits, CFG), batch_of(hints=False))
    np.testing.assert_array_equal(done.tokens, EOS)
    assert done.evaluations == 2  # the steps of one block, of 4


@pytest.mark.slow
def test_rows_that_have_ended_leave_the_batch_and_nothing_changes(monkeypatch):
    """Compares halves, quarters and eighths of the batch with the full batch run to the end."""
    letter, setting = 7, DecodeConfig(completion_length=12, block_length=2, steps=12, temperature=1.0)
    logits = np.full(CFG.vocab_size, -30.0)
    logits[[EOS, letter]] = 0.3, 0.0
    network, batch = constant_network(logits, CFG), batch_of(rows=32, length=12, hints=False)
    seen = []
    real = sampler.denoise_block
    monkeypatch.setattr(
        sampler, "denoise_block", lambda params, rows, *rest: seen.append(len(rows.slot)) or real(params, rows, *rest)
    )
    done = decode(network, batch, setting)
    sizes, seen[:] = list(seen), []
    monkeypatch.setattr(sampler, "_batch_sizes", lambda rows: [rows])
    whole = decode(network, batch, setting)
    np.testing.assert_array_equal(done.tokens, whole.tokens)
    np.testing.assert_array_equal(done.unmask_step, whole.unmask_step)
    assert sizes[0] == 32 and sizes == sorted(sizes, reverse=True) and {16, 8} <= set(sizes), "the seed must show it"
    assert set(seen) == {32} and done.evaluations == whole.evaluations
    assert done.rows_evaluated == sum(2 * size for size in sizes) < whole.rows_evaluated == 32 * whole.evaluations


def test_a_block_stops_when_its_last_mask_is_written(params):
    prompt, prompt_mask, canvas, keys = batch_of(rows=4, hints=False)
    canvas[:, 1:4] = 9  # one mask in the first block, none in the second
    canvas[:, 4:] = 8
    done = decode(params, (prompt, prompt_mask, canvas, keys), dataclasses.replace(DECODE, steps=8))
    assert done.evaluations == 1 and done.rows_evaluated == 4
    assert (np.asarray(done.tokens)[:, 1:] == canvas[:, 1:]).all() and not (np.asarray(done.tokens) == MASK).any()


@pytest.mark.parametrize("rows, sizes", [(64, [64, 32, 16, 8]), (24, [24]), (8, [8]), (12, [12])])
def test_sizes_of_batches_divide_over_the_devices(rows, sizes, mesh_of):
    with jax.set_mesh(mesh_of((2, 4, 1))):
        assert sampler._batch_sizes(rows) == sizes
    assert sampler._batch_sizes(64) == [64, 32, 16, 8] and sampler._batch_sizes(6) == [6, 3]


# Invariances


def test_a_row_decodes_alone_as_in_a_batch(params):
    batch = batch_of()
    together = decode(params, batch)
    for row in range(8):
        alone = decode(params, tuple(x[row : row + 1] for x in batch))
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[row])
        np.testing.assert_array_equal(alone.unmask_step[0], together.unmask_step[row])


def test_more_left_padding_changes_nothing(params):
    prompt, prompt_mask, canvas, keys = batch_of()
    padded = decode(params, (np.pad(prompt, ((0, 0), (3, 0))), np.pad(prompt_mask, ((0, 0), (3, 0))), canvas, keys))
    plain = decode(params, (prompt, prompt_mask, canvas, keys))
    np.testing.assert_array_equal(padded.tokens, plain.tokens)
    np.testing.assert_array_equal(padded.unmask_step, plain.unmask_step)


@pytest.mark.parametrize("shape", [
    pytest.param((1, 1, 1), marks=pytest.mark.slow), (2, 2, 2),
    pytest.param((8, 1, 1), marks=pytest.mark.slow), pytest.param((1, 1, 8), marks=pytest.mark.slow),
])  # fmt: skip
def test_the_mesh_changes_nothing(params, shape, mesh_of):
    batch, mesh = batch_of(), mesh_of(shape)
    plain = decode(params, batch)
    with jax.set_mesh(mesh):
        rows = shard_batch(batch[:3], mesh)
        sharded = decode(jax.device_put(params, shardings(CFG, mesh)), (*rows, batch[3]))
    # With this seed no draw is so close to a tie (1e-4 in the logits) that another summation order changes it.
    np.testing.assert_array_equal(sharded.tokens, plain.tokens)
    np.testing.assert_array_equal(sharded.unmask_step, plain.unmask_step)


# Options


@pytest.mark.parametrize("change", [
    dict(temperature=0.0),
    dict(cfg_scale=2.0),
    dict(remasking="random"),
    dict(block_length=8),
    dict(steps=8),
])  # fmt: skip
def test_every_knob_has_an_effect(params, change):
    plain, changed = decode(params, batch_of()), decode(params, batch_of(), dataclasses.replace(DECODE, **change))
    assert not np.array_equal(plain.unmask_step, changed.unmask_step)
    if "block_length" not in change:
        assert not np.array_equal(plain.tokens, changed.tokens)


@pytest.mark.slow
def test_guidance_masks_prompt_and_hints_in_the_unconditional_input(params):
    prompt, prompt_mask, canvas, keys = batch_of(rows=32, length=2, hints=False)
    canvas[:, 0] = prompt[:, -1]
    setting = DecodeConfig(completion_length=2, block_length=2, steps=1, cfg_scale=3.0)
    done = decode(params, (prompt, prompt_mask, canvas, keys), setting)

    everywhere = np.pad(prompt_mask, ((0, 0), (0, 2)), constant_values=True)

    @jax.jit
    def logits(prompt, canvas):
        tokens = jnp.concatenate([prompt, canvas], axis=1)
        return unembed(params, forward(params, tokens, everywhere, CFG)[:, -1], CFG)

    conditional, nothing = logits(prompt, canvas), np.full_like(prompt, MASK)

    def guided(unconditional):
        return (4 * conditional - 3 * unconditional).at[:, MASK].set(-jnp.inf).argmax(axis=1)

    expected = guided(logits(nothing, np.full_like(canvas, MASK)))
    np.testing.assert_array_equal(done.tokens[:, 1], expected)
    assert not np.array_equal(expected, guided(logits(nothing, canvas))), "with hints shown it must differ"


@pytest.mark.parametrize("remasking", [pytest.param("random", marks=pytest.mark.slow), "low_confidence"])
def test_completions_have_the_exact_distribution_of_the_chain(remasking):
    """Enumerates every path over three letters, two positions, two steps."""
    mask, letters, temperature, rows = 0, (1, 2, 3), 2.0, 8000
    cfg = dataclasses.replace(CFG, vocab_size=4, mask_id=mask, eos_id=3, width=16, mlp_width=16)
    params = jax.jit(init, static_argnums=1)(jax.random.key(2), cfg)
    params["blocks"]["attention_out"] *= 4
    prompt = np.array([[1, 3]], np.int32)

    @jax.jit
    def logits_of(canvas):
        tokens = jnp.concatenate([prompt, canvas[None]], axis=1)
        hidden = forward(params, tokens, jnp.ones(tokens.shape, bool), cfg)[:, 2:]
        return unembed(params, hidden, cfg)[0].at[:, mask].set(-jnp.inf)

    def distributions(*canvas):
        """Returns [2, 4]: the draw's distribution, and the clean one, which gives the confidence."""
        logits = np.asarray(logits_of(jnp.array(canvas)))
        return np.asarray(jax.nn.softmax(logits / temperature)), np.asarray(jax.nn.softmax(logits))

    exact = np.zeros((4, 4))
    draw, confidence = distributions(mask, mask)
    for pair in itertools.product(letters, letters):
        if remasking == "random":
            first_to_write = [0.5, 0.5]
        else:
            second_is_surer = confidence[1, pair[1]] > confidence[0, pair[0]]
            first_to_write = [1 - second_is_surer, second_is_surer]
        for position in (0, 1):
            chance = draw[0, pair[0]] * draw[1, pair[1]] * first_to_write[position]
            canvas = [mask, mask]
            canvas[position] = pair[position]
            second, other = distributions(*canvas)[0], 1 - position
            for letter in letters:
                canvas[other] = letter
                exact[tuple(canvas)] += chance * second[other, letter]
    assert exact.sum() == pytest.approx(1)

    setting = DecodeConfig(completion_length=2, block_length=2, steps=2, temperature=temperature, remasking=remasking)
    keys = jax.random.split(jax.random.key(4), rows)
    canvas = np.full((rows, 2), mask, np.int32)
    tokens = sample(params, prompt.repeat(rows, 0), np.ones((rows, 2), bool), canvas, keys, cfg, setting).tokens
    counts = np.zeros((4, 4))
    np.add.at(counts, tuple(np.asarray(tokens).T), 1)
    # 8 degrees of freedom: 31.8 is exceeded with probability 1e-4.
    assert counts[0].sum() == counts[:, 0].sum() == 0
    assert chi_square(counts[1:, 1:], exact[1:, 1:]) < 31.8
    one_shot = np.outer(draw[0], draw[1])  # the distribution if both positions were drawn in one step
    assert chi_square(counts[1:, 1:], one_shot[1:, 1:]) > 100
