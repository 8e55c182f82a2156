"""A run's newest checkpoint, for use."""

import dataclasses
import os
import pathlib

from jax.sharding import Mesh

from igpo_jax import config as configuration
from igpo_jax.config import Settings
from igpo_jax.model import lora
from igpo_jax.model.logprobs import with_head_chunk
from igpo_jax.model.lora import check_model_divides
from igpo_jax.model.sharding import Params
from igpo_jax.model.transformer import ModelConfig, abstract
from igpo_jax.run.checkpoint import Checkpoints
from igpo_jax.run.experiment import (
    read_config,
    run_tokenizer,
)
from igpo_jax.tokenizers import Tokenizer
from igpo_jax.weights.folders import load_params


@dataclasses.dataclass(frozen=True)
class Restored:
    """A run's newest checkpoint: at which step, and of which stage; the network, its parameters, and adapters of them
    (None: none were trained)."""

    step: int
    stage: str
    settings: Settings
    model: ModelConfig
    tokenizer: Tokenizer
    params: Params
    adapters: Params | None

    def policy(self) -> Params:
        """The network's parameters, with adapters beside them."""
        return self.params if self.adapters is None else lora.attach(self.params, self.adapters, self.settings.lora)


def restore_run(workdir: str | os.PathLike, mesh: Mesh, stage: str | None = None) -> Restored:
    """The newest checkpoint of a run, for use. The data that it was trained on is not needed.

    Args:
        stage: sft | rl; by default the last that the run has.

    Raises:
        ValueError: there is no run, no checkpoint, or none that can be read.
    """
    workdir = pathlib.Path(workdir).absolute()
    settings = configuration.parse(read_config(workdir))
    tokenizer = run_tokenizer(workdir, settings)
    model = with_head_chunk(configuration.model_config(settings, tokenizer), mesh)
    check_model_divides(model, mesh, settings.lora)
    # A stage may have begun and not saved yet.
    folders = {name: (workdir / "checkpoints" / name).glob("*") for name in ("sft", "rl")}
    saved = [name for name, steps in folders.items() if any(step.name.isdigit() for step in steps)]
    stage = stage or (saved[-1] if saved else "sft")
    step, trained = _restore_trained(workdir, settings, model, mesh, stage)
    if settings.lora is None:
        return Restored(step, stage, settings, model, tokenizer, trained, None)
    base = load_params(settings.model["path"], model, mesh)
    return Restored(step, stage, settings, model, tokenizer, base, trained)


def _restore_trained(
    workdir: pathlib.Path, settings: Settings, model: ModelConfig, mesh: Mesh, stage: str
) -> tuple[int, Params]:
    """What a stage trained, all parameters or adapters, at its newest checkpoint."""
    folder = workdir / "checkpoints" / stage
    if not folder.is_dir():
        raise ValueError(f"{folder.parent} has no checkpoints of the stage {stage!r}")
    wanted = abstract(model, mesh) if settings.lora is None else lora.abstract(model, settings.lora, mesh)
    with Checkpoints(folder, keep=settings.checkpoints_kept, read_only=True) as checkpoints:
        restored = checkpoints.restore_params(wanted)
    if restored is None:
        raise ValueError(f"{folder} is empty")
    return restored
