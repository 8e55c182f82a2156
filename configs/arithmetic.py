"""IGPO on a laptop: a small diffusion model learns to work out long sums of coins. Five to fifteen minutes on two cores."""

from igpo_jax.config import base_config
from igpo_jax.tasks import arithmetic


def get_config():
    # slots: coins of a long problem. worked_share: share of long problems that the supervised stage's teacher works out.
    config = base_config(**arithmetic.defaults(slots=6, worked_share=0.03))
    config.model.update({"width": 64, "layers": 3, "heads": 4, "kv_heads": 4, "mlp_width": 192})
    config.data.prompt_buckets = (21,)

    for decode in (config.sampler, config.evaluation):
        decode.update({"completion_length": 24, "block_length": 8, "steps": 24})
    config.sampler.temperature = 0.35
    config.evaluation.batch_size = 125

    config.sft.update({"updates": 4500, "batch_size": 128})
    config.sft.optimizer.update({"learning_rate": 4e-3, "warmup_steps": 100, "b2": 0.98, "weight_decay": 0.01})

    config.rl.update({"iterations": 30, "prompts": 8, "eval_every": 5, "checkpoint_every": 5, "show_every": 3})
    config.rl.optimizer.update({"learning_rate": 3e-5, "warmup_steps": 10, "weight_decay": 0.0})
    return config
