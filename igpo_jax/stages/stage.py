"""State of a training stage, and what both stages have in common: restoring, checkpoints, evaluations, preemption and
divergence."""

import dataclasses
import functools
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax

from igpo_jax.model.sharding import Params
from igpo_jax.run.bucket_runs import checkpoints_of
from igpo_jax.run.checkpoint import Checkpoints
from igpo_jax.run.checkpoint_integrity import steps_in
from igpo_jax.run.experiment import Experiment
from igpo_jax.run.metrics import MetricsWriter, is_evaluated, last_logged
from igpo_jax.run.missing_files import check_finished_logs, check_logs, check_result, check_stage, discard_result
from igpo_jax.runtime.checks import require
from igpo_jax.runtime.distributed import raise_on_all_hosts
from igpo_jax.runtime.files import wrap_read_errors
from igpo_jax.runtime.mesh import to_host
from igpo_jax.runtime.preemption import Terminated, name_of_signal
from igpo_jax.runtime.statistics import problem_means
from igpo_jax.runtime.stopwatch import Stopwatch
from igpo_jax.stages.divergence import check_parameters, stop_diverged
from igpo_jax.tasks.grades import Grades
from igpo_jax.training.policy import Policy
from igpo_jax.training.state import TrainState, create_state, make_optimizer


@dataclasses.dataclass(frozen=True)
class IterationState:
    """State of a training stage between two iterations. The first five fields are saved in checkpoints. The other fields are
    read from the log."""

    done: int  # finished iterations of the RL stage, or finished updates of the supervised stage
    train_state: TrainState
    key: jax.Array  # root key of the stage
    solution_bank: np.ndarray | None = None  # i32[problems, l], see `update_solution_bank`; None unless inpainting.source="own"
    unlogged: Sequence = ()  # supervised stage: [loss, gradient norm] of each update since the last line of the log
    evaluated: bool = False  # the log has an evaluation of this state
    consecutive_skips: int = 0
    hint_ratio_center: float | None = None  # None: no curriculum
    sampler_kl: float | None = None  # last measured error of the cached sampler


