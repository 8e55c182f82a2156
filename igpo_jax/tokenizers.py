"""Tokenizers for tokenizer.json and vocab.json files (Hugging Face) and *.model files (SentencePiece)."""

import contextlib
import hashlib
import io
import json
import logging
import operator
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, cast

import numpy as np
import sentencepiece
import tokenizers

from igpo_jax.families import LLADA_CHAT, ChatTemplate, Family, find_family
from igpo_jax.runtime.buckets import small_files
from igpo_jax.runtime.checks import MOST_IDS, require
from igpo_jax.runtime.files import atomic_write, first_line, read_bytes, read_json, wrap_read_errors
from igpo_jax.tokenizer_growth import growths, require_short, sentencepiece_growths

log = logging.getLogger(__name__)

PAD, EOS, MASK, UNKNOWN = range(4)  # ids in models of `train_sentencepiece`
MAX_TEXT_BYTES = 1 << 16  # SentencePiece silently drops longer training texts
VOCABULARY = "vocab.json"
SPACE_MARK = "▁"  # SentencePiece writes a space as this character, and would decode the character as a space
STAND_INS = (*range(0xE000, 0xF900), *range(0xAC00, 0xD7A4), *range(0x4E00, 0xA000))  # see `_stand_in`
RESERVED = re.compile("[▁▅]")  # SentencePiece would learn ▁ as a space, and drops training texts with ▅
NO_TEXT = re.compile("<(?:mask|pad|eos|unk)>|[\n\r\0]")  # SentencePiece learns no pieces from these parts of training texts
ENDS_OF_TURN = ("<|eot_id|>", "<|im_end|>", "<|role_end|>")  # LLaDA, ChatML, LLaDA-MoE
# The pattern that splits texts into words in Qwen2's tokenizer, which vocab.json and merges.txt do not contain
QWEN_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


class Tokenizer(Protocol):
    """Interface of tokenizers, which convert between text and token ids. If a text contains the name of a special token,
    encoding treats the name as ordinary text and does not return the id of the special token."""

    file: pathlib.Path
    digest: str  # hash of the file; with another tokenizer, the model's ids would have other texts
    vocab_size: int
    pad_id: int
    eos_id: int
    mask_id: int
    eot_id: int | None  # end of a chat turn
    chat: ChatTemplate  # of the model's family
    special_ids: frozenset[int]  # of markers such as EOS, MASK and those of the chat template
    no_text_ids: frozenset[int]  # unknown token, padding unless it is EOS or EoT, and ids below `vocab_size` without a token

    # Encoding adds no ids that mark the beginning or end of a text. Offsets are each piece's (begin, end) in characters.
    def encode(self, text: str) -> list[int]: ...
    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]: ...
    # `decode` leaves out special and unused ids. `piece` returns the text of one id, `special_id` the id of a special token.
    def decode(self, ids: Iterable[int]) -> str: ...
    def piece(self, id: int) -> str: ...
    def special_id(self, token: str) -> int | None: ...


def _stand_in(text: str, alphabet: set[str]) -> str:
    """Returns a character that can replace SPACE_MARK in a text while the text is encoded. The character occurs neither in the
    text nor in the alphabet of the vocabulary, and has as many UTF-8 bytes as SPACE_MARK. It is a private-use character of
    Unicode or, if all of them occur, a Hangul syllable or a Chinese character. Unicode normalization does not change the
    returned character. Raises ValueError if all candidates occur."""
    used = alphabet.union(text)
    found = next((c for c in map(chr, STAND_INS) if c not in used), "")
    require(found, f"a text with {SPACE_MARK} has too many different characters")
    return found


def _with_bytes_of_space_mark(ids: list[int], stand_in: str, byte_ids: Callable[[str], list[int | None]]) -> list[int]:
    """Replaces the tokens for the bytes of the character `stand_in` by the tokens for the bytes of SPACE_MARK, and returns the
    token ids. Changes nothing if the vocabulary has no tokens for single bytes."""
    old, new = byte_ids(stand_in), byte_ids(SPACE_MARK)
    if None in new:
        return ids
    for place in range(len(ids) - len(old) + 1):
        if ids[place : place + len(old)] == old:
            ids[place : place + len(old)] = cast(list[int], new)
    return ids


