"""Every command refuses words that are no flags and flags that do not exist, and names what was probably meant."""

import ast
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

import commands
import igpo_jax.__main__ as igpo_jax_main
from igpo_jax.runtime.installation import python_command
from run_configs import CONFIGS

ROOT = pathlib.Path(__file__).parents[1]
MAIN = '__name__ == "__main__"'
SOURCES = {
    ".".join(path.relative_to(ROOT / "igpo_jax").with_suffix("").parts).removesuffix(".__main__"): path.read_text()
    for path in sorted((ROOT / "igpo_jax").rglob("*.py"))
    if MAIN in path.read_text()
}
del SOURCES["tasks.reward_worker"]  # a process that the reward pool starts
del SOURCES["__main__"]  # runs the others
OWN_FLAGS = [name for name in SOURCES if name != "lm_eval"]  # whose flags are the harness's
WITH_CONFIG = [name for name, text in SOURCES.items() if "define_config()" in text]


def refused(command: str, *arguments: str, cwd=None) -> str:
    """Runs a command that must fail at once; returns its message, which must be one line."""
    done = commands.run(command, *arguments, cwd=cwd, env=os.environ | {"JAX_PLATFORMS": "cpu"}, timeout=120)
    assert done.returncode == 1 and done.stdout == "", done
    assert re.fullmatch(r"error: .+\n", done.stderr), done.stderr
    return done.stderr


def config_and_key(command: str) -> tuple[str, str]:
    return ("evaluate_math.py", "decode.steps") if command == "evaluate" else ("arithmetic.py", "rl.iterations")


def test_the_commands_are_those_of_the_documentation():
    text = (ROOT / "docs" / "commands.md").read_text()
    assert set(SOURCES) == set(re.findall(r"^ *igpo (\w+)", text, re.MULTILINE))
    assert len(WITH_CONFIG) >= 5


def igpo(*arguments, cwd=None):
    command = [sys.executable, "-m", "igpo_jax", *arguments]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)


