"""python -m igpo_jax.train --config=arithmetic.py [--workdir=DIR] [--config.key=value ...]

Runs supervised training, RL with IGPO, and evaluations, and writes a report. The same command resumes an interrupted run."""

from igpo_jax.runtime import interrupts

if __name__ == "__main__":  # before the slow imports
    interrupts.install("stopped by a signal; the same command continues the run", sigterm_status=0)

import contextlib
import importlib.util
import json
import pathlib
import sys
from typing import Any

import jax
from absl import flags, logging

from igpo_jax.cli import define_config, define_json, escape_controls, parse_flags, run_command
from igpo_jax.report.page import write_report
from igpo_jax.run.bucket_runs import opened_workdir
from igpo_jax.run.experiment import Experiment, open_experiment
from igpo_jax.run.results import first_lines, result_lines, shown_path, write_result
from igpo_jax.runtime import distributed, preemption, streams
from igpo_jax.runtime.buckets import with_addresses
from igpo_jax.runtime.files import read_json
from igpo_jax.runtime.host import cache_compiled_programs, explain_shortage
from igpo_jax.runtime.installation import command_igpo
from igpo_jax.runtime.preemption import Terminated
from igpo_jax.stages.divergence import Diverged
from igpo_jax.stages.training import train
from igpo_jax.tasks import TASKS

CONFIG = define_config()
MEMORY_KEYS = (
    "higher --config.sft.microbatches, --config.rl.microbatches or --config.rl.rollout_chunks, a lower "
    "--config.evaluation.batch_size, or --config.model.remat=full, with which the same command continues the run"
)
WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder, which may be gs://BUCKET/RUN; runs/<config> by default.")
JSON = define_json()
ACCEPT_LOSS = flags.DEFINE_bool(
    "accept_loss", False, "Continue a run although its logs have lost or foreign lines, or its newest checkpoints are missing."
)


@distributed.ending_at_once()
def main(_):
    logging.set_verbosity(logging.WARNING)  # Orbax reports every file at INFO
    if not JSON.value:  # which prints the results themselves; without them, the command has failed
        streams.use_as_log("stdout")
    distributed.initialize(saves_on_signals=True)
    flag: Any = flags.FLAGS["config"]
    name, _, variant = flag.config_filename.partition(":")
    default = pathlib.Path("runs", "-".join(filter(None, (pathlib.Path(name).stem, variant))))
    workdir = WORKDIR.value or str(default)
    # With --json, only the results go to stdout. The functions of a task may print.
    with contextlib.redirect_stdout(sys.stderr if JSON.value else sys.stdout), contextlib.ExitStack() as held:
        try:
            folder, upload = held.enter_context(opened_workdir(workdir))
            experiment = open_experiment(CONFIG.value, folder, ACCEPT_LOSS.value, upload)
        except (ValueError, OSError) as error:
            sys.exit(f"error: {error}")
        lines = train_and_report(experiment)
    if jax.process_index() == 0:
        print(escape_controls("\n".join(lines)))


def train_and_report(experiment: Experiment) -> list[str]:
    """Trains the model of a run, and writes the results and the report of the run. Returns lines with the main numbers, or []
    if this is not process 0. Ends the process if a signal or an error stops the training."""
    cache_compiled_programs()
    if jax.process_index() == 0:
        print(escape_controls("\n".join(first_lines(experiment))), flush=True)
        tested = "the test split or a benchmark" if experiment.benchmarks else "the test split"
        for split, number in experiment.dropped.items():
            where = "held out as well; dropped from sft" if split == "heldout" else f"in {tested}, too; dropped from {split}"
            print(escape_controls(f"{number} training problems are {where}"), flush=True)
    try:
        train(experiment)
        if jax.process_index() == 0:
            result = read_json(write_result(experiment))
            report = write_report(experiment.workdir)
            experiment.upload()
    except Terminated as stop:
        if jax.process_index() == 0:
            print(escape_controls(f"{stop}; the same command continues the run"), flush=True)
        sys.exit(preemption.exit_status())
    except Diverged as error:
        sys.exit(f"error: {error}")
    except Exception as error:
        shortage = explain_shortage(error, MEMORY_KEYS)
        if jax.process_count() > 1 or not (shortage or isinstance(error, ValueError | OSError)):
            print(escape_controls(with_addresses(f"error: {shortage or error}")), file=sys.stderr)
            raise  # ends this process at once, because an orderly exit would wait for the other processes
        sys.exit(f"error: {shortage or error}")
    if jax.process_index() != 0:
        return []
    folder = shown_path(experiment.workdir)
    ways = [f"report: {folder}/report.html"] * (report is not None) + [f"next: {next_command(experiment, folder)}"]
    return [json.dumps(result, indent=2)] if JSON.value else [*result_lines(result), *ways]


def next_command(experiment: Experiment, folder: str) -> str:
    """Returns the command with which a user can try the trained model: `playground` if its packages are installed, otherwise
    `generate`."""
    task = experiment.config.task.name
    trust = "" if task in TASKS else f" --trust={task}"
    has_playground = all(map(importlib.util.find_spec, ("starlette", "uvicorn", "PIL")))
    how = "playground" if has_playground else "generate --prompt=..."
    return f"{command_igpo()} {how} --model={folder}{trust}"


def run() -> None:
    flags.mark_flag_as_required("config")
    run_command(main, parse_flags)


if __name__ == "__main__":
    run()
