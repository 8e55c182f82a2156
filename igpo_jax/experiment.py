"""A run's folder and everything that its stages share: settings, problems, tokenizer, mesh."""

import dataclasses
import json
import pathlib
import platform

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from igpo_jax import config as configuration
from igpo_jax.config import Settings
from igpo_jax.data.pipeline import prompt_arrays, sft_arrays
from igpo_jax.evaluation import decode_completions
from igpo_jax.model.transformer import ModelConfig, Params
from igpo_jax.rl.rollout import Grade
from igpo_jax.runtime.mesh import make_mesh
from igpo_jax.tasks import load_task
from igpo_jax.tasks.problem import Problem
from igpo_jax.tokenizers import Tokenizer, load_tokenizer, train_sentencepiece


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What the stages of a run share. `fingerprint` is that of its configuration."""

    workdir: pathlib.Path
    settings: Settings
    fingerprint: str
    tokenizer: Tokenizer
    model: ModelConfig
    mesh: Mesh