def test_igpo_lists_the_commands_and_suggests_one(tmp_path):
    for arguments in ([], ["-h"], ["--help"], ["help"]):
        done = igpo(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert re.findall(r"^  (\w+) ", done.stdout, re.MULTILINE) == list(igpo_jax_main.COMMANDS)
    assert set(igpo_jax_main.COMMANDS) == set(SOURCES)
    done = igpo("trian\x1b", "--config=arithmetic.py")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: 'trian\\x1b' is no command of igpo; did you mean train?\n"


def test_igpo_runs_a_command_as_python_does(tmp_path):
    arguments = ["train", "--config=arithmetic", "rl.iterations=3"]
    done = igpo(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, refused(*arguments, cwd=tmp_path))


def console_script(folder, *arguments, cwd):
    """Runs igpo as an installed script, whose folder is the first in which Python looks for modules."""
    (folder / "bin").mkdir()
    (folder / "bin" / "igpo").write_text("import sys\nfrom igpo_jax.__main__ import main\nsys.exit(main())\n")
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, folder / "bin" / "igpo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)


@pytest.mark.slow
def test_igpo_finds_a_task_in_the_working_folder_and_no_file_there_hides_a_module(tmp_path):
    (tmp_path / "math.py").write_text("raise RuntimeError")
    (tmp_path / "mine.py").write_text("from igpo_jax.tasks.arithmetic import *\nfrom igpo_jax.tasks import arithmetic\n")
    text = (
        "import mine\nfrom igpo_jax.config import base_config\ndef get_config():\n    return base_config(**mine.defaults())\n"
    )
    (tmp_path / "config.py").write_text(text)
    done = console_script(tmp_path, "inspect_data", "--config=config.py", "--samples=0", cwd=tmp_path)
    assert done.returncode == 0 and "rl: " in done.stdout, done.stderr


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["report", "."], False),
        (["--config=arithmetic.py", "--workdir=here"], False),
        (["--config=mine"], True),
        (["-config=mine.py:variant", "--workdir=here"], True),
        (["--config", "mine.py", "--workdir=here"], True),
        (["--config=./mine.py"], True),
        (["--config", "arithmetic.py", "--workdir=mine"], False),
        (["--config=../elsewhere/mine.py"], False),
        (["--trust=cool.evil"], True),
        (["--config=arithmetic.py", "--config.reward.function=m:f"], True),
    ],
)
def test_igpo_imports_from_the_working_folder_only_what_the_user_names(arguments, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("")
    assert igpo_jax_main.names_own_code(arguments) == expected


def test_processes_of_a_command_search_the_working_folder_when_the_command_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("colorsys", "mine"):  # the first is also a module of Python
        (tmp_path / f"{name}.py").write_text("import sys\nprint(*sys.argv[1:])")
    others = [path for path in sys.path if path not in ("", str(tmp_path))]
    for path, found in (
        ([str(tmp_path), *others], ("colorsys", "mine")),
        ([*others, str(tmp_path)], ("mine",)),
        (others, ()),
    ):
        monkeypatch.setattr(sys, "path", path)
        for name in ("colorsys", "mine"):
            done = subprocess.run([*python_command(name), "--a=1"], capture_output=True, text=True, cwd=tmp_path)
            assert done.stdout == "--a=1\n" * (name in found), done


@pytest.mark.slow
def test_igpo_runs_nothing_in_a_folder_of_somebody_else(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("flatbuffers", "snappy", "zstandard", "nest_asyncio", "sitecustomize", "igpo_jax", "json", "jax_plugins/evil"):
        file = folder / f"{name}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"open({str(tmp_path / 'executed')!r}, 'a').write({name!r})")
    done = console_script(tmp_path, "report", ".", cwd=folder)
    assert done.returncode == 1 and done.stderr.startswith("error: ")
    assert not (tmp_path / "executed").exists()


def test_a_name_that_is_not_unicode_is_refused_before_the_work_begins(tmp_path, monkeypatch):
    from igpo_jax import cli

    folder = tmp_path / os.fsdecode(b"odd\xff")
    folder.mkdir()
    message = f"error: {ascii(str(folder))} is not UTF-8; rename this file or folder\n"
    assert refused("report", str(folder)) == message
    monkeypatch.chdir(folder)
    monkeypatch.setattr("igpo_jax.runtime.interrupts.watch", lambda: None)
    with pytest.raises(SystemExit, match=re.escape(message.strip())):
        cli.parse_arguments(["train", "--config=arithmetic.py"])


@pytest.mark.parametrize("command", OWN_FLAGS)
def test_help_shows_usage_and_flags_and_ends_with_status_0(command):
    done = commands.run(command, "-h", env=os.environ | {"JAX_PLATFORMS": "cpu", "COLUMNS": "80"})
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"igpo {command}") and max(map(len, lines)) <= 80
    flags = re.findall(r'flags\.DEFINE_\w+\(\s*"([\w-]+)"', SOURCES[command])
    assert all(re.search(rf"^  --(\[no\])?{flag}\b", done.stdout, re.MULTILINE) for flag in flags)
    assert ("--config.KEY=VALUE" in done.stdout) == (command in WITH_CONFIG)


@pytest.mark.parametrize("given", [["--config=arithmetic"], []])
def test_the_keys_of_a_configuration_are_listed(given):
    done = commands.run("train", *given, "--help-config", env=os.environ | {"JAX_PLATFORMS": "cpu"})
    assert (done.returncode, done.stderr) == (0, "")
    assert f"rl.iterations={30 if given else 100}" in done.stdout and ("task.slots=6" in done.stdout) == bool(given)


def test_a_variant_of_a_file_without_variants_is_refused(tmp_path):
    message = refused("train", "--config=arithmetic:fast", cwd=tmp_path)
    assert message.endswith("arithmetic.py has no variants; give --config=" + message.split()[1] + "\n")


@pytest.mark.parametrize("command", OWN_FLAGS)
def test_every_command_refuses_stray_words_and_unknown_flags(command, tmp_path):
    config, key = config_and_key(command)
    known = re.findall(r'flags\.DEFINE_\w+\(\s*"([\w-]+)"', SOURCES[command])
    if command in WITH_CONFIG:
        meant = f"did you mean --config.{key}=3?"
        assert meant in refused(command, f"--config={config}", f"{key}=3", cwd=tmp_path)
        assert meant in refused(command, f"--config={config}", f"--config.{key[:-1]}=3", cwd=tmp_path)
    elif command != "report":  # its words are folders
        message = refused(command, "rl.iterations=3", cwd=tmp_path)
        assert "rl.iterations=3 is not a flag; " in message and all(f"--{flag}" in message for flag in known)
    if known:
        flag = max(known, key=len)
        assert f"did you mean --{flag}=x?" in refused(command, f"--{flag[:-2]}{flag[-1]}=x", cwd=tmp_path)
        assert f"did you mean --{flag}=x?" in refused(command, f"{flag}=x", cwd=tmp_path)
    assert "--qqqq=1: there is no such flag; " in refused(command, "--qqqq=1", cwd=tmp_path)
    assert "No such file or directory: 'missing.txt'" in refused(command, "--flagfile=missing.txt", cwd=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--rl.iterations=3"], "--rl.iterations=3: there is no such flag; did you mean --config.rl.iterations=3?"),
        (["config.rl.iterations=3"], "config.rl.iterations=3 is not a flag; did you mean --config.rl.iterations=3?"),
        (["rl.iterations", "3"], "rl.iterations is not a flag; did you mean --config.rl.iterations=3?"),
        (["rl.iterations", "=", "3"], "rl.iterations is not a flag; did you mean --config.rl.iterations=3?"),
        (["--rl.iterations", "3"], "--rl.iterations: there is no such flag; did you mean --config.rl.iterations=3?"),
        (["--", "rl.iterations=3"], "rl.iterations=3 is not a flag; did you mean --config.rl.iterations=3?"),
        (["iterations=3"], "iterations=3 is not a flag; did you mean --config.rl.iterations=3?"),
        (["steps=3"], "steps=3 is not a flag; did you mean --config.evaluation.steps=3 or --config.sampler.steps=3?"),
        (["seed=3", "--workdir=x"], "seed=3 is not a flag; did you mean --config.seed=3?"),
        (["workdir=x"], "workdir=x is not a flag; did you mean --workdir=x?"),
        (["--config.rl.iteration", "3"], "--config.rl.iteration: there is no such key; did you mean --config.rl.iterations=3?"),
        (["--worksdir", "x"], "--worksdir: there is no such flag; did you mean --workdir=x?"),
        (["---workdir=x"], "---workdir=x: there is no such flag; did you mean --workdir=x?"),
        (["--config.inpainting.enabled", "False"], "False is not a flag; did you mean --config.inpainting.enabled=False?"),
        (["--config.rl.iterations"], "--config.rl.iterations has no value; give it as --config.rl.iterations=VALUE"),
        (
            ["--config.rl.iterations", "--workdir=x"],
            "--config.rl.iterations has no value before --workdir=x; give it as --config.rl.iterations=VALUE",
        ),
        (["--workdir", "--config.seed=3"], "--workdir has no value before --config.seed=3; give it as --workdir=VALUE"),
        (["--flagfile=words.txt"], "rl.iterations=4 is not a flag; did you mean --config.rl.iterations=4?"),
    ],
)
def test_the_message_names_what_was_meant(arguments, message, tmp_path):
    (tmp_path / "words.txt").write_text("--workdir=x\nrl.iterations=4\n")
    assert refused("train", "--config=arithmetic.py", *arguments, cwd=tmp_path) == f"error: {message}\n"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--config", "--workdir=x"], "--config has no value before --workdir=x; give it as --config=VALUE"),
        (["arithmetic.py"], "arithmetic.py is not a flag; did you mean --config=arithmetic.py?"),
        (["rl.iterations=3"], "rl.iterations=3 is not a flag; did you mean --config.rl.iterations=3?"),
        (
            ["--config.rl.iterations=3"],
            "--config.rl.iterations=3 changes a key of a config file, but there is no --config=FILE",
        ),
        (["--workdir=x"], "flag --config=None: Flag --config must have a value other than None."),
    ],
)
def test_without_a_config_file_the_message_is_as_clear(arguments, message, tmp_path):
    assert refused("train", *arguments, cwd=tmp_path) == f"error: {message}\n"


