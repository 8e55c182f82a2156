"""A tiny model with a tokenizer, for the playground's server."""

import pytest

import igpo_jax
from tiny_llada import one_device, write_tiny_llada


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return igpo_jax.load(write_tiny_llada(tmp_path_factory.mktemp("playground"), layers=1), mesh=one_device())
