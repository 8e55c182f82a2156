"""Saves the checkpoints of a training stage asynchronously, keeps the newest ones and the best one, and skips damaged ones when
it restores the stage."""

import contextlib
import json
import logging
import pathlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from igpo_jax.run import checkpoint_integrity as integrity
from igpo_jax.run.metrics import BACK
from igpo_jax.runtime.buckets import is_about_requests, move_objects, write_object
from igpo_jax.runtime.checks import require
from igpo_jax.runtime.distributed import all_gather_hosts, raise_on_all_hosts
from igpo_jax.runtime.files import atomic_write
from igpo_jax.runtime.orbax_files import check_chunks, remove_paths
from igpo_jax.runtime.preemption import Terminated

SAVE_ATTEMPTS = 10  # of a save to a bucket
MOST_TRIED = 50  # checkpoints to read if the newest ones are damaged

log = logging.getLogger(__name__)


class _Save(NamedTuple):
    """A save that has been started."""

    step: int
    saved: dict[str, Any]  # empty for a save to a local folder, which is not repeated, so that the arrays can be freed
    options: dict[str, Any]
    response: Any = None  # Orbax's
    failure: Exception | None = None  # why the save could not be started

    def error(self) -> Exception | None:
        """Waits until the save is finished. Returns the reason why it failed, or None."""
        try:
            if self.response is not None:
                self.response.result()
        except Exception as error:  # Orbax and its libraries raise errors of many types
            return error
        return self.failure


