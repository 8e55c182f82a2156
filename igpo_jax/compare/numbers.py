"""Results of a comparison of training methods: accuracies at equal budgets, paired differences, and verdicts on claims."""

import dataclasses
import math
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np

from igpo_jax.compare.arms import ALL_WRONG, ARMS, CLAIMS, HARD, SUPERVISED, Claim, path_of
from igpo_jax.compare.intervals import holm, mean_with_interval, p_value, stage_means, stages_to_decide
from igpo_jax.run.metrics import lost_verdicts, read_log
from igpo_jax.run.missing_files import check_finished_logs
from igpo_jax.run.results import EDGE_ROLLOUTS, rescue_rate
from igpo_jax.runtime.checks import require
from igpo_jax.runtime.files import read_json, wrap_read_errors

ALL_WRONG_METRIC = "groups/all_wrong_before"
REACHED = 0.5  # accuracy for which the report gives the prompts and network evaluations that an arm needs
RUN_KEYS = ("fingerprint", "data", "updates", "device", "platform", "python", "versions", "commit", "wall_seconds")
Budget = Literal["prompts", "evaluations", "seconds"]


@dataclasses.dataclass(frozen=True)
class RunNumbers:
    """Results of one training run, which was evaluated k times on the test problems."""

    prompts: np.ndarray  # f64[k], prompts sampled until each evaluation
    evaluations: np.ndarray  # f64[k], rows processed by the network until each evaluation
    seconds: np.ndarray  # f64[k], wall time of the iterations until each evaluation
    correct: np.ndarray  # f64[k, problems], 1, 0, or NaN if there is no verdict
    rollouts: list[dict[str, Any]]  # rows of metrics.jsonl, one per rollout
    result: dict[str, Any]  # result.json


def read_run_numbers(folder: pathlib.Path) -> RunNumbers:
    """Reads the results of a training run. Raises ValueError if the run is not finished, or if its files cannot be read or have
    invalid values."""
    if not (folder / "result.json").is_file():
        raise ValueError(f"{folder} has no result.json: the run is not finished")
    result = read_json(folder / "result.json")
    for key, parts in {"versions": {"igpo_jax", "jax"}, "wall_seconds": {"rl"}, "device": set(), "commit": set()}.items():
        finished = key in result and (not parts or (isinstance(result[key], dict) and parts <= result[key].keys()))
        require(finished, f"{folder / 'result.json'} has no {key} as a finished run has; delete the file to continue this run")
    texts = isinstance(result["device"], str) and isinstance(result["commit"], str | None)
    seconds = result["wall_seconds"]["rl"]
    valid = texts and type(seconds) in (int, float) and 0 <= seconds < sys.float_info.max  # a larger int is no float
    require(valid, f"{folder / 'result.json'} has values of device, commit or wall_seconds that no run writes")
    check_finished_logs(folder)
    rows, verdicts = (read_log(folder / name) for name in ("metrics.jsonl", "evaluations.jsonl"))
    rollouts = [row for row in rows if "sampler/rows" in row]
    require(rollouts, f"{folder / 'metrics.jsonl'} has no rollout")
    for row in rollouts:
        counts = [row.get(name) for name in ("sampler/prompts", "sampler/rows")]
        valid = all(count is not None and 0 < count < math.inf for count in counts)
        require(valid, f"{folder / 'metrics.jsonl'}: step {row['step']} has sampler/prompts and sampler/rows of {counts}")
        share = row.get(ALL_WRONG_METRIC)
        share = row[ALL_WRONG_METRIC] = math.nan if share is None else share  # None: no group has a verdict
        valid = math.isnan(share) or 0 <= share <= 1
        require(valid, f"{folder / 'metrics.jsonl'}: step {row['step']} has {ALL_WRONG_METRIC}={share}, which is no share")
    _require_whole(folder, rollouts, verdicts, result)
    for step, stage in lost_verdicts(rows, verdicts):
        lost = f"{folder / 'evaluations.jsonl'} has lost the evaluation at step {step}"
        require(stage != "rl", f"{lost}; restore the whole file, or remove the run's folder to train it again")
    with wrap_read_errors(folder):
        verdicts = [row for row in verdicts if row["stage"] == "rl"]
        steps, evaluated = (np.array([row["step"] for row in each], np.int64) for each in (rollouts, verdicts))
        names = ("sampler/prompts", "sampler/rows")
        prompts, evaluations = (spent_until(steps, evaluated, [row[name] for row in rollouts]) for name in names)
        correct = np.array([row["correct"] for row in verdicts], float)
    for verdict, row in zip(verdicts, correct, strict=True):
        judged = row.ndim == 1 and not np.isnan(row).all()
        require(judged, f"{folder / 'evaluations.jsonl'}: step {verdict['step']} has no verdicts")
    times = [row.get("time/total", seconds / len(rollouts)) for row in rollouts]
    valid = all(type(time) in (int, float) and 0 <= time < math.inf for time in times)
    require(valid, f"{folder / 'metrics.jsonl'} has a time/total that is no time")
    return RunNumbers(prompts, evaluations, spent_until(steps, evaluated, times), correct, rollouts, result)


