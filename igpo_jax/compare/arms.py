"""Arms of a comparison of training methods, and claims about them. An arm is a variant of the training method. It is given as a
set of configuration overrides."""

import dataclasses
import math
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from igpo_jax import config as configuration
from igpo_jax.run.experiment import as_begun, keys_of_other_run
from igpo_jax.runtime.buckets import require_model
from igpo_jax.runtime.checks import MOST_SEED, require
from igpo_jax.runtime.files import is_inside, read_json, require_same_identity, require_stored
from igpo_jax.runtime.progress import duration
from igpo_jax.weights.digest import network_digest

Overrides = dict[str, Any]
Run = tuple[int, str, int]  # seed of the supervised stage, arm, RL seed
MOST_SEEDS = 1000  # of supervised stages, far more than a comparison needs
MOST_READ = 1 << 16  # bytes at the end of a run's log
SUPERVISED = "supervised"  # in place of an arm: the supervised stage itself
STARTS = ("tokenizer.model", "metrics.jsonl", "evaluations.jsonl")  # of the supervised stage, with which the arms begin

NO_HINTS: Overrides = {"inpainting.enabled": False}
# The reference code's hints and loss (docs/method.md section 15): hints show the answer, and the entropy filter is bypassed.
# `stretch` is left out, because it keeps hints out of the last 30 positions, so a short canvas would get no hints.
REFERENCE_CODE: Overrides = {
    "inpainting.exclude_answer": False,
    "inpainting.round_up": True,
    "inpainting.by_completion": True,
    "objective.reference_code": True,
}
FEW: Overrides = {"task.rl_problems": 64}  # so few that problems recur and can get hints from earlier answers
# Small chunks, so that there are many. With only one or two chunks, different hint ratios would give the same hints.
SMALL_CHUNKS: Overrides = {"inpainting.chunk_min": 2, "inpainting.chunk_max": 3}
POSITION_FIRST: Overrides = {"sampler.remasking": "position_first"}
# At temperature 1, tokens are sampled from the model's own distribution. There, it matters most whether positions are chosen
# before or after tokens are sampled.
HOT: Overrides = {"sampler.temperature": 1.0}
FULL_HINT: Overrides = {"inpainting.ratio_min": 1.0, "inpainting.ratio_max": 1.0}
TRIES: Overrides = {"inpainting.tries": 4}
# Without the KL term and with a falling learning rate, RL keeps the accuracy that it has reached (docs/results.md).
STEADY: Overrides = POSITION_FIRST | HOT | {"objective.kl_coefficient": 0.0, "rl.optimizer.schedule": "linear"}
# A rate that falls to 0 may begin higher (docs/results.md).
BEST: Overrides = STEADY | TRIES | {"rl.optimizer.learning_rate": 1e-4}
LENGTH = "completion_length"  # stands for the value of sampler.completion_length, see `overrides_of`
# Other methods differ from GRPO in their estimate of the likelihood and in their loss, and have no hints. They sample as the best
# arm without hints does.
OTHER: Overrides = NO_HINTS | POSITION_FIRST | HOT
# A token is written per step, from left to right, and scored given the tokens before it: the exact likelihood of the sampled
# order (JustGRPO).
LEFT_TO_RIGHT: Overrides = (
    NO_HINTS
    | HOT
    | {
        "sampler.block_length": 1,
        "sampler.steps": LENGTH,
        "objective.estimator": "trace",
        "objective.samples": LENGTH,
        "objective.ratio": "token",
    }
)
NO_HINT_TOKENS: Overrides = {"objective.entropy_keep": 0.0}


@dataclasses.dataclass(frozen=True)
class Arm:
    title: str
    overrides: Overrides


