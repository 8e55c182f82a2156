import collections
import zlib

import numpy as np
import pytest

from igpo_jax.data.pipeline import PromptBatch, batches, cut_to_bucket, prompt_arrays, sft_arrays, take_rows
from igpo_jax.tasks.problem import Problem

PAD, EOS, MASK = 0, 1, 2
SHORT, LONG = 6, 12  # prompt buckets
LENGTH = 16


class PairTokenizer:
    """Tokenizer with two characters per token (one at the end of an odd text), so that tokens straddle answer spans."""

    vocab_size, pad_id, eos_id, mask_id = 1 << 30, PAD, EOS, MASK

    def encode(self, text):
        return self.encode_with_offsets(text)[0]

    def encode_with_offsets(self, text):
        offsets = [(i, min(i + 2, len(text))) for i in range(0, len(text), 2)]
        return [sum(ord(c) << 8 * k for k, c in enumerate(text[b:e])) for b, e in offsets], offsets

    def decode(self, ids):
        pairs = (chr(i & 255) + (chr(i >> 8) if i >> 8 else "") for i in map(int, ids) if i > MASK)
        return "".join(pairs)


TOKENIZER = PairTokenizer()


def problem(name="p", question="ask me", trace="step one\n#### 72", spans=((9, 16),), demonstration=None) -> Problem:
    return Problem(name, question, "72", trace, spans, trace if demonstration is None else demonstration)


def arrays(problems, prompt_length=LONG, completion_length=LENGTH, exclude_answer=True, overflow="error"):
    return prompt_arrays(
        problems,
        TOKENIZER,
        prompt_length=prompt_length,
        completion_length=completion_length,
        exclude_answer=exclude_answer,
        overflow=overflow,
    )


def split(count: int, prompt_tokens=lambda i: 1 + i % SHORT) -> PromptBatch:
    return arrays([problem(f"p{i}", question="qq" * prompt_tokens(i)) for i in range(count)])[1]


def assert_equal(a, b):
    for name in a.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


# Arrays


def test_a_row_whole():
    kept, batch = arrays([problem(question="hello"), problem("q")])
    assert [p.id for p in kept] == ["p", "q"]
    dtypes = {name: getattr(batch, name).dtype.name for name in batch.__dataclass_fields__}
    assert dtypes == {
        "problem_id": "uint32",
        "tokens": "int32",
        "prompt_mask": "bool",
        "trace": "int32",
        "trace_length": "int32",
        "hintable": "bool",
    }
    assert batch.problem_id.tolist() == [zlib.crc32(b"p"), zlib.crc32(b"q")]
    assert batch.tokens.shape == batch.prompt_mask.shape == (2, LONG)
    assert batch.prompt_mask[0].tolist() == [False] * 9 + [True] * 3
    assert (batch.tokens[0, :9] == PAD).all()
    assert TOKENIZER.decode(batch.tokens[0]) == "hello"
    assert batch.trace.shape == batch.hintable.shape == (2, LENGTH)
    assert TOKENIZER.decode(batch.trace[0]) == "step one\n#### 72"
    assert (batch.trace[0, 8:] == EOS).all()


def test_no_token_that_touches_an_answer_span_is_hintable():
    # st ep " o" ne "\n#" ## "# " 72: the fifth token straddles the start of the span.
    _, batch = arrays([problem()])
    assert batch.hintable[0].tolist() == [True] * 4 + [False] * 12
    assert batch.trace_length.tolist() == [4]


def test_with_several_spans_chunks_are_cut_up_to_the_last_one():
    # ab cd ef gh ij kl, spans "d" and "j"
    _, batch = arrays([problem(trace="abcdefghijkl", spans=((9, 10), (3, 4)))])
    assert batch.hintable[0, :6].tolist() == [True, False, True, True, False, True]
    assert batch.trace_length.tolist() == [4]


def test_a_span_at_a_token_border_takes_no_neighbour():
    _, batch = arrays([problem(trace="abcdefgh", spans=((4, 6),))])
    assert batch.hintable[0, :4].tolist() == [True, True, False, True]
    assert batch.trace_length.tolist() == [2]


def test_a_trace_that_is_all_answer_leaves_nothing_to_hint():
    _, batch = arrays([problem(trace="#### 72", spans=((0, 7),))])
    assert not batch.hintable.any()
    assert batch.trace_length.tolist() == [0]