def test_words_of_compare_and_report_are_checked(tmp_path):
    assert "did you mean --seeds=0..1?" in refused("compare", "--config=arithmetic.py", "seeds=0..1", cwd=tmp_path)
    assert "did you mean --quick=True?" in refused("compare", "--config=arithmetic.py", "--quick", "True", cwd=tmp_path)
    (tmp_path / "run").mkdir()
    assert "did you mean --output=x.html?" in refused("report", "run", "output=x.html", cwd=tmp_path)
    assert "there is no folder other" in refused("report", "other", cwd=tmp_path)
    assert "diff DIR DIR" in refused("evaluate", "diff", "run", "run", "run", cwd=tmp_path)


@pytest.mark.parametrize(
    "command, required", [("convert", ["source", "target"]), ("rewrite", ["problems", "output", "tokenizer"])]
)
def test_all_missing_flags_are_named_in_one_line(command, required, tmp_path):
    message = refused(command, cwd=tmp_path)
    assert all(f"flag --{flag}=None: Flag --{flag} must have a value" in message for flag in required)


def test_completions_are_not_written_through_a_link(tmp_path):
    (tmp_path / "of_others").write_text("")
    (tmp_path / "out").symlink_to("of_others")
    message = refused("generate", "--model=x", "--prompt=y", "--output=out", cwd=tmp_path)
    assert message == "error: --output=out is a symbolic link; give the file itself\n"


