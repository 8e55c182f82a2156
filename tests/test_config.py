"""An unusable configuration ends in one line that names the key, before anything is allocated."""

import os
import pathlib
import re
import runpy

import jax
import numpy as np
import pytest

import commands
from igpo_jax import cli
from igpo_jax import config as configuration
from igpo_jax.rl.rollout import RolloutConfig, rollout
from igpo_jax.run.experiment import open_experiment
from igpo_jax.runtime.files import differing_keys
from igpo_jax.tasks import TASKS, load_task
from igpo_jax.tasks.grades import Grades
from run_configs import CONFIGS, TINY, error_of, tiny

# ---------------------------------------------------------------------------------------------------------------------
# Values


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"rl__group_size": 1}, ["rl.group_size=1", "at least 2"]),
        ({"rl__group_size": 0}, ["rl.group_size=0"]),
        ({"sampler__completion_length": 20}, ["config.sampler", "completion_length=20", "multiple", "block_length=8"]),
        ({"evaluation__completion_length": 20}, ["config.evaluation", "completion_length=20", "block_length=8"]),
        ({"sampler__steps": 7}, ["config.sampler", "steps=7", "multiple", "blocks", "2"]),
        ({"sampler__steps": 0}, ["config.sampler", "steps=0"]),
        ({"evaluation__steps": 3}, ["config.evaluation", "steps=3"]),
        ({"sampler__block_length": 0}, ["config.sampler", "block_length=0"]),
        ({"sampler__completion_length": 0}, ["config.sampler", "completion_length=0"]),
        ({"sampler__temperature": -1.0}, ["config.sampler", "temperature=-1.0"]),
        ({"sampler__remasking": "least"}, ["config.sampler", "remasking='least'", "low_confidence", "random"]),
        ({"sampler__cache": "both"}, ["config.sampler", "cache='both'", "none, prefix, dual"]),
        (
            {"sampler__commit": "factor", "sampler__remasking": "entropy"},
            ["config.sampler", "commit=factor", "remasking=entropy"],
        ),
        ({"rl__probe_limit": 0.1}, ["rl.probe_limit", "sampler.cache"]),
        ({"evaluation__completion_length": 32}, ["sampler.completion_length=16", "evaluation.completion_length=32"]),
        ({"inpainting__chunk_min": 4}, ["inpainting.chunk_min=4", "inpainting.chunk_max=3", "ordered"]),
        ({"inpainting__chunk_min": 0}, ["inpainting.chunk_min=0", "at least 1"]),
        ({"inpainting__ratio_min": -0.1}, ["inpainting.ratio_min=-0.1", "[0, 1]"]),
        ({"inpainting__ratio_max": 1.1}, ["inpainting.ratio_max=1.1", "[0, 1]"]),
        ({"inpainting__ratio_min": 0.7}, ["inpainting.ratio_min=0.7", "inpainting.ratio_max=0.6", "ordered"]),
        ({"inpainting__policy": "half"}, ["config.inpainting", "inpainting.policy='half'", "chunks, prefix, none"]),
        ({"inpainting__policy": "prefix"}, ["inpainting.policy='prefix'", "inpainting.chunk_min=2, inpainting.chunk_max=3"]),
        ({"inpainting__policy": "none"}, ["inpainting.policy='none'", "inpainting.chunk_min=2, inpainting.chunk_max=3"]),
        ({"inpainting__source": "book"}, ["inpainting.source='book'", "solution, own"]),
        ({"inpainting__curriculum": -0.5}, ["inpainting.curriculum=-0.5", "negative"]),
        ({"rl__dynamic_batches": 0}, ["rl.dynamic_batches=0", "at least 1"]),
        ({"inpainting__replace_fraction": 1.5}, ["inpainting.replace_fraction=1.5", "[0, 1]"]),
        ({"objective__entropy_keep": 2.0}, ["objective.entropy_keep=2.0", "[0, 1]"]),
        ({"objective__estimator": "exact"}, ["objective.estimator='exact'", "mean_field", "masked"]),
        ({"objective__inner_steps": 0}, ["objective.inner_steps", "at least 1"]),
        ({"rl__microbatches": 3}, ["rl.prompts=8", "multiple", "rl.microbatches=3"]),
        ({"rl__prompts": 0}, ["rl.prompts=0"]),
        ({"sft__batch_size": 0}, ["sft.batch_size=0"]),
        ({"sft__updates": -1}, ["sft.updates"]),
        ({"sft__checkpoint_every": 0}, ["sft.checkpoint_every=0"]),
        ({"sft__corruption": "none"}, ["sft.corruption='none'", "count", "independent"]),
        ({"sft__optimizer__schedule": "steps"}, ["config.sft", "schedule='steps'", "linear"]),
        ({"rl__optimizer__learning_rate": 0.0}, ["config.rl", "learning_rate", "positive"]),
        ({"data__prompt_buckets": ()}, ["data.prompt_buckets=()"]),
        ({"data__prompt_buckets": (9, 4)}, ["data.prompt_buckets=(9, 4)", "ascending"]),
        ({"data__overflow": "cut"}, ["data.overflow='cut'", "error", "drop"]),
        ({"evaluation__problems": 0}, ["evaluation.problems"]),
        ({"checkpoints_kept": 0}, ["checkpoints_kept=0"]),
        ({"model__heads": 5}, ["model.width=32", "heads=5"]),
        ({"model__kv_heads": 4}, ["model.heads=2", "kv_heads=4"]),
        ({"model__remat": "some"}, ["model.remat='some'"]),
        ({"task__name": "algebra"}, ["task.name='algebra'", "arithmetic", "math"]),
        ({"mesh__data": 3}, ["mesh.data=3", "mesh.fsdp=-1", "8 devices"]),
        ({"mesh__data": 2, "mesh__fsdp": 2}, ["mesh.data=2", "mesh.fsdp=2", "mesh.tensor=1", "8 devices"]),
        ({"mesh__data": -1}, ["mesh.data=-1", "at most one"]),
        ({"mesh__tensor": 0}, ["mesh.tensor=0", "positive"]),
    ],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_a_value_that_cannot_work_is_named_and_no_folder_is_made(changes, words, tmp_path):
    message = error_of(tiny(**changes), tmp_path / "run")
    for word in words:
        assert word in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"rl__prompts": 12}, ["rl.prompts", "12", "mesh.data * mesh.fsdp = 8"]),
        ({"sft__batch_size": 60}, ["sft.batch_size", "60", "mesh.data * mesh.fsdp = 8"]),
        ({"sft__microbatches": 16}, ["sft.batch_size / sft.microbatches", "4", "mesh.data * mesh.fsdp = 8"]),
        ({"evaluation__batch_size": 4}, ["evaluation.batch_size", "4", "mesh.data * mesh.fsdp = 8"]),
        ({"mesh__tensor": 8, "mesh__fsdp": 1}, ["model.heads", "2", "mesh.tensor = 8"]),
    ],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_what_does_not_divide_over_the_devices_is_named(changes, words, tmp_path):
    message = error_of(tiny(**changes), tmp_path / "run")
    for word in words:
        assert word in message


