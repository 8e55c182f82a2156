"""What the runs of a comparison say: accuracies at equal budgets, paired differences, verdicts on claims."""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from igpo_jax.compare.arms import ALL_WRONG, ARMS, CLAIMS, HARD, Claim
from igpo_jax.run.metrics import read_rows
from igpo_jax.run.results import EDGE_ROLLOUTS, rescue_rate
from igpo_jax.runtime.files import read_json, wrap_read_errors
from igpo_jax.runtime.statistics import RESAMPLES

REACHED = 0.5  # the accuracy whose price in prompts and evaluations is told
CARD = ("fingerprint", "data", "updates", "device", "platform", "python", "versions", "commit", "wall_seconds")
Budget = str  # "prompts" | "evaluations"


@dataclasses.dataclass(frozen=True)
class RunNumbers:
    """One run. prompts, evaluations: float64 [k], sampled until each evaluation, summed; evaluations are rows that went through
    the network. correct: bool [k, problems]. rollouts: rows of metrics.jsonl. result: result.json."""

    prompts: np.ndarray
    evaluations: np.ndarray
    correct: np.ndarray
    rollouts: list[dict[str, Any]]
    result: dict[str, Any]


def read_run(folder: pathlib.Path) -> RunNumbers:
    """
    Raises:
        ValueError: the run is not finished, or its files cannot be read.
    """
    if not (folder / "result.json").is_file():
        raise ValueError(f"{folder} has no result.json: the run is not finished")
    result = read_json(folder / "result.json")
    rows, verdicts = (read_rows(folder / name) for name in ("metrics.jsonl", "evaluations.jsonl"))
    rollouts = [row for row in rows if "sampler/rows" in row]

    def spent(name: str) -> np.ndarray:
        return np.array([sum(row[name] for row in rollouts if row["step"] <= of["step"]) for of in verdicts])

    with wrap_read_errors(folder):
        verdicts = [row for row in verdicts if row["stage"] == "rl"]
        correct = np.array([row["correct"] for row in verdicts], bool)
        return RunNumbers(spent("sampler/prompts"), spent("sampler/rows"), correct, rollouts, result)


def at_budget(runs: dict[str, list[RunNumbers]], budget: Budget) -> dict[str, np.ndarray]:
    """Verdicts bool [seeds, problems] of every arm: of each seed, at the last evaluation within what the arm that needed
    least had spent at its end."""
    seeds = range(len(next(iter(runs.values()))))
    least = [min(getattr(of_arm[seed], budget)[-1] for of_arm in runs.values()) for seed in seeds]
    return {
        arm: np.array(
            [run.correct[np.flatnonzero(getattr(run, budget) <= most)[-1]] for run, most in zip(of_arm, least, strict=True)]
        )
        for arm, of_arm in runs.items()
    }