@dataclasses.dataclass(frozen=True)
class Stage:
    """One training stage of a run, either supervised or RL."""

    name: str  # sft | rl
    experiment: Experiment
    checkpoints: Checkpoints
    preempted: Callable[[], bool]
    policy: Policy
    base: Params | None  # frozen parameters under adapters

    @property
    def total(self) -> int:
        """Number of the stage's iterations. An iteration of the supervised stage is one update."""
        config = self.experiment.config
        return config.sft.updates if self.name == "sft" else config.rl.iterations

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformation:
        config = self.experiment.config
        if self.name == "sft":
            return make_optimizer(config.sft.optimizer, self.total, self.policy)
        return make_optimizer(config.rl.optimizer, self.total * config.objective.inner_steps, self.policy)

    def step_of(self, done: int) -> int:
        """Returns the number of optimizer updates since the start of the run, after `done` iterations of this stage."""
        config = self.experiment.config
        return done if self.name == "sft" else config.sft.updates + done * config.objective.inner_steps

    def restore(self, key: jax.Array, solution_bank: np.ndarray | None = None) -> IterationState | None:
        """Returns the state in the newest checkpoint, or None if there is no checkpoint. Only the shapes and dtypes of the
        arguments are used. Raises ValueError if the checkpoint is newer than the end of the stage, or if checkpoints or lines
        of the logs are missing, see `run.missing_files`. If the stage is to be trained further, removes result.json."""
        with raise_on_all_hosts():
            if jax.process_index() == 0:
                self._check_result()
        abstract = TrainState.abstract(self.optimizer, self.policy, self.experiment.mesh)
        restored = self.checkpoints.restore_latest(abstract, key, solution_bank)
        state = None if restored is None else IterationState(*restored)
        if state is not None:
            place = self.checkpoints.folder / str(state.done)
            require(state.done <= self.total, f"{place} is newer than the end of the stage, which has {self.total} iterations")
        with raise_on_all_hosts():
            if jax.process_index() == 0:
                self._check_folder(state)
                if state is None or state.done < self.total:
                    discard_result(self.experiment.workdir)
        return state

    def _check_result(self) -> None:
        """Checks that the newest checkpoint of a finished run is not lost. It may be unreadable; then the one before it is
        used."""
        saved, is_last = self.checkpoints.steps(), self.name == "rl" or not self.experiment.config.rl.iterations
        if saved and is_last and not self.experiment.accept_loss:
            check_result(self.experiment.workdir, self.checkpoints.folder / str(saved[-1]), self.step_of(saved[-1]))

    def _check_folder(self, state: IterationState | None) -> None:
        workdir, config, accept = self.experiment.workdir, self.experiment.config, self.experiment.accept_loss
        done = None if state is None else state.done
        check_stage(workdir, config, self.name, done, accept)
        # The newest checkpoint of the run is the one whose logs may have been accepted with a loss.
        is_newest = self.name == "rl" or not steps_in(checkpoints_of(workdir) / "rl")
        # An RL stage without checkpoints comes after the supervised stage, which has checked the logs.
        is_checked = done is None and self.name == "rl" and config.sft.updates
        if is_newest and not is_checked and not accept:
            checkpoint = None if done is None else self.checkpoints.folder / str(done)
            stages = [name for name, total in {"sft": config.sft.updates, "rl": config.rl.iterations}.items() if total]
            check_logs(workdir, checkpoint, self.step_of(done or 0), stages)
            check_finished_logs(workdir)

    def create(self, trained: Params, key: jax.Array, solution_bank: np.ndarray | None = None) -> IterationState:
        """Returns the initial state of the stage, with a copy of the parameters `trained`."""
        train_state = create_state(trained, self.optimizer, self.policy, self.experiment.mesh)
        return IterationState(0, train_state, key, solution_bank)

    def with_counters(self, state: IterationState) -> IterationState:
        """Returns the state with values of `evaluated` and `consecutive_skips` that are read from the log. Call this method
        after `MetricsWriter` has removed the log lines of later steps."""
        logged = self.last_logged("update/consecutive_skips") or 0
        with wrap_read_errors(self.experiment.workdir / "metrics.jsonl"):
            skips = int(logged)
        return dataclasses.replace(state, evaluated=self.is_evaluated(state), consecutive_skips=skips)

    def is_evaluated(self, state: IterationState) -> bool:
        return is_evaluated(self.experiment.workdir, self.step_of(state.done), self.name)

    def last_logged(self, metric: str) -> float | None:
        return last_logged(self.experiment.workdir, self.name, metric)

    def scoring_params(self, state: IterationState) -> Params:
        """Returns the policy's parameters for computing log-probabilities, on the mesh of training."""
        return self.policy.for_sampling(state.train_state.params, self.base, self.experiment.mesh)

    @functools.cached_property
    def kept_base(self) -> Params | None:
        """The copy of the frozen parameters on `experiment.sampling_mesh` that all iterations of the RL stage use, see
        `run.microbatch_choice.base_copy_stays`. The supervised stage has no rollouts and keeps no copy."""
        if self.name == "sft" or not self.experiment.base_copy_stays:
            return None
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.policy.abstract_base(self.experiment.sampling_mesh))
        return jax.device_put(self.base, shardings)

    def sampling_params(self, state: IterationState) -> Params:
        """Returns the policy's parameters for sampling, on `experiment.sampling_mesh`. If the mesh of training is another mesh,
        the parameters are a copy. Copying costs little compared with the thousands of forward passes that use the copy. Free
        the copy before updates need the memory. Frozen parameters in `kept_base` are not copied again."""
        train_mesh, mesh = self.experiment.mesh, self.experiment.sampling_mesh
        if mesh == train_mesh:
            return self.scoring_params(state)
        params = self.policy.for_sampling(state.train_state.params, self.kept_base or self.base, train_mesh)
        return self.policy.copy_to(params, mesh)

    def check_preemption(self, state: IterationState) -> None:
        """If a termination signal has arrived, saves the state and raises Terminated. The resumed run starts from this state,
        so it repeats an unfinished iteration or evaluation from the beginning. Every process must call this method the same
        number of times."""
        if self.preempted():
            raise Terminated(f"stopped by {name_of_signal()} after saving {self._save_now(state)}")

    def stop_if_ungraded(self, state: IterationState, grades: Sequence[Grades], benchmark: str = "") -> None:
        """If too many completions have no verdict, saves the state and raises ValueError, see `Experiment.lack_of_verdicts`.
        The resumed run repeats the iteration or evaluation to which the completions belong."""
        trouble = self.experiment.lack_of_verdicts(grades, benchmark)
        if trouble:
            raise ValueError(f"{trouble}. The same command then continues the run from {self._save_now(state)}")

    def _save_now(self, state: IterationState) -> pathlib.Path:
        """Saves the state, unless a checkpoint of it already exists. Returns the folder of the checkpoint."""
        check_parameters(state.train_state.params, self.step_of(state.done), self.checkpoints)
        unlogged = np.array(to_host(state.unlogged), float).tolist()
        self.checkpoints.wait()
        if state.done not in self.checkpoints.steps():
            self.checkpoints.save(state.done, state.train_state, state.key, state.solution_bank, unlogged=unlogged)
            self.checkpoints.wait()
        return self.checkpoints.folder / str(state.done)

    def checkpoint_if_due(self, state: IterationState, every: int, accuracy: float | None = None) -> None:
        """Saves a checkpoint before the first iteration (RL stage only), after the last iteration, and whenever the number of
        finished iterations is a multiple of `every`. Also saves a checkpoint whenever `accuracy` is given, so that the best
        checkpoint can be kept. If there is a checkpoint of this state, only adds the accuracy to it. If this is the stage's
        first checkpoint, waits until it is complete, because `check_stage` relies on its existence. Then prints its size and
        the time that saving took."""
        regular = is_due(state.done, self.total, every) and (state.done > 0 or self.name == "rl")
        saved = self.checkpoints.steps()
        if accuracy is not None and state.done in saved:
            self.checkpoints.add_accuracy(state.done, accuracy)
        elif (accuracy is not None or regular) and state.done not in saved:
            check_parameters(state.train_state.params, self.step_of(state.done), self.checkpoints)
            is_first, begin = not saved, time.monotonic()
            self.checkpoints.save(state.done, state.train_state, state.key, state.solution_bank, accuracy=accuracy)
            if is_first:
                self.checkpoints.wait()
                size, seconds = sum(leaf.nbytes for leaf in jax.tree.leaves(state.train_state)), time.monotonic() - begin
                if jax.process_index() == 0:
                    told = f"the first checkpoint of stage {self.name} has {size / 1e9:.3g} GB: {seconds:.1f} s"
                    print(told, file=sys.stderr, flush=True)  # as the progress bar, whose line it interrupts

    def evaluate(self, state: IterationState, log: MetricsWriter, heldout=lambda params, check_preemption: {}) -> float:
        """Evaluates the policy on the test problems and on the benchmarks, logs the accuracies, and returns the accuracy on the
        test problems. Accuracies leave out completions without a verdict. Raises ValueError if too many completions have no
        verdict. `heldout` is a function (parameters, check_preemption) that returns further metrics to log."""
        check_preemption, watch = functools.partial(self.check_preemption, state), Stopwatch()
        with watch.measure("time/total"):
            params = self.sampling_params(state)
            with jax.set_mesh(self.experiment.sampling_mesh):
                metrics = heldout(params, check_preemption)
                grades = self.experiment.verdicts(params, check_preemption)
                others = {}
                for name in self.experiment.benchmarks:
                    with watch.measure(f"time/eval/{name}"):
                        others[name] = self.experiment.verdicts(params, check_preemption, name)
        self.stop_if_ungraded(state, [grades])
        for name, found in others.items():
            self.stop_if_ungraded(state, [found], name)
            metrics |= benchmark_metrics(name, found)
        correct, graded = grades.correct[:, 0], grades.graded[:, 0]
        accuracy = float(correct[graded].mean(dtype=np.float64))
        metrics |= {"eval/accuracy": accuracy, "eval/problems": graded.sum(), "eval/ungraded": (~graded).sum()}
        log.write_evaluation(self.step_of(state.done), self.name, correct, graded, metrics | watch.seconds)
        return accuracy

    def stop_if_diverged(self, state: IterationState, last_update: dict[str, Any], batch: Any) -> None:
        """Raises Diverged after `skip_limit` consecutive skipped updates, see `stop_diverged`."""
        if state.consecutive_skips >= self.experiment.config.skip_limit:
            step, params = self.step_of(state.done), state.train_state.params
            folder, skips = self.experiment.workdir, state.consecutive_skips
            stop_diverged(folder, step, self.name, skips, last_update, params, batch, self.checkpoints)


def benchmark_metrics(name: str, grades: Grades) -> dict[str, float]:
    """Returns the metrics of a benchmark from grades [problems, draws] with at least one verdict. The accuracy is the mean over
    the problems of the share of correct completions. With several draws, pass@draws is the share of problems with a correct
    completion, among the problems with a verdict on every draw."""
    graded, draws = grades.graded, grades.correct.shape[1]
    accuracy = np.nanmean(problem_means(np.where(graded, grades.correct, np.nan)))
    metrics = {f"eval/{name}/accuracy": float(accuracy), f"eval/{name}/ungraded": int((~graded).sum())}
    if draws > 1 and (whole := graded.all(axis=1)).any():
        metrics[f"eval/{name}/pass@{draws}"] = float(grades.correct[whole].any(axis=1).mean())
    return metrics


def is_due(done: int, total: int, every: int) -> bool:
    """Returns whether an action is due when `done` of `total` iterations are finished. It is due at 0, at `total`, and at
    multiples of `every`. If `every` is 0, the action is due only at 0 and at `total`."""
    return done in (0, total) or (every > 0 and done % every == 0)
