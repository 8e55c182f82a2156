"""python -m igpo_jax.evaluate --workdir=DIR [--stage=sft|rl]

Accuracy of a run's newest checkpoint on its test problems, decoded as its configuration says.
"""

import json
import sys

import jax
from absl import app, flags

from igpo_jax.experiment import open_experiment, read_config
from igpo_jax.model.transformer import abstract
from igpo_jax.runtime.checkpoint import Checkpoints
from igpo_jax.runtime.files import write_whole
from igpo_jax.runtime.results import accuracy_with_interval, decoding, environment

WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder.", required=True)
STAGE = flags.DEFINE_enum("stage", None, ["sft", "rl"], "Whose newest checkpoint; by default the last stage's.")


def main(_):
    try:
        experiment = open_experiment(read_config(WORKDIR.value), WORKDIR.value)
        folder = experiment.workdir / "checkpoints"
        stage = STAGE.value or ("rl" if (folder / "rl").is_dir() else "sft")
        if not (folder / stage).is_dir():
            raise ValueError(f"{folder} has no checkpoints of the stage {stage!r}")
        with Checkpoints(folder / stage, keep=experiment.settings.checkpoints_kept) as checkpoints:
            restored = checkpoints.restore_params(abstract(experiment.model, experiment.mesh))
        if restored is None:
            raise ValueError(f"{folder / stage} is empty")
    except ValueError as error:
        sys.exit(f"error: {error}")
    step, params = restored
    with jax.set_mesh(experiment.mesh):
        accuracy = experiment.accuracy(params)
    result = {"stage": stage, "checkpoint": step, **accuracy_with_interval(accuracy, len(experiment.test_data.problems))}
    result |= {"decode": decoding(experiment)} | environment()
    if jax.process_index() == 0:
        write_whole(experiment.workdir / "evaluation.json", json.dumps(result, indent=2))
        print(json.dumps(result, indent=2))


if __name__ == "__main__":
    app.run(main)
