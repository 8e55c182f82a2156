"""Evaluation protocols for mathematics: GSM8K, MATH500, AMC, Minerva, and d1's Countdown and Sudoku.

    python -m igpo_jax.evaluate --config=evaluate_math.py:paper --config.model=FOLDER --output=DIR \\
        --config.benchmarks.gsm8k.task.test=gsm8k:PATH --config.benchmarks.math500.task.test=math:PATH ...

paper: IGPO's protocol as far as it is known: 256 tokens, 128 steps, blocks of 32, temperature 0, AMC avg@16 at 0.1; its generation
length, prompt and checker were not published (those of its RL stage are used). d1-128, d1-256, d1-512: d1's protocol, half as many
steps as tokens, answers begin with <reasoning>; unlike d1, padding is not attended to. Benchmarks without a file are skipped;
Countdown and Sudoku problems are generated without one.
"""

from igpo_jax.evaluate.protocol import base_evaluation, benchmark
from igpo_jax.tasks import countdown, math, sudoku


def get_config(protocol="paper"):
    lengths = {"paper": 256, "d1-128": 128, "d1-256": 256, "d1-512": 512}
    if protocol not in lengths:
        raise ValueError(f"evaluate_math.py has no protocol {protocol!r}; there are: {', '.join(lengths)}")
    config, length = base_evaluation(), lengths[protocol]
    config.decode.update({"completion_length": length, "block_length": 32, "steps": length // 2})
    if protocol != "paper":
        config.prefix = "<reasoning>"
    answer = "box" if protocol == "paper" else "any"
    config.benchmarks.gsm8k = benchmark(math.defaults(answer=answer))
    config.benchmarks.math500 = benchmark(math.defaults(answer=answer))
    if protocol == "paper":
        config.benchmarks.amc = benchmark(math.defaults(answer=answer), draws=16, temperature=0.1)
        config.benchmarks.minerva = benchmark(math.defaults(answer=answer))
    config.benchmarks.countdown = benchmark(countdown.defaults())
    config.benchmarks.sudoku = benchmark(sudoku.defaults())
    return config
