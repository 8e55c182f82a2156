"""The RL stage: each iteration samples completions, computes their log-probabilities, updates the policy and logs metrics."""

import dataclasses
import functools
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np

from igpo_jax.data.pipeline import PromptBatch, batches, take_rows
from igpo_jax.diffusion.sampler import completion_keys
from igpo_jax.diffusion.sampler_error import PROBED, sampler_error
from igpo_jax.diffusion.unmasking import exact_sampler
from igpo_jax.model.sharding import Params
from igpo_jax.rl.dynamic_sampling import key_of_batch, merge, mixed_groups
from igpo_jax.rl.keys import KeyPurpose
from igpo_jax.rl.likelihood import GroupBatch
from igpo_jax.rl.objective import LogProbs, compute_logprobs, means_over_parts
from igpo_jax.rl.parts import make_update_of_parts, split_by_length
from igpo_jax.rl.rollout import Rollout, RolloutConfig, rollout, up_to_first_eos
from igpo_jax.run.checkpoint import Checkpoints
from igpo_jax.run.experiment import Experiment
from igpo_jax.run.metrics import MetricsWriter, device_memory
from igpo_jax.run.microbatch_choice import parts_of
from igpo_jax.runtime.checks import present, require
from igpo_jax.runtime.mesh import batch_size_divisor, shard_batch, to_host
from igpo_jax.runtime.progress import progress
from igpo_jax.runtime.stopwatch import Stopwatch
from igpo_jax.stages.divergence import count_skipped
from igpo_jax.stages.hint_state import (
    NO_SOLUTION,
    initial_hint_ratio_center,
    require_known_ids,
    update_hint_state,
    with_own_solutions,
)
from igpo_jax.stages.stage import IterationState, Stage, is_due
from igpo_jax.tasks.reward_terms import TASK, reward_terms
from igpo_jax.training.policy import Policy, PolicyParams, cast_params
from igpo_jax.training.state import is_skipped

ROLLOUTS_SHOWN = 2  # number of problems per logged step with rows in rollouts.jsonl


class RLRun(NamedTuple):
    """Models, data and settings of the RL stage that stay the same in all iterations."""

    stage: Stage
    reference: Params  # parameters of the reference policy in the KL term
    order: grain.MapDataset[PromptBatch]
    update: Callable  # see `make_update_of_parts`
    rollout: RolloutConfig  # with the configured sampler, which an iteration may replace by `exact_sampler`


class Iteration(NamedTuple):
    """Results of one iteration of the RL stage."""

    sampled: Rollout
    metrics: dict[str, float]
    batch: Any  # input of the updates, saved if they diverge
    last_update: dict[str, Any]  # loss, grad_norm and finite_gradients of the last inner update


def run_rl(experiment: Experiment, start: PolicyParams, checkpoints: Checkpoints, preempted: Callable[[], bool]) -> Params:
    """Runs the RL stage to its end and returns the trained parameters. Starts from the newest checkpoint, or from `start` if
    there is no checkpoint. If preempted() returns True, saves a checkpoint and raises Terminated. Raises Diverged if the loss
    or gradient of `skip_limit` consecutive updates was not finite, or if a parameter is not finite.

    Args:
        start: initial policy, which is also the reference policy of the KL term. With float32 parameters and bfloat16
            computation, the reference policy is a bfloat16 copy. The buffers of `start.trained` are freed, unless the reference
            policy uses them.
        preempted: function called before every iteration, after every chunk of a rollout, and after every batch of an
            evaluation."""
    config, rl = experiment.config, experiment.config.rl
    stage = Stage("rl", experiment, checkpoints, preempted, Policy(experiment.model, config.lora), start.base)
    reference, key, seed = _reference(stage, start), experiment.key(2), config.seed
    if rl.seed:
        key, seed = jax.random.fold_in(key, rl.seed), zlib.crc32(f"{seed} {rl.seed}".encode())
    order = batches(present(experiment.rl_data).prompts, rl.prompts, seed, config.data.prompt_buckets)
    sizes = parts_of(config), rl.microbatches
    update = make_update_of_parts(stage.optimizer, stage.policy, config.objective, experiment.mesh, *sizes)
    run = RLRun(stage, reference, order, update, _rollout_config(experiment))
    own_hints = config.inpainting.enabled and config.inpainting.source == "own"
    solution_bank = np.full_like(present(experiment.rl_data).prompts.trace, NO_SOLUTION) if own_hints else None
    restored = stage.restore(key, solution_bank)
    if restored and own_hints:
        folder, bank = checkpoints.folder / str(restored.done), present(restored.solution_bank)
        require_known_ids(folder, bank, experiment.model.vocab_size)
    state = restored or stage.create(start.trained, key, solution_bank)
    if stage.policy.makes_copy() or reference is start.base:
        jax.tree.map(lambda x: x.delete(), start.trained)
    starting, upload = None if restored else "rl", experiment.upload
    log = MetricsWriter(experiment.workdir, stage.step_of(state.done), starting=starting, upload=upload)
    with log, progress(rl.iterations, state.done, "RL") as bar:
        checkpoints.log_sums = log.sums
        state = _with_counters(stage, state)
        while True:
            accuracy = None
            if is_due(state.done, rl.iterations, rl.eval_every):
                # The run may have been killed after it had logged the accuracy and before the checkpoint had it.
                accuracy = stage.last_logged("eval/accuracy") if state.evaluated else stage.evaluate(state, log)
            stage.checkpoint_if_due(state, rl.checkpoint_every, accuracy)
            if state.done == rl.iterations:
                break
            stage.check_preemption(state)
            state, iteration = run_iteration(run, state)
            step, metrics = stage.step_of(state.done), iteration.metrics
            log.write(step, "rl", metrics)
            log.write_histograms(step, _distributions(iteration.sampled, experiment.model.eos_id))
            stage.stop_if_diverged(state, iteration.last_update, iteration.batch)
            if state.done == rl.iterations or (state.done - 1) % rl.show_every == 0:
                log.write_rollouts(_shown(experiment, iteration.sampled, step))
            bar.update(1)
            shown = {"reward": f"{metrics['reward/first_try']:.2f}", "all_wrong": f"{metrics['groups/all_wrong_before']:.2f}"}
            if ungraded := int(metrics["grading/late"] + metrics["grading/broken"]):
                shown["no_verdict"] = str(ungraded)
            bar.set_postfix(shown)
    checkpoints.wait()
    return state.train_state.params


