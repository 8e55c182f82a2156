"""Limits how much a tokenizer.json or a SentencePiece model can lengthen a text, and how long the encoding of a text can take.
The file may come from an untrusted source. The library that reads it applies all rules of the file in one call, which no signal
can interrupt. Without limits, forty rules that each double a text would fill the memory, and a vocabulary with nested pieces
(a, aa, aaa) of all lengths up to 3000 would take minutes."""

import base64
import math
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from igpo_jax.runtime.checks import require

# Output bytes per input byte. Bounds of real files reach 10^4 (ALBERT); those of LLaDA, Qwen and Llama are below 50.
MOST_GROWTH = 1 << 14
MOST_BYTES = 1 << 25  # of a text after all rules; the library needs about 100 bytes of memory per byte
# The next constants limit the time per byte of a text. Without rules and long pieces, the library takes about 0.5 µs.
MOST_RULES = 64  # in each part of tokenizer.json; a rule takes 0.02 to 0.2 µs. ALBERT's seven normalizers are unusually many
# Total bytes of a chain of pieces, each a prefix of the next; 1 to 4 ns for each byte. If the longest piece has 16 characters,
# as by default in SentencePiece, a chain has at most 4 * (1 + ... + 16) = 544 bytes.
MOST_NESTED = 1 << 12
MOST_WORD = 256  # characters of a word for WordPiece, which tries all parts of a word; BERT has 100
MOST_KEY = 64  # bytes of a key in SentencePiece's character map; 2 ns each. The keys of nmt_nfkc have at most 12
MOST_TABLE = 1 << 22  # bytes of a character map; nmt_nfkc has 240 kB
MOST_AFFIX = 64  # bytes of a prefix or suffix, which are copied for each character; BERT has 2
MOST_PIECES = 1 << 23  # total bytes of a Unigram model's pieces; each takes up to 360 bytes of memory. mT5 has 250,000 pieces
MOST_ADDED = 1 << 20  # total bytes of normalized added tokens; reading takes up to 8 µs each. LLaDA's 300 tokens have a few kB
Rule = dict[str, Any]
PARTS = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "post_processor": "processors", "decoder": "decoders"}


def growths(file: pathlib.Path, values: dict[str, Any]) -> tuple[float, float]:
    """Returns (encoding, decoding): upper bounds on the factors by which the rules of a tokenizer.json can lengthen a text when
    it is encoded and decoded. Raises a ValueError that names the file if a bound is above `MOST_GROWTH`, if a rule has an
    unknown type, or if the rules or the model may be slow."""
    _require_quick(file, values.get("model"))
    _require_prefixes(file, values.get("model"))
    bounds = {}
    for part, children in PARTS.items():
        bounds[part] = math.prod(_growth(file, part, rule) for rule in _rules(file, part, values.get(part), children))
    encoding = math.prod(bound for part, bound in bounds.items() if part != "decoder")
    _require_bounded(file, encoding, bounds["decoder"])
    added, length = [token["content"] for token in values.get("added_tokens", [])], 0.0
    for token in values.get("added_tokens", []):
        strips = (token.get("lstrip") or token.get("rstrip")) and token["content"] != token["content"].strip()
        slow = (
            f"{file}: the added token {token['content'][:100]!r} begins or ends with white space, and lstrip or rstrip is set"
        )
        require(not strips, f"{slow}; this takes quadratic time")
        # The library normalizes the token when it reads the file.
        length += len(token["content"].encode()) * (bounds["normalizer"] if token.get("normalized", True) else 1)
    most = f"normalized, the added tokens may have {length:.0f} bytes; at most {MOST_ADDED} are possible"
    require(length <= MOST_ADDED, f"{file}: {most}")
    _require_little_nesting(file, added)
    return encoding, bounds["decoder"]


def sentencepiece_growths(file: pathlib.Path, model: bytes) -> tuple[float, float]:
    """Returns (encoding, decoding): upper bounds on the factors by which a serialized SentencePiece model can lengthen a text
    when it is encoded and decoded. Raises a ValueError that names the file if a bound is above `MOST_GROWTH`, or if the model
    may be slow."""
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2.ModelProto.FromString(model)  # type: ignore[attr-defined]
    _require_little_nesting(file, (piece.piece for piece in proto.pieces))
    for spec in (proto.normalizer_spec, proto.denormalizer_spec):
        length = len(spec.precompiled_charsmap)
        require(length <= MOST_TABLE, f"{file}: a character map has {length} bytes; at most {MOST_TABLE} are possible")
        long = _has_long_keys(spec.precompiled_charsmap)
        require(not long, f"{file}: a character map has keys of more than {MOST_KEY} bytes; SentencePiece would be slow")
    encoding = 6 * _longest_replacement(proto.normalizer_spec.precompiled_charsmap)  # a space takes 3 bytes, and one is added
    # One byte of input may become an unknown token, which is decoded as `unk_surface`.
    surface = len(proto.trainer_spec.unk_surface.encode())
    decoding = max(1, surface) * _longest_replacement(proto.denormalizer_spec.precompiled_charsmap)
    _require_bounded(file, encoding, decoding)
    return encoding, decoding


