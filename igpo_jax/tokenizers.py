"""SentencePiece behind a small protocol."""

import io
import os
import pathlib
from collections.abc import Iterable
from typing import Protocol

import sentencepiece

from igpo_jax.runtime.files import write_whole

PAD, EOS, MASK = 0, 1, 2
SPECIALS = {PAD: "<pad>", EOS: "<eos>", MASK: "<mask>"}
LONGEST_SENTENCE = 1 << 16  # bytes; SentencePiece drops longer ones from its training text


class Tokenizer(Protocol):
    """What the rest of the package needs. Text never encodes to a special id."""

    vocab_size: int
    pad_id: int
    eos_id: int
    mask_id: int

    def encode(self, text: str) -> list[int]: ...

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids, and begin and end of each piece in `text`, in characters."""

    def decode(self, ids: Iterable[int]) -> str:
        """Text of all ids; special and unused ids have none."""

    def piece(self, id: int) -> str:
        """One id for display."""


class SentencePieceTokenizer:
    def __init__(self, path: str):
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            raise ValueError(f"{path} is not a SentencePiece model: {error}") from None
        pieces = [self._processor.id_to_piece(i) for i in range(min(3, self._processor.vocab_size()))]
        if pieces != list(SPECIALS.values()):
            raise ValueError(f"{path}: the first pieces are {pieces}, not {list(SPECIALS.values())}")
        self.vocab_size = self._processor.vocab_size()
        self.pad_id, self.eos_id, self.mask_id = PAD, EOS, MASK

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
        return self._processor.decode([int(i) for i in ids if i not in SPECIALS and i < self.vocab_size])

    def piece(self, id: int) -> str:
        id = int(id)
        if id in SPECIALS:
            return SPECIALS[id]
        return self._processor.id_to_piece(id).replace("▁", " ") if id < self.vocab_size else "<unused>"


def load_tokenizer(path: str | os.PathLike) -> Tokenizer:
    """A trained `*.model` file.

    Raises:
        ValueError: no such file, or not a model that `train_sentencepiece` wrote.
    """
    if not pathlib.Path(path).is_file():
        raise ValueError(f"no tokenizer file {str(path)!r}")
    return SentencePieceTokenizer(str(path))


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
    write_whole(pathlib.Path(path), model.getvalue())
