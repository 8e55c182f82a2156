"""Rules of a stranger's tokenizer file cannot make a short text fill the memory or take long."""

import base64
import io
import json

import numpy as np
import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from igpo_jax.tokenizer_growth import MOST_BYTES, growths, require_short
from igpo_jax.tokenizers import load_tokenizer
from tokenizer_files import write_tokenizer


def rule(type, **values):
    return {"type": type, **values}


def replace(pattern, content, kind="String"):
    return rule("Replace", pattern={kind: pattern}, content=content)


def model_of(texts, **options) -> sentencepiece_model_pb2.ModelProto:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=30, hard_vocab_limit=False, minloglevel=2,
        control_symbols=["<mask>"], **options,
    )  # fmt: skip
    return sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())


def edited(folder, **rules):
    write_tokenizer(folder)
    file = folder / "tokenizer.json"
    values = json.loads(file.read_text()) | rules
    file.write_text(json.dumps(values))
    return file, values


BYTES = rule("ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True)
PREFIX = rule("ByteLevel", add_prefix_space=True, trim_offsets=True, use_regex=True)
METASPACE = rule("Metaspace", replacement="▁", prepend_scheme="always", split=True)
TEMPLATE = rule("TemplateProcessing", single=[{"Sequence": {"id": "A", "type_id": 0}}] * 30, pair=[], special_tokens={})
TEMPLATE["pair"] = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]


def sequence(key, *rules):
    return rule("Sequence", **{key: list(rules)})


HOSTILE = {
    "replace": {"normalizer": sequence("normalizers", *[replace("a", "aa")] * 40)},
    "nested": {"normalizer": sequence("normalizers", *[sequence("normalizers", *[replace("a", "aa")] * 8)] * 5)},
    "one long text": {"normalizer": replace("a", "a" * 20_000)},
    "expression": {"normalizer": sequence("normalizers", *[replace("(?=a)", "a", "Regex")] * 40)},
    "prepend": {"normalizer": rule("Prepend", prepend="a" * 20_000)},
    "bytes of bytes": {"normalizer": sequence("normalizers", *[rule("ByteLevel")] * 40)},
    "character map": {"normalizer": rule("Precompiled", precompiled_charsmap=base64.b64encode(bytes(4) + b"a" * 20_000 + b"\0").decode())},
    "a factor above all floats": {"normalizer": sequence("normalizers", *[replace("a", "a" * 100_000)] * 63)},
    "pieces": {"pre_tokenizer": sequence("pretokenizers", *[PREFIX] * 20)},
    "both": {"normalizer": sequence("normalizers", *[replace("a", "aa")] * 10), "pre_tokenizer": PREFIX,
             "post_processor": TEMPLATE},
    "decoder": {"decoder": sequence("decoders", *[replace("a", "aa")] * 40)},
    "spaces": {"decoder": sequence("decoders", *[rule("BPEDecoder", suffix="")] * 20)},
}  # fmt: skip


@pytest.mark.parametrize("rules", HOSTILE.values(), ids=HOSTILE)
def test_rules_that_multiply_a_text_are_one_error(rules, tmp_path):
    edited(tmp_path, **rules)
    with pytest.raises(
        ValueError, match=r"^\S*tokenizer.json: (en|de)coding may lengthen a text by a factor of \S+, above 16384$"
    ):
        load_tokenizer(tmp_path, 300)


def model(**values):
    return {"model": {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "a", "max_input_chars_per_word": 100,
                      "continuing_subword_prefix": "##", **values}}  # fmt: skip


def unigram(pieces):
    return {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["", 0.0], *([piece, -1.0] for piece in pieces)]}}


def added(*contents):
    token = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    return {"added_tokens": [{"id": 400 + i, "content": content, **token} for i, content in enumerate(contents)]}


ALL_LENGTHS = ["a" * length for length in range(1, 100)]
SLOW = {
    "normalizers": ({"normalizer": sequence("normalizers", *[rule("Nmt")] * 64)}, "normalizer: more than 64 rules"),
    "sequences": ({"decoder": sequence("decoders", *[sequence("decoders", *[rule("Fuse")] * 8)] * 8)}, "decoder: more than 64 rules"),
    "unigram": (unigram(ALL_LENGTHS), "pieces that begin with each other, up to 'a*, have more than 4096 bytes together"),
    "added": (added("a", "a" * 4096 + "b"), "pieces that begin with each other, up to 'a*, have more than 4096 bytes together"),
    "large unigram": (unigram(f"{i:04d}" * 800 for i in range(2700)), "the pieces have 8640000 bytes; at most 8388608 are possible"),
    "many added": (added(*(f"{i:04d}" * 100 for i in range(2700))), "normalized, the added tokens may have 1080000 bytes; at most 1048576 are possible"),
    "word": (model(max_input_chars_per_word=10**400), "model.max_input_chars_per_word is above 256"),
    "prefix": (model(continuing_subword_prefix="#" * 65), "model.continuing_subword_prefix has 65 bytes; at most 64 are possible"),
    "suffix": (model(end_of_word_suffix="#" * 65), "model.end_of_word_suffix has 65 bytes; at most 64 are possible"),
}  # fmt: skip


