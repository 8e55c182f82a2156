"""python -m igpo_jax.evaluate --workdir=DIR [--stage=sft|rl]

Accuracy of a run's newest checkpoint on the test problems, decoded as its configuration says.
"""

import json
import sys

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict

from igpo_jax.experiment import open_experiment, read_config
from igpo_jax.model.transformer import abstract
from igpo_jax.runtime.checkpoint import Checkpoints
from igpo_jax.runtime.results import decoding, environment, interval

WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder.", required=True)
STAGE = flags.DEFINE_enum("stage", "rl", ["sft", "rl"], "Which stage's newest checkpoint.")
