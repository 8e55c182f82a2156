"""One rollout: groups of completions, their rewards, the second try with hints, the batch that is trained on.

    prompts -> first try -> rewards -> all-wrong groups -> hints -> second try -> rewards -> swap -> GroupBatch

An iteration may take several batches of prompts for its groups, see `merge`.
(paper Algorithm 1; igpo_method.md 3). The sampler runs on the mesh; what depends on the outcome is decided on the
host, from arrays that every process has in full, so all processes take the same branch.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence

import flax
import jax
import numpy as np
from jax.sharding import Mesh

from igpo_jax.data.pipeline import PromptBatch, cut_to_bucket, take_rows
from igpo_jax.diffusion.sampler import completion_keys, sample
from igpo_jax.diffusion.unmasking import DecodeConfig
from igpo_jax.model.sharding import Params
from igpo_jax.model.transformer import ModelConfig
from igpo_jax.rl.hints import InpaintingConfig, inpaint, max_replaced, ratio_range
from igpo_jax.rl.likelihood import GroupBatch
from igpo_jax.rl.objective import advantages
from igpo_jax.runtime.mesh import batch_size_divisor, shard_batch, to_host
from igpo_jax.runtime.stopwatch import Stopwatch
from igpo_jax.tasks.reward_pool import Grades

# Each purpose folds its own number into the iteration's key; likelihood.py has one more, 4.
FIRST_TRY, SECOND_TRY, HINTS, REPLACEMENTS, PROBE, MORE_PROMPTS = 0, 1, 2, 3, 5, 6


@flax.struct.dataclass
class InitialCanvas:
    """Where G completions of each problem start, host arrays: canvas int32 [n, g, l], MASK or a hint token; hint bool
    [n, g, l]; ratio float32 [n, g], the share of the solution asked for (0 without hints)."""

    canvas: np.ndarray
    hint: np.ndarray
    ratio: np.ndarray


# (problem ids uint32 [n], completions int32 [n, g, l]) -> a function that waits for the grades, which are under way
Grade = Callable[[np.ndarray, np.ndarray], Callable[[], Grades]]


@flax.struct.dataclass
class Attempt:
    """G completions of each problem, host arrays. tokens, unmask_step int32 [n, g, l]; hint and ratio as of `InitialCanvas`; grades
    [n, g]."""

    tokens: np.ndarray
    unmask_step: np.ndarray
    hint: np.ndarray
    grades: Grades
    ratio: np.ndarray


@dataclasses.dataclass(frozen=True)
class Rollout:
    """groups: what the updates see. first: every group's first try. second: the triggered groups' second try, rows in
    the order of `triggered`, or None. replaced: bool [n, g], completions swapped in. final: the first try with those in it.
    work: what sampling took, see `_sample`; seconds: by name. metrics: for the log."""

    groups: GroupBatch
    first: Attempt
    second: Attempt | None
    triggered: np.ndarray
    replaced: np.ndarray
    final: Attempt
    work: Counter
    seconds: Counter
    metrics: dict[str, float]


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    model: ModelConfig
    decode: DecodeConfig
    inpainting: InpaintingConfig
    group_size: int
    prompts_at_once: int  # slices of so many prompts are sampled one after the other, the shortest prompts first
    prompt_buckets: tuple[int, ...]  # a slice is padded to the smallest that holds it
    normalize_advantages: bool
    after_eos: bool = False  # tokens after the first EOS count
    hint_ratio_center: float | None = None  # of the hint ratios, see `ratio_range`


def rollout(
    params: Params,
    prompts: PromptBatch,
    grade: Grade,
    key: jax.Array,
    cfg: RolloutConfig,
    mesh: Mesh,
    check_preemption: Callable[[], None] = lambda: None,
) -> Rollout:
    """One rollout of `prompts` under `params`.

    Args:
        prompts: host arrays, the same on every process; n a multiple of data * fsdp and of cfg.prompts_at_once. With hints
            from own completions those are its traces, and there is no second try where there is nothing to show.
        grade: of completions.
        key: of the iteration; all randomness follows from it, the problem and the completion's index.
        check_preemption: called after every slice, on all processes; may raise.
    """
    clock, work = Stopwatch(), Counter()
    first = _sample_attempt(params, prompts, _blank(prompts, cfg), grade, key, FIRST_TRY, cfg, mesh, check_preemption, clock, work)
    no_hint_available = (prompts.trace_length == 0) & (cfg.inpainting.source == "own")
    triggered = np.flatnonzero(~first.grades.correct.any(axis=1) & ~no_hint_available)
    second, replaced = None, np.zeros(first.grades.correct.shape, bool)
    final = first
    if cfg.inpainting.enabled and triggered.size:
        padded = _pad_rows(triggered, cfg.prompts_at_once, cfg.group_size, batch_size_divisor(mesh))
        hints = _blank(prompts, cfg) if cfg.inpainting.policy == "none" else _hinted(prompts, key, cfg)
        chosen, start = take_rows((prompts, hints), padded)
        again = _sample_attempt(params, chosen, start, grade, key, SECOND_TRY, cfg, mesh, check_preemption, clock, work)
        second = take_rows(again, np.arange(len(triggered)))
        source = choose_replacements(second.grades.correct, prompts.problem_id[triggered], key, cfg)
        final, replaced = swap(first, second, triggered, source, cfg.inpainting.by_completion)

    groups = GroupBatch(
        prompt=prompts.tokens,
        prompt_mask=prompts.prompt_mask,
        problem_id=prompts.problem_id,
        completions=final.tokens,
        unmask_step=final.unmask_step,
        loss_mask=np.ones(final.tokens.shape, bool) if cfg.after_eos else up_to_first_eos(final.tokens, cfg.model.eos_id),
        advantages=np.asarray(advantages(final.grades.rewards, cfg.normalize_advantages)),
    )
    seconds = Counter(clock.seconds)
    metrics = _metrics(first, second, final, replaced, work, seconds, cfg.model.eos_id)
    return Rollout(shard_batch(groups, mesh), first, second, triggered, replaced, final, work, seconds, metrics)


def key_of_batch(key: jax.Array, number: int) -> jax.Array:
    """For the rollout of an iteration's batch `number`; the first has the iteration's own key."""
    return jax.random.fold_in(jax.random.fold_in(key, MORE_PROMPTS), number) if number else key


def mixed_groups(parts: Sequence[Rollout]) -> np.ndarray:
    """Which groups of an iteration's batches are neither all correct nor all wrong, bool [batches, n]."""
    correct = np.stack([part.final.grades.correct for part in parts])
    return correct.any(axis=2) & ~correct.all(axis=2)


