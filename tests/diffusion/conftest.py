import jax
import pytest

import igpo_jax
from igpo_jax.model.transformer import init
from sampling import CFG
from tiny_llada import one_device, write_tiny_llada


@pytest.fixture(scope="module")
def params():
    params = jax.jit(init, static_argnums=1)(jax.random.key(0), CFG)
    params["blocks"]["attention_out"] *= 4  # makes positions depend on each other
    return params


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A model of tiny size with a tokenizer."""
    return igpo_jax.load(write_tiny_llada(tmp_path_factory.mktemp("stepwise"), layers=1), mesh=one_device())
