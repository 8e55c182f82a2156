"""IGPO on GSM8K from scratch: no pretrained weights, so this exercises every stage on real text but does not give a good model.

    python -m igpo_jax.train --config=gsm8k.py --config.task.rl=gsm8k:DIR/train.jsonl --config.task.test=gsm8k:DIR/test.jsonl

The files are from github.com/openai/grade-school-math. `gsm8k.py:smoke` runs every stage in a few minutes on a CPU.
`gsm8k.py:llada` starts from LLaDA-8B-Instruct (--config.model.path) and trains adapters. `gsm8k.py:small` trains all parameters
of a model of up to 0.6 B parameters on one GPU with 24 GB, such as Qwen3-0.6B-diffusion-mdlm or a model of configs/a2d.py.
"""

from igpo_jax.config import base_config
from igpo_jax.tasks import math


def get_config(variant=""):
    if variant not in ("", "smoke", "llada", "small"):
        raise ValueError(f"gsm8k.py has no variant {variant!r}; there are: smoke, llada, small")
    config = base_config(
        **math.defaults(
            rl="gsm8k:data/gsm8k/train.jsonl",
            test="gsm8k:data/gsm8k/test.jsonl",
            prompt=math.PLAIN_PROMPT,
            demonstration=math.PLAIN_DEMONSTRATION,
            answer="number",
        )
    )
    if variant == "llada":
        config.model.update({"path": "LLaDA-8B-Instruct", "param_dtype": "bfloat16", "compute_dtype": "bfloat16"})
        config.model.remat = "full"
        config.lora.update({"rank": 128, "alpha": 64.0})
        config.tokenizer.chat = True
        config.task.update({"prompt": math.BOXED_PROMPT, "demonstration": math.BOXED_DEMONSTRATION})
        config.data.update({"prompt_buckets": (128, 192, 256), "overflow": "drop"})
        config.sft.updates = 0  # the model already follows instructions
        config.rl.update({"iterations": 500, "prompts": 16, "eval_every": 50})
        return config
    if variant == "small":
        config.model.update({"path": "Qwen3-0.6B-diffusion-mdlm-v0.1", "compute_dtype": "bfloat16", "remat": "full"})
        config.tokenizer.chat = True
        config.task.prompt = "{question}"
        config.data.update({"prompt_buckets": (128, 192, 256), "overflow": "drop"})
        config.evaluation.batch_size = 32
        config.sft.update({"updates": 1000, "batch_size": 16, "checkpoint_every": 100, "heldout": 128})
        config.sft.update({"eval_every": 250, "corruption": "independent"})
        config.sft.optimizer.update({"learning_rate": 1e-5, "warmup_steps": 50})
        config.rl.update({"iterations": 1000, "prompts": 8, "rollout_chunks": 0, "microbatches": 0, "checkpoint_every": 50})
        config.rl.eval_every = 100
        config.rl.optimizer.update({"learning_rate": 1e-6, "warmup_steps": 20})
        return config
    config.tokenizer.update({"kind": "unigram", "vocab_size": 4096})
    config.data.update({"prompt_buckets": (64, 96, 128, 192, 256), "overflow": "drop"})
    config.model.update({"width": 512, "layers": 8, "heads": 8, "kv_heads": 8, "mlp_width": 1536})
    config.sft.update({"updates": 20_000, "batch_size": 64, "checkpoint_every": 1000, "heldout": 256, "eval_every": 4000})
    config.sft.optimizer.update({"learning_rate": 3e-4, "warmup_steps": 500})
    config.rl.update({"iterations": 500, "prompts": 32})
    config.rl.optimizer.update({"learning_rate": 1e-6})
    if variant == "smoke":
        config.tokenizer.vocab_size = 1024
        config.data.prompt_buckets = (96, 192)
        config.model.update({"width": 64, "layers": 2, "heads": 4, "kv_heads": 4, "mlp_width": 192})
        for decode in (config.sampler, config.evaluation):
            decode.update({"completion_length": 192, "block_length": 32, "steps": 24})
        config.evaluation.update({"problems": 32, "batch_size": 32})
        config.sft.update({"updates": 60, "batch_size": 16, "heldout": 32, "eval_every": 30})
        config.sft.optimizer.update({"learning_rate": 3e-3, "warmup_steps": 10})
        config.rl.update({"iterations": 3, "prompts": 4, "group_size": 4, "show_every": 1, "eval_every": 0})
    return config
