"""A supervised stage that is counted in epochs equals one that is counted in updates, and resumes."""

import shutil

import numpy as np
import pytest

from run_log import untimed
from same_run import assert_same_run, final_params

# 1,024 problems less 48 held out and 0 dropped, in batches of 64: 15 updates per epoch
SHORT = ("--config.rl.iterations=2", "--config.sft.checkpoint_every=10", "--config.sft.eval_every=15")
EPOCHS = (*SHORT, "--config.sft.updates=0", "--config.sft.epochs=2")


@pytest.mark.slow
def test_epochs_equal_updates_and_resume(command, tmp_path, mesh):
    counted, whole, killed = tmp_path / "counted", tmp_path / "whole", tmp_path / "killed"
    for workdir, flags in ((counted, (*SHORT, "--config.sft.updates=30")), (whole, EPOCHS)):
        done = command.train(workdir, *flags)
        assert done.returncode == 0 and "30 supervised updates of 64 solutions; 2 RL iterations" in done.stdout, done.stderr
    assert untimed(whole) == untimed(counted)
    for stage in ("sft", "rl"):
        one, other = (final_params(workdir, stage, mesh) for workdir in (whole, counted))
        assert one[0] == other[0] and all(map(np.array_equal, one[1], other[1]))

    command.train_until_killed(killed, "sft", 20, *EPOCHS)
    assert command.train(killed, *EPOCHS).returncode == 0
    assert_same_run(killed, whole, mesh)
    shutil.rmtree(killed / "checkpoints" / "sft")
    lost = command.train(killed, *EPOCHS)
    assert lost.returncode == 1 and "has no checkpoint of the end of the supervised stage (update 30)" in lost.stderr