def test_a_file_for_completions_that_cannot_be_written_is_told_before_the_model_is_read(tmp_path):
    message = refused("generate", "--model=.", "--prompt=y", "--output=nowhere/out", cwd=tmp_path)
    assert message == "error: [Errno 2] No such file or directory: 'nowhere/out'\n"


@pytest.mark.slow
def test_completions_are_printed_although_their_file_cannot_be_written(tmp_path):
    program = """import resource, sys
import numpy as np
from absl import flags
from igpo_jax import generate
flags.FLAGS(["generate", "--model=x", "--output=out"])
resource.setrlimit(resource.RLIMIT_FSIZE, (60, 60))  # as a disk that is full after one row
texts = [generate.Completion(text, np.zeros(2, int), np.zeros(2, int)) for text in ("one", "two", "three")]
try:
    generate.print_completions(None, ["a", "b", "c"], texts)
except OSError as error:
    print(error.strerror, error.filename)"""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == "--- 'a'\none\n--- 'b'\ntwo\n--- 'c'\nthree\nFile too large out\n", done.stderr
    assert (tmp_path / "out").read_text().startswith('{"prompt": "a", "text": "one", "tokens": [0, 0]}\n')


@pytest.mark.parametrize("arguments", [
    ("generate", "--model=x", "--prompt=y", "--seed={}"),
    ("evaluate", "--config=evaluate_math.py", "--config.model=x", "--config.seed={}"),
    ("train", "--config=arithmetic.py", "--workdir=x", "--config.seed={}"),
])  # fmt: skip
def test_a_seed_that_is_too_large_is_refused(arguments, tmp_path):
    assert f"seed={2**63}" in refused(*(argument.format(2**63) for argument in arguments), cwd=tmp_path)


@pytest.mark.parametrize("arguments", [
    ("rewrite", "--problems=jsonl:x", "--tokenizer=x", "--output=x", "--temperature=nan"),
    ("generate", "--model=x", "--prompt=y", "--cfg_scale=nan"),
    ("train", "--config=arithmetic.py", "--workdir=x", "--config.rl.probe_limit=inf"),
])  # fmt: skip
def test_a_flag_is_a_finite_number(arguments, tmp_path):
    assert refused(*arguments, cwd=tmp_path) == f"error: {arguments[-1]} is no finite number\n"


