import string

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from igpo_jax.tokenizers import ids_never_drawn, load_tokenizer, train_sentencepiece, warn_of_no_text

KINDS = ("char", "unigram", "bpe")
WORDS = "the cat counts 12 coins, buys 3 apples for £4.50 and has 1,080 cents left".split()
TEXTS = [f"Question: {' '.join(WORDS[i:] + WORDS[:i])}?\nAnswer:  {i}+{i + 7}={2 * i + 7}\n#### {2 * i + 7}" for i in range(12)]
ALPHABET = sorted(set("".join(TEXTS)))
SMALL = {"char": 200, "unigram": 340, "bpe": 340}


@pytest.fixture(scope="module", params=KINDS)
def trained(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param) / "tokenizer.model"
    train_sentencepiece(TEXTS, path, kind=request.param, vocab_size=SMALL[request.param])
    return request.param, load_tokenizer(path)


@pytest.fixture
def tokenizer(trained):
    return trained[1]


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(ALPHABET), st.text(" \n1a"), st.lists(st.sampled_from([*WORDS, "\n", "####"])).map(" ".join)))
def test_text_in_the_training_alphabet_comes_back_unchanged(trained, text):
    _, tokenizer = trained
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert "".join(tokenizer.piece(i) for i in ids) == text
    assert all(2 < i < tokenizer.vocab_size for i in ids)


@settings(max_examples=100, deadline=None)
@given(text=st.text(ALPHABET))
def test_offsets_are_characters_and_partition_the_text(trained, text):
    _, tokenizer = trained
    ids, offsets = tokenizer.encode_with_offsets(text)
    assert ids == tokenizer.encode(text)
    assert [tokenizer.piece(i) for i in ids] == [text[begin:end] for begin, end in offsets]
    assert "".join(text[begin:end] for begin, end in offsets) == text


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(exclude_categories=("Cs",))) | st.text("▁▅ a\ue000\x00⁇"))
@example(text="a▁b")
@example(text="\ue000▁ ▁▁\ue001")
def test_foreign_text_is_spelled_in_bytes_or_unknown(trained, text):
    kind, tokenizer = trained
    ids, offsets = tokenizer.encode_with_offsets(text)
    assert all(i > 2 for i in ids)
    if kind != "char":
        assert tokenizer.decode(ids) == text
    assert all(0 <= begin <= end <= len(text) for begin, end in offsets)
    assert {c for begin, end in offsets for c in range(begin, end)} == set(range(len(text)))


def test_a_mark_of_a_space_is_never_read_as_a_space(tokenizer, trained):
    plain = tokenizer.encode("1 2")
    for text in ("1▁2", "▁", "1▁▁2", " ▁ ", "1▅2"):
        ids, offsets = tokenizer.encode_with_offsets(text)
        spaces = [text[begin:end] for id, (begin, end) in zip(ids, offsets, strict=True) if " " in tokenizer.piece(id)]
        assert ids != plain and all(" " in piece for piece in spaces) and ids == tokenizer.encode(text)
        assert trained[0] == "char" or tokenizer.decode(ids) == text


@pytest.mark.parametrize("kind", KINDS)
def test_training_texts_with_reserved_characters_are_used(tmp_path, kind):
    train_sentencepiece([*TEXTS, *["q▁Z▅W"] * 3], tmp_path / "m", kind=kind, vocab_size=SMALL[kind] + 20)
    tokenizer = load_tokenizer(tmp_path / "m")
    pieces = [tokenizer.piece(id) for id in tokenizer.encode("qZW")]
    assert "".join(pieces) == "qZW"  # neither unknown nor bytes


@pytest.mark.parametrize("text", ["<mask>", "<eos>", "<pad>", "a <mask><eos>\n<pad>", "<unk>"])
def test_text_never_encodes_to_a_special_id(tokenizer, text):
    specials = {tokenizer.pad_id, tokenizer.eos_id, tokenizer.mask_id}
    assert not specials & set(tokenizer.encode(text))


