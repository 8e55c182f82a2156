"""Checks gradients of adapters against those of the full matrices."""

import jax.numpy as jnp
import numpy as np

from igpo_jax.model.lora import LoraConfig


def assert_chain_rule(
    found: dict, full: dict, adapters: dict, lora: LoraConfig, *, least: float, rtol: float, atol: float
) -> None:
    """Asserts the chain rule: W = base + s A B, so dA = s dW B^T and dB = s A^T dW.

    Args:
        found: gradients of `adapters`.
        full: gradients of the merged matrices.
        least: at least one expected gradient must exceed this value.
    """
    for name, adapter in adapters.items():
        expected = {
            "a": lora.scale * jnp.einsum("lio,lro->lir", full[name], adapter["b"]),
            "b": lora.scale * jnp.einsum("lir,lio->lro", adapter["a"], full[name]),
        }
        for part, value in expected.items():
            assert float(jnp.abs(value).max()) > least
            np.testing.assert_allclose(found[name][part], value, rtol=rtol, atol=atol)
