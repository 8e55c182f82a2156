"""Code that the config.json of a run's folder names runs only if the user named it, too."""

import json
import re
import sys

import pytest
from ml_collections import ConfigDict

import commands
import igpo_jax
from igpo_jax import config as configuration
from igpo_jax.evaluate.protocol import run_evaluation
from igpo_jax.run.experiment import open_experiment, read_run_config
from igpo_jax.run.export import export_adapters, export_run
from igpo_jax.run.restore import restore_run
from igpo_jax.runtime.mesh import make_mesh
from igpo_jax.tasks import TASKS, load_task
from igpo_jax.tasks.reward_pool import RewardPool
from run_configs import contents, tiny

# A task like arithmetic, and a reward function, that leave a file behind when they are imported.
EVIL = """
import pathlib
(pathlib.Path(__file__).parent / "ran").touch()
from igpo_jax.tasks.arithmetic import *
"""
SLOW = ("generate", "convert", "playground")  # the commands besides `evaluate` that read the configuration of a run


@pytest.fixture
def cool(tmp_path, monkeypatch):
    """A stranger's folder in the current folder, from which Python imports: a run, and the package of the same name."""
    folder = tmp_path / "cool"
    (folder / "checkpoints" / "sft").mkdir(parents=True)
    for name in ("__init__.py", "evil.py"):
        (folder / name).write_text(EVIL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "cool"]:
        del sys.modules[name]


def write_config(folder, task: object = "arithmetic", function: object = "") -> dict:
    values = configuration.to_json(tiny())
    values["task"]["name"], values["reward"]["function"] = task, function
    (folder / "config.json").write_text(json.dumps(values))
    return values


READERS = {
    "restore": lambda folder, **options: restore_run(folder, make_mesh(), **options),
    "load": igpo_jax.load,
    "export": lambda folder, **options: export_run(folder, "target", make_mesh(), **options),
    "adapters": lambda folder, **options: export_adapters(folder, "target", make_mesh(), **options),
    "evaluate": lambda folder, **options: run_evaluation(str(folder), None, **options),
    "samplers": lambda folder, **options: run_evaluation(str(folder), None, "sampler", **options),
    "read": read_run_config,
}


@pytest.mark.parametrize("name", ["cool.evil", "cool", "os", "igpo_jax.train", "igpo_jax.tasks", "tasks.math", "Math"])
@pytest.mark.parametrize("reader", READERS)
def test_a_task_outside_the_package_is_not_imported(reader, name, cool, capfd):
    write_config(cool, name)
    before, modules = contents(cool), set(sys.modules)
    for trust in ((), ("cool.evil2", "evil", "math", f"{name}:reward")):
        with pytest.raises(ValueError) as raised:
            READERS[reader](cool, trust=trust)
        message = str(raised.value)
        assert f"config.json names code that is not part of igpo_jax: task.name={name!r}. It would be imported" in message
        assert f"{cool}/config.json" in message and f"add --trust={name} " in message and "\n" not in message
    assert contents(cool) == before and not {name, name.partition(".")[0]} & (set(sys.modules) - modules)
    assert capfd.readouterr() == ("", "")


def test_the_task_of_a_benchmark_outside_the_package_is_not_imported(cool):
    values = write_config(cool)
    values["evaluation"]["benchmarks"] = {"sums": {"task": {"name": "cool.evil"}, "draws": 1}}
    (cool / "config.json").write_text(json.dumps(values))
    for read in (read_run_config, lambda folder, **options: run_evaluation(str(folder), None, **options)):
        named = r"evaluation\.benchmarks\.sums\.task\.name='cool\.evil'.* add --trust=cool\.evil "
        with pytest.raises(ValueError, match=named):
            read(cool)
    assert not (cool / "ran").exists()
    assert read_run_config(cool, trust=["cool.evil"]).evaluation.benchmarks.sums.task.slots and (cool / "ran").exists()
    for benchmarks in ([], {"sums": 1}, {"sums": {"task": []}}, {"sums": {"task": {"name": 5}}}):
        (cool / "config.json").write_text(json.dumps(values | {"evaluation": {"benchmarks": benchmarks}}))
        with pytest.raises(ValueError, match="config.json"):
            read_run_config(cool)


@pytest.mark.parametrize("function", ["cool.evil:reward", "os:system", "builtins:print", "igpo_jax.convert:main", "a:b"])
def test_a_reward_function_outside_the_package_is_not_called(function, cool):
    write_config(cool, function=function)
    for trust in ((), (f"{function}s", "cool")):
        with pytest.raises(ValueError, match=rf"reward\.function='{function}'.* add --trust={function} \(in Python"):
            run_evaluation(str(cool), None, trust=trust)
    assert read_run_config(cool).reward.function == function  # grades nothing
    for trust in (function, function.partition(":")[0]):
        assert run_evaluation(str(cool), None, trust=[trust]).reward.function == function
    assert not (cool / "ran").exists()
    write_config(cool, "cool.evil", function)
    with pytest.raises(ValueError, match=rf"task.name='cool.evil' and reward.function='{function}'. .* --trust=cool.evil "):
        run_evaluation(str(cool), None)


