"""Results of a comparison of training methods: accuracies at equal budgets, paired differences, and verdicts on claims."""

import dataclasses
import math
import pathlib
from typing import Any, Literal

import numpy as np

from igpo_jax.compare.arms import ALL_WRONG, ARMS, CLAIMS, HARD, Claim
from igpo_jax.run.metrics import read_log
from igpo_jax.run.results import EDGE_ROLLOUTS, rescue_rate
from igpo_jax.runtime.checks import require
from igpo_jax.runtime.files import read_json, wrap_read_errors
from igpo_jax.runtime.statistics import RESAMPLES, resample_chunks

DRAWN = 100_000_000  # random numbers of a bootstrap interval, a few seconds
FEWEST_RESAMPLES = 200
ALL_WRONG_METRIC = "groups/all_wrong_before"
REACHED = 0.5  # accuracy for which the report gives the prompts and network evaluations that an arm needs
RUN_KEYS = ("fingerprint", "data", "updates", "device", "platform", "python", "versions", "commit", "wall_seconds")
Budget = Literal["prompts", "evaluations"]


@dataclasses.dataclass(frozen=True)
class RunNumbers:
    """Results of one training run, which was evaluated k times on the test problems."""

    prompts: np.ndarray  # f64[k], prompts sampled until each evaluation
    evaluations: np.ndarray  # f64[k], rows processed by the network until each evaluation
    correct: np.ndarray  # f64[k, problems], 1, 0, or NaN if there is no verdict
    rollouts: list[dict[str, Any]]  # rows of metrics.jsonl, one per rollout
    result: dict[str, Any]  # result.json


def read_run_numbers(folder: pathlib.Path) -> RunNumbers:
    """Reads the results of a training run. Raises ValueError if the run is not finished, or if its files cannot be read."""
    if not (folder / "result.json").is_file():
        raise ValueError(f"{folder} has no result.json: the run is not finished")
    result = read_json(folder / "result.json")
    for key, parts in {"versions": {"igpo_jax", "jax"}, "wall_seconds": {"rl"}, "device": set(), "commit": set()}.items():
        finished = key in result and (not parts or (isinstance(result[key], dict) and parts <= result[key].keys()))
        require(finished, f"{folder / 'result.json'} has no {key} as a finished run has; delete the file to continue this run")
    texts = isinstance(result["device"], str) and isinstance(result["commit"], str | None)
    seconds = result["wall_seconds"]["rl"]
    valid = texts and type(seconds) in (int, float) and 0 <= seconds < math.inf
    require(valid, f"{folder / 'result.json'} has values of device, commit or wall_seconds that no run writes")
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
    with wrap_read_errors(folder):
        verdicts = [row for row in verdicts if row["stage"] == "rl"]
        prompts, evaluations = (
            np.array([sum(row[name] for row in rollouts if row["step"] <= verdict["step"]) for verdict in verdicts])
            for name in ("sampler/prompts", "sampler/rows")
        )
        correct = np.array([row["correct"] for row in verdicts], float)
    require(verdicts, f"{folder / 'evaluations.jsonl'} has no evaluation of the stage rl")
    for verdict, row in zip(verdicts, correct, strict=True):
        judged = row.ndim == 1 and not np.isnan(row).all()
        require(judged, f"{folder / 'evaluations.jsonl'}: step {verdict['step']} has no verdicts")
    return RunNumbers(prompts, evaluations, correct, rollouts, result)


def at_budget(runs: dict[str, list[RunNumbers]], budget: Budget) -> dict[str, np.ndarray]:
    """Compares the arms at equal budgets. A budget is a number of prompts or of network evaluations. For each seed, the budget
    is the total that the cheapest arm spends with this seed. Returns {arm: verdicts}. The verdicts, float [seeds, problems],
    are those of the arm's last evaluation within the budget: 1 if a problem is solved, 0 if not, and NaN if there is no
    verdict."""
    least = [min(getattr(run, budget)[-1] for run in seed_runs) for seed_runs in zip(*runs.values(), strict=True)]

    def verdicts(run: RunNumbers, most: float) -> np.ndarray:
        return run.correct[np.flatnonzero(getattr(run, budget) <= most)[-1]]

    return {arm: np.array(list(map(verdicts, arm_runs, least))) for arm, arm_runs in runs.items()}