def test_without_exclusion_the_whole_trace_is_hintable():
    _, batch = arrays([problem()], exclude_answer=False)
    assert batch.hintable[0].tolist() == [True] * 8 + [False] * 8
    assert batch.trace_length.tolist() == [8]


def test_problems_with_one_checksum_get_different_numbers_and_one_id_is_an_error():
    """The last two ids have the same CRC-32."""
    ids = ["other", "plumless", "buckeroo"]
    _, batch = arrays([problem(id) for id in ids])
    first = zlib.crc32(b"plumless")
    assert batch.problem_id.tolist() == [zlib.crc32(b"other"), first, first + 1]
    with pytest.raises(ValueError, match="two problems have the id 'plumless'"):
        arrays([problem("plumless"), problem("plumless")])


def test_sft_rows_hold_the_demonstration_then_eos():
    _, rows = sft_arrays(
        [problem(demonstration="a careless guess"), problem()],
        TOKENIZER,
        prompt_length=LONG,
        completion_length=LENGTH,
        overflow="error",
    )
    assert rows.tokens.shape == rows.prompt_mask.shape == (2, LONG)
    assert rows.completion.shape == (2, LENGTH) and rows.completion.dtype == np.int32
    assert [TOKENIZER.decode(row) for row in rows.completion] == ["a careless guess", "step one\n#### 72"]
    assert (rows.completion[:, 8:] == EOS).all() and (rows.completion[:, :8] != EOS).all()
    assert [TOKENIZER.decode(row) for row in rows.tokens] == ["ask me"] * 2


# Overflow


def overflowing() -> list[Problem]:
    return [
        problem("fits"),
        problem("long-prompt", question="q" * 26),
        problem("long-trace", trace="t" * 40, spans=()),
        problem("fits-too"),
    ]


def test_overflow_error_says_how_many_which_how_long_and_what_to_change():
    with pytest.raises(ValueError) as error:
        arrays(overflowing())
    for words in ("1 of 4", "'long-prompt'", "13 prompt tokens", "12", "data.prompt_buckets", "data.overflow"):
        assert words in str(error.value)
    with pytest.raises(ValueError) as error:
        sft_arrays(overflowing()[2:], TOKENIZER, prompt_length=LONG, completion_length=LENGTH, overflow="error")
    for words in ("1 of 2", "'long-trace'", "20 solution tokens", "16", "sampler.completion_length"):
        assert words in str(error.value)


def test_of_a_long_trace_hints_are_what_fits():
    _, batch = arrays([problem(trace="t" * 40, spans=()), problem("q", trace="t" * 40, spans=((38, 40),))])
    assert batch.hintable.all() and batch.trace_length.tolist() == [LENGTH, LENGTH]
    assert TOKENIZER.decode(batch.trace[0]) == "t" * 2 * LENGTH


def test_a_test_keeps_all_its_problems_and_the_ends_of_their_prompts():
    kept, batch = arrays(overflowing(), overflow="cut")
    assert len(kept) == 4 and batch.prompt_mask[1].all()
    assert TOKENIZER.decode(batch.tokens[1]) == "q" * 24


def test_overflow_drop_keeps_the_others_in_order_and_logs(caplog):
    kept, batch = arrays(overflowing(), overflow="drop")
    assert [p.id for p in kept] == ["fits", "long-trace", "fits-too"]
    assert batch.problem_id.tolist() == [zlib.crc32(p.id.encode()) for p in kept]
    assert "1 of 4" in caplog.text
    caplog.clear()
    arrays(overflowing()[:1], overflow="drop")
    assert not caplog.records


def test_dropping_everything_is_an_error():
    with pytest.raises(ValueError, match="1 of 1"):
        arrays(overflowing()[1:2], overflow="drop")


def test_sft_measures_the_demonstration_not_the_trace():
    def sft(example, overflow):
        options = {"prompt_length": LONG, "completion_length": LENGTH, "overflow": overflow}
        return sft_arrays([problem(), example], TOKENIZER, **options)[1]

    assert len(sft(problem("x", trace="t" * 99, spans=(), demonstration="ok"), "error").tokens) == 2
    with pytest.raises(ValueError, match="1 of 2 .*'x'"):
        sft(problem("x", demonstration="t" * 99), "error")
    assert len(sft(problem("x", demonstration="t" * 99), "drop").tokens) == 1


