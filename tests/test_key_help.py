"""Every configuration key has a meaning, and docs/configuration.md is current."""

import re
import runpy
import sys

import pytest

import configuration_document
from igpo_jax import key_help
from igpo_jax.config import base_config
from igpo_jax.evaluate.protocol import base_evaluation
from igpo_jax.tasks import TASKS, load_task
from run_configs import CONFIGS

LIMIT = re.compile(r"(at least|within|not negative|positive|ascending|one of) ?.*")  # what checks say, without a comment
OWN_TASK = """
def defaults(**values):
    return {
        "name": "own_task",
        # Letters of
        # a word
        "letters": 4,  # all in lower case
        "secret": 1,
        "parts": {"first": 1},  # of a word
        "test_problems": 2,
    } | values

def load(task, split, seed): return []
def reward(problem, text): return 0.0
def extract_answer(text): return None
REWARD_OPTIONS = ()
"""


def meanings(config) -> dict[str, str]:
    return {key: meaning for key, _, meaning in key_help.describe(config)}


def test_the_document_is_current():
    update = "update it: python tests/helpers/configuration_document.py"
    assert configuration_document.DOCUMENT.read_text() == configuration_document.document(), update


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.name)
def test_every_key_has_a_meaning(file):
    found = meanings(runpy.run_path(str(file))["get_config"]())
    assert not [key for key, meaning in found.items() if LIMIT.fullmatch(meaning) or not meaning]


@pytest.mark.parametrize("task", TASKS)
def test_every_key_of_a_task_has_a_meaning(task):
    assert all(meanings(base_config(**load_task(task).defaults())).values())


def test_meanings_come_from_above_and_behind_a_key_and_from_its_check():
    found = meanings(base_config(**load_task("arithmetic").defaults()))
    assert found["rl.optimizer.b2"] == "decay of the mean of their squares, the second moment"  # a section in a section
    assert found["sampler.layout"].startswith("Layout of the weights on the devices while rollouts and evaluations sample")
    assert "; one of" not in found["sampler.layout"]  # the comment names the values
    assert found["sampler.steps"] == "largest number of denoising steps for a completion"  # from a base class
    assert found["objective.inner_steps"] == "mu: updates per rollout; at least 1"
    assert found["inpainting.replace_fraction"].endswith("; within [0, 1]")
    assert found["tokenizer.kind"].endswith("; one of char, unigram, bpe")
    assert found["task.slots"] == "number of additions in a long problem"


def test_values_are_those_of_the_configuration_in_the_order_of_the_source_code():
    config = base_config(**load_task("arithmetic").defaults(slots=9))
    config.rl.update({"prompts": 5})
    rows = key_help.describe(config)
    values = {key: value for key, value, _ in rows}
    assert (values["task.slots"], values["rl.prompts"], values["data.prompt_buckets"]) == (9, 5, (256,))
    keys = [key for key, _, _ in rows]
    assert keys.index("rl.iterations") < keys.index("rl.prompts") < keys.index("rl.optimizer.b1") < keys.index("mesh.data")


def test_keys_of_an_own_task(tmp_path, monkeypatch):
    (tmp_path / "own_task.py").write_text(OWN_TASK)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_task", raising=False)
    key_help.comments.cache_clear()
    found = meanings(base_config(**load_task("own_task").defaults()))
    assert found["task.letters"] == "Letters of a word all in lower case"
    assert found["task.secret"] == "" and found["task.parts.first"] == "of a word"
    assert found["task.test_problems"] == "problems that are drawn for the test split"  # as in the tasks of this package


@pytest.mark.parametrize("module", ["no_such_module", "igpo_jax.no_such_module", "", "math", "sys"])
def test_without_source_code_there_are_no_meanings(module):
    assert key_help.comments(module, "defaults") == {}


def test_an_evaluation_has_the_meanings_of_a_run_where_it_has_its_keys():
    found, run = meanings(base_evaluation()), meanings(base_config(**load_task("arithmetic").defaults()))
    assert found["decode.cache"] == run["sampler.cache"] and found["reward.workers"] == run["reward.workers"]
    assert found["benchmarks"] and all(found.values())
