import jax
import pytest

from igpo_jax.model.transformer import init
from sampling import CFG


@pytest.fixture(scope="module")
def params():
    params = jax.jit(init, static_argnums=1)(jax.random.key(0), CFG)
    params["blocks"]["attention_out"] *= 4  # makes positions depend on each other
    return params
