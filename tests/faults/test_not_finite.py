"""Losses and gradients that are not finite: a few updates are skipped; many consecutive ones end the run with a diagnosis."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from igpo_jax.model.transformer import ModelConfig, init, shardings
from igpo_jax.run.checkpoint import Checkpoints
from igpo_jax.run.metrics import read_rows
from igpo_jax.stages.divergence import Diverged, check_parameters, count_skipped, stop_diverged
from igpo_jax.training.policy import Policy
from igpo_jax.training.state import OptimizerConfig, apply_gradients, create_state, make_optimizer

CFG = ModelConfig(vocab_size=24, mask_id=1, eos_id=2, width=16, layers=1, heads=2, kv_heads=2, mlp_width=16, head_chunk=8)


@pytest.fixture(params=[(1, 1, 1), (2, 2, 2)], ids=str)
def update(request, mesh_of):
    """(fresh state, compiled update from a loss and gradients)."""
    mesh = mesh_of(request.param)
    params = jax.jit(init, static_argnums=1, out_shardings=shardings(CFG, mesh))(jax.random.key(0), CFG)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2, warmup_steps=3), 10, Policy(CFG))
    state = create_state(params, optimizer, Policy(CFG), mesh)
    return state, jax.jit(lambda state, loss, gradients: apply_gradients(state, loss, gradients, optimizer))


def moments(state):
    return optax.tree.get(state.opt_state, "ScaleByAdamState")


@pytest.mark.parametrize("loss, bad", [(jnp.nan, None), (1.0, jnp.nan), (1.0, jnp.inf), (1.0, 1e30)])
def test_an_update_that_is_not_finite_changes_nothing_but_its_number_and_the_schedule(loss, bad, update):
    state, apply = update
    gradients = jax.tree.map(lambda x: jnp.full_like(x, 0.1), state.params)
    before, _, _ = apply(state, jnp.float32(1), gradients)
    wrong = gradients | {"blocks": gradients["blocks"] | {"query": gradients["blocks"]["query"].at[0, 3, 5].set(bad or 0.1)}}
    after, norm, finite = apply(before, jnp.float32(loss), wrong)
    assert bad is None or not np.isfinite(norm)
    jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
    jax.tree.map(np.testing.assert_array_equal, moments(after), moments(before))
    assert after.step == 2 and optax.tree.get(after.opt_state, "ScaleByScheduleState").count == 2
    assert moments(after).count == 1
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(state.params)]
    assert [name for name, good in zip(names, finite, strict=True) if not good] == ["['blocks']['query']"] * (bad is not None)
    following, _, _ = apply(after, jnp.float32(1), gradients)
    assert not np.array_equal(following.params["blocks"]["query"], before.params["blocks"]["query"])


@pytest.mark.parametrize("skipped, before, after", [([0, 0], 3, 0), ([1, 1], 3, 5), ([1, 0, 1, 1], 3, 2), ([1, 0], 3, 0)])
def test_skipped_updates_in_a_row_are_counted_over_lines_of_the_log(skipped, before, after):
    assert count_skipped(np.array(skipped, bool), before) == after


def test_the_batch_of_a_diverged_run_is_not_written_through_a_link(tmp_path):
    (tmp_path / "own").write_text("own")
    (tmp_path / "run").mkdir()
    file = tmp_path / "run" / "diverged-sft-7.npz"
    file.symlink_to(tmp_path / "own")
    last = {"loss": np.nan, "grad_norm": np.nan, "finite_gradients": {"w": True}}
    with Checkpoints(tmp_path / "run" / "checkpoints" / "sft", keep=1) as checkpoints, pytest.raises(Diverged, match=str(file)):
        stop_diverged(tmp_path / "run", 7, "sft", 3, last, {"w": jnp.ones(3)}, {"tokens": np.arange(4)}, checkpoints)
    assert (tmp_path / "own").read_text() == "own" and np.load(file)["tokens"].tolist() == [0, 1, 2, 3]


def test_parameters_that_are_not_finite_are_not_saved(tmp_path):
    state = {"w": jnp.ones(3), "v": jnp.array([1.0, jnp.inf])}
    with Checkpoints(tmp_path / "checkpoints/sft", keep=2) as checkpoints:
        checkpoints.save(4, state, jax.random.key(0))
        with pytest.raises(Diverged) as error:
            check_parameters(state, 7, checkpoints)
    assert str(error.value) == (
        f"after update 7 the parameter v is not finite and is not saved; the checkpoint {tmp_path}/checkpoints/sft/4 is good. "
        "Try a smaller learning rate in another --workdir"
    )


SHORT = ("--config.sft.updates=60", "--config.sft.eval_every=0", "--config.rl.iterations=3", "--config.rl.eval_every=0")
# A configuration, executed in the training process, that replaces the gradients of these updates.
SPOILED = """
import jax, jax.numpy as jnp
import {module} as module

original = module.apply_gradients