@pytest.mark.parametrize("module", [("igpo_jax", "report"), ("igpo_jax.report",)])
def test_a_deleted_working_folder_is_told_in_one_line(module, tmp_path):
    (tmp_path / "gone").mkdir()
    command = f'rmdir "$PWD" && exec {shlex.join([sys.executable, "-m", *module])} run'
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path / "gone", env=environment, capture_output=True, text=True)
    told = "error: the working folder cannot be used: No such file or directory; change to another folder\n"
    assert (done.returncode, done.stderr) == (1, told)


def test_a_message_has_one_short_line(tmp_path):
    message = refused("generate", "--promtp=" + "What is\n17 + 25? " * 100, cwd=tmp_path)
    assert "did you mean --prompt=What is 17 + 25?" in message and len(message) < 400


@pytest.mark.parametrize(
    "arguments",
    [
        ("report", "{}"),
        ("generate", "--prompt=x", "--model={}"),
        ("convert", "--source={}", "--target=out"),
        ("evaluate", "--workdir={}"),
        ("evaluate", "--regrade={}"),
        ("inspect_data", "--config=math.py:smoke", "--config.task.sft=jsonl:{}"),
    ],
)
def test_a_message_escapes_control_characters_of_names(arguments, tmp_path):
    name = "a\nb\x1b[2J\u202ec"
    (tmp_path / name).mkdir()
    message = refused(*(argument.format(name) for argument in arguments), cwd=tmp_path)
    assert message[:-1].isprintable()
    assert "a\\nb\\x1b[2J\\u202ec" in message


@pytest.mark.parametrize("key", ["\x1b[31mX\x1b]0;pwn\x07\nerror: fake", "x" * 100_000])
def test_diff_prints_no_control_characters_and_no_long_keys_of_its_files(key, tmp_path):
    for name, protocol in (("one", {key: 1}), ("other", {key: "\x1b[2J" * 1000})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "card.json").write_text(json.dumps({"benchmarks": {"a": {}}, "protocol": {"a": protocol}}))
    message = refused("evaluate", "diff", "one", "other", cwd=tmp_path)
    assert message[:-1].isprintable() and len(message) < 1000 and "the protocols differ" in message
    for name in ("one", "other"):
        (tmp_path / name / "card.json").write_text(
            json.dumps({"benchmarks": {"a": {}, key: {}} if name == "one" else {"a": {}}})
        )
    message = refused("evaluate", "diff", "one", "other", cwd=tmp_path)
    assert message[:-1].isprintable() and len(message) < 1000 and "is not a plain file name" in message


def test_commands_print_nothing_unescaped():
    """Texts of files, and names of folders, may have control characters."""
    found = set()
    for command, text in SOURCES.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print":
                [printed, *_] = node.args
                escaped = isinstance(printed, ast.Call) and getattr(printed.func, "id", "") == "escape_controls"
                if not escaped and not isinstance(printed, ast.Constant):
                    found.add((command, ast.unparse(printed)[:20]))
    # Two print numbers, one a finding of its own, and the parts of generate's were escaped before colors were added.
    safe = [("doctor", "f'{problems} problem"), ("doctor", "Finding('problem', n"), ("generate", 'f"step {step + 1}: {')]
    assert found == {*safe, ("rewrite", "f'{len(unanswered)} ")}


@pytest.mark.parametrize("end", ["sys.exit('error: x')", "raise OSError('x')"])
def test_a_failed_command_does_not_wait_for_its_threads_forever(end):
    program = f"""import sys, threading
from igpo_jax import cli
def main(_):
    threading.Thread(target=threading.Event().wait).start()
    {end}
cli.PATIENCE = 0.1
cli.run_command(main, cli.parse_arguments)"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.splitlines()[-1] in ("error: x", "OSError: x")


def test_messages_and_logs_are_short_and_cannot_command_the_terminal():
    program = """import logging, sys
