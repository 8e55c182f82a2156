"""IGPO on LLaDA-8B-Instruct with the paper's RL settings (arXiv 2509.10396; igpo_jax follows the released launcher).

    python -m igpo_jax.train --config=math.py --config.model.path=LLaDA-8B-Instruct --config.task.train_path=...
    python -m igpo_jax.plan --config=math.py --topology=v5e:2x4

`math.py` and `math.py:lora` train adapters of rank 128 (from 8 chips of 16 GB); `math.py:full` trains all parameters
(from 16). The problems are GSM8K's.
"""

from igpo_jax.config import base_config
from igpo_jax.tasks import math


def get_config(variant="lora"):
    if variant not in ("lora", "full"):
        raise ValueError(f"math.py has no variant {variant!r}; there are: lora, full")
    config = base_config(
        **math.defaults(rl="metamath:data/MetaMathQA-395K.json", test="math:data/math500_test.jsonl")
    )
    config.model.update({"path": "LLaDA-8B-Instruct", "compute_dtype": "bfloat16", "remat": "full"})
    config.tokenizer.chat = True
    config.data.update({"prompt_buckets": (640,), "overflow": "drop"})
    config.sampler.temperature = 1.2
    config.evaluation.batch_size = 64
    config.sft.update({"updates": 0, "batch_size": 64})
    config.sft.optimizer.update({"learning_rate": 1e-5, "first_moment_dtype": "bfloat16"})
    config.rl.update({"iterations": 360, "prompts": 64, "group_size": 8, "rollout_slices": 8, "checkpoint_every": 5})
    config.rl.optimizer.update({"learning_rate": 5e-7, "warmup_steps": 50, "first_moment_dtype": "bfloat16"})
    if variant == "lora":
        config.model.param_dtype = "bfloat16"
        config.lora.update({"rank": 128, "alpha": 64.0})
    return config
