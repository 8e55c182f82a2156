"""Runs igpo_jax commands that announce what they are about to do; used by faults.py.

A request is one JSON line on standard input: argv, cwd, and log (the file that receives the command's output). Standard output
gets the command's process id, one line per event (see `MOMENTS`), and "ended" with the exit status. Commands are forked from
this process, which has imported everything and started no thread: imports would dominate the time of a short run.
"""

import functools
import importlib
import json
import os
import runpy
import sys

IMPORTED = ("cli", "run.experiment", "run.results", "stages.rl", "stages.sft", "report.page", "evaluate.samplers")
# Event announced when the function is called; {} is the checkpoint folder.
MOMENTS = {
    "igpo_jax.run.experiment:Experiment.verdicts": "evaluation",
    "igpo_jax.run.checkpoint:Checkpoints.save": "{} checkpoint",
    "igpo_jax.run.metrics:MetricsWriter.write": "line of the log",
    "igpo_jax.stages.rl:rollout": "rollout",
    "igpo_jax.stages.rl:compute_logprobs": "between rollout and update",
    "igpo_jax.run.results:write_result": "end",
    "igpo_jax.evaluate.benchmark:_verdicts": "batch of igpo_jax.evaluate",
}
# Same, for the function returned by this function.
MAKERS = {"igpo_jax.stages.sft:make_sft_update": "SFT update", "igpo_jax.stages.rl:make_update_of_parts": "RL update"}


def main() -> None:
    sys.modules["torch"] = None  # tensorboardX would import it if installed; unused here
    for name in IMPORTED:
        importlib.import_module(f"igpo_jax.{name}")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            break
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print("ended", os.waitstatus_to_exitcode(status), flush=True)
    else:
        return
    request, said = json.loads(line), os.dup(1)
    for fd, path, flags in ((0, os.devnull, os.O_RDONLY), (1, request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)):
        os.dup2(os.open(path, flags), fd)
    os.dup2(1, 2)
    os.chdir(request["cwd"])
    sys.path.insert(0, request["cwd"])
    announce(said)
    sys.argv = request["argv"]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def announce(fd: int) -> None:
    """Wraps the functions of `MOMENTS` and `MAKERS`, so that each call writes a line to `fd`."""

    def announcing(function, moment: str):
        @functools.wraps(function)
        def announced(*args, **options):
            folder = args[0].folder.name if "{}" in moment else ""
            os.write(fd, f"{moment.format(folder)}\n".encode())
            return function(*args, **options)

        return announced

    def announcing_made(make, moment: str):
        return lambda *args, **options: announcing(make(*args, **options), moment)

    for places, wrap in ((MOMENTS, announcing), (MAKERS, announcing_made)):
        for place, moment in places.items():
            module, _, path = place.partition(":")
            *parents, attribute = path.split(".")
            owner = functools.reduce(getattr, parents, importlib.import_module(module))
            setattr(owner, attribute, wrap(getattr(owner, attribute), moment))


if __name__ == "__main__":
    main()
