"""A complete run in seconds: short sums of coins, a model with one layer."""

from igpo_jax.config import base_config
from igpo_jax.tasks import arithmetic


def get_config():
    config = base_config(**arithmetic.defaults(slots=2, worked_share=0.9, sft_problems=1024, rl_problems=64, test_problems=16))
    config.model.update({"width": 32, "layers": 1, "heads": 2, "kv_heads": 2, "mlp_width": 32})
    config.data.prompt_buckets = (9,)
    for decode in (config.sampler, config.evaluation):
        decode.update({"completion_length": 16, "block_length": 8, "steps": 8})
    config.sampler.temperature = 0.7
    config.evaluation.update({"problems": 16, "batch_size": 8})
    config.sft.update({"updates": 200, "batch_size": 64, "checkpoint_every": 20, "heldout": 48, "eval_every": 100})
    config.sft.optimizer.update({"learning_rate": 2e-2, "warmup_steps": 5})
    config.rl.update({"iterations": 6, "prompts": 8, "group_size": 8})
    config.rl.update({"checkpoint_every": 1, "eval_every": 2, "show_every": 1})
    config.rl.optimizer.update({"learning_rate": 1e-3, "warmup_steps": 2})
    config.objective.inner_steps = 2
    config.inpainting.update({"chunk_min": 2, "chunk_max": 3})
    return config
