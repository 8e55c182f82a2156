"""Loads a checkpoint of a run for generation, evaluation and export."""

import dataclasses
import logging
import math
import os
import pathlib
from collections.abc import Collection

import jax
from jax.sharding import Mesh

from igpo_jax import config as configuration
from igpo_jax.config import Config
from igpo_jax.model.fitting import fit_to_devices
from igpo_jax.model.lora import check_model_divides
from igpo_jax.model.sharding import Params
from igpo_jax.model.transformer import ModelConfig
from igpo_jax.run.bucket_runs import checkpoints_of, run_folder
from igpo_jax.run.checkpoint import Checkpoints
from igpo_jax.run.checkpoint_integrity import misnamed, network_hash, steps_in
from igpo_jax.run.experiment import as_begun, read_run_config
from igpo_jax.run.layout import row_lengths
from igpo_jax.run.missing_files import lost_checkpoint
from igpo_jax.run.tokenizer import run_tokenizer
from igpo_jax.runtime.buckets import is_folder
from igpo_jax.runtime.checks import require
from igpo_jax.runtime.hub import HUB_ID
from igpo_jax.tokenizers import Tokenizer
from igpo_jax.training.policy import Policy
from igpo_jax.weights.digest import network_digest
from igpo_jax.weights.finite import check_finite
from igpo_jax.weights.folders import load_params

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Restored:
    """Configuration, tokenizer and parameters of a run's checkpoint."""

    step: int
    stage: str
    config: Config
    model: ModelConfig
    tokenizer: Tokenizer
    params: Params  # of the network, without adapters
    adapters: Params | None  # None if lora.rank is 0

    def policy(self) -> Params:
        """Returns the network's parameters, with the adapters if the run has any."""
        policy = Policy(self.model, self.config.lora)
        return self.params if self.adapters is None else policy.assemble(self.adapters, self.params)


def restore_run(
    workdir: str | os.PathLike,
    mesh: Mesh,
    stage: str | None = None,
    trust: Collection[str] = (),
    allow_nonfinite: bool = False,
    quantized: bool = True,
) -> Restored:
    """Loads the newest checkpoint of one stage of a run, with the run's configuration and tokenizer. `stage` is "sft" or "rl".
    By default, it is "rl" if the RL stage has a checkpoint, otherwise "sft". A stage with a step, such as "rl-40", selects the
    checkpoint of this step instead of the newest one. Warns of checkpoints whose folders have been renamed, so that they are
    not found. Also warns if the last checkpoint of a finished run is missing, unless an earlier one was selected. The run's
    training and test data are not needed. If `quantized` is False, the frozen weights are loaded without quantization, even if
    the run quantized them (model.base_dtype).

    Raises ValueError if there is no run or no readable checkpoint, if the folder model.path is missing, if the run's task is
    neither part of this package nor listed in `trust`, or if a parameter is NaN or infinite. If `allow_nonfinite` is True, NaN
    and infinite parameters cause a warning instead of an error."""
    workdir = run_folder(workdir).absolute()
    values = read_run_config(workdir, trust)
    config = configuration.parse(values)
    origin = config.model.path
    moved = (
        f"{workdir / 'config.json'}: model.path={origin!r}, the model that the run began with, is no folder; put it back there"
    )
    if HUB_ID.fullmatch(origin):
        moved += f", or, if it is a model of the Hugging Face hub, run hf download {origin}"
    require(not origin or is_folder(origin), moved)
    tokenizer = run_tokenizer(workdir, config)
    model = fit_to_devices(configuration.model_config(config, tokenizer), mesh, row_lengths(config))
    model = model if quantized else dataclasses.replace(model, base_dtype="")
    check_model_divides(model, mesh, config.lora)
    # A stage that has begun may not have a checkpoint yet.
    saved = [name for name in ("sft", "rl") if steps_in(checkpoints_of(workdir) / name)]
    given = stage or (saved[-1] if saved else "sft")
    for name in ("sft", "rl"):
        for path in misnamed(checkpoints_of(workdir) / name) if not stage or stage.startswith(name) else ():
            reason = "is not the step of a checkpoint; rename it to its step, or move it away"
            log.warning("checkpoint %s cannot be read: %s %s", path, path.name[:50], reason)
    wants_end = stage in (None, "", "rl")
    stage, dash, number = given.partition("-")
    valid = stage in ("sft", "rl") and number.isdecimal() == bool(dash)
    require(valid, f"stage={given!r} is neither sft nor rl, nor one of them with a step, such as rl-40")
    folder = checkpoints_of(workdir) / stage
    if not is_folder(folder):
        raise ValueError(f"{folder.parent} has no checkpoints of the stage {stage!r}")
    if wants_end:
        _warn_if_lost(workdir, config, stage)
    begun = as_begun(workdir, values)
    identity = {"fingerprint": configuration.fingerprint(begun), "sft_fingerprint": configuration.fingerprint(begun, "sft")}
    identity["tokenizer"] = tokenizer.digest
    if origin:
        identity["network"] = network_hash(model, tokenizer)
    if config.lora is not None:
        identity["base"] = network_digest(origin)
    with Checkpoints(folder, keep=config.checkpoints_kept, identity=identity, read_only=True) as checkpoints:
        restored = checkpoints.restore_params(Policy(model, config.lora).abstract(mesh), int(number) if number else None)
    if restored is None:
        raise ValueError(f"{folder} is empty")
    step, trained = restored
    for path, leaf in jax.tree.leaves_with_path(trained):
        name = ".".join(key.key for key in path)
        check_finite(leaf, f"{folder / str(step)}, parameter {name}", allow_nonfinite)
    params: tuple[Params, Params | None] = (trained, None)
    if config.lora is not None:
        params = (load_params(origin, model, mesh, allow_nonfinite), trained)
    return Restored(step, stage, config, model, tokenizer, *params)


def _warn_if_lost(workdir: pathlib.Path, config: Config, stage: str) -> None:
    """Warns if the run finished with a later update than that of the newest checkpoint of `stage`, its last stage."""
    folder, supervised = checkpoints_of(workdir) / stage, steps_in(checkpoints_of(workdir) / "sft")
    # With sft.epochs, only the checkpoints tell the number of supervised updates; without them, nothing is known.
    begin = max(supervised, default=math.inf) if config.sft.epochs else config.sft.updates
    for newest in steps_in(folder)[-1:]:
        updates = newest if stage == "sft" else begin + newest * config.objective.inner_steps
        if lost := lost_checkpoint(workdir, folder / str(newest), updates):
            log.warning("%s; restore the missing one from a copy", lost)