def _require_bounded(file: pathlib.Path, encoding: float, decoding: float) -> None:
    for verb, bound in {"encoding": encoding, "decoding": decoding}.items():
        require(bound <= MOST_GROWTH, f"{file}: {verb} may lengthen a text by a factor of {bound:.3g}, above {MOST_GROWTH}")


def require_short(file: object, length: int, growth: float) -> None:
    """Raises ValueError if a text of `length` bytes may exceed `MOST_BYTES` after encoding or decoding, which lengthens the
    text by at most the factor `growth`. The error message names `file`, which holds the tokenizer."""
    bound = f"the rules of {file} may lengthen a text of {length} bytes by a factor of {growth:g}"
    require(max(1, length) * growth <= MOST_BYTES, f"{bound}, to more than {MOST_BYTES >> 20} MiB; give a shorter text")


def _require_quick(file: pathlib.Path, model: Any) -> None:
    """Raises ValueError if the model in a tokenizer.json may make encoding slow. Does not check fields of a wrong type, because
    the library that reads the file checks them."""
    fields = model if isinstance(model, dict) else {}
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        length = len(str(fields.get(key)).encode())
        require(length <= MOST_AFFIX, f"{file}: model.{key} has {length} bytes; at most {MOST_AFFIX} are possible")
    word = fields.get("max_input_chars_per_word")
    if isinstance(word, int):
        require(word <= MOST_WORD, f"{file}: model.max_input_chars_per_word is above {MOST_WORD}")
    if isinstance(fields.get("vocab"), list):  # Unigram
        pieces = [entry[0] for entry in fields["vocab"] if isinstance(entry, list) and entry and isinstance(entry[0], str)]
        length = sum(len(piece.encode()) for piece in pieces)
        require(length <= MOST_PIECES, f"{file}: the pieces have {length} bytes; at most {MOST_PIECES} are possible")
        _require_little_nesting(file, pieces)


def _require_prefixes(file: pathlib.Path, model: Any) -> None:
    """Raises ValueError if the model of a tokenizer.json has a prefix for pieces inside of words, and the second part of a
    merge lacks it. The library would panic. Does not check fields of a wrong type, because the library checks them."""
    fields = model if isinstance(model, dict) else {}
    prefix, merges = fields.get("continuing_subword_prefix"), fields.get("merges")
    if not (prefix and isinstance(prefix, str) and isinstance(merges, list)):
        return
    for merge in merges:
        parts = merge.split(" ") if isinstance(merge, str) else merge
        lacks = isinstance(parts, list) and len(parts) == 2 and isinstance(parts[1], str) and not parts[1].startswith(prefix)
        require(not lacks, f"{file}: the merge {merge!r:.100} lacks model.continuing_subword_prefix={prefix!r}")


def _require_little_nesting(file: pathlib.Path, pieces: Iterable[str]) -> None:
    """Raises ValueError if a chain of pieces or added tokens, each a prefix of the next (a, aa, aaa), has more than
    `MOST_NESTED` bytes in total. Long chains are slow, because the library tries all matching pieces at each position of a
    text."""
    nested: list[bytes] = []
    length = 0
    for piece in sorted({piece.encode() for piece in pieces}):
        while nested and not piece.startswith(nested[-1]):
            length -= len(nested.pop())
        nested.append(piece)
        length += len(piece)
        if length > MOST_NESTED:
            start = f"{file}: pieces that begin with each other, up to {piece.decode()!r:.40}"
            raise ValueError(f"{start}, have more than {MOST_NESTED} bytes together")


def _rules(file: pathlib.Path, part: str, rule: Any, children: str) -> list[Rule]:
    """Returns all rules in one part of a tokenizer.json as a flat list. A rule of the type Sequence comes before the rules that
    it contains. `children` is the key under which a Sequence lists its rules."""
    rules: list[Rule] = []
    left = [] if rule is None else [rule]
    while left:
        rule = left.pop()
        kind: Any = rule.get("type") if isinstance(rule, dict) else None
        inner = rule.get(children, []) if kind == "Sequence" else []
        known = isinstance(kind, str) and kind in {*FIXED, *MEASURED} and isinstance(inner, list)
        if not known:
            raise ValueError(f"{file}: {part}: no known type of rule: {rule!r:.100}")
        # The library would panic: in FixedLength at every text, in Strip at every token that consists of stripped characters.
        require(kind != "FixedLength" or rule.get("length") != 0, f"{file}: {part}: FixedLength has the length 0")
        strips = part == "decoder" and kind == "Strip" and rule.get("stop")
        require(not strips, f"{file}: {part}: Strip at the end of tokens is not supported; set stop to 0")
        rules.append(rule)
        left += inner
        require(len(rules) + len(left) <= MOST_RULES, f"{file}: {part}: more than {MOST_RULES} rules")
    return rules


