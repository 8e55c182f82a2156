"""Exports the newest checkpoint of a run, either as a model folder in Hugging Face's format or as LoRA adapters."""

import json
import logging
import os
from collections.abc import Collection

import jax
from jax.sharding import Mesh

from igpo_jax.families import family_of
from igpo_jax.model import lora
from igpo_jax.run.bucket_runs import run_folder
from igpo_jax.run.restore import restore_run
from igpo_jax.runtime.files import atomic_write, require_stored
from igpo_jax.runtime.mesh import to_host
from igpo_jax.weights.finite import check_finite
from igpo_jax.weights.folders import original_name, weight_names, write_safetensors
from igpo_jax.weights.huggingface import llada_config, read_model_json
from igpo_jax.weights.new_folders import check_link, copy_small_files, new_folder
from igpo_jax.weights.peft import export_peft

log = logging.getLogger(__name__)


def export_run(
    workdir: str | os.PathLike,
    target: str | os.PathLike,
    mesh: Mesh,
    dtype: str | None = None,
    trust: Collection[str] = (),
    allow_nonfinite: bool = False,
) -> None:
    """Writes the newest checkpoint of a run as a model folder in Hugging Face's format. LoRA adapters are merged into the
    original weights in the folder model.path, even if the run quantized these weights to int8 (model.base_dtype). Raises
    ValueError if `target` exists, or if `restore_run` cannot load the run.

    Args:
        dtype: float32 or bfloat16. If there are adapters, the default is float32, because rounding to bfloat16 loses most of
            what the adapters learned. If bfloat16 is requested for a run with adapters, a warning states how much is lost.
            Without adapters, the default is the run's parameter dtype.
        trust, allow_nonfinite: see `restore_run`."""
    run = restore_run(workdir, mesh, trust=trust, allow_nonfinite=allow_nonfinite, quantized=False)
    config, base, adapters = run.config, run.config.model.path, run.adapters or {}
    dtype = dtype or ("float32" if adapters else run.model.param_dtype)

    def leaves():
        for path, leaf in jax.tree.leaves_with_path(run.params):
            path = tuple(key.key for key in path)
            if path[0] == "blocks" and path[1] in adapters:
                leaf, lost = lora.merge_matrix(leaf, adapters[path[1]], config.lora, dtype)
                check_finite(leaf, f"{workdir}: {path[1]} with its adapters", allow_nonfinite)
                if dtype == "bfloat16":
                    log.warning("%s: rounding to bfloat16 loses %.0f %% of what was learned", path[1], 100 * lost)
            yield path, leaf

    length = config.data.prompt_buckets[-1] + config.sampler.completion_length
    values = read_model_json(base) if base else llada_config(run.model, length)
    names = weight_names(base, values, run.model) if base else ()
    with new_folder(target) as folder:
        if base:
            copy_small_files(base, folder)
        else:
            tokenizer = run_folder(workdir) / "tokenizer.model"
            check_link(tokenizer)
            require_stored(tokenizer)
            if jax.process_index() == 0:
                atomic_write(folder / "config.json", json.dumps(values, indent=2))
                atomic_write(folder / "tokenizer.model", tokenizer.read_bytes())
        write_safetensors(folder, leaves(), values, run.model, mesh, dtype, *names)


def export_adapters(
    workdir: str | os.PathLike,
    target: str | os.PathLike,
    mesh: Mesh,
    trust: Collection[str] = (),
    allow_nonfinite: bool = False,
) -> None:
    """Writes the LoRA adapters of a run's newest checkpoint in PEFT's format. Raises ValueError if the run has no adapters, or
    if `restore_run` cannot load the run. `trust` and `allow_nonfinite` are passed to `restore_run`."""
    run = restore_run(workdir, mesh, trust=trust, allow_nonfinite=allow_nonfinite)
    if run.adapters is None or run.config.lora is None:
        raise ValueError(f"{workdir} trained all parameters (lora.rank=0); there are no adapters to export")
    with new_folder(target) as folder:
        adapters = to_host(run.adapters)
        if jax.process_index() == 0:
            base = run.config.model.path
            export_peft(adapters, run.config.lora, folder, original_name(base), family_of(read_model_json(base)))
