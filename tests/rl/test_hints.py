import dataclasses
import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igpo_jax.rl.hints import (
    FREE_TAIL,
    Chunks,
    InpaintingConfig,
    choose,
    destinations,
    inpaint,
    max_replaced,
    overwrite,
    overwrite_in_place,
    prefix,
    ratio_range,
    revealed_count,
    segment,
)
from igpo_jax.stages.hint_state import (
    decoded_offsets,
    initial_hint_ratio_center,
    next_hint_ratio_center,
    own_hintable_tokens,
)
from igpo_jax.tokenizers import load_tokenizer, train_sentencepiece

MASK = 0
REFERENCE_CODE = InpaintingConfig(exclude_answer=False, round_up=True, stretch=True)


def chunks_of(pieces):
    start, end = np.array(pieces, np.int32).T[:, None]
    return Chunks(jnp.asarray(start), jnp.asarray(end - start))


def place(pieces, revealed, trace_length, length, stretch):
    """Returns the canvas positions of the hints, and the trace positions of their tokens."""
    chunks, revealed = chunks_of(pieces), jnp.array([revealed])
    where = destinations(chunks, revealed, jnp.array([trace_length]), length, stretch)
    canvas, trace = jnp.full((1, length), -1), jnp.arange(length)[None]
    canvas, is_hint = overwrite(canvas, trace, jnp.ones((1, length), bool), chunks, revealed, where)
    np.testing.assert_array_equal(np.asarray(canvas)[0] >= 0, is_hint[0])
    positions = np.flatnonzero(is_hint)
    return positions.tolist(), np.asarray(canvas)[0, positions].tolist()


def spans(*pairs):
    return [position for start, end in pairs for position in range(start, end)]


# The released code, with its own random numbers (docs/method.md section 6)


def released_draws(seed, trace_length, ratio):
    """Returns chunks, hidden and revealed, as the released code draws them: one randint per chunk, then one sample."""
    source, pieces, start = random.Random(seed), [], 0
    while start < trace_length:
        size = min(source.randint(5, 10), trace_length - start)
        if size < 5:
            break
        pieces.append((start, start + size))
        start += size
    hidden = source.sample(pieces, int(len(pieces) * (1 - ratio)))
    return pieces, hidden, [piece not in hidden or piece == pieces[-1] for piece in pieces]


@pytest.mark.parametrize("seed, length, ratio, number, hidden, written, read", [
    (0, 60, 0.4, 8, 4, spans((0, 8), (27, 34), (47, 70)), spans((0, 8), (21, 28), (37, 60))),
    (
        1, 120, 0.4, 17, 10,
        spans((22, 27), (57, 83), (95, 101), (120, 125), (137, 151)),
        spans((15, 20), (40, 66), (74, 80), (93, 98), (106, 120)),
    ),
    (
        2, 180, 0.25, 23, 17,
        spans((27, 43), (55, 62), (148, 166), (198, 207)),
        spans((22, 38), (48, 55), (124, 142), (168, 177)),
    ),
])  # fmt: skip
def test_placement_of_the_released_code(seed, length, ratio, number, hidden, written, read):
    pieces, masked, revealed = released_draws(seed, length, ratio)
    assert (len(pieces), len(masked)) == (number, hidden)
    assert place(pieces, revealed, length, 256, stretch=True) == (written, read)


def test_placement_of_the_released_code_for_a_long_trace():
    pieces, masked, revealed = released_draws(3, 300 - 74, 0.6)  # cut to 256 - 30 tokens
    written, read = place(pieces, revealed, 300, 256, stretch=True)
    assert (len(pieces), len(masked), len(written), written[-1]) == (29, 11, 138, 225)
    assert written == read  # no stretching