def chosen_groups(mixed: np.ndarray) -> np.ndarray:
    """As many groups as a batch has, of all batches: the mixed ones from the beginning, and where they are too few, others
    of the last batch.

    Args:
        mixed: bool [batches, n].

    Returns:
        int [n], ascending, places in the batches one after the other.
    """
    batches, n = mixed.shape
    taken = np.flatnonzero(mixed)[:n]
    others = (batches - 1) * n + np.flatnonzero(~mixed[-1])
    return np.sort(np.concatenate([taken, others[: n - len(taken)]]))


def merge(parts: Sequence[Rollout], mesh: Mesh, cfg: RolloutConfig) -> Rollout:
    """One rollout of the groups that `chosen_groups` takes of an iteration's batches; its metrics are of all that was
    sampled (DAPO's dynamic sampling, arXiv 2503.14476)."""
    if len(parts) == 1:
        return parts[0]
    n, second = len(parts[0].replaced), [part.second for part in parts if part.second is not None]
    first, final, replaced = (_joined([getattr(part, name) for part in parts]) for name in ("first", "final", "replaced"))
    second = _joined(second) if second else None
    work, seconds = (sum((getattr(part, name) for part in parts), Counter()) for name in ("work", "seconds"))
    metrics = _metrics(first, second, final, replaced, work, seconds, cfg.model.eos_id)

    chosen = chosen_groups(mixed_groups(parts))
    width = max(part.groups.prompt.shape[1] for part in parts)
    groups = take_rows(_joined([_widened(to_host(part.groups), width) for part in parts]), chosen)
    tried = np.concatenate([number * n + part.triggered for number, part in enumerate(parts)])
    kept = np.flatnonzero(np.isin(tried, chosen))
    second = take_rows(second, kept) if len(kept) else None
    first, final, replaced = take_rows((first, final, replaced), chosen)
    triggered = np.searchsorted(chosen, tried[kept])
    return Rollout(shard_batch(groups, mesh), first, second, triggered, replaced, final, work, seconds, metrics)