def _growth(file: pathlib.Path, part: str, rule: Rule) -> float:
    """Returns an upper bound on the factor by which one rule can lengthen a text."""
    kind = rule["type"]
    if kind in FIXED or (part == "post_processor" and kind != "TemplateProcessing"):
        return float(FIXED.get(kind, 1))
    try:
        return float(max(1, MEASURED[kind](rule)))  # the product of large integers would be slow; that of floats may be inf
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: {part}: no rule of type {kind}: {rule!r:.100} ({error})") from None


def _replace(rule: Rule) -> float:
    [(kind, pattern)] = rule["pattern"].items()
    content = len(rule["content"].encode())
    if kind == "String":
        require(pattern, "its pattern is empty")  # the library panics at an empty pattern
        return content / len(pattern.encode())
    return 1 + 2 * content  # a regular expression can match before and after every character


def _template(rule: Rule) -> float:
    # Special tokens are not added. The library would repeat a text in chunks that take hundreds of bytes for each byte of it.
    texts = sum(isinstance(piece, dict) and "Sequence" in piece for piece in rule["single"])
    return math.inf if texts > 1 else 1


def _precompiled(rule: Rule) -> float:
    text = rule["precompiled_charsmap"]
    charsmap = base64.b64decode(text, validate=True)
    size = int.from_bytes(charsmap[:4], "little")
    # The library panics at other base64, at a table that is cut off, and at replacements that are not UTF-8.
    whole = base64.b64encode(charsmap).decode() == text and size % 4 == 0 and 4 + size <= len(charsmap)
    require(whole, "its character map is damaged")
    charsmap[4 + size :].decode("utf-8")
    return _longest_replacement(charsmap)


def _longest_replacement(charsmap: bytes) -> int:
    """Returns the length in bytes of the longest replacement in SentencePiece's precompiled_charsmap, or 1 if all replacements
    are empty. `charsmap` consists of the size of a table (4 bytes), the table, and the replacements, each of which ends with a
    zero byte."""
    begin = 4 + int.from_bytes(charsmap[:4], "little")
    return max(1, *map(len, charsmap[begin:].split(b"\0")))


def _has_long_keys(charsmap: bytes) -> bool:
    """Returns whether the table of a precompiled_charsmap has keys of more than `MOST_KEY` bytes. Long keys make SentencePiece
    slow, because at each position of a text it follows the table for as long as the text matches a key. The table is a
    double-array trie of the library Darts-clone. Each of its uint32 units holds a label (bits 0 to 7; bit 31 is set in units
    that hold a value) and an offset (bits 10 to 30, times 256 if bit 9 is set)."""
    table = charsmap[4 : 4 + int.from_bytes(charsmap[:4], "little")]
    units = np.frombuffer(table, "<u4", len(table) // 4).astype(np.int64)
    places = np.arange(len(units))
    offsets = (units >> 10) << ((units & 0x200) >> 6)
    # One unit is a child of another if its value in `parents` equals the value of the other in `bases`.
    bases, parents = places ^ offsets, places ^ (units & 0x800000FF)
    limit = len(units) + 256
    places, parents = places[parents < limit], parents[parents < limit]
    reached = places[:1] * 0
    for _ in range(MOST_KEY + 1):
        is_base = np.zeros(limit, bool)
        is_base[bases[reached][bases[reached] < limit]] = True
        reached = places[is_base[parents]]
    return bool(reached.size)


# Upper bounds on the factor by which a rule that contains no text of its own lengthens a text. In NFKC and NFKD, the longest
# decomposition is that of U+FDFA, which turns 3 bytes into 33. In NFC and NFD, the largest factor is 3. Lowercase can turn 2
# bytes into 3.
FIXED: dict[str, float] = dict.fromkeys(
    ("Sequence", "Strip", "StripAccents", "Nmt", "Split", "Punctuation", "Whitespace", "WhitespaceSplit", "Digits",
     "UnicodeScripts", "CharDelimiterSplit", "BertPreTokenizer", "FixedLength", "RobertaProcessing", "BertProcessing", "Fuse",
     "ByteFallback"), 1,
) | {
    "NFC": 3, "NFD": 3, "NFKC": 11, "NFKD": 11, "Lowercase": 1.5,
    "BertNormalizer": 3 * 1.5 * 5 / 3,  # NFD, lowercase, and a space on both sides of characters of 3 bytes
    "BPEDecoder": 3, "CTC": 9, "WordPiece": 2,  # a space around each character, or between tokens
}  # fmt: skip
MEASURED: dict[str, Callable[[Rule], float]] = {
    "Replace": _replace,
    "Prepend": lambda rule: 1 + len(rule["prepend"].encode()),
    "Precompiled": _precompiled,
    "ByteLevel": lambda rule: 4 if rule.get("add_prefix_space", True) else 2,  # 1 byte becomes 2; a space before each piece
    "Metaspace": lambda rule: 2 * len(rule["replacement"].encode()),  # for a space, and before each piece
    "TemplateProcessing": _template,
}
