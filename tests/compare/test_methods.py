"""The arms that are other methods start where they should: ratio 1, KL 0, and a gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from igpo_jax.compare.arms import ARMS
from igpo_jax.model.transformer import ModelConfig, init
from igpo_jax.rl.likelihood import GroupBatch
from igpo_jax.rl.objective import ObjectiveConfig, compute_logprobs, loss_and_statistics

CFG = ModelConfig(vocab_size=16, mask_id=1, eos_id=2, width=16, layers=1, heads=2, kv_heads=2, mlp_width=16)
METHODS = ("diffu_grpo", "unigrpo", "coupled_grpo", "spg", "wd1", "just_grpo")
N, G, LENGTH = 8, 4, 24  # so long that every completion has masked tokens


@pytest.mark.parametrize("arm", METHODS)
def test_before_the_first_update_the_ratio_is_one_and_the_kl_zero(arm, mesh):
    keys = {name.removeprefix("objective."): value for name, value in ARMS[arm].overrides.items() if "objective." in name}
    keys = {name: LENGTH if value == "completion_length" else value for name, value in keys.items()}
    objective, draw = ObjectiveConfig(**keys, inner_steps=2), np.random.default_rng(0)
    batch = GroupBatch(
        prompt=draw.integers(3, 16, (N, 3), dtype=np.int32),
        prompt_mask=np.ones((N, 3), bool),
        problem_id=np.arange(N, dtype=np.uint32),
        completions=draw.integers(3, 16, (N, G, LENGTH), dtype=np.int32),
        unmask_step=np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (N, G, LENGTH)),
        loss_mask=np.ones((N, G, LENGTH), bool),
        advantages=np.tile(np.array([0.75, -0.25, -0.25, -0.25], np.float32), (N, 1)),
    )
    params = init(jax.random.key(0), CFG)
    logprobs = compute_logprobs(params, params, batch, jax.random.key(1), CFG, objective, mesh)
    first = jax.tree.map(lambda x: x[0], logprobs)
    (loss, statistics), gradients = jax.jit(
        jax.value_and_grad(lambda p: loss_and_statistics(p, batch, first, CFG, objective, mesh), has_aux=True)
    )(params)
    assert statistics["policy/ratio_mean"] == pytest.approx(1, abs=1e-5)
    assert statistics["policy/kl"] == pytest.approx(0, abs=1e-6) and np.isfinite(loss)
    norms = [float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradients)]
    assert np.isfinite(norms).all() and max(norms) > 1e-4
