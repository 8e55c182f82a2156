"""Single values of strangers' files that once ran for hours, filled the memory, ended with a traceback or were silently accepted."""

import base64
import dataclasses
import json
import tracemalloc

import numpy as np
import pytest
from ml_collections import ConfigDict
from tokenizers import Tokenizer, decoders, models

from igpo_jax.config import RewardConfig, with_tokenizer
from igpo_jax.evaluate.generations import Generation, protocol_rule
from igpo_jax.evaluate.regrade import compare_graders
from igpo_jax.model.transformer import ModelConfig
from igpo_jax.runtime.checks import check_fields
from igpo_jax.tasks import load_task
from igpo_jax.tasks.rows import read_rows
from igpo_jax.tokenizers import SPACE_MARK, STAND_INS, load_tokenizer, train_sentencepiece
from igpo_jax.weights.folders import convert, export
from igpo_jax.weights.huggingface import llada_config, model_config
from model_folders import PLAIN, write_folder
from tokenizer_files import write_tokenizer


@pytest.fixture(scope="module")
def spaced(tmp_path_factory):
    """A SentencePiece model, which marks spaces."""
    file = tmp_path_factory.mktemp("spaced") / "tokenizer.model"
    train_sentencepiece(["one and two and three"] * 20, file, kind="bpe", vocab_size=300)
    return load_tokenizer(file)


def changed_tokenizer(folder, change):
    """Writes a tokenizer.json whose values `change` has changed, and returns the id of MASK."""
    mask = write_tokenizer(folder)["<|mdm_mask|>"]
    values = json.loads((folder / "tokenizer.json").read_text())
    change(values)
    (folder / "tokenizer.json").write_text(json.dumps(values))
    return mask


def test_one_long_id_does_not_lengthen_all_ids():
    rows = [Generation("1" * 10**6, 0, "1", "1", {}), *(Generation(str(i), 0, "1", "1", {}) for i in range(1000))]
    tracemalloc.start()
    found = compare_graders(rows, {"igpo_jax": ["right"] * len(rows)})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found["problems"] == 1001 and peak < 10**7


@pytest.mark.parametrize("rule", ["nonsense", {"x": 1}, [1], 5, "box" * 10**5], ids=lambda rule: str(rule)[:10])
def test_a_rule_of_a_protocol_that_does_not_exist_is_refused(rule, tmp_path):
    protocol = {"protocol": {"gsm8k": {"task": {"name": "math", "answer": rule}}}}
    (tmp_path / "protocol.json").write_text(json.dumps(protocol))
    with pytest.raises(ValueError, match=r"protocol.json: the rule .* of gsm8k is none of box, number, any") as error:
        protocol_rule(tmp_path / "gsm8k.jsonl")
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("name, change, message", [
    ("words", {"steps": 1000, "test_problems": 10**6}, "task.test_problems=1000000 times task.steps=1000 must be at most"),
    ("arithmetic", {"slots": 1000, "test_problems": 10**6}, "task.test_problems=1000000 times task.slots=1000 must be"),
    ("countdown", {"test_problems": 10**6}, "task.test_problems=1000000 must be at most 100000"),
    ("sudoku", {"test_problems": 10**6}, "task.test_problems=1000000 must be at most 100000"),
])  # fmt: skip
def test_more_problems_than_minutes_can_draw_are_refused(name, change, message):
    task = load_task(name)
    with pytest.raises(ValueError, match=message):
        task.load(ConfigDict(task.defaults() | change), "test", 0)


@pytest.mark.parametrize("change", [
    {"prompt": "{question}" * 17}, {"prompt": "{question}" + " " * (1 << 16)}, {"demonstration": "{solution}" * 9 + "{answer}" * 9},
])  # fmt: skip
def test_a_template_cannot_multiply_a_problem(change, tmp_path):
    (tmp_path / "test.jsonl").write_text(json.dumps({"id": "1", "question": "2+2", "answer": "4"}))
    task = load_task("math")
    with pytest.raises(ValueError, match=r"has \d+ characters and \d+ fields; at most 65536 and 16 are possible"):
        task.load(ConfigDict(task.defaults(test=f"jsonl:{tmp_path / 'test.jsonl'}") | change), "test", 0)


@pytest.mark.parametrize("seconds", [1e300, 3601.0])
def test_a_run_cannot_switch_off_the_deadline_of_grading(seconds):
    with pytest.raises(ValueError, match="deadline_seconds=.* must be at most 3600"):
        check_fields(RewardConfig(deadline_seconds=seconds))


@pytest.mark.parametrize("content, key", [(" ", "rstrip"), ("\n", "lstrip"), (" a", "lstrip"), ("a\t", "rstrip")])
def test_added_tokens_that_match_white_space_again_and_again_are_refused(content, key, tmp_path):
    token = {
        "id": 330,
        "content": content,
        "special": False,
        "normalized": False,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
    }
    mask = changed_tokenizer(tmp_path, lambda values: values["added_tokens"].append(token | {key: True}))
    with pytest.raises(ValueError, match="begins or ends with white space, and lstrip or rstrip is set"):
        load_tokenizer(tmp_path, mask)


