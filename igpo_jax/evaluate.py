"""python -m igpo_jax.evaluate --workdir=DIR [--stage=sft|rl]

Accuracy of a run's newest checkpoint on its test problems, decoded as its configuration says.
"""

import json
import sys

import jax
from absl import app, flags, logging

from igpo_jax.experiment import open_experiment, read_config, restore_run
from igpo_jax.runtime import distributed
from igpo_jax.runtime.files import write_whole
from igpo_jax.runtime.results import accuracy_with_interval, decoding, environment

WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder.", required=True)
STAGE = flags.DEFINE_enum("stage", None, ["sft", "rl"], "Whose newest checkpoint; by default the last stage's.")


def main(_):
    distributed.initialize()
    logging.set_verbosity(logging.WARNING)  # Orbax reports every file at INFO
    try:
        experiment = open_experiment(read_config(WORKDIR.value), WORKDIR.value)
        run = restore_run(experiment.workdir, experiment.mesh, STAGE.value)
    except ValueError as error:
        sys.exit(f"error: {error}")
    with jax.set_mesh(experiment.mesh):
        accuracy = experiment.accuracy(run.policy())
    result = {
        "stage": run.stage,
        "checkpoint": run.step,
        **accuracy_with_interval(accuracy, len(experiment.test_data.problems)),
    }
    result |= {"decode": decoding(experiment)} | environment()
    if jax.process_index() == 0:
        write_whole(experiment.workdir / "evaluation.json", json.dumps(result, indent=2))
        print(json.dumps(result, indent=2))


if __name__ == "__main__":
    app.run(main)
