"""python -m igpo_jax.train --config=arithmetic.py [--workdir=DIR] [--config.key=value ...]

One run from start to end: supervised stage, IGPO, evaluation, report. The same command continues an interrupted run.
"""

import json
import pathlib
import sys

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from igpo_jax.command_line import parse_flags
from igpo_jax.experiment import open_experiment
from igpo_jax.rl.stage import run_rl
from igpo_jax.runtime.checkpoint import Checkpoints
from igpo_jax.runtime.report import write_report
from igpo_jax.runtime.results import write_result
from igpo_jax.sft import run_sft

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A file of configs/, or a path; file.py:variant for a variant."
)
WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder; runs/<config> by default.")


def main(_):
    try:
        experiment = open_experiment(CONFIG.value, WORKDIR.value or _default_workdir())
    except ValueError as error:
        sys.exit(f"error: {error}")
    settings = experiment.settings
    logging.set_verbosity(logging.WARNING)  # Orbax reports every file at INFO
    print(f"{experiment.workdir}: {jax.device_count()} x {jax.devices()[0].device_kind}", flush=True)
    with jax.set_mesh(experiment.mesh):
        checkpoints = {"keep": settings.checkpoints_kept, "fingerprint": experiment.fingerprint}
        with Checkpoints(experiment.workdir / "checkpoints" / "sft", **checkpoints) as saved:
            params = run_sft(experiment, saved)
        if settings.rl.iterations:
            with Checkpoints(experiment.workdir / "checkpoints" / "rl", **checkpoints, best=True) as saved:
                run_rl(experiment, params, saved)
    if jax.process_index() == 0:
        result = json.loads(write_result(experiment).read_text())
        write_report(experiment.workdir)
        shown = ("before_rl", "after_rl", "rl_start", "wall_seconds")
        print(json.dumps({key: result[key] for key in shown if key in result}, indent=2))
        print(f"report: {experiment.workdir / 'report.html'}")


def _default_workdir() -> str:
    name, _, variant = flags.FLAGS["config"].config_filename.partition(":")
    return str(pathlib.Path("runs", "-".join(filter(None, (pathlib.Path(name).stem, variant)))))


def run() -> None:
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=parse_flags)


if __name__ == "__main__":
    run()