class SentencePieceTokenizer:
    """Tokenizer of a SentencePiece *.model file. `mask_id` is the id of MASK, and is used only if the file has no piece <mask>.
    Files that `train_sentencepiece` did not write may normalize text, so that decoding does not restore the original text."""

    def __init__(self, path: str | os.PathLike, mask_id: int | None = None):
        try:
            model = self._processor = sentencepiece.SentencePieceProcessor(model_proto=read_bytes(pathlib.Path(path)))
            pieces = [model.id_to_piece(i) for i in range(model.vocab_size())]
        except (RuntimeError, OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not a SentencePiece model: {first_line(error)}") from None
        if not pieces:
            raise ValueError(f"{path} is not a SentencePiece model: it has no pieces")
        self.vocab_size = len(pieces)
        self.digest = _digest(model.serialized_model_proto())
        self._alphabet = set("".join(pieces))
        self._longest = max(len(piece.encode()) for piece in pieces)
        self.file, bounds = pathlib.Path(path), sentencepiece_growths(pathlib.Path(path), model.serialized_model_proto())
        self._encoding_growth, self._decoding_growth = bounds
        self._special = {piece: i for i, piece in enumerate(pieces) if model.is_control(i)}
        mask_id = self._special.get("<mask>", mask_id)
        if mask_id is None:
            raise ValueError(f"{path} has no control symbol <mask>, and no mask id is known")
        if model.eos_id() < 0:
            raise ValueError(f"{path} has no end-of-text symbol")
        self.eos_id, self.mask_id = model.eos_id(), mask_id
        self.pad_id = model.pad_id() if model.pad_id() >= 0 else self.eos_id
        self.chat = LLADA_CHAT
        self.eot_id = self._special.get(self.chat.end_of_turn)
        self.special_ids = frozenset((*self._special.values(), mask_id))
        unused = {i for i in range(self.vocab_size) if model.is_unknown(i) or model.is_unused(i)}
        self.no_text_ids = frozenset((unused | {self.pad_id}) - {self.eos_id, self.eot_id, mask_id})

    def special_id(self, token: str) -> int | None:
        return self._special.get(token)

    def encode(self, text: str) -> list[int]:
        if SPACE_MARK in text:
            return self.encode_with_offsets(text)[0]
        require_short(self.file, len(text.encode()), self._encoding_growth)
        return self._processor.encode(text)

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        require_short(self.file, len(text.encode()), self._encoding_growth)
        stand_in = _stand_in(text, self._alphabet) if SPACE_MARK in text else SPACE_MARK
        mapping = self._processor.encode_as_offset_mapping(text.replace(SPACE_MARK, stand_in))
        offsets, end = [], len(text)
        for begin, stop in reversed(mapping["offsets"]):
            end = stop if stop > begin else end  # if a character has several byte pieces, all but the last have width 0
            offsets.append((begin, end))
        ids = mapping["ids"]
        return _with_bytes_of_space_mark(ids, stand_in, self._byte_ids) if SPACE_MARK in text else ids, offsets[::-1]

    def _byte_ids(self, character: str) -> list[int | None]:
        return [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in character.encode()]

    def decode(self, ids: Iterable[int]) -> str:
        known = [int(i) for i in ids if i not in self.special_ids and i < self.vocab_size]
        require_short(self.file, len(known) * self._longest, self._decoding_growth)
        return self._processor.decode(known)

    def piece(self, id: int) -> str:
        id = int(id)
        return self._processor.id_to_piece(id).replace("▁", " ") if id < self.vocab_size else "<unused>"


@contextlib.contextmanager
def _one_line_errors(what: str) -> Iterator[None]:
    try:
        yield
    except BaseException as error:  # the library raises Exception or PanicException, a BaseException
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{what}: {first_line(error)}") from None


class HuggingFaceTokenizer:
    """Tokenizer of a tokenizer.json file, or of a vocab.json file with merges.txt beside it. The file tokenizer_config.json in the
    same folder names the special tokens (docs/method.md section 4). `family` is the model's family, or None."""

    def __init__(self, path: str | os.PathLike, mask_id: int, family: Family | None = None):
        path = pathlib.Path(path)
        values = _from_vocabulary(path.parent) if path.name == VOCABULARY else read_json(path)
        self.digest = _digest(json.dumps(values).encode())
        for token in added_tokens(path, values):  # iLLaDA's file does not mark MASK as special, so text could encode to it
            token["special"] = token.get("special", False) or token["id"] == mask_id
        self.file, (self._encoding_growth, self._decoding_growth) = path, growths(path, values)
        dropout = values["model"].get("dropout") if isinstance(values.get("model"), dict) else None
        if dropout:
            raise ValueError(f"{path}: model.dropout={dropout!r} would encode equal texts differently; set it to null")
        with _one_line_errors(f"{path} is not a tokenizer"):
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(values))
        self._tokenizer.encode_special_tokens = True  # encodes names of special tokens as text
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {token.content: id for id, token in added.items() if token.special}
        self._names = {id: name for name, id in self._special.items()}
        self.special_ids = frozenset((*self._names, mask_id))
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        require(vocabulary, f"{path} is not a tokenizer: it has no tokens")
        self.vocab_size = max(vocabulary.values()) + 1
        if self.vocab_size > MOST_IDS:
            raise ValueError(f"{path}: ids up to {self.vocab_size - 1}; at most {MOST_IDS} ids are possible")
        for token in added_tokens(path, values):  # the library ignores these ids and numbers the tokens itself
            if (id := vocabulary.get(token["content"])) != token["id"]:
                raise ValueError(
                    f"{path}: added_tokens gives {token['content']!r:.100} the id {token['id']}, but its id is {id}"
                )
        if len(set(vocabulary.values())) < len(vocabulary):
            raise ValueError(f"{path}: several tokens of the vocabulary have the same id")
        self._alphabet = set("".join(vocabulary))
        self._longest = max(len(token.encode()) for token in vocabulary)
        # True for files that were converted from SentencePiece. Byte-level tokenizers have no such character.
        self._marks_spaces = SPACE_MARK not in self._decoded(self._encoding(SPACE_MARK).ids)
        self.mask_id = mask_id
        named = _named_tokens(path.parent) | ({"eos_token": family.eos} if family and family.eos else {})
        if "eos_token" not in named:
            raise ValueError(f"{path.parent}: neither tokenizer_config.json nor special_tokens_map.json names an eos_token")

        def id_of(key: str) -> int:
            id = self._tokenizer.token_to_id(named[key])
            if id is None:
                raise ValueError(f"{path}: {key}={named[key]!r} is not in the vocabulary")
            return id

        self.eos_id = id_of("eos_token")
        self.pad_id = id_of("pad_token") if "pad_token" in named else self.eos_id
        self.chat = family.chat if family else LLADA_CHAT
        self.eot_id = self._special.get(self.chat.end_of_turn)
        unused = set(range(self.vocab_size)) - {id for token, id in vocabulary.items() if token}
        unknown = _unknown_ids(path, values["model"], vocabulary)
        unknown |= {vocabulary[named["unk_token"]]} if named.get("unk_token") in vocabulary else set()
        self.no_text_ids = frozenset((unused | unknown | {self.pad_id}) - {self.eos_id, self.eot_id, mask_id, None})

    def special_id(self, token: str) -> int | None:
        return self._special.get(token)

    def _encoding(self, text: str) -> tokenizers.Encoding:
        require_short(self.file, len(text.encode()), self._encoding_growth)
        with _one_line_errors(f"{self.file} cannot encode a text"):
            return self._tokenizer.encode(text, add_special_tokens=False)

    def encode(self, text: str) -> list[int]:
        return self.encode_with_offsets(text)[0] if SPACE_MARK in text else self._encoding(text).ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        replaced = SPACE_MARK in text and self._marks_spaces
        stand_in = _stand_in(text, self._alphabet) if replaced else SPACE_MARK
        encoding = self._encoding(text.replace(SPACE_MARK, stand_in))
        # Of characters merged by normalization, the library reports only the first, so a piece ends where the next begins. If
        # two byte-level pieces share a character, the first reports that it ends behind this character.
        offsets, end, next_begin = [], len(text), len(text)
        for begin, stop in reversed(encoding.offsets):
            end = next_begin if begin < next_begin else end
            offsets.append((begin, max(stop, end)))
            next_begin = begin
        ids = encoding.ids
        return _with_bytes_of_space_mark(ids, stand_in, self._byte_ids) if replaced else ids, offsets[::-1]

    def _byte_ids(self, character: str) -> list[int | None]:
        return [self._tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in character.encode()]

    def decode(self, ids: Iterable[int]) -> str:
        return self._decoded([i for i in map(int, ids) if i not in self.special_ids and i < self.vocab_size])

    def _decoded(self, ids: list[int]) -> str:
        require_short(self.file, len(ids) * self._longest, self._decoding_growth)
        with _one_line_errors(f"{self.file} cannot decode tokens"):
            return self._tokenizer.decode(ids)

    def piece(self, id: int) -> str:
        id = int(id)
        if id in self._names:
            return self._names[id]
        return self._decoded([id]) if id < self.vocab_size else "<unused>"


