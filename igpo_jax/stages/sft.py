"""The supervised stage: masked-diffusion training on demonstrations."""

from collections.abc import Callable

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from igpo_jax.data.pipeline import SFTBatch, batches, cut_to_bucket, take_rows
from igpo_jax.diffusion.corruption import CORRUPTIONS, HELDOUT_LEVELS, heldout_metric, mask_share, negative_bound, sft_loss
from igpo_jax.model.lora import LoraConfig
from igpo_jax.model.sharding import Params
from igpo_jax.model.transformer import ModelConfig
from igpo_jax.run.checkpoint import Checkpoints
from igpo_jax.run.experiment import Experiment
from igpo_jax.run.metrics import MetricsWriter, device_memory, is_logged, last_logged
from igpo_jax.runtime.mesh import shard_batch, to_host
from igpo_jax.runtime.progress import progress
from igpo_jax.runtime.stopwatch import Stopwatch
from igpo_jax.stages.divergence import check_parameters, count_skipped, stop_diverged
from igpo_jax.training.policy import policy_params, sampling_params
from igpo_jax.training.state import (
    TrainState,
    abstract_state,
    accumulate_gradients,
    apply_gradients,
    create_state,
    is_skipped,
    make_optimizer,
    state_shardings,
)

LOG_EVERY = 20  # updates


def make_sft_update(
    optimizer: optax.GradientTransformation,
    cfg: ModelConfig,
    corruption: str,
    microbatches: int,
    mesh: Mesh,
    lora: LoraConfig | None = None,
):
    """The compiled update (state, batch, key, frozen) -> (state, statistics); the state is donated. key: of the stage, into
    which the update folds its number. frozen: the parameters that the adapters in the state belong to, None without
    adapters. Where loss or gradient is not finite, see `apply_gradients`."""

    def update(state: TrainState, batch: SFTBatch, key: jax.Array, base_params: Params | None = None):
        rows, length = batch.completion.shape
        corrupted = CORRUPTIONS[corruption](jax.random.fold_in(key, state.step), rows, length)

        def loss(trained, part):
            batch, corrupted = part
            params = policy_params(trained, base_params, lora)
            return sft_loss(params, batch.tokens, batch.prompt_mask, batch.completion, corrupted, cfg)

        value, gradients = accumulate_gradients(
            jax.value_and_grad(loss), state.params, (batch, corrupted), microbatches
        )
        state, norm, finite = apply_gradients(state, value, gradients, optimizer)
        return state, {"sft/loss": value, "sft/grad_norm": norm, "finite_gradients": finite}

    return jax.jit(update, donate_argnums=0, out_shardings=(state_shardings(optimizer, cfg, mesh, lora), None))


# params, prompts, valid, completions, Corruption, config -> the bound of every row, float32 [b]
heldout_bound = jax.jit(negative_bound, static_argnums=5)


def heldout_losses(experiment: Experiment, params: Params, check_preemption: Callable[[], None] = lambda: None) -> dict[str, float]:
    """The loss of the problems that are held out, per masked token, at every share of `HELDOUT_LEVELS`, and their mean.
    The masks are always the same, so that evaluations of a run can be compared, and runs with one another.

    Args:
        check_preemption: called after every batch, on all processes; may raise.
    """
    config, mesh = experiment.config, experiment.mesh
    heldout, size = cut_to_bucket(experiment.heldout, config.data.prompt_buckets), config.evaluation.batch_size
    total, length = heldout.completion.shape
    noise = np.random.default_rng(config.seed).random((total, length))
    ranks = noise.argsort(axis=1).argsort(axis=1).astype(np.int32)
    found = np.zeros((len(HELDOUT_LEVELS), total))
    for begin in range(0, total, size):
        rows = np.minimum(np.arange(begin, begin + size), total - 1)  # the last batch is filled up with repeats
        batch = shard_batch(take_rows(heldout, rows), mesh)
        for level, share in enumerate(HELDOUT_LEVELS):
            corruption = shard_batch(mask_share(ranks[rows], share), mesh)
            found[level, rows] = to_host(heldout_bound(params, *jax.tree.leaves(batch), corruption, experiment.model))
        check_preemption()
    losses = found.mean(axis=1)
    at = {heldout_metric(share): loss for share, loss in zip(HELDOUT_LEVELS, losses, strict=True)}
    return {"heldout/loss": losses.mean(), **at}


