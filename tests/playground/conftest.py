"""A model of tiny size with a tokenizer, for the playground's server."""

import pytest

import igpo_jax
from tiny_llada import one_device, write_tiny_llada


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return write_tiny_llada(tmp_path_factory.mktemp("playground"), layers=1)


@pytest.fixture(scope="session")
def model(folder):
    return igpo_jax.load(folder, mesh=one_device())