def run_iteration(run: RLRun, state: IterationState) -> tuple[IterationState, Iteration]:
    """Runs one iteration: samples groups of completions, computes their log-probabilities, and updates the policy. Returns the
    new state and the results of the iteration. Donates the training state. Raises ValueError if too many completions have no
    verdict."""
    stage, config = run.stage, run.stage.experiment.config
    model, mesh, objective, watch = stage.experiment.model, stage.experiment.mesh, config.objective, Stopwatch()
    with watch.measure("time/total"):
        key = jax.random.fold_in(state.key, state.done)
        with watch.measure("time/layout"):
            sampling_params = stage.sampling_params(state)
        with jax.set_mesh(stage.experiment.sampling_mesh):
            # A key of the mesh of training cannot be used here.
            sampling_key = jax.random.wrap_key_data(jnp.asarray(np.asarray(jax.random.key_data(key))))
            sampler_kl, cfg, sampler_metrics = _choose_sampler(run, state, sampling_params, sampling_key, watch)
            parts = _sample_batches(run, state, sampling_params, sampling_key, cfg)
        attempts = [attempt for part in parts for attempt in (part.first, part.second) if attempt is not None]
        stage.stop_if_ungraded(state, [attempt.grades for attempt in attempts])
        sampled, number = merge(parts, cfg), parts_of(config)
        groups = split_by_length(sampled.groups, number, cfg.prompt_buckets, mesh)

        with watch.measure("time/score"):
            policy = sampling_params if stage.experiment.sampling_mesh == mesh else None
            del sampling_params  # a copy's memory is needed
            policy = policy or stage.scoring_params(state)
            microbatches = config.rl.microbatches // number  # of a part
            logprobs = [
                compute_logprobs(policy, run.reference, part, key, model, objective, mesh, microbatches) for part in groups
            ]
            entropy = _mean_entropy(groups, logprobs)
        del policy  # updates need its memory

        with watch.measure("time/update"):
            train_state, updates = state.train_state, []
            for inner_step in range(objective.inner_steps):
                train_state, statistics = run.update(train_state, groups, logprobs, np.int32(inner_step), stage.base)
                updates.append(statistics)
            updates = to_host(updates)
    last_update = {"loss": updates[-1]["policy/loss"], "grad_norm": updates[-1]["policy/grad_norm"]}
    last_update["finite_gradients"] = updates[-1]["finite_gradients"]
    means, skips = _summarize(updates, state.consecutive_skips)
    consecutive_skips = int(skips["update/consecutive_skips"])
    state = dataclasses.replace(update_hint_state(stage.experiment, state, parts), done=state.done + 1, train_state=train_state)
    state = dataclasses.replace(state, evaluated=False, sampler_kl=sampler_kl, consecutive_skips=consecutive_skips)

    metrics = sampled.metrics | sampler_metrics
    if state.hint_ratio_center is not None:
        metrics["hint/ratio_center"] = state.hint_ratio_center
    metrics |= means | watch.seconds | device_memory() | {"policy/entropy": entropy} | skips
    tokens = sum(attempt.grades.sampled.sum() for attempt in attempts) * config.sampler.completion_length
    metrics["speed/tokens_per_second"] = tokens / metrics["time/rollout"]
    batch = [{"groups": part, "old": of.old, "reference": of.reference} for part, of in zip(groups, logprobs, strict=True)]
    return state, Iteration(sampled, metrics, batch[0] if len(batch) == 1 else batch, last_update)