def test_lengths_that_just_fit():
    _, batch = arrays([problem(question="qq" * LONG, trace="tt" * LENGTH, spans=())])
    assert batch.prompt_mask.all() and batch.hintable.all()
    assert batch.trace_length.tolist() == [LENGTH]


# Batches


def test_batches_depend_on_seed_and_step_alone():
    data = split(11)
    one, two, other = batches(data, 4, 7, (LONG,)), batches(data, 4, 7, (LONG,)), batches(data, 4, 8, (LONG,))
    forward = [one[i] for i in range(9)]
    for i in (8, 0, 3, 3, 5):
        assert_equal(two[i], forward[i])
    assert any((other[i].problem_id != forward[i].problem_id).any() for i in range(3))


def test_a_late_batch_needs_none_of_the_earlier_ones():
    data = split(5)
    late = batches(data, 2, 0, (LONG,))[10**9]
    assert_equal(late, batches(data, 2, 0, (LONG,))[10**9])
    assert set(late.problem_id) <= set(data.problem_id)


@pytest.mark.parametrize("count, batch_size", [(12, 4), (10, 4), (7, 1), (5, 5)])
def test_no_epoch_shows_a_problem_twice_and_every_epoch_has_a_new_order(count, batch_size):
    # Noise is derived from the problem, so a problem twice in one batch would give the same rollout twice.
    data, epochs, per_epoch = split(count), 4, count // batch_size
    stream = batches(data, batch_size, 3, (LONG,))
    orders = np.stack([stream[i].problem_id for i in range(epochs * per_epoch)]).reshape(epochs, -1)
    for order in orders:
        assert len(set(order.tolist())) == per_epoch * batch_size
    assert len({tuple(order) for order in orders.tolist()}) == epochs
    if count % batch_size == 0:
        assert all(set(order.tolist()) == set(data.problem_id.tolist()) for order in orders)


def test_rows_stay_together():
    data = split(9)
    row_of = {id: row for row, id in enumerate(data.problem_id.tolist())}
    batch = batches(data, 4, 0, (LONG,))[2]
    assert_equal(batch, take_rows(data, np.array([row_of[id] for id in batch.problem_id.tolist()])))


def test_sft_batches():
    options = {"prompt_length": LONG, "completion_length": LENGTH, "overflow": "error"}
    _, rows = sft_arrays([problem(f"p{i}", demonstration=f"d{i}") for i in range(6)], TOKENIZER, **options)
    stream = batches(rows, 3, 0, (SHORT, LONG))
    words = [TOKENIZER.decode(row) for i in range(2) for row in stream[i].completion]
    assert sorted(words) == [f"d{i}" for i in range(6)]


def test_fewer_problems_than_a_batch_is_an_error():
    with pytest.raises(ValueError, match="3 problems .* batch of 4"):
        batches(split(3), 4, 0, (LONG,))


# Buckets


@pytest.mark.parametrize("longest, bucket", [(1, 6), (6, 6), (7, 12), (12, 12)])
def test_a_batch_takes_the_smallest_bucket_that_holds_it(longest, bucket):
    batch = split(2, prompt_tokens=lambda i: (longest, 1)[i])
    cut = cut_to_bucket(batch, (SHORT, LONG))
    assert cut.tokens.shape == cut.prompt_mask.shape == (2, bucket)
    assert cut.prompt_mask.sum(axis=1).tolist() == [longest, 1]
    assert [TOKENIZER.decode(row) for row in cut.tokens] == ["qq" * longest, "qq"]
    assert_equal(cut.replace(tokens=batch.tokens, prompt_mask=batch.prompt_mask), batch)


def test_batches_are_cut_to_their_bucket():
    data = split(8, prompt_tokens=lambda i: LONG if i == 0 else 2)
    stream = batches(data, 2, 0, (SHORT, LONG))
    long_id = data.problem_id[0]
    lengths = [(stream[i].tokens.shape[1], long_id in stream[i].problem_id) for i in range(4)]
    assert collections.Counter(lengths) == {(LONG, True): 1, (SHORT, False): 3}
