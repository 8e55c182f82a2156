"""Bounds how much the rules of a tokenizer.json or a SentencePiece model lengthen a text. The file may come from a stranger, and
one call of a library, which no signal interrupts, applies all of them: forty rules that double a text would fill the memory."""

import base64
import math
import pathlib
from collections.abc import Callable
from typing import Any

from igpo_jax.runtime.checks import require

MOST_GROWTH = (
    1 << 14
)  # bytes per byte; bounds of real files reach 10^4 (ALBERT), and those of LLaDA, Qwen and Llama are below 50
MOST_BYTES = 1 << 25  # of a text after the rules; the library needs about 100 bytes for each
Rule = dict[str, Any]
PARTS = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "post_processor": "processors", "decoder": "decoders"}


def growths(file: pathlib.Path, values: dict[str, Any]) -> tuple[float, float]:
    """Returns upper bounds for the bytes that the rules of a tokenizer.json make of a byte, in encoding and in decoding. Raises a
    ValueError that names the file if one is above `MOST_GROWTH`, or if there is a rule of an unknown type."""
    bounds = {}
    for part, children in PARTS.items():
        bounds[part] = _growth(file, part, values.get(part), children)
    encoding = math.prod(bound for part, bound in bounds.items() if part != "decoder")
    _require_bounded(file, encoding, bounds["decoder"])
    # The library normalizes the added tokens when it reads the file.
    require_short(file, sum(len(token["content"].encode()) for token in values.get("added_tokens", [])), encoding)
    return encoding, bounds["decoder"]


def sentencepiece_growths(file: pathlib.Path, model: bytes) -> tuple[float, float]:
    """Returns and checks the bounds of a serialized SentencePiece model, as `growths` does."""
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2.ModelProto.FromString(model)  # type: ignore[attr-defined]
    encoding = 6 * _longest_replacement(proto.normalizer_spec.precompiled_charsmap)  # 3 bytes mark a space, one is added
    # One byte of input may become an unknown token, which is decoded as `unk_surface`.
    surface = len(proto.trainer_spec.unk_surface.encode())
    decoding = max(1, surface) * _longest_replacement(proto.denormalizer_spec.precompiled_charsmap)
    _require_bounded(file, encoding, decoding)
    return encoding, decoding


def _require_bounded(file: pathlib.Path, encoding: float, decoding: float) -> None:
    for verb, bound in {"encoding": encoding, "decoding": decoding}.items():
        require(bound <= MOST_GROWTH, f"{file}: {verb} may lengthen a text by a factor of {bound:.3g}, above {MOST_GROWTH}")


def require_short(file: object, length: int, growth: float) -> None:
    """Raises ValueError if a text of `length` bytes may have more than `MOST_BYTES` after rules that lengthen it by `growth`."""
    bound = f"the rules of {file} may lengthen a text of {length} bytes by a factor of {growth:g}"
    require(max(1, length) * growth <= MOST_BYTES, f"{bound}, to more than {MOST_BYTES >> 20} MiB; give a shorter text")


def _growth(file: pathlib.Path, part: str, rule: Any, children: str) -> float:
    """Returns the bound of one rule, or of a sequence of rules. `children` is the key of the rules in a sequence."""
    if rule is None:
        return 1
    kind: Any = rule.get("type") if isinstance(rule, dict) else None
    inner = rule.get(children, []) if kind == "Sequence" else []
    known = isinstance(kind, str) and kind in {"Sequence", *FIXED, *MEASURED} and isinstance(inner, list)
    require(known, f"{file}: {part}: no known type of rule: {rule!r:.100}")
    if kind == "Sequence":
        return math.prod(_growth(file, part, one, children) for one in inner)
    if kind in FIXED or (part == "post_processor" and kind != "TemplateProcessing"):
        return float(FIXED.get(kind, 1))
    try:
        return float(max(1, MEASURED[kind](rule)))  # a product of floats may be infinite, and one of integers is slow
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: {part}: no rule of type {kind}: {rule!r:.100} ({error})") from None


def _replace(rule: Rule) -> float:
    [(kind, pattern)] = rule["pattern"].items()
    content = len(rule["content"].encode())
    # An expression or an empty text can match at both sides of every character.
    return content / len(pattern.encode()) if kind == "String" and pattern else 1 + 2 * content


def _precompiled(rule: Rule) -> float:
    return _longest_replacement(base64.b64decode(rule["precompiled_charsmap"] or "", validate=True))


def _longest_replacement(charsmap: bytes) -> int:
    """Returns the bytes of the longest replacement in SentencePiece's precompiled_charsmap, at least 1. The blob has a table,
    after its size in 4 bytes, and then the replacements, each with a zero byte at its end."""
    begin = 4 + int.from_bytes(charsmap[:4], "little")
    return max(1, *map(len, charsmap[begin:].split(b"\0")))


# Bytes made of one byte by rules that have no texts of their own. Unicode's longest decompositions are those of U+FDFA, 33 bytes
# for 3, in NFKC and NFKD, and 3 bytes for one in NFC and NFD. Lowercase makes 3 bytes of 2.
FIXED: dict[str, float] = dict.fromkeys(
    ("Strip", "StripAccents", "Nmt", "Split", "Punctuation", "Whitespace", "WhitespaceSplit", "Digits", "UnicodeScripts",
     "CharDelimiterSplit", "BertPreTokenizer", "FixedLength", "RobertaProcessing", "BertProcessing", "Fuse", "ByteFallback"), 1,
) | {
    "NFC": 3, "NFD": 3, "NFKC": 11, "NFKD": 11, "Lowercase": 1.5,
    "BertNormalizer": 3 * 1.5 * 5 / 3,  # NFD, lowercase, and a space on both sides of characters of 3 bytes
    "BPEDecoder": 3, "CTC": 9, "WordPiece": 2,  # a space around each character, or between tokens
}  # fmt: skip
MEASURED: dict[str, Callable[[Rule], float]] = {
    "Replace": _replace,
    "Prepend": lambda rule: 1 + len(rule["prepend"].encode()),
    "Precompiled": _precompiled,
    "ByteLevel": lambda rule: 4 if rule.get("add_prefix_space", True) else 2,  # 2 bytes of 1; a space before each piece
    "Metaspace": lambda rule: 2 * len(rule["replacement"].encode()),  # for a space, and before each piece
    "TemplateProcessing": lambda rule: len(rule["single"]),  # repeats the text; special tokens are not added
}