from igpo_jax import cli
def main(_):
    logging.getLogger("x").warning("%s", "\\x1b]52;c;YQ==\\x07 log")
    print(cli.escape_controls("\\x1b[2J\\u202e\\r\\x9b a\\n\\tb\\udcff"))
    sys.exit("error: \\x1b[2J\\n" + "a" * 1_000_000)
cli.PATIENCE = 0.1
cli.run_command(main, cli.parse_arguments)"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "\\x1b[2J\\u202e\\r\\x9b a\n\tb\\udcff\n"
    *logged, message = done.stderr.splitlines()
    assert "\\x1b]52;c;YQ==\\x07 log" in "".join(logged) and "\x1b" not in done.stderr
    assert message.startswith("error: \\x1b[2J\\naaa") and message.endswith("a...") and len(message) < 11_000


def test_characters_that_the_terminal_lacks_are_escaped():
    program = """import sys
from igpo_jax import cli
def main(_):
    print("accuracy \\xb1 1")
    cli.tell("\\xe9")
    sys.exit("error: \\xe9")
cli.PATIENCE = 0.1
cli.run_command(main, cli.parse_arguments)"""
    environment = os.environ | {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "PYTHONIOENCODING": ""}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("accuracy \\xb1 1\n", "\\xe9\nerror: \\xe9\n")


def test_exceptions_that_nobody_can_catch_are_not_printed():
    """As of Orbax's tasks and coroutines, when a checkpoint cannot be read."""
    program = """import asyncio, gc
from igpo_jax import cli
async def fail():
    raise ValueError("x")
async def begin():
    task = asyncio.create_task(fail())
    await asyncio.sleep(0)
    del task
    gc.collect()
def main(_):
    asyncio.run(begin())
cli.run_command(main, cli.parse_arguments)"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_spellings_that_absl_accepts_are_accepted(tmp_path):
    """They reach the check of the values."""
    for arguments in (
        ["-config", "arithmetic.py", "--config.rl.prompts", "-3"],
        ["-config=arithmetic.py", "-config.rl.prompts=-3"],
    ):
        assert "rl.prompts=-3" in refused("train", "--workdir=x", *arguments, cwd=tmp_path)
    done = commands.run("generate", "--help")
    assert "--model" in done.stdout and "--[no]chat" in done.stdout


@pytest.mark.slow
def test_overrides_reach_the_runs_of_a_comparison_however_they_are_spelled():
    program = (
        "import sys\nfrom igpo_jax import cli\ncli.define_config()\n"
        "cli.parse_arguments(sys.argv)\nprint(cli.config_overrides(sys.argv[1:]))"
    )
    given = [
        f"--config={CONFIGS / 'arithmetic.py'}",
        "--config.rl.prompts",
        "4",
        "-config.seed=2",
        "--noconfig.inpainting.enabled",
    ]
    given += ["--config.reward.format", "--config.task.name=a=b"]
    done = subprocess.run([sys.executable, "-c", program, *given], capture_output=True, text=True)
    assert done.stdout.strip() == str(
        ["--config.rl.prompts=4", "--config.seed=2", "--config.inpainting.enabled=False", "--config.reward.format=True",
         "--config.task.name=a=b"]
    ), done.stderr  # fmt: skip


def test_the_doctor_can_parse_flags_on_a_machine_without_jax():
    program = "import sys; sys.modules |= dict.fromkeys(['jax', 'ml_collections']); import igpo_jax.cli, igpo_jax.doctor"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@pytest.mark.slow
def test_lm_eval_says_how_to_install_the_harness():
    code = "import runpy, sys; sys.modules['lm_eval'] = None; runpy.run_module('igpo_jax.lm_eval', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"}
    )
    assert done.returncode == 1
    assert re.fullmatch(r"error: lm_eval\S* is not installed; igpo_jax.lm_eval needs: pip install .*lm-eval.*\n", done.stderr)
