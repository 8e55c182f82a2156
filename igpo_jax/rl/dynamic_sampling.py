"""Dynamic sampling (DAPO, arXiv 2503.14476). An iteration samples batches of prompts until it has `rl.prompts` groups that
training can learn from, or until it has sampled `rl.dynamic_batches` batches. A group consists of the completions of one
prompt. Training can learn from a group that contains both correct and wrong completions with different rewards. Completions
that could not be graded are ignored."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from igpo_jax.data.pipeline import take_rows
from igpo_jax.rl.keys import KeyPurpose
from igpo_jax.rl.likelihood import GroupBatch
from igpo_jax.rl.objective import equal_rewards
from igpo_jax.rl.rollout import Rollout, RolloutConfig, SampleStats, concatenate, rollout_metrics


def key_of_batch(key: jax.Array, number: int) -> jax.Array:
    """Returns the PRNG key for the rollout of batch `number` of an iteration. Batch 0 uses the iteration's key unchanged."""
    return jax.random.fold_in(jax.random.fold_in(key, KeyPurpose.MORE_PROMPTS), number) if number else key


def mixed_groups(parts: Sequence[Rollout]) -> np.ndarray:
    """Returns a mask, bool [batches, groups per batch]. It is True for the groups that have both correct and wrong completions,
    and whose rewards are not all equal. If all rewards of a group are equal, its advantages are 0, so training cannot learn
    from it."""
    grades = [part.final.grades for part in parts]
    return np.stack(
        [each.correct.any(axis=1) & ~each.all_correct & ~equal_rewards(each.rewards, each.graded) for each in grades]
    )


def chosen_groups(mixed: np.ndarray) -> np.ndarray:
    """Chooses n groups from several batches of n groups each. Returns the indices of the chosen groups in the concatenated
    batches, int [n], in ascending order. A group consists of the completions of one prompt. `mixed`, bool [batches, n], is True
    for the groups that training can learn from, see `mixed_groups`. The first n of these groups are chosen. If there are fewer
    than n, other groups of the last batch are added."""
    batches, n = mixed.shape
    taken = np.flatnonzero(mixed)[:n]
    others = (batches - 1) * n + np.flatnonzero(~mixed[-1])
    return np.sort(np.concatenate([taken, others[: n - len(taken)]]))


def merge(parts: Sequence[Rollout], cfg: RolloutConfig) -> Rollout:
    """Merges the batches of an iteration into one rollout that contains only the groups chosen by `chosen_groups`. The metrics
    of the result nevertheless cover all sampled groups."""
    if len(parts) == 1:
        return parts[0]
    sampled = _joined(parts)
    chosen = chosen_groups(mixed_groups(parts))
    kept = np.flatnonzero(np.isin(sampled.triggered, chosen))
    groups, first, replaced, final = take_rows((sampled.groups, sampled.first, sampled.replaced, sampled.final), chosen)
    return Rollout(
        groups=groups,
        first=first,
        second=take_rows(sampled.second, kept) if kept.size else None,
        triggered=np.searchsorted(chosen, sampled.triggered[kept]),
        replaced=replaced,
        final=final,
        stats=sampled.stats,
        metrics=rollout_metrics(sampled, cfg.model.eos_id),
    )


def _joined(parts: Sequence[Rollout]) -> Rollout:
    """Concatenates several rollouts into one on the host."""
    n, width = len(parts[0].replaced), max(part.groups.prompt.shape[1] for part in parts)
    second = [part.second for part in parts if part.second is not None]
    return Rollout(
        groups=concatenate([_widened(part.groups, width) for part in parts]),
        first=concatenate([part.first for part in parts]),
        second=concatenate(second) if second else None,
        triggered=np.concatenate([number * n + part.triggered for number, part in enumerate(parts)]),
        replaced=np.concatenate([part.replaced for part in parts]),
        final=concatenate([part.final for part in parts]),
        stats=sum((part.stats for part in parts), SampleStats()),
    )


def _widened(groups: GroupBatch, width: int) -> GroupBatch:
    """Returns `groups` with prompts that are padded on the left to `width` positions."""
    padding = ((0, 0), (width - groups.prompt.shape[1], 0))
    prompt, prompt_mask = (np.pad(x, padding) for x in (groups.prompt, groups.prompt_mask))
    return dataclasses.replace(groups, prompt=prompt, prompt_mask=prompt_mask)