@pytest.mark.parametrize(
    "key, value", [("unk_token", [1]), ("unk_token", 5), ("unk_id", [1]), ("unk_id", 1.5), ("unk_id", -20)]
)
def test_an_unknown_token_of_another_type_is_refused_or_unused(key, value, tmp_path):
    mask = changed_tokenizer(tmp_path, lambda values: None)
    before = load_tokenizer(tmp_path, mask).no_text_ids
    changed_tokenizer(tmp_path, lambda values: values["model"].update({key: value}))
    if key == "unk_id":  # BPE does not have it
        assert load_tokenizer(tmp_path, mask).no_text_ids == before
    else:
        with pytest.raises(ValueError, match=r"tokenizer.json"):
            load_tokenizer(tmp_path, mask)


def test_an_unknown_id_outside_of_a_unigram_vocabulary_is_refused(tmp_path):
    unigram = {"type": "Unigram", "unk_id": -1, "byte_fallback": False, "vocab": [["a", 0.0], ["<|endoftext|>", 0.0]]}
    mask = changed_tokenizer(tmp_path, lambda values: values.update({"model": unigram, "added_tokens": []}))
    with pytest.raises(ValueError, match="tokenizer"):
        load_tokenizer(tmp_path, mask)


def test_an_empty_pattern_is_one_error(tmp_path, capfd):
    rule = {"type": "Replace", "pattern": {"String": ""}, "content": "b"}
    mask = changed_tokenizer(tmp_path, lambda values: values.update({"normalizer": rule}))
    with pytest.raises(ValueError, match="its pattern is empty"):
        load_tokenizer(tmp_path, mask)
    assert "panicked" not in capfd.readouterr().err


BPE = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "continuing_subword_prefix": "##"}