@pytest.mark.parametrize(
    "sum_of", ["{} + {}", "task+{}+0.5*{}", "0*{} + task + -1 * {}", "igpo_jax.tasks.math:extract_answer + {}+{}"]
)
def test_every_function_of_a_sum_needs_trust(sum_of, cool):
    names = ["os:system", "cool.evil:reward"]
    text = sum_of.format(*names)
    write_config(cool, function=text)
    for trust, asked in ((), names), (names[:1], names[1:]), (["cool.evil"], names[:1]), ([text], names), (["task"], names):
        with pytest.raises(ValueError) as raised:
            run_evaluation(str(cool), None, trust=trust)
        told = " and ".join(f"reward.function={name!r}" for name in asked)
        assert f"not part of igpo_jax: {told}. It would" in str(raised.value)
        assert f"add {' '.join(f'--trust={name}' for name in asked)} (in Python" in str(raised.value)
    assert not (cool / "ran").exists()
    assert run_evaluation(str(cool), None, trust=names).reward.function == text
    with pytest.raises(ValueError, match=r"another configuration \(differing keys: reward.function\)"):
        open_experiment(tiny(), cool)
    assert not (cool / "ran").exists()


@pytest.mark.parametrize(
    "function", ["task + cool.evil:reward\n", "task + \tcool.evil:reward", "task + 1 cool.evil:reward", "task*"]
)
def test_what_is_no_name_in_a_sum_is_refused_before_anything_is_imported(function, cool):
    write_config(cool, function=function)
    with pytest.raises(ValueError, match=r"reward.function=.* is no name of a Python module"):
        run_evaluation(str(cool), None, trust=["cool", "evil"])
    assert not (cool / "ran").exists()


@pytest.mark.parametrize("value", [
    "", ".evil", "cool/evil", "cool evil", "cool.evil;touch ran", "cool.evil\n", "$(touch ran)", "cool.evil:", "\x1b[2Jcool",
    "cool..evil", "1cool", "x" * 10**6 + "!", None, 3, True, ["cool.evil"], {"name": "cool.evil"}, 1.5,
])  # fmt: skip
def test_what_is_no_name_is_an_error_that_suggests_no_flag(value, cool):
    for values in ({"task": value}, {"function": value or "-"}):
        write_config(cool, **values)
        with pytest.raises(ValueError) as raised:
            run_evaluation(str(cool), None)
        message = str(raised.value)
        assert any(reason in message for reason in ("is no name of a Python module", "is no text", "has more than 4096 characters"))
        assert "--trust" not in message and message.isprintable() and len(message) < 500
    assert not (cool / "ran").exists()


def test_what_the_package_has_needs_no_trust(cool):
    for name in (*TASKS, "igpo_jax.tasks.math"):
        config = configuration.base_config(**load_task(name).defaults())
        config.task.name, config.reward.function = name, "igpo_jax.evaluate.graders:math_verify"
        (cool / "config.json").write_text(json.dumps(configuration.to_json(config)))
        assert run_evaluation(str(cool), None).reward.function == "igpo_jax.evaluate.graders:math_verify"


def own_run(task: str) -> ConfigDict:
    config = configuration.base_config(**load_task("arithmetic").defaults(**tiny().task.to_dict()))
    config.update(tiny())
    config.task.name, config.reward.function = task, f"{task}:reward"
    return config


def test_a_run_with_code_of_its_own_is_opened_again_by_the_same_configuration(cool, tmp_path):
    requested = own_run("cool.evil")
    first = open_experiment(requested, tmp_path / "run")
    (cool / "ran").unlink()
    del sys.modules["cool.evil"]
    again = open_experiment(requested, tmp_path / "run")
    assert again.fingerprint == first.fingerprint and (cool / "ran").exists()
    assert read_run_config(tmp_path / "run", ["cool.evil"]).task.name == "cool.evil"
    with pytest.raises(ValueError, match="--trust=cool.evil "):
        read_run_config(tmp_path / "run")


def test_training_in_the_folder_of_another_run_does_not_run_its_code(cool):
    for values in ({"task": "cool.evil"}, {"function": "cool.evil:reward"}, {"task": "cool.evil", "function": "os:system"}):
        write_config(cool, **values)
        differing = ", ".join({"task": "task.name", "function": "reward.function"}[key] for key in values)
        with pytest.raises(ValueError, match=rf"another configuration \(differing keys: {re.escape(differing)}\)"):
            open_experiment(tiny(), cool)
    assert not (cool / "ran").exists()


def test_workers_import_nothing_from_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resource.py").write_text("import pathlib; pathlib.Path('ran').touch()")  # the worker imports this name
    pool = RewardPool("igpo_jax.tasks.arithmetic:reward", {}, 1, 5.0)
    problem = load_task("arithmetic").load(tiny().task, "test", 0)[0]
    [verdict] = pool([(problem, "x")])
    pool.close()
    assert verdict.outcome == "ok" and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("command", ["evaluate", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_commands_take_the_flag(command, cool, tmp_path):
    write_config(cool, "cool.evil", "cool.evil:reward")
    given = {"evaluate": ["--workdir=cool"], "convert": ["--source=cool", "--target=new"], "generate": ["--prompt=x"]}
    arguments = given.get(command, []) + ["--model=cool"] * (command in ("generate", "playground"))
    arguments += ["--format=huggingface"] * (command == "convert")
    done = commands.run(command, *arguments, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert "task.name='cool.evil'" in done.stderr and "add --trust=cool.evil " in done.stderr
    assert not (cool / "ran").exists() and not (tmp_path / "new").exists()
    done = commands.run(command, *arguments, "--trust=cool.evil", "--trust=x", cwd=tmp_path)
    assert done.returncode == 1 and "tokenizer.model, with which the run began, is missing" in done.stderr and (cool / "ran").exists(), done.stderr
