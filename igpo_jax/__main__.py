"""igpo COMMAND [flags]

Runs a command of igpo_jax: `igpo train --config=math.py` is the same as `python -m igpo_jax.train --config=math.py`."""

import difflib
import itertools
import os
import runpy
import sys

import igpo_jax
from igpo_jax.runtime import streams
from igpo_jax.runtime.installation import working_folder

COMMANDS = {
    "train": "supervised training, RL with IGPO, evaluations and a report; resumes an interrupted run",
    "evaluate": "evaluates a model or a run on benchmarks, and compares evaluations",
    "generate": "completes prompts, or fills the blanks of templates",
    "playground": "a local page: type a prompt or a template, and watch the canvas fill",
    "lm_eval": "runs EleutherAI's lm-evaluation-harness on a model or a run",
    "report": "writes the HTML report of a run, or a page that compares several runs",
    "compare": "trains and compares variants of the method over several seeds",
    "plan": "does a run fit into memory, and how long does it take? needs no accelerator",
    "inspect_data": "describes the problems that a run would read",
    "rewrite": "shortens the solutions of a data set, for supervised training",
    "convert": "converts models between Hugging Face's format, this package and adapters",
    "doctor": "checks this machine and the installation",
}


def names_own_code(arguments: list[str]) -> bool:
    """Returns whether the arguments of a command name code in the working folder: a configuration, or a module of a task or a
    reward. If they name none, nothing may be imported from this folder, because its files may come from an untrusted source.
    Libraries try to import many modules that are not installed, and a file in this folder may have the name of such a
    module."""
    for argument, following in itertools.zip_longest(arguments, arguments[1:], fillvalue=""):
        name, equals, value = argument.lstrip("-").partition("=")
        if name in ("trust", "config.task.name", "config.reward.function"):
            return True
        file = os.path.abspath((value if equals else following).partition(":")[0])
        is_here = os.path.dirname(file) == os.getcwd() and any(map(os.path.isfile, (file, f"{file}.py")))
        if name == "config" and is_here:
            return True
    return False


def main() -> None:
    streams.open_closed()
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help", "help", "--version"):
        commands = "\n".join(f"  {command:<14}{about}" for command, about in COMMANDS.items())
        usage = f"igpo COMMAND [flags]      igpo COMMAND --help shows the flags of a command\n\n{commands}"
        with streams.checked_output():
            print(igpo_jax.__version__ if name == "--version" else usage)
        return
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        told = f"did you mean {near[0]}?" if near else f"there are: {', '.join(COMMANDS)}"
        sys.exit(f"error: {ascii(name)[:100]} is no command of igpo; {told}")
    try:
        working_folder()
    except ValueError as error:
        sys.exit(f"error: {error}")
    del sys.argv[1]
    if names_own_code(sys.argv[1:]) and not sys.flags.safe_path:
        sys.path.append(os.getcwd())  # behind all others, so that no file there hides a module of Python
    runpy.run_module(f"igpo_jax.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