def load_tokenizer(path: str | os.PathLike, mask_id: int | None = None) -> Tokenizer:
    """Loads a tokenizer from a tokenizer.json, vocab.json or *.model file, or from a folder with exactly one such file. In a
    folder, vocab.json is ignored if there are other such files. `mask_id` is the id of MASK. It is not needed for a *.model
    file with the piece <mask>. Raises ValueError if there is no such file, if a folder has several of them, or if the file is
    unusable."""
    path = small_files(path)
    if path.is_dir():
        found = _tokenizer_files(path)
        if len(found) != 1:
            none = "neither tokenizer.json nor vocab.json nor a *.model file; download all files of the model"
            names = ", ".join(file.name for file in found) or f"{none} (hf download MODEL --local-dir DIR)"
            raise ValueError(f"{path} must have one tokenizer, but has {names}")
        [path] = found
    if not path.is_file():
        raise ValueError(f"no tokenizer file {str(path)!r}")
    if path.suffix != ".json":
        return SentencePieceTokenizer(path, mask_id)
    if mask_id is None:
        raise ValueError(f"{path}: the mask id is not known; the model's configuration has it")
    settings = path.with_name("config.json")
    return HuggingFaceTokenizer(path, mask_id, find_family(read_json(settings)) if settings.is_file() else None)


