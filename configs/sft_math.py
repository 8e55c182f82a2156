"""Length-aligned supervised training of LLaDA-8B-Instruct on concise traces (arXiv 2509.10396, section 4; docs/method.md section 13).

    python -m igpo_jax.rewrite --problems="openr1:data/OpenR1-Math-220k/data/*.parquet" --output=traces ...
    python -m igpo_jax.train --config=sft_math.py --config.model.path=LLaDA-8B-Instruct \\
        --config.task.sft=jsonl:traces/kept.jsonl --config.task.test=math:data/MATH-500/test.jsonl
    python -m igpo_jax.convert --source=runs/sft_math --target=tuned --format=huggingface   # and math.py from tuned

From the paper: the data, rewritten traces of at most 1024 tokens, EOS padding that is trained on, and many epochs, such as a
hundred. The paper gives no batch size, learning rate or number of traces; these are d1's, with
adapters of all linear layers: rank 128, learning rate 1e-5 with linear decay, weight decay 0.1, gradient norm 1. For a number of
epochs, give --config.sft.updates=0 --config.sft.epochs=100. For original traces, cut at the length instead of dropped, give
--config.data.overflow=truncate.

lora: adapters (the default). full: all parameters.
"""

from igpo_jax.config import base_config
from igpo_jax.tasks import math
from igpo_jax.tasks.benchmark import benchmark


def get_config(variant="lora"):
    if variant not in ("lora", "full"):
        raise ValueError(f"sft_math.py has no variant {variant!r}; there are: lora, full")
    config = base_config(**math.defaults(sft="jsonl:traces/kept.jsonl", test="math:data/MATH-500/test.jsonl"))
    config.model.update({"path": "LLaDA-8B-Instruct", "compute_dtype": "bfloat16", "remat": "full"})
    config.tokenizer.chat = True
    config.data.update({"prompt_buckets": (256, 640), "overflow": "drop"})
    for decode in (config.sampler, config.evaluation):
        decode.update({"completion_length": 1024, "block_length": 32, "steps": 512})
    config.evaluation.update({"problems": 500, "batch_size": 64})
    # Evaluated in addition to task.test, if their files are given (--config.evaluation.benchmarks.gsm8k.task.test=gsm8k:PATH)
    for name in ("gsm8k", "minerva"):
        config.evaluation.benchmarks[name] = benchmark(math.defaults())
    config.evaluation.benchmarks.amc = benchmark(math.defaults(), draws=16, temperature=0.1)
    config.sft.update({"updates": 20_000, "batch_size": 64, "microbatches": 4, "corruption": "independent"})
    config.sft.update({"checkpoint_every": 250, "heldout": 256, "eval_every": 2000})
    config.sft.optimizer.update({"learning_rate": 1e-5, "schedule": "linear", "weight_decay": 0.1, "max_grad_norm": 1.0})
    config.sft.optimizer.first_moment_dtype = "bfloat16"
    config.rl.iterations = 0
    if variant == "lora":
        config.model.param_dtype = "bfloat16"
        config.lora.update({"rank": 128, "alpha": 256.0})
    return config