class Checkpoints(contextlib.AbstractContextManager):
    """Context manager that saves and restores the checkpoints of a training stage in `<folder>/<step>/`. The folder is named
    sft or rl. On exit, waits until the last save is finished.

    Each checkpoint holds the training state, the PRNG root key, the data position, the fingerprints of the configuration and
    the data, a hash of the tokenizer, checksums of the logs, and, with inpainting.source=own, the bank of the model's own
    solutions. The data position is the step, because the step alone decides which batch comes next. A checksum of every array
    is saved with the checkpoint and compared on restore, because Orbax does not detect flipped bits. Checkpoints of earlier
    versions of this package lack some or all checksums. Restoring such a checkpoint logs a warning.

    Attributes:
        log_sums: function that returns the checksums of the logs to save with a checkpoint, see `MetricsWriter.sums`.

    Args:
        keep: number of newest checkpoints to keep.
        keep_every: also keeps the checkpoints whose step is a multiple of this number, if it is not 0.
        identity: fingerprints to save with each checkpoint and to compare on restore, see `other_identity`.
        best: whether to also keep the checkpoint with the highest accuracy.
        read_only: whether to change nothing in the folder. Otherwise, damaged metrics and unfinished saves are deleted,
            including saves that another process is still writing."""

    def __init__(
        self,
        folder: pathlib.Path,
        *,
        keep: int,
        keep_every: int = 0,
        identity: Mapping[str, Any] = {},
        best: bool = False,
        read_only: bool = False,
    ):
        policies = ocp.training.preservation_policies
        keepers = [policies.LatestN(keep)]
        if keep_every:
            keepers.append(policies.EveryNSteps(keep_every))
        if best:
            keepers.append(
                policies.BestN(get_metric_fn=lambda metrics: metrics["accuracy"], n=1, keep_checkpoints_without_metrics=False)
            )
        self._local = isinstance(folder, pathlib.Path)  # otherwise, an epath.Path in a bucket
        self.folder: Any = folder.absolute() if self._local else folder
        self._with_paths = set[int]()  # steps whose files may hold the path of the folder
        with raise_on_all_hosts():
            if jax.process_index() == 0 and not read_only:
                if self._local:
                    integrity.check_names(self.folder)
                    self._with_paths.update(integrity.steps_in(self.folder))  # a killed command may have left paths
                integrity.remove_unreadable_metrics(self.folder)
        self._identity = dict(identity)
        self.log_sums: Callable[[], Mapping[str, Any]] = dict
        self._preserved = policies.AnyPreservationPolicy(keepers)
        self._last: _Save | None = None  # None after it was waited for
        self._checkpointer: Any = None
        if not read_only:  # a Checkpointer reads all metrics, which may be damaged
            self._checkpointer = self._open()

    def _open(self) -> Any:
        return ocp.training.Checkpointer(self.folder, preservation_policy=self._preserved, cleanup_tmp_directories=True)

    def __exit__(self, error, *_):
        # Closing waits for the other processes, which may be gone after an error.
        if self._checkpointer and (error in (None, Terminated) or jax.process_count() == 1):
            try:
                self.wait()
            finally:
                self._checkpointer.close()
        self._remove_paths()

    def steps(self) -> list[int]:
        """Returns the steps of the complete checkpoints in ascending order."""
        if self._checkpointer is None:
            return integrity.steps_in(self.folder)
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
        """Waits until the previous save is finished, then starts to save the given state asynchronously. Raises an error
        if there is a checkpoint of this step, or if earlier checkpoints in a local folder were moved or deleted.

        Args:
            solution_bank: the model's own solutions, equal on every process. The array must not be modified after the call.
            unlogged: measured values that are not in the log yet, as a list of floats for each update since the last log
                line."""
        self.wait()
        if jax.default_backend() == "cpu":
            # On CPUs, the saver reads the arrays in place. Without a copy, the next update could overwrite them meanwhile.
            state = jax.tree.map(jnp.copy, state)
        saved = {"state": state, "progress": _progress(key, solution_bank)}
        about = {"data_position": step, "unlogged": list(unlogged), "sums": integrity.array_sums(saved), **self._identity}
        about["logs"] = dict(self.log_sums())
        with raise_on_all_hosts():
            if jax.process_index() == 0 and self._local:
                lost = sorted(set(self.steps()).difference(integrity.steps_in(self.folder)))
                require(not lost, f"{self.folder}: the checkpoints {lost} were moved or deleted while the run went on; {BACK}")
        metadata = {**about, "crc32": integrity.metadata_crc(about)}
        options = {"metrics": None if accuracy is None else {"accuracy": accuracy}, "custom_metadata": metadata}
        if self._local:
            self._last = _Save(step, {}, {}, self._start(step, saved, options))
        else:
            self._last = self._try_to_start(_Save(step, saved, options))
        self._with_paths.add(step)

    def add_accuracy(self, step: int, accuracy: float) -> None:
        """Waits until the previous save is finished, then adds an accuracy to a complete checkpoint. (Orbax would delete the
        checkpoint before it saves it again, and a command that is killed in between would lose it.)"""
        self.wait()
        file, content = self.folder / str(step) / "metrics" / "metrics", json.dumps({"accuracy": accuracy}).encode()
        with raise_on_all_hosts():
            if jax.process_index() == 0 and self._local:
                file.parent.mkdir(exist_ok=True)
                atomic_write(file, content)
            elif jax.process_index() == 0:
                write_object(str(file), content)
        self._checkpointer.reload()

    def _start(self, step: int, saved: dict[str, Any], options: dict[str, Any]) -> Any:
        return self._checkpointer.save_checkpointables_async(step, dict(saved), force=True, **options)

    def wait(self) -> None:
        """Waits until the last save is finished. Raises an error if a save to a local folder has failed, or if `SAVE_ATTEMPTS`
        attempts of a save to a bucket have failed.

        A save to a bucket is repeated if it fails, because a failure of the network must not end a long run. If updates have
        meanwhile overwritten the arrays, the save is not repeated. The run then goes on until its next checkpoint, and a
        warning is logged.

        For each save, Orbax starts a thread with an event loop. The thread ends only when `result` is called on Orbax's
        response. Without calls of `wait`, every save would leave a thread and three file descriptors behind."""
        last, self._last = self._last, None
        if last is not None and self._local:
            last.response.result()
        elif last is not None:
            self._wait_for_bucket(last)
        self._remove_paths()

    def _wait_for_bucket(self, last: _Save) -> None:
        for attempt in range(1, SAVE_ATTEMPTS + 1):
            error = last.error()
            if not all_gather_hosts(error is not None).any():
                return
            error = error or ValueError("another process has failed")
            log.warning("checkpoint %s was not saved: %s", self.folder / str(last.step), integrity.describe(error))
            if attempt == SAVE_ATTEMPTS:
                raise error
            time.sleep(min(30, 2**attempt))
            overwritten = any(leaf.is_deleted() for leaf in jax.tree.leaves(last.saved) if isinstance(leaf, jax.Array))
            last = self._try_to_start(last._replace(saved={} if overwritten else last.saved), discard=True)
            if overwritten:
                return

    def _try_to_start(self, save: _Save, discard: bool = False) -> _Save:
        """Starts a save to a bucket and returns it. If it cannot be started, its field `failure` is the reason. If `discard` is
        True, first deletes the files of the previous attempt, which has failed, and opens a new checkpointer of Orbax, because
        the old one would raise the same error again. If there are no arrays to save, starts nothing."""
        try:
            if discard:
                with contextlib.suppress(Exception):
                    self._checkpointer.close()
                if jax.process_index() == 0 and (self.folder / str(save.step)).exists():
                    (self.folder / str(save.step)).rmtree()
                self._checkpointer = self._open()
            response = self._start(save.step, save.saved, save.options) if save.saved else None
        except Exception as error:  # as in `_Save.error`
            return save._replace(response=None, failure=error)
        return save._replace(response=response, failure=None)

    def _remove_paths(self) -> None:
        if jax.process_index() == 0 and self._local:
            for step in [step for step in self._with_paths if (self.folder / str(step)).is_dir()]:
                remove_paths(self.folder / str(step))
                self._with_paths.discard(step)

    def restore_latest(self, abstract_state, abstract_key: jax.Array, abstract_solution_bank: np.ndarray | None = None):
        """Returns (step, state, key, solution bank, values not yet logged) of the newest readable checkpoint, or None if there
        are no checkpoints.

        Moves newer checkpoints, which are unreadable, to `<folder>-unreadable`, because the run will save checkpoints of the
        same steps again. Raises ValueError if there are checkpoints but none of the newest `MOST_TRIED` is readable, or if the
        checkpoint belongs to another run, see `other_identity`.

        Args:
            abstract_state: pytree of `jax.ShapeDtypeStruct`; its shardings may differ from the saved ones.
            abstract_key, abstract_solution_bank: arrays with the saved shapes and dtypes. `abstract_solution_bank` is None if
                the run has no bank of solutions."""
        found = self._newest_readable({"state": abstract_state, "progress": _progress(abstract_key, abstract_solution_bank)})
        if found is None:
            return None
        step, loaded, about, _ = found
        other = integrity.other_identity(self.folder.name, about, self._identity)
        require(not other, f"{self.folder / str(step)} {other}")
        newer = [other for other in self.steps() if other > step]
        if newer:
            self._move_away(newer)
        progress = loaded["progress"]
        return step, loaded["state"], progress["key"], progress.get("memory"), about.get("unlogged", [])

    def restore_params(self, abstract_params, step: int | None = None):
        """Returns (step, parameters) of the newest readable checkpoint, or None if there are no checkpoints. If `step` is
        given, reads the checkpoint of this step, and raises ValueError if there is none. Skips the optimizer state. Logs a
        warning if the checkpoint belongs to another run, see `other_identity`. Raises ValueError if there are checkpoints but
        none of the newest `MOST_TRIED` is readable. Also raises ValueError if the checkpoint contains parameters that the model
        lacks, because a model without these parameters would compute something else."""
        steps = self.steps()
        missing = f"{self.folder} has no checkpoint of step {step}; it has those of {', '.join(map(str, steps)) or 'none'}"
        require(step is None or step in steps, missing)
        found = self._newest_readable({"state": {"params": abstract_params}}, partial=True, only=step)
        if found is None:
            return None
        step, loaded, about, saved = found
        if other := integrity.other_identity(self.folder.name, about, self._identity):
            log.warning("%s %s", self.folder / str(step), other)
        unused = ", ".join(sorted({*saved} - {*integrity.leaf_names(abstract_params)}))
        lacks = f"parameters that the model lacks: {unused[:500]}; config.json is missing or has changed"
        require(not unused, f"{self.folder / str(step)} has {lacks}")
        return step, loaded["state"]["params"]

    def _newest_readable(
        self, abstract: dict, partial: bool = False, only: int | None = None
    ) -> tuple[int, Any, Mapping[str, Any], Sequence[str]] | None:
        """Returns (step, arrays described by `abstract`, metadata, names of the saved parameters) of the newest readable
        checkpoint, or None if there are no checkpoints. The sequence of names is empty unless `partial` is True. If `only` is
        given, tries only the checkpoint of this step, otherwise the newest `MOST_TRIED` checkpoints. Raises ValueError if none
        of them is readable."""
        steps = self.steps()[-MOST_TRIED:] if only is None else [only]
        for step in reversed(steps):
            path = self.folder / str(step)
            loaded, reason = None, "another process cannot read it"
            try:
                # A run's own state may shrink more: it starts with moments and a bank of solutions that are all equal.
                integrity.check_sizes(path, abstract if partial else None)
                described: Any = ocp.checkpointables_metadata(path)
                about = described.custom_metadata or {}
                integrity.check_metadata(about, step)
                check_chunks(described.metadata)
                integrity.check_dtypes(described.metadata, abstract)
                names = integrity.leaf_names(described.metadata["state"]["params"]) if partial else []
                context = ocp.Context()  # single-use
                context.pytree.loading.partial_load = partial
                with context:
                    loaded = ocp.load_checkpointables(path, abstract)
            except Exception as error:  # a damaged file can make the reader raise anything
                if integrity.is_about_this_machine(error) or (not self._local and is_about_requests(error)):
                    raise
                reason = integrity.describe(error)
            if all_gather_hosts(loaded is not None).all():
                saved, sums = about.get("sums", {}), integrity.array_sums(loaded)
                changed = [name for name, value in sums.items() if saved.get(name, value) != value]
                if not changed:
                    if "crc32" not in about or not sums.keys() <= saved.keys():
                        log.warning("checkpoint %s lacks checksums, as in earlier versions; damage cannot be detected", path)
                    return step, loaded, about, names
                reason = f"{', '.join(changed)[:150]}: not the numbers that were saved"
            log.warning("checkpoint %s cannot be read (%s); trying the one before it", path, reason)
        if not steps:
            return None
        raise ValueError(
            f"none of the checkpoints {steps} in {self.folder} can be read; restore one from a copy, or, to start over, give "
            "another --workdir, or move the folder away and train with --accept_loss"
        )

    def _move_away(self, steps: list[int]) -> None:
        aside = self.folder.with_name(f"{self.folder.name}-unreadable")
        with raise_on_all_hosts():
            if jax.process_index() == 0:
                for step in steps:
                    if self._local:
                        aside.mkdir(exist_ok=True)
                        shutil.rmtree(aside / str(step), ignore_errors=True)
                        (self.folder / str(step)).rename(aside / str(step))
                    else:
                        move_objects(str(self.folder / str(step)), str(aside / str(step)))
                    log.warning("moved to %s", aside / str(step))
        self._checkpointer.reload()


def _progress(key: jax.Array, solution_bank: np.ndarray | None) -> dict[str, Any]:
    return {"key": key} if solution_bank is None else {"key": key, "memory": solution_bank}
