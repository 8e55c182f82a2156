"""Makes a masked diffusion model from an autoregressive one, by supervised training alone (A2D, docs/models.md).

    python -m igpo_jax.convert --source=Qwen3-0.6B --target=start --as=A2DQwen3LMHeadModel
    python -m igpo_jax.train --config=a2d.py --config.model.path=start --workdir=runs/a2d \\
        --config.task.sft=gsm8k:gsm8k_train.jsonl,math:math_train.jsonl --config.task.test=gsm8k:gsm8k_test.jsonl
    python -m igpo_jax.convert --source=runs/a2d --target=a2d --format=huggingface   # and gsm8k.py:small from a2d

The recipe is that of Tiny-A2D (github.com/ZHZisZZ/dllm): full attention and the masked loss from the first update, without a
causal phase; response tokens are masked independently with a probability drawn from (0, 1]; learning rate 1e-4 with cosine decay
and 10 % warm-up. Its loss divides the sum of a batch by the number of response tokens. Here every row has the same number, because
EOS fills it, so that the two are equal. Tiny-A2D trains on 2 million conversations; this configuration reads files of problems in
any format of igpo_jax (docs/mathematics.md), such as jsonl with question and solution.

The default takes models of up to 0.6 B parameters on a GPU with 24 GB. smoke: a few updates, for a check on a CPU.
"""

from igpo_jax.config import base_config
from igpo_jax.tasks import math


def get_config(variant=""):
    if variant not in ("", "smoke"):
        raise ValueError(f"a2d.py has no variant {variant!r}; there is: smoke")
    files = {"sft": "gsm8k:data/gsm8k/train.jsonl,math:data/math/train.jsonl", "test": "gsm8k:data/gsm8k/test.jsonl"}
    config = base_config(**math.defaults(**files, prompt="{question}", demonstration=math.PLAIN_DEMONSTRATION, answer="any"))
    config.model.update({"path": "start", "compute_dtype": "bfloat16", "remat": "full"})
    config.tokenizer.chat = True
    config.data.update({"prompt_buckets": (128, 256, 384), "overflow": "drop"})
    for decode in (config.sampler, config.evaluation):
        decode.update({"completion_length": 256, "block_length": 32, "steps": 256})
    config.evaluation.update({"problems": 256, "batch_size": 64})
    config.sft.update({"updates": 5000, "batch_size": 64, "microbatches": 4, "corruption": "independent"})
    config.sft.update({"checkpoint_every": 250, "heldout": 256, "eval_every": 500})
    config.sft.optimizer.update({"learning_rate": 1e-4, "schedule": "cosine", "warmup_steps": 500, "max_grad_norm": 1.0})
    config.rl.iterations = 0
    if variant == "smoke":
        config.model.update({"compute_dtype": "float32", "remat": "none"})
        config.data.prompt_buckets = (256,)
        for decode in (config.sampler, config.evaluation):
            decode.update({"completion_length": 128, "block_length": 32, "steps": 16})
        config.evaluation.update({"problems": 8, "batch_size": 8})
        config.sft.update(
            {"updates": 20, "batch_size": 8, "microbatches": 1, "heldout": 8, "eval_every": 10, "checkpoint_every": 10}
        )
        config.sft.optimizer.warmup_steps = 2
    return config
