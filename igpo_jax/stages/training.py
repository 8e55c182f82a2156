"""Runs the stages of a run one after the other."""

import jax

from igpo_jax.run.bucket_runs import checkpoints_of
from igpo_jax.run.checkpoint import Checkpoints
from igpo_jax.run.experiment import Experiment
from igpo_jax.runtime import preemption
from igpo_jax.stages.rl import run_rl
from igpo_jax.stages.sft import run_sft


def train(experiment: Experiment) -> None:
    """Runs the supervised stage and then the RL stage. Each stage continues from its newest checkpoint if there is one."""
    config = experiment.config
    folder, keep = checkpoints_of(experiment.workdir), config.checkpoints_kept
    with preemption.listening() as preempted, jax.set_mesh(experiment.mesh):
        with Checkpoints(folder / "sft", keep=keep, identity=experiment.identity("sft")) as saved:
            start = run_sft(experiment, saved, preempted)
        if config.rl.iterations:
            every, identity = config.rl.keep_every, experiment.identity("rl")
            with Checkpoints(folder / "rl", keep=keep, keep_every=every, identity=identity, best=True) as saved:
                run_rl(experiment, start, saved, preempted)
