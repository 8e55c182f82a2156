"""Opens a run: its folder, and the configuration, tokenizer, model, device mesh and data that its stages share."""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from igpo_jax import config as configuration
from igpo_jax.chat import completion_text
from igpo_jax.config import Config
from igpo_jax.data.pipeline import PromptBatch, SFTBatch, prompt_arrays, require_prompts, sft_arrays, take_rows
from igpo_jax.diffusion.batches import Batching, Requests, complete
from igpo_jax.grading.reference_code import format_reward
from igpo_jax.model.fitting import fit_to_devices
from igpo_jax.model.sharding import Params
from igpo_jax.model.transformer import ModelConfig
from igpo_jax.rl.hints import NOISE_KEYS
from igpo_jax.run.bucket_runs import SETTINGS, run_folder
from igpo_jax.run.checkpoint_integrity import network_hash
from igpo_jax.run.code_history import code_history
from igpo_jax.run.layout import check_divisibility, row_lengths, with_layout
from igpo_jax.run.metrics import LOGS
from igpo_jax.run.microbatch_choice import base_copy_stays, with_microbatches
from igpo_jax.run.missing_files import STAGES, check_identities, check_links, check_stages, has_checkpoints
from igpo_jax.run.problems import BENCHMARK, Benchmark, ProblemSet, Splits, load_run_problems
from igpo_jax.run.tokenizer import run_tokenizer, train_tokenizer
from igpo_jax.runtime.bucket_folders import address_of, share_files
from igpo_jax.runtime.buckets import is_address, path_of
from igpo_jax.runtime.checks import require
from igpo_jax.runtime.distributed import check_same, own_rows, raise_on_all_hosts, share_rows
from igpo_jax.runtime.files import atomic_write, differing_keys, read_json, wrap_read_errors
from igpo_jax.runtime.mesh import make_mesh
from igpo_jax.tasks import extracted_answer, load_task
from igpo_jax.tasks.decontamination import content_of, untested
from igpo_jax.tasks.grades import Grades, lack_of_verdicts
from igpo_jax.tasks.noise import with_noise
from igpo_jax.tasks.own_code import own_code
from igpo_jax.tasks.problem import Problem, problems_fingerprint
from igpo_jax.tasks.reward_pool import RewardPool, reward_pool
from igpo_jax.tasks.reward_terms import reward_terms, weighted_sum
from igpo_jax.tasks.trust import named_code, require_trusted
from igpo_jax.tokenizers import Tokenizer, warn_of_no_text
from igpo_jax.training.policy import Policy
from igpo_jax.weights.digest import network_digest
from igpo_jax.weights.folders import load_params


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Configuration, model and data shared by the stages of a run. If the run lacks a stage, the data of this stage is None."""

    workdir: pathlib.Path
    config: Config
    fingerprints: dict[str, str]  # stage -> fingerprint of the configuration
    data: dict[str, str]  # split -> fingerprint of its problems, for the splits that the run uses
    dropped: dict[str, int]  # sft | rl | heldout -> number of training problems that are also in the test split or held out
    tokenizer: Tokenizer
    model: ModelConfig
    mesh: Mesh  # of training
    sampling_mesh: Mesh  # of rollouts and evaluations, with the same devices; see run/layout.py
    sft_data: SFTBatch | None
    heldout: SFTBatch | None  # excluded from supervised training; None if sft.heldout is 0
    rl_data: ProblemSet | None
    test_data: ProblemSet
    pool: RewardPool
    benchmarks: dict[str, Benchmark] = dataclasses.field(default_factory=dict)  # in addition to `test_data`
    accept_loss: bool = False  # continue even if lines of the logs or the newest checkpoints are missing
    upload: Callable[[], None] = lambda: None  # uploads changed files if the run's folder is in a bucket

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the whole configuration."""
        return self.fingerprints["rl"]

    def identity(self, stage: str) -> dict[str, Any]:
        """Returns the fingerprints that are saved with each checkpoint of a stage, see `other_identity`."""
        return _identity(stage, self.fingerprints, self.data) | self.files

    @functools.cached_property
    def files(self) -> dict[str, str]:
        """Hashes of the files that the whole run needs. The hash of the tokenizer is always among them. With model.path, so is
        the hash of this model's settings, see `network_hash`. The hash of its weights is among them if it is the base of LoRA
        adapters, or if there is no supervised stage. Without a supervised stage, it is the reference of the KL term."""
        path, hashes = self.config.model.path, {"tokenizer": self.tokenizer.digest}
        if path:
            hashes["network"] = network_hash(self.model, self.tokenizer)
        if path and (self.config.lora or not self.config.sft.updates):
            hashes["base"] = network_digest(path)
        return hashes

    @functools.cached_property
    def base_copy_stays(self) -> bool:
        """Whether the RL stage keeps a copy of the frozen parameters for sampling, see `microbatch_choice.base_copy_stays`."""
        return base_copy_stays(self.config, self.model, self.mesh, self.sampling_mesh)

    def key(self, purpose: int) -> jax.Array:
        """Returns a PRNG root key. `purpose` is 0 (initialization), 1 (supervised stage), 2 (RL stage) or 3 (adapters)."""
        return jax.random.fold_in(jax.random.key(self.config.seed), purpose)

    def initial_params(self) -> Params:
        """Returns the initial parameters, sharded over `mesh`. They are loaded from the folder `model.path` if it is set.
        Otherwise, they are drawn at random with the run's seed."""
        if self.config.model.path:
            return load_params(self.config.model.path, self.model, self.mesh)
        return Policy(self.model).init(self.key(0), self.mesh)

    def initial_adapters(self) -> Params:
        """Returns untrained LoRA adapters. The product of an adapter's two matrices is zero, so the network is unchanged."""
        return Policy(self.model, self.config.lora).init(self.key(3), self.mesh)

    def graded_text(self, tokens: np.ndarray) -> str:
        """Decodes the graded part of a completion. This part ends at the first EOS, unless reward.after_eos is True."""
        return completion_text(self.tokenizer, tokens, whole=self.config.reward.after_eos)

    def extract_answer(self, text: str) -> str | None:
        """Returns the answer that the run's task finds in the text of a completion, or None if there is no answer."""
        return extracted_answer(self.config.task, text)

    def grade(self, problem_id: np.ndarray, completions: np.ndarray) -> Callable[[], Grades]:
        """Starts grading completions of RL problems. Returns a function that waits for the grades, see `rl.rollout.Grade`."""
        assert self.rl_data is not None, "rl.iterations is 0"
        return self._grades([self.rl_data.by_id[number] for number in problem_id.tolist()], completions)

    def _grades(
        self, problems: Sequence[Problem], completions: np.ndarray, pool: RewardPool | None = None
    ) -> Callable[[], Grades]:
        """Starts grading `completions`, int32 [n, g, l]: g completions of l tokens for each of n problems. Each process grades
        some of the problems in its `pool`, by default that of the run. Returns a function that waits for the grades and gathers
        them from all processes. All processes must call the returned function at the same point."""
        cfg, g = self.config.reward, completions.shape[1]
        terms = reward_terms(cfg.function)

        def work(rows: np.ndarray) -> np.ndarray:
            answers = [(problems[row], self.graded_text(tokens)) for row in rows for tokens in completions[row]]
            verdicts = (pool or self.pool)(answers)
            form = [format_reward(text) if cfg.format else 0.0 for _, text in answers]
            columns = [
                [cfg.scale * weighted_sum(terms, v.values) + extra for v, extra in zip(verdicts, form, strict=True)],
                [verdict.correct for verdict in verdicts],
                [verdict.outcome == "timeout" for verdict in verdicts],
                [verdict.outcome == "error" for verdict in verdicts],
                *([verdict.values[i] for verdict in verdicts] for i in range(len(terms))),
            ]
            return np.array(columns, np.float32).T.reshape(len(rows), g, len(columns))

        under_way = self._grading.submit(work, own_rows(len(problems)))

        def finish() -> Grades:
            found = share_rows(np.zeros((len(problems), g, 4 + len(terms)), np.float32), lambda rows: under_way.result())
            parts = {term.name: found[..., 4 + i] for i, term in enumerate(terms)} if len(terms) > 1 else {}
            reward, correct, late, broken = (found[..., i] for i in range(4))
            return Grades(reward, correct > 0, late > 0, broken > 0, parts)

        return finish

    @functools.cached_property
    def _grading(self) -> ThreadPoolExecutor:
        """Thread pool with one background thread, which waits for the results of the grading processes."""
        return ThreadPoolExecutor(max_workers=1)

    def lack_of_verdicts(self, grades: Sequence[Grades], benchmark: str = "") -> str:
        """Returns an error message if too many completions have no verdict, otherwise "". The limit is reward.max_ungraded, see
        `tasks.grades.lack_of_verdicts`. All processes must call this method with the same grades, and get the same result. The
        grades of a benchmark need its name."""
        counts = {"timeout": sum(int(each.late.sum()) for each in grades)}
        counts["error"] = sum(int(each.broken.sum()) for each in grades)
        total, limit = sum(int(each.sampled.sum()) for each in grades), self.config.reward.max_ungraded
        pool = self.benchmarks[benchmark].pool if benchmark else self.pool
        text = lack_of_verdicts(counts, total, pool.reasons, limit)
        return text and f"{f'benchmark {benchmark}: ' if benchmark else ''}{text} (reward.max_ungraded={limit:g})"

    def verdicts(self, params: Params, check_preemption: Callable[[], None], benchmark: str = "") -> Grades:
        """Samples and grades one completion for each test problem, or all draws for each problem of the benchmark with the given
        name. Returns grades [problems, draws]. Must run under `jax.set_mesh(sampling_mesh)`. After every batch, all processes
        call `check_preemption`, which may raise an exception."""
        evaluation = self.config.evaluation
        test = Benchmark(self.test_data, evaluation.decode, 1, self.pool)
        test = self.benchmarks[benchmark] if benchmark else test
        numbers = np.arange(len(test.data.problems) * test.draws)
        prompts, draw = take_rows(test.data.prompts, numbers // test.draws), (numbers % test.draws).astype(np.uint32)
        requests = Requests.blank(prompts, draw, self.model, test.decode)
        batching = Batching(self.sampling_mesh, evaluation.batch_size, self.config.data.prompt_buckets)
        completions = np.zeros_like(requests.canvas)
        for rows, done in complete(params, requests, jax.random.key(0), self.model, test.decode, batching):
            completions[rows] = done.tokens
            check_preemption()
        return self._grades(test.data.problems, completions.reshape(-1, test.draws, completions.shape[1]), test.pool)()


def open_experiment(
    requested: ConfigDict,
    workdir: str | os.PathLike,
    accept_loss: bool = False,
    upload: Callable[[], None] = lambda: None,
) -> Experiment:
    """Opens a run: validates the configuration and the data, and creates the run's folder or checks that an existing folder
    belongs to this run. Allocates no arrays on devices. Every process of a run must call this function. If one process raises
    an error, all processes raise one. `workdir` is the run's folder on this machine, and `upload` is a function that uploads
    changed files. Both are yielded by `opened_workdir`.

    Raises ValueError if the configuration or the data is invalid, if the folder holds a run with another configuration, if
    files of the run are missing and `accept_loss` is False, or if the processes do not share the folder. Raises OSError if the
    folder cannot be written."""
    require(not is_address(workdir), f"{workdir} is not a local folder; see `opened_workdir`")
    workdir = pathlib.Path(workdir).absolute()
    with raise_on_all_hosts():
        config = configuration.parse(requested)
        mesh = make_mesh(**vars(config.mesh))
        check_links(workdir)
        is_new = not (workdir / "config.json").is_file()  # opening a run writes this file last
        if not is_new:
            differing = ", ".join(keys_of_other_run(workdir, configuration.to_json(requested)))
            again = "give another --workdir, or the same configuration to continue that run"
            require(not differing, f"{workdir} holds a run of another configuration (differing keys: {differing}); {again}")
            requested = _with_saved_attention(workdir, requested)
            config = configuration.parse(requested)
        configuration.folder_model(config)  # a missing model is an error before minutes of reading problems
        problems, dropped, _ = load_run_problems(config)
        data = {split: problems_fingerprint(rows) for split, rows in problems.items()}
        _check_data(workdir, data, dropped)
        begun = as_begun(workdir, requested)
        fingerprints = {stage: configuration.fingerprint(begun, stage) for stage in STAGES}
        check_identities(workdir, {stage: _identity(stage, fingerprints, data) for stage in STAGES})
        is_begun = not is_new or has_checkpoints(workdir)
        # With data.json, which `_check_data` has read, the other files may be lost.
        is_known = is_begun or (accept_loss and (workdir / "data.json").is_file())
        for file in (path_of(address_of(workdir)) / name for name in ("report.html", "result.json", *LOGS)):
            require(is_known or not file.exists(), f"{file} is of no run, and a run would replace it; give another --workdir")
        check_stages(workdir, config, accept_loss)
        if jax.process_index() == 0 and is_new:
            workdir.mkdir(parents=True, exist_ok=True)
            if not config.model.path and not is_begun:
                train_tokenizer(problems, workdir, config)
    share_files(workdir, SETTINGS, upload)
    splits = {f"split {split}": data.get(split, "0") for split in dict.fromkeys(("sft", "rl", "test", *data))}
    check_same({"configuration": fingerprints["rl"]} | splits)
    with raise_on_all_hosts():
        experiment = _with_data(workdir, config, fingerprints, mesh, problems, data, dropped)
        if not is_new:
            _check_dropped(workdir, experiment.dropped)
    with raise_on_all_hosts():
        files = experiment.files
    check_same(files | {"code": problems_fingerprint(own_code(configuration.to_json(requested)).items())})
    with raise_on_all_hosts():
        if jax.process_index() == 0:
            written: dict[str, Any] = data | ({"dropped": experiment.dropped} if experiment.dropped else {})
            if begun is not requested:  # config.json no longer has the first buckets
                written |= {"prompt_buckets": list(begun.data.prompt_buckets)}
            written |= code_history(workdir, configuration.to_json(requested))
            atomic_write(workdir / "data.json", json.dumps(written, indent=2))
            atomic_write(workdir / "config.json", json.dumps(configuration.to_json(requested), indent=2))
            upload()
    return dataclasses.replace(experiment, accept_loss=accept_loss, upload=upload)


def _with_data(
    workdir: pathlib.Path,
    config: Config,
    fingerprints: dict[str, str],
    mesh: Mesh,
    problems: Splits,
    data: dict[str, str],
    dropped: dict[str, int],
) -> Experiment:
    """Encodes the loaded problems as tokens and returns the complete `Experiment`."""
    tokenizer = run_tokenizer(workdir, config)
    model = fit_to_devices(configuration.model_config(config, tokenizer), mesh, row_lengths(config))
    check_divisibility(config, model, mesh)
    fit: dict[str, Any] = {"chat": config.tokenizer.chat, "prompt_length": config.data.prompt_buckets[-1]}
    fit |= {"completion_length": config.sampler.completion_length, "overflow": config.data.overflow}
    exclude = config.inpainting.exclude_answer
    sft_data = heldout = rl_data = None
    if "sft" in problems:
        kept, sft_data = sft_arrays(problems["sft"], tokenizer, **fit)
        warn_of_no_text(tokenizer, "problems of the split sft", _token_ids(sft_data, sft_data.completion))
        if config.sft.heldout:
            sft_data, heldout = _hold_out(kept, sft_data, config)
            repeated = len(kept) - len(sft_data.tokens) - len(heldout.tokens)
            dropped = dropped | ({"heldout": repeated} if repeated else {})
        config = dataclasses.replace(config, sft=config.sft.with_updates(len(sft_data.tokens)))
    if "rl" in problems:
        shares = [getattr(config.inpainting, name) for name in NOISE_KEYS]
        noisy = [with_noise(problem, config.seed, *shares) for problem in problems["rl"]] if any(shares) else problems["rl"]
        rl_data = ProblemSet(*prompt_arrays(noisy, tokenizer, **fit, exclude_answer=exclude))
    # Long test prompts are cut, so that no test problem is dropped.
    test_data = ProblemSet(*prompt_arrays(problems["test"], tokenizer, **fit | {"overflow": "cut"}, exclude_answer=exclude))
    pool, benchmarks = reward_pool(config.task, config.reward), {}
    for name, part in config.evaluation.benchmarks.items():
        encoded = prompt_arrays(problems[BENCHMARK + name], tokenizer, **fit | {"overflow": "cut"}, exclude_answer=exclude)
        decode = dataclasses.replace(config.evaluation.decode, temperature=part.temperature)
        benchmarks[name] = Benchmark(ProblemSet(*encoded), decode, part.draws, reward_pool(part.task, config.reward, pool))
    prompts = rl_data.prompts if rl_data else None
    tested = {BENCHMARK + name: test.data.prompts for name, test in benchmarks.items()} | {"test": test_data.prompts}
    for split, batch in ({"rl": prompts} | tested).items():
        if batch is not None:
            require_prompts(model.shift, batch.prompt_mask)
            warn_of_no_text(tokenizer, f"problems of the split {split}", _token_ids(batch, batch.trace))
    for arrays, key, size in (sft_data, "sft.batch_size", config.sft.batch_size), (prompts, "rl.prompts", config.rl.prompts):
        if arrays is not None and len(arrays.tokens) < size:
            raise ValueError(f"{len(arrays.tokens)} problems do not fill a batch of {key}={size}")
    lengths = prompts.prompt_mask.sum(axis=1) if prompts is not None else None
    config, sampling_mesh = with_layout(with_microbatches(config, model, mesh, lengths), model, mesh, lengths)
    arrays = (sft_data, heldout, rl_data, test_data, pool, benchmarks)
    return Experiment(workdir, config, fingerprints, data, dropped, tokenizer, model, mesh, sampling_mesh, *arrays)


def _identity(stage: str, fingerprints: dict[str, str], data: dict[str, str]) -> dict[str, Any]:
    own = {"sft_fingerprint": fingerprints["sft"]} if stage == "sft" else {}
    return {"fingerprint": fingerprints["rl"], "data": data} | own


def _token_ids(batch: PromptBatch | SFTBatch, solutions: np.ndarray) -> Iterator[list[int]]:
    """Yields one list for each prompt: the token ids of the prompt without padding, and then the token ids of its solution.
    `solutions` are int32 [n, l]."""
    for prompt, mask, solution in zip(batch.tokens, batch.prompt_mask, solutions, strict=True):
        yield [*prompt[mask].tolist(), *solution.tolist()]


def _hold_out(problems: list[Problem], arrays: SFTBatch, config: Config) -> tuple[SFTBatch, SFTBatch]:
    """Returns the training set, in the original order, and the held-out set of sft.heldout examples that are drawn at random.
    `problems` contains the problem of each example in `arrays`. Drops training examples whose problem is also in the held-out
    set, for example with another solution."""
    size = config.sft.heldout
    order = np.random.default_rng(config.seed).permutation(len(problems))
    rest, held_out = np.sort(order[size:]), order[:size]
    content = content_of(load_task(config.task.name), config.task)
    keep = rest[np.array(untested(*([content(problems[row]) for row in rows] for rows in (rest, held_out))), bool)]
    if not len(keep):
        raise ValueError(f"sft.heldout={size} leaves none of the {len(problems)} problems to train on")
    return take_rows(arrays, keep), take_rows(arrays, held_out)


def read_run_config(workdir: str | os.PathLike, trust: Collection[str] = (), graded: bool = False) -> ConfigDict:
    """Reads the configuration of the run in `workdir`, and imports its task. Raises ValueError if config.json is missing or
    unreadable, or if config.json names code that is neither part of this package nor listed in `trust`, see `require_trusted`.
    The names of the reward functions are checked only if `graded` is True."""
    written = run_folder(workdir) / "config.json"
    if not written.is_file():
        raise ValueError(f"{workdir} holds no run: it has no config.json")
    values, what = read_json(written), f"{written}, as a configuration of this version,"
    with wrap_read_errors(what):
        named = named_code(values, graded)
    require_trusted(named, written, trust)
    with wrap_read_errors(what):
        return configuration.from_json(values)


def _check_data(workdir: pathlib.Path, data: dict[str, str], dropped: dict[str, int]) -> None:
    """Raises ValueError if the problems of a split have changed since the run began, for example because more of them are
    dropped. `dropped` contains the number of dropped problems of each split for the error message."""
    file = workdir / "data.json"
    written = read_json(file) if file.is_file() else {}
    of_run = not file.is_file() or (workdir / "config.json").is_file() or "test" in written
    require(of_run, f"{file} is of no run, and a run would replace it; give another --workdir")
    changed = [split for split, value in data.items() if written.get(split, value) != value]
    if changed:
        drops = ", ".join(f"{number} of {split}" for split, number in dropped.items())
        note = f". Now it drops problems that are in the test split, too: {drops}" if drops else ""
        raise ValueError(
            f"{workdir}: the run began with other problems in the split {', '.join(changed)} ({file.name}); give the same "
            f"data to continue that run, or another --workdir{note}"
        )


def _check_dropped(workdir: pathlib.Path, dropped: dict[str, int]) -> None:
    """Raises ValueError if the number of dropped problems has changed since the run began. The training data would then come in
    another order."""
    file = workdir / "data.json"
    if not file.is_file():  # then the checkpoints have proved that the problems are the same
        return
    before = read_json(file).get("dropped", {})
    if before != dropped:
        raise ValueError(
            f"{workdir}: the run began without the training problems {before or 'none'} that are in the test split or held out, "
            f"and now they are {dropped or 'none'} ({file.name}); give another --workdir"
        )


def _with_saved_attention(workdir: pathlib.Path, requested: ConfigDict) -> ConfigDict:
    """Returns the requested configuration. If model.attention is "auto", replaces it by the value in the run's config.json, so
    that the run keeps its attention implementation. If config.json was written before this key existed, the value is "xla"."""
    if requested.model.attention != "auto":
        return requested
    kept = requested.copy_and_resolve_references()
    kept.model.attention = read_json(workdir / "config.json").get("model", {}).get("attention", "xla")
    return kept


def as_begun(workdir: pathlib.Path, values: ConfigDict) -> ConfigDict:
    """Returns the configuration `values` with the prompt buckets that the run began with. The fingerprint in the run's
    checkpoints was computed with these buckets. A run may continue with other buckets if the largest one stays the same,
    because the others only change the amount of padding. The original buckets are in data.json if the buckets have changed
    since, otherwise in config.json. Returns `values` itself if the buckets have never changed, or if the largest bucket
    differs."""
    data, config = (read_json(file) if file.is_file() else {} for file in (workdir / "data.json", workdir / "config.json"))
    with wrap_read_errors(f"{workdir / 'data.json'}, key prompt_buckets,"):
        first = tuple(data.get("prompt_buckets") or config.get("data", {}).get("prompt_buckets", ()))
    recorded = "prompt_buckets" in data or first != values.data.prompt_buckets
    if not recorded or first[-1:] != values.data.prompt_buckets[-1:]:
        return values
    begun = values.copy_and_resolve_references()
    begun.data.prompt_buckets = first
    return begun


def keys_of_other_run(workdir: pathlib.Path, requested_json: dict[str, Any]) -> list[str]:
    """Returns the keys that affect results and in which the run's config.json differs from the requested configuration. Imports
    only the requested task, never another one that config.json names. Raises ValueError if config.json is unreadable."""
    requested_code = named_code(requested_json)
    try:
        code = named_code(read_json(workdir / "config.json"))
        differing = differing_keys(code, requested_code)
        tasks = [{key: names for key, names in each.items() if key.endswith("task.name")} for each in (code, requested_code)]
        if tasks[0] == tasks[1]:
            written = configuration.to_json(read_run_config(workdir, sum(tasks[1].values(), [])))
            differing = [key for key in differing_keys(written, requested_json) if key not in configuration.RESUMABLE_KEYS]
            if written["data"]["prompt_buckets"][-1:] == requested_json["data"]["prompt_buckets"][-1:]:
                differing = [key for key in differing if key != "data.prompt_buckets"]  # see `as_begun`
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{workdir / 'config.json'} is no configuration of this version: {error}") from None
    return differing