ARMS = {
    "grpo": Arm("GRPO, no hints", NO_HINTS),
    "resample": Arm("GRPO, all-wrong groups sampled again", {"inpainting.policy": "none"}),
    "dapo": Arm("GRPO with dynamic sampling (DAPO), up to 4 batches", NO_HINTS | {"rl.dynamic_batches": 4}),
    "igpo": Arm("IGPO as in the paper", {}),
    "igpo_tries": Arm("IGPO, hinted completions 4 at a time while some, but too few, are correct", TRIES),
    "igpo_ref": Arm("IGPO as the released code does it", REFERENCE_CODE),
    "full_hint": Arm("the whole solution as hint, without the answer", FULL_HINT),
    "prefix": Arm("hints from the beginning of the solution", {"inpainting.policy": "prefix"}),
    "small_chunks": Arm("IGPO, hints of many small chunks", SMALL_CHUNKS),
    "curriculum": Arm(
        "IGPO, small chunks, the hint ratio follows success towards one half", SMALL_CHUNKS | {"inpainting.curriculum": 0.5}
    ),
    "own_hints": Arm("few problems, hints from own earlier answers", FEW | {"inpainting.source": "own"}),
    "igpo_few": Arm("few problems, IGPO", FEW),
    "grpo_few": Arm("few problems, GRPO", FEW | NO_HINTS),
    "all_hint_tokens": Arm("IGPO, trained on all hint tokens", {"objective.entropy_keep": 1.0}),
    "no_hint_tokens": Arm("IGPO, trained on no hint token", NO_HINT_TOKENS),
    "supervised_hints": Arm("IGPO, hint tokens supervised instead", NO_HINT_TOKENS | {"objective.hint_supervision": 0.1}),
    "grpo_position_first": Arm("GRPO, position-first sampling", NO_HINTS | POSITION_FIRST),
    "igpo_position_first": Arm("IGPO, position-first sampling", POSITION_FIRST),
    "grpo_hot": Arm("GRPO, temperature 1", NO_HINTS | HOT),
    "igpo_hot": Arm("IGPO, temperature 1", HOT),
    "grpo_position_first_hot": Arm("GRPO, position-first sampling, temperature 1", NO_HINTS | POSITION_FIRST | HOT),
    "igpo_position_first_hot": Arm("IGPO, position-first sampling, temperature 1", POSITION_FIRST | HOT),
    "igpo_position_first_hot_tries": Arm(
        "IGPO, position-first, temperature 1, hinted completions 4 at a time while some, but too few, are correct",
        POSITION_FIRST | HOT | TRIES,
    ),
    "igpo_steady": Arm("IGPO, position-first, temperature 1, 4 at a time, no KL, falling learning rate", STEADY | TRIES),
    "grpo_steady": Arm("GRPO, position-first, temperature 1, no KL, falling learning rate", STEADY | NO_HINTS),
    "best": Arm("IGPO, position-first, temperature 1, 4 at a time, no KL, learning rate falling from 1e-4", BEST),
    "best_grpo": Arm("GRPO, position-first, temperature 1, no KL, learning rate falling from 1e-4", BEST | NO_HINTS),
    "diffu_grpo": Arm(
        "diffu-GRPO (d1): masked prompt tokens", OTHER | {"objective.estimator": "prompt_masked", "objective.ratio": "token"}
    ),
    "unigrpo": Arm("UniGRPO: random masks", OTHER | {"objective.estimator": "masked", "objective.ratio": "token"}),
    "coupled_grpo": Arm(
        "coupled-GRPO: complementary masks",
        OTHER | {"objective.estimator": "coupled", "objective.samples": 2, "objective.ratio": "token"},
    ),
    "spg": Arm(
        "SPG: lower and upper bound mixed",
        OTHER | {"objective.estimator": "coupled", "objective.samples": 2, "objective.upper_weight": 0.5},
    ),
    "wd1": Arm("wd1: weighted log-likelihood", OTHER | {"objective.loss": "wd1", "objective.estimator": "prompt_masked"}),
    "just_grpo": Arm("JustGRPO: from left to right, exact likelihood", LEFT_TO_RIGHT),
    "eta_20": Arm("IGPO, a fifth of the solution as hint", {"inpainting.ratio_min": 0.2, "inpainting.ratio_max": 0.2}),
    "eta_40": Arm("IGPO, two fifths of the solution as hint", {"inpainting.ratio_min": 0.4, "inpainting.ratio_max": 0.4}),
    "eta_60": Arm("IGPO, three fifths of the solution as hint", {"inpainting.ratio_min": 0.6, "inpainting.ratio_max": 0.6}),
    "lambda_25": Arm("IGPO, at most a quarter of a group replaced", {"inpainting.replace_fraction": 0.25}),
    "lambda_100": Arm("IGPO, the whole group may be replaced", {"inpainting.replace_fraction": 1.0}),
    "tau_80": Arm("IGPO, trained on four fifths of the hint tokens", {"objective.entropy_keep": 0.8}),
}

