"""The supervised stage: masked-diffusion training on demonstrations."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from igpo_jax.data.pipeline import SFTBatch, batches
from igpo_jax.diffusion.corruption import CORRUPTIONS, sft_loss
from igpo_jax.experiment import Experiment
from igpo_jax.model.lora import LoraConfig
from igpo_jax.model.transformer import ModelConfig, Params
from igpo_jax.runtime.checkpoint import Checkpoints
from igpo_jax.runtime.mesh import fetch, put_rows
from igpo_jax.runtime.metrics import MetricsWriter, device_memory, progress
from igpo_jax.runtime.stopwatch import Stopwatch
from igpo_jax.training import (
    TrainState,
    abstract_state,
    accumulate_gradients,
    apply_gradients,
    check_finite,
    create_state,
    make_optimizer,
    policy_params,
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
    """The compiled update (state, batch, key, frozen) -> (state, statistics); the state is donated. frozen: the
    parameters that the adapters in the state belong to, None without adapters."""

    def update(state: TrainState, batch: SFTBatch, key: jax.Array, frozen: Params | None = None):
        rows, length = batch.completion.shape
        corrupted = CORRUPTIONS[corruption](key, rows, length)

        def loss(trained, part):
            batch, corrupted = part
            params = policy_params(trained, frozen, lora)
            return sft_loss(params, batch.tokens, batch.valid, batch.completion, corrupted, cfg)

        value, gradients = accumulate_gradients(
            jax.value_and_grad(loss), state.params, (batch, corrupted), microbatches
        )
        state, norm = apply_gradients(state, gradients, optimizer)
        return state, {"sft/loss": value, "sft/grad_norm": norm}

    return jax.jit(update, donate_argnums=0, out_shardings=(state_shardings(optimizer, cfg, mesh, lora), None))


def run_sft(
    experiment: Experiment, checkpoints: Checkpoints, should_stop: Callable[[], bool]
) -> tuple[Params | None, Params | None]:
    """Trains from the newest checkpoint, or from the start, to the end of the stage.

    Args:
        should_stop: asked before every update.

    Returns:
        The frozen parameters, None without adapters; and what was trained, all parameters or adapters: without this stage
        the initial parameters, or None.

    Raises:
        Terminated: it said yes; a checkpoint has been saved.
        Diverged: see `check_finite`.
    """
    settings, model, mesh, lora = experiment.settings, experiment.model, experiment.mesh, experiment.settings.lora
    total, key = settings.sft.updates, experiment.key(1)
    if total == 0:
        return (experiment.initial_params(), None) if lora else (None, experiment.initial_params())
    optimizer = make_optimizer(settings.sft_optimizer, total, model, lora)
    restored = checkpoints.restore_latest(abstract_state(optimizer, model, mesh, lora), key)
    frozen = experiment.initial_params() if lora else None
    if restored:
        done, state, key = restored
    else:
        start = experiment.initial_adapters() if lora else experiment.initial_params()
        done, state = 0, create_state(start, optimizer, model, mesh, lora)
        del start
    if done == total:
        return frozen, state.params

    order = batches(experiment.sft_data, settings.sft.batch_size, settings.seed, settings.data.prompt_buckets)
    update = make_sft_update(optimizer, model, settings.sft.corruption, settings.sft.microbatches, mesh, lora)
    learning_rate = settings.sft_optimizer.learning_rate_at(total)
    with MetricsWriter(experiment.workdir, done) as log, progress(total, done, "SFT") as bar:
        while done < total:
            until = min(total, _next_multiple(done, LOG_EVERY), _next_multiple(done, settings.sft.checkpoint_every))
            watch = Stopwatch()
            with watch.measure("time/total"):
                losses = []
                for step in range(done, until):
                    if should_stop():
                        checkpoints.save_and_stop(step, state, key)
                    batch = put_rows(order[step], mesh)
                    state, statistics = update(state, batch, jax.random.fold_in(key, step), frozen)
                    losses.append(statistics["sft/loss"])
                statistics = fetch({**statistics, "sft/loss": jnp.mean(jnp.stack(losses))})
            seconds_per_update = watch.seconds["time/total"] / (until - done)
            statistics |= watch.seconds | device_memory() | {
                "sft/learning_rate": float(learning_rate(until - 1)),
                "time/step": seconds_per_update,
                "speed/tokens_per_second": (batch.tokens.size + batch.completion.size) / seconds_per_update,
            }
            bar.update(until - done)
            bar.set_postfix(loss=f"{statistics['sft/loss']:.3f}")
            done = until
            log.write(done, "sft", statistics)
            check_finite(statistics, ("sft/loss", "sft/grad_norm"), done, checkpoints.folder)
            if done == total or done % settings.sft.checkpoint_every == 0:
                checkpoints.save(done, state, key)
    checkpoints.wait()
    return frozen, state.params


def _next_multiple(done: int, every: int) -> int:
    return (done // every + 1) * every
