"""Configuration that starts from a LLaDA folder and trains adapters; requires --config.model.path."""

from igpo_jax.config import base_config
from igpo_jax.tasks import arithmetic


def get_config():
    config = base_config(**arithmetic.defaults(slots=2, worked_share=0.9, sft_problems=128, rl_problems=64, test_problems=8))
    config.lora.update({"rank": 4, "alpha": 8.0})
    config.tokenizer.chat = True
    config.data.prompt_buckets = (48,)
    for decode in (config.sampler, config.evaluation):
        decode.update({"completion_length": 32, "block_length": 16, "steps": 8})
    config.evaluation.update({"problems": 8, "batch_size": 8})
    config.sft.update({"updates": 4, "batch_size": 8, "checkpoint_every": 2})
    config.rl.update({"iterations": 2, "prompts": 4, "group_size": 2, "checkpoint_every": 1, "eval_every": 0})
    config.objective.inner_steps = 2
    config.inpainting.update({"chunk_min": 2, "chunk_max": 3})
    return config
