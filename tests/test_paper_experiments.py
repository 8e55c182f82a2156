"""Every command of docs/paper_experiments.md has a valid configuration."""

import pathlib
import re
import shlex
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from igpo_jax import config as configuration
from igpo_jax.compare.arms import ARMS
from igpo_jax.evaluate.protocol import decode_config
from run_configs import CONFIGS

TEXT = (pathlib.Path(__file__).parents[1] / "docs" / "paper_experiments.md").read_text()
NAMES = {
    name: body.replace("\\\n", " ") for name, body in re.findall(r"`([A-Z]+)` stands for.*?\n\n((?:    [^\n]*\n)+)", TEXT, re.S)
}


def commands() -> list[str]:
    """Returns the commands of the table in full: without names for their beginnings, and once for each value of X."""
    found = dict.fromkeys(body.strip() for body in NAMES.values())
    for row in re.findall(r"^\|.*", TEXT, re.M):
        values = re.search(r"with X = ([\d., and]*\d)", row)
        for command in re.findall(r"`([A-Z]{3,} --[^`]*)`", row):
            name, _, rest = command.partition(" ")
            for value in re.findall(r"[\d.]*\d", values[1]) if values else ["X"]:
                found[f"{NAMES[name].strip()} {rest.replace('=X', f'={value}')}"] = None
    return list(found)


def config_of(command: str, monkeypatch):
    file, *overrides = [part for part in shlex.split(command) if part.startswith("--config")]
    arguments = ["command", file.replace("=", f"={CONFIGS}/", 1), *overrides]
    monkeypatch.setattr(sys, "argv", arguments)  # from which ml_collections takes overrides
    known = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=known)
    known(arguments)
    return holder.value


def test_the_page_has_commands():
    assert set(NAMES) == {"TRAIN", "EVALUATE", "SFT"} and len(commands()) > 20
    assert sum("inpainting.ratio_min=" in command for command in commands()) == 4


@pytest.mark.parametrize("command", commands(), ids=lambda command: " ".join(command.split("--config")[-2:]))
def test_the_configuration_of_a_command_is_valid(command, monkeypatch):
    config = config_of(command, monkeypatch)
    if "igpo_jax.evaluate" in command:
        assert all(part.task.test for part in config.benchmarks.values() if part.task.name == "math")
        assert decode_config(config, "amc").temperature == 0.1 and config.benchmarks.amc.draws == 16
    else:
        benchmarks = configuration.parse(config).evaluation.benchmarks
        assert set(benchmarks) == (set() if "sft_math.py" in command else {"gsm8k", "amc", "minerva"})


def test_the_arms_of_the_page_exist():
    named = [name for cell in re.findall(r"arms? ((?:`\w+`(?:, )?)+)", TEXT) for name in re.findall(r"`(\w+)`", cell)]
    assert len(named) > 10 and set(named) <= ARMS.keys()