def has_tokenizer(folder: str | os.PathLike) -> bool:
    return bool(_tokenizer_files(small_files(folder)))


def _tokenizer_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files of a folder from which `load_tokenizer` can load a tokenizer. Returns vocab.json only if there is no
    other such file, because transformers may have written a tokenizer.json with the vocabulary of vocab.json."""
    found = sorted([*folder.glob("tokenizer.json"), *folder.glob("*.model")])
    return found or [file for file in (folder / VOCABULARY,) if file.is_file()]


def special_tokens(folder: pathlib.Path) -> dict[str, int]:
    """Returns {text: id} of the added tokens of a tokenizer that has JSON files, or {} if there are none."""
    found = [file for file in _tokenizer_files(folder) if file.suffix == ".json"]
    if not found:
        return {}
    values = _from_vocabulary(folder) if found[0].name == VOCABULARY else read_json(found[0])
    return {token["content"]: token["id"] for token in added_tokens(found[0], values)}


def _added_token(id: int, content: str, special: bool = True, **flags: bool) -> dict[str, Any]:
    known = {name: bool(flags.get(name, False)) for name in ("single_word", "lstrip", "rstrip", "normalized")}
    return {"id": operator.index(id), "content": content, "special": special, **known}


def _from_vocabulary(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the content that a tokenizer.json would have for a byte-level tokenizer of Qwen2's kind. Instead of a
    tokenizer.json, such a tokenizer has the files vocab.json, merges.txt, and added_tokens.json or tokenizer_config.json.
    Raises ValueError if a file is missing or malformed."""
    vocabulary, merges = read_json(folder / VOCABULARY), folder / "merges.txt"
    require(merges.is_file(), f"{merges} is missing; {VOCABULARY} needs it")
    with wrap_read_errors(merges):
        lines = read_bytes(merges).decode("utf-8").replace("\r\n", "\n").split("\n")
    pairs = [line for line in lines if line and not line.startswith("#version")]
    added: dict[str, dict[str, Any]] = {}
    for name in ("added_tokens.json", "tokenizer_config.json"):
        file = folder / name
        values = read_json(file) if file.is_file() else {}
        with wrap_read_errors(file):
            if name == "tokenizer_config.json":
                decoder = values.get("added_tokens_decoder") or {}
                added |= {token["content"]: _added_token(int(id), **token) for id, token in decoder.items()}
            else:
                added |= {text: _added_token(id, text) for text, id in values.items()}
    tokens = sorted(added.values(), key=lambda token: token["id"])
    split = {"type": "Split", "pattern": {"Regex": QWEN_PATTERN}, "behavior": "Isolated", "invert": False}
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0",
        "added_tokens": tokens,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, to_bytes]},
        "decoder": to_bytes,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": pairs},
    }