def _require_whole(
    folder: pathlib.Path, rollouts: list[dict[str, Any]], verdicts: list[dict[str, Any]], result: dict[str, Any]
) -> None:
    """Raises ValueError if the logs of a finished run do not end with the update and the accuracy that result.json reports.
    `rollouts` and `verdicts` are entries of metrics.jsonl and evaluations.jsonl."""
    file, after = folder / "evaluations.jsonl", result.get("after_rl")
    places = [(f"{file}:{number}", row) for number, row in enumerate(verdicts, 1) if row["stage"] == "rl"]
    require(places, f"{file} has no evaluation of the stage rl")
    place_of_last, last = places[-1]
    for place, step in ((folder / "metrics.jsonl", rollouts[-1]["step"]), (place_of_last, last["step"])):
        wrong = f"{place}: the last step is {step}, but the run finished with update {result.get('updates')} (result.json)"
        require(result.get("updates", step) == step, f"{wrong}; restore the whole file")
    known = [verdict for verdict in last["correct"] if verdict is not None]
    if known and isinstance(after, dict):
        share, reported = sum(known) / len(known), after.get("accuracy")
        equal = isinstance(reported, int | float) and 0 <= reported <= 1 and abs(share - reported) < 1e-6
        require(equal, f"{place_of_last}: the accuracy {share} is not the {repr(reported)[:100]} of result.json")


def seconds_of(run: pathlib.Path) -> float | None:
    """Returns the training time of a finished run in seconds, without the supervised stage that the run continues. Returns None
    if the run's result.json does not contain this time."""
    result = read_json(run / "result.json")
    stages = result.get("wall_seconds") if isinstance(result, dict) else None
    spent = stages.get("sft" if run.name == SUPERVISED else "rl") if isinstance(stages, dict) else None
    return float(spent) if isinstance(spent, int | float) and abs(spent) < sys.float_info.max else None


def spent_until(steps: np.ndarray, evaluated: np.ndarray, amounts: Sequence[float]) -> np.ndarray:
    """Returns what a run has spent until each evaluation, f64[k]: the sum of the `amounts` of all rollouts up to its step.
    `steps`, int [n], are the steps of the rollouts, and `evaluated`, int [k], those of the evaluations, both in any order."""
    order = np.argsort(steps, kind="stable")
    totals = np.cumsum([0.0, *np.array(amounts, float)[order]])
    return totals[np.searchsorted(steps[order], evaluated, side="right")]


Runs = list[list[RunNumbers]]  # runs of an arm, [stages][RL seeds]


def at_budget(runs: dict[str, Runs], budget: Budget) -> dict[str, np.ndarray]:
    """Returns the verdicts of each arm at equal budgets: equal numbers of prompts, equal numbers of network evaluations, or
    equal wall times in seconds. For each stage and RL seed, the budget is the total that the cheapest arm spends. The result
    is {arm: verdicts}. The verdicts, float [stages, RL seeds, problems], are 1 if a problem is solved, 0 if not, and NaN if
    there is no verdict.

    If the budget lies between two evaluations of a run, the verdicts are interpolated linearly, so that all arms are judged at
    exactly the same budget. If only one of these evaluations has a verdict on a problem, this verdict is used."""
    least = _least(runs, budget)
    return {
        arm: np.array(
            [
                [verdicts_after(run, budget, most) for run, most in zip(*stage, strict=True)]
                for stage in zip(of_arm, least, strict=True)
            ]
        )
        for arm, of_arm in runs.items()
    }


def _least(runs: dict[str, Runs], budget: Budget) -> np.ndarray:
    """Returns the total amount of the budget that the cheapest arm spends, float [stages, RL seeds]."""
    spent = [[[getattr(run, budget)[-1] for run in stage] for stage in of_arm] for of_arm in runs.values()]
    return np.min(np.array(spent, float), axis=0)


