"""A whole run in seconds: short sums of coins, a model of one layer."""

from igpo_jax.config import base_config


def get_config():
    config = base_config(
        name="arithmetic", slots=3, worked_share=0.2, sft_problems=256, rl_problems=64, test_problems=16
    )
    config.model.update({"width": 16, "layers": 1, "heads": 2, "kv_heads": 2, "mlp_width": 32})
    config.data.prompt_buckets = (12,)
    for decode in (config.sampler, config.evaluation):
        decode.update({"completion_length": 16, "block_length": 8, "steps": 8})
    config.evaluation.update({"problems": 16, "batch_size": 8})
    config.sft.update({"updates": 120, "batch_size": 16, "checkpoint_every": 20})
    config.sft.optimizer.update({"learning_rate": 1e-2, "warmup_steps": 5})
    config.rl.update({"iterations": 4, "prompts": 4, "group_size": 4, "checkpoint_every": 1, "show_every": 1})
    config.rl.optimizer.update({"learning_rate": 1e-3, "warmup_steps": 2})
    config.objective.inner_steps = 2
    config.inpainting.update({"chunk_min": 2, "chunk_max": 3})
    return config