def ids_never_drawn(tokenizer: Tokenizer, vocab_size: int) -> tuple[tuple[int, int], ...]:
    """Returns the token ids that a sampler should never draw because they have no text. These are the ids of special tokens,
    `no_text_ids`, and ids above those of the tokenizer. The result consists of ascending ranges (first, end), where `end` is
    excluded. `vocab_size` is the number of embeddings of the network, which may be larger than the number of tokens of the
    tokenizer. MASK is not in the result, because the sampler excludes it separately. EOS and ends of a chat turn are not in the
    result, because they may be drawn."""
    excluded = np.zeros(vocab_size + 2, bool)  # one more on each side
    excluded[1 + tokenizer.vocab_size : -1] = True
    excluded[[1 + id for id in tokenizer.special_ids | tokenizer.no_text_ids if id < vocab_size]] = True
    ends = {tokenizer.eos_id, tokenizer.eot_id, *map(tokenizer.special_id, ENDS_OF_TURN)}
    excluded[[1 + id for id in ends | {tokenizer.mask_id} if id is not None]] = False
    changes = np.flatnonzero(excluded[1:] != excluded[:-1]).tolist()
    return tuple(zip(changes[::2], changes[1::2], strict=True))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def warn_of_no_text(tokenizer: Tokenizer, rows: str, ids: Iterable[list[int]]) -> None:
    """Logs a warning if a list of token ids in `ids` contains an id without text. Such an id is in `tokenizer.no_text_ids`, or it
    is larger than all ids of the tokenizer and is not MASK. The warning states how many lists contain such ids. `rows` names
    the lists in the warning, for example "prompts"."""
    known, size = tokenizer.no_text_ids, tokenizer.vocab_size

    def lacks_text(row: list[int]) -> bool:
        above = max(row, default=0) >= size and any(id >= size and id != tokenizer.mask_id for id in row)
        return above or not known.isdisjoint(row)

    found = list(map(lacks_text, ids))
    if any(found):
        reason = "ids without text (the unknown token, padding or unused ids), which the sampler never draws"
        log.warning("%d of %d %s have %s; the first is number %d", sum(found), len(found), rows, reason, found.index(True) + 1)


