"""Rollout: samples and grades the completions for the updates of one iteration (paper Algorithm 1; docs/method.md section 7).

    first attempt -> grades -> all-wrong groups: hints -> second attempt -> grades -> swap -> GroupBatch

Sampling runs on the mesh. Decisions that depend on the samples are made on the host. Every process has the complete arrays, so
all processes make the same decisions."""

import dataclasses
import math
from collections.abc import Callable, Collection, Sequence

import flax
import jax
import numpy as np
from jax.sharding import Mesh

from igpo_jax.data.pipeline import PromptBatch, take_rows
from igpo_jax.diffusion.batches import Batching, Requests, complete
from igpo_jax.diffusion.sampler import HINT
from igpo_jax.diffusion.unmasking import DecodeConfig
from igpo_jax.model.sharding import Params
from igpo_jax.model.transformer import ModelConfig
from igpo_jax.rl.hints import InpaintingConfig, inpaint, max_replaced, ratio_range
from igpo_jax.rl.keys import KeyPurpose
from igpo_jax.rl.likelihood import GroupBatch
from igpo_jax.rl.objective import advantages
from igpo_jax.runtime.mesh import batch_size_divisor, to_host
from igpo_jax.runtime.stopwatch import Stopwatch
from igpo_jax.tasks.grades import Grades

# Starts grading completions, int32 [n, g, l], of problems, uint32 [n]. Returns a function that waits for the grades. It is not
# a Future, because the wait runs a collective over hosts, and the main thread must run all collectives in a fixed order.
Grade = Callable[[np.ndarray, np.ndarray], Callable[[], Grades]]


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """Configuration of rollouts."""

    model: ModelConfig
    decode: DecodeConfig
    inpainting: InpaintingConfig
    group_size: int
    prompts_at_once: int  # prompts of a rollout chunk; chunks are sampled one after the other, the shortest prompts first
    prompt_buckets: tuple[int, ...]  # prompts of a chunk are padded to the smallest of these lengths that holds them
    normalize_advantages: bool
    after_eos: bool = False  # tokens after the first EOS are trained on
    hint_ratio_center: float | None = None  # see `ratio_range`


@dataclasses.dataclass(frozen=True)
class RolloutContext:
    """Inputs shared by the first and the second attempt of a rollout."""

    params: Params
    grade: Grade
    key: jax.Array
    cfg: RolloutConfig
    mesh: Mesh
    check_preemption: Callable[[], None]


@flax.struct.dataclass
class InitialCanvas:
    """Initial canvases for G completions of each problem. Each canvas position is MASK or a hint token."""

    canvas: np.ndarray  # i32[n, g, l], MASK or a hint token
    ratio: np.ndarray  # f32[n, g], requested share of the solution; 0 without hints


@flax.struct.dataclass
class Attempt:
    """One attempt at a batch of problems: G completions for each problem, on the host. If `inpainting.tries` is set, a
    second attempt can end before all of them are sampled. `Grades.sampled` is a mask of the sampled ones."""

    tokens: np.ndarray  # i32[n, g, l]
    unmask_step: np.ndarray  # i32[n, g, l], `HINT` for hints
    grades: Grades  # [n, g]
    ratio: np.ndarray  # f32[n, g], see `InitialCanvas`

    @property
    def hint(self) -> np.ndarray:
        """Mask of hint tokens, bool [n, g, l], for n problems with g completions of length l."""
        return self.unmask_step == HINT


