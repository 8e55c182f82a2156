"""Hostile versions of a file: bytes that are flipped, cut, duplicated or inserted, and JSON values that are changed."""

import json
import random
from collections.abc import Sequence
from typing import Any

DEEP, DIGITS, HUGE, TWICE = "@deep@", "@digits@", "@huge@", "@twice@"
RAW = {
    f'"{DEEP}"': "[" * 20_000 + "]" * 20_000,
    f'"{DIGITS}"': "9" * 20_000,
    f'"{HUGE}"': "1e999",
}  # not produced by json.dumps
VALUES = [
    None, True, False, 0, 1, -1, 2, 7, 2**31, 2**60, -(2**63), 10**400, 0.5, 1e300, float("nan"), float("inf"),
    "", "x", "8", "a\nb", "\x1b[2J", "\x00", "\ud800", "\u2028", "\ufeff", "../x", "{question}", "\u0663", "9" * 5000, "\\boxed{",
    [], {}, [[]], [None], {"": {}}, [1, 2, 3], ["x"], {"x": 1}, DEEP, DIGITS, HUGE,
    [2**60, 0], [[1], [2]], {"id": None},
]  # fmt: skip
PIECES = [
    b"\x00", b"\xff", b"\xef\xbb\xbf", b"\r\n", b"\n", b"\r", b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"\\ud800",
    b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"[" * 2000, b"{\"a\":" * 2000, b" " * 3000, b"\xe2\x80\xa8", b"\xed\xa0\x80",
    b"\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x00\x00\x00\x00\x00\x00\x00\x10", b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
    b"[MASK:999999999]", b"[MASK]", b"\\boxed{" * 300, b"<answer>" * 300, b"####", b"<|eot_id|>",
]  # fmt: skip


def mutated(content: bytes, draw: random.Random) -> bytes:
    """Returns the content with one to three changes."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        change = draw.choice((change_json, change_json, change_json, change_bytes))
        content = change(content, draw)
    return content


def change_bytes(content: bytes, draw: random.Random) -> bytes:
    begin = draw.randint(0, len(content))
    end = min(len(content), begin + draw.choice((0, 1, 1, 8, 100)))
    match draw.randrange(5):
        case 0:
            return content[:begin]
        case 1:
            return content[:begin] + bytes(byte ^ 1 << draw.randrange(8) for byte in content[begin:end]) + content[end:]
        case 2:
            return content[:end] + content[begin:]
        case 3:
            return content[:begin] + content[end:]
        case _:
            return content[:begin] + draw.choice(PIECES) + content[end:]


def change_json(content: bytes, draw: random.Random, values: Sequence[Any] = VALUES) -> bytes:
    """Changes a value of a JSON file, of a JSON line or of a safetensors header, possibly to one of `values`. Changes bytes
    instead if the content has no JSON value to change."""
    length = int.from_bytes(content[:8], "little")
    if 2 <= length <= len(content) - 8:
        header = change_json(content[8 : 8 + length], draw, values) if content[8:9] == b"{" else content[8 : 8 + length]
        claimed = draw.choice((len(header),) * 8 + (2**60, 2**64 - 1, 0, max(len(header) - 1, 0)))
        return claimed.to_bytes(8, "little") + header + content[8 + length :]
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        lines = content.split(b"\n")
        number = draw.randrange(len(lines))
        if len(lines) > 1 and lines[number]:
            lines[number] = change_json(lines[number], draw, values)
            return b"\n".join(lines)
        return change_bytes(content, draw)
    try:
        text = json.dumps(_changed(value, draw, values))
    except (ValueError, RecursionError):
        return change_bytes(content, draw)
    for mark, raw in (*RAW.items(), (TWICE, "")):
        text = text.replace(mark, raw)
    return text.encode("utf-8", "surrogatepass")


def _changed(value, draw: random.Random, values: Sequence[Any]):
    """Changes, removes or duplicates one random value."""
    parent, key, place = None, None, value
    while isinstance(place, dict | list) and place and (parent is None or draw.random() < 0.8):
        keys = list(place) if isinstance(place, dict) else range(len(place))
        parent, key = place, draw.choice(keys)
        place = parent[key]
    if parent is None:
        return draw.choice(values)
    match draw.randrange(8):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, dict) and draw.random() < 0.5:
            parent[TWICE + key] = draw.choice(values)
        case 1 if isinstance(parent, dict):
            parent[draw.choice(("x", "", "\x00", "\ud800", "__metadata__", "a\nb", key + "x"))] = parent.pop(key)
        case 1:
            parent.insert(key, place)
        case 2:
            parent[key] = [place]
        case 3 if isinstance(place, str):
            parent[key] = place[: draw.randint(0, len(place))] + draw.choice(PIECES).decode("utf-8", "replace") + place
        case 3 if isinstance(place, int | float):
            parent[key] = draw.choice((-place, place + 1, place * 10, str(place), 0.5))
        case _:
            parent[key] = draw.choice(values)
    return value
