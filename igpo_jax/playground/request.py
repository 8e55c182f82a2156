"""Parses and checks requests for a completion. Only valid requests enter the queue of the playground's server."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from igpo_jax.api import BLANK, Completion, DiffusionLM
from igpo_jax.diffusion.unmasking import DecodeConfig
from igpo_jax.runtime.checks import require

LIMITS = {"prompt_tokens": 2048, "completion_length": 1024, "steps": 1024}
LARGEST_NUMBER = 2**31  # if no other limit applies

DECODING = {name: field.type for name, field in DecodeConfig.__dataclass_fields__.items()}
KINDS: dict[str, Any] = {"prompt": str, "chat": bool, "hint": str, "template": str, "seed": int} | DECODING
NAMES = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}


def parse_request(request: Any, model: DiffusionLM) -> Callable[..., list[Completion]]:
    """Checks a request for a completion, and returns a function that generates the completion. The function is `model.infill`
    if the request has a template, otherwise `model.generate`. All its arguments except `watch` are already bound. The keys of
    `request` are keys of `KINDS`. All keys are optional, but a request without a template must have completion_length and
    block_length. Raises ValueError if a key is unknown, or if a value is invalid, above its limit in `LIMITS`, or rejected by
    the model."""
    require(isinstance(request, dict), "the request is not a JSON object")
    for name, value in request.items():
        require(name in KINDS, f"{name[:40]!r} is none of {', '.join(KINDS)}")
        check_kind(name, value)
    decoding = {name: value for name, value in request.items() if name in DECODING}
    seed = request.get("seed", 0)
    require(seed >= 0, f"seed={seed} must not be negative")
    prompt = model.encode(request.get("prompt", ""), request.get("chat", False))
    at_most("prompt_tokens", len(prompt))
    if "template" in request:
        at_most("completion_length", sum(int(blank[1] or 1) for blank in BLANK.finditer(request["template"])))
        own = "a template has its own length; leave out completion_length and block_length"
        require("completion_length" not in decoding and "block_length" not in decoding, own)
        canvas = model.encode_template(request["template"])
        length, blanks = len(canvas), canvas.count(model.config.mask_id)
        check_decoding({"steps": blanks} | decoding | {"completion_length": length, "block_length": length}, model.decode)
        return functools.partial(model.infill, [canvas], prompts=[prompt], seed=seed, **decoding)
    missing = [name for name in ("completion_length", "block_length") if name not in decoding]
    require(not missing, f"{' and '.join(missing)} must be given")
    check_decoding({"steps": decoding["completion_length"]} | decoding, model.decode)
    hint, length = model.encode(request.get("hint", "")), decoding["completion_length"]
    require(len(hint) <= length, f"hint has {len(hint)} tokens, completion_length={length}")
    return functools.partial(model.generate, [prompt], hint=hint, seed=seed, **decoding)


def check_kind(name: str, value: Any) -> None:
    """Raises ValueError if the value of a request's key does not have the type given in `KINDS`, is too large, or is not valid
    Unicode."""
    kind, shown = KINDS[name], str(value)[:40]
    require(type(value) is kind or (kind is float and type(value) is int), f"{name}={shown!r} is not {NAMES[kind]}")
    in_range = kind in (str, bool) or -LARGEST_NUMBER < value < LARGEST_NUMBER  # rejects NaN, too
    require(in_range, f"{name}={shown} must be a number below {LARGEST_NUMBER}")
    halved = kind is str and any("\ud800" <= character <= "\udfff" for character in value)
    require(not halved, f"{name} has half of a surrogate pair")


def check_decoding(decoding: dict[str, Any], default: DecodeConfig) -> None:
    for name in ("completion_length", "steps"):
        at_most(name, decoding[name])
    dataclasses.replace(default, **decoding)


def at_most(name: str, number: int) -> None:
    require(number <= LIMITS[name], f"{name}={number}; the playground takes at most {LIMITS[name]}")
