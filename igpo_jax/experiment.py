"""A run's folder and what its stages share: settings, tokenizer, model, mesh."""

import dataclasses
import functools
import json
import os
import pathlib

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from igpo_jax import config as configuration
from igpo_jax.config import Settings
from igpo_jax.data.pipeline import PromptBatch, SFTBatch, prompt_arrays, sft_arrays
from igpo_jax.evaluation import decode_completions
from igpo_jax.model.transformer import ModelConfig, Params
from igpo_jax.runtime.files import write_whole
from igpo_jax.runtime.mesh import make_mesh
from igpo_jax.tasks import load_task
from igpo_jax.tasks.problem import Problem
from igpo_jax.tokenizers import Tokenizer, load_tokenizer, train_sentencepiece


@dataclasses.dataclass(frozen=True)
class ProblemSet:
    """Problems and their arrays, row by row, prompts padded to the largest bucket."""

    problems: list[Problem]
    prompts: PromptBatch

    @functools.cached_property
    def by_id(self) -> dict[int, Problem]:
        return dict(zip(self.prompts.problem_id.tolist(), self.problems, strict=True))


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What the stages of a run share. `sft_data` and `rl_data` are None where the stage is left out."""

    workdir: pathlib.Path
    settings: Settings
    fingerprint: str  # of the configuration
    tokenizer: Tokenizer
    model: ModelConfig
    mesh: Mesh
    sft_data: SFTBatch | None
    rl_data: ProblemSet | None
    test_data: ProblemSet

    def key(self, purpose: int) -> jax.Array:
        """The root key of one purpose: 0 initialisation, 1 supervised stage, 2 RL stage."""
        return jax.random.fold_in(jax.random.key(self.settings.seed), purpose)

    def text(self, tokens: np.ndarray) -> str:
        """A completion as it is graded: up to its first EOS."""
        ended = np.flatnonzero(tokens == self.tokenizer.eos_id)
        return self.tokenizer.decode(tokens[: ended[0]] if ended.size else tokens)

    def reward(self, problem: Problem, tokens: np.ndarray) -> float:
        return load_task(self.settings.task.name).reward(problem, self.text(tokens))

    def grade(self, problem_id: np.ndarray, completions: np.ndarray) -> np.ndarray:
        """Rewards of rollouts of the RL split, see `rl.rollout.Grade`."""
        by_id = self.rl_data.by_id
        groups = zip(problem_id.tolist(), completions, strict=True)
        return np.array([[self.reward(by_id[i], row) for row in group] for i, group in groups], np.float32)

    def accuracy(self, params: Params) -> float:
        """Share of the test problems that the decoding of evaluations solves."""
        settings, test = self.settings, self.test_data
        batch_size = settings.evaluation.batch_size
        completions = decode_completions(params, test.prompts, self.model, settings.eval_decode, batch_size, self.mesh)
        return float(np.mean([self.reward(p, row) for p, row in zip(test.problems, completions, strict=True)]))


def open_experiment(config: ConfigDict, workdir: str | os.PathLike) -> Experiment:
    """Validates the configuration and the data, and creates the run's folder or checks that it is this run's.

    Nothing is allocated on a device.

    Raises:
        ValueError: a value that cannot work, data that cannot be used, or a folder with the run of another configuration.
    """
    settings = configuration.parse(config)
    mesh = make_mesh(**settings.mesh)
    workdir = pathlib.Path(workdir).absolute()
    wanted = configuration.to_json(config)
    resumed = _check_workdir(workdir, wanted)
    task = load_task(settings.task.name)
    stages = {"sft": settings.sft.updates > 0, "rl": settings.rl.iterations > 0, "test": True}
    problems = {split: task.load(settings.task, split, settings.seed) for split, used in stages.items() if used}
    # Nothing is cut from the solutions of test problems, and none is dropped because its solution is long.
    test = problems["test"][: settings.evaluation.problems]
    problems["test"] = [dataclasses.replace(problem, trace="", answer_spans=()) for problem in test]

    if not resumed:
        workdir.mkdir(parents=True, exist_ok=True)
        train_sentencepiece(
            (text for p in problems.get("sft", problems.get("rl")) for text in (p.question, p.demonstration, p.trace)),
            workdir / "tokenizer.model",
            kind=settings.tokenizer.kind,
            vocab_size=settings.tokenizer.vocab_size,
        )
    tokenizer = load_tokenizer(workdir / "tokenizer.model")
    model = configuration.model_config(settings, tokenizer)
    configuration.check_divisibility(settings, model, mesh)

    fit = {
        "prompt_length": settings.data.prompt_buckets[-1],
        "completion_length": settings.rollout_decode.completion_length,
        "overflow": settings.data.overflow,
    }

    def problem_set(split: str) -> ProblemSet:
        return ProblemSet(
            *prompt_arrays(problems[split], tokenizer, **fit, exclude_answer=settings.inpainting.exclude_answer)
        )

    experiment = Experiment(
        workdir,
        settings,
        configuration.fingerprint(config),
        tokenizer,
        model,
        mesh,
        sft_data=sft_arrays(problems["sft"], tokenizer, **fit) if stages["sft"] else None,
        rl_data=problem_set("rl") if stages["rl"] else None,
        test_data=problem_set("test"),
    )
    for arrays, key, size in (
        (experiment.sft_data, "sft.batch_size", settings.sft.batch_size),
        (experiment.rl_data and experiment.rl_data.prompts, "rl.prompts", settings.rl.prompts),
    ):
        if arrays is not None and len(arrays.tokens) < size:
            raise ValueError(f"{len(arrays.tokens)} problems do not fill a batch of {key}={size}")
    if not resumed:
        write_whole(workdir / "config.json", json.dumps(wanted, indent=2))
    return experiment


def read_config(workdir: str | os.PathLike) -> ConfigDict:
    """The configuration of the run in `workdir`.

    Raises:
        ValueError: there is no run.
    """
    written = pathlib.Path(workdir) / "config.json"
    if not written.is_file():
        raise ValueError(f"{workdir} holds no run: it has no config.json")
    return ConfigDict(json.loads(written.read_text()), convert_dict=True)


def _check_workdir(workdir: pathlib.Path, wanted: dict) -> bool:
    """Whether the folder holds a run already; config.json is the last file that opening a run writes."""
    written = workdir / "config.json"
    if not written.is_file():
        return False
    differing = configuration.differing_keys(json.loads(written.read_text()), wanted)
    if differing:
        raise ValueError(
            f"{workdir} holds a run of another configuration (differing keys: {', '.join(differing)}); give another "
            "--workdir, or the same configuration to continue that run"
        )
    return True