@pytest.mark.parametrize("pieces, trace_length, written", [
    ([(10, 16), (40, 45), (150, 158)], 160, spans((14, 20), (53, 58), (158, 166))),  # 226 / 160 = 1.4125
    ([(3, 9), (120, 127)], 140, spans((4, 10), (110, 117))),  # ratio 1.5; the gap of 166 is cut to 100
    ([(120, 127)], 140, spans((180, 187))),  # the space before the first chunk is no gap
])  # fmt: skip
def test_stretched_gaps(pieces, trace_length, written):
    assert place(pieces, [True] * len(pieces), trace_length, 256, stretch=True)[0] == written


@pytest.mark.parametrize("length", [20, 31, 60, 64, 128, 256, 512, 1024])
def test_stretched_positions_equal_those_of_python_floats(length):
    """Checks the first and the second chunk of every trace. The released code computes int(gap * factor) with Python floats,
    which differs from exact arithmetic, as for 226 / 164 * 82, and from float32, as for 226 / 180 * 90."""
    usable = max(0, length - FREE_TAIL)
    pairs = [(n, gap) for n in range(1, length + 1) for gap in range(min(n, usable) + 1)]
    expected = [int(gap * min(1.5, max(1, usable / n))) for n, gap in pairs]
    trace_length, gap = np.array(pairs, np.int32).T
    start, one = np.stack([0 * gap, 1 + gap], axis=1), np.ones((len(pairs), 2), np.int32)
    alone = jit_destinations(Chunks(gap[:, None], one[:, :1]), one[:, :1] > 0, trace_length, length, True)
    np.testing.assert_array_equal(alone[:, 0], expected)
    inside = gap < usable
    second = jit_destinations(Chunks(start, one), one > 0, trace_length, length, True)
    np.testing.assert_array_equal(second[inside, 1], 1 + np.minimum(expected, 100)[inside])


jit_destinations = jax.jit(destinations, static_argnums=(3, 4))


def test_stretched_gaps_are_neither_exact_nor_float32():
    pairs = [(164, 82, 112), (172, 86, 112), (180, 90, 113)]  # exact: 113 each; float32: 113, 113, 112
    for trace_length, gap, position in pairs:
        assert place([(gap, gap + 5)], [True], trace_length, 256, stretch=True)[0][0] == position


def test_hints_keep_their_place_by_default():
    pieces = [(0, 6), (6, 11), (11, 20), (20, 26)]
    written, read = place(pieces, [False, True, False, True], 26, 32, stretch=False)
    assert written == read == spans((6, 11), (20, 26))


def test_what_falls_outside_the_canvas_is_dropped():
    chunks = chunks_of([(0, 4), (4, 8)])
    canvas, is_hint = overwrite(
        jnp.full((1, 8), MASK), jnp.arange(10, 18)[None], jnp.ones((1, 8), bool), chunks, jnp.array([[True, True]]),
        jnp.array([[0, 6]]),
    )  # fmt: skip
    np.testing.assert_array_equal(canvas, [[10, 11, 12, 13, MASK, MASK, 14, 15]])
    np.testing.assert_array_equal(is_hint, [[True] * 4 + [False] * 2 + [True] * 2])


# Segmentation and choice


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.lists(st.integers(0, 60), min_size=8, max_size=8), st.sampled_from([(1, 1), (2, 5), (5, 10)]))
def test_chunks_tile_the_trace_from_its_start(seed, lengths, sizes):
    chunks = jit_segment(jax.random.split(jax.random.key(seed), 8), jnp.array(lengths), 60, *sizes)
    for length, start, size in zip(lengths, np.asarray(chunks.start), np.asarray(chunks.size), strict=True):
        number = int((size > 0).sum())
        assert (size[number:] == 0).all(), "chunks come first"
        start, size = start[:number], size[:number]
        np.testing.assert_array_equal(start, np.cumsum(size) - size)
        assert ((size >= sizes[0]) & (size <= sizes[1])).all()
        assert 0 <= length - size.sum() < sizes[0], "only a tail shorter than the minimum is left out"


jit_segment = jax.jit(segment, static_argnums=(2, 3, 4))


