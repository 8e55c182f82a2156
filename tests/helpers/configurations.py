"""Random configurations: those of configs/ with a few keys set to extreme, invalid or wrongly typed values. Each must build from
shapes alone or raise one ValueError that names a key."""

import pathlib
import random
import runpy
from typing import Any

import jax
from ml_collections import ConfigDict

from igpo_jax import config as configuration
from igpo_jax.model.fitting import fit_to_devices
from igpo_jax.plan.programs import fitted, planned_model, programs
from igpo_jax.run.layout import check_divisibility, row_lengths
from igpo_jax.runtime.mesh import make_mesh
from igpo_jax.tasks import load_task
from parsers import Finding

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
VARIANTS = {
    "arithmetic.py": ("",), "words.py": ("", "smoke"), "gsm8k.py": ("", "smoke", "llada"), "sft_math.py": ("lora", "full"),
    "math.py": ("lora", "full", "illada", "ref", "smoke"), "countdown.py": ("",), "sudoku.py": ("",),
}  # fmt: skip
WORDS = (
    "", "x", "a\nb", "\x00", "none", "full", "dots", "auto", "xla", "cudnn", "splash", "float32", "bfloat16", "schedule", "threshold", "factor",
    "leftmost", "most_confident", "prefix", "dual", "low_confidence", "position_first", "entropy", "random", "chunks", "solution", "own",
    "mean_field", "prompt_masked", "masked", "elbo", "quadrature", "coupled", "trace", "clipped", "wd1", "sequence", "token", "k1", "k3",
    "completion", "canvas", "constant", "cosine", "linear", "count", "independent", "error", "drop", "truncate", "char", "bpe", "math", "words", "a:b",
)  # fmt: skip
OTHERS = (
    None, True, False, 0, 1, 2.5, "x", "8", (), (1,), (0,), (5, 3), (64, 128), ("query",), ("x",), (None,), (1.5,), (2**40,), {}, {"a": 1},
)  # fmt: skip
MESH = make_mesh(devices=jax.devices()[:1])


def starts() -> list[tuple[str, str]]:
    """Returns (file, variant) of every configuration in configs/."""
    return [(name, variant) for name, variants in VARIANTS.items() for variant in variants]


def generated(number: int) -> tuple[ConfigDict, dict[str, Any]]:
    """Returns a random configuration, and the changed keys with their values."""
    draw = random.Random(number)
    name, variant = draw.choice(starts())
    get_config = runpy.run_path(str(CONFIGS / name))["get_config"]
    config = get_config(*([variant] if variant else []))
    keys, changes = list(_keys(config)), {}
    with config.ignore_type(), config.unlocked():
        for key in draw.sample(keys, draw.randint(1, 6)):
            *sections, last = key.split(".")
            section = config
            for part in sections:
                section = section[part]
            section[last] = changes[key] = _value(section[last], draw)
    return config, changes


def _keys(section: ConfigDict, prefix: str = ""):
    for key, value in section.items():
        if isinstance(value, ConfigDict) and len(value):
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def _value(old: Any, draw: random.Random) -> Any:
    if draw.random() < 0.05:
        return draw.choice(OTHERS)
    match old:
        case bool():
            return not old
        case int():
            small, large = (0, 1, 2, 4, 8, 16, 32, old * 2, old // 2, old * 3), (-1, old + 1, 2**31 - 1, 2**31, 10**30, 10**400)
            return draw.choice(small * 3 + large)
        case float():
            return draw.choice((0.0, -1.0, 0.5, 1.0, 2.0, old / 2, 1e-30, 1e30, float("nan"), float("inf"), -0.0, 1))
        case str():
            return draw.choice(WORDS)
        case _:
            return draw.choice(
                ((), (1,), (0,), (5, 3), (64, 128), ("query",), ("query", "down"), ("x",), (None,), [16, 32], (2**31,))
            )


def build(values: ConfigDict) -> str:
    """Validates a configuration and builds its network, training state and program arguments from shapes. Tasks that generate
    problems generate a few.

    Returns:
        "" if it builds, else the message that names a key.

    Raises:
        Finding: another exception, or a message without a key.
    """
    try:
        config = configuration.parse(values)
        model = fit_to_devices(planned_model(config)[0], MESH, row_lengths(config))
        check_divisibility(config, model, make_mesh(**vars(config.mesh), devices=jax.devices()[:1]))
        programs(fitted(config, MESH))
        task = load_task(config.task.name)
        if "test_problems" in config.task and config.task.get("test", "") == "":
            few = ConfigDict(config.task.to_dict() | {f"{split}_problems": 4 for split in ("sft", "rl", "test")})
            for split in ("sft", "rl", "test"):
                assert len(task.load(few, split, config.seed)) == 4
    except ValueError as error:
        message = str(error)
        keys = [*_keys(values), *values]  # a section may have been replaced by a value
        named = [key for key in keys if all(part in message for part in {key.split(".")[0], key.split(".")[-1]})]
        if "\n" in message or not named:
            raise Finding(f"names no key: {message[:300]!r}") from error
        return message
    except Exception as error:
        raise Finding(f"{type(error).__name__}: {str(error)[:300]}") from error
    return ""
