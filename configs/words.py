"""IGPO on word problems, from scratch: a diffusion model of 7 million parameters, for one GPU or for days on a CPU.

`words.py:smoke` runs every stage in about two minutes on two cores; its model is too small to solve anything.
"""

from igpo_jax.config import base_config
from igpo_jax.tasks import words


def get_config(variant=""):
    if variant not in ("", "smoke"):
        raise ValueError(f"words.py has no variant {variant!r}; there is: smoke")
    # steps: equations of the longest problems. worked_share: share of these that the supervised stage's teacher works out.
    config = base_config(**words.defaults(steps=4, worked_share=0.03))
    # Each digit is a token and most words are one to three tokens: half as many tokens as characters.
    config.tokenizer.update({"kind": "unigram", "vocab_size": 640})
    # Problems of 4 steps have at most 150 tokens, their solutions 122.
    config.data.prompt_buckets = (96, 128, 160)
    config.model.update({"width": 256, "layers": 8, "heads": 4, "kv_heads": 4, "mlp_width": 768})
    for decode in (config.sampler, config.evaluation):
        decode.update({"completion_length": 128, "block_length": 32, "steps": 128})
    config.sampler.temperature = 0.35
    config.evaluation.batch_size = 125

    config.sft.update({"updates": 10_000, "batch_size": 128, "checkpoint_every": 1000, "heldout": 256, "eval_every": 2500})
    config.sft.optimizer.update({"learning_rate": 1e-3, "warmup_steps": 300, "b2": 0.98, "weight_decay": 0.01})

    config.rl.update({"iterations": 60, "prompts": 16, "eval_every": 10, "checkpoint_every": 10, "show_every": 5})
    config.rl.optimizer.update({"learning_rate": 1e-5, "warmup_steps": 10, "weight_decay": 0.0})
    if variant == "smoke":
        config.task.update({"sft_problems": 4000, "rl_problems": 200, "test_problems": 64})
        config.data.prompt_buckets = (160,)
        config.model.update({"width": 64, "layers": 2, "heads": 4, "kv_heads": 4, "mlp_width": 192})
        for decode in (config.sampler, config.evaluation):
            decode.steps = 32
        config.evaluation.update({"problems": 32, "batch_size": 32})
        config.sft.update({"updates": 300, "batch_size": 32, "heldout": 32, "eval_every": 150})
        config.sft.optimizer.update({"learning_rate": 4e-3, "warmup_steps": 10})
        config.rl.update({"iterations": 3, "prompts": 4, "group_size": 4, "show_every": 1, "eval_every": 0})
    return config