@pytest.mark.parametrize("values, message", [
    ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "pre_tokenizer: FixedLength has the length 0"),
    ({"decoder": {"type": "Strip", "content": "a", "start": 0, "stop": 9}}, "decoder: Strip at the end of tokens is not"),
    ({"added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}, "is not a tokenizer: it has no tokens"),
    *(({"model": BPE | {"merges": [merge]}}, "the merge .* lacks model.continuing_subword_prefix='##'")
      for merge in ("a b", ["a", "b"])),
    *(({"normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap}}, "normalizer: no rule of type Precompiled: .*")
      for charsmap in (None, 0, "", "AAAA", "BAAAAA==", "AwAAAGFhYQ==", "AAAAAP==", "AAAAAP8=")),
])  # fmt: skip
def test_a_tokenizer_at_which_the_library_would_panic_is_one_error(values, message, tmp_path, capfd):
    mask = changed_tokenizer(tmp_path, lambda content: content.update(values))
    with pytest.raises(ValueError, match=f"{tmp_path / 'tokenizer.json'}.*{message}"):
        load_tokenizer(tmp_path, mask)
    assert "panicked" not in capfd.readouterr().err


def test_a_strip_at_the_beginning_of_tokens_is_read(tmp_path):
    """As in the files of Llama 2."""
    rule = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    load_tokenizer(tmp_path, changed_tokenizer(tmp_path, lambda content: content.update({"decoder": rule})))


def test_a_panic_of_the_library_names_the_file(tmp_path):
    """The one key of this character map leads to a replacement behind its end."""
    units = np.zeros(512, "<u4")
    units[0] = 256 << 10  # to 256
    units[256 ^ 0x61] = 0x61 | 1 << 8 | (0x61 << 10)  # a; its value is at 256
    units[256] = 1 << 31 | 1000
    charsmap = base64.b64encode(np.uint32(units.nbytes).tobytes() + units.tobytes() + b"b\0").decode()
    rule = {"type": "Precompiled", "precompiled_charsmap": charsmap}
    mask = changed_tokenizer(tmp_path, lambda content: content.update({"normalizer": rule}))
    tokenizer = load_tokenizer(tmp_path, mask)
    with pytest.raises(ValueError, match=f"{tmp_path / 'tokenizer.json'} cannot encode a text: "):
        tokenizer.encode("abc")


def test_a_text_with_all_private_characters_is_encoded(spaced):
    private = "".join(map(chr, STAND_INS[:6400]))
    assert spaced.decode(spaced.encode(f"one{SPACE_MARK}{private}")) == f"one{SPACE_MARK}{private}"
    with pytest.raises(ValueError, match="too many different characters"):
        spaced.encode(SPACE_MARK + "".join(map(chr, STAND_INS)))


def test_a_vocabulary_without_the_bytes_of_a_space_mark_has_no_id_none(tmp_path):
    """The stand-in begins with the byte EE, the mark with E2."""
    vocabulary = {piece: id for id, piece in enumerate(["a", "b", "▁", "<0xEE>", "<0x80>", "<|endoftext|>", "<unk>", "m"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    assert all(isinstance(id, int) for id in load_tokenizer(tmp_path, 7).encode("a▁b"))


@pytest.mark.parametrize("change, message", [
    ({"mlp_ratio": 10**400, "mlp_hidden_size": None}, "mlp_ratio must be a positive number"),
    ({"mlp_ratio": 1e300, "mlp_hidden_size": None}, "mlp_hidden_size"),
    ({"d_model": 2**30, "n_heads": 2, "n_kv_heads": 2, "mlp_hidden_size": 2**31 - 1, "n_layers": 500}, "a matrix of all layers has"),
])  # fmt: skip
def test_sizes_that_overflow_are_one_error(change, message):
    with pytest.raises(ValueError, match=message):
        model_config(llada_config(PLAIN, 64) | change)


def test_sizes_of_the_largest_networks_are_allowed():
    ModelConfig(vocab_size=1 << 18, mask_id=1, eos_id=2, width=1 << 15, layers=200, heads=256, kv_heads=8, mlp_width=1 << 17)


@pytest.mark.slow
@pytest.mark.parametrize("linked", ["model.safetensors", "params", "params/final_norm"])
def test_weights_outside_of_a_folder_are_not_converted(linked, tmp_path, mesh):
    write_folder(tmp_path / "source", mesh)
    convert(tmp_path / "source", tmp_path / "model", mesh)
    folder, write = (tmp_path / "source", convert) if linked == "model.safetensors" else (tmp_path / "model", export)
    (folder / linked).rename(tmp_path / "private")
    (folder / linked).symlink_to(tmp_path / "private")
    with pytest.raises(ValueError, match="outside of"):
        write(folder, tmp_path / "target", mesh)
    assert not (tmp_path / "target").exists()


def test_a_mask_that_the_tokenizer_reads_otherwise_is_refused(spaced):
    model = ModelConfig(
        vocab_size=320, mask_id=spaced.mask_id, eos_id=spaced.eos_id, width=16, layers=1, heads=2, kv_heads=2, mlp_width=8
    )
    assert with_tokenizer(model, spaced, "folder").never_drawn
    other = ModelConfig(**{**vars(model), "mask_id": spaced.mask_id + 6})
    with pytest.raises(ValueError, match=r"folder: mask_token_id of config.json is \d+, that of the tokenizer"):
        with_tokenizer(other, spaced, "folder")


@pytest.mark.parametrize("change, message", [
    (lambda values: values["added_tokens"][0].update(id=7777), "its id is "),
    (lambda values: values["model"]["vocab"].update(dict.fromkeys(list(values["model"]["vocab"])[:2], 0)), "the same id"),
    (lambda values: values.update(post_processor={
        "type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 2,
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}], "special_tokens": {},
    }), "may lengthen a text by a factor of inf"),
], ids=["id that is ignored", "two tokens of one id", "repeated text"])  # fmt: skip
def test_ids_that_the_library_changes_and_templates_that_repeat_are_refused(change, message, tmp_path):
    mask = changed_tokenizer(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        load_tokenizer(tmp_path, mask)


@pytest.mark.parametrize("change", [{"rope_theta": 1e-300}, {"rope_theta": 1e300}, {"norm_epsilon": 1e300}], ids=str)
def test_numbers_that_float32_cannot_hold_are_refused(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))}=.* must be from"):
        dataclasses.replace(PLAIN, **change)


def test_a_mask_that_ends_texts_is_refused():
    values = llada_config(PLAIN, 64)
    with pytest.raises(ValueError, match=f"mask_token_id={PLAIN.eos_id} must differ from eos_token_id"):
        model_config(values | {"mask_token_id": PLAIN.eos_id})


def varint(number, length=0):
    """Returns a number as Thrift's variable-length integer of at least `length` bytes."""
    digits, number = [], 2 * number
    while number or len(digits) < length:
        digits.append(number & 127 | 128)
        number >>= 7
    return bytes([*digits[:-1], digits[-1] & 127])


def test_sizes_in_the_metadata_of_a_parquet_file_may_be_wrong(tmp_path):
    """All 1,024 rows refer to one text of 4 MiB, but by the metadata it has 1,000 bytes."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    text = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 1024, pyarrow.int32()), pyarrow.array(["a" * 2**22]))
    file = tmp_path / "lie.parquet"
    options = {"dictionary_pagesize_limit": 2**28, "store_schema": False, "write_statistics": False}
    parquet.write_table(pyarrow.table({"question": text}), file, compression="zstd", **options)
    old = varint(parquet.ParquetFile(file).metadata.row_group(0).column(0).total_uncompressed_size)
    data, footer, end = (content := file.read_bytes())[:-8], int.from_bytes(content[-8:-4], "little"), content[-8:]
    assert data[-footer:].count(old) >= 1
    file.write_bytes(data[:-footer] + data[-footer:].replace(old, varint(1000, len(old))) + end)
    before = pyarrow.total_allocated_bytes()
    with pytest.raises(ValueError, match="unpacks to more than 100 times its size"):
        for _ in read_rows(str(file)):
            assert pyarrow.total_allocated_bytes() - before < 2**29
