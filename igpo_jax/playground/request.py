"""Parses and checks requests, before they wait for the device."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from igpo_jax.api import BLANK, Completion, DiffusionLM
from igpo_jax.diffusion.unmasking import DecodeConfig

LIMITS = {"prompt_tokens": 2048, "completion_length": 1024, "steps": 1024}
LARGEST_NUMBER = 2**31  # if no other limit applies

DECODING = {name: field.type for name, field in DecodeConfig.__dataclass_fields__.items()}
KINDS: dict[str, Any] = {"prompt": str, "chat": bool, "hint": str, "template": str, "seed": int} | DECODING
NAMES = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}


def parse_request(request: Any, model: DiffusionLM) -> Callable[..., list[Completion]]:
    """Returns `model.generate`, or with a template `model.infill`, with all arguments except `watch`.

    Args:
        request: an object with keys of `KINDS`, all optional except the lengths of a completion.

    Raises:
        ValueError: a key is unknown, or a value is invalid, above its `LIMITS` or rejected by the model.
    """
    if not isinstance(request, dict):
        raise ValueError("the request is not a JSON object")
    for name, value in request.items():
        if name not in KINDS:
            raise ValueError(f"{name[:40]!r} is none of {', '.join(KINDS)}")
        check_kind(name, value)
    decoding = {name: value for name, value in request.items() if name in DECODING}
    seed = request.get("seed", 0)
    if seed < 0:
        raise ValueError(f"seed={seed} must not be negative")
    prompt = model.encode(request.get("prompt", ""), request.get("chat", False))
    at_most("prompt_tokens", len(prompt))
    if "template" in request:
        at_most("completion_length", sum(int(blank[1] or 1) for blank in BLANK.finditer(request["template"])))
        if "completion_length" in decoding or "block_length" in decoding:
            raise ValueError("a template has its own length; leave out completion_length and block_length")
        canvas = model.encode_template(request["template"])
        length, blanks = len(canvas), canvas.count(model.config.mask_id)
        check_decoding({"steps": blanks} | decoding | {"completion_length": length, "block_length": length}, model.decode)
        return functools.partial(model.infill, [canvas], prompts=[prompt], seed=seed, **decoding)
    missing = [name for name in ("completion_length", "block_length") if name not in decoding]
    if missing:
        raise ValueError(f"{' and '.join(missing)} must be given")
    check_decoding({"steps": decoding["completion_length"]} | decoding, model.decode)
    hint = model.encode(request.get("hint", ""))
    if len(hint) > decoding["completion_length"]:
        raise ValueError(f"hint has {len(hint)} tokens, completion_length={decoding['completion_length']}")
    return functools.partial(model.generate, [prompt], hint=hint, seed=seed, **decoding)


def check_kind(name: str, value: Any) -> None:
    kind = KINDS[name]
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise ValueError(f"{name}={str(value)[:40]!r} is not {NAMES[kind]}")
    if kind in (int, float) and not -LARGEST_NUMBER < value < LARGEST_NUMBER:  # rejects NaN, too
        raise ValueError(f"{name}={str(value)[:40]} must be a number below {LARGEST_NUMBER}")
    if kind is str:
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{name} has half of a surrogate pair") from None


def check_decoding(decoding: dict[str, Any], default: DecodeConfig) -> None:
    for name in ("completion_length", "steps"):
        at_most(name, decoding[name])
    dataclasses.replace(default, **decoding)


def at_most(name: str, number: int) -> None:
    if number > LIMITS[name]:
        raise ValueError(f"{name}={number}; the playground takes at most {LIMITS[name]}")
