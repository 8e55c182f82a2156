"""Configurations of small runs, and checks of runs that must not open."""

import pathlib
import runpy

import jax
import pytest
from ml_collections import ConfigDict

from igpo_jax import config as configuration
from igpo_jax.run.experiment import open_experiment

TESTS = pathlib.Path(__file__).parents[1]
TINY = TESTS / "end_to_end" / "tiny.py"
CONFIGS = TESTS.parent / "configs"
GSM8K_SAMPLE = TESTS / "tasks" / "gsm8k_sample.jsonl"


def tiny(**changes) -> ConfigDict:
    """Returns the configuration of tiny.py with some keys changed; `__` in a keyword means a dot."""
    return config_of(TINY, **changes)


def config_of(path: pathlib.Path, *variant: str, **changes) -> ConfigDict:
    return changed(runpy.run_path(str(path))["get_config"](*variant), **changes)


def parsed(path: pathlib.Path = TINY, *variant: str, **changes) -> configuration.Config:
    return configuration.parse(config_of(path, *variant, **changes))


def changed(config: ConfigDict, **changes) -> ConfigDict:
    for name, value in changes.items():
        *sections, key = name.split("__")
        section = config
        for part in sections:
            section = section[part]
        section[key] = value
    return config


def gsm8k(train: pathlib.Path | str, test: pathlib.Path | str = GSM8K_SAMPLE, **changes) -> ConfigDict:
    smoke = runpy.run_path(str(CONFIGS / "gsm8k.py"))["get_config"]("smoke")
    changes = {"sft__batch_size": 8, "sft__heldout": 0, "rl__prompts": 8} | changes
    sources = {"rl": f"gsm8k:{train}" if str(train) else "", "test": f"gsm8k:{test}" if str(test) else ""}
    return changed(smoke, task__rl=sources["rl"], task__test=sources["test"], **changes)


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def live_bytes() -> int:
    return sum(array.nbytes for array in jax.live_arrays())


def error_of(config: ConfigDict, workdir: pathlib.Path) -> str:
    """Asserts that opening the run fails, allocates nothing and writes no config.json. Returns the error message."""
    before = live_bytes()
    with pytest.raises(ValueError) as raised:
        open_experiment(config, workdir)
    assert live_bytes() == before
    assert not (workdir / "config.json").exists()
    message = str(raised.value)
    assert "\n" not in message
    return message