@pytest.mark.parametrize("values, error", SLOW.values(), ids=SLOW)
def test_a_file_with_which_a_text_takes_long_is_one_error(values, error, tmp_path):
    edited(tmp_path, **values)
    with pytest.raises(ValueError, match=rf"^\S*tokenizer.json: {error}$"):
        load_tokenizer(tmp_path, 300)


def test_a_sentencepiece_model_with_which_a_text_takes_long_is_one_error(tmp_path):
    model = model_of(["a b c d e"] * 9)
    for piece in set(ALL_LENGTHS) - {piece.piece for piece in model.pieces}:
        model.pieces.add(piece=piece, score=-1.0)
    (tmp_path / "m.model").write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match="m.model: pieces that begin with each other, up to 'a*, have more than 4096 bytes"):
        load_tokenizer(tmp_path / "m.model")


@pytest.mark.parametrize("part", ["normalizer_spec", "denormalizer_spec"])
def test_a_character_map_with_a_loop_is_one_error(part, tmp_path):
    """SentencePiece would read on to the end of a text, for each of its characters."""
    model = model_of(["a b c d e"] * 9)
    charsmap = model.normalizer_spec.precompiled_charsmap
    table = np.frombuffer(charsmap, "<u4", int.from_bytes(charsmap[:4], "little") // 4, offset=4).copy()
    root = int(table[0])
    table[(root >> 10 << ((root & 512) >> 6)) ^ ord("a")] = ord("a") << 10 | ord("a")  # the child of this unit is itself
    getattr(model, part).precompiled_charsmap = charsmap[:4] + table.tobytes() + charsmap[4 + table.nbytes :]
    (tmp_path / "m.model").write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match="m.model: a character map has keys of more than 64 bytes"):
        load_tokenizer(tmp_path / "m.model")


def test_a_long_character_map_is_one_error(tmp_path):
    model = model_of(["a b c d e"] * 9)
    model.normalizer_spec.precompiled_charsmap += b"a" * (1 << 22) + b"\0"
    (tmp_path / "m.model").write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match="m.model: a character map has [0-9]+ bytes; at most 4194304 are possible"):
        load_tokenizer(tmp_path / "m.model")


def test_many_rules_and_long_pieces_are_allowed(tmp_path):
    """SentencePiece's longest pieces have 16 characters, of at most 4 bytes."""
    pieces = ["\U0001f600" * length for length in range(1, 17)]
    file, values = edited(tmp_path, normalizer=sequence("normalizers", *[rule("Nmt")] * 63), pre_tokenizer=None, **unigram(pieces))
    for number, token in enumerate(values["added_tokens"], start=17):
        token["id"] = number
    file.write_text(json.dumps(values))
    assert sorted(load_tokenizer(tmp_path, 300).encode("\U0001f600" * 40)) == [8, 16, 16]


@pytest.mark.parametrize("normalizer", [
    rule("Doubling"), {"prepend": "aa"}, 5, rule("Replace"), replace(5, "a"), rule("Sequence", normalizers=7),
    rule("Prepend", prepend=None), rule("Precompiled", precompiled_charsmap="?"),
])  # fmt: skip
def test_a_rule_that_cannot_be_bounded_is_one_error(normalizer, tmp_path):
    """The library also reads rules without a type."""
    edited(tmp_path, normalizer=normalizer)
    with pytest.raises(ValueError, match="tokenizer.json: normalizer: no "):
        load_tokenizer(tmp_path, 300)


def test_a_text_is_refused_if_the_rules_may_fill_the_memory(tmp_path):
    file, values = edited(tmp_path, normalizer=replace("a", "a" * 1000))
    tokenizer = load_tokenizer(tmp_path, 300)
    growth, _ = growths(file, values)
    assert len(tokenizer.encode("a" * 20)) >= 20 * 1000 / 16
    for encode in (tokenizer.encode, tokenizer.encode_with_offsets):
        with pytest.raises(
            ValueError, match="tokenizer.json may lengthen a text of 17000 bytes by a factor of .* shorter text"
        ):
            encode("a" * 17_000)
    require_short(file, int(MOST_BYTES / growth), growth)
    edited(tmp_path, decoder=replace("a", "a" * 1000))
    with pytest.raises(ValueError, match="tokenizer.json may lengthen a text of"):
        load_tokenizer(tmp_path, 300).decode([200] * 20_000)


