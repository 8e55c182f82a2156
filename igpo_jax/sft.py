"""The supervised stage: masked-diffusion training on demonstrations."""

import jax
import jax.numpy as jnp
import optax

from igpo_jax.data.pipeline import SFTBatch, batches
from igpo_jax.diffusion.corruption import CORRUPTIONS, sft_loss
from igpo_jax.experiment import Experiment
from igpo_jax.model.transformer import ModelConfig, Params, init, shardings
from igpo_jax.runtime.checkpoint import Checkpoints, abstract_like
from igpo_jax.runtime.mesh import fetch, put_rows
from igpo_jax.runtime.metrics import MetricsWriter, progress
from igpo_jax.runtime.stopwatch import Stopwatch
from igpo_jax.training import (
    TrainState,
    accumulate_gradients,
    apply_gradients,
    create_state,
    make_optimizer,
    state_shardings,
)

LOG_EVERY = 20  # updates


def make_sft_update(optimizer: optax.GradientTransformation, cfg: ModelConfig, corruption: str, microbatches: int, mesh):
    """The compiled update (state, batch, key) -> (state, statistics); the state is donated."""

    def update(state: TrainState, batch: SFTBatch, key: jax.Array):
        rows, length = batch.completion.shape
        corrupted = CORRUPTIONS[corruption](key, rows, length)

        def loss(params, part):
            batch, corrupted = part
            return sft_loss(params, batch.tokens, batch.valid, batch.completion, corrupted, cfg)

        value, gradients = accumulate_gradients(jax.value_and_grad(loss), state.params, (batch, corrupted), microbatches)
        state, norm = apply_gradients(state, gradients, optimizer)
        return state, {"sft/loss": value, "sft/grad_norm": norm}

    return jax.jit(update, donate_argnums=0, out_shardings=(state_shardings(optimizer, cfg, mesh), None))


def initial_params(experiment: Experiment) -> Params:
    """Random parameters of the run's seed, created where they live."""
    make = jax.jit(init, static_argnums=1, out_shardings=shardings(experiment.model, experiment.mesh))
    return make(experiment.key(0), experiment.model)


def run_sft(experiment: Experiment, checkpoints: Checkpoints) -> Params:
    """Trains from the newest checkpoint, or from the start, to the end of the stage; returns the final parameters."""
    settings, key = experiment.settings, experiment.key(1)
    total = settings.sft.updates
    optimizer = make_optimizer(settings.sft_optimizer, total, experiment.model)
    state = create_state(initial_params(experiment), optimizer, experiment.model, experiment.mesh)
    restored = checkpoints.restore_latest(abstract_like(state), key)
    done, state, key = restored or (0, state, key)
    if done == total:
        return state.params

    order = batches(experiment.sft_data, settings.sft.batch_size, settings.seed, settings.data.prompt_buckets)
    update = make_sft_update(
        optimizer, experiment.model, settings.sft.corruption, settings.sft.microbatches, experiment.mesh
    )
    learning_rate = settings.sft_optimizer.learning_rate_at(total)
    with MetricsWriter(experiment.workdir, done) as log, progress(total, done, "SFT") as bar:
        while done < total:
            until = min(total, _next_multiple(done, LOG_EVERY), _next_multiple(done, settings.sft.checkpoint_every))
            watch = Stopwatch()
            with watch.measure("time/total"):
                losses = []
                for step in range(done, until):
                    batch = put_rows(order[step], experiment.mesh)
                    state, statistics = update(state, batch, jax.random.fold_in(key, step))
                    losses.append(statistics["sft/loss"])
                statistics = fetch({**statistics, "sft/loss": jnp.mean(jnp.stack(losses))})
            seconds_per_update = watch.seconds["time/total"] / (until - done)
            statistics |= watch.seconds | {
                "sft/learning_rate": float(learning_rate(until - 1)),
                "time/step": seconds_per_update,
                "speed/tokens_per_second": (batch.tokens.size + batch.completion.size) / seconds_per_update,
            }
            bar.update(until - done)
            bar.set_postfix(loss=f"{statistics['sft/loss']:.3f}")
            done = until
            log.write(done, "sft", statistics)
            if done == total or done % settings.sft.checkpoint_every == 0:
                checkpoints.save(done, state, key)
    checkpoints.wait()
    return state.params


def _next_multiple(done: int, every: int) -> int:
    return (done // every + 1) * every
