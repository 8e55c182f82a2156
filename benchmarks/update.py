"""The policy update with one row per prompt against the same update with one row per completion.

[prompt ; MASK x L] does not contain the completion, so the G completions of a prompt share one row of the network and
one table of logits. The plain way tiles it: N * G rows, each with a completion of its own. Both are the package's
update (forward, backward, clipping, AdamW); loss and gradients are held to each other first, in float32.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from comparison import EOS, compare, exact, model_of, one_device, parser_with_model, random_params, report
from igpo_jax.rl.likelihood import GroupBatch, Scores, score
from igpo_jax.rl.objective import ObjectiveConfig, loss_and_statistics
from igpo_jax.rl.step import make_update
from igpo_jax.training import OptimizerConfig, create_state, make_optimizer

LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4
NUDGE = 0.01  # how far the old and the reference policy are from the new one


def random_batch(arguments, vocabulary: int) -> GroupBatch:
    draw = np.random.default_rng(0)
    n, g, length = arguments.prompts, arguments.group_size, arguments.completion_length
    return GroupBatch(
        prompt=draw.integers(EOS + 1, vocabulary, (n, arguments.prompt_length), dtype=np.int32),
        valid=np.arange(arguments.prompt_length) >= draw.integers(0, arguments.prompt_length // 4 + 1, (n, 1)),
        problem_id=np.arange(n, dtype=np.uint32),
        completions=draw.integers(EOS + 1, vocabulary, (n, g, length), dtype=np.int32),
        hint=draw.uniform(size=(n, g, length)) < 0.2,
        in_loss=np.arange(length) < draw.integers(length // 2, length + 1, (n, g, 1)),
        advantages=draw.normal(size=(n, g)).astype(np.float32),
    )


def tiled(batch: GroupBatch, scores: Scores) -> tuple[GroupBatch, Scores]:
    """Every completion becomes a group of one, with a copy of its prompt."""
    n, g, length = batch.completions.shape
    copies = {name: np.repeat(getattr(batch, name), g, axis=0) for name in ("prompt", "valid", "problem_id")}
    own = {
        name: getattr(batch, name).reshape(n * g, 1, *getattr(batch, name).shape[2:])
        for name in ("completions", "hint", "in_loss", "advantages")
    }
    return GroupBatch(**copies, **own), jax.tree.map(lambda x: x.reshape(x.shape[0], n * g, 1, length), scores)


def assert_equal(params, sides, cfg, objective, mesh) -> dict[str, float]:
    """Loss and gradients of the two sides, in float32; returns how far apart they are."""
    # Recomputing layers changes no number and lets the tiled side fit where the update in bfloat16 does.
    cfg = dataclasses.replace(cfg, compute_dtype="float32", remat="full")

    @jax.jit
    def loss_and_gradients(params, batch, scores):
        scores = jax.tree.map(lambda x: x[0], scores)
        return jax.value_and_grad(loss_and_statistics, has_aux=True)(params, batch, scores, cfg, objective, mesh)

    with exact():
        ((plain_loss, _), plain), ((loss, _), gradients) = (loss_and_gradients(params, *side) for side in sides)
    difference = float(optax.global_norm(jax.tree.map(jnp.subtract, gradients, plain)) / optax.global_norm(plain))
    loss, plain_loss = float(loss), float(plain_loss)
    assert abs(loss - plain_loss) <= LOSS_TOLERANCE * max(1.0, abs(plain_loss)), (loss, plain_loss)
    assert float(optax.global_norm(plain)) > 0 and difference <= GRADIENT_TOLERANCE, difference
    return {"loss": loss, "plain_loss": plain_loss, "gradient_difference": difference}


def main(argv: list[str] | None = None) -> dict:
    parser = parser_with_model(__doc__)
    parser.add_argument("--prompts", type=int, default=4, help="N")
    parser.add_argument("--group-size", type=int, default=8, help="G")
    parser.add_argument("--prompt-length", type=int, default=128)
    parser.add_argument("--completion-length", type=int, default=128)
    parser.add_argument("--chunk", type=int, default=512, help="positions whose logits exist at a time")
    arguments = parser.parse_args(argv)

    cfg, mesh = dataclasses.replace(model_of(arguments), head_chunk=arguments.chunk), one_device()
    objective = ObjectiveConfig()
    optimizer = make_optimizer(OptimizerConfig(learning_rate=5e-7), 100, cfg)
    with jax.set_mesh(mesh):
        params = random_params(0, cfg)
        old, reference = (
            jax.tree.map(lambda x, y: x + NUDGE * y, params, random_params(seed, cfg)) for seed in (1, 2)
        )
        batch = random_batch(arguments, cfg.vocab_size)
        scores = jax.device_get(score(old, reference, batch, jax.random.key(0), cfg, objective, mesh))
        sides = [jax.device_put(side) for side in (tiled(batch, scores), (batch, scores))]
        del old, reference
        apart = assert_equal(params, sides, cfg, objective, mesh)

        state = create_state(params, optimizer, cfg, mesh)
        del params
        update = make_update(optimizer, cfg, objective, mesh)

        def run(side):
            def one_update():
                nonlocal state
                state, statistics = update(state, *side, np.int32(0))
                return state, statistics

            return one_update

        seconds = compare(*map(run, sides), arguments.repetitions)
    names = ("prompts", "group_size", "prompt_length", "completion_length", "chunk")
    sizes = {name: getattr(arguments, name) for name in names}
    what = "policy update: rows tiled G times (plain) / rows shared by the group"
    return report(what, cfg, {**sizes, **apart, **seconds}, arguments.output)


if __name__ == "__main__":
    main()