def hardest_third(correct: dict[str, np.ndarray]) -> np.ndarray:
    """Returns a mask of the hardest third of the problems for each seed, bool [seeds, problems]. The hardest problems of a seed
    are those that all arms together solved least often with the other seeds. The seed's own results are left out, so that a run
    does not select the problems on which it is judged. They are used only if there is just one seed."""
    mean = np.nanmean(list(correct.values()), axis=0)
    seeds, problems = mean.shape
    hard = np.zeros(mean.shape, bool)
    for seed in range(seeds):
        others = mean if seeds == 1 else np.delete(mean, seed, axis=0)
        hard[seed, np.argsort(np.nanmean(others, axis=0), kind="stable")[: max(1, problems // 3)]] = True
    return hard


def mean_with_interval(values: np.ndarray, counted: np.ndarray | None = None) -> dict[str, Any]:
    """Returns the mean of `values`, float [seeds, problems], and its 95% confidence interval from a bootstrap over seeds and
    problems. Each resample uses the same problems for all seeds. `counted`, bool [seeds, problems], selects the values to
    average; by default, all values are averaged. NaN means that there is no verdict, and is ignored. With more than
    `DRAWN` / `RESAMPLES` problems, there are fewer resamples, so that the time stays limited."""
    known = ~np.isnan(values)
    values, counted = np.where(known, values, 0.0), known if counted is None else known & counted
    if not counted.any():
        return {"mean": math.nan, "interval95": [math.nan, math.nan]}  # nothing is known, and a claim is undecided
    rng, (seeds, problems) = np.random.default_rng(0), values.shape
    resamples = max(FEWEST_RESAMPLES, min(RESAMPLES, DRAWN // problems))
    seed_counts = rng.multinomial(seeds, np.full(seeds, 1 / seeds), resamples)
    means, begin = np.zeros(resamples), 0
    for size in resample_chunks(problems, resamples):
        drawn = seed_counts[begin : begin + size]
        problem_counts = rng.multinomial(problems, np.full(problems, 1 / problems), size)
        number = np.maximum(((drawn @ counted) * problem_counts).sum(axis=1), 1)
        means[begin : begin + size] = ((drawn @ (values * counted)) * problem_counts).sum(axis=1) / number
        begin += size
    low, high = np.quantile(means, [0.025, 0.975])
    return {"mean": float(values[counted].mean()), "interval95": [float(low), float(high)]}


def judge(claim: Claim, runs: dict[str, list[RunNumbers]], correct: dict[str, np.ndarray], hard: np.ndarray) -> dict[str, Any]:
    """Judges a claim by the 95% confidence interval of the paired difference between its arms. Returns a dict with the claim,
    the difference and the verdict. The verdict is "held" if the whole interval is above the claim's margin, "not held" if the
    whole interval is below the margin, and otherwise "undecided".

    A claim may be about the share of all-wrong groups, which are groups without a correct completion. In this case, the shares
    of two arms are paired by iteration, because arms without dynamic sampling see the same prompts in the same iterations."""

    def all_wrong(arm: str) -> np.ndarray:  # [seeds, iterations]
        return np.array([[row[ALL_WRONG_METRIC] for row in run.rollouts] for run in runs[arm]])

    def difference(worse: str) -> dict[str, Any]:
        if claim.measure == ALL_WRONG:
            return mean_with_interval(all_wrong(worse) - all_wrong(claim.better))
        counted = hard if claim.measure == HARD else None
        return mean_with_interval(correct[claim.better].astype(float) - correct[worse], counted)

    # The strongest of the arms in `claim.worse` is the one with the smallest difference. One that is not known could be it.
    differences = ((arm, difference(arm)) for arm in claim.worse)
    worse, found = min(differences, key=lambda pair: (not math.isnan(pair[1]["mean"]), pair[1]["mean"]))
    low, high = found["interval95"]
    margin = claim.margin / 100
    verdict = "held" if low > margin else "not held" if high <= margin else "undecided"
    return dataclasses.asdict(claim) | found | {"against": worse, "verdict": verdict}


def arm_numbers(
    arm: str, runs: list[RunNumbers], by_evaluations: np.ndarray, by_prompts: np.ndarray, hard: np.ndarray
) -> dict[str, Any]:
    """Returns the results of one arm for comparison.json. `by_evaluations` holds the verdicts on the problems if all arms get
    the same number of network evaluations, and `by_prompts` holds the verdicts if all arms get the same number of prompts. Both
    are float [seeds, problems]. `hard`, bool [seeds, problems], marks the hardest third of the problems."""

    def mean_of(name: str, part: slice = slice(None)) -> float | None:
        values = [row[name] for run in runs for row in run.rollouts[part] if row.get(name) is not None]
        known = [value for value in values if not math.isnan(value)]
        return float(np.mean(known)) if known else None

    def cost(budget: Budget) -> float | None:
        """Returns the number of prompts or network evaluations that the arm spends until its accuracy reaches `REACHED`, as the
        median over seeds. Returns None if more than half of the seeds never reach this accuracy."""
        reached = [getattr(run, budget)[np.nanmean(run.correct, axis=1) >= REACHED] for run in runs]
        costs = sorted(spent[0] if len(spent) else np.inf for spent in reached)
        median = costs[(len(runs) - 1) // 2]
        return float(median) if np.isfinite(median) else None

    return {
        "arm": arm,
        "title": ARMS[arm].title,
        "equal_evaluations": mean_with_interval(by_evaluations),
        "equal_prompts": mean_with_interval(by_prompts),
        "hardest_third": mean_with_interval(by_evaluations, hard),
        "of_each_seed": np.nanmean(by_evaluations, axis=1).tolist(),
        "all_wrong": [mean_of(ALL_WRONG_METRIC, part) for part in (slice(EDGE_ROLLOUTS), slice(-EDGE_ROLLOUTS, None))],
        "rescue_rate": rescue_rate([row for run in runs for row in run.rollouts]),
        "swapped_in": mean_of("hint/replaced"),
        "distinct": mean_of("groups/distinct"),
        "prompts_to_reach": cost("prompts"),
        "evaluations_to_reach": cost("evaluations"),
        "rl_seconds": float(np.mean([run.result["wall_seconds"]["rl"] for run in runs])),
    }


def compare_runs(folder: pathlib.Path, arms: list[str], seeds: list[int]) -> dict[str, Any]:
    """Returns the contents of comparison.json. Raises ValueError if a run is not finished, or if its files cannot be read."""
    runs = {arm: [read_run_numbers(folder / f"seed-{seed}" / arm) for seed in seeds] for arm in arms}
    with wrap_read_errors(folder):
        by_evaluations, by_prompts = at_budget(runs, "evaluations"), at_budget(runs, "prompts")
        hard = hardest_third(by_prompts)
        decidable = [claim for claim in CLAIMS if {claim.better, *claim.worse} <= set(arms)]
        return {
            "seeds": seeds,
            "problems": int(hard.shape[1]),
            "arms": [arm_numbers(arm, runs[arm], by_evaluations[arm], by_prompts[arm], hard) for arm in runs],
            "claims": [judge(claim, runs, by_evaluations, hard) for claim in decidable],
            "curves": {arm: [_curves(run) for run in arm_runs] for arm, arm_runs in runs.items()},
            "runs": [
                {"arm": arm, "seed": seed} | {key: run.result.get(key) for key in RUN_KEYS}
                for arm, arm_runs in runs.items()
                for seed, run in zip(seeds, arm_runs, strict=True)
            ],
        }


def _curves(run: RunNumbers) -> dict[str, list[float]]:
    return {
        "prompts": run.prompts.tolist(),
        "evaluations": run.evaluations.tolist(),
        "accuracy": np.nanmean(run.correct, axis=1).tolist(),
        "sampled": np.cumsum([row["sampler/prompts"] for row in run.rollouts]).tolist(),
        "all_wrong": [row[ALL_WRONG_METRIC] for row in run.rollouts],
    }
