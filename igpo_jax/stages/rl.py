"""The RL stage: rollout, scores, mu updates; again and again."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from igpo_jax.data.pipeline import batches, take_rows
from igpo_jax.diffusion.sampler import completion_keys
from igpo_jax.diffusion.sampler_error import PROBED, sampler_error
from igpo_jax.diffusion.unmasking import exact_sampler
from igpo_jax.model.sharding import Params
from igpo_jax.rl.hints import InpaintingConfig
from igpo_jax.rl.keys import KeyPurpose
from igpo_jax.rl.objective import compute_logprobs
from igpo_jax.rl.rollout import Rollout, RolloutConfig, key_of_batch, merge, mixed_groups, rollout, up_to_first_eos
from igpo_jax.rl.update import make_update
from igpo_jax.run.checkpoint import Checkpoints
from igpo_jax.run.experiment import Experiment
from igpo_jax.run.metrics import MetricsWriter, device_memory, is_logged, last_logged
from igpo_jax.runtime.mesh import batch_size_divisor, shard_batch, to_host
from igpo_jax.runtime.progress import progress
from igpo_jax.runtime.stopwatch import Stopwatch
from igpo_jax.stages.divergence import check_parameters, count_skipped, stop_diverged
from igpo_jax.stages.hint_state import (
    NO_SOLUTION,
    initial_hint_ratio_center,
    next_hint_ratio_center,
    update_solution_bank,
    with_own_solutions,
)
from igpo_jax.tasks import load_task
from igpo_jax.training.policy import cast_params, policy_params, sampling_params
from igpo_jax.training.state import abstract_state, create_state, is_skipped, make_optimizer

ROLLOUTS_SHOWN = 2  # groups whose completions are kept for the report, each time


def run_rl(
    experiment: Experiment,
    base_params: Params | None,
    start: Params | None,
    checkpoints: Checkpoints,
    preempted: Callable[[], bool],
) -> Params:
    """Trains from the newest checkpoint, or from `start`, to the end of the stage; returns what was trained.

    Args:
        base_params: what adapters belong to, None without adapters.
        start: all parameters or adapters, where the stage starts and the policy that the KL term holds on to; None: adapters
            that change nothing yet. It is given up: where all parameters are trained in float32 and computed in bfloat16,
            only a bfloat16 copy is kept.
        preempted: asked between updates and rollouts, and between the slices of a rollout and the batches of an
            evaluation.

    Raises:
        Terminated: it said yes; a checkpoint has been saved.
        Diverged: `skip_limit` updates in a row were not finite, or a parameter is not.
    """
    config, model, mesh, key = experiment.config, experiment.model, experiment.mesh, experiment.key(2)
    hints = config.inpainting
    rl, objective, lora, first_step = config.rl, config.objective, config.lora, config.sft.updates
    if lora:
        reference = base_params if start is None else policy_params(start, base_params, lora)
    else:
        reference = cast_params(start, model, mesh)
    optimizer = make_optimizer(config.rl.optimizer, rl.iterations * objective.inner_steps, model, lora)
    own_hints = hints.enabled and hints.source == "own"
    solution_bank = np.full_like(experiment.rl_data.prompts.trace, NO_SOLUTION) if own_hints else None
    restored = checkpoints.restore_latest(abstract_state(optimizer, model, mesh, lora), key, solution_bank)
    if restored:
        done, state, key, solution_bank, _ = restored
    else:
        first = experiment.initial_adapters() if start is None else start
        done, state = 0, create_state(first, optimizer, model, mesh, lora)
        del first
    if not lora and reference is not start:
        jax.tree.map(lambda x: x.delete(), start)

    order = batches(experiment.rl_data.prompts, rl.prompts, config.seed, config.data.prompt_buckets)
    update = make_update(optimizer, model, objective, mesh, rl.microbatches, lora)
    exact, fast = exact_sampler(config.sampler), config.sampler
    cfg = RolloutConfig(
        model,
        fast,
        hints,
        rl.group_size,
        rl.prompts // rl.rollout_chunks,
        config.data.prompt_buckets,
        objective.normalize_advantages,
        objective.reference_code,
    )

    def acting() -> Params:
        return sampling_params(state.params, base_params, model, mesh, lora)

    def check_preemption() -> None:
        """What is under way, which may have taken minutes, is made again."""
        if preempted():
            check_parameters(state.params, step_of(done), checkpoints)
            checkpoints.save_and_stop(done, state, key, solution_bank)

    def sampled_batches(policy: Params, iteration_key: jax.Array) -> list[Rollout]:
        """An iteration's batches of prompts: one, or as many as it takes, see `RLConfig.dynamic_batches`."""
        parts: list[Rollout] = []
        while len(parts) < rl.dynamic_batches and (not parts or mixed_groups(parts).sum() < rl.prompts):
            prompts = order[done * rl.dynamic_batches + len(parts)]
            if own_hints:
                prompts = with_own_solutions(experiment, prompts, solution_bank)
            batch_key = key_of_batch(iteration_key, len(parts))
            parts.append(rollout(policy, prompts, experiment.grade, batch_key, cfg, mesh, check_preemption))
        return parts

    def probe(policy: Params, iteration_key: jax.Array) -> dict[str, float]:
        """The cached sampler's error on a few of the rollout's prompts."""
        number = -(-PROBED // batch_size_divisor(mesh)) * batch_size_divisor(mesh)
        prompts = take_rows(order[done * rl.dynamic_batches], np.arange(number) % rl.prompts)
        canvas = np.full((number, fast.completion_length), model.mask_id, np.int32)
        keys = completion_keys(iteration_key, prompts.problem_id, np.arange(number, dtype=np.uint32), KeyPurpose.PROBE)
        error = sampler_error(policy, *shard_batch((prompts.tokens, prompts.prompt_mask, canvas), mesh), keys, model, fast)
        return {f"sampler/{name}": float(np.float32(error[name])) for name in ("kl", "changed")}

    def step_of(iteration: int) -> int:
        return first_step + iteration * objective.inner_steps

    def evaluate(log: MetricsWriter) -> float:
        watch = Stopwatch()
        with watch.measure("time/total"):
            correct = experiment.verdicts(acting(), check_preemption)
        accuracy = float(correct.mean(dtype=np.float64))
        metrics = {"eval/accuracy": accuracy, "eval/problems": len(correct)} | watch.seconds
        log.write_evaluation(step_of(done), "rl", correct, metrics)
        return accuracy

    def evaluation_is_due() -> bool:
        return done in (0, rl.iterations) or (rl.eval_every > 0 and done % rl.eval_every == 0)

    log = MetricsWriter(experiment.workdir, step_of(done), starting=None if done else "rl")
    with log, progress(rl.iterations, done, "RL") as bar:
        # A run may have been stopped amid an evaluation.
        evaluated = is_logged(experiment.workdir, step_of(done), "rl", "eval/accuracy")
        consecutive_skips = int(last_logged(experiment.workdir, "rl", "update/consecutive_skips") or 0)
        error = last_logged(experiment.workdir, "rl", "sampler/kl") if done else None
        if hints.enabled and hints.curriculum:
            hint_ratio_center = last_logged(experiment.workdir, "rl", "hint/ratio_center") if done else None
            cfg = dataclasses.replace(cfg, hint_ratio_center=initial_hint_ratio_center(hints) if hint_ratio_center is None else hint_ratio_center)
        while True:
            accuracy = None
            if evaluation_is_due() and not evaluated:
                accuracy = evaluate(log)
            regular = done in (0, rl.iterations) or done % rl.checkpoint_every == 0
            if accuracy is not None or (regular and done not in checkpoints.steps()):
                check_parameters(state.params, step_of(done), checkpoints)
                checkpoints.save(done, state, key, solution_bank, accuracy=accuracy)
            if done == rl.iterations:
                break
            check_preemption()
            watch = Stopwatch()
            with watch.measure("time/total"):
                iteration_key = jax.random.fold_in(key, done)
                policy, probed = acting(), {}
                if fast.cache != "none" and rl.probe_every and done % rl.probe_every == 0:
                    with watch.measure("time/probe"):
                        probed = probe(policy, iteration_key)
                    error = probed["sampler/kl"]
                if fast.cache != "none":
                    too_far = error is not None and 0 < rl.probe_limit < error
                    probed["sampler/exact"] = too_far
                    cfg = dataclasses.replace(cfg, decode=exact if too_far else fast)
                parts = sampled_batches(policy, iteration_key)
                sampled = merge(parts, mesh, cfg)
                with watch.measure("time/score"):
                    logprobs = compute_logprobs(
                        policy, reference, sampled.groups, iteration_key, model, objective, mesh, rl.microbatches
                    )
                    seen = (logprobs.views.weight > 0).any(axis=2)
                    entropy = float(jnp.mean(logprobs.entropy, where=sampled.groups.loss_mask & seen))
                del policy  # updates need its memory
                with watch.measure("time/update"):
                    statistics = []
                    for inner_step in range(objective.inner_steps):
                        state, of_step = update(state, sampled.groups, logprobs, np.int32(inner_step), base_params)
                        statistics.append(of_step)
                    statistics = to_host(statistics)
            done, evaluated = done + 1, False
            if own_hints:
                solution_bank = _updated_solution_bank(solution_bank, parts, experiment)
            moved = {}
            if cfg.hint_ratio_center is not None:
                hint_ratio_center = _next_hint_ratio_center(cfg.hint_ratio_center, parts, hints)
                cfg, moved = dataclasses.replace(cfg, hint_ratio_center=hint_ratio_center), {"hint/ratio_center": hint_ratio_center}

            finite_gradients = [of_step.pop("finite_gradients") for of_step in statistics]
            skipped = np.array([is_skipped(of_step["policy/loss"], of_step["policy/grad_norm"]) for of_step in statistics])
            consecutive_skips = count_skipped(skipped, consecutive_skips)
            used = [of_step for of_step, left_out in zip(statistics, skipped, strict=True) if not left_out]
            metrics = sampled.metrics | probed | moved | _means(used or statistics) | watch.seconds
            metrics |= device_memory() | {"policy/entropy": entropy}
            metrics |= {"update/skipped": skipped.sum(), "update/consecutive_skips": consecutive_skips}
            metrics["speed/tokens_per_second"] = sum(map(_sampled_tokens, parts)) / metrics["time/rollout"]
            log.write(step_of(done), "rl", metrics)
            log.write_histograms(step_of(done), _distributions(sampled, model.eos_id))
            if consecutive_skips >= config.skip_limit:
                last = {"loss": statistics[-1]["policy/loss"], "grad_norm": statistics[-1]["policy/grad_norm"]}
                last["finite_gradients"] = finite_gradients[-1]
                batch = {"groups": sampled.groups, "old": logprobs.old, "reference": logprobs.reference}
                stop_diverged(step_of(done), "rl", consecutive_skips, last, state, batch, checkpoints)
            if done == rl.iterations or (done - 1) % rl.show_every == 0:
                log.write_rollouts(_shown(experiment, sampled, step_of(done)))
            bar.update(1)
            bar.set_postfix(
                reward=f"{metrics['reward/first_try']:.2f}", all_wrong=f"{metrics['groups/all_wrong_before']:.2f}"
            )
    checkpoints.wait()
    return state.params


def _means(statistics: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """Over inner updates of one rollout."""
    return {name: float(np.mean([of_step[name] for of_step in statistics])) for name in statistics[0]}


def _updated_solution_bank(solution_bank: np.ndarray, parts: list[Rollout], experiment: Experiment) -> np.ndarray:
    """The memory of own solutions after an iteration."""
    for part in parts:
        rows = experiment.rl_data.rows_of(to_host(part.groups.problem_id))
        solution_bank = update_solution_bank(solution_bank, rows, part.first.tokens, part.first.grades.correct, experiment.model.eos_id)
    return solution_bank


def _next_hint_ratio_center(hint_ratio_center: float, parts: list[Rollout], hints: InpaintingConfig) -> float:
    """The centre of hint ratios after an iteration, which moves where there was a second try."""
    correct = [part.second.grades.correct for part in parts if part.second is not None]
    return next_hint_ratio_center(hint_ratio_center, float(np.concatenate(correct).mean()), hints) if correct else hint_ratio_center


def _sampled_tokens(sampled: Rollout) -> int:
    return sampled.first.tokens.size + (0 if sampled.second is None else sampled.second.tokens.size)


def _distributions(sampled: Rollout, eos_id: int) -> dict[str, np.ndarray]:
    """For TensorBoard's histograms, [n, g] each: first tries, and the advantages of what is trained on."""
    return {
        "rollout/rewards": sampled.first.grades.rewards,
        "rollout/lengths": up_to_first_eos(sampled.first.tokens, eos_id).sum(axis=-1),
        "rollout/advantages": to_host(sampled.groups.advantages),
    }


def _shown(experiment: Experiment, sampled: Rollout, step: int) -> list[dict]:
    """Rows for rollouts.jsonl: of a few groups, a first try and the most rewarded hinted one."""
    by_id = experiment.rl_data.by_id
    tokenizer = experiment.tokenizer
    config = experiment.config
    task = load_task(config.task.name)
    options = {name: config.task[name] for name in task.REWARD_OPTIONS}

    def row(attempt, name: str, group: int, position: int, completion: int, rescued: bool) -> dict:
        problem = by_id[int(problem_ids[group])]
        tokens = attempt.tokens[position, completion]
        text = experiment.graded_text(tokens)
        grades = {field: values[position, completion] for field, values in vars(attempt.grades).items()}
        # What a reward function of one's own reads is not known.
        extracted = {} if config.reward.function else {"extracted_answer": task.extract_answer(text, **options)}
        return {
            "step": step,
            "try": name,
            "problem_id": problem.id,
            "question": problem.question,
            "answer": problem.answer,
            "trace": problem.trace,
            "tokens": [tokenizer.piece(i) for i in tokens],
            "unmask_step": attempt.unmask_step[position, completion].tolist(),
            "hint": attempt.hint[position, completion].tolist(),
            "end": next((i for i, token in enumerate(tokens.tolist()) if token == experiment.model.eos_id), None),
            "reward": float(grades["rewards"]),
            "correct": bool(grades["correct"]),
            "outcome": "timeout" if grades["late"] else "error" if grades["broken"] else "ok",
            "text": text,
            **extracted,
            "rescued": rescued,
        }

    problem_ids = to_host(sampled.groups.problem_id)
    rows = []
    triggered = sampled.triggered.tolist()
    for group in (triggered + [g for g in range(len(problem_ids)) if g not in triggered])[:ROLLOUTS_SHOWN]:
        rows.append(row(sampled.first, "first", group, group, int(sampled.first.grades.rewards[group].argmax()), False))
        if sampled.second is not None and group in triggered:
            position = triggered.index(group)
            best = int(sampled.second.grades.rewards[position].argmax())
            rescued = bool(sampled.second.grades.correct[position, best])
            rows.append(row(sampled.second, "hinted", group, position, best, rescued))
    return rows
