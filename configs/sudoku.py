"""IGPO on 4x4 Sudoku: a small diffusion model fills the empty cells, graded by the rules. Minutes on two cores."""

from igpo_jax.config import base_config
from igpo_jax.tasks import sudoku


def get_config():
    # worked_share: share of the puzzles with 7 or 8 empty cells that the supervised stage's teacher works out.
    config = base_config(**sudoku.defaults(small=True, worked_share=0.2, test_problems=500))
    config.model.update({"width": 64, "layers": 3, "heads": 4, "kv_heads": 4, "mlp_width": 192})
    config.data.prompt_buckets = (17,)

    # Solutions have 52 characters.
    for decode in (config.sampler, config.evaluation):
        decode.update({"completion_length": 52, "block_length": 52, "steps": 52})
    config.sampler.temperature = 0.35
    config.evaluation.batch_size = 125

    config.sft.update({"updates": 3000, "batch_size": 128})
    config.sft.optimizer.update({"learning_rate": 4e-3, "warmup_steps": 100, "b2": 0.98, "weight_decay": 0.01})

    config.rl.update({"iterations": 30, "prompts": 8, "eval_every": 5, "checkpoint_every": 5, "show_every": 3})
    config.rl.optimizer.update({"learning_rate": 3e-5, "warmup_steps": 10, "weight_decay": 0.0})
    return config