def apply_gradients(state, loss, gradients, optimizer):
    bad = jnp.isin(state.step, jnp.array({updates}))
    spoiled = jax.tree.map(lambda x: x, gradients)
    spoiled["blocks"]["query"] = jnp.where(bad, jnp.nan, gradients["blocks"]["query"])
    return original(state, loss, spoiled, optimizer)

module.apply_gradients = apply_gradients
"""


def spoiled(tiny, folder, module, updates):
    file = folder / "spoiled.py"
    file.write_text(tiny.read_text() + SPOILED.format(module=module, updates=updates))
    return file


def last_line(process) -> str:
    assert process.returncode == 1, process.stderr
    assert "Traceback" not in process.stderr
    return process.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_a_supervised_stage_skips_a_few_and_stops_at_many(command, tiny, tmp_path):
    workdir = tmp_path / "run"
    config = spoiled(tiny, tmp_path, "igpo_jax.stages.sft", [5, 6, 30, *range(45, 60)])
    process = command("train", f"--config={config}", f"--workdir={workdir}", *SHORT)
    batch = workdir / "diverged-sft-60.npz"
    assert last_line(process) == (
        "error: update 60 is number 15 in a row that was skipped, with loss "
        f"{re.search('with loss ([0-9.]+) ', process.stderr)[1]} and gradient norm nan. What is finite: parameters and loss "
        f"are, the gradient of blocks.query is not. Its batch is in {batch}; the checkpoint {workdir}/checkpoints/sft/40 is "
        "good. Try a smaller learning rate in another --workdir, or go on with a higher --config.skip_limit"
    )
    rows = read_rows(workdir / "metrics.jsonl")
    assert [(row["update/skipped"], row["update/consecutive_skips"]) for row in rows] == [(2, 0), (1, 0), (15, 15)]
    assert all(row["sft/loss"] > 0 for row in rows) and rows[-1]["sft/grad_norm"] is None
    assert {name: array.shape[0] for name, array in np.load(batch).items()} == {
        "tokens": 64,
        "prompt_mask": 64,
        "completion": 64,
    }
    # The same command ends the same way; with a higher limit the run continues.
    assert last_line(command("train", f"--config={config}", f"--workdir={workdir}", *SHORT)) == last_line(process)
    more = ("--config.skip_limit=16", "--config.rl.iterations=3")
    process = command("train", f"--config={config}", f"--workdir={workdir}", *SHORT, *more)
    assert process.returncode == 0, process.stderr
    assert sum(row.get("update/skipped", 0) for row in read_rows(workdir / "metrics.jsonl")) == 18


@pytest.mark.slow
def test_an_rl_stage_skips_a_few_and_stops_at_many(command, tiny, tmp_path):
    workdir = tmp_path / "run"
    config = spoiled(tiny, tmp_path, "igpo_jax.rl.update", [1, 3, 4, 5])
    process = command("train", f"--config={config}", f"--workdir={workdir}", *SHORT, "--config.skip_limit=3")
    batch = workdir / "diverged-rl-66.npz"
    message = last_line(process)
    assert message.startswith("error: update 66 is number 3 in a row that was skipped, with loss ")
    assert f"parameters and loss are, the gradient of blocks.query is not. Its batch is in {batch}; the checkpoint " in message
    assert f"{workdir}/checkpoints/rl/2 is good" in message
    rows = [row for row in read_rows(workdir / "metrics.jsonl") if "policy/loss" in row]
    assert [(row["update/skipped"], row["update/consecutive_skips"]) for row in rows] == [(1, 1), (1, 1), (2, 3)]
    assert None not in (rows[0]["policy/grad_norm"], rows[1]["policy/grad_norm"]) and rows[2]["policy/grad_norm"] is None
    saved = np.load(batch)
    assert saved["groups.completions"].shape[:2] == (8, 8) and "reference" in saved and "old" in saved


@pytest.mark.slow
def test_a_learning_rate_that_breaks_the_parameters_says_which(command, tiny, tmp_path):
    workdir, config = tmp_path / "run", tmp_path / "unlimited.py"
    config.write_text(tiny.read_text() + "\nimport igpo_jax.runtime.checks\nigpo_jax.runtime.checks.MOST_NUMBER = 1e50\n")
    process = command("train", f"--config={config}", f"--workdir={workdir}", *SHORT, "--config.sft.optimizer.learning_rate=1e42")
    assert re.search("error: .*(the parameter [a-z._]+ itself is not|after update 20 the parameter)", last_line(process))
    assert "no checkpoint had been saved" in process.stderr
    assert not [path for path in (workdir / "checkpoints/sft").iterdir() if path.name.isdigit()]
    assert json.loads((workdir / "config.json").read_text())["skip_limit"] == 5


def test_a_limit_below_one_is_refused(command, tiny, tmp_path):
    process = command("train", f"--config={tiny}", f"--workdir={tmp_path / 'run'}", "--config.skip_limit=0")
    assert last_line(process) == "error: skip_limit=0 must be at least 1"