@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_fewer_problems_than_a_batch_is_found_out_at_once(stage, tmp_path):
    """Fails when the run is opened, not hours later when the stage begins."""
    key = {"sft": "sft.batch_size", "rl": "rl.prompts"}[stage]
    message = error_of(tiny(sft__heldout=0, **{f"task__{stage}_problems": 7}), tmp_path / "run")
    assert "7 problems" in message and key in message


def test_more_problems_held_out_than_there_are(tmp_path):
    assert error_of(tiny(task__sft_problems=48), tmp_path / "run") == (
        "sft.heldout=48 leaves none of the 48 problems to train on"
    )


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_the_ends_of_the_ratio_work(ratio, tmp_path):
    """A ratio of 0 reveals no chunk, 1 reveals every chunk."""
    config = tiny(inpainting__ratio_min=ratio, inpainting__ratio_max=ratio, inpainting__chunk_max=2)
    experiment = open_experiment(config, tmp_path / "run")
    config = experiment.config
    rl = config.rl
    cfg = RolloutConfig(
        experiment.model,
        config.sampler,
        config.inpainting,
        rl.group_size,
        rl.prompts,
        config.data.prompt_buckets,
        normalize_advantages=False,
    )
    rows = np.arange(config.rl.prompts)
    prompts = jax.tree.map(lambda x: x[rows], experiment.rl_data.prompts)

    def all_wrong(problem_id, completions):
        nothing = np.zeros(completions.shape[:2], bool)
        return lambda: Grades(nothing.astype(np.float32), nothing, nothing, nothing)

    with jax.set_mesh(experiment.mesh):
        done = rollout(experiment.initial_params(), prompts, all_wrong, jax.random.key(0), cfg, experiment.mesh)
    assert done.triggered.tolist() == rows.tolist() and not done.replaced.any()
    assert (done.second.ratio == ratio).all()
    # Chunks of two cover the trace except an odd last token, and every token may be shown.
    covered = prompts.trace_length // 2 * 2 * (ratio == 1)
    expected = np.arange(config.sampler.completion_length) < covered[:, None]
    assert np.array_equal(done.second.hint, np.repeat(expected[:, None], config.rl.group_size, axis=1))
    assert done.metrics["hint/tokens"] == covered.mean()
    shown = np.where(expected, prompts.trace, -1)[:, None]
    assert np.array_equal(np.where(done.second.hint, done.second.tokens, -1), np.repeat(shown, config.rl.group_size, axis=1))