def run_sft(
    experiment: Experiment, checkpoints: Checkpoints, preempted: Callable[[], bool]
) -> tuple[Params | None, Params | None]:
    """Trains from the newest checkpoint, or from the start, to the end of the stage.

    Args:
        preempted: asked before every update, and between the batches of an evaluation.

    Returns:
        The frozen parameters, None without adapters; and what was trained, all parameters or adapters: without this stage
        the initial parameters, or None.

    Raises:
        Terminated: it said yes; a checkpoint has been saved.
        Diverged: `skip_limit` updates in a row were not finite, or a parameter is not.
    """
    config, model, mesh, lora = experiment.config, experiment.model, experiment.mesh, experiment.config.lora
    total, key = config.sft.updates, experiment.key(1)
    if total == 0:
        return (experiment.initial_params(), None) if lora else (None, experiment.initial_params())
    optimizer = make_optimizer(config.sft.optimizer, total, model, lora)
    restored = checkpoints.restore_latest(abstract_state(optimizer, model, mesh, lora), key)
    base_params = experiment.initial_params() if lora else None
    if restored:
        done, state, key, _, since_logged = restored
    else:
        start = experiment.initial_adapters() if lora else experiment.initial_params()
        done, state, since_logged = 0, create_state(start, optimizer, model, mesh, lora), []
        del start
    every, evaluated = config.sft.eval_every, is_logged(experiment.workdir, done, "sft", "eval/accuracy")
    if done == total and (evaluated or not every):
        return base_params, state.params  # and the log stays as it is: the RL stage may have begun

    order = batches(experiment.sft_data, config.sft.batch_size, config.seed, config.data.prompt_buckets)
    update = make_sft_update(optimizer, model, config.sft.corruption, config.sft.microbatches, mesh, lora)
    learning_rate = config.sft.optimizer.learning_rate_at(total)

    def check_preemption() -> None:
        if preempted():
            check_parameters(state.params, done, checkpoints)
            losses_and_norms = np.array(to_host(since_logged), float).tolist()
            checkpoints.save_and_stop(done, state, key, unlogged=losses_and_norms)

    def evaluate() -> tuple[np.ndarray, dict[str, float]]:
        watch = Stopwatch()
        with watch.measure("time/total"):
            policy = sampling_params(state.params, base_params, model, mesh, lora)
            found = {} if experiment.heldout is None else heldout_losses(experiment, policy, check_preemption)
            correct = experiment.verdicts(policy, check_preemption)
        found |= {"eval/accuracy": correct.mean(dtype=np.float64), "eval/problems": len(correct)}
        return correct, found | watch.seconds

    with MetricsWriter(experiment.workdir, done) as log, progress(total, done, "SFT") as bar:
        consecutive_skips = int(last_logged(experiment.workdir, "sft", "update/consecutive_skips") or 0)
        while True:
            regular = done == total or (done > 0 and done % config.sft.checkpoint_every == 0)
            if regular and done not in checkpoints.steps():
                check_parameters(state.params, done, checkpoints)
                checkpoints.save(done, state, key)
            if every and not evaluated and (done in (0, total) or done % every == 0):
                log.write_evaluation(done, "sft", *evaluate())
            if done == total:
                break
            until = min(_next_multiple(done, n) for n in (LOG_EVERY, config.sft.checkpoint_every, every) if n)
            until = min(until, total)
            updates, watch = until - done, Stopwatch()
            with watch.measure("time/total"):
                for done in range(done, until):
                    check_preemption()
                    batch = shard_batch(order[done], mesh)
                    state, of_update = update(state, batch, key, base_params)
                    since_logged.append([of_update["sft/loss"], of_update["sft/grad_norm"]])
                of_update, since_logged = to_host((of_update, since_logged))
            losses, norms = np.array(since_logged, np.float32).T
            skipped, since_logged = is_skipped(losses, norms), []
            consecutive_skips = count_skipped(skipped, consecutive_skips)
            seconds_per_update = watch.seconds["time/total"] / updates
            statistics = watch.seconds | device_memory() | {
                "sft/loss": losses[~skipped].mean() if not skipped.all() else np.nan,
                "sft/grad_norm": norms[-1],
                "update/skipped": skipped.sum(),
                "update/consecutive_skips": consecutive_skips,
                "sft/learning_rate": float(learning_rate(until - 1)),
                "time/step": seconds_per_update,
                "speed/tokens_per_second": (batch.tokens.size + batch.completion.size) / seconds_per_update,
            }
            bar.update(updates)
            bar.set_postfix(loss=f"{statistics['sft/loss']:.3f}")
            done, evaluated = until, False
            log.write(done, "sft", statistics)
            if consecutive_skips >= config.skip_limit:
                last = {"loss": losses[-1], "grad_norm": norms[-1], "finite_gradients": of_update["finite_gradients"]}
                stop_diverged(done, "sft", consecutive_skips, last, state, batch, checkpoints)
    checkpoints.wait()
    return base_params, state.params


def _next_multiple(done: int, every: int) -> int:
    return (done // every + 1) * every