# Measures of a claim: accuracy on all problems, accuracy on the hardest third, negated share of all-wrong groups before hints
ALL, HARD, ALL_WRONG = "all", "hard", "all_wrong"


@dataclasses.dataclass(frozen=True)
class Claim:
    """Claim that one arm is better than others. The arm `better` must exceed the best of the arms `worse` in `measure` by more
    than `margin` percentage points."""

    text: str
    better: str
    worse: tuple[str, ...]
    measure: str = ALL
    margin: float = 0.0


CLAIMS = (
    Claim("Hints help: IGPO is above GRPO", "igpo", ("grpo",)),
    Claim("Hints are worth more than more samples: IGPO is above resampled GRPO", "igpo", ("resample",)),
    Claim("Hints are worth more than dynamic sampling: IGPO is above DAPO", "igpo", ("dapo",)),
    Claim("On the hardest third, IGPO is at least 10 points above GRPO", "igpo", ("grpo",), HARD, 10.0),
    Claim("On the hardest third, IGPO is at least 5 points above resampling and DAPO", "igpo", ("resample", "dapo"), HARD, 5.0),
    Claim("All-wrong groups before the rescue: fewer with IGPO than with GRPO", "igpo", ("grpo",), ALL_WRONG),
    Claim("Partial hints are better than full ones", "igpo", ("full_hint",)),
    Claim("The entropy filter (0.2) is better than training on all hint tokens", "igpo", ("all_hint_tokens",)),
    Claim("The paper's rules are better than the released code's", "igpo", ("igpo_ref",)),
    Claim("Hints help position-first sampling, too", "igpo_position_first", ("grpo_position_first",)),
    Claim("Position-first sampling alone is better than GRPO", "grpo_position_first", ("grpo",)),
    Claim("At temperature 1, position-first sampling alone is better than GRPO", "grpo_position_first_hot", ("grpo_hot",)),
    Claim("Hints help at temperature 1, too", "igpo_hot", ("grpo_hot",)),
    Claim("Hints help position-first sampling at temperature 1, too", "igpo_position_first_hot", ("grpo_position_first_hot",)),
    Claim("Cheaper second attempts are better", "igpo_tries", ("igpo",)),
    Claim(
        "With cheaper second attempts, hints help position-first sampling at temperature 1",
        "igpo_position_first_hot_tries",
        ("grpo_position_first_hot",),
    ),
    Claim("Exact likelihoods from left to right are better than the mean field", "just_grpo", ("grpo_position_first_hot",)),
    Claim("Hints help with a falling learning rate and without KL, too", "igpo_steady", ("grpo_steady",)),
    Claim("The best setting is above GRPO", "best", ("grpo",)),
    Claim("The best setting is above GRPO with position-first sampling at temperature 1", "best", ("grpo_position_first_hot",)),
    Claim("The best setting is above IGPO as in the paper", "best", ("igpo",)),
    Claim("Hints help the best setting", "best", ("best_grpo",)),
    Claim("A curriculum is better than a fixed ratio", "curriculum", ("small_chunks",)),
    Claim("Supervising hint tokens is better than the policy gradient on a fifth of them", "supervised_hints", ("igpo",)),
    Claim("Hint tokens have to be trained on: the filter is better than none of them", "igpo", ("no_hint_tokens",)),
    Claim("Chunks all over the solution are better than its beginning", "igpo", ("prefix",)),
    Claim("Own earlier answers as hints are better than none", "own_hints", ("grpo_few",)),
    Claim("The solution's hints are better than own ones", "igpo_few", ("own_hints",)),
)


def overrides_of(arm: str, config: ConfigDict) -> Overrides:
    """Returns the configuration overrides of an arm for runs with the configuration `config`."""
    length = config.sampler.completion_length
    return {key: length if value == LENGTH else value for key, value in ARMS[arm].overrides.items()}


def own_settings(config: ConfigDict, given: Sequence[str], quick: bool, has_stages: bool) -> Overrides:
    """Returns the configuration overrides of --quick (`quick`) and --stages (`has_stages`). `given` are the overrides of the
    command line, such as "--config.rl.iterations=20". Their values win over those of --quick. With trained supervised stages,
    there is nothing to train before the arms."""
    few = {"sft.updates": min(1500, config.sft.updates), "rl.iterations": min(10, config.rl.iterations)} if quick else {}
    keys = {override.partition("=")[0] for override in given}
    few = {key: value for key, value in few.items() if f"--config.{key}" not in keys}
    return few | ({"sft.updates": 0, "sft.epochs": 0} if has_stages else {})