def _joined(parts: list):
    return jax.tree.map(lambda *of_parts: np.concatenate(of_parts), *parts)


def _widened(groups: GroupBatch, width: int) -> GroupBatch:
    """With prompts that are padded to `width`, on the left."""
    padding = ((0, 0), (width - groups.prompt.shape[1], 0))
    return groups.replace(prompt=np.pad(groups.prompt, padding), prompt_mask=np.pad(groups.prompt_mask, padding))


def _blank(prompts: PromptBatch, cfg: RolloutConfig) -> InitialCanvas:
    shape = len(prompts.tokens), cfg.group_size, cfg.decode.completion_length
    return InitialCanvas(np.full(shape, cfg.model.mask_id, np.int32), np.zeros(shape, bool), np.zeros(shape[:2], np.float32))


def _hinted(prompts: PromptBatch, key: jax.Array, cfg: RolloutConfig) -> InitialCanvas:
    """Of all prompts, whichever need them: so there is one program, and hints are cheap."""
    canvas = _blank(prompts, cfg).canvas
    solution = prompts.trace, prompts.trace_length, prompts.hintable
    flat = canvas.reshape(-1, canvas.shape[-1])
    hints_key, ratios = jax.random.fold_in(key, HINTS), ratio_range(cfg.hint_ratio_center, cfg.inpainting)
    drawn = inpaint(hints_key, prompts.problem_id, flat, *solution, cfg.group_size, cfg.inpainting, ratios)
    return InitialCanvas(*(x.reshape(*canvas.shape[:2], *x.shape[1:]) for x in to_host(drawn)))


def _sample_attempt(
    params: Params,
    prompts: PromptBatch,
    start: InitialCanvas,
    grade: Grade,
    key: jax.Array,
    attempt: int,
    cfg: RolloutConfig,
    mesh: Mesh,
    check_preemption: Callable[[], None],
    clock: Stopwatch,
    work: Counter,
) -> Attempt:
    """G completions of each prompt. What is sampled is graded while the next slice is sampled."""
    done, grading, order = [], [], np.argsort(prompts.prompt_mask.sum(axis=1), kind="stable")
    for begin in range(0, len(order), cfg.prompts_at_once):
        part, canvas = take_rows((prompts, start.canvas), order[begin : begin + cfg.prompts_at_once])
        with clock.measure("time/rollout"):
            done.append(_sample(params, cut_to_bucket(part, cfg.prompt_buckets), canvas, key, attempt, cfg, mesh, work))
        grading.append(grade(part.problem_id, done[-1][0]))
        check_preemption()
    with clock.measure("time/reward"):
        grades = _joined([finish() for finish in grading])
    tokens, unmask_step, grades = take_rows((*map(np.concatenate, zip(*done, strict=True)), grades), np.argsort(order))
    return Attempt(tokens, unmask_step, start.hint, grades, start.ratio)


def _sample(
    params: Params,
    prompts: PromptBatch,
    canvas: np.ndarray,
    key: jax.Array,
    attempt: int,
    cfg: RolloutConfig,
    mesh: Mesh,
    work: Counter,
) -> tuple[np.ndarray, np.ndarray]:
    """tokens and unmask_step of one slice, as of `Attempt`. work: counts completions, and their network evaluations and FLOPs."""
    n, g, _ = canvas.shape
    problem, completion = np.repeat(prompts.problem_id, g), np.tile(np.arange(g, dtype=np.uint32), n)
    rows = np.repeat(prompts.tokens, g, axis=0), np.repeat(prompts.prompt_mask, g, axis=0), canvas.reshape(n * g, -1)
    keys = completion_keys(key, problem, completion, attempt)
    done = sample(params, *shard_batch(rows, mesh), keys, cfg.model, cfg.decode)
    work.update(completions=n * g, evaluations=done.rows_evaluated, flops=done.flops)
    tokens, unmask_step = to_host((done.tokens, done.unmask_step))
    return tokens.reshape(canvas.shape), unmask_step.reshape(canvas.shape)