def test_special_ids_are_distinct_have_names_and_no_text(tokenizer):
    specials = [tokenizer.pad_id, tokenizer.eos_id, tokenizer.mask_id]
    assert len(set(specials)) == 3
    assert [tokenizer.piece(i) for i in specials] == ["<pad>", "<eos>", "<mask>"]
    assert tokenizer.decode(specials) == ""
    ids = tokenizer.encode("12\n 3")
    between = [i for id in ids for i in (tokenizer.mask_id, id, tokenizer.eos_id)]
    assert tokenizer.decode(between) == "12\n 3"


def test_ids_above_the_vocabulary_have_no_text(tokenizer):
    """Models may sample such ids, because their vocabulary is rounded up."""
    ids = tokenizer.encode("cat")
    assert tokenizer.decode([*ids, tokenizer.vocab_size, tokenizer.vocab_size + 5]) == "cat"
    assert tokenizer.piece(tokenizer.vocab_size) == "<unused>"


def test_every_id_decodes(tokenizer):
    for id in range(tokenizer.vocab_size):
        assert isinstance(tokenizer.decode([id]), str)
        assert tokenizer.piece(id)


def test_newline_is_one_token_of_its_own(tokenizer):
    ids = tokenizer.encode("\n\n12\n")
    pieces = [tokenizer.piece(i) for i in ids]
    assert pieces[:2] == ["\n", "\n"] and pieces[-1] == "\n"
    assert all("\n" not in piece for piece in map(tokenizer.piece, range(tokenizer.vocab_size)) if len(piece) > 1)


def test_digits_are_tokens_of_their_own(tokenizer):
    pieces = [tokenizer.piece(id) for id in range(tokenizer.vocab_size)]
    assert set(string.digits) <= set(pieces)
    assert not [p for p in pieces if len(p.strip()) > 1 and any(c.isdigit() for c in p) and not p.startswith("<0x")]


def test_char_has_one_piece_for_each_character(tmp_path):
    train_sentencepiece(TEXTS, tmp_path / "m", kind="char", vocab_size=200)
    tokenizer = load_tokenizer(tmp_path / "m")
    assert all(len(tokenizer.encode(text)) == len(text) for text in TEXTS)
    assert tokenizer.vocab_size == len(ALPHABET) + 4  # three special tokens and the unknown token


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_subwords_are_shorter_than_characters(tmp_path, kind):
    train_sentencepiece(TEXTS, tmp_path / "m", kind=kind, vocab_size=SMALL[kind])
    tokenizer = load_tokenizer(tmp_path / "m")
    assert tokenizer.vocab_size <= SMALL[kind]
    assert sum(len(tokenizer.encode(t)) for t in TEXTS) < 0.8 * sum(map(len, TEXTS))


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_deterministic_and_replaces_the_file_whole(tmp_path, kind):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"an older file")
    train_sentencepiece(TEXTS, path, kind=kind, vocab_size=SMALL[kind])
    train_sentencepiece(iter(TEXTS), tmp_path / "again.model", kind=kind, vocab_size=SMALL[kind])
    assert path.read_bytes() == (tmp_path / "again.model").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.model", "tokenizer.model"]


def test_a_failed_training_leaves_the_old_file(tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"an older file")
    with pytest.raises(ValueError, match="too small"):
        train_sentencepiece(TEXTS, path, kind="unigram", vocab_size=20)
    assert path.read_bytes() == b"an older file"
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.model"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="none.model"):
        load_tokenizer(tmp_path / "none.model")