def run_name(arm: str, rl_seed: int) -> str:
    """Returns the name of a run's folder. The runs of an arm from the same supervised stage differ in their RL seed."""
    return f"{arm}-{rl_seed}" if rl_seed else arm


def path_of(folder: pathlib.Path, seed: int, arm: str, rl_seed: int) -> pathlib.Path:
    return folder / f"seed-{seed}" / run_name(arm, rl_seed)


def create_run_folder(run: pathlib.Path) -> None:
    """Creates the folder of a run. If the supervised stage of the same seed has been trained, copies the results of this stage
    into the folder. The results can be reused, because the supervised stage is bitwise equal for all arms. Raises ValueError
    if the checkpoints contain a link to a folder, because a link to its own folder would be copied again and again, or a link
    that leads out of the run."""
    new, source = run.with_name(f"{run.name}.new"), run.with_name(SUPERVISED)
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    if source.is_dir():  # does not exist if this is the supervised run itself
        saved, files = source / "checkpoints" / "sft", [source / name for name in STARTS]
        for path in (saved.parent, saved, *saved.rglob("*"), *files):
            require(not (path.is_symlink() and path.is_dir()), f"{path} is a link to a folder; put the folder in its place")
            require(is_inside(path, source), f"{path} is a link that leads out of {source}; put the file in its place")
        shutil.copytree(saved, new / "checkpoints" / "sft", copy_function=_copy)
        for file in files:
            if file.is_file():
                _copy(file, new / file.name)
    new.rename(run)


def _copy(source: str | os.PathLike, target: str | os.PathLike) -> None:
    require_stored(pathlib.Path(source))
    shutil.copy2(source, target)


def require_different_stages(folder: str, seeds: Sequence[int]) -> None:
    """Raises ValueError if two of the model folders seed-N in `folder` hold the same model. Intervals over the stages would
    count this model as two independent ones."""
    found: dict[str, int] = {}
    for seed in seeds:
        place = f"{folder}/seed-{seed}"
        require_model(place, "--stages")
        other = found.setdefault(network_digest(place), seed)
        require(other == seed, f"{place} is the same model as {folder}/seed-{other}; give each seed a stage of its own")