def _unknown_ids(file: pathlib.Path, model: dict[str, Any], vocabulary: dict[str, int]) -> set[int]:
    """Returns the set of ids of the unknown token that a tokenizer.json names. Unigram models name this token by its id, and
    other models by its text."""
    token, id = model.get("unk_token"), model.get("unk_id") if model.get("type") == "Unigram" else None
    require(token is None or isinstance(token, str), f"{file}: model.unk_token={repr(token)[:100]} is no text")
    valid = id is None or (type(id) is int and 0 <= id < len(vocabulary))
    require(valid, f"{file}: model.unk_id={repr(id)[:100]} is no id of the vocabulary")
    known = [id] if token is None else [id, vocabulary.get(token)]
    return {number for number in known if number is not None}


def added_tokens(file: pathlib.Path, values: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the added tokens of a tokenizer.json, each with `id` and `content`. Raises ValueError if an added token is
    malformed."""
    added = values.get("added_tokens", [])
    if not isinstance(added, list):
        raise ValueError(f"{file}: added_tokens is {type(added).__name__}, not a list")
    for number, token in enumerate(added):
        if not isinstance(token, dict) or type(token.get("id")) is not int or not isinstance(token.get("content"), str):
            raise ValueError(f"{file}: entry {number} (from 0) of added_tokens is no token with id and content")
    return added


def _named_tokens(folder: pathlib.Path) -> dict[str, str]:
    """Returns the special tokens that the files of a tokenizer name, as {"eos_token": text, "pad_token": text, ...}. If both
    tokenizer_config.json and special_tokens_map.json name a token, the name in tokenizer_config.json is used."""
    named: dict[str, str] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / file).is_file():
            for key, value in read_json(folder / file).items():
                value = value.get("content") if isinstance(value, dict) else value
                if isinstance(value, str):
                    named[key] = value
    return named


def train_sentencepiece(texts: Iterable[str], path: str | os.PathLike, *, kind: str, vocab_size: int) -> None:
    """Trains a SentencePiece model deterministically and writes the model file atomically. `kind` is "char", "unigram" or
    "bpe". `vocab_size` is the maximum number of pieces. Text is neither normalized nor prefixed with a space, so decoding
    inverts encoding. Characters outside of the training alphabet are encoded as bytes, or as the unknown token if `kind` is
    "char". The characters ▁ and ▅ are encoded in the same way, because SentencePiece reserves them. Raises ValueError if
    `vocab_size` is too small for the alphabet, if a text is too long, if there is no text, or if SentencePiece fails."""
    texts = [part for text in texts for part in RESERVED.split(text)]
    if not any(NO_TEXT.sub("", text) for text in texts):
        raise ValueError("no text to train a tokenizer on")
    longest = max(len(text.encode()) for text in texts)
    if longest > MAX_TEXT_BYTES:
        raise ValueError(f"a text of {longest} bytes; SentencePiece would silently drop those above {MAX_TEXT_BYTES}")
    # Without this check, kind `char` silently drops rare characters, and the other kinds fail with internal messages.
    least = len(set("".join(texts)) | {"\n"}) + UNKNOWN + 1 + (0 if kind == "char" else 256)
    if vocab_size < least:
        raise ValueError(f"tokenizer.vocab_size={vocab_size} is too small for these texts; kind {kind} needs {least}")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=model, model_type=kind, vocab_size=vocab_size, hard_vocab_limit=False,
            character_coverage=1.0, byte_fallback=kind != "char", normalization_rule_name="identity", add_dummy_prefix=False,
            remove_extra_whitespaces=False, split_digits=True, allow_whitespace_only_pieces=True, user_defined_symbols=["\n"],
            control_symbols=["<mask>"], pad_id=PAD, pad_piece="<pad>", eos_id=EOS, eos_piece="<eos>", unk_id=UNKNOWN, bos_id=-1,
            num_threads=1, max_sentence_length=MAX_TEXT_BYTES, minloglevel=2,
        )  # fmt: skip
    except RuntimeError as error:
        reason = f"SentencePiece cannot train a tokenizer of kind {kind} on these texts"
        raise ValueError(f"{reason}: {first_line(error)}") from None
    atomic_write(pathlib.Path(path), model.getvalue())