def _reference(stage: Stage, start: PolicyParams) -> Params:
    """Returns the reference policy of the KL term: the policy at the start of the stage. Adapters that this stage creates are
    left out, because they change nothing before their first update."""
    experiment = stage.experiment
    if start.base is None:
        return cast_params(start.trained, experiment.model, experiment.mesh)
    return stage.policy.assemble(*start) if experiment.config.sft.updates else start.base


def _rollout_config(experiment: Experiment) -> RolloutConfig:
    config = experiment.config
    return RolloutConfig(
        model=experiment.model,
        decode=config.sampler.decode,
        inpainting=config.inpainting,
        group_size=config.rl.group_size,
        prompts_at_once=config.rl.prompts // config.rl.rollout_chunks,
        prompt_buckets=config.data.prompt_buckets,
        normalize_advantages=config.objective.normalize_advantages,
        after_eos=config.objective.reference_code,
    )


def _with_counters(stage: Stage, state: IterationState) -> IterationState:
    """Returns the state with values for the fields that checkpoints do not store. The values are read from the log. Two of the
    fields are used only by the RL stage: the center of hint ratios and the error of the cached sampler."""
    state, hints, center = stage.with_counters(state), stage.experiment.config.inpainting, None
    sampler_kl = stage.last_logged("sampler/kl") if state.done else None
    if hints.enabled and hints.curriculum:
        center = stage.last_logged("hint/ratio_center") if state.done else None
        center = initial_hint_ratio_center(hints) if center is None else center
        file = stage.experiment.workdir / "metrics.jsonl"  # which may come from a stranger
        require(0 <= center <= 1, f"{file}: the last hint/ratio_center={center} is not within [0, 1]; restore a copy")
    return dataclasses.replace(state, sampler_kl=sampler_kl, hint_ratio_center=center)


def _choose_sampler(
    run: RLRun, state: IterationState, policy: Params, key: jax.Array, watch: Stopwatch
) -> tuple[float | None, RolloutConfig, dict[str, float]]:
    """Chooses the sampler of this rollout. Returns (last measured error of the cached sampler, configuration of the rollout,
    metrics). If `rl.probe_limit` is not 0 and the error exceeds this limit, `exact_sampler` replaces the cached sampler."""
    rl, fast = run.stage.experiment.config.rl, run.rollout.decode
    cfg = dataclasses.replace(run.rollout, hint_ratio_center=state.hint_ratio_center)
    if fast.cache == "none":
        return None, cfg, {}
    metrics, error = {}, state.sampler_kl
    if rl.probe_every and state.done % rl.probe_every == 0:
        with watch.measure("time/probe"):
            metrics = _probe(run, state, policy, key)
        error = metrics["sampler/kl"]
    too_far = error is not None and 0 < rl.probe_limit < error
    decode = exact_sampler(fast) if too_far else fast
    return error, dataclasses.replace(cfg, decode=decode), metrics | {"sampler/exact": too_far}