def hardest_third(correct: dict[str, np.ndarray]) -> np.ndarray:
    """bool [seeds, problems]: for each seed the third of the problems that all arms solved least often with the *other*
    seeds, so that no run chooses the problems it is judged by. With one seed there is no other."""
    mean = np.mean(list(correct.values()), axis=0)
    seeds, problems = mean.shape
    hard = np.zeros(mean.shape, bool)
    for seed in range(seeds):
        others = mean if seeds == 1 else np.delete(mean, seed, axis=0)
        hard[seed, np.argsort(others.mean(axis=0), kind="stable")[: max(1, problems // 3)]] = True
    return hard


def interval(values: np.ndarray, counted: np.ndarray | None = None) -> dict[str, Any]:
    """Mean and 95 % interval of [seeds, problems] by a bootstrap over both: seeds, and problems, which all seeds share.

    Args:
        counted: bool [seeds, problems], what of it counts; by default all.
    """
    values = np.asarray(values, float)
    counted = np.ones(values.shape, bool) if counted is None else counted
    draw, (seeds, problems) = np.random.default_rng(0), values.shape
    of_seed = draw.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES)
    of_problem = draw.multinomial(problems, np.full(problems, 1 / problems), RESAMPLES)
    number = np.maximum(((of_seed @ counted) * of_problem).sum(axis=1), 1)
    means = ((of_seed @ (values * counted)) * of_problem).sum(axis=1) / number
    low, high = np.quantile(means, [0.025, 0.975])
    return {"mean": float(values[counted].mean()), "interval95": [float(low), float(high)]}


def all_wrong(runs: list[RunNumbers]) -> np.ndarray:
    """Share of groups that are all wrong before hints, [seeds, iterations]."""
    return np.array([[row["groups/all_wrong_before"] for row in run.rollouts] for run in runs])


def judge(claim: Claim, runs: dict[str, list[RunNumbers]], correct: dict[str, np.ndarray], hard: np.ndarray) -> dict[str, Any]:
    """held: the interval of the paired difference lies above the margin; not held: below; otherwise undecided. Arms without
    dynamic sampling see the same prompts in the same iterations."""
    counted = hard if claim.measure == HARD else None

    def difference(worse: str) -> dict[str, Any]:
        if claim.measure == ALL_WRONG:
            return interval(all_wrong(runs[worse]) - all_wrong(runs[claim.better]))
        return interval(correct[claim.better].astype(float) - correct[worse], counted)

    # Against the best of several: the one that leaves the smallest difference.
    worse, found = min(((arm, difference(arm)) for arm in claim.worse), key=lambda pair: pair[1]["mean"])
    low, high = found["interval95"]
    margin = claim.margin / 100
    verdict = "held" if low > margin else "not held" if high <= margin else "undecided"
    return dataclasses.asdict(claim) | found | {"against": worse, "verdict": verdict}


def summary(arm: str, runs: list[RunNumbers], equal: dict[Budget, np.ndarray], hard: np.ndarray) -> dict[str, Any]:
    """A line of the table."""

    def mean_of(name: str, part: slice = slice(None)) -> float | None:
        values = [row[name] for run in runs for row in run.rollouts[part] if row.get(name) is not None]
        return float(np.mean(values)) if values else None

    def price(budget: Budget) -> float | None:
        """Median over seeds; None where most never reach it."""
        reached = [getattr(run, budget)[run.correct.mean(axis=1) >= REACHED] for run in runs]
        paid = sorted(spent[0] if len(spent) else np.inf for spent in reached)[(len(runs) - 1) // 2]
        return float(paid) if np.isfinite(paid) else None

    return {
        "arm": arm,
        "title": ARMS[arm].title,
        "equal_evaluations": interval(equal["evaluations"]),
        "equal_prompts": interval(equal["prompts"]),
        "hardest_third": interval(equal["evaluations"], hard),
        "of_each_seed": equal["evaluations"].mean(axis=1).tolist(),
        "all_wrong": [mean_of("groups/all_wrong_before", part) for part in (slice(EDGE_ROLLOUTS), slice(-EDGE_ROLLOUTS, None))],
        "rescue_rate": rescue_rate([row for run in runs for row in run.rollouts]),
        "swapped_in": mean_of("hint/replaced"),
        "distinct": mean_of("groups/distinct"),
        "prompts_to_reach": price("prompts"),
        "evaluations_to_reach": price("evaluations"),
        "rl_seconds": float(np.mean([run.result["wall_seconds"]["rl"] for run in runs])),
    }


def compare_runs(folder: pathlib.Path, arms: list[str], seeds: list[int]) -> dict[str, Any]:
    """Everything that the report shows, as JSON.

    Raises:
        ValueError: a run is not finished, or its files cannot be read.
    """
    runs = {arm: [read_run(folder / f"seed-{seed}" / arm) for seed in seeds] for arm in arms}
    with wrap_read_errors(folder):
        return _compared(runs, arms, seeds)


def _compared(runs: dict[str, list[RunNumbers]], arms: list[str], seeds: list[int]) -> dict[str, Any]:
    equal = {budget: at_budget(runs, budget) for budget in ("evaluations", "prompts")}
    hard = hardest_third(equal["prompts"])
    possible = [claim for claim in CLAIMS if {claim.better, *claim.worse} <= set(arms)]
    curves = {
        arm: [
            {
                "prompts": run.prompts.tolist(),
                "evaluations": run.evaluations.tolist(),
                "accuracy": run.correct.mean(axis=1).tolist(),
                "sampled": np.cumsum([row["sampler/prompts"] for row in run.rollouts]).tolist(),
                "all_wrong": [row["groups/all_wrong_before"] for row in run.rollouts],
            }
            for run in of_arm
        ]
        for arm, of_arm in runs.items()
    }
    return {
        "seeds": seeds,
        "problems": int(hard.shape[1]),
        "arms": [
            summary(arm, of_arm, {budget: of[arm] for budget, of in equal.items()}, hard) for arm, of_arm in runs.items()
        ],
        "claims": [judge(claim, runs, equal["evaluations"], hard) for claim in possible],
        "curves": curves,
        "runs": [
            {"arm": arm, "seed": seed} | {key: run.result.get(key) for key in CARD}
            for arm, of_arm in runs.items()
            for seed, run in zip(seeds, of_arm, strict=True)
        ],
    }
