"""Hugging Face's tokenizer.json and SentencePiece's *.model behind a small protocol, and LLaDA's chat template."""

import io
import json
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import sentencepiece
import tokenizers

from igpo_jax.runtime.files import atomic_write, read_json

PAD, EOS, MASK = 0, 1, 2
SPECIALS = {PAD: "<pad>", EOS: "<eos>", MASK: "<mask>"}  # of models that `train_sentencepiece` makes
LONGEST_SENTENCE = 1 << 16  # bytes; SentencePiece drops longer ones from its training text
START, HEADER, END_HEADER, END_OF_TURN = "<|startoftext|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"


class Tokenizer(Protocol):
    """What the rest of the package needs. Text never encodes to a special id, whatever it says."""

    vocab_size: int
    pad_id: int
    eos_id: int
    mask_id: int
    eot_id: int | None  # end of a turn, where the vocabulary has one

    def encode(self, text: str) -> list[int]:
        """Ids, without any that begins or ends a text."""

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids, and begin and end of each piece in `text`, in characters."""

    def decode(self, ids: Iterable[int]) -> str:
        """Text of all ids; special and unused ids have none."""

    def piece(self, id: int) -> str:
        """One id for display."""

    def special_id(self, token: str) -> int | None:
        """The id of a special token, None where the vocabulary has none of this name."""


class SentencePieceTokenizer:
    """A *.model file. Special ids are the file's own; `mask_id` is for files that have no piece <mask>."""

    def __init__(self, path: str | os.PathLike, mask_id: int | None = None):
        try:
            model = self._processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
            pieces = [model.id_to_piece(i) for i in range(model.vocab_size())]
        except (RuntimeError, OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not a SentencePiece model: {_first_line(error)}") from None
        self.vocab_size = len(pieces)
        self._special = {piece: i for i, piece in enumerate(pieces) if model.is_control(i)}
        mask_id = self._special.get(SPECIALS[MASK], mask_id)
        if mask_id is None:
            raise ValueError(f"{path} has no control symbol <mask>, and no mask id is known")
        if model.eos_id() < 0:
            raise ValueError(f"{path} has no end-of-text symbol")
        self.eos_id, self.mask_id = model.eos_id(), mask_id
        self.pad_id = model.pad_id() if model.pad_id() >= 0 else self.eos_id
        self.eot_id = self._special.get(END_OF_TURN)
        self._hidden = set(self._special.values()) | {mask_id}

    def special_id(self, token: str) -> int | None:
        return self._special.get(token)

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        mapping = self._processor.encode_as_offset_mapping(text)
        offsets, end = [], len(text)
        for begin, stop in reversed(mapping["offsets"]):
            # Of a character spelled in bytes, SentencePiece gives its place to the last byte only.
            end = stop if stop > begin else end
            offsets.append((begin, end))
        return mapping["ids"], offsets[::-1]

    def decode(self, ids: Iterable[int]) -> str:
        return self._processor.decode([int(i) for i in ids if i not in self._hidden and i < self.vocab_size])

    def piece(self, id: int) -> str:
        id = int(id)
        return self._processor.id_to_piece(id).replace("▁", " ") if id < self.vocab_size else "<unused>"


class HuggingFaceTokenizer:
    """A tokenizer.json, with tokenizer_config.json beside it for the names of the special tokens (llada.md 5)."""

    def __init__(self, path: str | os.PathLike, mask_id: int):
        path = pathlib.Path(path)
        values = read_json(path)
        for token in added_tokens(path, values):
            # Whatever the file says, nobody shall write a mask by writing its name.
            token["special"] = token.get("special", False) or token["id"] == mask_id
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(values))
        except BaseException as error:  # the library raises plain Exception, and panics, which are none
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise ValueError(f"{path} is not a tokenizer: {_first_line(error)}") from None
        self._tokenizer.encode_special_tokens = True  # spells out special tokens that occur in text
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {token.content: id for id, token in added.items() if token.special}
        self._names = {id: name for name, id in self._special.items()}
        self._hidden = frozenset((*self._names, mask_id))
        self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.mask_id = mask_id
        named = _named_tokens(path.parent)
        for key in ("eos_token", "pad_token"):
            if named.get(key) is not None and self._tokenizer.token_to_id(named[key]) is None:
                raise ValueError(f"{path}: {key}={named[key]!r} is not in the vocabulary")
        if named.get("eos_token") is None:
            raise ValueError(
                f"{path.parent}: neither tokenizer_config.json nor special_tokens_map.json names an eos_token"
            )
        self.eos_id = self._tokenizer.token_to_id(named["eos_token"])
        self.pad_id = self.eos_id if named.get("pad_token") is None else self._tokenizer.token_to_id(named["pad_token"])
        self.eot_id = self._special.get(END_OF_TURN)

    def special_id(self, token: str) -> int | None:
        return self._special.get(token)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        # Up to where the next character's tokens begin: normalisation merges characters and gives the place of the first.
        offsets, end, next_begin = [], len(text), len(text)
        for begin, _ in reversed(encoding.offsets):
            end = next_begin if begin < next_begin else end
            offsets.append((begin, end))
            next_begin = begin
        return encoding.ids, offsets[::-1]

    def decode(self, ids: Iterable[int]) -> str:
        return self._tokenizer.decode([i for i in map(int, ids) if i not in self._hidden and i < self.vocab_size])

    def piece(self, id: int) -> str:
        id = int(id)
        if id in self._names:
            return self._names[id]
        return self._tokenizer.decode([id]) if id < self.vocab_size else "<unused>"


