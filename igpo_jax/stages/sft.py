"""The supervised stage: masked-diffusion training on demonstrations (reference solutions)."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import grain
import jax
import numpy as np
import optax
from jax.sharding import Mesh

from igpo_jax.data.pipeline import SFTBatch, batches, cut_to_bucket, take_rows
from igpo_jax.diffusion.corruption import CORRUPTIONS, HELDOUT_LEVELS, heldout_metric, mask_share, negative_bound, sft_loss
from igpo_jax.model.sharding import Params
from igpo_jax.run.bucket_runs import checkpoints_of
from igpo_jax.run.checkpoint import Checkpoints
from igpo_jax.run.checkpoint_integrity import steps_in
from igpo_jax.run.experiment import Experiment
from igpo_jax.run.metrics import MetricsWriter, device_memory
from igpo_jax.runtime.checks import present
from igpo_jax.runtime.mesh import shard_batch, to_host
from igpo_jax.runtime.progress import progress
from igpo_jax.runtime.stopwatch import Stopwatch
from igpo_jax.stages.divergence import count_skipped
from igpo_jax.stages.stage import IterationState, Stage, is_due
from igpo_jax.training.policy import Policy, PolicyParams
from igpo_jax.training.state import TrainState, accumulate_gradients, apply_gradients, is_skipped, state_shardings

LOG_EVERY = 20  # updates


def make_sft_update(
    optimizer: optax.GradientTransformation, policy: Policy, corruption: str, microbatches: int, mesh: Mesh
) -> Callable:
    """Returns the compiled function (state, batch, key, base_params) -> (state, statistics), which computes one supervised
    update. The function donates `state`. `key` is the root key of the stage, and each update folds its step number into the
    key. `base_params` are the frozen parameters under the adapters in `state`, or None if there are no adapters. Updates with a
    non-finite loss or gradient are skipped, see `apply_gradients`."""

    def update(state: TrainState, batch: SFTBatch, key: jax.Array, base_params: Params | None = None):
        rows, length = batch.completion.shape
        corrupted = CORRUPTIONS[corruption](jax.random.fold_in(key, state.step), rows, length)

        def loss(trained, part):
            batch, corrupted = part
            params = policy.assemble(trained, base_params)
            return sft_loss(params, batch.tokens, batch.prompt_mask, batch.completion, corrupted, policy.model)

        value, gradients = accumulate_gradients(jax.value_and_grad(loss), state.params, (batch, corrupted), microbatches)
        state, norm, finite = apply_gradients(state, value, gradients, optimizer)
        return state, {"sft/loss": value, "sft/grad_norm": norm, "finite_gradients": finite}

    return jax.jit(update, donate_argnums=0, out_shardings=(state_shardings(optimizer, policy, mesh), None))


# (params, prompt tokens, prompt mask, completions, Corruption, model config) -> bound per row, f32[b]
heldout_bound = jax.jit(negative_bound, static_argnums=5)


def heldout_losses(experiment: Experiment, params: Params, check_preemption: Callable[[], None]) -> dict[str, float]:
    """Returns a dict with the loss per masked token of the held-out problems for each masking ratio in `HELDOUT_LEVELS`, and
    with the mean of these losses. Returns {} if there are no held-out problems. The masks depend only on the seed, so losses of
    different evaluations and runs are comparable. Must run under `jax.set_mesh(experiment.sampling_mesh)`. After every batch,
    all processes call `check_preemption`, which may raise an exception."""
    config, mesh = experiment.config, experiment.sampling_mesh
    if experiment.heldout is None:
        return {}
    heldout, size = cut_to_bucket(experiment.heldout, config.data.prompt_buckets), config.evaluation.batch_size
    total = len(heldout.completion)
    noise = np.random.default_rng(config.seed).random(heldout.completion.shape)
    ranks = noise.argsort(axis=1).argsort(axis=1).astype(np.int32)
    found = np.zeros((len(HELDOUT_LEVELS), total))
    for begin in range(0, total, size):
        rows = np.minimum(np.arange(begin, begin + size), total - 1)  # repeats fill the last batch
        batch = shard_batch(take_rows(heldout, rows), mesh)
        for level, share in enumerate(HELDOUT_LEVELS):
            corruption = shard_batch(mask_share(ranks[rows], share), mesh)
            found[level, rows] = to_host(heldout_bound(params, *jax.tree.leaves(batch), corruption, experiment.model))
        check_preemption()
    losses = found.mean(axis=1)
    by_share = {heldout_metric(share): loss for share, loss in zip(HELDOUT_LEVELS, losses, strict=True)}
    return {"heldout/loss": losses.mean(), **by_share}


def run_sft(experiment: Experiment, checkpoints: Checkpoints, preempted: Callable[[], bool]) -> PolicyParams:
    """Runs the supervised stage to its end. Starts from the newest checkpoint, or from the initial parameters if there is no
    checkpoint. Returns the trained parameters, or the initial ones if the run has no supervised stage. If preempted() returns
    True, saves a checkpoint and raises Terminated. Raises Diverged if the loss or gradient of `skip_limit` consecutive updates
    was not finite, or if a parameter is not finite.

    Args:
        preempted: function called before every update and after every batch of an evaluation."""
    config, sft = experiment.config, experiment.config.sft
    policy = Policy(experiment.model, config.lora)
    base = experiment.initial_params() if config.lora else None
    initial = experiment.initial_adapters if config.lora else experiment.initial_params
    if sft.updates == 0:
        return PolicyParams(initial(), base)
    stage, key = Stage("sft", experiment, checkpoints, preempted, policy, base), experiment.key(1)
    state = stage.restore(key) or stage.create(initial(), key)
    evaluated = not sft.eval_every or stage.is_evaluated(state)
    if state.done == stage.total and (evaluated or steps_in(checkpoints_of(experiment.workdir) / "rl")):
        return PolicyParams(state.train_state.params, base)  # leaves the log unchanged: the RL stage may have begun

    order = batches(present(experiment.sft_data), sft.batch_size, config.seed, config.data.prompt_buckets)
    update = make_sft_update(stage.optimizer, policy, sft.corruption, sft.microbatches, experiment.mesh)
    heldout = functools.partial(heldout_losses, experiment)
    with (
        MetricsWriter(experiment.workdir, state.done, upload=experiment.upload) as log,
        progress(stage.total, state.done, "SFT") as bar,
    ):
        checkpoints.log_sums = log.sums
        state = stage.with_counters(state)
        while True:
            stage.checkpoint_if_due(state, sft.checkpoint_every)
            if sft.eval_every and not state.evaluated and is_due(state.done, stage.total, sft.eval_every):
                stage.evaluate(state, log, heldout)
            if state.done == stage.total:
                break
            state, metrics, batch, last_update = run_updates(stage, order, update, state)
            bar.update(state.done - bar.n)
            bar.set_postfix(loss=f"{metrics['sft/loss']:.3f}")
            log.write(state.done, "sft", metrics)
            stage.stop_if_diverged(state, last_update, batch)
    checkpoints.wait()
    return PolicyParams(state.train_state.params, base)


def run_updates(
    stage: Stage, order: grain.MapDataset[SFTBatch], update: Callable, state: IterationState
) -> tuple[IterationState, dict[str, float], SFTBatch, dict[str, Any]]:
    """Runs supervised updates until a log line, a checkpoint or an evaluation is due. Returns (new state, metrics, batch of the
    last update, dict with loss, grad_norm and finite_gradients of the last update)."""
    sft, begin, watch = stage.experiment.config.sft, state.done, Stopwatch()
    due = [(begin // every + 1) * every for every in (LOG_EVERY, sft.checkpoint_every, sft.eval_every) if every]
    until = min(stage.total, *due)
    with watch.measure("time/total"):
        for number in range(begin, until):
            stage.check_preemption(state)
            batch = shard_batch(order[number], stage.experiment.mesh)
            train_state, statistics = update(state.train_state, batch, state.key, stage.base)
            unlogged = [*state.unlogged, [statistics["sft/loss"], statistics["sft/grad_norm"]]]
            state = dataclasses.replace(state, done=number + 1, train_state=train_state, unlogged=unlogged)
        statistics, unlogged = to_host((statistics, state.unlogged))
    losses, norms = np.array(unlogged, np.float32).T
    skipped = is_skipped(losses, norms)
    consecutive_skips = count_skipped(skipped, state.consecutive_skips)
    state = dataclasses.replace(state, unlogged=[], evaluated=False, consecutive_skips=consecutive_skips)
    seconds_per_update = watch.seconds["time/total"] / (until - begin)
    metrics = watch.seconds | device_memory() | {
        "sft/loss": losses[~skipped].mean() if not skipped.all() else np.nan,
        "sft/grad_norm": norms[-1],
        "update/skipped": skipped.sum(),
        "update/consecutive_skips": consecutive_skips,
        "sft/learning_rate": float(sft.optimizer.learning_rate_at(stage.total)(until - 1)),
        "time/step": seconds_per_update,
        "speed/tokens_per_second": (batch.tokens.size + batch.completion.size) / seconds_per_update,
    }  # fmt: skip
    last_update = {"loss": losses[-1], "grad_norm": norms[-1], "finite_gradients": statistics["finite_gradients"]}
    return state, metrics, batch, last_update