def test_added_tokens_are_normalized_within_the_limit_when_the_file_is_read(tmp_path):
    long = {"id": 400, "content": "a" * 100_000, "special": False, "normalized": True, "single_word": False}
    _, values = edited(tmp_path, normalizer=replace("a", "a" * 1000))
    edited(tmp_path, normalizer=replace("a", "a" * 1000), added_tokens=values["added_tokens"] + [long])
    with pytest.raises(ValueError, match="tokenizer.json: normalized, the added tokens may have 1000000.. bytes; at most"):
        load_tokenizer(tmp_path, 300)


def test_rules_of_known_tokenizers_are_bounded_and_loaded(tmp_path):
    """The rules are those of the published files. The model and the special tokens are small."""
    nmt = base64.b64encode(model_of(["a b c d e"] * 9).normalizer_spec.precompiled_charsmap).decode()
    precompiled = rule("Precompiled", precompiled_charsmap=nmt)
    split = rule("Split", pattern={"Regex": r"\p{L}+|\s+"}, behavior="Isolated", invert=False)
    digits = rule("Digits", individual_digits=True)
    mark, strip = replace(" ", "▁"), rule("Strip", content=" ", start=1, stop=0)
    to_text = sequence("decoders", replace("▁", " "), rule("ByteFallback"), rule("Fuse"), strip)
    albert = (
        replace("``", '"'),
        rule("NFKD"),
        rule("StripAccents"),
        rule("Lowercase"),
        precompiled,
        replace(" {2,}", " ", "Regex"),
    )
    sides = rule("Strip", strip_left=False, strip_right=True)
    known = {
        "GPT-2": ({"pre_tokenizer": PREFIX, "post_processor": PREFIX, "decoder": PREFIX}, 4),
        "LLaDA, Qwen": ({"normalizer": rule("NFC"), "pre_tokenizer": sequence("pretokenizers", split, BYTES)}, 6),
        "SmolLM": ({"pre_tokenizer": sequence("pretokenizers", digits, BYTES), "decoder": BYTES}, 2),
        "Llama 3": ({"pre_tokenizer": sequence("pretokenizers", split, BYTES), "post_processor": BYTES}, 6),
        "Llama 2": ({"normalizer": sequence("normalizers", rule("Prepend", prepend="▁"), mark), "decoder": to_text}, 50),
        "Gemma": ({"normalizer": mark, "pre_tokenizer": rule("Split", pattern={"String": " "}, behavior="MergedWithPrevious", invert=False),
                   "decoder": to_text}, 3),
        "T5": ({"normalizer": sequence("normalizers", precompiled, sides, replace(" {2,}", "▁", "Regex")),
                "pre_tokenizer": METASPACE, "decoder": METASPACE}, 2000),
        "ALBERT": ({"normalizer": sequence("normalizers", *albert), "pre_tokenizer": METASPACE}, 10_000),
    }  # fmt: skip
    for name, (rules, most) in known.items():
        file, values = edited(tmp_path, **{"normalizer": None, **rules})
        assert max(growths(file, values)) <= most, name
        tokenizer = load_tokenizer(tmp_path, 300)
        assert tokenizer.encode("some text " * 300) and tokenizer.decode(range(260)), name


def test_the_text_of_the_unknown_token_is_bounded(tmp_path):
    model = model_of(["a b c d e"] * 9)
    model.trainer_spec.unk_surface = "x" * 20_000
    (tmp_path / "m.model").write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match="m.model: decoding may lengthen a text by a factor of 2e"):
        load_tokenizer(tmp_path / "m.model")


@pytest.mark.parametrize("part, method", [("normalizer_spec", "encode"), ("denormalizer_spec", "decode")])
def test_a_sentencepiece_model_cannot_multiply_a_text(part, method, tmp_path):
    model = model_of(["a b c d e"] * 9)
    (tmp_path / "m.model").write_bytes(model.SerializeToString())
    tokenizer = load_tokenizer(tmp_path / "m.model")
    assert tokenizer.decode(tokenizer.encode("a b " * 5000)).startswith("a b")
    with pytest.raises(ValueError, match="m.model may lengthen a text of 400000 bytes by a factor of 198"):
        tokenizer.encode("a b " * 100_000)
    real = model.normalizer_spec.precompiled_charsmap
    getattr(model, part).precompiled_charsmap = real + b"a" * 20_000 + b"\0"
    (tmp_path / "m.model").write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match=f"m.model: {method[:-1]}ing may lengthen"):
        load_tokenizer(tmp_path / "m.model")