def share_used(runs: dict[str, Runs], budget: Budget, arm: str) -> float:
    """Returns the share of an arm's total budget that it has spent when it is judged (see `at_budget`), averaged over its
    runs."""
    own = np.array([[getattr(run, budget)[-1] for run in stage] for stage in runs[arm]], float)
    return float(np.mean(_least(runs, budget) / own))


def verdicts_after(run: RunNumbers, budget: Budget, most: float) -> np.ndarray:
    """Returns the verdicts of a run, float [problems], at the time when it has spent `most` of the given budget: prompts,
    network evaluations or seconds. Verdicts are interpolated as described in `at_budget`."""
    spent = getattr(run, budget)
    later = int(np.searchsorted(spent, most, side="right"))
    if later in (0, len(spent)):
        return run.correct[min(later, len(spent) - 1)]
    before, after = run.correct[later - 1], run.correct[later]
    weight = (most - spent[later - 1]) / (spent[later] - spent[later - 1])
    between = (1 - weight) * before + weight * after
    return np.where(np.isnan(after) | (weight == 0), before, np.where(np.isnan(before), after, between))


def hardest_third(correct: dict[str, np.ndarray]) -> np.ndarray:
    """Returns a mask of the hardest third of the problems for each stage, bool [stages, problems]. The hardest problems of a
    stage are those that all arms together solved least often in the runs of the other stages. The runs of the stage itself are
    left out, so that a run does not select the problems on which it is judged. If there is only one stage, its own runs are
    used."""
    mean = np.nanmean([of_arm.mean(axis=1) for of_arm in correct.values()], axis=0)
    stages, problems = mean.shape
    hard = np.zeros(mean.shape, bool)
    for stage in range(stages):
        others = mean if stages == 1 else np.delete(mean, stage, axis=0)
        hard[stage, np.argsort(np.nanmean(others, axis=0), kind="stable")[: max(1, problems // 3)]] = True
    return hard


def judge(claim: Claim, runs: dict[str, Runs], hard: np.ndarray) -> dict[str, Any]:
    """Judges a claim by the 95 % confidence interval of the difference between the arm `better` and the strongest of the arms
    `worse`. The two arms are compared after equal numbers of network evaluations, the largest number that both reach. The
    differences are paired by stage. Returns a dict with the claim, the difference and the verdict. The verdict is "held" if the
    whole interval is above the claim's margin, "not held" if the whole interval is below the margin, and otherwise "undecided".
    The verdict is also "undecided" if the differences of all stages are equal, because the interval then has no width.

    A claim may be about the share of all-wrong groups, which are groups without a correct completion. In this case, the share
    of each arm is averaged over all iterations."""
    margin = claim.margin / 100

    def differences(worse: str) -> np.ndarray:
        if claim.measure == ALL_WRONG:
            shares = [np.array([[_all_wrong(run) for run in stage] for stage in runs[arm]]) for arm in (worse, claim.better)]
            return stage_means(shares[0][..., None]) - stage_means(shares[1][..., None])
        correct = at_budget({arm: runs[arm] for arm in (claim.better, worse)}, "evaluations")
        return stage_means(correct[claim.better] - correct[worse], hard if claim.measure == HARD else None)

    # The strongest of the arms in `claim.worse` is the one with the smallest difference. One that is not known could be it.
    found = {arm: differences(arm) for arm in claim.worse}
    worse = min(found, key=lambda arm: -math.inf if np.isnan(found[arm]).all() else float(np.nanmean(found[arm])))
    interval, p = mean_with_interval(found[worse]), p_value(found[worse], margin)
    low, high = interval["interval95"] or (-math.inf, math.inf)
    decided = p is not None and not low <= margin <= high
    pair = {arm: runs[arm] for arm in (claim.better, worse)}
    return (
        dataclasses.asdict(claim)
        | interval
        | {
            "against": worse,
            "verdict": "undecided" if not decided else "held" if low > margin else "not held",
            "p_value": p,
            "of_each_stage": [None if math.isnan(value) else float(value) for value in found[worse]],
            "stages_to_decide": None if decided else stages_to_decide(found[worse], margin),
            "budget_used": None
            if claim.measure == ALL_WRONG
            else [share_used(pair, "evaluations", arm) for arm in (claim.better, worse)],
        }
    )


def _all_wrong(run: RunNumbers) -> float:
    shares = [row[ALL_WRONG_METRIC] for row in run.rollouts if not math.isnan(row[ALL_WRONG_METRIC])]
    return float(np.mean(shares)) if shares else math.nan


def judged(claims: Sequence[Claim], runs: dict[str, Runs], hard: np.ndarray) -> list[dict[str, Any]]:
    """Judges each claim, and returns a list of dicts with the claims, the differences and the verdicts (see `judge`). Each dict
    also has the key `p_corrected`: the claim's p-value after Holm's correction for the number of claims."""
    found = [judge(claim, runs, hard) for claim in claims]
    corrected = holm([each["p_value"] for each in found])
    return [each | {"p_corrected": p} for each, p in zip(found, corrected, strict=True)]


def same_verdicts(runs: dict[str, Runs]) -> list[list[str]]:
    """Returns the sets of arms that cannot be told apart, because their verdicts are equal in all evaluations of all runs."""
    correct = {arm: [run.correct for stage in of_arm for run in stage] for arm, of_arm in runs.items()}

    def equal(one: str, other: str) -> bool:
        return all(
            a.shape == b.shape and np.array_equal(a, b, equal_nan=True)
            for a, b in zip(correct[one], correct[other], strict=True)
        )

    groups: list[list[str]] = []
    for arm in runs:
        known = next((group for group in groups if equal(group[0], arm)), None)
        groups.append([arm]) if known is None else known.append(arm)
    return [group for group in groups if len(group) > 1]


def arm_numbers(
    arm: str, runs: dict[str, Runs], correct: dict[Budget, dict[str, np.ndarray]], hard: np.ndarray
) -> dict[str, Any]:
    """Returns the results of one of several arms for comparison.json. `correct` is {budget: {arm: verdicts}}, with the verdicts
    of these arms at equal budgets (see `at_budget`). `hard`, bool [stages, problems], marks the hardest third of the
    problems."""
    own = [run for stage in runs[arm] for run in stage]

    def mean_of(name: str, part: slice = slice(None)) -> float | None:
        values = [row[name] for run in own for row in run.rollouts[part] if row.get(name) is not None]
        known = [value for value in values if not math.isnan(value)]
        return float(np.mean(known)) if known else None

    def cost(budget: Budget) -> float | None:
        """Returns the number of prompts or network evaluations that the arm spends until its accuracy reaches `REACHED`, as the
        median over runs. Returns None if more than half of the runs never reach this accuracy."""
        reached = [getattr(run, budget)[np.nanmean(run.correct, axis=1) >= REACHED] for run in own]
        costs = sorted(spent[0] if len(spent) else np.inf for spent in reached)
        median = costs[(len(own) - 1) // 2]
        return float(median) if np.isfinite(median) else None

    by_evaluations = correct["evaluations"][arm]
    return {
        "arm": arm,
        "title": ARMS[arm].title,
        "equal_evaluations": _accuracy(by_evaluations),
        "equal_prompts": _accuracy(correct["prompts"][arm]),
        "equal_seconds": _accuracy(correct["seconds"][arm]),
        "budget_used": share_used(runs, "evaluations", arm),
        "hardest_third": _accuracy(by_evaluations, hard),
        "of_each_run": [[mean_with_interval(run)["mean"] for run in stage] for stage in by_evaluations],
        "all_wrong": [mean_of(ALL_WRONG_METRIC, part) for part in (slice(EDGE_ROLLOUTS), slice(-EDGE_ROLLOUTS, None))],
        "rescue_rate": rescue_rate([row for run in own for row in run.rollouts]),
        "swapped_in": mean_of("hint/replaced"),
        "second_attempts": _second_attempts(own),
        "distinct": mean_of("groups/distinct"),
        "prompts_to_reach": cost("prompts"),
        "evaluations_to_reach": cost("evaluations"),
        "rl_seconds": float(np.mean([run.result["wall_seconds"]["rl"] for run in own])),
    }


def _second_attempts(runs: list[RunNumbers]) -> float | None:
    """Returns the share of network evaluations that were spent on second attempts. Second attempts are the completions that are
    sampled again for all-wrong groups, with or without hints. Returns None if the runs had no second attempts, or if they are
    from version 0.1.0, which did not log this cost."""
    rows = [row for run in runs for row in run.rollouts]
    spent = sum(row.get("hint/rows") or 0 for row in rows)
    return float(spent / sum(row["sampler/rows"] for row in rows)) if spent else None


def _accuracy(correct: np.ndarray, counted: np.ndarray | None = None) -> dict[str, Any]:
    found = mean_with_interval(stage_means(correct, counted))
    return found | {"interval95": found["interval95"] and np.clip(found["interval95"], 0, 1).tolist()}


def compare_runs(
    folder: pathlib.Path, arms: list[str], seeds: list[int], rl_seeds: int = 1, quick: bool = False
) -> dict[str, Any]:
    """Returns the contents of comparison.json. `folder` has `rl_seeds` runs for each arm and each seed of the supervised stage.
    `quick` is true if the runs had few iterations (--quick). Raises ValueError if a run is not finished, if its files cannot be
    read, if the runs of a stage began from different models or were evaluated on different test problems, or if runs whose arms
    have the same task were trained on different problems."""

    def of_stage(seed: int, arm: str) -> list[RunNumbers]:
        return [read_run_numbers(path_of(folder, seed, arm, rl_seed)) for rl_seed in range(rl_seeds)]

    runs = {arm: [of_stage(seed, arm) for seed in seeds] for arm in arms}
    every = [
        (arm, seed, n, run) for arm in arms for seed, stage in zip(seeds, runs[arm], strict=True) for n, run in enumerate(stage)
    ]
    for seed in seeds:
        of_seed = [(path_of(folder, seed, arm, n), arm, run.result) for arm, of, n, run in every if of == seed]
        _require_same_problems(of_seed)
        _require_same_base(of_seed)
    with wrap_read_errors(folder):
        correct = {budget: at_budget(runs, budget) for budget in get_args(Budget)}
        hard = hardest_third(correct["prompts"])
        decidable = [claim for claim in CLAIMS if {claim.better, *claim.worse} <= set(arms)]
        return {
            "seeds": seeds,
            "rl_seeds": rl_seeds,
            "quick": quick,
            "problems": int(hard.shape[1]),
            "arms": [arm_numbers(arm, runs, correct, hard) for arm in runs],
            "claims": judged(decidable, runs, hard),
            "same_verdicts": same_verdicts(runs),
            "curves": {arm: [_curves(run) for stage in of_arm for run in stage] for arm, of_arm in runs.items()},
            "runs": [
                {"arm": arm, "seed": seed, "rl_seed": n} | {key: run.result.get(key) for key in RUN_KEYS}
                for arm, seed, n, run in every
            ],
        }


def _require_same_problems(runs: list[tuple[pathlib.Path, str, dict[str, Any]]]) -> None:
    """Raises ValueError if runs (folder, arm, result.json) had different test problems, or different training problems with the
    same keys of the task."""
    uses = {"test": "evaluated on different test", "sft": "trained on different", "rl": "trained on different"}
    for split, use in uses.items():
        found: dict[str, dict[str, pathlib.Path]] = {}  # changed keys of the task -> fingerprint of the problems -> run
        for run, arm, result in runs:
            keys = {key: value for key, value in ARMS[arm].overrides.items() if key.startswith("task.") and split != "test"}
            if isinstance(result.get("data"), dict):
                found.setdefault(str(keys), {})[str(result["data"].get(split))] = run
        _require_one_value(found, f"were {use} problems; train them with the same problem files")


def _require_same_base(runs: list[tuple[pathlib.Path, str, dict[str, Any]]]) -> None:
    """Raises ValueError if runs (folder, arm, result.json) began from different models. Runs of earlier versions have not
    recorded the hashes of their model, see `Experiment.files`."""
    found: dict[str, dict[str, pathlib.Path]] = {}  # what was hashed -> hash -> run
    for run, _, result in runs:
        hashes = result.get("base")
        for name, value in hashes.items() if isinstance(hashes, dict) else ():
            found.setdefault(name, {})[str(value)] = run
    _require_one_value(found, "began from different models in model.path; train them from the same model")


def _require_one_value(found: dict[str, dict[str, pathlib.Path]], told: str) -> None:
    """Raises ValueError if a property has several values. `found` is {property: {value: a run that has it}}. `told` is the end
    of the message, which begins with the names of these runs."""
    for values in found.values():
        require(len(values) < 2, f"{' and '.join(map(str, values.values()))} {told}")


def _curves(run: RunNumbers) -> dict[str, list[float]]:
    return {
        "prompts": run.prompts.tolist(),
        "evaluations": run.evaluations.tolist(),
        "accuracy": np.nanmean(run.correct, axis=1).tolist(),
        "sampled": np.cumsum([row["sampler/prompts"] for row in run.rollouts]).tolist(),
        "all_wrong": [row[ALL_WRONG_METRIC] for row in run.rollouts],
    }
