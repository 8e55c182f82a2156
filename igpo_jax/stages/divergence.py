"""Checks losses, gradients and parameters for non-finite values, and ends a diverged run with a diagnosis."""

import io
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from igpo_jax.model.sharding import Params
from igpo_jax.run.checkpoint import Checkpoints
from igpo_jax.run.checkpoint_integrity import leaf_names
from igpo_jax.runtime.bucket_folders import address_of
from igpo_jax.runtime.files import atomic_write
from igpo_jax.runtime.mesh import to_host


class Diverged(ArithmeticError):
    """Error that is raised if losses, gradients or parameters are no longer finite."""


def count_skipped(skipped: np.ndarray, before: int) -> int:
    """Returns the number of consecutive skipped updates that end with the newest update. `skipped`, bool [n], tells which of
    the last n updates were skipped. `before` is the value that this function returned before these n updates."""
    kept = np.flatnonzero(~skipped)
    return len(skipped) - 1 - int(kept[-1]) if len(kept) else before + len(skipped)


def stop_diverged(
    workdir: pathlib.Path,
    step: int,
    stage: str,
    skips: int,
    last_update: dict[str, Any],
    params: Params,
    batch: Any,
    checkpoints: Checkpoints,
) -> None:
    """Saves the batch of the last skipped update in the run's folder and raises Diverged with a diagnosis.

    Args:
        skips: number of consecutive skipped updates.
        last_update: loss, grad_norm and finite_gradients of the last skipped update as host values, see `apply_gradients`.
        params: trained parameters, which a skipped update leaves unchanged.
        batch: batch of the last skipped update, a pytree of arrays."""
    parameter, gradient = first_not_finite(params), _first_bad(params, last_update["finite_gradients"])
    if parameter:
        cause = f"the parameter {parameter} itself is not"
    elif gradient is None:
        cause = "parameters and the gradient of each are, the loss or the norm over all gradients is not"
    elif math.isfinite(last_update["loss"]):
        cause = f"parameters and loss are, the gradient of {gradient} is not"
    else:
        cause = f"parameters are, the loss is not, nor is the gradient of {gradient}"
    file = workdir / f"diverged-{stage}-{step}.npz"
    arrays = dict(zip(leaf_names(batch), jax.tree.leaves(to_host(batch)), strict=True))
    if jax.process_index() == 0:
        content = io.BytesIO()
        np.savez(content, **arrays)
        atomic_write(file, content.getvalue())  # replaces a link, which a run from others may have in this place
    raise Diverged(
        f"update {step} is number {skips} in a row that was skipped, with loss {last_update['loss']:g} and gradient "
        f"norm {last_update['grad_norm']:g}. What is finite: {cause}. Its batch is in {address_of(file)}; {_good_checkpoint(checkpoints)}. "
        f"Try a smaller learning rate in another --workdir, or go on with a higher --config.skip_limit"
    )


def check_parameters(params: Params, step: int, checkpoints: Checkpoints) -> None:
    """Raises Diverged if a parameter is not finite. Must be called before a checkpoint is saved."""
    name = first_not_finite(params)
    if name:
        raise Diverged(
            f"after update {step} the parameter {name} is not finite and is not saved; {_good_checkpoint(checkpoints)}. Try a "
            "smaller learning rate in another --workdir"
        )


def _good_checkpoint(checkpoints: Checkpoints) -> str:
    checkpoints.wait()
    steps = checkpoints.steps()
    return f"the checkpoint {checkpoints.folder / str(steps[-1])} is good" if steps else "no checkpoint had been saved"


def first_not_finite(params: Params) -> str | None:
    """Returns the name of the first parameter with a non-finite value, or None if all values are finite."""
    return _first_bad(params, to_host(_finite_leaves(params)))


def _first_bad(params: Params, finite) -> str | None:
    return next((name for name, good in zip(leaf_names(params), finite, strict=True) if not good), None)


@jax.jit
def _finite_leaves(params: Params) -> list[jax.Array]:
    return [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]