def test_every_byte_of_a_character_has_the_place_of_the_character(tmp_path):
    train_sentencepiece(TEXTS, tmp_path / "m", kind="bpe", vocab_size=340)
    ids, offsets = load_tokenizer(tmp_path / "m").encode_with_offsets("a√é1")
    assert len(ids) == 7
    assert offsets == [(0, 1)] + [(1, 2)] * 3 + [(2, 3)] * 2 + [(3, 4)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_vocabulary_too_small_for_the_alphabet_is_an_error(tmp_path, kind):
    least = len(ALPHABET) + 4 + (0 if kind == "char" else 256)
    with pytest.raises(ValueError, match=rf"tokenizer\.vocab_size={least - 1} .* needs {least}"):
        train_sentencepiece(TEXTS, tmp_path / "m", kind=kind, vocab_size=least - 1)
    train_sentencepiece(TEXTS, tmp_path / "m", kind=kind, vocab_size=least)
    tokenizer = load_tokenizer(tmp_path / "m")
    assert [tokenizer.decode(tokenizer.encode(text)) for text in TEXTS] == TEXTS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("texts, reason", [
    ([], "no text"), ([""], "no text"), (["ab", "a " * 40000], "80000 bytes"), (["\n\r\n", "\0"], "no text"),
    *[([text], "no text") for text in ("\n", "\r", "\0", "<mask>", "<eos>", "<unk>", "\n<mask>\n<pad>")],
])  # fmt: skip
def test_texts_that_cannot_be_trained_on_are_an_error(tmp_path, texts, reason, kind):
    with pytest.raises(ValueError, match=reason):
        train_sentencepiece(texts, tmp_path / "m", kind=kind, vocab_size=400)
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_sentencepiece_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="^SentencePiece cannot train a tokenizer of kind unigram on these texts: INTERNAL") as raised:
        train_sentencepiece(["<0x41>"], tmp_path / "m", kind="unigram", vocab_size=400)  # the name of a byte's piece
    assert "\n" not in str(raised.value)


def test_a_file_that_is_no_model_or_a_foreign_one_is_an_error(tmp_path):
    (tmp_path / "text.model").write_text("hello")
    with pytest.raises(ValueError, match="text.model is not a SentencePiece model"):
        load_tokenizer(tmp_path / "text.model")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_prefix=str(tmp_path / "foreign"), vocab_size=40, model_type="char"
    )
    with pytest.raises(ValueError, match="foreign.model has no control symbol <mask>"):
        load_tokenizer(tmp_path / "foreign.model")


def never_drawn(tokenizer, vocab_size):
    return [id for first, end in ids_never_drawn(tokenizer, vocab_size) for id in range(first, end)]


def test_what_has_no_text_and_ends_nothing_is_never_drawn(trained):
    kind, tokenizer = trained
    size = tokenizer.vocab_size
    assert never_drawn(tokenizer, size + 5) == [0, 3, *range(size, size + 5)]  # not EOS and MASK: 1 and 2
    assert [tokenizer.piece(id) for id in never_drawn(tokenizer, size)] == ["<pad>", "<unk>"]


@pytest.mark.parametrize("controls, ids, excluded, kept", [
    (["<mask>", "<|eot_id|>", "<role>"], dict(pad_id=-1), {"<unk>", "<s>", "<role>"}, {"</s>", "<|eot_id|>"}),
    (["<mask>", "<|im_end|>"], dict(pad_id=3), {"<unk>", "<s>", "<pad>"}, {"</s>", "<|im_end|>"}),
    (["<mask>"], dict(bos_id=-1, pad_id=-1, eos_id=1), {"<unk>"}, {"</s>"}),
])  # fmt: skip
def test_ends_are_drawn_in_foreign_models_too(tmp_path, controls, ids, excluded, kept):
    """Without a pad id, the end-of-text symbol is also the padding."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_prefix=str(tmp_path / "foreign"), vocab_size=60, model_type="char",
        control_symbols=controls, hard_vocab_limit=False, user_defined_symbols=["<b>"], **ids,
    )  # fmt: skip
    tokenizer = load_tokenizer(tmp_path / "foreign.model")
    pieces = [tokenizer.piece(id) for id in never_drawn(tokenizer, tokenizer.vocab_size)]
    assert set(pieces) == excluded and len(pieces) == len(excluded)
    assert not kept & set(pieces) and kept <= {tokenizer.piece(id) for id in range(tokenizer.vocab_size)}


def test_rows_with_ids_that_no_text_has_are_counted_once(tokenizer, caplog):
    text, specials = tokenizer.encode("12 apples"), [tokenizer.eos_id, tokenizer.mask_id]
    warn_of_no_text(tokenizer, "prompts", [text, [*text, *specials]])
    assert not caplog.records
    rows = [text, [*text, 3], [0, *text], [*text, tokenizer.vocab_size], text]
    warn_of_no_text(tokenizer, "prompts", rows)
    [record] = caplog.records
    assert record.getMessage().startswith("3 of 5 prompts have ids without text") and "is number 2" in record.getMessage()
