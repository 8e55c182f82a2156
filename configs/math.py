"""IGPO on LLaDA-8B-Instruct with the RL settings of the paper's code (arXiv 2509.10396; the paper takes precedence).

    python -m igpo_jax.train --config=math.py --config.model.path=LLaDA-8B-Instruct \\
        --config.task.rl=metamath:data/MetaMathQA/MetaMathQA-395K.json --config.task.test=math:data/MATH-500/test.jsonl
    python -m igpo_jax.plan --config=math.py --topology=v5e:2x4

lora: adapters of rank 128, from 8 chips of 16 GB (the default). full: all parameters, from 16 such chips.
illada: adapters of iLLaDA-8B-Instruct.
ref: the released code's behavior where it differs from the paper, including answers in the hints; for comparisons only.
    Not copied: dropout, global reseeding, drawing the mask token, ending blocks with the whole batch, cutting long prompts.
smoke: every stage with few steps, for a small model folder: a check of data, folder and machine, in minutes on a CPU.
"""

from igpo_jax.config import base_config
from igpo_jax.model.lora import REFERENCE_CODE_TARGETS
from igpo_jax.tasks import math
from igpo_jax.tasks.benchmark import benchmark

VARIANTS = ("lora", "full", "illada", "ref", "smoke")


def get_config(variant="lora"):
    if variant not in VARIANTS:
        raise ValueError(f"math.py has no variant {variant!r}; there are: {', '.join(VARIANTS)}")
    config = base_config(
        **math.defaults(rl="metamath:data/MetaMathQA/MetaMathQA-395K.json", test="math:data/MATH-500/test.jsonl")
    )
    config.model.update({"path": "LLaDA-8B-Instruct", "compute_dtype": "bfloat16", "remat": "full"})
    config.tokenizer.chat = True
    # The best four multiples of 128, which splash attention needs, for GSM8K and MATH (benchmarks/prompt_lengths.py)
    config.data.update({"prompt_buckets": (128, 256, 384, 640), "overflow": "drop"})
    config.sampler.temperature = 1.2
    config.evaluation.batch_size = 0
    # Evaluated in addition to task.test, if their files are given (--config.evaluation.benchmarks.gsm8k.task.test=gsm8k:PATH)
    for name in ("gsm8k", "minerva"):
        config.evaluation.benchmarks[name] = benchmark(math.defaults())
    config.evaluation.benchmarks.amc = benchmark(math.defaults(), draws=16, temperature=0.1)
    config.sft.update({"updates": 0, "batch_size": 64})
    config.sft.optimizer.update({"learning_rate": 1e-5, "first_moment_dtype": "bfloat16"})
    config.rl.update(
        {"iterations": 360, "prompts": 64, "group_size": 8, "rollout_chunks": 0, "microbatches": 0, "checkpoint_every": 5}
    )
    config.rl.optimizer.update({"learning_rate": 5e-7, "warmup_steps": 50, "first_moment_dtype": "bfloat16"})
    if variant != "full":
        config.model.param_dtype = "bfloat16"
        config.lora.update({"rank": 128, "alpha": 64.0})
    if variant == "illada":
        config.model.path = "iLLaDA-8B-Instruct"
    if variant == "ref":
        config.task.update(
            {"prompt": math.RELEASED_PROMPT, "demonstration": math.RELEASED_DEMONSTRATION, "reference_code": True}
        )
        config.inpainting.update({"exclude_answer": False, "round_up": True, "stretch": True, "by_completion": True})
        config.reward.update({"scale": 3.0, "format": True, "after_eos": True})
        config.objective.reference_code = True
        config.lora.targets = REFERENCE_CODE_TARGETS
        config.rl.iterations = 2330  # ten epochs, over which the learning rate falls; the paper's curves end at 360
        config.rl.optimizer.schedule = "linear"
    if variant == "smoke":
        config.model.update({"param_dtype": "float32", "compute_dtype": "float32", "remat": "none"})
        config.lora.update({"rank": 8, "alpha": 4.0})
        config.data.prompt_buckets = (256, 640)
        for decode in (config.sampler, config.evaluation):
            decode.update({"completion_length": 256, "block_length": 64, "steps": 16})
        config.evaluation.update({"problems": 16, "batch_size": 8})
        config.sft.update({"updates": 20, "batch_size": 8, "checkpoint_every": 10, "heldout": 8, "eval_every": 10})
        config.rl.update({"iterations": 2, "prompts": 8, "group_size": 4, "rollout_chunks": 1, "microbatches": 1})
        config.rl.update({"checkpoint_every": 1, "eval_every": 0, "show_every": 1})
    return config
