"""A run's folder and what its stages share: settings, tokenizer, model, mesh."""

import dataclasses
import functools
import json
import logging
import os
import pathlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from igpo_jax import config as configuration
from igpo_jax.config import Settings, check_divisibility
from igpo_jax.data.pipeline import PromptBatch, SFTBatch, prompt_arrays, sft_arrays, take_rows
from igpo_jax.diffusion.batches import decode_completions
from igpo_jax.grading.reference_code import format_reward
from igpo_jax.model import lora
from igpo_jax.model.logprobs import with_head_chunk
from igpo_jax.model.sharding import Params
from igpo_jax.model.transformer import ModelConfig, init, shardings
from igpo_jax.runtime.distributed import check_same, check_shared, own_rows, raise_on_all_hosts, share_rows
from igpo_jax.runtime.files import atomic_write, differing_keys, read_json, wrap_read_errors
from igpo_jax.runtime.mesh import make_mesh
from igpo_jax.tasks import load_task
from igpo_jax.tasks.problem import Problem, fingerprint
from igpo_jax.tasks.reward_pool import Grades, RewardPool, reward_pool
from igpo_jax.tokenizers import Tokenizer, completion_text, load_tokenizer, train_sentencepiece
from igpo_jax.weights.folders import load_params

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ProblemSet:
    """Problems and their arrays, row by row, prompts padded to the largest bucket."""

    problems: list[Problem]
    prompts: PromptBatch

    @functools.cached_property
    def by_id(self) -> dict[int, Problem]:
        return dict(zip(self.prompts.problem_id.tolist(), self.problems, strict=True))

    def rows_of(self, problem_id: np.ndarray) -> np.ndarray:
        """Places of problems in the set, int [n], from uint32 [n]."""
        order = np.argsort(self.prompts.problem_id)
        return order[np.searchsorted(self.prompts.problem_id, problem_id, sorter=order)]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What the stages of a run share. `sft_data` and `rl_data` are None where the stage is left out."""

    workdir: pathlib.Path
    settings: Settings
    fingerprint: str  # of the configuration
    data: dict[str, str]  # fingerprints of the splits that are used
    tokenizer: Tokenizer
    model: ModelConfig
    mesh: Mesh
    sft_data: SFTBatch | None
    heldout: SFTBatch | None  # of the supervised split, not trained on; None: sft.heldout is 0
    rl_data: ProblemSet | None
    test_data: ProblemSet
    pool: RewardPool

    def key(self, purpose: int) -> jax.Array:
        """The root key of one purpose: 0 initialisation, 1 supervised stage, 2 RL stage, 3 adapters."""
        return jax.random.fold_in(jax.random.key(self.settings.seed), purpose)

    def initial_params(self) -> Params:
        """What the first stage starts from: the parameters in the folder `model.path`, or random ones of the run's seed,
        created where they live."""
        if self.settings.model["path"]:
            return load_params(self.settings.model["path"], self.model, self.mesh)
        make = jax.jit(init, static_argnums=1, out_shardings=shardings(self.model, self.mesh))
        return make(self.key(0), self.model)

    def initial_adapters(self) -> Params:
        """Adapters that change nothing yet."""
        cfg = self.settings.lora
        make = jax.jit(lora.init, static_argnums=(1, 2), out_shardings=lora.shardings(self.model, cfg, self.mesh))
        return make(self.key(3), self.model, cfg)

    def graded_text(self, tokens: np.ndarray) -> str:
        """A completion as it is graded: up to its first EOS, unless reward.after_eos."""
        return completion_text(self.tokenizer, tokens, whole=self.settings.reward.after_eos)

    def grade(self, problem_id: np.ndarray, completions: np.ndarray) -> Callable[[], Grades]:
        """Grades rollouts of the RL split, see `rl.rollout.Grade`."""
        return self._grades([self.rl_data.by_id[number] for number in problem_id.tolist()], completions)

    def _grades(self, problems: Sequence[Problem], completions: np.ndarray) -> Callable[[], Grades]:
        """Starts grading completions, int32 [n, g, l], of which every process takes some problems. All processes must call the
        returned function, at the same point: it waits for the grades and gathers them over hosts."""
        cfg, g = self.settings.reward, completions.shape[1]

        def work(rows: np.ndarray) -> np.ndarray:
            answers = [(problems[row], self.graded_text(tokens)) for row in rows for tokens in completions[row]]
            verdicts = self.pool(answers)
            form = [format_reward(text) if cfg.format else 0.0 for _, text in answers]
            columns = [
                [cfg.scale * verdict.reward + extra for verdict, extra in zip(verdicts, form, strict=True)],
                [verdict.reward >= 1 for verdict in verdicts],
                [verdict.outcome == "timeout" for verdict in verdicts],
                [verdict.outcome == "error" for verdict in verdicts],
            ]
            return np.array(columns, np.float32).T.reshape(len(rows), g, 4)

        under_way = self._grading.submit(work, own_rows(len(problems)))

        def finish() -> Grades:
            found = share_rows(np.zeros((len(problems), g, 4), np.float32), lambda rows: under_way.result())
            return Grades(found[..., 0], *(found[..., i] > 0 for i in (1, 2, 3)))

        return finish

    @functools.cached_property
    def _grading(self) -> ThreadPoolExecutor:
        """One thread, which waits for the processes that grade."""
        return ThreadPoolExecutor(max_workers=1)

    def verdicts(self, params: Params, check_preemption: Callable[[], None] = lambda: None) -> np.ndarray:
        """Which test problems the decoding of evaluations solves, bool [problems]. pause: see `decode_completions`."""
        settings, test = self.settings, self.test_data
        batch_size = settings.evaluation.batch_size
        buckets = settings.data.prompt_buckets
        completions = decode_completions(
            params, test.prompts, self.model, settings.eval_decode, batch_size, buckets, self.mesh, check_preemption
        )
        return self._grades(test.problems, completions[:, None])().correct[:, 0]


def open_experiment(config: ConfigDict, workdir: str | os.PathLike) -> Experiment:
    """Validates the configuration and the data, and creates the run's folder or checks that it is this run's.

    Nothing is allocated on a device.

    Raises:
        ValueError: a value that cannot work, data that cannot be used, a folder with the run of another configuration, or
            one that the processes of this run do not share. It is raised on all processes.
        OSError: the folder cannot be written.
    """
    if "://" in os.fspath(workdir):
        raise ValueError(f"--workdir={workdir} is no folder; mount the bucket on every host and give its path (BUILD.md)")
    workdir, wanted = pathlib.Path(workdir).absolute(), configuration.to_json(config)
    with raise_on_all_hosts():
        settings = configuration.parse(config)
        mesh = make_mesh(**settings.mesh)
        written = _check_workdir(workdir, wanted)
        new = jax.process_index() == 0 and written is None
        problems = load_problems(settings)
        data = {split: fingerprint(of) for split, of in problems.items()}
        _check_data(workdir, data)
        if new:
            workdir.mkdir(parents=True, exist_ok=True)
            if not settings.model["path"]:
                train_tokenizer(problems, workdir, settings)
    check_shared(workdir)
    own = {"configuration": configuration.fingerprint(config)}
    check_same(own | {f"split {split}": data.get(split, "0") for split in ("sft", "rl", "test")})
    with raise_on_all_hosts():
        experiment = _with_data(workdir, settings, configuration.fingerprint(config), mesh, problems, data)
    with raise_on_all_hosts():
        if jax.process_index() == 0:
            atomic_write(workdir / "data.json", json.dumps(data, indent=2))
            if written != wanted:
                atomic_write(workdir / "config.json", json.dumps(wanted, indent=2))
    return experiment


def load_problems(settings: Settings) -> dict[str, list[Problem]]:
    """The problems of the splits that the run uses.

    Raises:
        ValueError: data that cannot be used; names file and line.
    """
    task = load_task(settings.task.name)
    stages = {"sft": settings.sft.updates > 0, "rl": settings.rl.iterations > 0, "test": True}
    problems = {split: task.load(settings.task, split, settings.seed) for split, used in stages.items() if used}
    # Nothing is cut from the solutions of test problems, and none is dropped because its solution is long.
    test = problems["test"][: settings.evaluation.problems]
    problems["test"] = [dataclasses.replace(problem, trace="", answer_spans=()) for problem in test]
    return problems


def train_tokenizer(problems: dict[str, list[Problem]], workdir: pathlib.Path, settings: Settings) -> None:
    """Writes tokenizer.model, of the text of the first stage."""
    taught = problems.get("sft", problems.get("rl"))
    texts = (text for p in taught for text in (p.question, p.demonstration, p.trace))
    kind, vocab_size = settings.tokenizer.kind, settings.tokenizer.vocab_size
    train_sentencepiece(texts, workdir / "tokenizer.model", kind=kind, vocab_size=vocab_size)


def _with_data(
    workdir: pathlib.Path,
    settings: Settings,
    config_fingerprint: str,
    mesh: Mesh,
    problems: dict[str, list[Problem]],
    data: dict[str, str],
) -> Experiment:
    """The experiment, its problems as arrays."""
    tokenizer = run_tokenizer(workdir, settings)
    model = with_head_chunk(configuration.model_config(settings, tokenizer), mesh)
    check_divisibility(settings, model, mesh)
    fit = {
        "chat": settings.tokenizer.chat,
        "prompt_length": settings.data.prompt_buckets[-1],
        "completion_length": settings.rollout_decode.completion_length,
        "overflow": settings.data.overflow,
    }

    def problem_set(split: str, **options) -> ProblemSet:
        exclude = settings.inpainting.exclude_answer
        return ProblemSet(*prompt_arrays(problems[split], tokenizer, **fit | options, exclude_answer=exclude))

    sft_data, heldout = sft_arrays(problems["sft"], tokenizer, **fit) if "sft" in problems else None, None
    if sft_data is not None and settings.sft.heldout:
        sft_data, heldout = _hold_out(sft_data, settings.sft.heldout, settings.seed)
    experiment = Experiment(
        workdir,
        settings,
        config_fingerprint,
        data,
        tokenizer,
        model,
        mesh,
        sft_data=sft_data,
        heldout=heldout,
        rl_data=problem_set("rl") if "rl" in problems else None,
        test_data=problem_set("test", overflow="cut"),  # a test keeps all its problems
        pool=reward_pool(settings.task, settings.reward),
    )
    for arrays, key, size in (
        (experiment.sft_data, "sft.batch_size", settings.sft.batch_size),
        (experiment.rl_data and experiment.rl_data.prompts, "rl.prompts", settings.rl.prompts),
    ):
        if arrays is not None and len(arrays.tokens) < size:
            raise ValueError(f"{len(arrays.tokens)} problems do not fill a batch of {key}={size}")
    return experiment


def _hold_out(arrays: SFTBatch, problems: int, seed: int) -> tuple[SFTBatch, SFTBatch]:
    """What is trained on, in its order, and random problems that are not."""
    if problems >= len(arrays.tokens):
        raise ValueError(f"sft.heldout={problems} leaves none of the {len(arrays.tokens)} problems to train on")
    order = np.random.default_rng(seed).permutation(len(arrays.tokens))
    return take_rows(arrays, np.sort(order[problems:])), take_rows(arrays, order[:problems])


def run_tokenizer(workdir: pathlib.Path, settings: Settings) -> Tokenizer:
    """That of the folder `model.path`, or the one that was trained when the run was opened."""
    of_folder = configuration.folder_model(settings)
    if of_folder is None:
        return load_tokenizer(workdir / "tokenizer.model")
    return load_tokenizer(settings.model["path"], of_folder.mask_id)


def read_config(workdir: str | os.PathLike) -> ConfigDict:
    """The configuration of the run in `workdir`.

    Raises:
        ValueError: there is no run, or its config.json is none.
    """
    written = pathlib.Path(workdir) / "config.json"
    if not written.is_file():
        raise ValueError(f"{workdir} holds no run: it has no config.json")
    values = read_json(written)
    with wrap_read_errors(f"{written}, as a configuration of this version,"):
        return configuration.from_json(values)


def _check_data(workdir: pathlib.Path, data: dict[str, str]) -> None:
    """That the run goes on with the problems that it began with."""
    file = workdir / "data.json"
    written = read_json(file) if file.is_file() else {}
    changed = [split for split, value in data.items() if written.get(split, value) != value]
    if changed:
        raise ValueError(
            f"{workdir}: the run began with other problems in the split {', '.join(changed)} ({file.name}); give the same "
            "data to continue that run, or another --workdir"
        )


def _check_workdir(workdir: pathlib.Path, wanted: dict) -> dict | None:
    """The configuration of the run that the folder holds already; config.json is the last file that opening a run
    writes."""
    if not (workdir / "config.json").is_file():
        return None
    try:
        written = configuration.to_json(read_config(workdir))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{workdir / 'config.json'} is no configuration of this version: {error}") from None
    differing = [key for key in differing_keys(written, wanted) if key not in configuration.RESUMABLE_KEYS]
    if differing:
        raise ValueError(
            f"{workdir} holds a run of another configuration (differing keys: {', '.join(differing)}); give another "
            "--workdir, or the same configuration to continue that run"
        )
    return written
