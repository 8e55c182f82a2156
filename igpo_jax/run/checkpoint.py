"""Checkpoints of one stage: saves asynchronously, keeps the newest and the best, skips damaged ones on restore."""

import logging
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from igpo_jax.run.checkpoint_integrity import (
    array_sums,
    first_line,
    is_about_this_machine,
    metadata_crc,
    remove_unreadable_metrics,
)
from igpo_jax.runtime.distributed import all_gather_hosts, raise_on_all_hosts
from igpo_jax.runtime.preemption import Terminated

log = logging.getLogger(__name__)


class Checkpoints:
    """Context manager for the checkpoints `<folder>/<step>/`; exiting waits for an unfinished save.

    Each step holds the training state, the PRNG root key, the data position (both stages read batch i at step i), the
    fingerprints of configuration and data and, with inpainting.source=own, the solution bank. Sums over the bits of every
    array are saved and compared on restore, because Orbax does not detect flipped bits.

    Args:
        keep: number of newest checkpoints to keep.
        identity: fingerprints saved with each checkpoint.
        best: also keep the checkpoint with the highest accuracy.
        read_only: leave unfinished saves alone; another process may be writing them.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        *,
        keep: int,
        identity: Mapping[str, Any] = {},
        best: bool = False,
        read_only: bool = False,
    ):
        policies = ocp.training.preservation_policies
        keepers = [policies.LatestN(keep)]
        if best:
            keepers.append(
                policies.BestN(get_metric_fn=lambda metrics: metrics["accuracy"], n=1, keep_checkpoints_without_metrics=False)
            )
        self.folder = pathlib.Path(folder).absolute()
        with raise_on_all_hosts():
            if jax.process_index() == 0:
                remove_unreadable_metrics(self.folder)
        self._identity = dict(identity)
        self._checkpointer = ocp.training.Checkpointer(
            self.folder,
            preservation_policy=policies.AnyPreservationPolicy(keepers),
            cleanup_tmp_directories=not read_only,
        )

    def __enter__(self):
        return self

    def __exit__(self, error, *_):
        # Closing waits for the other processes, which may be gone after an error.
        if error in (None, Terminated) or jax.process_count() == 1:
            self._checkpointer.close()

    def steps(self) -> list[int]:
        """Returns the steps of the complete checkpoints, ascending."""
        return sorted(checkpoint.step for checkpoint in self._checkpointer.checkpoints)

    def save(
        self,
        step: int,
        state,
        key: jax.Array,
        solution_bank: np.ndarray | None = None,
        *,
        accuracy: float | None = None,
        unlogged: Sequence = (),
    ) -> None:
        """Waits for the previous save, then starts this one asynchronously.

        Args:
            solution_bank: equal on every process; must not be modified afterwards.
            unlogged: lists of floats, measured since the last log line.
        """
        if jax.default_backend() == "cpu":
            # On CPUs the saver reads device memory in place, while the next update already overwrites it.
            state = jax.tree.map(jnp.copy, state)
        saved = {"state": state, "progress": _progress(key, solution_bank)}
        about = {"data_position": step, "unlogged": list(unlogged), "sums": array_sums(saved), **self._identity}
        self._checkpointer.save_checkpointables_async(
            step,
            saved,
            force=True,
            overwrite=True,
            metrics=None if accuracy is None else {"accuracy": accuracy},
            custom_metadata={**about, "crc32": metadata_crc(about)},
        )

    def wait(self) -> None:
        self._checkpointer.wait()

    def save_and_stop(
        self, step: int, state, key: jax.Array, solution_bank: np.ndarray | None = None, unlogged: Sequence = ()
    ) -> NoReturn:
        """Saves this step if it is not saved yet, then raises `Terminated`."""
        self.wait()
        if step not in self.steps():
            self.save(step, state, key, solution_bank, unlogged=unlogged)
            self.wait()
        raise Terminated(f"stopped by a termination signal after saving {self.folder / str(step)}")

    def restore_latest(self, abstract_state, abstract_key: jax.Array, abstract_solution_bank: np.ndarray | None = None):
        """Returns (step, state, key, solution bank, unlogged) of the newest readable checkpoint, None without checkpoints.

        Newer, unreadable checkpoints are moved to `<folder>-unreadable`, because the run will save those steps again.

        Args:
            abstract_state: pytree of `jax.ShapeDtypeStruct`; its shardings may differ from the saved ones.
            abstract_key, abstract_solution_bank: arrays with the saved shapes and dtypes; None for a run without a bank.

        Raises:
            ValueError: checkpoints exist, but none is readable.
        """
        found = self._newest_readable({"state": abstract_state, "progress": _progress(abstract_key, abstract_solution_bank)})
        if found is None:
            return None
        step, loaded, about = found
        if step != self.steps()[-1]:
            self._move_away([newer for newer in self.steps() if newer > step])
        progress = loaded["progress"]
        return step, loaded["state"], progress["key"], progress.get("memory"), about.get("unlogged", [])

    def restore_params(self, abstract_params):
        """Returns (step, params) of the newest readable checkpoint, None without checkpoints; skips the optimizer state."""
        found = self._newest_readable({"state": {"params": abstract_params}}, partial=True)
        return found and (found[0], found[1]["state"]["params"])

    def _newest_readable(self, abstract: dict, partial: bool = False) -> tuple[int, Any, Mapping[str, Any]] | None:
        steps = self.steps()
        for step in reversed(steps):
            loaded, reason = None, "another process cannot read it"
            try:
                about = self._checkpointer.checkpointables_metadata(step).custom_metadata or {}
                if metadata_crc(about) != about.get("crc32", metadata_crc(about)) or "data_position" not in about:
                    raise ValueError("its metadata has changed since it was saved")
                context = ocp.Context()  # single-use
                context.pytree.loading.partial_load = partial
                with context:
                    loaded = self._checkpointer.load_checkpointables(step, abstract)
            except Exception as error:  # a damaged file can make the reader raise anything
                if is_about_this_machine(error):
                    raise
                reason = first_line(error)
            if all_gather_hosts(loaded is not None).all():
                saved_sums = about.get("sums", {})
                changed = [name for name, value in array_sums(loaded).items() if saved_sums.get(name, value) != value]
                if not changed:
                    return step, loaded, about
                reason = f"{', '.join(changed)[:150]}: not the numbers that were saved"
            log.warning("checkpoint %s cannot be read (%s); trying the one before it", self.folder / str(step), reason)
        if steps:
            raise ValueError(
                f"none of the checkpoints {steps} in {self.folder} can be read; move the folder away to start over"
            )
        return None

    def _move_away(self, steps: list[int]) -> None:
        aside = self.folder.with_name(f"{self.folder.name}-unreadable")
        with raise_on_all_hosts():
            if jax.process_index() == 0:
                aside.mkdir(exist_ok=True)
                for step in steps:
                    shutil.rmtree(aside / str(step), ignore_errors=True)
                    (self.folder / str(step)).rename(aside / str(step))
                    log.warning("moved to %s", aside / str(step))
        self._checkpointer.reload()


def _progress(key: jax.Array, solution_bank: np.ndarray | None) -> dict[str, Any]:
    return {"key": key} if solution_bank is None else {"key": key, "memory": solution_bank}