# ---------------------------------------------------------------------------------------------------------------------
# Config files


RUNS = sorted({path.name for path in CONFIGS.glob("*.py")} - {"evaluate_math.py"})  # configures an evaluation, not a run


VARIANTS = {
    "gsm8k.py": ("smoke", "llada"),
    "math.py": ("lora", "full", "illada", "ref", "smoke"),
    "sft_math.py": ("lora", "full"),
}


@pytest.mark.parametrize("file", RUNS)
def test_every_configuration_of_the_repository_is_valid(file):
    get_config = runpy.run_path(str(CONFIGS / file))["get_config"]
    variants = VARIANTS.get(file, ())
    for variant in [(), *((name,) for name in variants)]:
        config = configuration.parse(get_config(*variant))
        assert config.rl.iterations + config.sft.updates > 0
        assert config.sft.updates > 0 or config.model.path
    with pytest.raises((ValueError, TypeError)):
        get_config("nonsense")


@pytest.mark.parametrize("task", TASKS)
def test_a_configuration_of_every_task_is_read_back(task):
    config = configuration.base_config(**load_task(task).defaults())
    assert configuration.from_json(configuration.to_json(config)) == config


def test_a_bare_name_is_looked_up_in_configs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.resolve_config_path("arithmetic.py") == str(CONFIGS / "arithmetic.py")
    assert cli.resolve_config_path("gsm8k.py:smoke") == f"{CONFIGS / 'gsm8k.py'}:smoke"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "arithmetic.py").touch()
    assert cli.resolve_config_path("arithmetic.py") == "configs/arithmetic.py"
    (tmp_path / "arithmetic.py").touch()
    assert cli.resolve_config_path("arithmetic.py") == "arithmetic.py"
    assert cli.resolve_config_path(str(TINY)) == str(TINY)


@pytest.mark.parametrize("name", ["algebra.py", "algebra.py:smoke", "elsewhere/arithmetic.py"])
def test_an_unknown_config_file_lists_the_known_ones(name):
    with pytest.raises(ValueError) as raised:
        cli.resolve_config_path(name)
    assert repr(name.partition(":")[0]) in str(raised.value)
    assert "arithmetic.py, countdown.py, evaluate_math.py, gsm8k.py, math.py, sft_math.py" in str(raised.value)


def leaves(config: dict, prefix: str = ""):
    for key, value in config.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}__")
        else:
            yield prefix + key, value


