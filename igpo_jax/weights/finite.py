"""Finds NaN and infinite values in weights."""

import logging

import jax
import jax.numpy as jnp
import numpy as np

log = logging.getLogger(__name__)

REMEDY = (
    "the file is damaged, or its training diverged; convert, evaluate, generate and playground go on with --allow_nonfinite"
)


@jax.jit
def _zero(tensor: jax.Array) -> jax.Array:
    """Returns 0 if all values are finite, otherwise NaN. On CPUs, this is several times faster than counting values that are
    not finite. A maximum would not work, because the maximum over devices may drop NaN."""
    return jnp.sum(jnp.sum(tensor * 0, axis=0, dtype=jnp.float32))


@jax.jit
def _count(tensor: jax.Array) -> jax.Array:
    return jnp.sum(~jnp.isfinite(tensor))


def check_finite(tensor: jax.Array | np.ndarray, place: str, allow: bool = False) -> None:
    """Raises ValueError if any value of the tensor is NaN or infinite. If `allow` is True, logs a warning instead. The message
    begins with `place`, which names the file and the tensor. Every process must call this function."""
    if not np.isnan(_zero(tensor).addressable_data(0)):
        return
    count = int(np.asarray(_count(tensor).addressable_data(0)))
    found = f"{place}: {count} of {tensor.size} values are NaN or infinite"
    if not allow:
        raise ValueError(f"{found}; {REMEDY}")
    log.warning("%s", found)
