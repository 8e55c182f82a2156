"""A small tokenizer.json like LLaDA's: NFC, split pattern, byte-level BPE, special tokens (docs/method.md section 4)."""

import json
import pathlib
from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

# As in LLaDA's tokenizer.json: one digit per piece.
PATTERN = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
BASE = ("<|startoftext|>", "<|endoftext|>", "[CLS]", "<|mdm_mask|>")
INSTRUCT = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
TEXT = [
    "user assistant system What is the answer? The answer is 42 because two and two are four.",
    "Hello world, once more",
]


def write_tokenizer(
    folder: pathlib.Path, instruct: bool = True, vocab_size: int = 320, texts: Iterable[str] = TEXT
) -> dict[str, int]:
    """Trains a tokenizer on `texts`, writes tokenizer.json and tokenizer_config.json, and returns the ids of the special
    tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    special = BASE + (INSTRUCT if instruct else ())
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": BASE[0], "eos_token": BASE[1], "pad_token": BASE[1], "cls_token": BASE[2], "mask_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    if (folder / "config.json").is_file():  # the model's config.json
        values = json.loads((folder / "config.json").read_text())
        values |= {"eos_token_id": tokenizer.token_to_id(BASE[1]), "mask_token_id": tokenizer.token_to_id(BASE[3])}
        (folder / "config.json").write_text(json.dumps(values))
    return {name: tokenizer.token_to_id(name) for name in special}