def test_the_fingerprint_depends_on_every_key_that_decides_the_result():
    def other(value):
        match value:
            case bool():
                return not value
            case str():
                return value + "x"
            case tuple():
                return (*value, 99)
            case _:
                return value + 1

    one, seen = tiny(), set()
    for name, value in leaves(one.to_dict()):
        two = tiny(**{name: other(value)})
        dotted = name.replace("__", ".")
        if dotted in configuration.RESUMABLE_KEYS:
            assert configuration.fingerprint(two) == configuration.fingerprint(one)
        else:
            seen.add(configuration.fingerprint(two))
        assert differing_keys(configuration.to_json(one), configuration.to_json(two)) == [dotted]
    assert len(seen) == len(list(leaves(one.to_dict()))) - len(configuration.RESUMABLE_KEYS) > 60
    assert configuration.fingerprint(one) not in seen
    assert configuration.fingerprint(tiny()) == configuration.fingerprint(one)


def test_differing_keys_names_what_only_one_side_has():
    one = {"a": 1, "b": {"c": 2, "d": 3}, "e": {"f": 4}}
    other = {"a": 1, "b": {"c": 5, "g": 3}, "e": 4}
    assert differing_keys(one, other) == ["b.c", "b.d", "b.g", "e"]
    assert differing_keys(one, one) == []


# ---------------------------------------------------------------------------------------------------------------------
# The command line


def train(*arguments: str) -> str:
    """Runs a command that must fail; returns its stderr."""
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    env.pop("XLA_FLAGS", None)
    process = commands.run("train", *arguments, env=env, timeout=120)
    assert process.returncode == 1
    assert process.stdout == ""
    return process.stderr


def config_file(folder: pathlib.Path, line: str) -> tuple[pathlib.Path, int]:
    """Copies tiny.py with one more line; returns the path and the number of that line."""
    text = TINY.read_text().replace("    return config", f"    {line}\n    return config")
    path = folder / "mistaken.py"
    path.write_text(text)
    return path, text.splitlines().index(f"    {line}") + 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--config.sampler.stepz=3"], "--config.sampler.stepz=3: there is no such key; did you mean --config.sampler.steps=3?"),
        (["--config.rl.prompts=abc"], "flag --config.rl.prompts=abc: invalid literal for int() with base 10: 'abc'"),
        (["--config.rl.group_size=1"], "rl.group_size=1: an advantage needs at least 2 completions to compare"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(arguments, message, tmp_path):
    said = train(f"--config={TINY}", f"--workdir={tmp_path / 'run'}", *arguments)
    assert said == f"error: {message}\n"
    assert not (tmp_path / "run").exists()


def test_a_wrong_key_in_a_config_file_is_one_line(tmp_path):
    path, number = config_file(tmp_path, "config.sampler.stepz = 3")
    said = train(f"--config={path}", f"--workdir={tmp_path / 'run'}")
    assert re.fullmatch(rf'error: {re.escape(str(path))}, line {number}: .*"stepz" does not exist.*"steps".*\n', said)
    assert not (tmp_path / "run").exists()


def test_a_malformed_data_file_is_one_line(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"question": "cut off')
    said = train(
        "--config=gsm8k.py:smoke", f"--workdir={tmp_path / 'run'}", f"--config.task.rl=gsm8k:{tmp_path / 'train.jsonl'}"
    )
    assert said.startswith(f"error: {tmp_path / 'train.jsonl'}, line 1: not JSON") and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "line, words",
    [
        ('config.sft.update({"updatez": 3})', ['"updatez" does not exist', '"updates"']),
        ("config.smapler.steps = 3", ["smapler", '"sampler"']),
        ('config.rl.prompts = "many"', ["prompts", "many", "int"]),
        ("config = confg", ["confg"]),
        ("config = (", ["'(' was never closed"]),
        ("raise ValueError('no such variant')", ["no such variant"]),
        ("raise SystemExit", ["SystemExit"]),
    ],
)
def test_a_mistake_in_a_config_file_is_named_with_its_line(line, words, tmp_path):
    from igpo_jax.cli import load_config

    path, number = config_file(tmp_path, line)
    with pytest.raises(ValueError) as raised:
        load_config(str(path))
    message = str(raised.value)
    assert message.startswith(f"{path}, line {number}: ") and "\n" not in message
    for word in words:
        assert word in message
