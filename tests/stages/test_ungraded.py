"""Completions without a verdict in evaluations, in the state of hints and in the decision to stop a run."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from igpo_jax.families import LLADA_CHAT
from igpo_jax.rl.hints import InpaintingConfig
from igpo_jax.run.experiment import Experiment
from igpo_jax.runtime.mesh import make_mesh
from igpo_jax.stages.hint_state import NO_SOLUTION, update_hint_state
from igpo_jax.stages.stage import IterationState, Stage
from igpo_jax.tasks.grades import FEW, Grades
from igpo_jax.tasks.reward_pool import Verdict
from run_configs import parsed

REASONS = {"timeout": "problem 'slow': no verdict in 5 s", "error": "problem 'odd': ValueError: no\nluck"}

POOL = SimpleNamespace(reasons=REASONS)
MESH = make_mesh(devices=jax.devices()[:1])


def grades_of(rewards) -> Grades:
    """Returns grades; NaN means late, infinity means that the reward function failed."""
    rewards = np.array(rewards, np.float32)
    late, broken = np.isnan(rewards), np.isinf(rewards)
    return Grades(np.where(late | broken, 0, rewards), rewards == 1, late, broken)


def lack(late, broken, total, limit=0.2):
    rewards = np.array([np.nan] * late + [np.inf] * broken + [1.0] * (total - late - broken))
    experiment = SimpleNamespace(config=SimpleNamespace(reward=SimpleNamespace(max_ungraded=limit)), pool=POOL)
    # The share is that of all attempts of an iteration.
    return Experiment.lack_of_verdicts(experiment, [grades_of(rewards[None, :2]), grades_of(rewards[None, 2:])])


@pytest.mark.parametrize("late, broken, total, limit, stops", [
    (0, 0, 100, 0.0, False), (20, 0, 100, 0.2, False), (21, 0, 100, 0.2, True), (10, 11, 100, 0.2, True),
    (29, 0, 100, 0.29, False), (1, 0, 4, 0.2, False), (FEW, 0, 8, 0.2, False), (FEW + 1, 0, 8, 0.2, True),
    (FEW, 0, 100, 0.0, False), (FEW + 1, 0, 100, 0.0, True), (99, 0, 100, 1.0, False), (4, 0, 4, 0.2, True),
    (0, 100, 100, 1.0, True),
])  # fmt: skip
def test_a_run_stops_above_a_share_of_more_than_a_few_and_without_any_verdict(late, broken, total, limit, stops):
    assert bool(lack(late, broken, total, limit)) == stops


def test_the_error_has_the_numbers_an_example_of_each_kind_and_the_remedy():
    text = lack(30, 12, 100)
    assert text.startswith("42 of 100 completions got no verdict, timeouts: 30, errors: 12. ")
    assert "Example of a timeout: problem 'slow': no verdict in 5 s. " in text
    assert "Example of an error: problem 'odd': ValueError: no luck. " in text
    assert "raise reward.deadline_seconds" in text and "repair the reward function (reward.max_ungraded=0.2)" in text
    assert "\n" not in text and "timeout: " not in lack(0, 50, 100)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_the_share_lies_within_0_and_1(value):
    with pytest.raises(ValueError, match="reward.max_ungraded="):
        parsed(reward__max_ungraded=value)


def test_grades_keep_verdicts_apart_from_their_absence():
    """Grades by a pool that answers with each outcome once."""
    verdicts = [Verdict(1.0, "ok"), Verdict(0.5, "ok"), Verdict(0.0, "timeout", "late"), Verdict(0.0, "error", "bad")]
    fields = dict.fromkeys(field.name for field in dataclasses.fields(Experiment))
    fields |= {"config": parsed(reward__scale=2.0), "tokenizer": SimpleNamespace(decode=lambda tokens: "", eos_id=0, eot_id=None, chat=LLADA_CHAT)}
    experiment = Experiment(**fields | {"pool": lambda answers: verdicts})
    grades = experiment._grades([None], np.zeros((1, 4, 3), np.int32))()
    assert grades.rewards.tolist() == [[2.0, 1.0, 0.0, 0.0]] and grades.correct.tolist() == [[True, False, False, False]]
    assert grades.graded.tolist() == [[True, True, False, False]]


def test_a_sum_of_rewards_is_scaled_and_correctness_is_that_of_the_first_function():
    verdicts = [Verdict(1.0, "ok", others=(4.0,)), Verdict(0.5, "ok", others=(8.0,)), Verdict(0.0, "error", "bad", (0.0,))]
    fields = dict.fromkeys(field.name for field in dataclasses.fields(Experiment))
    config = parsed(reward__scale=2.0, reward__function="3*task + 0.25*mine:length")
    tokenizer = SimpleNamespace(decode=lambda tokens: "", eos_id=0, eot_id=None, chat=LLADA_CHAT)
    experiment = Experiment(**fields | {"config": config, "tokenizer": tokenizer, "pool": lambda answers: verdicts})
    grades = experiment._grades([None], np.zeros((1, 3, 3), np.int32))()
    assert grades.rewards.tolist() == [[8.0, 7.0, 0.0]] and grades.correct.tolist() == [[True, False, False]]
    assert {name: values.tolist() for name, values in grades.parts.items()} == {
        "task": [[1.0, 0.5, 0.0]],
        "length": [[4.0, 8.0, 0.0]],
    }
    assert grades.graded.tolist() == [[True, True, False]] and not grades.all_wrong.any()


class Log:
    def write_evaluation(self, step, stage, correct, graded, metrics):
        self.correct, self.graded, self.metrics = correct.tolist(), graded.tolist(), metrics


def evaluated(rewards, **benchmarks):
    config = parsed(reward__max_ungraded=0.5)
    verdicts = {name: grades_of([[reward] for reward in found]) for name, found in {"": rewards, **benchmarks}.items()}
    experiment = SimpleNamespace(config=config, mesh=MESH, sampling_mesh=MESH, pool=POOL)
    experiment.benchmarks = {name: SimpleNamespace(pool=POOL) for name in benchmarks}
    experiment.verdicts = lambda params, check_preemption, name="": verdicts[name]
    experiment.lack_of_verdicts = lambda *grades: Experiment.lack_of_verdicts(experiment, *grades)
    stage = Stage("rl", experiment, None, lambda: False, SimpleNamespace(for_sampling=lambda *_: None), None)
    state, log = IterationState(0, SimpleNamespace(params=None), None), Log()
    return stage, state, log


def test_an_accuracy_is_that_of_the_graded_completions():
    stage, state, log = evaluated([1, 0, np.nan, 1, np.inf])
    assert stage.evaluate(state, log) == pytest.approx(2 / 3)
    assert (log.metrics["eval/problems"], log.metrics["eval/ungraded"]) == (3, 2)
    assert log.correct == [True, False, False, True, False] and log.graded == [True, True, False, True, False]


def test_an_evaluation_without_verdicts_ends_the_run(monkeypatch):
    stage, state, log = evaluated([np.nan] * 3)
    monkeypatch.setattr(Stage, "_save_now", lambda self, state: "FOLDER")
    with pytest.raises(ValueError, match="^3 of 3 completions got no verdict.* continues the run from FOLDER$"):
        stage.evaluate(state, log)


def test_benchmarks_are_logged_beside_the_accuracy_and_need_verdicts_of_their_own(monkeypatch):
    stage, state, log = evaluated([1, 0], amc=[1, np.nan, 0, 1], sums=[0])
    assert stage.evaluate(state, log) == log.metrics["eval/accuracy"] == 0.5
    assert log.metrics["eval/amc/accuracy"] == pytest.approx(2 / 3) and log.metrics["eval/amc/ungraded"] == 1
    assert log.metrics["eval/sums/accuracy"] == 0 and log.metrics["time/total"] >= log.metrics["time/eval/amc"] > 0
    assert log.correct == [True, False]
    stage, state, log = evaluated([1] * 9, amc=[np.nan] * 2)
    monkeypatch.setattr(Stage, "_save_now", lambda self, state: "FOLDER")
    with pytest.raises(ValueError, match="^benchmark amc: 2 of 2 completions got no verdict.* from FOLDER$"):
        stage.evaluate(state, log)


def test_the_curriculum_and_the_solution_bank_use_graded_completions():
    tokens = np.arange(24, dtype=np.int32).reshape(2, 4, 3) + 10
    first = SimpleNamespace(tokens=tokens, grades=grades_of([[0, 1, np.nan, np.inf], [np.nan] * 4]))
    second = SimpleNamespace(grades=grades_of([[1, 1, 1, 0], [np.nan] * 4]))
    groups = SimpleNamespace(problem_id=np.array([5, 6], np.uint32))
    experiment = SimpleNamespace(
        rl_data=SimpleNamespace(rows_of=lambda ids: np.array([1, 0])),
        model=SimpleNamespace(eos_id=0),
        config=SimpleNamespace(inpainting=InpaintingConfig(curriculum=0.4)),
    )
    bank = np.full((2, 3), NO_SOLUTION, np.int32)
    state = IterationState(0, None, None, solution_bank=bank, hint_ratio_center=0.5)

    def after(second):
        return update_hint_state(experiment, state, [SimpleNamespace(first=first, second=second, groups=groups)])

    following = after(second)
    assert following.solution_bank.tolist() == [[NO_SOLUTION] * 3, tokens[0, 1].tolist()]
    assert following.hint_ratio_center == pytest.approx(0.5 + 0.4 * (0.5 - 0.75))
    assert after(SimpleNamespace(grades=grades_of([[np.nan] * 4]))).hint_ratio_center == 0.5


def test_the_curriculum_is_not_biased_by_later_tries():
    """Later tries are only made for groups that have correct ones, so they do not count."""
    config = SimpleNamespace(inpainting=InpaintingConfig(curriculum=0.4, tries=2))
    experiment = SimpleNamespace(config=config)
    state = IterationState(0, None, None, hint_ratio_center=0.5)
    correct = np.array([[1, 0, 1, 1], [0, 0, 0, 0]], bool)
    rewards = np.where([[True] * 4, [True, True, False, False]], correct.astype(np.float32), np.nan)
    nothing = np.zeros_like(correct)
    second = SimpleNamespace(grades=Grades(rewards, correct, nothing, nothing))
    following = update_hint_state(experiment, state, [SimpleNamespace(second=second)])
    assert following.hint_ratio_center == pytest.approx(0.5 + 0.4 * (0.5 - 0.25))