def load_tokenizer(path: str | os.PathLike, mask_id: int | None = None) -> Tokenizer:
    """A tokenizer.json or *.model file, or the only one of them in a folder.

    Args:
        mask_id: as the model's configuration has it; models of `train_sentencepiece` know their own.

    Raises:
        ValueError: no such file, more than one, or one that cannot be used.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        found = sorted([*path.glob("tokenizer.json"), *path.glob("*.model")])
        if len(found) != 1:
            names = ", ".join(file.name for file in found) or "neither tokenizer.json nor a *.model file"
            raise ValueError(f"{path} must have one tokenizer, but has {names}")
        [path] = found
    if not path.is_file():
        raise ValueError(f"no tokenizer file {str(path)!r}")
    if path.suffix != ".json":
        return SentencePieceTokenizer(path, mask_id)
    if mask_id is None:
        raise ValueError(f"{path}: the mask id is not known; the model's configuration has it")
    return HuggingFaceTokenizer(path, mask_id)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:300]


def added_tokens(file: pathlib.Path, values: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of a tokenizer.json, each an object with an id and a content.

    Raises:
        ValueError: names the file: they are something else.
    """
    added = values.get("added_tokens", [])
    if not isinstance(added, list):
        raise ValueError(f"{file}: added_tokens is {type(added).__name__}, not a list")
    for number, token in enumerate(added):
        if not isinstance(token, dict) or type(token.get("id")) is not int or not isinstance(token.get("content"), str):
            raise ValueError(f"{file}: entry {number} (from 0) of added_tokens is no token with id and content")
    return added


def _named_tokens(folder: pathlib.Path) -> dict[str, str]:
    """eos_token, pad_token and others, as tokenizer_config.json names them, or else special_tokens_map.json."""
    named: dict[str, str] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / file).is_file():
            for key, value in read_json(folder / file).items():
                value = value.get("content") if isinstance(value, dict) else value
                if isinstance(value, str):
                    named[key] = value
    return named


# Chat