def choose_replacements(
    correct: np.ndarray, problem_id: np.ndarray, key: jax.Array, cfg: RolloutConfig
) -> list[np.ndarray]:
    """For each triggered group, which completions of the second try are swapped in: a random subset of the correct
    ones, at most floor(lambda * G)."""
    most = max_replaced(cfg.inpainting, cfg.group_size)
    seed = np.asarray(jax.random.key_data(jax.random.fold_in(key, REPLACEMENTS))).tolist()
    draws = [np.random.default_rng([*seed, problem]) for problem in problem_id]
    return [np.sort(draw.permutation(np.flatnonzero(row))[:most]) for draw, row in zip(draws, correct, strict=True)]


def swap(
    first: Attempt, second: Attempt, triggered: np.ndarray, source: list[np.ndarray], from_front: bool = False
) -> tuple[Attempt, np.ndarray]:
    """Overwrites the last (or first) completions of each triggered group (all of them are wrong) with those in `source`."""
    final = jax.tree.map(np.copy, first)
    replaced = np.zeros(first.grades.correct.shape, bool)
    for row, (group, chosen) in enumerate(zip(triggered, source, strict=True)):
        if chosen.size:
            places = slice(len(chosen)) if from_front else slice(-len(chosen), None)
            replaced[group, places] = True
            for values, better in zip(jax.tree.leaves(final), jax.tree.leaves(second), strict=True):
                values[group, places] = better[row, chosen]
    return final, replaced


def up_to_first_eos(tokens: np.ndarray, eos_id: int) -> np.ndarray:
    """bool, same shape: True up to and including the first EOS of each row; everywhere if there is none."""
    ended = np.cumsum(tokens == eos_id, axis=-1)
    return (ended == 0) | ((ended == 1) & (tokens == eos_id))


def _pad_rows(groups: np.ndarray, most: int, group_size: int, divisor: int) -> np.ndarray:
    """Repeats the first group until the number is a multiple of `most`, the groups of a slice, plus none, a quarter or a
    half of it where that is enough and divides over the devices: a few sizes for which the sampler is compiled."""
    sizes = [most // part for part in (4, 2, 1) if most % part == 0 and most // part * group_size % divisor == 0]
    whole, rest = divmod(len(groups), most)
    size = whole * most + (next(size for size in sizes if size >= rest) if rest else 0)
    return np.concatenate([groups, np.repeat(groups[:1], size - len(groups))])


def distinct_share(tokens: np.ndarray, eos_id: int) -> float:
    """Mean over groups, int32 [n, g, l], of the share of distinct completions, up to their first EOS."""
    ended = np.where(up_to_first_eos(tokens, eos_id), tokens, eos_id)
    return float(np.mean([len({row.tobytes() for row in group}) / len(group) for group in ended]))


def _metrics(
    first: Attempt, second: Attempt | None, final: Attempt, replaced: np.ndarray, work: Counter, seconds: Counter, eos_id: int
) -> dict[str, float]:
    def share(condition):
        return float(np.mean(condition))

    tries = [first, *([] if second is None else [second])]
    metrics = {
        "reward/first_try": share(first.grades.rewards),
        "reward/final": share(final.grades.rewards),
        "correct/first_try": share(first.grades.correct),
        "correct/final": share(final.grades.correct),
        "groups/all_wrong_before": share(~first.grades.correct.any(axis=1)),
        "groups/all_wrong_after": share(~final.grades.correct.any(axis=1)),
        "groups/all_correct": share(first.grades.correct.all(axis=1)),
        "groups/distinct": distinct_share(first.tokens, eos_id),
        "hint/replaced": float(replaced.sum(axis=1).mean()),
        "grading/late": float(sum(of.grades.late.sum() for of in tries)),
        "grading/broken": float(sum(of.grades.broken.sum() for of in tries)),
    }
    if second is not None:
        metrics |= {
            "hint/rescue_rate": share(second.grades.correct.any(axis=1)),
            "hint/ratio": share(second.ratio),
            "hint/tokens": float(second.hint.sum(axis=-1).mean()),
        }
    metrics |= {f"sampler/{name}": work[name] / work["completions"] for name in ("evaluations", "flops")}
    return metrics | {"sampler/rows": work["evaluations"], "sampler/prompts": len(first.tokens)} | seconds