@dataclasses.dataclass(frozen=True)
class SampleStats:
    """Cost of sampling: numbers of completions and network evaluations, FLOPs and wall time."""

    completions: int = 0
    evaluations: int = 0  # network evaluations, summed over completions
    second_evaluations: int = 0  # the part of `evaluations` that second attempts cost
    flops: int = 0
    sampling_seconds: float = 0.0
    grading_seconds: float = 0.0  # time spent waiting for grades after sampling

    def __add__(self, other: "SampleStats") -> "SampleStats":
        return SampleStats(*map(sum, zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


@dataclasses.dataclass(frozen=True)
class Rollout:
    """Result of a rollout: the groups of completions for the updates, the attempts that produced them, and metrics."""

    groups: GroupBatch  # the input of the updates, on the host until `split_by_length`
    first: Attempt
    second: Attempt | None  # rows in the order of `triggered`; None if no group had a second attempt
    triggered: np.ndarray  # int[t], indices of the groups with only wrong first attempts that may get a second attempt
    replaced: np.ndarray  # bool[n, g], True for completions of `final` from the second attempt
    final: Attempt  # `first`, with some completions replaced by those of `second`
    stats: SampleStats
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)  # over all sampled groups, see `rollout_metrics`


def rollout(
    params: Params,
    prompts: PromptBatch,
    grade: Grade,
    key: jax.Array,
    cfg: RolloutConfig,
    mesh: Mesh,
    check_preemption: Callable[[], None] = lambda: None,
) -> Rollout:
    """Samples and grades a group of completions for each prompt. If all completions of a group are wrong, the group gets a
    second attempt: it is sampled again with hints, which are pieces of the reference solution (the trace). Correct completions
    of the second attempt then replace some of the wrong ones. A completion that could not be graded has no verdict, and does
    not count as wrong. Its advantage is 0, and none of its tokens are in the loss mask.

    Args:
        prompts: host arrays that are equal on every process. The number of prompts must be a multiple of cfg.prompts_at_once
            and of the product of the mesh sizes data and fsdp. With inpainting.source="own", the traces are earlier correct
            completions of this policy, and a problem without such a completion gets no second attempt.
        mesh: mesh of `params`. The function must run under `jax.set_mesh(mesh)`.
        key: PRNG key of the iteration's batch. Random draws depend only on the key, the problem and the completion's index.
        check_preemption: function that may raise an exception. All processes call it after every chunk of prompts."""
    context = RolloutContext(params, grade, key, cfg, mesh, check_preemption)
    first, stats = _sample_attempt(context, prompts, _blank_canvas(prompts, cfg), KeyPurpose.FIRST_ATTEMPT)
    no_hint_available = (prompts.trace_length == 0) & (cfg.inpainting.source == "own")
    triggered = np.flatnonzero(first.grades.all_wrong & ~no_hint_available)

    second, final, replaced = None, first, np.zeros(first.grades.correct.shape, bool)
    if cfg.inpainting.enabled and triggered.size:
        second, second_stats = _second_attempt(context, prompts, triggered, first.grades.parts)
        stats += second_stats
        source = choose_replacements(second.grades.correct, prompts.problem_id[triggered], key, cfg)
        final, replaced = swap(first, second, triggered, source, cfg.inpainting.by_completion)

    graded = final.grades.graded
    until_end = np.ones(final.tokens.shape, bool) if cfg.after_eos else up_to_first_eos(final.tokens, cfg.model.eos_id)
    groups = GroupBatch(
        prompt=prompts.tokens,
        prompt_mask=prompts.prompt_mask,
        problem_id=prompts.problem_id,
        completions=final.tokens,
        unmask_step=final.unmask_step,
        loss_mask=until_end & graded[..., None],
        advantages=advantages(final.grades.rewards, graded, cfg.normalize_advantages),
    )
    sampled = Rollout(groups, first, second, triggered, replaced, final, stats)
    return dataclasses.replace(sampled, metrics=rollout_metrics(sampled, cfg.model.eos_id))


def _second_attempt(
    context: RolloutContext, prompts: PromptBatch, triggered: np.ndarray, functions: Collection[str]
) -> tuple[Attempt, SampleStats]:
    """Samples and grades new completions for the groups `triggered`, whose first completions are all wrong. The sampler starts
    from canvases with hints, or from blank canvases if inpainting.policy="none". It works in rounds. A round samples
    `inpainting.tries` completions of each group, or all G completions if `tries` is 0. The next round continues only with the
    groups that have at least one correct completion, but fewer than can be swapped in (see `max_replaced`). Groups without a
    correct completion are given up, because further completions of these groups are rarely correct. `tries` affects only the
    number of completions that are sampled, not the completions themselves. `functions` are the names of the reward functions
    whose values `Grades.parts` contains."""
    cfg, g = context.cfg, context.cfg.group_size
    tries, enough = cfg.inpainting.tries or g, max(1, max_replaced(cfg.inpainting, g))
    # Hints are drawn for every prompt, not only for triggered groups. This is cheap, and array shapes never change.
    hints = _blank_canvas(prompts, cfg) if cfg.inpainting.policy == "none" else _hinted_canvas(prompts, context.key, cfg)
    attempt, stats = _not_sampled(take_rows(hints, triggered), functions), SampleStats()
    unfinished, groups_at_once = np.arange(len(triggered)), cfg.prompts_at_once * g // tries
    for begin in range(0, g, tries):
        parts = (4, 2, 1) if tries == g else (8, 4, 2, 1)  # later tries are for few groups
        padded = _pad_rows(triggered[unfinished], groups_at_once, tries, batch_size_divisor(context.mesh), parts)
        chosen, start = take_rows((prompts, hints), padded)
        start = jax.tree.map(lambda x: x[:, begin : begin + tries], start)
        part, part_stats = _sample_attempt(context, chosen, start, KeyPurpose.SECOND_ATTEMPT, begin)
        stats += part_stats
        for values, new in zip(jax.tree.leaves(attempt), jax.tree.leaves(part), strict=True):
            values[unfinished, begin : begin + tries] = new[: len(unfinished)]
        right = attempt.grades.correct[unfinished].sum(axis=1)
        unfinished = unfinished[(right > 0) & (right < enough)]
        if not unfinished.size:
            break
    return attempt, dataclasses.replace(stats, second_evaluations=stats.evaluations)


def _not_sampled(start: InitialCanvas, functions: Collection[str]) -> Attempt:
    """Returns an attempt in which no completion has been sampled yet, with the canvases and hint ratios of `start`."""
    no = np.zeros(start.ratio.shape, bool)
    values = {name: np.zeros(no.shape, np.float32) for name in functions}
    grades = Grades(np.full(no.shape, np.nan, np.float32), no, no.copy(), no.copy(), values)
    return Attempt(np.array(start.canvas), np.zeros(start.canvas.shape, np.int32), grades, np.array(start.ratio))


def _blank_canvas(prompts: PromptBatch, cfg: RolloutConfig) -> InitialCanvas:
    shape = len(prompts.tokens), cfg.group_size, cfg.decode.completion_length
    return InitialCanvas(np.full(shape, cfg.model.mask_id, np.int32), np.zeros(shape[:2], np.float32))


def _hinted_canvas(prompts: PromptBatch, key: jax.Array, cfg: RolloutConfig) -> InitialCanvas:
    blank = _blank_canvas(prompts, cfg).canvas
    solution = prompts.trace, prompts.trace_length, prompts.hintable
    hints_key, ratios = jax.random.fold_in(key, KeyPurpose.HINTS), ratio_range(cfg.hint_ratio_center, cfg.inpainting)
    rows = blank.reshape(-1, blank.shape[-1])
    canvas, _, ratio = to_host(inpaint(hints_key, prompts.problem_id, rows, *solution, cfg.inpainting, ratios))
    return InitialCanvas(canvas.reshape(blank.shape), ratio.reshape(blank.shape[:2]))


def _sample_attempt(
    context: RolloutContext, prompts: PromptBatch, start: InitialCanvas, purpose: KeyPurpose, first_draw: int = 0
) -> tuple[Attempt, SampleStats]:
    """Samples g completions of each prompt from the initial canvases `start`, chunk by chunk, and grades them. While one chunk
    is graded, the next one is sampled. The sampler's noise depends on the index of a completion in its group. The indices of
    the g completions start at `first_draw`."""
    clock, stats, cfg = Stopwatch(), SampleStats(), context.cfg
    n, g, length = start.canvas.shape
    row = take_rows(prompts, np.repeat(np.arange(n), g))
    draw, canvas = np.tile(np.arange(first_draw, first_draw + g, dtype=np.uint32), n), start.canvas.reshape(n * g, length)
    requests = Requests(row.tokens, row.prompt_mask, canvas, row.problem_id, draw)
    batching = Batching(context.mesh, cfg.prompts_at_once * cfg.group_size, cfg.prompt_buckets, fill=False)
    chunks, grading = [], []
    with clock.measure("sampling"):
        for rows, done in complete(context.params, requests, context.key, cfg.model, cfg.decode, batching, purpose):
            group = rows[::g] // g
            tokens, unmask_step = (np.asarray(x).reshape(-1, g, length) for x in (done.tokens, done.unmask_step))
            chunks.append((group, tokens, unmask_step))
            stats += SampleStats(len(rows), done.rows_evaluated, flops=done.flops)
            grading.append(context.grade(prompts.problem_id[group], tokens))
            context.check_preemption()
    with clock.measure("grading"):
        grades = concatenate([wait() for wait in grading])
    order, tokens, unmask_step = concatenate(chunks)
    tokens, unmask_step, grades = take_rows((tokens, unmask_step, grades), np.argsort(order))
    stats += SampleStats(sampling_seconds=clock.seconds["sampling"], grading_seconds=clock.seconds["grading"])
    return Attempt(tokens, unmask_step, grades, start.ratio), stats


def choose_replacements(correct: np.ndarray, problem_id: np.ndarray, key: jax.Array, cfg: RolloutConfig) -> list[np.ndarray]:
    """Chooses the correct completions of the second attempt that will replace completions of the first attempt. In each group
    of size G, at most floor(lambda * G) correct completions are drawn at random, where lambda is `replace_fraction`. Returns
    one array, int [k], per group of the second attempt. It holds the indices of the chosen completions in the group, in
    ascending order. `correct` is bool [groups, G]."""
    most = max_replaced(cfg.inpainting, cfg.group_size)
    seed = np.asarray(jax.random.key_data(jax.random.fold_in(key, KeyPurpose.REPLACEMENTS))).tolist()
    draws = [np.random.default_rng([*seed, problem]) for problem in problem_id]
    return [np.sort(draw.permutation(np.flatnonzero(row))[:most]) for draw, row in zip(draws, correct, strict=True)]


def swap(
    first: Attempt, second: Attempt, triggered: np.ndarray, source: list[np.ndarray], from_front: bool = False
) -> tuple[Attempt, np.ndarray]:
    """Replaces completions of the first attempt by completions of the second attempt. Returns the final attempt and the mask of
    replaced completions, bool [n, g]. `triggered` holds the indices of the groups with a second attempt. No completion of their
    first attempt is correct. `source` holds the indices of the new completions in each of these groups. Completions without a
    verdict are replaced first, because they are not trained on. Then wrong completions are replaced, beginning at the end of
    the group, or at its start if `from_front` is True."""
    final = jax.tree.map(np.copy, first)
    replaced = np.zeros(first.grades.correct.shape, bool)
    order = np.arange(first.tokens.shape[1])[:: 1 if from_front else -1]
    for row, (group, chosen) in enumerate(zip(triggered, source, strict=True)):
        if chosen.size:
            ungraded_first = order[np.argsort(first.grades.graded[group, order], kind="stable")]
            places = np.sort(ungraded_first[: len(chosen)])
            replaced[group, places] = True
            for values, better in zip(jax.tree.leaves(final), jax.tree.leaves(second), strict=True):
                values[group, places] = better[row, chosen]
    return final, replaced


def up_to_first_eos(tokens: np.ndarray, eos_id: int) -> np.ndarray:
    """Returns a bool mask that is True up to and including the first EOS of each row. A row without EOS is True everywhere."""
    ended = np.cumsum(tokens == eos_id, axis=-1)
    return (ended == 0) | ((ended == 1) & (tokens == eos_id))


def _pad_rows(groups: np.ndarray, most: int, group_size: int, divisor: int, parts: tuple[int, ...] = (4, 2, 1)) -> np.ndarray:
    """Pads `groups`, an array of group indices, with copies of its first element, so that the sampler is compiled for only a
    few batch sizes. The result consists of full chunks of `most` groups, followed by a chunk for the remaining groups. The size
    of this last chunk is `most` divided by one of `parts`, which are given in descending order. Of these sizes, the function
    uses the smallest one that holds the remaining groups and whose completions divide evenly over the devices."""
    sizes = [most // part for part in parts if most % part == 0 and most // part * group_size % divisor == 0]
    whole, rest = divmod(len(groups), most)
    size = whole * most + (next(size for size in sizes if size >= rest) if rest else 0)
    return np.concatenate([groups, np.repeat(groups[:1], size - len(groups))])


def rollout_metrics(sampled: Rollout, eos_id: int) -> dict[str, float]:
    """Returns a dict that maps the names of metrics in the log to their values in this rollout. Rewards, correctness and hint
    metrics are means, except that hint/rows is a sum. Times are in seconds. Means of rewards and correctness leave out
    completions without a verdict, and groups in which no completion has a verdict. A mean over no values is NaN."""

    def mean(values, where=...) -> float:
        values = np.asarray(values)[where]
        return float(np.mean(values)) if values.size else math.nan

    first, second, final, stats = sampled.first, sampled.second, sampled.final, sampled.stats
    attempts = [first] if second is None else [first, second]
    tried, trained = first.grades, final.grades
    has_verdict = tried.graded.any(axis=1)
    metrics = {
        "reward/first_try": mean(tried.rewards, tried.graded),
        "reward/final": mean(trained.rewards, trained.graded),
        **{f"reward/{name}": mean(values, tried.graded) for name, values in tried.parts.items()},
        "correct/first_try": mean(tried.correct, tried.graded),
        "correct/final": mean(trained.correct, trained.graded),
        "groups/all_wrong_before": mean(tried.all_wrong, has_verdict),
        "groups/all_wrong_after": mean(trained.all_wrong, has_verdict),
        "groups/all_correct": mean(tried.all_correct, has_verdict),
        "groups/distinct": distinct_share(first.tokens, eos_id),
        "hint/replaced": mean(sampled.replaced.sum(axis=1)),
        "grading/late": float(sum(attempt.grades.late.sum() for attempt in attempts)),
        "grading/broken": float(sum(attempt.grades.broken.sum() for attempt in attempts)),
    }
    if second is not None:
        metrics |= {
            "hint/rescue_rate": mean(second.grades.correct.any(axis=1), second.grades.graded.any(axis=1)),
            "hint/ratio": mean(second.ratio, second.grades.sampled),
            "hint/tokens": mean(second.hint.sum(axis=-1), second.grades.sampled),
            "hint/sampled": mean(second.grades.sampled.sum(axis=1)),
            "hint/rows": float(stats.second_evaluations),
        }
    return metrics | {
        "sampler/evaluations": stats.evaluations / stats.completions,
        "sampler/flops": stats.flops / stats.completions,
        "sampler/rows": stats.evaluations,
        "sampler/prompts": len(first.tokens),
        "time/rollout": stats.sampling_seconds,
        "time/reward": stats.grading_seconds,
    }


def distinct_share(tokens: np.ndarray, eos_id: int) -> float:
    """Returns the share of distinct completions in a group, averaged over the groups. `tokens` holds the completions, int32 [n,
    g, l]. Tokens after the first EOS of a completion are ignored."""
    ended = np.where(up_to_first_eos(tokens, eos_id), tokens, eos_id)
    return float(np.mean([len({row.tobytes() for row in group}) / len(group) for group in ended]))


def concatenate(trees: Sequence):
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *trees)