def _probe(run: RLRun, state: IterationState, policy: Params, key: jax.Array) -> dict[str, float]:
    """Measures the error of the cached sampler on a few of the rollout's prompts. Returns the measured errors as metrics."""
    rl, model, mesh = run.stage.experiment.config.rl, run.stage.experiment.model, run.stage.experiment.sampling_mesh
    number = -(-PROBED // batch_size_divisor(mesh)) * batch_size_divisor(mesh)
    prompts = take_rows(run.order[state.done * rl.dynamic_batches], np.arange(number) % rl.prompts)
    canvas = np.full((number, run.rollout.decode.completion_length), model.mask_id, np.int32)
    keys = completion_keys(key, prompts.problem_id, np.arange(number, dtype=np.uint32), KeyPurpose.PROBE)
    tokens, prompt_mask, canvas = shard_batch((prompts.tokens, prompts.prompt_mask, canvas), mesh)
    error = sampler_error(policy, tokens, prompt_mask, canvas, keys, model, run.rollout.decode)
    return {f"sampler/{name}": float(np.float32(error[name])) for name in ("kl", "changed")}


def _sample_batches(run: RLRun, state: IterationState, policy: Params, key: jax.Array, cfg: RolloutConfig) -> list[Rollout]:
    """Samples rollouts until training can learn from `rl.prompts` groups (see `mixed_groups`), or until there are
    `rl.dynamic_batches` rollouts. A group consists of the completions of one problem. By default, samples one rollout."""
    experiment, rl = run.stage.experiment, run.stage.experiment.config.rl
    check_preemption = functools.partial(run.stage.check_preemption, state)
    parts: list[Rollout] = []
    while len(parts) < rl.dynamic_batches and (not parts or mixed_groups(parts).sum() < rl.prompts):
        prompts = run.order[state.done * rl.dynamic_batches + len(parts)]
        if state.solution_bank is not None:
            prompts = with_own_solutions(experiment, prompts, state.solution_bank)
        batch_key = key_of_batch(key, len(parts))
        parts.append(rollout(policy, prompts, experiment.grade, batch_key, cfg, experiment.sampling_mesh, check_preemption))
    return parts


def _mean_entropy(groups: list[GroupBatch], logprobs: list[LogProbs]) -> float:
    """Returns the mean entropy of the old policy over the tokens in the masks of all parts of a batch, and over inner steps."""
    used = [part.loss_mask & (of.views.weight > 0).any(axis=2) for part, of in zip(groups, logprobs, strict=True)]
    entropy = jnp.concatenate([of.entropy for of in logprobs], axis=1)
    return float(jnp.mean(entropy, where=jnp.concatenate(used, axis=1)))


def _summarize(updates: list[dict[str, Any]], skips_before: int) -> tuple[dict[str, float], dict[str, float]]:
    """Returns two dicts of metrics. The first contains the statistics of an iteration, averaged over the updates that were not
    skipped, or over all updates if all were skipped. The second contains the number of skipped updates in the iteration, and
    the number of consecutive skipped updates up to now."""
    skipped = np.array([is_skipped(statistics["policy/loss"], statistics["policy/grad_norm"]) for statistics in updates])
    used = [statistics for statistics, skip in zip(updates, skipped, strict=True) if not skip] or updates
    names = [name for name in used[0] if name != "finite_gradients"]
    means = {name: float(np.mean([statistics[name] for statistics in used])) for name in names}
    return means_over_parts(means), {
        "update/skipped": skipped.sum(),
        "update/consecutive_skips": count_skipped(skipped, skips_before),
    }


def _distributions(sampled: Rollout, eos_id: int) -> dict[str, np.ndarray]:
    """Returns a dict of arrays for histograms: the rewards of graded first attempts, the lengths of first attempts, and the
    advantages with which the policy is trained."""
    return {
        "rollout/rewards": sampled.first.grades.rewards[sampled.first.grades.graded],
        "rollout/lengths": up_to_first_eos(sampled.first.tokens, eos_id).sum(axis=-1),
        "rollout/advantages": sampled.groups.advantages,
    }


def _shown(experiment: Experiment, sampled: Rollout, step: int) -> list[dict]:
    """Returns records for rollouts.jsonl that describe completions of a few problems. For each of these problems, one record
    describes the completion with the highest reward in the first attempt. If the problem was sampled again with hints, another
    record describes the hinted completion with the highest reward. A completion without a verdict is chosen only if all
    completions of the attempt have no verdict."""
    by_id = present(experiment.rl_data).by_id

    def row(attempt, name: str, group: int, position: int) -> dict:
        rewards = np.where(attempt.grades.graded, attempt.grades.rewards, -np.inf)
        place = position, int(rewards[position].argmax())
        problem, tokens = by_id[int(problem_ids[group])], attempt.tokens[place]
        text = experiment.graded_text(tokens)
        grades = jax.tree.map(lambda values: values[place], attempt.grades)
        # The answer that a user's reward function reads is unknown.
        is_own = reward_terms(experiment.config.reward.function)[0].function != TASK
        extracted = {} if is_own else {"extracted_answer": experiment.extract_answer(text)}
        return {
            "step": step,
            "try": name,
            "problem_id": problem.id,
            "question": problem.question,
            "answer": problem.answer,
            "trace": problem.trace,
            "tokens": [experiment.tokenizer.piece(i) for i in tokens],
            "unmask_step": attempt.unmask_step[place].tolist(),
            "hint": attempt.hint[place].tolist(),
            "end": next((i for i, token in enumerate(tokens.tolist()) if token == experiment.model.eos_id), None),
            "reward": float(grades.rewards),
            "correct": bool(grades.correct),  # False if the outcome is not "ok"
            "outcome": "timeout" if grades.late else "error" if grades.broken else "ok",
            "text": text,
            **({"reward_parts": {part: float(value) for part, value in grades.parts.items()}} if grades.parts else {}),
            **extracted,
            "rescued": name == "hinted" and bool(grades.correct),
        }

    problem_ids, triggered, rows = sampled.groups.problem_id, sampled.triggered.tolist(), []
    for group in (triggered + [g for g in range(len(problem_ids)) if g not in triggered])[:ROLLOUTS_SHOWN]:
        rows.append(row(sampled.first, "first", group, group))
        if sampled.second is not None and group in triggered:
            rows.append(row(sampled.second, "hinted", group, triggered.index(group)))
    return rows