def test_chunk_sizes_are_uniform():
    chunks = segment(jax.random.split(jax.random.key(0), 2000), jnp.full(2000, 60), 60, 5, 10)
    counts = np.bincount(np.asarray(chunks.size)[:, 0], minlength=11)[5:]
    assert np.sum((counts - 2000 / 6) ** 2 / (2000 / 6)) < 25.7  # chi-square with 5 degrees of freedom, p = 1e-4


def test_revealed_count_is_the_floor_and_at_least_one():
    numbers, tenths = np.meshgrid(np.arange(52), np.arange(11))
    have = revealed_count(jnp.array(numbers.ravel()), jnp.array(tenths.ravel() / 10, jnp.float32), round_up=False)
    at_least = np.minimum(numbers, tenths > 0)
    np.testing.assert_array_equal(have, np.maximum(numbers * tenths // 10, at_least).ravel())


def test_revealed_count_of_the_released_code_rounds_up():
    numbers, ratios = jnp.array([8, 17, 23, 29, 5, 0]), jnp.array([0.4, 0.4, 0.25, 0.6, 0.01, 0.5])
    np.testing.assert_array_equal(revealed_count(numbers, ratios, round_up=True), [4, 7, 6, 18, 1, 0])
    np.testing.assert_array_equal(revealed_count(numbers, ratios, round_up=False), [3, 6, 5, 17, 1, 0])


def test_revealed_count_of_the_released_code_is_the_ceiling_at_fixed_ratios():
    numbers, tenths = np.meshgrid(np.arange(52), np.arange(11))
    have = revealed_count(jnp.array(numbers.ravel()), jnp.array(tenths.ravel() / 10, jnp.float32), round_up=True)
    np.testing.assert_array_equal(have, -(-(numbers * tenths).ravel() // 10))


def test_chosen_chunks_exist_and_are_uniform():
    rows = 4000
    chunks = Chunks(jnp.tile(jnp.arange(6) * 5, (rows, 1)), jnp.tile(jnp.array([5, 5, 5, 5, 0, 0]), (rows, 1)))
    revealed = np.asarray(choose(jax.random.split(jax.random.key(1), rows), chunks, jnp.full(rows, 0.5), InpaintingConfig()))
    assert not revealed[:, 4:].any()
    assert (revealed.sum(axis=1) == 2).all()
    pairs = np.bincount(revealed[:, :4] @ [1, 2, 4, 8])[[3, 5, 6, 9, 10, 12]]
    assert np.sum((pairs - rows / 6) ** 2 / (rows / 6)) < 25.7  # chi-square with 5 degrees of freedom, p = 1e-4


# The complete step

LENGTH, PROBLEMS, GROUP = 60, 3, 16
TRACE_LENGTH = np.array([60, 43, 7], np.int32)


def run_inpaint(cfg=InpaintingConfig(), problem_id=(11, 12, 13), trace_length=TRACE_LENGTH, hintable=None, seed=0):
    problem_id = np.array(problem_id, np.uint32)
    trace = 100 * problem_id[:, None].astype(np.int32) + np.arange(LENGTH, dtype=np.int32)
    hintable = np.ones(trace.shape, bool) if hintable is None else hintable
    canvas = np.full((len(problem_id) * GROUP, LENGTH), MASK, np.int32)
    canvas, is_hint, ratio = inpaint(jax.random.key(seed), problem_id, canvas, trace, trace_length, hintable, cfg)
    shape = (len(problem_id), GROUP, LENGTH)
    return trace, np.asarray(canvas).reshape(shape), np.asarray(is_hint).reshape(shape), np.asarray(ratio).reshape(shape[:2])


def test_hints_are_tokens_of_the_trace_and_the_rest_is_mask():
    trace, canvas, is_hint, ratio = run_inpaint()
    np.testing.assert_array_equal(canvas, np.where(is_hint, trace[:, None], MASK))
    assert is_hint.any(axis=2).all() and not is_hint.all(axis=2).any()
    assert not (is_hint & (np.arange(LENGTH) >= TRACE_LENGTH[:, None, None])).any()
    assert (ratio >= 0.2).all() and (ratio < 0.6).all()


def test_a_problem_is_cut_once_but_ratio_and_choice_are_drawn_per_completion():
    _, _, is_hint, ratio = run_inpaint()
    edges = np.diff(np.pad(is_hint, ((0, 0), (0, 0), (1, 1))).astype(int), axis=2) != 0
    for problem in (0, 1):
        # Edges over all 16 completions are at least a chunk apart.
        places = np.flatnonzero(edges[problem].any(axis=0))
        assert len(places) > 4 and np.diff(places).min() >= 5
        assert len(np.unique(is_hint[problem], axis=0)) > GROUP / 2
    assert len(np.unique(ratio)) == ratio.size
    assert not np.array_equal(edges[0].any(axis=0)[:40], edges[1].any(axis=0)[:40]), "problems are cut differently"


def test_the_released_switch_cuts_every_completion_and_sorts_the_ratios_of_a_group():
    _, _, is_hint, ratio = run_inpaint(InpaintingConfig(by_completion=True))
    edges = np.diff(np.pad(is_hint, ((0, 0), (0, 0), (1, 1))).astype(int), axis=2) != 0
    for problem in (0, 1):
        assert np.diff(np.flatnonzero(edges[problem].any(axis=0))).min() == 1
    assert (np.diff(ratio, axis=1) > 0).all() and (ratio >= 0.2).all() and (ratio < 0.6).all()


def test_more_is_shown_where_the_ratio_is_larger():
    _, _, is_hint, ratio = run_inpaint(InpaintingConfig(ratio_min=0.0, ratio_max=1.0))
    shown = is_hint[0].sum(axis=1)
    assert np.corrcoef(shown, ratio[0])[0, 1] > 0.9


@pytest.mark.slow
def test_ratio_zero_shows_nothing():
    for cfg in (InpaintingConfig(ratio_min=0, ratio_max=0), dataclasses.replace(REFERENCE_CODE, ratio_min=0, ratio_max=0)):
        _, canvas, is_hint, _ = run_inpaint(cfg)
        assert not is_hint.any() and (canvas == MASK).all()


def test_ratio_one_shows_every_chunk():
    _, _, is_hint, _ = run_inpaint(InpaintingConfig(ratio_min=1, ratio_max=1))
    shown = is_hint.sum(axis=2)
    assert (is_hint == (np.arange(LENGTH) < shown[..., None])).all(), "from the start, without holes"
    assert (TRACE_LENGTH[:, None] - shown < 5).all(), "only the tail is missing"
    assert (TRACE_LENGTH[:, None] >= shown).all()


def test_hints_belong_to_the_problem_not_to_its_place_in_the_batch():
    _, canvas, _, ratio = run_inpaint()
    order = np.array([2, 0, 1])
    _, moved, _, moved_ratio = run_inpaint(problem_id=np.array([11, 12, 13])[order], trace_length=TRACE_LENGTH[order])
    np.testing.assert_array_equal(moved, canvas[order])
    np.testing.assert_array_equal(moved_ratio, ratio[order])


def test_another_step_gives_other_hints():
    assert not np.array_equal(run_inpaint(seed=0)[1], run_inpaint(seed=1)[1])


def test_tokens_that_are_not_hintable_are_never_shown():
    hintable = np.random.default_rng(0).uniform(size=(PROBLEMS, LENGTH)) < 0.7
    _, canvas, is_hint, _ = run_inpaint(InpaintingConfig(ratio_min=1, ratio_max=1), hintable=hintable)
    np.testing.assert_array_equal(is_hint[0, 0, :55], hintable[0, :55])
    assert not is_hint[~np.broadcast_to(hintable[:, None], is_hint.shape)].any()
    assert (canvas[~is_hint] == MASK).all()


def test_the_released_switch_always_reveals_the_last_chunk():
    def last_is_shown(exclude_answer):
        cfg = InpaintingConfig(chunk_min=4, chunk_max=4, exclude_answer=exclude_answer)
        _, _, is_hint, _ = run_inpaint(cfg)
        return is_hint[0, :, 56:].all(axis=1)

    assert last_is_shown(exclude_answer=False).all()
    assert 0 < last_is_shown(exclude_answer=True).mean() < 0.8


def test_the_released_switch_keeps_the_tail_of_the_canvas_free():
    cfg = dataclasses.replace(REFERENCE_CODE, ratio_min=1, ratio_max=1)
    _, _, is_hint, _ = run_inpaint(cfg, trace_length=np.full(PROBLEMS, LENGTH, np.int32))
    assert not is_hint[:, :, LENGTH - FREE_TAIL :].any()
    assert is_hint[:, :, : LENGTH - FREE_TAIL - 4].all()


# A prefix


@settings(deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.0, 0.05, 0.5, 0.9, 1.0]))
def test_a_prefix_is_contiguous_and_hides_answers(seed, ratio):
    draw = np.random.default_rng(seed)
    lengths = draw.integers(0, 13, 8).astype(np.int32)
    hintable = draw.uniform(size=(8, 12)) < 0.8
    shown = np.asarray(jit_prefix(lengths, hintable, np.full(8, ratio, np.float32)))
    for row, length, may_show in zip(shown, lengths, hintable, strict=True):
        longest = next((place for place in range(length) if not may_show[place]), length)
        wanted = max(int(longest * ratio + 1e-5), min(longest, int(ratio > 0)))
        assert row.tolist() == [place < wanted for place in range(12)]


jit_prefix = jax.jit(prefix)


def test_a_prefix_and_chunks_are_drawn_with_the_same_ratios():
    cfg = InpaintingConfig(policy="prefix")
    trace, canvas, is_hint, ratio = run_inpaint(cfg)
    np.testing.assert_array_equal(canvas, np.where(is_hint, trace[:, None], MASK))
    np.testing.assert_array_equal(ratio, run_inpaint()[3])
    expected = np.maximum(np.floor(TRACE_LENGTH[:, None] * ratio + 1e-5), 1)
    np.testing.assert_array_equal(is_hint.sum(axis=2), expected)
    ascending = run_inpaint(dataclasses.replace(cfg, by_completion=True))
    np.testing.assert_array_equal(ascending[3], np.sort(ratio, axis=1))
    assert (np.diff(ascending[2].sum(axis=2), axis=1) >= 0).all()


# The curriculum

MOVING = InpaintingConfig(curriculum=0.3)
share = st.floats(0, 1)


@settings(deadline=None)
@given(share, share, st.just(0.0) | st.floats(1e-15, 3))
def test_the_centre_moves_towards_one_half_correct(hint_ratio_center, correct, step):
    cfg = dataclasses.replace(MOVING, curriculum=step)
    hint_ratio_center = float(np.float32(hint_ratio_center))
    moved = next_hint_ratio_center(hint_ratio_center, correct, cfg)
    assert 0 <= moved <= 1
    assert moved == pytest.approx(np.clip(hint_ratio_center + step * (0.5 - correct), 0, 1), abs=1e-6)
    assert (moved - hint_ratio_center) * (0.5 - correct) >= 0
    assert next_hint_ratio_center(hint_ratio_center, 0.5, cfg) == hint_ratio_center, "one half stays"
    # The value survives JSON, and float32, in which it is sent to other processes.
    assert json.loads(json.dumps(moved)) == moved == float(np.float32(moved))


@pytest.mark.parametrize("hardness", [0.3, 1.0, 2.5])
def test_the_curriculum_finds_the_ratio_of_half_success(hardness):
    hint_ratio_center = initial_hint_ratio_center(MOVING)
    assert hint_ratio_center == pytest.approx(0.4)
    for _ in range(200):
        hint_ratio_center = next_hint_ratio_center(hint_ratio_center, hint_ratio_center**hardness, MOVING)
    assert hint_ratio_center**hardness == pytest.approx(0.5, abs=1e-3)


@settings(deadline=None)
@given(share, share, share)
def test_ratios_keep_their_width_within_bounds(hint_ratio_center, one, other):
    cfg = InpaintingConfig(ratio_min=min(one, other), ratio_max=max(one, other))
    width = cfg.ratio_max - cfg.ratio_min
    assert ratio_range(None, cfg) == (cfg.ratio_min, width)
    least, found = ratio_range(hint_ratio_center, cfg)
    assert 0 <= least and 0 <= found <= width + 1e-12 and least + found <= 1 + 1e-12
    assert least == max(hint_ratio_center - width / 2, 0) and least + found == pytest.approx(
        min(hint_ratio_center + width / 2, 1)
    )


def test_other_ratios_are_no_other_program():
    arguments = jax.random.key(0), np.arange(2, dtype=np.uint32), np.full((2 * GROUP, 20), MASK, np.int32)
    arguments += np.ones((2, 20), np.int32), np.full(2, 20, np.int32), np.ones((2, 20), bool), MOVING
    configured = inpaint(*arguments, ratio_range(None, MOVING))
    compiled = inpaint._cache_size()
    for least, width in ((0.0, 0.1), (0.5, 0.5), (1.0, 0.0)):
        ratio = np.asarray(inpaint(*arguments, (least, width))[2])
        assert least <= ratio.min() and ratio.max() <= least + width
    assert inpaint._cache_size() == compiled
    for one, other in zip(configured, inpaint(*arguments), strict=True):
        np.testing.assert_array_equal(one, other)


# Parts of an own completion that may be shown


@pytest.mark.parametrize("text, answer, shown", [
    ("# 43 63=63", "63", "# 43 __="),  # the running total is the answer, too
    ("3 and 4 are 7. So 7", "7", "3 and 4 are _. So "), ("7. So 7", "7", "_. So "), ("17+1=18", "1", "17+"), ("it is 5", "5", "it is "),
    ("5 men\n6-1=5 men.\nSo 5", "5", "5 men\n6-1=_ men.\nSo "), ("<answer>1 2</answer>", "12", "<answer>"), ("so\n#### 5 or 6", "5", "so\n####_"),
    ("Try (1+2)*3 = 9. Yes\n\\boxed{(1+2)*3}", "(1+2)*3", "Try _______ = 9. Yes\n\\boxed{"),
    ("12345678", None, "123456"), ("12345678", "9", "123456"), ("12345678", "", "123456"), ("1234567", None, "12345"),
    ("1", None, ""), ("", None, ""),
])  # fmt: skip
def test_own_completions_are_shown_without_their_answer(text, answer, shown):
    hintable, length = own_hintable_tokens(list(text), "".join, lambda said: answer)
    assert "".join(c if may else "_" for c, may in zip(text, hintable, strict=True))[:length] == shown


@pytest.fixture(scope="module", params=["char", "unigram", "bpe"])
def tokenizer(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    texts = ["the answer is 12 and not 21", "so we have 12 + 12 = 24", "\\boxed{24} is the answer"] * 20
    train_sentencepiece(texts, path, kind=request.param, vocab_size=330)
    return load_tokenizer(path)


@settings(deadline=None, max_examples=200)
@given(st.text("12 =+theans{é½√", max_size=30))
def test_offsets_of_decoded_tokens_cover_the_whole_characters(tokenizer, text):
    tokens = tokenizer.encode(text)
    said, offsets = tokenizer.decode(tokens), decoded_offsets(tokens, tokenizer.decode)
    assert len(offsets) == len(tokens) and {place for span in offsets for place in range(*span)} == set(range(len(said)))
    for number, (begin, end) in enumerate(offsets):  # without this token, the text before and after it is the same
        assert tokenizer.decode(tokens[:number]).startswith(said[:begin]) and said[end:] in tokenizer.decode(
            tokens[number + 1 :]
        )


# Configurations


@pytest.mark.parametrize("change, message", [
    (dict(policy="suffix"), "inpainting.policy='suffix' is none of chunks, prefix, none"),
    (dict(source="book"), "inpainting.source='book' is none of solution, own"),
    (dict(curriculum=-0.1), "inpainting.curriculum=-0.1"),
    (dict(curriculum=float("inf")), "inpainting.curriculum=inf"),
    (dict(curriculum=float("nan")), "inpainting.curriculum=nan"),
    (dict(policy="prefix", chunk_min=2, chunk_max=3), "does not use inpainting.chunk_min=2, inpainting.chunk_max=3;"),
    (dict(policy="prefix", round_up=True), "policy='prefix' does not use inpainting.round_up=True;"),
    (dict(policy="prefix", stretch=True), "does not use inpainting.stretch=True;"),
    (dict(policy="none", chunk_max=20), "policy='none' does not use inpainting.chunk_max=20;"),
    (dict(policy="none", ratio_max=0.5, curriculum=1.0), "use inpainting.ratio_max=0.5, inpainting.curriculum=1.0;"),
    (dict(policy="none", source="own", exclude_answer=False), "inpainting.source='own', inpainting.exclude_answer=False;"),
    (dict(chunk_min=0), "inpainting.chunk_min=0"),
    (dict(chunk_min=6, chunk_max=5), "inpainting.chunk_min=6 and inpainting.chunk_max=5"),
    (dict(ratio_min=0.7), "inpainting.ratio_min=0.7 and inpainting.ratio_max=0.6"),
    (dict(ratio_max=1.1), "inpainting.ratio_max=1.1"),
    (dict(replace_fraction=1.5), "inpainting.replace_fraction=1.5"),
])  # fmt: skip
def test_impossible_configs_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        InpaintingConfig(**change)


@pytest.mark.parametrize("policy", ["prefix", "none"])
def test_what_a_policy_does_use_may_be_set(policy):
    InpaintingConfig(policy=policy, by_completion=True, replace_fraction=0.25, enabled=False)
    InpaintingConfig(policy="prefix", ratio_max=1.0, curriculum=0.1, source="own", exclude_answer=False)


@pytest.mark.parametrize("fraction, group, most", [(0.5, 8, 4), (0.5, 5, 2), (0.3, 10, 3), (0.0, 8, 0), (1.0, 6, 6)])
def test_at_most_a_share_of_the_group_is_replaced(fraction, group, most):
    assert max_replaced(InpaintingConfig(replace_fraction=fraction), group) == most


def test_a_policy_that_shows_everything_shows_what_may_be_shown():
    hintable = np.tile(np.arange(LENGTH) != 3, (PROBLEMS, 1))
    trace = np.arange(PROBLEMS * LENGTH, dtype=np.int32).reshape(PROBLEMS, LENGTH) + 100
    rows = (np.repeat(x, GROUP, axis=0) for x in (trace, TRACE_LENGTH, hintable))
    blank, everything = np.full((PROBLEMS * GROUP, LENGTH), MASK, np.int32), np.ones((PROBLEMS * GROUP, LENGTH), bool)
    canvas, is_hint = (x.reshape(PROBLEMS, GROUP, LENGTH) for x in overwrite_in_place(blank, *rows, everything))
    shown = hintable & (np.arange(LENGTH) < TRACE_LENGTH[:, None])
    np.testing.assert_array_equal(is_hint, np.broadcast_to(shown[:, None], is_hint.shape))
    np.testing.assert_array_equal(canvas, np.where(is_hint, trace[:, None], MASK))