def last_error(log: pathlib.Path, begin: int) -> str:
    """Returns the last line that begins with "error: " in a log after its first `begin` bytes, or the last line if none does.
    Only reads the end of the log, because a reward function may have printed gigabytes."""
    with log.open("rb") as opened:
        opened.seek(max(begin, log.stat().st_size - MOST_READ))
        lines = [line.strip() for line in opened.read().decode("utf-8", "replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or ["it wrote nothing"])[-1][:500]


def parse_arms(names: str) -> list[str]:
    """Returns the names of the arms in a comma-separated list. The list "all" stands for all arms. Raises ValueError if the
    list is empty, or if a name is unknown or given twice."""
    chosen = list(ARMS) if names == "all" else [name for name in names.split(",") if name]
    for name in chosen:
        if name not in ARMS:
            raise ValueError(f"--arms: there is no arm {name!r}; there are: {', '.join(ARMS)}")
    if len(chosen) != len(set(chosen)) or not chosen:
        raise ValueError(f"--arms={names} names no arm, or one twice")
    return chosen


def parse_seeds(text: str) -> list[int]:
    """Returns the seeds in a text such as `0..4` (the seeds 0 to 4) or `0,3,7`. Raises ValueError if the text has another form,
    if a seed is repeated or outside of the range from 0 to `MOST_SEED`, or if there are more than `MOST_SEEDS`."""
    first, dots, last = text.partition("..")
    try:
        seeds = [int(seed) for seed in ([first, last] if dots else text.split(","))]
        if dots:  # no list of all seeds if they are too many
            seeds = list(range(seeds[0], min(seeds[1], seeds[0] + MOST_SEEDS) + 1))
    except ValueError:
        seeds = []
    if not seeds or min(seeds) < 0 or len(seeds) != len(set(seeds)):
        raise ValueError(f"--seeds={text} is neither FIRST..LAST nor a list of different numbers")
    require(
        max(seeds) <= MOST_SEED and len(seeds) <= MOST_SEEDS,
        f"--seeds={text}: {MOST_SEEDS} seeds up to {MOST_SEED} are possible",
    )
    return seeds


def check_arms(config: ConfigDict, arms: list[str], overrides: list[str]) -> None:
    """Raises ValueError if the configuration of an arm is invalid, if `overrides` contains a seed, or if `config` has an RL
    seed."""
    if any(override.startswith("--config.seed") for override in overrides):
        raise ValueError("--config.seed conflicts with --seeds")
    if config.rl.seed:
        raise ValueError(f"rl.seed={config.rl.seed} conflicts with --rl_seeds, which counts from 0; leave it out")
    for arm in arms:
        arm_config = config.copy_and_resolve_references()
        try:
            arm_config.update_from_flattened_dict(overrides_of(arm, config))
            configuration.parse(arm_config)
        except ValueError as error:
            raise ValueError(f"arm {arm}: {error}") from None
        except KeyError:
            keys = ", ".join(ARMS[arm].overrides)
            raise ValueError(f"arm {arm}: this configuration lacks a key that the arm sets ({keys})") from None


def check_comparison(written: pathlib.Path, identity: dict[str, Any], config: ConfigDict) -> None:
    """Raises ValueError if the folder of the file `written` holds a comparison with other settings. If there is no such file
    yet, writes the settings to it, or raises ValueError if there are results (see `require_same_identity`). The settings are
    `identity` and a hash of the whole configuration. The hash is needed because the file that --config names may have changed.
    Version 0.1.0 wrote no hash, so its comparisons are checked without the hash."""
    config = config.copy_and_resolve_references()
    config.data.prompt_buckets = config.data.prompt_buckets[-1:]  # a run may continue with other buckets below the largest
    if not written.is_file() or "fingerprint" in read_json(written):
        identity = identity | {"fingerprint": configuration.fingerprint(config)}
    results = (written.with_name(f"comparison.{kind}") for kind in ("json", "md", "svg", "html"))
    require_same_identity(written, identity, "comparison", results)


def require_finished(run: pathlib.Path, requested: ConfigDict) -> None:
    """Raises ValueError if the finished run in the folder `run` has another configuration than `requested`. Keys with which a
    run may continue are not compared."""
    result, advice = read_json(run / "result.json"), "move it to the folder of its arm, or remove it"
    seed = result.get("seed", requested.seed)
    require(
        seed == requested.seed, f"{run / 'result.json'} is of the seed {seed}; move the folder to seed-{seed}, or remove it"
    )
    differing = ", ".join(keys_of_other_run(run, configuration.to_json(requested)))
    require(not differing, f"{run} holds a run of another arm (differing keys: {differing}); {advice}")
    own = result.get("fingerprint") == configuration.fingerprint(as_begun(run, requested))
    require(
        own, f"{run / 'result.json'} is of another configuration than config.json; restore the file of the run, or remove it"
    )


def require_own_logs(folder: pathlib.Path, runs: Sequence[Run]) -> None:
    """Raises ValueError if there is a log of a run that was never begun. Another program has written this file, and the run
    would append to it."""
    for path in (path_of(folder, *run) for run in runs):
        begun, log = path.exists() or path.with_suffix(".json").exists(), path.with_suffix(".log")
        require(
            begun or not log.exists(),
            f"{log} is of no run, and a run would append to it; move it away, or give another --output",
        )


def time_left(runs: Sequence[Run], seconds: Mapping[Run, float | None], jobs: int) -> str:
    """Returns a text with the estimated time until all `runs` are finished, as the end of a status line. Returns "" if the time
    cannot be estimated or no run is left. `seconds` is {finished run: its training time in seconds, or None if unknown}, and
    `jobs` is the number of runs that are trained at once. An unfinished run is expected to take as long as the mean of the
    finished runs of its kind. The two kinds are supervised stages, and runs that continue a supervised stage."""
    left, unknown = 0.0, 0
    for is_stage in (True, False):
        waiting = sum((arm == SUPERVISED) is is_stage and (seed, arm, again) not in seconds for seed, arm, again in runs)
        spent = [value for (_, arm, _), value in seconds.items() if (arm == SUPERVISED) is is_stage and value is not None]
        if spent:
            left += math.ceil(waiting / jobs) * sum(spent) / len(spent)
        else:
            unknown += waiting
    if not left:
        return ""
    return f"; about {duration(left)} left" + (f", and {unknown} runs whose time is not known yet" if unknown else "")