def chat_text(messages: Sequence[dict[str, str]]) -> str:
    """A conversation in LLaDA's chat template, up to where the assistant's next message begins (llada.md 5.3)."""
    turns = [f"{HEADER}{role}{END_HEADER}\n\n{content}{END_OF_TURN}" for role, content in _turns(messages)]
    return "".join([START, *turns, f"{HEADER}assistant{END_HEADER}\n\n"])


def completion_text(tokenizer: Tokenizer, tokens: np.ndarray, whole: bool = False) -> str:
    """The text of a completion, int [l], up to its first EOS, or all of it."""
    ended = np.flatnonzero(tokens == tokenizer.eos_id)
    return tokenizer.decode(tokens if whole or not ended.size else tokens[: ended[0]])


def encode_chat(tokenizer: Tokenizer, messages: Sequence[dict[str, str]]) -> list[int]:
    """Ids of `chat_text`. Only the template writes markers: what a message says is text, even where it spells one.

    Raises:
        ValueError: the vocabulary lacks a marker, or messages without role and content.
    """
    markers = {marker: tokenizer.special_id(marker) for marker in (START, HEADER, END_HEADER, END_OF_TURN)}
    missing = [marker for marker, id in markers.items() if id is None]
    if missing:
        raise ValueError(
            f"the vocabulary has no {', '.join(missing)}: this is the tokenizer of a base model, which knows no chat "
            "template; give raw prompts (chat=False)"
        )

    def header(role: str) -> list[int]:
        return [markers[HEADER], *tokenizer.encode(role), markers[END_HEADER]]

    ids = [markers[START]]
    for role, content in _turns(messages):
        ids += [*header(role), *tokenizer.encode(f"\n\n{content}"), markers[END_OF_TURN]]
    return [*ids, *header("assistant"), *tokenizer.encode("\n\n")]


def _turns(messages: Sequence[dict[str, str]]) -> list[tuple[str, str]]:
    if not messages:
        raise ValueError("a conversation needs at least one message")
    for message in messages:
        if set(message) != {"role", "content"} or not all(isinstance(value, str) for value in message.values()):
            raise ValueError(f"a message has the texts role and content, not {message!r}")
    return [(message["role"], message["content"].strip()) for message in messages]


def train_sentencepiece(texts: Iterable[str], path: str | os.PathLike, *, kind: str, vocab_size: int) -> None:
    """Trains on `texts` and writes the model file at once. The same texts give the same model.

    Text is kept as it is (no normalisation, no dummy prefix), so decoding inverts encoding; bytes outside of the training
    alphabet are spelled out, except by kind `char`, which maps them to the unknown token.

    Args:
        kind: char | unigram | bpe.
        vocab_size: the most pieces there may be.

    Raises:
        ValueError: a vocabulary that is too small for the alphabet, a text that is too long, or no text.
    """
    texts = list(texts)
    if not any(texts):
        raise ValueError("no text to train a tokenizer on")
    longest = max(len(text.encode()) for text in texts)
    if longest > LONGEST_SENTENCE:
        raise ValueError(f"a text of {longest} bytes; SentencePiece would silently drop those above {LONGEST_SENTENCE}")
    # Otherwise kind `char` silently leaves out rare characters, and the others fail with words about the trainer.
    alphabet = set("".join(texts)) | {"\n"}
    least = len(alphabet) + len(SPECIALS) + 1 + (0 if kind == "char" else 256)
    if vocab_size < least:
        raise ValueError(f"tokenizer.vocab_size={vocab_size} is too small for these texts; kind {kind} needs {least}")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type=kind,
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        character_coverage=1.0,
        byte_fallback=kind != "char",
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        user_defined_symbols=["\n"],
        control_symbols=["<mask>"],
        pad_id=PAD,
        pad_piece="<pad>",
        eos_id=EOS,
        eos_piece="<eos>",
        unk_id=3,
        bos_id=-1,
        num_threads=1,
        max_sentence_length=LONGEST_SENTENCE,
        minloglevel=2,
    )
    atomic_write(pathlib.Path(path), model.getvalue())
